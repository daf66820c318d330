//! Launches of kernels/optimizer.cu, ewc.cu and repulsion.cu: passes over whole slabs.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::{Adam, Kept, Pull, RepulsionLoss, Resident, Slabs, Sum};
use crate::device::CudaDevice;
use crate::device::cuda::{Argument, CudaBuffer, Grid, Param, Shadow};
use crate::error::{Error, Result};
use crate::ops::layout::concat;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SlabChunk {
    begin: i64,
    count: i32,
    weight: f32,
    tensor: i32,
    first: i32,
    shadow: i64,
}
const _: () = assert!(size_of::<SlabChunk>() == 32, "keep in step with kernels/slab.cuh");

const MOST_TENSORS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Gradients {
    of: [u64; MOST_TENSORS],
}
const _: () = assert!(size_of::<Gradients>() == 2048, "keep in step with kernels/slab.cuh");

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

/// `RepulsionKind` in kernels/repulsion.cuh.
fn law(loss: RepulsionLoss, spread: f64) -> RepulsionParams {
    let (kind, gamma, alpha) = match loss {
        RepulsionLoss::El2 { gamma, alpha } => (1, gamma, alpha),
        RepulsionLoss::Nl2 { gamma } => (2, gamma, 0.0),
        RepulsionLoss::Il2 { gamma } => (3, gamma, 0.0),
    };
    RepulsionParams { models: 1.0, spread, gamma: gamma as f32, alpha: alpha as f32, kind, padding: 0 }
}

/// What every pass over chunks takes besides its slabs.
struct Chunks {
    table: CudaBuffer,
    partials: CudaBuffer,
    arrivals: CudaBuffer,
    grid: Grid,
}

impl Chunks {
    /// Cuts `total` elements at the segments' borders; `weights` has one number per segment, or is empty.
    fn new(device: &CudaDevice, offsets: &[usize], total: usize, weights: &[f64]) -> Result<Chunks> {
        let ends = offsets.iter().skip(1).copied().chain([total]);
        Chunks::of(device, offsets.iter().copied().zip(ends).map(|(start, end)| start..end), weights, None)
    }

    /// Cuts the segments, some of which may have a bf16 copy.
    fn of(device: &CudaDevice, segments: impl Iterator<Item = Range<usize>>, weights: &[f64], shadow: Option<&Shadow>) -> Result<Chunks> {
        let mut chunks = Vec::new();
        for (segment, Range { start, end }) in segments.enumerate() {
            let weight = weights.get(segment).map_or(1.0, |w| *w as f32);
            let copy = shadow.and_then(|shadow| shadow.begin_of(start, end - start));
            chunks.extend((start..end).step_by(CHUNK).map(|at| SlabChunk {
                begin: at as i64,
                count: CHUNK.min(end - at) as i32,
                weight,
                tensor: segment as i32,
                first: (at - start) as i32,
                shadow: copy.map_or(-1, |copy| (copy + at - start) as i64),
            }));
        }
        Ok(Chunks {
            partials: device.allocate(chunks.len() * size_of::<f64>())?,
            arrivals: device.upload(&[0u32])?,
            grid: Grid { blocks: [chunks.len() as u32, 1, 1], threads: THREADS, shared: 0 },
            table: device.upload(&chunks)?,
        })
    }
}

/// A slab without segments: the whole is one.
const WHOLE: &[usize] = &[0];

/// What the steps of one optimiser keep on the GPU.
pub struct Pass {
    device: CudaDevice,
    chunks: Chunks,
    weights: Vec<f64>,
    /// An `AdamState`.
    state: CudaBuffer,
    /// What `state` is ready for: the numbers, the average's decay, the step.
    ready: Option<(Adam, f64, u64)>,
    /// The regulariser's value, or a `RepulsionState`.
    sum: Arc<CudaBuffer>,
    /// Whether `sum` holds the distance of the parameters.
    measured: bool,
    /// The bf16 copy that the chunks are for; 0: none.
    shadow: u64,
}

impl Pass {
    /// For a slab of parameters. One whose users would take a bf16 copy of weights gets one with its first pass.
    fn new(device: &CudaDevice, offsets: &[usize], params: &mut Tensor, grads: &[Tensor], weights: &[f64]) -> Result<Pass> {
        let segments = || offsets.iter().zip(grads).map(|(&at, g)| at..at + g.len());
        let buffer = params.cuda_buffer_mut()?;
        if buffer.wants_shadow() {
            let convolutions = segments().zip(grads).filter(|(_, g)| g.rank() == 4);
            buffer.set_shadow(Shadow::new(device, convolutions.map(|(s, _)| (s.start, s.len())))?);
        }
        Ok(Pass {
            device: device.clone(),
            chunks: Chunks::of(device, segments(), weights, buffer.shadow())?,
            shadow: buffer.shadow().map_or(0, Shadow::pointer),
            weights: weights.to_vec(),
            state: device.allocate(size_of::<AdamState>())?,
            ready: None,
            sum: Arc::new(device.upload(&[RepulsionState::zeroed()])?),
            measured: false,
        })
    }

    pub fn count(&mut self, steps: i64) {
        if let Some((_, _, step)) = &mut self.ready {
            *step = step.wrapping_add_signed(steps);
        }
    }

    /// Has `state` hold what step `step` uses. Usually the step before has left it there.
    fn prepare(&mut self, adam: Adam, decay: f64, step: u64) -> Result<()> {
        if self.ready != Some((adam, decay, step)) {
            let (power1, power2) = (power(adam.beta1, step), power(adam.beta2, step));
            let state = AdamState {
                beta1_power: power1,
                beta2_power: power2,
                learning_rate: adam.lr as f32,
                ema_decay: decay as f32,
                correction1: (1.0 / (1.0 - power1)) as f32,
                sqrt_correction2: (1.0 / (1.0 - power2).sqrt()) as f32,
            };
            self.device.write(&self.state, &[state])?;
        }
        self.ready = Some((adam, decay, step + 1));
        Ok(())
    }

    /// Has `sum` hold the distance and the size of its gradient. After the first step the step before has left both.
    fn measure(&mut self, loss: RepulsionLoss, distance: f64) -> Result<()> {
        if !self.measured {
            let state = RepulsionState { distance, loss: loss.loss(distance), gradient_scale: (2.0 * loss.slope(distance)) as f32, padding: 0 };
            self.device.write(&self.sum, &[state])?;
            self.measured = true;
        }
        Ok(())
    }
}

/// `beta^step` with the bits to which a GPU comes step by step (`advance` in kernels/optimizer.cu): a run that is resumed
/// goes on as if it had not stopped.
fn power(beta: f64, step: u64) -> f64 {
    let beta = f64::from(beta as f32);
    (0..step).fold(1.0, |power, _| power * beta)
}

/// All gradients as one.
fn end_to_end(grads: &[Tensor]) -> Result<Tensor> {
    let flat = grads.iter().map(|g| g.reshape(&[g.len()])).collect::<Result<Vec<_>>>()?;
    concat(&flat.iter().collect::<Vec<_>>(), 0)
}

/// Where the gradients lie.
fn addresses(op: &'static str, grads: &[Tensor]) -> Result<Param<Gradients>> {
    if grads.len() > MOST_TENSORS {
        return Err(Error::Unsupported { op, problem: format!("{} parameters on a GPU, at most {MOST_TENSORS}; use --device cpu", grads.len()) });
    }
    let mut of = [0; MOST_TENSORS];
    for (to, grad) in of.iter_mut().zip(grads) {
        *to = grad.cuda_pointer();
    }
    Ok(Param(Gradients { of }))
}

#[allow(clippy::too_many_arguments, reason = "the op's arguments, and the device")]
pub fn adam_step(
    device: &CudaDevice,
    slabs: Slabs,
    grads: &[Tensor],
    offsets: &[usize],
    pull: Pull,
    adam: Adam,
    step: u64,
    Resident(resident): &mut Resident,
) -> Result<Option<Sum>> {
    let weights = if let Pull::Centroid { weights, .. } = pull { weights } else { &[] };
    // Weights are by segment; without them gradients that the kernels cannot take one by one may be taken as one.
    let joined;
    let (grads, offsets) = match grads.len() > MOST_TENSORS && weights.is_empty() {
        true => {
            joined = [end_to_end(grads)?];
            (&joined[..], WHOLE)
        }
        false => (grads, offsets),
    };
    let fits = |pass: &Pass| pass.device == *device && (weights.is_empty() || pass.weights == weights);
    let pass = match resident.take().filter(fits) {
        Some(pass) => resident.insert(pass),
        None => resident.insert(device.without_workspace(|| Pass::new(device, offsets, slabs.params, grads, weights))?),
    };
    let (ema, decay) = match slabs.ema {
        Some((ema, decay)) => (ema.cuda_pointer_mut()?, decay),
        // The decay that an earlier step was told stays: steps with and without an average take turns.
        None => (0, pass.ready.map_or(0.0, |(_, decay, _)| decay)),
    };
    pass.prepare(adam, decay, step)?;
    if let Pull::Centroid { loss, distance, .. } = pull {
        pass.measure(loss, distance)?;
    }
    let m = slabs.first_moment.filter(|_| adam.beta1 > 0.0).map(Tensor::cuda_pointer_mut).transpose()?.unwrap_or(0);
    let (theta, v) = (slabs.params.cuda_pointer_mut()?, slabs.second_moment.cuda_pointer_mut()?);
    let params_buffer = slabs.params.cuda_buffer_mut()?;
    // An optimiser that has changed its slab leaves another's copy alone. What reads the copy is queued after this pass.
    let shadow = params_buffer.shadow().map_or(0, Shadow::pointer);
    let shadow = if shadow == pass.shadow { shadow } else { 0 };
    params_buffer.set_shadow_fresh(shadow != 0);
    let regularise = !matches!(pull, Pull::Centroid { gradient: false, .. });
    let params = Param(AdamParams { beta1: adam.beta1 as f32, beta2: adam.beta2 as f32, epsilon: adam.eps as f32, regularise: regularise.into() });
    let gradients = addresses("adam_step", grads)?;
    let (table, arrivals, partials) = (pass.chunks.table.pointer(), pass.chunks.arrivals.pointer(), pass.chunks.partials.pointer());
    let (state, sum) = (pass.state.pointer(), pass.sum.pointer());
    let common: [&dyn Argument; 10] = [&theta, &gradients, &m, &v, &ema, &shadow, &table, &arrivals, &state, &params];
    let launch = |kernel: &'static str, rest: &[&dyn Argument]| {
        let arguments: Vec<&dyn Argument> = common.iter().chain(rest).copied().collect();
        // SAFETY: `common` and `rest` are the parameters of the entry in kernels/optimizer.cu; every slab holds all
        // elements, m, ema and the bf16 copy may be null, the chunks lie inside the slabs and each gradient is as long as its segment.
        unsafe { device.launch(kernel, pass.chunks.grid, &arguments) }
    };
    match pull {
        Pull::None => {
            launch("adam_f32", &[])?;
            return Ok(None);
        }
        Pull::L1 { strength } => launch("adam_l1_f32", &[&partials, &sum, &Param(strength as f32)])?,
        Pull::Ewc { anchor, fisher, lambda } => {
            launch("adam_ewc_f32", &[&anchor.cuda_pointer(), &fisher.cuda_pointer(), &partials, &sum, &Param(lambda as f32)])?;
        }
        Pull::Centroid { centroid, loss, spread, .. } => {
            launch("adam_repulsion_f32", &[&centroid.cuda_pointer(), &partials, &sum, &Param(law(loss, spread))])?;
        }
    }
    Ok(Some(Sum(Kept::There(pass.sum.clone()))))
}

/// The f64 that a buffer begins with; waits for the work queued so far.
fn first(device: &CudaDevice, buffer: &CudaBuffer) -> Result<f64> {
    Ok(device.download::<f64>(buffer, 0, 1)?[0])
}

pub fn weighted_squared_distance(device: &CudaDevice, params: &Tensor, centroid: &Tensor, offsets: &[usize], weights: &[f64]) -> Result<f64> {
    let chunks = Chunks::new(device, offsets, params.len(), weights)?;
    let state = device.upload(&[RepulsionState::zeroed()])?;
    let arguments = [params.cuda_pointer(), centroid.cuda_pointer(), chunks.table.pointer(), chunks.partials.pointer(), chunks.arrivals.pointer(), state.pointer()];
    let [theta, centroid, table, partials, arrivals, result] = &arguments;
    // SAFETY: the parameters of repulsion_norm_f32 in kernels/repulsion.cu; the chunks lie inside both slabs.
    unsafe { device.launch("repulsion_norm_f32", chunks.grid, &[theta, centroid, table, partials, arrivals, result, &Param(DISTANCE_ALONE)])? };
    first(device, &state)
}

pub fn ewc(device: &CudaDevice, params: &Tensor, anchor: &Tensor, fisher: &Tensor, lambda: f64) -> Result<(f64, Tensor)> {
    let chunks = Chunks::new(device, WHOLE, params.len(), &[])?;
    let grad = Tensor::from_cuda(params.shape(), device.filled(params.len(), 0.0)?);
    let penalty = device.upload(&[0.0f64])?;
    let slabs = [params.cuda_pointer(), anchor.cuda_pointer(), fisher.cuda_pointer(), grad.cuda_pointer()];
    let [theta, anchor, fisher, to] = &slabs;
    let rest = [chunks.table.pointer(), chunks.partials.pointer(), chunks.arrivals.pointer(), penalty.pointer()];
    let [table, partials, arrivals, result] = &rest;
    // SAFETY: the parameters of ewc_penalty_grad_f32 in kernels/ewc.cu; the chunks lie inside all four slabs.
    unsafe { device.launch("ewc_penalty_grad_f32", chunks.grid, &[theta, anchor, fisher, to, table, partials, arrivals, result, &Param(lambda as f32)])? };
    Ok((first(device, &penalty)?, grad))
}

pub fn accumulate_squares(device: &CudaDevice, into: &mut Tensor, grads: &[Tensor], offsets: &[usize], weight: f64) -> Result<()> {
    let chunks = Chunks::of(device, grads.iter().zip(offsets).map(|(g, &at)| at..at + g.len()), &[], None)?;
    let (slab, gradients) = (into.cuda_pointer_mut()?, addresses("accumulate_squares", grads)?);
    // SAFETY: the parameters of accumulate_squares_f32 in kernels/optimizer.cu; the chunks lie inside the slab and each
    // gradient is as long as its segment.
    unsafe { device.launch("accumulate_squares_f32", chunks.grid, &[&slab, &gradients, &chunks.table.pointer(), &Param(weight as f32)]) }
}
