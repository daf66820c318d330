//! What a machine can do at most, measured: how fast it copies, and how fast a GPU multiplies. Times of kernels are judged
//! against these.

use rayon::prelude::*;

use super::cuda::{CudaDevice, Grid, Param};
use crate::error::Result;

const THREADS: u32 = 256;
/// Blocks per multiprocessor that hide every latency.
const WAVES: u32 = 8;
const WARP: u32 = 32;
/// kChains in kernels/peak.cu.
const CHAINS: f64 = 8.0;
/// Products of one mma.sync m16n8k16, two operations each.
const MMA_FLOP: f64 = 2.0 * 16.0 * 8.0 * 16.0;

/// How long a measurement is.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub bytes: usize,
    pub rounds: usize,
    pub repeats: usize,
}

impl Effort {
    /// Far beyond any cache, and milliseconds of arithmetic.
    pub const FULL: Effort = Effort { bytes: 1 << 30, rounds: 1 << 14, repeats: 11 };
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(device: &CudaDevice, effort: Effort, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    // The first run loads the kernel.
    device.time(&mut work)?;
    Ok(median((0..effort.repeats).map(|_| device.time(&mut work)).collect::<Result<_>>()?))
}

/// Bytes per second of a copy on the device, read and written.
pub fn copy_bandwidth(device: &CudaDevice, effort: Effort) -> Result<f64> {
    let (from, to) = (device.filled(effort.bytes / 4, 1.0)?, device.filled(effort.bytes / 4, 0.0)?);
    // SAFETY: both buffers hold the bytes.
    let time = seconds(device, effort, || unsafe { device.copy(to.pointer(), from.pointer(), effort.bytes) })?;
    Ok(2.0 * effort.bytes as f64 / time)
}

fn grid(device: &CudaDevice) -> Result<Grid> {
    Ok(Grid { blocks: [device.multiprocessors() * WAVES, 1, 1], threads: THREADS, shared: 0 })
}

/// Floating-point operations per second of the f32 units.
pub fn fma_rate(device: &CudaDevice, effort: Effort) -> Result<f64> {
    let grid = grid(device)?;
    let threads = grid.blocks[0] * grid.threads;
    let out = device.allocate_f32(threads as usize)?;
    let (rounds, a, b) = (Param(effort.rounds as i32), Param(0.5_f32), Param(1.0_f32));
    // SAFETY: the parameters of fma_peak_f32 in kernels/peak.cu; one number per thread is written.
    let time = seconds(device, effort, || unsafe { device.launch("fma_peak_f32", grid, &[&out.pointer(), &rounds, &a, &b]) })?;
    Ok(2.0 * CHAINS * effort.rounds as f64 * threads as f64 / time)
}

/// Floating-point operations per second of the tensor cores through `mma.sync` in bf16.
pub fn mma_rate(device: &CudaDevice, effort: Effort) -> Result<f64> {
    let grid = grid(device)?;
    let threads = grid.blocks[0] * grid.threads;
    let out = device.allocate_f32(threads as usize)?;
    let rounds = Param(effort.rounds as i32);
    // SAFETY: the parameters of mma_peak_bf16 in kernels/peak.cu; one number per thread is written.
    let time = seconds(device, effort, || unsafe { device.launch("mma_peak_bf16", grid, &[&out.pointer(), &rounds]) })?;
    Ok(MMA_FLOP * CHAINS * effort.rounds as f64 * (threads / WARP) as f64 / time)
}

/// Copies `from` to `to` with all threads, in pieces as large as the optimiser's: what memory allows (STREAM's Copy).
pub fn copy_on_host(from: &[f32], to: &mut [f32]) {
    to.par_chunks_mut(1 << 14).zip(from.par_chunks(1 << 14)).for_each(|(t, f)| t.copy_from_slice(f));
}
