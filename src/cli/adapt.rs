//! `recant adapt`: stage 1, k adapted models.

use std::path::PathBuf;
use std::sync::Mutex;

use clap::Args;
use serde::Serialize;

use super::model::{check_feedback, read_feedback, read_state};
use super::output::{Progress, summary};
use super::run_folder::{RunFolder, interrupted};
use super::train::{HyperArgs, describe};
use super::{Global, SideBySide};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::training::checkpoint::{Checkpoint, save_state};
use crate::training::{Hyper, Losses, TensorBatches, Trainer};
use crate::unlearning::adapt::{AdaptSpec, LAMBDA, Optimiser, Start, adapt, model_seed};
use crate::unlearning::fisher::{Coverage, Estimator, FisherSpec, Grouping};
use crate::unlearning::schedule::side_by_side;

/// Numbers of stage 1, as options.
#[derive(Args, Clone, Debug)]
pub(crate) struct AdaptOptions {
    /// Number of adapted models, k
    #[arg(long, default_value_t = 5)]
    pub models: usize,
    /// λ of the EWC penalty
    #[arg(long, default_value_t = LAMBDA)]
    pub lambda: f64,
    /// What the Fisher differentiates
    #[arg(long, value_enum, default_value = "logit")]
    pub fisher: Estimator,
    /// Which parameters the Fisher covers
    #[arg(long, value_enum, default_value = "convs")]
    pub fisher_over: Coverage,
    /// How Fisher samples share the minibatch standard deviation
    #[arg(long, value_enum, default_value = "batch")]
    pub fisher_grouping: Grouping,
    /// Samples of the Fisher estimate
    #[arg(long, default_value_t = 32)]
    pub fisher_samples: usize,
}

/// Options of both stages.
#[derive(Args, Clone, Debug)]
pub(crate) struct StageOptions {
    /// Start from the EMA generator or from the raw one
    #[arg(long, value_enum, default_value = "ema")]
    pub start: Start,
    /// Go on with the checkpoint's optimiser state or a fresh one
    #[arg(long, value_enum, default_value = "restore")]
    pub optimiser: Optimiser,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Adapt {
    /// Pre-trained model (with discriminator)
    #[arg(long)]
    model: PathBuf,
    /// Feedback file
    #[arg(long)]
    feedback: PathBuf,
    /// Iterations per adapted model
    #[arg(long, default_value_t = 2000)]
    iterations: u64,
    #[command(flatten)]
    options: AdaptOptions,
    #[command(flatten)]
    stage: StageOptions,
    #[command(flatten)]
    hyper: HyperArgs,
    #[command(flatten)]
    side_by_side: SideBySide,
    /// Folder for adapted_0.safetensors …
    #[arg(long)]
    out: PathBuf,
    /// Continue the run in --out
    #[arg(long)]
    resume: bool,
}

#[derive(Serialize)]
struct Config<'a> {
    command: &'static str,
    model: &'a PathBuf,
    feedback: &'a PathBuf,
    spec: &'a AdaptSpec,
    hyper: &'a Hyper,
}

#[derive(Serialize)]
struct Record {
    model: usize,
    iteration: u64,
    #[serde(flatten)]
    losses: Losses,
}

impl AdaptOptions {
    pub fn spec(&self, iterations: u64, stage: &StageOptions) -> Result<AdaptSpec> {
        AdaptSpec {
            models: self.models,
            iterations,
            lambda: self.lambda,
            fisher: FisherSpec { estimator: self.fisher, coverage: self.fisher_over, grouping: self.fisher_grouping, samples: self.fisher_samples },
            optimiser: stage.optimiser,
            start: stage.start,
            seed: stage.seed,
        }
        .checked()
    }
}

impl Adapt {
    pub fn run(&self, global: &Global) -> Result<()> {
        let begin = std::time::Instant::now();
        let devices = global.open_several(&self.side_by_side)?;
        let hyper = self.hyper.hyper()?;
        let spec = self.options.spec(self.iterations, &self.stage)?;
        let (pretrained, noise) = read_state(&self.model, &hyper, self.stage.optimiser, self.stage.seed)?;
        let feedback = read_feedback(&self.feedback, pretrained.config.size)?;
        check_feedback(&feedback)?;
        let config = Config { command: "adapt", model: &self.model, feedback: &self.feedback, spec: &spec, hyper: &hyper };
        let folder = RunFolder::create(&self.out, self.resume, &config, &devices[0], &[])?;
        let trainer = Trainer::new(&pretrained.config, hyper.clone());
        let done = Mutex::new((Progress::new("adapt", 0, spec.iterations * spec.models as u64), 0u64, folder));
        // A model that is not finished has another name: `unlearn` takes every adapted_*.safetensors.
        let file = |j: usize| self.out.join(format!("adapted_{j}.safetensors"));
        let unfinished = |j: usize| self.out.join(format!("unfinished_{j}.safetensors"));
        side_by_side(&devices, spec.models, |device, j| {
            if file(j).exists() {
                done.lock().expect("no thread panics while it holds the progress").1 += spec.iterations;
                return Ok(());
            }
            let pretrained = pretrained.to_device(device)?;
            let resumed = match unfinished(j).exists() {
                true => Some(Checkpoint::open(unfinished(j))?.into_state(&unfinished(j), &hyper, spec.seed)?.to_device(device)?),
                false => None,
            };
            let drawn = resumed.as_ref().map_or(0, |s| s.iteration);
            done.lock().expect("no thread panics while it holds the progress").1 += drawn;
            let mut batches = TensorBatches::new(&feedback.images, feedback.negatives(), hyper.batch, model_seed(spec.seed, j), drawn)?;
            adapt(&trainer, &pretrained, &mut batches, &spec, j, resumed, &mut |p| {
                let mut shared = done.lock().expect("no thread panics while it holds the progress");
                let (progress, count, folder) = &mut *shared;
                *count += 1;
                progress.at(*count, || format!("model {j}: {}", describe(p)));
                let i = p.state.iteration;
                if i.is_multiple_of(10) || i == p.until {
                    folder.log(&Record { model: j, iteration: i, losses: p.losses()? })?;
                }
                drop(shared);
                let stop = interrupted() && i < p.until;
                if stop || i == p.until || i.is_multiple_of(1000) {
                    p.losses()?;
                    let to = if i == p.until { file(j) } else { unfinished(j) };
                    save_state(&to, p.state, &noise, &Default::default())?;
                }
                if stop { Err(Error::Interrupted { resume: Some(unfinished(j)) }) } else { Ok(()) }
            })?;
            atomic::remove(&unfinished(j))
        })?;
        done.into_inner().expect("no thread panics while it holds the progress").0.finish();
        println!("{} adapted models: {}", spec.models, self.out.display());
        let mut names: Vec<String> = devices.iter().map(Device::to_string).collect();
        names.sort();
        names.dedup();
        summary(global, &serde_json::json!({"models": spec.models, "iterations": spec.iterations, "out": self.out, "seconds": begin.elapsed().as_secs_f64(), "device": names.join(" ")}));
        Ok(())
    }
}
