//! Diagonal Fisher information of the generator: the mean over samples of squared per-sample gradients.
//!
//! The discriminator's minibatch standard deviation couples the samples of a group, so a per-sample gradient of the
//! official estimator runs through all images of its group. Groups are evaluated alone: one forward pass and as many
//! backward passes as members, each over the group only, which is 1/8 of the official loop's work at 32 samples.

use crate::autograd::{Var, accumulate_squared_grads, scale, slice, softplus};
use crate::error::{Error, Result};
use crate::models::stylegan2::{Generator, Styles};
use crate::nn::ParamSlab;
use crate::ops::layout::gather_rows;
use crate::ops::random::Random;
use crate::tensor::{Tensor, all_on};
use crate::training::Trainer;

/// The function whose per-sample gradient is squared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Estimator {
    /// The raw logit of D (the official code).
    Logit,
    /// `log σ(logit)`, the log-likelihood of "real" (Li et al. 2020, the paper's text).
    Bce,
}

impl Estimator {
    /// The function for one sample's logit.
    pub(super) fn objective(self, logit: Var) -> Result<Var> {
        match self {
            Estimator::Logit => Ok(logit),
            Estimator::Bce => softplus(&scale(&logit, -1.0)?),
        }
    }
}

/// Which parameters get a Fisher value; the others get zero, so EWC leaves them free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Coverage {
    /// All parameters (the paper's text).
    All,
    /// The styled convolutions from 8×8 upward, `convs.*` (the official code).
    Convs,
}

/// How samples share D's minibatch standard deviation while the Fisher is estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Grouping {
    /// Groups of four, as in training (the official code): gradients contain their group's cross terms.
    Batch,
    /// Every sample alone: gradients of one sample each, a quarter of the work.
    Alone,
}

/// How the Fisher is estimated.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FisherSpec {
    pub estimator: Estimator,
    pub coverage: Coverage,
    pub grouping: Grouping,
    pub samples: usize,
}

impl Default for FisherSpec {
    /// The official code's.
    fn default() -> FisherSpec {
        FisherSpec { estimator: Estimator::Logit, coverage: Coverage::Convs, grouping: Grouping::Batch, samples: 32 }
    }
}

/// The Fisher diagonal of `g` as judged by `d`, for samples drawn from `rng`.
pub fn fisher_diagonal(nets: &Trainer, g: &ParamSlab, d: &ParamSlab, spec: FisherSpec, rng: &mut Random) -> Result<ParamSlab> {
    if spec.samples == 0 {
        return Err(Error::config("--fisher-samples", "needs at least one sample"));
    }
    let device = g.values().device();
    let styles = nets.draw_styles(spec.samples, rng).to_device(&device)?;
    let noise = all_on(&device, &nets.generator.draw_noise(spec.samples, rng))?;
    fisher_of(nets, g, d, spec, &styles, &noise)
}

/// As `fisher_diagonal`, for given samples.
pub fn fisher_of(nets: &Trainer, g: &ParamSlab, d: &ParamSlab, spec: FisherSpec, styles: &Styles, noise: &[Tensor]) -> Result<ParamSlab> {
    let n = spec.samples;
    let members = match spec.grouping {
        Grouping::Alone => 1,
        Grouping::Batch => n.min(4),
    };
    if !n.is_multiple_of(members) {
        return Err(Error::config("--fisher-samples", format!("{n} must be a multiple of 4 when D groups samples")));
    }
    let groups = n / members;
    let device = g.values().device();
    let mut fisher = ParamSlab::zeros(g.layout()).to_device(&device)?;
    let covered: Vec<bool> = g.layout().segments().iter().map(|s| spec.coverage == Coverage::All || Generator::is_conv(&s.name)).collect();
    let offsets: Vec<usize> = g.layout().offsets().into_iter().zip(&covered).filter(|(_, covered)| **covered).map(|(at, _)| at).collect();
    for group in 0..groups {
        let indices: Vec<usize> = (0..members).map(|m| group + m * groups).collect();
        let params = g.leaves();
        let maps = noise.iter().map(|t| gather_rows(t, &indices)).collect::<Result<Vec<_>>>()?;
        let images = nets.generator.forward(&params, &styles.rows(&indices)?, &maps)?;
        let logits = nets.discriminator.forward(&d.constants(), &images, 1)?;
        let targets: Vec<&Var> = params.all().into_iter().zip(&covered).filter(|(_, covered)| **covered).map(|(v, _)| v).collect();
        for m in 0..members {
            let objective = spec.estimator.objective(slice(&logits, 0, m, 1)?)?;
            accumulate_squared_grads(&objective, &targets, &offsets, 1.0 / n as f64, fisher.values_mut())?;
        }
    }
    Ok(fisher)
}
