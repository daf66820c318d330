//! `recant train`: pre-trains a StyleGAN2 on a data set, or on a data set without a class.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::output::{Progress, summary};
use super::run_folder::{RunFolder, interrupted};
use super::{Global, sample};
use crate::data::dataset::{Flip, Source};
use crate::data::mnist::Split;
use crate::error::{Error, Result};
use crate::models::stylegan2::StyleGan2Config;
use crate::tensor::Tensor;
use crate::training::checkpoint::{Checkpoint, save_state};
use crate::training::ranks::{Place, Ranks};
use crate::training::{self, DatasetBatches, GanState, Hyper, NoRegulariser, Trainer};

/// Numbers of the training loop, as options.
#[derive(Args, Clone, Debug)]
pub(crate) struct HyperArgs {
    /// Images per batch: 1, 2, 3 or a multiple of 4
    #[arg(long, default_value_t = 16)]
    pub batch: usize,
    /// Learning rate of both networks, before the lazy-regularisation ratios
    #[arg(long, default_value_t = 0.002)]
    pub lr: f64,
    /// Weight of the R1 penalty
    #[arg(long, default_value_t = 10.0)]
    pub r1: f64,
    /// Weight of the path-length penalty
    #[arg(long, default_value_t = 2.0)]
    pub path: f64,
    /// EMA of the generator per iteration (default: half-life of 10,000 images at batch 32)
    #[arg(long)]
    pub ema_decay: Option<f64>,
    /// Probability that a batch mixes two styles
    #[arg(long, default_value_t = 0.9)]
    pub mixing: f64,
    /// Images through the networks at a time: less memory, the same gradients (default: by the networks' size)
    #[arg(long)]
    pub at_once: Option<usize>,
    /// Let the generator's step judge the fakes that the discriminator's has just seen, not others: one pass less
    #[arg(long)]
    pub same_fakes: bool,
}

impl HyperArgs {
    pub fn hyper(&self) -> Result<Hyper> {
        let base = Hyper::default();
        Hyper {
            batch: self.batch,
            lr: self.lr,
            r1_weight: self.r1,
            path_weight: self.path,
            ema_decay: self.ema_decay.unwrap_or(base.ema_decay),
            mixing: self.mixing,
            at_once: self.at_once,
            same_fakes: self.same_fakes,
            ..base
        }
        .checked()
    }
}

/// Ranks ask each other every so many iterations whether to stop.
const STOP_TOGETHER: u64 = 10;

#[derive(Args, Clone, Debug)]
pub(crate) struct Train {
    /// Training images: mnist:DIR, folder:DIR, celeba:DIR or npz:FILE
    #[arg(long)]
    data: Source,
    /// Leave out this class, or the images with this attribute (repeatable): the reference that never saw it
    #[arg(long)]
    without: Vec<String>,
    /// Image size in pixels: a power of two
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// Length of z and w
    #[arg(long, default_value_t = 128)]
    latent: usize,
    /// Layers of the mapping network
    #[arg(long, default_value_t = 8)]
    mapping_layers: usize,
    /// Channels by resolution, as 4:64,8:64,16:48,32:32 (default: the paper's full width)
    #[arg(long)]
    channels: Option<String>,
    /// Iterations to do in all
    #[arg(long, default_value_t = 200_000)]
    iterations: u64,
    /// Mirror images at random
    #[arg(long)]
    flip: bool,
    #[command(flatten)]
    hyper: HyperArgs,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Save the state every so many iterations
    #[arg(long, default_value_t = 1000)]
    save_every: u64,
    /// Folder for the model, samples and metrics
    #[arg(long)]
    out: PathBuf,
    /// Continue the run in --out
    #[arg(long)]
    resume: bool,
}

#[derive(Serialize)]
struct Config<'a> {
    command: &'static str,
    data: String,
    without: &'a [String],
    network: &'a StyleGan2Config,
    hyper: &'a Hyper,
    flip: bool,
    seed: u64,
    iterations: u64,
    save_every: u64,
}

/// One line of `metrics.jsonl`.
#[derive(Serialize)]
pub(super) struct Record {
    iteration: u64,
    seconds: f64,
    #[serde(flatten)]
    losses: training::Losses,
}

/// Saves, draws and logs a training run as it goes.
pub(super) struct Recorder<'a> {
    pub folder: &'a mut RunFolder,
    pub model: PathBuf,
    pub noise: &'a [Tensor],
    pub metadata: BTreeMap<String, String>,
    pub save_every: u64,
    pub log_every: u64,
    pub start: std::time::Instant,
    pub progress: Progress,
}

impl Recorder<'_> {
    /// `stop`: saves and ends the run here.
    pub fn on_iteration(&mut self, p: &training::Progress, stop: bool) -> Result<()> {
        let i = p.state.iteration;
        self.progress.at(i, || describe(p));
        if i.is_multiple_of(self.log_every) || i == p.until || p.has_r1() {
            self.folder.log(&Record { iteration: i, seconds: self.start.elapsed().as_secs_f64(), losses: p.losses()? })?;
        }
        if stop || i == p.until || i.is_multiple_of(self.save_every) {
            // What is not finite must not replace a good model.
            p.losses()?;
            self.save(p.state)?;
        }
        if stop && i < p.until {
            return Err(Error::Interrupted { resume: Some(self.model.clone()) });
        }
        Ok(())
    }

    pub fn save(&self, state: &GanState) -> Result<()> {
        save_state(&self.model, state, self.noise, &self.metadata)
    }
}

/// An iteration's numbers, for people. What is wrong with them is the loop's to report.
pub(super) fn describe(p: &training::Progress) -> String {
    let Ok(l) = p.losses() else { return String::new() };
    let regulariser = l.regulariser.map_or(String::new(), |r| format!(" reg {r:.4}"));
    format!("D {:.3} G {:.3}{regulariser}", l.d, l.g)
}

impl Train {
    pub fn run(&self, global: &Global) -> Result<()> {
        let hyper = self.hyper.hyper()?;
        let network = match &self.channels {
            Some(table) => StyleGan2Config::with_channels(self.size, self.latent, self.mapping_layers, table)?,
            None => StyleGan2Config { mapping_layers: self.mapping_layers, ..StyleGan2Config::full_width(self.size, self.latent)? }.checked()?,
        };
        if self.save_every == 0 {
            return Err(Error::config("--save-every", "must be at least 1"));
        }
        let place = Place::of(|name| std::env::var(name).ok())?;
        let device = global.open_of(place.as_ref().map_or(0, |p| p.local))?;
        let mut data = self.data.read(Split::Train, Some(self.size))?;
        for class in &self.without {
            data = data.without_class(data.class(class)?)?;
        }
        let config = Config {
            command: "train",
            data: self.data.to_string(),
            without: &self.without,
            network: &network,
            hyper: &hyper,
            flip: self.flip,
            seed: self.seed,
            iterations: self.iterations,
            save_every: self.save_every,
        };
        if self.iterations == 0 {
            return Err(Error::config("--iterations", "0 leaves no model; use at least 1"));
        }
        // Rank 0 writes for all.
        let mut folder = match place.as_ref().is_none_or(|p| p.rank == 0) {
            true => Some(RunFolder::create(&self.out, self.resume, &config, &device, &["iterations", "save_every"])?),
            false => None,
        };
        let model = self.out.join("model.safetensors");
        let (mut state, noise) = self.start(&model, &network, &hyper)?;
        state = state.to_device(&device)?;
        let ranks = place.map(|p| Ranks::join(&p, &device)).transpose()?;
        let mut trainer = Trainer::new(&network, hyper.clone());
        if let Some(ranks) = &ranks {
            trainer = trainer.with_ranks(ranks.clone())?;
        }
        let flip = if self.flip { Flip::Random } else { Flip::Never };
        let mut batches = DatasetBatches::new(&data, hyper.batch, flip, self.seed, state.iteration)?;
        // One process that was told to stop stops all, at the same iteration.
        let stop = |iteration: u64| match &ranks {
            None => Ok(interrupted()),
            Some(ranks) if iteration.is_multiple_of(STOP_TOGETHER) => ranks.any(interrupted()),
            Some(_) => Ok(false),
        };
        let Some(folder) = &mut folder else {
            return training::run(&trainer, &mut state, &mut batches, &mut NoRegulariser, self.iterations, &mut |p| {
                let i = p.state.iteration;
                if stop(i)? && i < p.until { Err(Error::Interrupted { resume: Some(model.clone()) }) } else { Ok(()) }
            });
        };
        let streamed = if data.pictures.is_streamed() { " (more than is kept in memory: they are decoded as they are needed)" } else { "" };
        println!("{} images{streamed}, {} generator and {} discriminator parameters", data.len(), state.g.layout().len(), state.d.layout().len());
        let start = std::time::Instant::now();
        let samples = self.out.join("samples");
        let mut recorder = Recorder {
            progress: Progress::new("train", state.iteration, self.iterations),
            folder,
            model: model.clone(),
            noise: &noise,
            metadata: BTreeMap::new(),
            save_every: self.save_every,
            log_every: 10,
            start,
        };
        training::run(&trainer, &mut state, &mut batches, &mut NoRegulariser, self.iterations, &mut |p| {
            recorder.on_iteration(p, stop(p.state.iteration)?)?;
            let i = p.state.iteration;
            if i.is_multiple_of(self.save_every) || i == p.until {
                let columns = sample::columns(&network);
                sample::write_grid(&trainer.generator, &p.state.g_ema, columns * columns, columns, 1, &samples.join(format!("{i:07}.png")))?;
            }
            Ok(())
        })?;
        recorder.progress.finish();
        println!("trained {} iterations: {}", state.iteration, model.display());
        summary(global, &serde_json::json!({"model": model, "iterations": state.iteration, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
        Ok(())
    }

    fn start(&self, model: &Path, network: &StyleGan2Config, hyper: &Hyper) -> Result<(GanState, Vec<Tensor>)> {
        if self.resume && model.exists() {
            let checkpoint = Checkpoint::open(model)?;
            if checkpoint.config != *network {
                return Err(Error::file(model, "holds a network of another size; use the options that the run was started with"));
            }
            let noise = checkpoint.noise.clone();
            return Ok((checkpoint.into_state(model, hyper, self.seed)?, noise));
        }
        let state = GanState::init(network, hyper, self.seed);
        let noise = crate::training::checkpoint::default_noise(network);
        Ok((state, noise))
    }
}
