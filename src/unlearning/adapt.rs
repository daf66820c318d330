//! Stage 1: adapt the pre-trained GAN to the negative samples, k times, held near its start by EWC.

use crate::error::{Error, Result};
use crate::nn::{AdamState, ParamSlab};
use crate::ops::optimizer::Pull;
use crate::ops::random::Random;
use crate::tensor::{DType, Tensor};
use crate::training::{Batches, GanState, Progress, Regulariser, Trainer, run, streams};

use super::fisher::{FisherSpec, fisher_diagonal};

/// λ of the EWC penalty (paper, appendix A.1.3).
pub const LAMBDA: f64 = 5e8;

/// Whether training goes on with the checkpoint's optimiser state or starts a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Optimiser {
    /// The checkpoint's moments and step counts (the official code).
    Restore,
    /// Zero moments.
    Fresh,
}

/// Which weights a stage starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Start {
    /// The EMA generator: what the user sees and marks.
    Ema,
    /// The raw generator.
    Raw,
}

impl Start {
    /// The generator that a stage starts from.
    pub fn of(self, pretrained: &GanState) -> &ParamSlab {
        match self {
            Start::Ema => &pretrained.g_ema,
            Start::Raw => &pretrained.g,
        }
    }
}

/// Numbers of stage 1.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct AdaptSpec {
    pub models: usize,
    pub iterations: u64,
    /// λ of the penalty `(λ/2) Σ F (θ − θ_G)²`.
    pub lambda: f64,
    pub fisher: FisherSpec,
    pub optimiser: Optimiser,
    pub start: Start,
    pub seed: u64,
}

impl AdaptSpec {
    /// The same numbers if they are usable.
    pub fn checked(self) -> Result<AdaptSpec> {
        if self.models == 0 {
            return Err(Error::config("--models", "k = 0 leaves nothing to be repelled from; use k ≥ 1"));
        }
        if self.iterations == 0 {
            return Err(Error::config("--iterations", "0 leaves the models as they are; use at least 1"));
        }
        if !(self.lambda.is_finite() && self.lambda >= 0.0) {
            return Err(Error::config("--lambda", format!("{} must be a number ≥ 0", self.lambda)));
        }
        Ok(self)
    }
}

/// A stage's starting state made from a pre-trained one: iteration and path-length mean at zero, its own randomness.
pub fn stage_start(pretrained: &GanState, start: Start, optimiser: Optimiser, trainer: &Trainer, seed: u64) -> Result<GanState> {
    let g = start.of(pretrained);
    let device = pretrained.device();
    let optim = |old: &AdamState, adam| match optimiser {
        Optimiser::Restore => {
            let mut optim = old.deep_clone()?;
            optim.adam = adam;
            Ok(optim)
        }
        Optimiser::Fresh => AdamState::new(old.second_moment.layout(), adam).to_device(&device),
    };
    Ok(GanState {
        config: pretrained.config.clone(),
        g: g.deep_clone()?,
        g_ema: pretrained.g_ema.deep_clone()?,
        d: pretrained.d.deep_clone()?,
        g_optim: optim(&pretrained.g_optim, trainer.hyper.generator_adam())?,
        d_optim: optim(&pretrained.d_optim, trainer.hyper.discriminator_adam())?,
        iteration: 0,
        mean_path_length: Tensor::full_on(&[1], 0.0, DType::F32, &device)?,
        rng: Random::new(seed, streams::TRAINING),
    })
}

/// The EWC penalty `(λ/2) Σ F (θ − anchor)²` of the generator's step.
pub struct Ewc {
    pub anchor: ParamSlab,
    pub fisher: ParamSlab,
    pub lambda: f64,
}

impl Regulariser for Ewc {
    fn pull(&self) -> Pull<'_> {
        Pull::Ewc { anchor: self.anchor.values(), fisher: self.fisher.values(), lambda: self.lambda }
    }
}

/// The seed of adapted model `index`.
pub fn model_seed(seed: u64, index: usize) -> u64 {
    seed.wrapping_mul(1000).wrapping_add(index as u64)
}

/// Adapts one model; `resumed` continues an interrupted run of it. The adapted weights are the result's `g_ema`.
pub fn adapt(
    trainer: &Trainer,
    pretrained: &GanState,
    negatives: &mut dyn Batches,
    spec: &AdaptSpec,
    index: usize,
    resumed: Option<GanState>,
    on_iteration: &mut dyn FnMut(&Progress) -> Result<()>,
) -> Result<GanState> {
    let seed = model_seed(spec.seed, index);
    let start = stage_start(pretrained, spec.start, spec.optimiser, trainer, seed)?;
    let anchor = start.g.deep_clone()?;
    let fisher = fisher_diagonal(trainer, &anchor, &pretrained.d, spec.fisher, &mut Random::new(seed, streams::FISHER))?;
    let mut ewc = Ewc { anchor, fisher, lambda: spec.lambda };
    let mut state = resumed.unwrap_or(start);
    run(trainer, &mut state, negatives, &mut ewc, spec.iterations, on_iteration)?;
    Ok(state)
}
