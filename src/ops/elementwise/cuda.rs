//! Launches of kernels/elementwise.cu.

use bytemuck::{Pod, Zeroable};

use super::{Map, Power, Zip};
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::by_dtype;
use crate::tensor::{DType, Tensor};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapParams {
    count: i32,
    kind: i32,
    a: f32,
    b: f32,
    c: f32,
}
const _: () = assert!(size_of::<MapParams>() == 20, "keep in step with kernels/elementwise.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ZipParams {
    count: i32,
    kind: i32,
}
const _: () = assert!(size_of::<ZipParams>() == 8, "keep in step with kernels/elementwise.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ChannelScaleParams {
    count: i32,
    sample: i32,
    channels: i32,
}
const _: () = assert!(size_of::<ChannelScaleParams>() == 12, "keep in step with kernels/elementwise.cu");

/// The kernel's kind of a map and its numbers, with the CPU's special cases.
fn kind(f: Map) -> (i32, [f32; 3]) {
    let (kind, numbers) = match f {
        Map::Affine { scale, shift } => (0, [scale, shift, 0.0]),
        Map::Power(Power { gain, shift, exponent }) => {
            let kind = match exponent {
                2.0 => 1,
                0.5 => 2,
                -0.5 => 3,
                -1.0 => 4,
                _ => 5,
            };
            (kind, [gain, shift, exponent])
        }
        Map::Exp => (6, [0.0; 3]),
        Map::Log => (7, [0.0; 3]),
        Map::Sigmoid => (8, [0.0; 3]),
        Map::Tanh => (9, [0.0; 3]),
        Map::Softplus => (10, [0.0; 3]),
    };
    (kind, numbers.map(|v| v as f32))
}

/// Between f32 and bf16.
pub fn cast(device: &CudaDevice, x: &Tensor, dtype: DType) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(x.shape(), dtype, device)?;
    let kernel = by_dtype!(dtype, "cast");
    // SAFETY: the parameters of the cast entries in kernels/elementwise.cu; x and y hold as many elements, one f32 and one
    // bf16.
    unsafe { device.launch(kernel, Grid::strided(x.len().div_ceil(8)), &[&x.cuda_pointer(), &y.cuda_pointer(), &Param(x.len() as i32)])? };
    Ok(y)
}

pub fn map(device: &CudaDevice, x: &Tensor, f: Map) -> Result<Tensor> {
    if f == Map::Power(Power::of(1.0)) {
        return Ok(x.clone());
    }
    launch_map(device, x, kind(f))
}

pub fn saturate(device: &CudaDevice, x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
    launch_map(device, x, (11, [scale as f32, shift as f32, 0.0]))
}

fn launch_map(device: &CudaDevice, x: &Tensor, (kind, [a, b, c]): (i32, [f32; 3])) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(x.shape(), x.dtype(), device)?;
    let params = Param(MapParams { count: x.len() as i32, kind, a, b, c });
    // SAFETY: the parameters of the map entries in kernels/elementwise.cu; x and y hold `count` elements.
    unsafe { device.launch(by_dtype!(x.dtype(), "map"), Grid::strided(x.len()), &[&x.cuda_pointer(), &y.cuda_pointer(), &params])? };
    Ok(y)
}

pub fn zip(device: &CudaDevice, a: &Tensor, b: &Tensor, f: Zip) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(a.shape(), a.dtype(), device)?;
    let kind = match f {
        Zip::Add => 0,
        Zip::Sub => 1,
        Zip::Mul => 2,
    };
    let params = Param(ZipParams { count: a.len() as i32, kind });
    // SAFETY: the parameters of the zip entries in kernels/elementwise.cu; a, b and y hold `count` elements.
    unsafe { device.launch(by_dtype!(a.dtype(), "zip"), Grid::strided(a.len()), &[&a.cuda_pointer(), &b.cuda_pointer(), &y.cuda_pointer(), &params])? };
    Ok(y)
}

pub fn channel_scale(device: &CudaDevice, x: &Tensor, s: &Tensor) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(x.shape(), x.dtype(), device)?;
    let sample = x.len() / s.dim(0).max(1);
    let params = Param(ChannelScaleParams { count: x.len() as i32, sample: sample as i32, channels: s.dim(1) as i32 });
    let arguments = [x.cuda_pointer(), s.cuda_pointer(), y.cuda_pointer()];
    // SAFETY: the parameters of the channel_scale entries in kernels/elementwise.cu; x and y hold `count` elements, s one for
    // each channel of each sample.
    unsafe { device.launch(by_dtype!(x.dtype(), "channel_scale"), Grid::strided(x.len()), &[&arguments[0], &arguments[1], &arguments[2], &params])? };
    Ok(y)
}
