//! One pass over a network's parameter slab: regulariser gradient, Adam, EMA, and the sum the next step needs.
//!
//! StyleGAN2's Adam has β1 = 0, so there is no first moment: `v ← β2 v + (1 − β2) g²`,
//! `θ ← θ − lr · g / (sqrt(v / (1 − β2^t)) + eps)`, `ema ← ema + (1 − decay)(θ − ema)`. With β1 > 0 (classifiers) the
//! first moment is a slab of its own.

mod cpu;
mod cuda;

use std::sync::Arc;

use crate::device::Device;
use crate::device::cuda::CudaBuffer;
use crate::device::profile::{self, Work};
use crate::error::{Error, Result};
use crate::ops::same_kind;
use crate::tensor::Tensor;

/// Adam's numbers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Adam {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

/// What pulls at the parameters besides the loss, in one slab layout with them.
#[derive(Clone, Copy)]
pub enum Pull<'a> {
    None,
    /// `λ F (θ − anchor)`, the gradient of `(λ/2) Σ F (θ − anchor)²`.
    Ewc { anchor: &'a Tensor, fisher: &'a Tensor, lambda: f64 },
    /// `R'(D) · 2 w_p (θ − centroid)`, the gradient of a repulsion loss `R` of the squared distance
    /// `D = Σ_p w_p ‖θ_p − centroid_p‖² + spread`, where `w_p` is the weight of segment `p`.
    Centroid {
        centroid: &'a Tensor,
        weights: &'a [f64],
        loss: RepulsionLoss,
        spread: f64,
        /// `D` of the parameters before the step. A GPU takes it for the first step only: later ones find it in its memory,
        /// where the step before left it.
        distance: f64,
        /// Whether the gradient is added; else the distance is only measured.
        gradient: bool,
    },
    /// `strength · sign(θ)`, the gradient of `strength Σ |θ|`.
    L1 { strength: f64 },
}

/// A repulsion loss as a function of the squared distance D (paper eq. 5–7).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepulsionLoss {
    /// `γ exp(−α D)`
    El2 { gamma: f64, alpha: f64 },
    /// `−γ D`, unbounded below.
    Nl2 { gamma: f64 },
    /// `γ / D`, singular at D = 0.
    Il2 { gamma: f64 },
}

impl RepulsionLoss {
    /// The loss at squared distance `d`.
    pub fn loss(self, d: f64) -> f64 {
        match self {
            RepulsionLoss::El2 { gamma, alpha } => gamma * (-alpha * d).exp(),
            RepulsionLoss::Nl2 { gamma } => -gamma * d,
            RepulsionLoss::Il2 { gamma } => gamma / d,
        }
    }

    /// Its derivative by `d`.
    pub fn slope(self, d: f64) -> f64 {
        match self {
            RepulsionLoss::El2 { gamma, alpha } => -alpha * gamma * (-alpha * d).exp(),
            RepulsionLoss::Nl2 { gamma } => -gamma,
            RepulsionLoss::Il2 { gamma } => -gamma / (d * d),
        }
    }
}

/// A number that a pass has reduced. A GPU keeps it until it is asked for.
#[derive(Clone, Debug)]
pub struct Sum(Kept);

#[derive(Clone, Debug)]
enum Kept {
    Here(f64),
    /// The first f64 of the buffer.
    There(Arc<CudaBuffer>),
}

impl Sum {
    /// The number. On a GPU: of the last pass, after waiting for it.
    pub fn read(&self) -> Result<f64> {
        match &self.0 {
            Kept::Here(sum) => Ok(*sum),
            Kept::There(buffer) => Ok(buffer.device().download::<f64>(buffer, 0, 1)?[0]),
        }
    }
}

/// What one optimiser's passes on a GPU keep there from step to step; made at the first. A clone starts empty.
#[derive(Default)]
pub struct Resident(Option<cuda::Pass>);

impl Clone for Resident {
    fn clone(&self) -> Resident {
        Resident::default()
    }
}

impl std::fmt::Debug for Resident {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resident({})", if self.0.is_some() { "prepared" } else { "empty" })
    }
}

impl Resident {
    /// Says that the GPU has done so many steps (or, negative, that so many were not done) without `adam_step` running.
    pub fn count(&mut self, steps: i64) {
        if let Some(pass) = &mut self.0 {
            pass.count(steps);
        }
    }
}

/// The slabs of one step; all of one length.
pub struct Slabs<'a> {
    pub params: &'a mut Tensor,
    /// Required when `beta1 > 0`.
    pub first_moment: Option<&'a mut Tensor>,
    pub second_moment: &'a mut Tensor,
    /// The running mean of the parameters and its decay.
    pub ema: Option<(&'a mut Tensor, f64)>,
}

/// One step. `grads[p]` is the gradient of segment `p`, which lies at `offsets[p]` of the slab; `step` counts from 1.
///
/// Returns, in f64 and a fixed order of summation: for `Pull::Ewc` the penalty `(λ/2) Σ F (θ − anchor)²` of the
/// parameters before the step; for `Pull::Centroid` the distance `D` after it; for `Pull::L1` the norm before it.
pub fn adam_step(slabs: Slabs, grads: &[Tensor], offsets: &[usize], pull: Pull, adam: Adam, step: u64, resident: &mut Resident) -> Result<Option<Sum>> {
    let total: usize = grads.iter().map(Tensor::len).sum();
    if slabs.params.len() != total || slabs.second_moment.len() != total || offsets.len() != grads.len() {
        return Err(Error::shape("adam_step", format!("gradients of {total} elements for a slab of {}", slabs.params.len())));
    }
    if adam.beta1 > 0.0 && slabs.first_moment.is_none() {
        return Err(Error::shape("adam_step", "beta1 > 0 needs a slab for the first moment"));
    }
    let mut all: Vec<&Tensor> = vec![&*slabs.params, &*slabs.second_moment];
    all.extend(slabs.first_moment.as_deref());
    all.extend(slabs.ema.as_ref().map(|(e, _)| &**e));
    all.extend(grads);
    match pull {
        Pull::None | Pull::L1 { .. } => {}
        Pull::Ewc { anchor, fisher, .. } => all.extend([anchor, fisher]),
        Pull::Centroid { centroid, .. } => all.push(centroid),
    }
    same_kind("adam_step", &all)?;
    match slabs.params.device() {
        Device::Cpu => {
            let written = 2 + usize::from(slabs.first_moment.is_some()) + usize::from(slabs.ema.is_some());
            // All slabs are as long as the parameters, and so are the gradients together.
            let read = all.len() - grads.len() + 1;
            let work = Work { operands: format!("[{total}]"), flops: 0.0, bytes: (4 * total * (read + written)) as f64 };
            let sum = profile::op("adam_step", || cpu::adam_step(slabs, grads, offsets, pull, adam, step), |_| work)?;
            Ok((!matches!(pull, Pull::None)).then_some(Sum(Kept::Here(sum))))
        }
        Device::Cuda(d) => cuda::adam_step(&d, slabs, grads, offsets, pull, adam, step, resident),
    }
}

/// `Σ_p w_p ‖θ_p − centroid_p‖²` in f64, fixed order; one weight per segment.
pub fn weighted_squared_distance(params: &Tensor, centroid: &Tensor, offsets: &[usize], weights: &[f64]) -> Result<f64> {
    if params.len() != centroid.len() || offsets.len() != weights.len() {
        return Err(Error::shape("weighted_squared_distance", format!("{} and {} elements", params.len(), centroid.len())));
    }
    same_kind("weighted_squared_distance", &[params, centroid])?;
    match params.device() {
        Device::Cpu => Ok(cpu::weighted_squared_distance(params, centroid, offsets, weights)),
        Device::Cuda(d) => cuda::weighted_squared_distance(&d, params, centroid, offsets, weights),
    }
}

/// `(λ/2) Σ F (θ − anchor)²` in f64 and its gradient `λ F (θ − anchor)`, in one pass.
pub fn ewc(params: &Tensor, anchor: &Tensor, fisher: &Tensor, lambda: f64) -> Result<(f64, Tensor)> {
    if params.len() != anchor.len() || params.len() != fisher.len() {
        return Err(Error::shape("ewc", format!("slabs of {}, {} and {} elements", params.len(), anchor.len(), fisher.len())));
    }
    same_kind("ewc", &[params, anchor, fisher])?;
    match params.device() {
        Device::Cpu => Ok(cpu::ewc(params, anchor, fisher, lambda)),
        Device::Cuda(d) => cuda::ewc(&d, params, anchor, fisher, lambda),
    }
}

/// `into += weight · g²` for each gradient, which lies at its offset of the slab: how squared per-sample gradients become
/// a Fisher diagonal. What no gradient covers stays.
pub fn accumulate_squares(into: &mut Tensor, grads: &[Tensor], offsets: &[usize], weight: f64) -> Result<()> {
    let inside = grads.iter().zip(offsets).all(|(g, at)| at + g.len() <= into.len());
    if !inside || offsets.len() != grads.len() {
        return Err(Error::shape("accumulate_squares", format!("{} gradients at {offsets:?} of a slab of {}", grads.len(), into.len())));
    }
    let all: Vec<&Tensor> = [&*into].into_iter().chain(grads).collect();
    same_kind("accumulate_squares", &all)?;
    match into.device() {
        Device::Cpu => cpu::accumulate_squares(into, grads, offsets, weight),
        Device::Cuda(d) => cuda::accumulate_squares(&d, into, grads, offsets, weight),
    }
}
