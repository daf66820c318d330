//! `recant unlearn`: stage 2, and the baselines that train on the positives in its place.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Global;
use super::adapt::StageOptions;
use super::model::{check_feedback, read_adapted, read_feedback, read_state};
use super::output::{Progress, summary};
use super::run_folder::{RunFolder, interrupted};
use super::train::{HyperArgs, Recorder};
use crate::error::{Error, Result};
use crate::models::stylegan2::{Generator, StyleGan2Config};
use crate::training::checkpoint::{Checkpoint, save_generator};
use crate::training::{Hyper, Trainer};
use crate::unlearning::adapt::LAMBDA;
use crate::unlearning::baselines::{Baseline, BaselineSpec, L1_STRENGTH, Trained, baseline};
use crate::unlearning::fisher::FisherSpec;
use crate::unlearning::repulsion::{Distance, Kind, Pulls, squared_distance};
use crate::unlearning::unlearn::{MarkedBatches, UnlearnSpec, unlearn};

/// The repulsion losses by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Loss {
    El2,
    Nl2,
    Il2,
    /// Positives only: the ablation.
    None,
}

/// What is trained on the positives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Stage 2, with the repulsion of --repulsion
    Repulsion,
    /// Baseline: held near the original by EWC (--lambda)
    Ewc,
    /// Baseline: the parameters' ℓ1 norm beside the loss (--l1)
    L1,
    /// Baseline CF-k: only the layers of --trained
    CfK,
    /// Baseline EU-k: the layers of --trained, from new initial values
    EuK,
}

/// The baselines' numbers, as options.
#[derive(Args, Clone, Debug)]
pub(crate) struct BaselineOptions {
    /// What to train
    #[arg(long, value_enum, default_value = "repulsion")]
    pub method: Method,
    /// λ of the EWC baseline
    #[arg(long, default_value_t = LAMBDA, allow_negative_numbers = true)]
    pub lambda: f64,
    /// Weight of the ℓ1 norm
    #[arg(long, default_value_t = L1_STRENGTH, allow_negative_numbers = true)]
    pub l1: f64,
    /// Layers of CF-k and EU-k: layers:N, the last styled convolutions with their ToRGB, or tensors:N as the official code
    /// (default: the upper half of the synthesis network)
    #[arg(long)]
    pub trained: Option<Trained>,
}

impl BaselineOptions {
    /// The baseline; none for the method itself.
    pub fn baseline(&self, config: &StyleGan2Config) -> Result<Option<Baseline>> {
        for (option, v) in [("--lambda", self.lambda), ("--l1", self.l1)] {
            if !(v.is_finite() && v >= 0.0) {
                return Err(Error::config(option, format!("{v} must be a number ≥ 0")));
            }
        }
        let trained = self.trained.unwrap_or_else(|| Trained::default_of(config));
        trained.names(config, Generator::new(config.clone()).layout())?;
        Ok(match self.method {
            Method::Repulsion => None,
            Method::Ewc => Some(Baseline::Ewc { lambda: self.lambda, fisher: FisherSpec::default() }),
            Method::L1 => Some(Baseline::L1 { strength: self.l1 }),
            Method::CfK => Some(Baseline::CfK { trained }),
            Method::EuK => Some(Baseline::EuK { trained }),
        })
    }
}

/// The repulsion, as options.
#[derive(Args, Clone, Debug)]
pub(crate) struct RepulsionOptions {
    /// Repulsion loss
    #[arg(long, value_enum, default_value = "el2")]
    pub repulsion: Loss,
    /// Weight γ (default: by --pull; with --distance official el2 100, nl2 1, il2 1, the official code's)
    #[arg(long, allow_negative_numbers = true)]
    pub gamma: Option<f64>,
    /// How hard the loss pulls at the start: its derivative by the squared distance, in place of --gamma; α is then 0.01 over
    /// that distance where --alpha is not given (default with --distance l2: el2 1e-3, nl2 6e-4, il2 2e-3, which `reproduce
    /// sweep` chose)
    #[arg(long, conflicts_with = "gamma", allow_negative_numbers = true)]
    pub pull: Option<f64>,
    /// Decay α of el2 (default: by the distance at the start; with --gamma 0.01)
    #[arg(long, allow_negative_numbers = true)]
    pub alpha: Option<f64>,
    /// Distance to the adapted models
    #[arg(long, value_enum, default_value = "l2")]
    pub distance: Distance,
    /// Stop when the parameters are this far from the adapted models (root mean square; weights are of size 1)
    #[arg(long, default_value_t = 1.0)]
    pub runaway: f64,
}

/// α of EL2 beside a given γ: inside the paper's 0.001 to 0.1.
const DEFAULT_ALPHA: f64 = 0.01;

impl RepulsionOptions {
    /// The loss; `d0` gives the squared distance of the start to the adapted models.
    pub fn kind(&self, d0: impl FnOnce() -> Result<f64>) -> Result<Option<Kind>> {
        let chosen = match self.repulsion {
            Loss::None => return Ok(None),
            Loss::El2 => Pulls::CHOSEN.el2,
            Loss::Nl2 => Pulls::CHOSEN.nl2,
            Loss::Il2 => Pulls::CHOSEN.il2,
        };
        let pull = match (self.pull, self.gamma, self.distance) {
            (None, None, Distance::L2) => Some(chosen),
            (None, None, Distance::Mean | Distance::Scaled) => {
                return Err(Error::config("--pull", "or --gamma is needed: the defaults are for the distances l2 and official"));
            }
            (pull, _, _) => pull,
        };
        let attracts = |option, v: f64| Err(Error::config(option, format!("{v} must be a positive number: a negative one would attract to what is to be unlearned")));
        for (option, v) in [("--pull", pull), ("--alpha", self.alpha)] {
            if let Some(v) = v.filter(|v| !(v.is_finite() && *v > 0.0)) {
                return attracts(option, v);
            }
        }
        let d0 = || match d0()? {
            d0 if d0 > 1e-12 => Ok(d0),
            _ => Err(Error::config("--adapted", "the start equals the adapted models: nothing can be repelled; adapt for more iterations")),
        };
        let kind = match (self.repulsion, pull) {
            (Loss::None, _) => return Ok(None),
            (Loss::El2, Some(pull)) => {
                let d0 = d0()?;
                Kind::el2_pulling(pull, self.alpha.unwrap_or(Pulls::CHOSEN.alpha / d0), d0)
            }
            (Loss::Nl2, Some(pull)) => Kind::nl2_pulling(pull),
            (Loss::Il2, Some(pull)) => Kind::il2_pulling(pull, d0()?),
            (Loss::El2, None) => Kind::El2 { gamma: self.gamma.unwrap_or(100.0), alpha: self.alpha.unwrap_or(DEFAULT_ALPHA) },
            (Loss::Nl2, None) => Kind::Nl2 { gamma: self.gamma.unwrap_or(1.0) },
            (Loss::Il2, None) => Kind::Il2 { gamma: self.gamma.unwrap_or(1.0) },
        };
        if self.runaway.is_nan() || self.runaway <= 0.0 {
            return Err(Error::config("--runaway", format!("{} must be above 0", self.runaway)));
        }
        kind.checked().map(Some)
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Unlearn {
    /// Pre-trained model (with discriminator)
    #[arg(long)]
    model: PathBuf,
    /// Feedback file
    #[arg(long)]
    feedback: PathBuf,
    /// Adapted models: the folder that `recant adapt` wrote, or files (not needed with --repulsion none)
    #[arg(long)]
    adapted: Vec<PathBuf>,
    /// Iterations
    #[arg(long, default_value_t = 1000)]
    iterations: u64,
    #[command(flatten)]
    repulsion: RepulsionOptions,
    /// How many of each batch's fakes are marked negatives instead of generated images (0 is the paper's method; a
    /// quarter of the batch removes more)
    #[arg(long, default_value_t = 0)]
    negatives_as_fakes: usize,
    #[command(flatten)]
    baseline: BaselineOptions,
    #[command(flatten)]
    stage: StageOptions,
    #[command(flatten)]
    hyper: HyperArgs,
    /// Folder for unlearned.safetensors (the generator) and model.safetensors (the whole state)
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
    adapted: &'a [PathBuf],
    spec: serde_json::Value,
    hyper: &'a Hyper,
}

impl Unlearn {
    pub fn run(&self, global: &Global) -> Result<()> {
        let begin = std::time::Instant::now();
        let device = global.open()?;
        let hyper = Hyper { given_fakes: self.negatives_as_fakes, ..self.hyper.hyper()? }.checked()?;
        if self.baseline.method == Method::Repulsion && self.repulsion.repulsion != Loss::None && self.adapted.is_empty() {
            return Err(Error::config("--adapted", "is needed by the repulsion; give the folder that `recant adapt` wrote, or --repulsion none"));
        }
        let (pretrained, noise) = read_state(&self.model, &hyper, self.stage.optimiser, self.stage.seed)?;
        let pretrained = pretrained.to_device(&device)?;
        let feedback = read_feedback(&self.feedback, pretrained.config.size)?;
        check_feedback(&feedback)?;
        let adapted = read_adapted(&self.adapted, &pretrained.g_ema)?;
        let d0 = || squared_distance(&adapted, self.stage.start.of(&pretrained), self.repulsion.distance);
        let spec = UnlearnSpec {
            iterations: self.iterations,
            repulsion: if self.baseline.method == Method::Repulsion { self.repulsion.kind(d0)? } else { None },
            distance: self.repulsion.distance,
            runaway: self.repulsion.runaway,
            optimiser: self.stage.optimiser,
            start: self.stage.start,
            seed: self.stage.seed,
        };
        let other = self.baseline.baseline(&pretrained.config)?.map(|baseline| BaselineSpec {
            baseline,
            iterations: spec.iterations,
            optimiser: spec.optimiser,
            start: spec.start,
            seed: spec.seed,
        });
        let described = other.as_ref().map_or_else(|| serde_json::to_value(&spec), serde_json::to_value).expect("plain data");
        let config = Config { command: "unlearn", model: &self.model, feedback: &self.feedback, adapted: &self.adapted, spec: described, hyper: &hyper };
        let mut folder = RunFolder::create(&self.out, self.resume, &config, &device, &[])?;
        let model = folder.file("model.safetensors");
        let resumed = match self.resume && model.exists() {
            true => Some(Checkpoint::open(&model)?.into_state(&model, &hyper, spec.seed)?.to_device(&device)?),
            false => None,
        };
        if let (None, Some(kind)) = (&other, spec.repulsion) {
            let d0 = squared_distance(&adapted, spec.start.of(&pretrained), spec.distance)?;
            println!("squared distance of the start to the adapted models: D₀ = {d0:.4e}; the loss pulls by {:.2e} there", -kind.slope(d0));
        }
        let drawn = resumed.as_ref().map_or(0, |s| s.iteration);
        let trainer = Trainer::new(&pretrained.config, hyper.clone());
        let mut batches = MarkedBatches::new(&feedback, &hyper, spec.seed, drawn)?;
        let mut recorder = Recorder {
            progress: Progress::new("unlearn", drawn, spec.iterations),
            folder: &mut folder,
            model: model.clone(),
            noise: &noise,
            metadata: Default::default(),
            save_every: 100,
            log_every: 10,
            start: begin,
        };
        let mut each = |p: &crate::training::Progress| recorder.on_iteration(p, interrupted());
        let state = match &other {
            None => unlearn(&trainer, &pretrained, &adapted, &mut batches, &spec, resumed, &mut each)?,
            Some(spec) => baseline(&trainer, &pretrained, &mut batches, spec, resumed, &mut each)?,
        };
        recorder.progress.finish();
        let out = self.out.join("unlearned.safetensors");
        save_generator(&out, &state.config, &state.g_ema, &noise, &Default::default())?;
        println!("unlearned generator: {}", out.display());
        summary(global, &serde_json::json!({"iterations": spec.iterations, "out": out, "seconds": begin.elapsed().as_secs_f64(), "device": device.to_string()}));
        Ok(())
    }
}
