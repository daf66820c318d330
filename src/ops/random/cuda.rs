//! Launches of kernels/random.cu.

use bytemuck::{Pod, Zeroable};

use super::Random;
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RandomParams {
    seed: u64,
    stream: u64,
    counter: u64,
    count: i64,
}
const _: () = assert!(size_of::<RandomParams>() == 32, "keep in step with kernels/random.cu");

fn fill(device: &CudaDevice, kernel: &'static str, from: &Random, shape: &[usize]) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda(shape, device)?;
    let params = Param(RandomParams { seed: from.seed, stream: from.stream, counter: from.counter, count: y.len() as i64 });
    let no_position = 0u64;
    // SAFETY: the parameters of both entries in kernels/random.cu; y holds `count` elements and starts its buffer, so it
    // is aligned to 16 bytes.
    unsafe { device.launch(kernel, Grid::strided(y.len().div_ceil(4)), &[&y.cuda_pointer(), &no_position, &params])? };
    Ok(y)
}

pub fn normal(device: &CudaDevice, from: &Random, shape: &[usize]) -> Result<Tensor> {
    fill(device, "random_normal_f32", from, shape)
}

pub fn uniform(device: &CudaDevice, from: &Random, shape: &[usize]) -> Result<Tensor> {
    fill(device, "random_uniform_f32", from, shape)
}
