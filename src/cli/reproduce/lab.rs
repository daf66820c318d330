//! What the runs of one experiment share: the pre-trained pair, who judges, the real images; and the stages of a run,
//! each of which is taken from the run's folder when it is already there.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::{Settings, Strength};
use crate::cli::demo::Watched;
use crate::cli::evaluate::{Bench, Features, measure};
use crate::cli::model::{check_feedback, read_feedback, write_feedback};
use crate::cli::output::Progress;
use crate::cli::run_folder::stop_if_interrupted;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::metrics::class_statistics::ClassStatistics;
use crate::metrics::{Extractor, Statistics, fid};
use crate::models::classifier::Classifier;
use crate::models::stylegan2::Generator;
use crate::nn::ParamSlab;
use crate::tensor::Tensor;
use crate::training::checkpoint::{Checkpoint, save_generator};
use crate::training::{GanState, Hyper, TensorBatches, Trainer};
use crate::unlearning::adapt::{AdaptSpec, Optimiser, Start, adapt, model_seed};
use crate::unlearning::baselines::{Baseline, BaselineSpec, Trained, baseline};
use crate::unlearning::extrapolate::extrapolate;
use crate::unlearning::feedback::{Feedback, collect};
use crate::unlearning::fisher::FisherSpec;
use crate::unlearning::repulsion::{Distance, Kind, squared_distance};
use crate::unlearning::schedule::side_by_side;
use crate::unlearning::unlearn::{MarkedBatches, UnlearnSpec, unlearn};

/// Rows of the table, in the paper's order. The names are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    Retraining,
    CfK,
    EuK,
    L1,
    PositivesOnly,
    Ewc,
    Extrapolation,
    Nl2,
    Il2,
    El2,
    El2Given,
}

impl Method {
    pub const ALL: [Method; 11] = [
        Method::Retraining,
        Method::CfK,
        Method::EuK,
        Method::L1,
        Method::PositivesOnly,
        Method::Ewc,
        Method::Extrapolation,
        Method::Nl2,
        Method::Il2,
        Method::El2,
        Method::El2Given,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Method::Retraining => "Retraining",
            Method::CfK => "CF-k",
            Method::EuK => "EU-k",
            Method::L1 => "L1-sparse",
            Method::PositivesOnly => "Positives only",
            Method::Ewc => "EWC",
            Method::Extrapolation => "Extrapolation",
            Method::Nl2 => "AtU NL2",
            Method::Il2 => "AtU IL2",
            Method::El2 => "AtU EL2",
            Method::El2Given => "AtU EL2, negatives as fakes",
        }
    }

    /// The name of its files and of its option.
    fn key(self) -> String {
        serde_json::to_value(self).expect("plain data").as_str().expect("a name").to_string()
    }

    /// Whether it needs the adapted models.
    pub fn needs_adapted(self) -> bool {
        matches!(self, Method::Extrapolation | Method::Nl2 | Method::Il2 | Method::El2 | Method::El2Given)
    }
}

/// What was measured of one method in one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub class: String,
    pub run: u64,
    /// None: the original.
    pub method: Option<Method>,
    /// Percent; of the original 0.
    pub pul: f64,
    /// In the classifier's features, to the real images of the other classes.
    pub frechet: Option<f64>,
    /// Under the experiment's protocol, to the real images without the class.
    pub fid: Option<f64>,
    pub ret_fid: Option<f64>,
    /// That protocol, with the number of images.
    #[serde(default)]
    pub protocol: Option<String>,
    pub histogram: Vec<usize>,
}

/// See the module.
pub(super) struct Lab {
    pub settings: Settings,
    /// Where networks train, each on one; all else runs on the first. Slabs between the stages are on the host, as in
    /// their files.
    pub devices: Vec<Device>,
    pub generator: Generator,
    /// The pre-trained pair, on the first device.
    pub original: GanState,
    /// Its EMA generator on the host.
    pub start: ParamSlab,
    pub noise: Vec<Tensor>,
    pub classifier: Classifier,
    pub by_class: Option<ClassStatistics>,
    pub extractor: Option<Extractor>,
    pub batch: usize,
    pub seed: u64,
    /// One training run at a time: a large network has work for all threads, and little memory for two.
    pub one_at_a_time: bool,
}

/// One class in one run.
pub(super) struct Task<'a> {
    pub lab: &'a Lab,
    pub class: usize,
    pub run: u64,
    pub folder: PathBuf,
    /// Statistics of the real images without the class.
    pub real: Option<&'a Statistics>,
    /// The model that never saw the class.
    pub retrained: Option<&'a ParamSlab>,
}

/// What methods left of the original.
pub(super) type Generators = Vec<(Method, ParamSlab)>;

/// Feedback, adapted models, and the strengths that they give.
pub(super) struct Stage1 {
    pub feedback: Feedback,
    /// None where no method is repelled.
    pub adapted: Vec<ParamSlab>,
    pub distance: Distance,
    /// EL2, NL2, IL2, where there are adapted models.
    pub kinds: Option<[Kind; 3]>,
}

impl Lab {
    /// Calls `job(device, i)` for `0..n`, several at a time where that is faster.
    pub fn all<T: Send>(&self, n: usize, job: impl Fn(&Device, usize) -> Result<T> + Sync) -> Result<Vec<T>> {
        match &self.devices[..] {
            [only] if self.one_at_a_time => (0..n).map(|i| job(only, i)).collect(),
            devices => side_by_side(devices, n, job),
        }
    }

    pub fn device(&self) -> &Device {
        &self.devices[0]
    }

    fn save(&self, path: &Path, slab: &ParamSlab) -> Result<()> {
        save_generator(path, self.generator.config(), slab, &self.noise, &Default::default())
    }

    /// Stage 2 and the baselines.
    fn unlearner(&self, given_fakes: usize) -> Result<Trainer> {
        let s = &self.settings;
        let hyper = Hyper { lr: s.unlearn_lr, ema_decay: s.unlearn_ema, given_fakes, ..s.hyper.clone() };
        Ok(Trainer::new(&self.original.config, hyper.checked()?))
    }

    /// Squared distance of the start to the adapted models.
    pub fn initial_distance(&self, adapted: &[ParamSlab], distance: Distance) -> Result<f64> {
        squared_distance(adapted, &self.original.g_ema, distance)
    }

    fn kinds(&self, adapted: &[ParamSlab]) -> Result<(Distance, [Kind; 3])> {
        match self.settings.strength {
            Strength::Given { distance, el2: (gamma, alpha), nl2, il2 } => Ok((distance, [Kind::El2 { gamma, alpha }, Kind::Nl2 { gamma: nl2 }, Kind::Il2 { gamma: il2 }])),
            Strength::Matched(pulls) => Ok((Distance::L2, pulls.kinds(self.initial_distance(adapted, Distance::L2)?))),
        }
    }

    /// Judges a generator on the run's latents.
    pub fn bench(&self, class: usize, run: u64) -> Bench<'_> {
        Bench { device: self.device(), g: &self.generator, classifier: &self.classifier, class, n: self.settings.samples, seed: self.seed + run }
    }
}

impl Task<'_> {
    fn seed(&self) -> u64 {
        self.lab.seed + self.run
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn class_name(&self) -> &str {
        &self.lab.classifier.config().classes[self.class]
    }

    /// Feedback, and adapted models where a method is `repelled`.
    pub fn stage1(&self, repelled: bool) -> Result<Stage1> {
        atomic::create_folder(&self.folder)?;
        let feedback = self.feedback()?;
        if !repelled {
            return Ok(Stage1 { feedback, adapted: Vec::new(), distance: Distance::L2, kinds: None });
        }
        let adapted = self.adapted(&feedback)?;
        let (distance, kinds) = self.lab.kinds(&adapted)?;
        Ok(Stage1 { feedback, adapted, distance, kinds: Some(kinds) })
    }

    fn feedback(&self) -> Result<Feedback> {
        let (lab, file) = (self.lab, self.file("feedback.npz"));
        if file.exists() {
            return read_feedback(&file, lab.original.config.size);
        }
        let n = lab.settings.feedback;
        let mut progress = Progress::new("feedback", 0, n as u64);
        let mut judge = |images: &Tensor| {
            stop_if_interrupted()?;
            Ok(lab.classifier.judge(images)?.has(self.class))
        };
        let feedback = collect(&lab.generator, &lab.original.g_ema, n, self.seed(), &mut judge, &mut |done| progress.at(done as u64, String::new))?;
        progress.finish();
        check_feedback(&feedback)?;
        write_feedback(&file, &feedback)?;
        Ok(feedback)
    }

    fn adapted(&self, feedback: &Feedback) -> Result<Vec<ParamSlab>> {
        let (lab, s) = (self.lab, &self.lab.settings);
        let spec = AdaptSpec {
            models: s.models,
            iterations: s.adapt_iterations,
            lambda: s.lambda,
            fisher: FisherSpec::default(),
            optimiser: Optimiser::Restore,
            start: Start::Ema,
            seed: self.seed(),
        };
        let trainer = Trainer::new(&lab.original.config, s.hyper.clone());
        let watch = Watched::new("adapt", spec.iterations * spec.models as u64);
        let adapted = lab.all(spec.models, |device, j| {
            let file = self.file(&format!("adapted_{j}.safetensors"));
            if file.exists() {
                return Ok(Checkpoint::open(&file)?.g_ema);
            }
            let mut batches = TensorBatches::new(&feedback.images, feedback.negatives(), trainer.hyper.batch, model_seed(spec.seed, j), 0)?;
            let state = adapt(&trainer, &lab.original.to_device(device)?, &mut batches, &spec, j, None, &mut |p| watch.step(p))?;
            let adapted = state.g_ema.to_device(&Device::Cpu)?;
            lab.save(&file, &adapted)?;
            Ok(adapted)
        })?;
        watch.finish();
        Ok(adapted)
    }

    /// The generator of each method; retraining has none where no reference is at hand.
    pub fn generators(&self, methods: &[Method]) -> Result<Generators> {
        let lab = self.lab;
        let methods: Vec<Method> = methods.iter().copied().filter(|m| *m != Method::Retraining || self.retrained.is_some()).collect();
        let trains = methods.iter().any(|m| *m != Method::Retraining);
        let stage1 = trains.then(|| self.stage1(methods.iter().any(|m| m.needs_adapted()))).transpose()?;
        let watch = Watched::new("unlearn", lab.settings.unlearn_iterations * methods.len() as u64);
        let slabs = lab.all(methods.len(), |device, i| {
            let file = self.file(&format!("{}.safetensors", methods[i].key()));
            let (false, Some(stage1)) = (methods[i] == Method::Retraining, &stage1) else {
                return Ok(self.retrained.expect("left out without one").clone());
            };
            if file.exists() {
                return Ok(Checkpoint::open(&file)?.g_ema);
            }
            let slab = self.generator(methods[i], stage1, device, &watch)?;
            lab.save(&file, &slab)?;
            Ok(slab)
        })?;
        watch.finish();
        Ok(methods.into_iter().zip(slabs).collect())
    }

    fn generator(&self, method: Method, stage1: &Stage1, device: &Device, watch: &Watched) -> Result<ParamSlab> {
        let s = &self.lab.settings;
        let trained = Trained::default_of(&self.lab.original.config);
        let kind = |i: usize| Some(stage1.kinds.expect("a method that is repelled has adapted models")[i]);
        match method {
            Method::Retraining => unreachable!("it is given"),
            Method::Extrapolation => extrapolate(&self.lab.start, &stage1.adapted, s.extrapolation),
            Method::PositivesOnly => self.unlearned(None, 0, stage1, device, watch),
            Method::El2 => self.unlearned(kind(0), 0, stage1, device, watch),
            Method::El2Given => self.unlearned(kind(0), s.given_fakes, stage1, device, watch),
            Method::Nl2 => self.unlearned(kind(1), 0, stage1, device, watch),
            Method::Il2 => self.unlearned(kind(2), 0, stage1, device, watch),
            Method::Ewc => self.baseline(Baseline::Ewc { lambda: s.lambda, fisher: FisherSpec::default() }, stage1, device, watch),
            Method::L1 => self.baseline(Baseline::L1 { strength: s.l1 }, stage1, device, watch),
            Method::CfK => self.baseline(Baseline::CfK { trained }, stage1, device, watch),
            Method::EuK => self.baseline(Baseline::EuK { trained }, stage1, device, watch),
        }
    }

    /// Stage 2 with a given repulsion and so many marked negatives among a batch's fakes.
    pub fn unlearned(&self, repulsion: Option<Kind>, given_fakes: usize, stage1: &Stage1, device: &Device, watch: &Watched) -> Result<ParamSlab> {
        let s = &self.lab.settings;
        let trainer = self.lab.unlearner(given_fakes)?;
        let spec = UnlearnSpec {
            iterations: s.unlearn_iterations,
            repulsion,
            distance: stage1.distance,
            runaway: 1.0,
            optimiser: Optimiser::Restore,
            start: Start::Ema,
            seed: self.seed(),
        };
        let mut batches = MarkedBatches::new(&stage1.feedback, &trainer.hyper, self.seed(), 0)?;
        let state = unlearn(&trainer, &self.lab.original.to_device(device)?, &stage1.adapted, &mut batches, &spec, None, &mut |p| watch.step(p))?;
        state.g_ema.to_device(&Device::Cpu)
    }

    fn baseline(&self, kind: Baseline, stage1: &Stage1, device: &Device, watch: &Watched) -> Result<ParamSlab> {
        let s = &self.lab.settings;
        let trainer = self.lab.unlearner(0)?;
        let spec = BaselineSpec { baseline: kind, iterations: s.unlearn_iterations, optimiser: Optimiser::Restore, start: Start::Ema, seed: self.seed() };
        let mut batches = MarkedBatches::new(&stage1.feedback, &trainer.hyper, self.seed(), 0)?;
        baseline(&trainer, &self.lab.original.to_device(device)?, &mut batches, &spec, None, &mut |p| watch.step(p))?.g_ema.to_device(&Device::Cpu)
    }

    /// The outcome in the folder, or measured now. `before`: images of the class that the original makes.
    pub fn outcome(&self, method: Option<Method>, slab: &ParamSlab, before: Option<usize>, reference: Option<&Statistics>) -> Result<Outcome> {
        let name = method.map_or("Original", Method::name);
        let file = self.file(&format!("{}.json", method.map_or("original".into(), Method::key)));
        let lab = self.lab;
        let save = |outcome: &Outcome| atomic::write_bytes(&file, &serde_json::to_vec_pretty(outcome).expect("plain data"));
        // A model has no distance to itself.
        let reference = reference.filter(|_| method != Some(Method::Retraining));
        let distance = |own: &Option<Statistics>, to: Option<&Statistics>| match (&lab.extractor, own, to) {
            (Some(e), Some(own), Some(to)) => fid(e.protocol(), own, to).map(|r| Some(r.distance)),
            _ => Ok(None),
        };
        if file.exists() {
            let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
            let mut outcome: Outcome = serde_json::from_str(&text).map_err(|e| Error::file(&file, format!("does not parse ({e}); remove it to measure again")))?;
            // A call that has Inception's weights, or a reference, completes what one without them measured.
            let missing = (outcome.fid.is_none() && self.real.is_some()) || (outcome.ret_fid.is_none() && reference.is_some());
            if let Some(features) = self.features().filter(|_| missing || outcome.protocol != self.protocol()) {
                let bench = Bench { n: features.images, ..lab.bench(self.class, self.run) };
                let own = measure(&bench, name, slab, Some(features))?.inception;
                (outcome.fid, outcome.ret_fid, outcome.protocol) = (distance(&own, self.real)?, distance(&own, reference)?, self.protocol());
                save(&outcome)?;
            }
            return Ok(outcome);
        }
        let measured = measure(&lab.bench(self.class, self.run), name, slab, self.features())?;
        let now = measured.judged.histogram[self.class];
        let before = before.unwrap_or(now);
        if before == 0 {
            return Err(Error::config("--class", format!("the original makes no image of {}: there is nothing to unlearn", self.class_name())));
        }
        let others = lab.by_class.as_ref().map(|c| c.without(self.class)).transpose()?;
        let outcome = Outcome {
            class: self.class_name().to_string(),
            run: self.run,
            method,
            pul: 100.0 * (before as f64 - now as f64) / before as f64,
            frechet: others.map(|o| measured.judged.frechet(&o)).transpose()?.flatten(),
            fid: distance(&measured.inception, self.real)?,
            ret_fid: distance(&measured.inception, reference)?,
            protocol: self.protocol(),
            histogram: measured.judged.histogram,
        };
        save(&outcome)?;
        Ok(outcome)
    }

    fn features(&self) -> Option<Features<'_>> {
        let lab = self.lab;
        let extractor = lab.extractor.as_ref().filter(|_| lab.settings.fid_runs.is_none_or(|runs| self.run < runs));
        extractor.map(|extractor| Features { extractor, batch: lab.batch, images: lab.settings.fid_images })
    }

    fn protocol(&self) -> Option<String> {
        self.features().map(|f| format!("{}, {} images", f.extractor.protocol(), f.images))
    }

    /// Inception statistics of the retrained reference, for Ret-FID.
    pub fn reference(&self) -> Result<Option<Statistics>> {
        match (self.retrained, self.features()) {
            (Some(slab), Some(features)) => {
                let bench = Bench { n: features.images, ..self.lab.bench(self.class, self.run) };
                Ok(measure(&bench, "retrained", slab, Some(features))?.inception)
            }
            _ => Ok(None),
        }
    }

    /// Everything of the run: the original, then each method.
    pub fn outcomes(&self, methods: &[Method]) -> Result<(Vec<Outcome>, Generators)> {
        atomic::create_folder(&self.folder)?;
        let generators = self.generators(methods)?;
        let original = self.outcome(None, &self.lab.start, None, None)?;
        let before = original.histogram[self.class];
        let reference = self.reference()?;
        let mut all = vec![original];
        for (method, slab) in &generators {
            all.push(self.outcome(Some(*method), slab, Some(before), reference.as_ref())?);
            stop_if_interrupted()?;
        }
        Ok((all, generators))
    }
}
