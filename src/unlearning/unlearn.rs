//! Stage 2: train the original GAN on the positive samples, repelled from the adapted models.

use crate::error::Result;
use crate::nn::ParamSlab;
use crate::ops::layout::concat;
use crate::tensor::Tensor;
use crate::training::{Batches, GanState, Hyper, NoRegulariser, Progress, Regulariser, TensorBatches, Trainer, run};

use super::adapt::{Optimiser, Start, stage_start};
use super::feedback::Feedback;
use super::repulsion::{Distance, Kind, Repulsion};

/// Numbers of stage 2.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct UnlearnSpec {
    pub iterations: u64,
    /// `None` is the ablation: positives only.
    pub repulsion: Option<Kind>,
    pub distance: Distance,
    /// Root mean square displacement from the adapted models at which a run-away is stopped.
    pub runaway: f64,
    pub optimiser: Optimiser,
    pub start: Start,
    pub seed: u64,
}

/// Batches of the positives, each followed by `Hyper::given_fakes` negatives.
pub struct MarkedBatches<'a> {
    positives: TensorBatches<'a>,
    negatives: Option<TensorBatches<'a>>,
}

impl<'a> MarkedBatches<'a> {
    /// `drawn`: batches that an interrupted run has already taken.
    pub fn new(feedback: &'a Feedback, hyper: &Hyper, seed: u64, drawn: u64) -> Result<MarkedBatches<'a>> {
        let of = |subset, batch| TensorBatches::new(&feedback.images, subset, batch, seed, drawn);
        Ok(MarkedBatches {
            positives: of(feedback.positives(), hyper.batch)?,
            negatives: (hyper.given_fakes > 0).then(|| of(feedback.negatives(), hyper.given_fakes)).transpose()?,
        })
    }
}

impl Batches for MarkedBatches<'_> {
    fn next(&mut self) -> Result<Tensor> {
        let positives = self.positives.next()?;
        match &mut self.negatives {
            None => Ok(positives),
            Some(negatives) => concat(&[&positives, &negatives.next()?], 0),
        }
    }
}

/// Runs stage 2; `resumed` continues an interrupted run. The unlearned weights are the result's `g_ema`.
pub fn unlearn(
    trainer: &Trainer,
    pretrained: &GanState,
    adapted: &[ParamSlab],
    positives: &mut dyn Batches,
    spec: &UnlearnSpec,
    resumed: Option<GanState>,
    on_iteration: &mut dyn FnMut(&Progress) -> Result<()>,
) -> Result<GanState> {
    let mut state = resumed.unwrap_or_else(|| stage_start(pretrained, spec.start, spec.optimiser, trainer, spec.seed));
    let mut regulariser: Box<dyn Regulariser> = match spec.repulsion {
        None => Box::new(NoRegulariser),
        Some(kind) => Box::new(Repulsion::new(kind, spec.distance, adapted, &state.g, spec.runaway)?),
    };
    run(trainer, &mut state, positives, &mut *regulariser, spec.iterations, on_iteration)?;
    Ok(state)
}
