//! Launches of kernels/optimizer.cu, ewc.cu and repulsion.cu: passes over whole slabs.

use bytemuck::{Pod, Zeroable};

use super::{Adam, Pull, Slabs};
use crate::device::CudaDevice;
use crate::device::cuda::{Argument, CudaBuffer, Grid, Param};
use crate::error::Result;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SlabChunk {
    begin: i64,
    count: i32,
    weight: f32,
}
const _: () = assert!(size_of::<SlabChunk>() == 16, "keep in step with kernels/slab.cuh");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AdamParams {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    regularise: i32,
}
const _: () = assert!(size_of::<AdamParams>() == 16, "keep in step with kernels/optimizer.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AdamState {
    beta1_power: f64,
    beta2_power: f64,
    learning_rate: f32,
    ema_decay: f32,
    correction1: f32,
    sqrt_correction2: f32,
}
const _: () = assert!(size_of::<AdamState>() == 32, "keep in step with kernels/optimizer.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RepulsionParams {
    models: f64,
    spread: f64,
    gamma: f32,
    alpha: f32,
    kind: i32,
    padding: i32,
}
const _: () = assert!(size_of::<RepulsionParams>() == 32, "keep in step with kernels/repulsion.cuh");

/// One centroid without spread and no function of the distance: the kernels leave the weighted sum itself.
const DISTANCE_ALONE: RepulsionParams = RepulsionParams { models: 1.0, spread: 0.0, gamma: 0.0, alpha: 0.0, kind: 0, padding: 0 };

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RepulsionState {
    distance: f64,
    loss: f64,
    gradient_scale: f32,
    padding: i32,
}
const _: () = assert!(size_of::<RepulsionState>() == 24, "keep in step with kernels/repulsion.cuh");

const THREADS: u32 = 256;
/// Elements of a chunk: 64 per thread keep the f32 sums of one thread short.
const CHUNK: usize = 1 << 14;

/// What every pass over chunks takes besides its slabs.
struct Pass<'a> {
    device: &'a CudaDevice,
    chunks: CudaBuffer,
    partials: CudaBuffer,
    arrivals: CudaBuffer,
    grid: Grid,
}

impl<'a> Pass<'a> {
    /// Cuts `total` elements at the segments' borders; `weights` has one number per segment, or is empty.
    fn new(device: &'a CudaDevice, offsets: &[usize], total: usize, weights: &[f64]) -> Result<Pass<'a>> {
        let mut chunks = Vec::new();
        for (segment, &start) in offsets.iter().enumerate() {
            let end = offsets.get(segment + 1).copied().unwrap_or(total);
            let weight = weights.get(segment).map_or(1.0, |w| *w as f32);
            chunks.extend((start..end).step_by(CHUNK).map(|at| SlabChunk { begin: at as i64, count: CHUNK.min(end - at) as i32, weight }));
        }
        Ok(Pass {
            device,
            partials: device.allocate(chunks.len() * size_of::<f64>())?,
            arrivals: device.upload(&[0u32])?,
            grid: Grid { blocks: [chunks.len() as u32, 1, 1], threads: THREADS },
            chunks: device.upload(&chunks)?,
        })
    }
}

/// A slab without segments: the whole is one.
const WHOLE: &[usize] = &[0];

pub fn adam_step(device: &CudaDevice, slabs: Slabs, grads: &[Tensor], offsets: &[usize], pull: Pull, adam: Adam, step: u64) -> Result<f64> {
    let total = slabs.params.len();
    let weights = if let Pull::Centroid { weights, .. } = pull { weights } else { &[] };
    let pass = Pass::new(device, offsets, total, weights)?;
    let gradient = gathered(device, grads, offsets, total)?;
    let (ema, decay) = match slabs.ema {
        Some((ema, decay)) => (ema.cuda_pointer_mut()?, decay),
        None => (0, 0.0),
    };
    let m = slabs.first_moment.filter(|_| adam.beta1 > 0.0).map(Tensor::cuda_pointer_mut).transpose()?.unwrap_or(0);
    let (theta, v) = (slabs.params.cuda_pointer_mut()?, slabs.second_moment.cuda_pointer_mut()?);
    let (power1, power2) = (adam.beta1.powi(step as i32), adam.beta2.powi(step as i32));
    let state = device.upload(&[AdamState {
        beta1_power: power1,
        beta2_power: power2,
        learning_rate: adam.lr as f32,
        ema_decay: decay as f32,
        correction1: (1.0 / (1.0 - power1)) as f32,
        sqrt_correction2: (1.0 / (1.0 - power2).sqrt()) as f32,
    }])?;
    let params = Param(AdamParams { beta1: adam.beta1 as f32, beta2: adam.beta2 as f32, epsilon: adam.eps as f32, regularise: 1 });
    let no_shadow = 0u64;
    let (chunks, arrivals, partials) = (pass.chunks.pointer(), pass.arrivals.pointer(), pass.partials.pointer());
    let (grad, state) = (gradient.pointer(), state.pointer());
    let common: [&dyn Argument; 10] = [&theta, &grad, &m, &v, &ema, &no_shadow, &chunks, &arrivals, &state, &params];
    let launch = |kernel: &'static str, rest: &[&dyn Argument]| {
        let arguments: Vec<&dyn Argument> = common.iter().chain(rest).copied().collect();
        // SAFETY: `common` and `rest` are the parameters of the entry in kernels/optimizer.cu; every slab holds `total`
        // elements, m and ema may be null, the chunks lie inside the slabs.
        unsafe { device.launch(kernel, pass.grid, &arguments) }
    };
    match pull {
        Pull::None => launch("adam_f32", &[]).map(|()| 0.0),
        Pull::L1 { strength } => {
            let norm = device.upload(&[0.0f64])?;
            launch("adam_l1_f32", &[&partials, &norm.pointer(), &Param(strength as f32)])?;
            first(device, &norm)
        }
        Pull::Ewc { anchor, fisher, lambda } => {
            let penalty = device.upload(&[0.0f64])?;
            launch("adam_ewc_f32", &[&anchor.cuda_pointer(), &fisher.cuda_pointer(), &partials, &penalty.pointer(), &Param(lambda as f32)])?;
            first(device, &penalty)
        }
        Pull::Centroid { centroid, coefficient, .. } => {
            let repulsion = device.upload(&[RepulsionState { gradient_scale: (2.0 * coefficient) as f32, ..RepulsionState::zeroed() }])?;
            launch("adam_repulsion_f32", &[&centroid.cuda_pointer(), &partials, &repulsion.pointer(), &Param(DISTANCE_ALONE)])?;
            first(device, &repulsion)
        }
    }
}

/// The f64 that a buffer begins with; waits for the work queued so far.
fn first(device: &CudaDevice, buffer: &CudaBuffer) -> Result<f64> {
    Ok(device.download::<f64>(buffer, 0, 1)?[0])
}

/// The gradients of all segments as one slab.
fn gathered(device: &CudaDevice, grads: &[Tensor], offsets: &[usize], total: usize) -> Result<CudaBuffer> {
    let slab = device.allocate_f32(total)?;
    for (grad, offset) in grads.iter().zip(offsets) {
        // SAFETY: the segments lie inside the slab, one behind the other, and each gradient is as long as its segment.
        unsafe { device.copy(slab.pointer() + (offset * size_of::<f32>()) as u64, grad.cuda_pointer(), grad.len() * size_of::<f32>())? };
    }
    Ok(slab)
}

pub fn weighted_squared_distance(device: &CudaDevice, params: &Tensor, centroid: &Tensor, offsets: &[usize], weights: &[f64]) -> Result<f64> {
    let pass = Pass::new(device, offsets, params.len(), weights)?;
    let state = device.upload(&[RepulsionState::zeroed()])?;
    let arguments = [params.cuda_pointer(), centroid.cuda_pointer(), pass.chunks.pointer(), pass.partials.pointer(), pass.arrivals.pointer(), state.pointer()];
    let [theta, centroid, chunks, partials, arrivals, result] = &arguments;
    // SAFETY: the parameters of repulsion_norm_f32 in kernels/repulsion.cu; the chunks lie inside both slabs.
    unsafe { device.launch("repulsion_norm_f32", pass.grid, &[theta, centroid, chunks, partials, arrivals, result, &Param(DISTANCE_ALONE)])? };
    first(pass.device, &state)
}

pub fn ewc(device: &CudaDevice, params: &Tensor, anchor: &Tensor, fisher: &Tensor, lambda: f64) -> Result<(f64, Tensor)> {
    let pass = Pass::new(device, WHOLE, params.len(), &[])?;
    let grad = Tensor::from_cuda(params.shape(), device.filled(params.len(), 0.0)?);
    let penalty = device.upload(&[0.0f64])?;
    let slabs = [params.cuda_pointer(), anchor.cuda_pointer(), fisher.cuda_pointer(), grad.cuda_pointer()];
    let [theta, anchor, fisher, to] = &slabs;
    let rest = [pass.chunks.pointer(), pass.partials.pointer(), pass.arrivals.pointer(), penalty.pointer()];
    let [chunks, partials, arrivals, result] = &rest;
    // SAFETY: the parameters of ewc_penalty_grad_f32 in kernels/ewc.cu; the chunks lie inside all four slabs.
    unsafe { device.launch("ewc_penalty_grad_f32", pass.grid, &[theta, anchor, fisher, to, chunks, partials, arrivals, result, &Param(lambda as f32)])? };
    Ok((first(device, &penalty)?, grad))
}

pub fn accumulate_squares(device: &CudaDevice, into: &mut Tensor, grads: &[Tensor], offsets: &[usize], weight: f64) -> Result<()> {
    let slab = into.cuda_pointer_mut()?;
    for (grad, offset) in grads.iter().zip(offsets) {
        let to = slab + (offset * size_of::<f32>()) as u64;
        let (count, weight) = (Param(grad.len() as i32), Param(weight as f32));
        // SAFETY: the parameters of accumulate_squares_f32 in kernels/optimizer.cu; the segment lies inside the slab and
        // is as long as its gradient.
        unsafe { device.launch("accumulate_squares_f32", Grid::strided(grad.len()), &[&to, &grad.cuda_pointer(), &count, &weight])? };
    }
    Ok(())
}
