//! Launches of kernels/pool2d.cu.

use bytemuck::{Pod, Zeroable};

use super::{Divisor, Window};
use crate::device::CudaDevice;
use crate::device::cuda::{Argument, Grid, Param};
use crate::error::Result;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Pool2dParams {
    count: i32,
    image: [i32; 2],
    out: [i32; 2],
    channels: i32,
    kernel: [i32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    divide_by_inside: i32,
}
const _: () = assert!(size_of::<Pool2dParams>() == 52, "keep in step with kernels/pool2d.cu");

/// Runs a kernel on `operands`; its result is an image of `size` or the windows' outputs.
fn launch(device: &CudaDevice, kernel: &'static str, operands: &[&Tensor], window: Window, [image, out]: [[usize; 2]; 2], result: [usize; 2], divisor: Divisor) -> Result<Tensor> {
    let (n, channels) = (operands[0].dim(0), operands[0].dim(3));
    let y = Tensor::uninitialised_cuda(&[n, result[0], result[1], channels], device)?;
    let pair = |v: [usize; 2]| v.map(|v| v as i32);
    let params = Param(Pool2dParams {
        count: y.len() as i32,
        image: pair(image),
        out: pair(out),
        channels: channels as i32,
        kernel: pair(window.kernel),
        stride: pair(window.stride),
        padding: pair(window.padding),
        divide_by_inside: (divisor == Divisor::Inside).into(),
    });
    let addresses: Vec<u64> = operands.iter().map(|t| t.cuda_pointer()).chain([y.cuda_pointer()]).collect();
    let mut arguments: Vec<&dyn Argument> = addresses.iter().map(|a| a as &dyn Argument).collect();
    arguments.push(&params);
    // SAFETY: the parameters of the entries in kernels/pool2d.cu: one or two operands of the sizes that the op has checked,
    // and a result of `count` elements.
    unsafe { device.launch(kernel, Grid::strided(y.len()), &arguments)? };
    Ok(y)
}

fn size(t: &Tensor) -> [usize; 2] {
    [t.dim(1), t.dim(2)]
}

/// A kernel from images to windows.
pub fn over_windows(device: &CudaDevice, kernel: &'static str, operands: &[&Tensor], window: Window, divisor: Divisor, out: [usize; 2]) -> Result<Tensor> {
    launch(device, kernel, operands, window, [size(operands[0]), out], out, divisor)
}

/// A kernel from windows to images.
pub fn over_images(device: &CudaDevice, kernel: &'static str, operands: &[&Tensor], window: Window, divisor: Divisor, image: [usize; 2]) -> Result<Tensor> {
    launch(device, kernel, operands, window, [image, size(operands[0])], image, divisor)
}
