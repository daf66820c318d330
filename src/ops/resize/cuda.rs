//! Launches of kernels/resize.cu: along x, then along y.

use bytemuck::{Pod, Zeroable};

use super::Axis;
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ResizeTaps {
    start: i32,
    first: i32,
    count: i32,
}
const _: () = assert!(size_of::<ResizeTaps>() == 12, "keep in step with kernels/resize.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ResizeParams {
    count: i32,
    input: i32,
    output: i32,
    inner: i32,
}
const _: () = assert!(size_of::<ResizeParams>() == 16, "keep in step with kernels/resize.cu");

/// `[outer, in, inner]` to `[outer, out, inner]`, flat.
fn along(device: &CudaDevice, x: &Tensor, axis: &Axis, [input, inner]: [usize; 2]) -> Result<Tensor> {
    let (mut taps, mut weights) = (Vec::new(), Vec::new());
    for (start, of) in &axis.taps {
        taps.push(ResizeTaps { start: *start as i32, first: weights.len() as i32, count: of.len() as i32 });
        weights.extend(of.iter().map(|w| *w as f32));
    }
    let output = taps.len();
    let y = Tensor::uninitialised_cuda(&[x.len() / input * output], device)?;
    let params = Param(ResizeParams { count: y.len() as i32, input: input as i32, output: output as i32, inner: inner as i32 });
    let (taps, weights) = (device.upload(&taps)?, device.upload(&weights)?);
    let arguments = [x.cuda_pointer(), taps.pointer(), weights.pointer(), y.cuda_pointer()];
    let [from, taps_at, weights_at, to] = &arguments;
    // SAFETY: the parameters of resize_axis_f32 in kernels/resize.cu; the taps of every output lie inside the axis.
    unsafe { device.launch("resize_axis_f32", Grid::strided(y.len()), &[from, taps_at, weights_at, to, &params])? };
    Ok(y)
}

pub fn resize(device: &CudaDevice, x: &Tensor, [oh, ow]: [usize; 2], axes: &[Axis; 2]) -> Result<Tensor> {
    let (n, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let wide = along(device, x, &axes[1], [w, c])?;
    along(device, &wide, &axes[0], [h, ow * c])?.reshape(&[n, oh, ow, c])
}
