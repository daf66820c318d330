//! Launches of kernels/random.cu.

use bytemuck::{Pod, Zeroable};

use super::Random;
use crate::device::CudaDevice;
use crate::device::cuda::{CudaBuffer, Grid, Mailbox, Param};
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

/// `position`: the address of a further offset into the stream, or null.
fn fill(device: &CudaDevice, kernel: &'static str, from: &Random, position: u64, shape: &[usize]) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda(shape, device)?;
    let params = Param(RandomParams { seed: from.seed, stream: from.stream, counter: from.counter, count: y.len() as i64 });
    // SAFETY: the parameters of both entries in kernels/random.cu; y holds `count` elements and starts its buffer, so it
    // is aligned to 16 bytes; the position is null or that of a u64.
    unsafe { device.launch(kernel, Grid::strided(y.len().div_ceil(4)), &[&y.cuda_pointer(), &position, &params])? };
    Ok(y)
}

pub fn normal(device: &CudaDevice, from: &Random, shape: &[usize]) -> Result<Tensor> {
    fill(device, "random_normal_f32", from, 0, shape)
}

pub fn uniform(device: &CudaDevice, from: &Random, shape: &[usize]) -> Result<Tensor> {
    fill(device, "random_uniform_f32", from, 0, shape)
}

/// Places in a stream of random numbers, kept on a GPU: work that is recorded once draws other numbers each time.
pub struct Places {
    device: CudaDevice,
    counters: CudaBuffer,
    mailbox: Mailbox,
}

impl Places {
    pub fn new(device: &CudaDevice, count: usize) -> Result<Places> {
        let bytes = count * size_of::<u64>();
        Ok(Places { device: device.clone(), counters: device.allocate(bytes)?, mailbox: Mailbox::new(device, bytes)? })
    }

    /// Sends where the next draws begin, after all work queued so far.
    pub fn fill(&mut self, places: &[Random]) -> Result<()> {
        let counters: Vec<u64> = places.iter().map(|p| p.counter).collect();
        self.mailbox.send(&counters, &self.counters)
    }

    /// Standard normal numbers from place `index` of `stream`, whose own counter does not count.
    pub fn normal(&self, index: usize, stream: &Random, shape: &[usize]) -> Result<Tensor> {
        let position = self.counters.pointer() + (index * size_of::<u64>()) as u64;
        fill(&self.device, "random_normal_f32", &Random { counter: 0, ..*stream }, position, shape)
    }
}
