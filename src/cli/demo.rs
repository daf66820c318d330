//! `recant demo`: the whole method on the embedded model, without any file.
//!
//! A small StyleGAN2 and a LeNet, both trained by this program on MNIST, are part of the binary (`assets/`). The demo
//! samples and marks, adapts k models, unlearns with EL2 and, beside it, without repulsion, evaluates both, and writes
//! grids, a table and the numbers.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Args;
use serde::Serialize;

use super::evaluate::{Bench, Report, histogram_table, show_distance};
use super::model::{check_feedback, class_of, classifier_of};
use super::output::{Progress, summary, table};
use super::sample::images_of;
use super::{Global, SideBySide, run_folder};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::{atomic, image, safetensors};
use crate::metrics::class_statistics::ClassStatistics;
use crate::metrics::pul::pul;
use crate::models::classifier::Classifier;
use crate::models::stylegan2::Generator;
use crate::nn::ParamSlab;
use crate::ops::layout::concat;
use crate::training::checkpoint::{Checkpoint, save_generator};
use crate::training::{self, GanState, Hyper, TensorBatches, Trainer, streams};
use crate::unlearning::adapt::{AdaptSpec, LAMBDA, Optimiser, Start, adapt, model_seed};
use crate::unlearning::feedback::{Feedback, collect, draw_latents};
use crate::unlearning::fisher::FisherSpec;
use crate::unlearning::repulsion::{Distance, Kind};
use crate::unlearning::schedule::side_by_side;
use crate::unlearning::unlearn::{MarkedBatches, UnlearnSpec, unlearn};

const MODEL: &[u8] = include_bytes!("../../assets/mnist_stylegan2.safetensors");
const LENET: &[u8] = include_bytes!("../../assets/mnist_lenet.safetensors");
const STATISTICS: &[u8] = include_bytes!("../../assets/mnist_lenet_statistics.safetensors");

/// The stages are short here: the usual running mean, with a half-life of 312 iterations, would hardly move.
const ADAPT_EMA_DECAY: f64 = 0.98;
const UNLEARN_EMA_DECAY: f64 = 0.998;

/// Stage 2's learning rate: half of training's. At the full one the parameters wander further in a few hundred iterations
/// than the adapted models are away, and fewer of the undesired images go.
const UNLEARN_LR: f64 = 0.001;

/// Weight of R1: the one that the embedded model was trained with.
const R1_WEIGHT: f64 = 1.0;

/// Images per row of the grids.
const COLUMNS: usize = 16;

#[derive(Args, Clone, Debug)]
pub(crate) struct Demo {
    /// The digit to unlearn
    #[arg(long, default_value = "8")]
    class: String,
    /// Samples to mark
    #[arg(long, default_value_t = 5000)]
    n: usize,
    /// Number of adapted models, k
    #[arg(long, default_value_t = 3)]
    models: usize,
    /// Iterations of each adaptation
    #[arg(long, default_value_t = 120)]
    adapt_iterations: u64,
    /// Iterations of stage 2
    #[arg(long, default_value_t = 1300)]
    iterations: u64,
    /// How many of each batch's 16 fakes are marked negatives instead of generated images (0 is the paper's method)
    #[arg(long, default_value_t = 5)]
    negatives_as_fakes: usize,
    /// λ of the EWC penalty
    #[arg(long, default_value_t = LAMBDA)]
    lambda: f64,
    /// Weight γ of EL2
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    gamma: f64,
    /// Decay α of EL2
    #[arg(long, default_value_t = 0.0004, allow_negative_numbers = true)]
    alpha: f64,
    #[command(flatten)]
    side_by_side: SideBySide,
    /// Shared latents of the evaluation
    #[arg(long, default_value_t = 5000)]
    evaluate: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for grids, unlearned model and result.json
    #[arg(long, default_value = "runs/demo")]
    out: PathBuf,
}

/// The embedded networks.
pub(super) struct Embedded {
    pub model: Checkpoint,
    pub classifier: Classifier,
    pub statistics: ClassStatistics,
}

impl Embedded {
    pub fn load() -> Result<Embedded> {
        let broken = |name: &'static str| move |problem: String| Error::file(name, problem);
        let read = |name: &'static str, bytes| safetensors::read_embedded(name, bytes);
        let statistics = read("mnist_lenet_statistics.safetensors", STATISTICS)?;
        Ok(Embedded {
            model: Checkpoint::from_safetensors(read("mnist_stylegan2.safetensors", MODEL)?).map_err(broken("mnist_stylegan2.safetensors"))?,
            classifier: classifier_of(read("mnist_lenet.safetensors", LENET)?).map_err(broken("mnist_lenet.safetensors"))?,
            statistics: ClassStatistics::from_tensors(&statistics.tensors).map_err(broken("mnist_lenet_statistics.safetensors"))?,
        })
    }
}

#[derive(Serialize)]
struct Summary {
    #[serde(flatten)]
    report: Report,
    pul_ablation: f64,
    frechet_ablation: Option<f64>,
    histogram_ablation: Vec<usize>,
    negatives: usize,
    models: usize,
    seconds_feedback: f64,
    seconds_adapt: f64,
    seconds_unlearn: f64,
    seconds_evaluate: f64,
}

/// Seconds since the last call.
struct Stopwatch(std::time::Instant);

impl Stopwatch {
    fn lap(&mut self) -> f64 {
        std::mem::replace(&mut self.0, std::time::Instant::now()).elapsed().as_secs_f64()
    }
}

impl Demo {
    pub fn run(&self, global: &Global) -> Result<()> {
        let begin = std::time::Instant::now();
        let devices = global.open_several(&self.side_by_side)?;
        let device = devices[0].clone();
        let mut watch = Stopwatch(begin);
        if self.evaluate == 0 {
            return Err(Error::config("--evaluate", "must be at least 1"));
        }
        let (adapt_spec, specs) = self.specs()?;
        let mut embedded = Embedded::load()?;
        embedded.classifier = embedded.classifier.to_device(&device)?;
        let class = class_of(&embedded.classifier, &self.class)?;
        let hyper = Hyper { ema_decay: ADAPT_EMA_DECAY, r1_weight: R1_WEIGHT, ..Hyper::default() };
        let unlearn_hyper = Hyper { lr: UNLEARN_LR, ema_decay: UNLEARN_EMA_DECAY, given_fakes: self.negatives_as_fakes, ..hyper.clone() }.checked()?;
        atomic::create_folder(&self.out)?;
        let noise = embedded.model.noise.clone();
        let original = embedded.model.into_state(Path::new("the embedded model"), &hyper, self.seed)?.to_device(&device)?;
        let g = Generator::new(original.config.clone());
        println!("embedded StyleGAN2: {} px, {} generator parameters; unlearning digit {}", g.config().size, g.layout().len(), self.class);

        let feedback = self.feedback(&g, &original, &embedded.classifier, class)?;
        let negatives = feedback.negatives().len();
        println!("feedback: {negatives} of {} samples are negative", self.n);
        let seconds_feedback = watch.lap();

        let bench = Bench { device: &device, g: &g, classifier: &embedded.classifier, class, n: self.evaluate, seed: self.seed };
        let before = bench.judge("original", &original.g_ema)?;
        // What cannot be evaluated is said before anything is trained.
        pul(&before, &before, class)?;
        let mut seconds_evaluate = watch.lap();

        let adapting = Trainer::new(&original.config, hyper);
        let adapted = self.adapt(&devices, &adapting, &original, &feedback, &adapt_spec)?;
        let seconds_adapt = watch.lap();
        let unlearning = Trainer::new(&original.config, unlearn_hyper);
        let states = self.unlearn(&devices, &unlearning, &original, &adapted, &feedback, &specs)?;
        let seconds_unlearn = watch.lap();

        let after = bench.judge("unlearned", &states[0].g_ema)?;
        let without = bench.judge("ablation", &states[1].g_ema)?;
        let adaptation = bench.judge("adapted", &adapted[0])?;
        seconds_evaluate += watch.lap();
        let report = bench.report(&before, &after, Some(&embedded.statistics), begin.elapsed().as_secs_f64())?;
        let ablation = bench.report(&before, &without, Some(&embedded.statistics), 0.0)?;

        let rows = [("original", &original.g_ema), ("adapted", &adapted[0]), ("unlearned", &states[0].g_ema), ("no repulsion", &states[1].g_ema)];
        let figure = self.figure(&g, &rows, &embedded.classifier, class)?;
        let out = self.out.join("unlearned.safetensors");
        save_generator(&out, g.config(), &states[0].g_ema, &noise, &Default::default())?;
        let histograms = [
            ("original", &before.histogram[..]),
            ("adapted (one of k)", &adaptation.histogram[..]),
            ("unlearned (EL2)", &after.histogram[..]),
            ("no repulsion", &without.histogram[..]),
        ];
        let summary_of = Summary {
            pul_ablation: ablation.pul,
            frechet_ablation: ablation.frechet_after,
            histogram_ablation: ablation.histogram_after.clone(),
            report,
            negatives,
            models: self.models,
            seconds_feedback,
            seconds_adapt,
            seconds_unlearn,
            seconds_evaluate,
        };
        self.print(&embedded.classifier, &histograms, &summary_of);
        println!("rows of {}: original, adapted, unlearned, no repulsion (the same latents)", figure.display());
        let text = serde_json::to_string_pretty(&summary_of).expect("plain data");
        atomic::write_bytes(&self.out.join("result.json"), text.as_bytes())?;
        summary(global, &summary_of);
        Ok(())
    }

    /// Stage 1, and stage 2 with EL2 and without repulsion.
    fn specs(&self) -> Result<(AdaptSpec, [UnlearnSpec; 2])> {
        let adapt = AdaptSpec {
            models: self.models,
            iterations: self.adapt_iterations,
            lambda: self.lambda,
            fisher: FisherSpec::default(),
            optimiser: Optimiser::Restore,
            start: Start::Ema,
            seed: self.seed,
        }
        .checked()?;
        let el2 = Kind::El2 { gamma: self.gamma, alpha: self.alpha }.checked()?;
        let unlearn = UnlearnSpec {
            iterations: self.iterations,
            repulsion: Some(el2),
            distance: Distance::L2,
            runaway: 1.0,
            optimiser: Optimiser::Restore,
            start: Start::Ema,
            seed: self.seed,
        };
        Ok((adapt, [unlearn.clone(), UnlearnSpec { repulsion: None, ..unlearn }]))
    }

    fn feedback(&self, g: &Generator, original: &GanState, classifier: &Classifier, class: usize) -> Result<Feedback> {
        let mut progress = Progress::new("feedback", 0, self.n as u64);
        let mut judge = |images: &crate::tensor::Tensor| {
            run_folder::stop_if_interrupted()?;
            Ok(classifier.predict(images)?.into_iter().map(|(said, _)| said == class).collect())
        };
        let feedback = collect(g, &original.g_ema, self.n, self.seed, &mut judge, &mut |done| progress.at(done as u64, String::new))?;
        progress.finish();
        check_feedback(&feedback)?;
        Ok(feedback)
    }

    fn adapt(&self, devices: &[Device], trainer: &Trainer, original: &GanState, feedback: &Feedback, spec: &AdaptSpec) -> Result<Vec<ParamSlab>> {
        let watch = Watched::new("adapt", spec.iterations * spec.models as u64);
        let adapted = side_by_side(devices, spec.models, |device, j| {
            let original = original.to_device(device)?;
            let mut batches = TensorBatches::new(&feedback.images, feedback.negatives(), trainer.hyper.batch, model_seed(spec.seed, j), 0)?;
            let state = adapt(trainer, &original, &mut batches, spec, j, None, &mut |p| watch.step(p))?;
            state.g_ema.to_device(&devices[0])
        })?;
        watch.finish();
        Ok(adapted)
    }

    fn unlearn(&self, devices: &[Device], trainer: &Trainer, original: &GanState, adapted: &[ParamSlab], feedback: &Feedback, specs: &[UnlearnSpec]) -> Result<Vec<GanState>> {
        let watch = Watched::new("unlearn", self.iterations * specs.len() as u64);
        let states = side_by_side(devices, specs.len(), |device, i| {
            let original = original.to_device(device)?;
            let mut batches = MarkedBatches::new(feedback, &trainer.hyper, specs[i].seed, 0)?;
            unlearn(trainer, &original, adapted, &mut batches, &specs[i], None, &mut |p| watch.step(p))?.to_device(&devices[0])
        })?;
        watch.finish();
        Ok(states)
    }

    /// One row per model. The left half are latents that the original turns into the class, the right half others.
    fn figure(&self, g: &Generator, models: &[(&str, &ParamSlab)], classifier: &Classifier, class: usize) -> Result<PathBuf> {
        let latents = draw_latents(g, 40 * COLUMNS, self.seed, streams::SAMPLES);
        let said: Vec<usize> = {
            let images = images_of(g, models[0].1, &latents, self.seed)?;
            classifier.predict(&images)?.into_iter().map(|(c, _)| c).collect()
        };
        let (negative, positive): (Vec<usize>, Vec<usize>) = (0..said.len()).partition(|i| said[*i] == class);
        let pick = |indices: &[usize]| -> Result<crate::tensor::Tensor> {
            let rows = indices.iter().take(COLUMNS / 2).map(|i| latents.rows(*i, 1)).collect::<Result<Vec<_>>>()?;
            concat(&rows.iter().collect::<Vec<_>>(), 0)
        };
        let chosen = match negative.len() {
            0 => pick(&positive)?,
            _ => concat(&[&pick(&negative)?, &pick(&positive)?], 0)?,
        };
        let rows = models.iter().map(|(_, slab)| images_of(g, slab, &chosen, self.seed)).collect::<Result<Vec<_>>>()?;
        let path = self.out.join("before_after.png");
        image::write_grid(&path, &concat(&rows.iter().collect::<Vec<_>>(), 0)?, chosen.dim(0))?;
        Ok(path)
    }

    fn print(&self, classifier: &Classifier, histograms: &[(&str, &[usize])], s: &Summary) {
        println!("{}", histogram_table(&classifier.config().classes, histograms));
        let row = |name: &str, pul: f64, frechet: Option<f64>| vec![name.to_string(), format!("{pul:.2}"), show_distance(frechet)];
        let heading = vec![format!("digit {}", self.class), "PUL %".to_string(), "Fréchet (LeNet features)".to_string()];
        let original = vec!["original".to_string(), "-".to_string(), show_distance(s.report.frechet_before)];
        let rows = [heading, original, row("unlearned (EL2)", s.report.pul, s.report.frechet_after), row("no repulsion", s.pul_ablation, s.frechet_ablation)];
        println!("{}", table(&rows));
        println!(
            "{:.0} s: feedback {:.0}, {} adaptations {:.0}, two unlearning runs {:.0}, evaluation {:.0}",
            s.report.seconds, s.seconds_feedback, s.models, s.seconds_adapt, s.seconds_unlearn, s.seconds_evaluate
        );
    }
}

/// Progress of runs side by side.
pub(super) struct Watched(Mutex<(Progress, u64)>);

impl Watched {
    pub fn new(what: &str, total: u64) -> Watched {
        Watched(Mutex::new((Progress::new(what, 0, total), 0)))
    }

    pub fn step(&self, p: &training::Progress) -> Result<()> {
        let mut shared = self.0.lock().expect("no thread panics while it holds the progress");
        shared.1 += 1;
        let count = shared.1;
        shared.0.at(count, || super::train::describe(p));
        run_folder::stop_if_interrupted()
    }

    pub fn finish(self) {
        self.0.into_inner().expect("no thread panics while it holds the progress").0.finish();
    }
}
