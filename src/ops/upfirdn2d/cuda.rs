//! Launches of kernels/upfirdn2d.cu.

use bytemuck::{Pod, Zeroable};

use super::{MAX_TAPS, Upfirdn2d};
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::bias_act::Epilogue;
use crate::ops::bias_act::cuda::epilogue_params;
use crate::ops::by_dtype;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Upfirdn2dParams {
    count: i32,
    input: [i32; 2],
    output: [i32; 2],
    channels: i32,
    up: i32,
    down: i32,
    pad: [i32; 2],
    taps: i32,
    fy: [f32; MAX_TAPS],
    fx: [f32; MAX_TAPS],
}
const _: () = assert!(size_of::<Upfirdn2dParams>() == 108, "keep in step with kernels/upfirdn2d.cu");

pub fn upfirdn2d(device: &CudaDevice, x: &Tensor, spec: &Upfirdn2d, shape: [usize; 4], then: Epilogue<Tensor>) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(&shape, x.dtype(), device)?;
    // In the order in which they are read, with the gain in one of the two.
    let filter = |gain: f64| {
        let mut filter = [0.0; MAX_TAPS];
        for (t, tap) in spec.taps().iter().enumerate() {
            let at = if spec.flip { t } else { spec.taps().len() - 1 - t };
            filter[at] = (tap * gain) as f32;
        }
        filter
    };
    let [_, out_h, out_w, channels] = shape;
    let params = Param(Upfirdn2dParams {
        count: y.len() as i32,
        input: [x.dim(1) as i32, x.dim(2) as i32],
        output: [out_h as i32, out_w as i32],
        channels: channels as i32,
        up: spec.up as i32,
        down: spec.down as i32,
        pad: [spec.pad[0][0] as i32, spec.pad[1][0] as i32],
        taps: spec.taps().len() as i32,
        fy: filter(spec.gain),
        fx: filter(1.0),
    });
    // SAFETY: the parameters of the upfirdn2d entries in kernels/upfirdn2d.cu; y holds `count` elements, x those of its shape,
    // outside which the kernel does not read; what is added fits y.
    unsafe { device.launch(by_dtype!(x.dtype(), "upfirdn2d"), Grid::strided(y.len()), &[&x.cuda_pointer(), &y.cuda_pointer(), &params, &epilogue_params(then)])? };
    Ok(y)
}
