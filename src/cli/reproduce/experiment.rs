//! `recant reproduce mnist | celeba-hq | afhq`: a table of the paper, from the user's files to markdown and figures, run
//! by run and resumable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::lab::{Lab, Method, Outcome, Task};
use super::paper::{Cell, NOT_RUN, WHY_NOT_RUN};
use super::settings::{Experiment, Scale, Settings};
use crate::cli::demo::Embedded;
use crate::cli::evaluate::Real;
use crate::cli::fid::{Chosen, InceptionOptions, Side, Taker};
use crate::cli::model::{class_of, read_classifier};
use crate::cli::output::{Progress, summary};
use crate::cli::run_folder::{RunFolder, interrupted};
use crate::cli::sample::images_of;
use crate::cli::train::describe;
use crate::cli::{Global, SideBySide};
use crate::data::dataset::{Dataset, Flip, Source};
use crate::data::mnist::Split;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::{atomic, image};
use crate::metrics::Statistics;
use crate::metrics::class_statistics::ClassStatistics;
use crate::models::classifier::Classifier;
use crate::models::stylegan2::{Generator, StyleGan2Config};
use crate::nn::ParamSlab;
use crate::ops::layout::{concat, gather_rows};
use crate::training::checkpoint::{Checkpoint, default_noise, save_state};
use crate::training::{self, DatasetBatches, GanState, Hyper, NoRegulariser, Trainer, streams};
use crate::unlearning::extrapolate::extrapolate;
use crate::unlearning::feedback::draw_latents;

/// Who gives feedback and judges, and class statistics that come with it.
type Judge = (Classifier, Option<ClassStatistics>);

/// Models that never saw a class, by its number, with their files.
type References = BTreeMap<usize, (PathBuf, Checkpoint)>;

/// Images per row of the figures.
const COLUMNS: usize = 16;
/// γ of the extrapolation figure (the paper's Fig. 1).
const GAMMAS: [f64; 5] = [0.0, 0.5, 1.0, 1.5, 2.0];

#[derive(Args, Clone, Debug)]
pub(crate) struct ExperimentArgs {
    /// Real images: mnist:DIR; folder:DIR with class folders; celeba:DIR with attributes
    #[arg(long)]
    data: Option<String>,
    /// Pre-trained model (default: the embedded one for mnist at the small scale, else it is trained on --data)
    #[arg(long)]
    model: Option<PathBuf>,
    /// Classifier that gives feedback and judges (default for mnist: the embedded LeNet)
    #[arg(long)]
    classifier: Option<PathBuf>,
    #[command(flatten)]
    inception: InceptionOptions,
    #[command(flatten)]
    side_by_side: SideBySide,
    /// A model trained without a class, as CLASS=FILE (repeatable); else one is trained for --retrain-iterations
    #[arg(long, value_name = "CLASS=FILE")]
    retrained: Vec<String>,
    /// small fits two CPU cores, paper is the paper's size
    #[arg(long, value_enum, default_value = "small")]
    scale: Scale,
    /// Classes to unlearn, one at a time (default: the paper's)
    #[arg(long, value_delimiter = ',')]
    classes: Vec<String>,
    /// Rows of the table (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    methods: Vec<Method>,
    /// Independent runs; the table has their mean and deviation (default: 3)
    #[arg(long)]
    runs: Option<u64>,
    /// Side of the images of a model that is trained here at the small scale
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Feedback samples
    #[arg(long)]
    feedback: Option<usize>,
    /// Adapted models, k
    #[arg(long)]
    models: Option<usize>,
    /// Weight of the R1 penalty: that of the pre-trained model's training
    #[arg(long, allow_negative_numbers = true)]
    r1: Option<f64>,
    /// Iterations of each adaptation
    #[arg(long)]
    adapt_iterations: Option<u64>,
    /// Iterations of stage 2 and of the baselines
    #[arg(long)]
    iterations: Option<u64>,
    /// Marked negatives among the fakes of each batch, in the last row; all others are the paper's
    #[arg(long)]
    negatives_as_fakes: Option<usize>,
    /// Iterations of pre-training, where it is done here
    #[arg(long)]
    pretrain_iterations: Option<u64>,
    /// Iterations of the retrained reference; 0 leaves it out
    #[arg(long)]
    retrain_iterations: Option<u64>,
    /// Latents for PUL
    #[arg(long)]
    samples: Option<usize>,
    /// Images for the distances
    #[arg(long)]
    fid_images: Option<usize>,
    /// Real images for the distances, spread over the data (default at the paper's scale: all)
    #[arg(long)]
    real_images: Option<usize>,
    /// Runs with distances, the first ones
    #[arg(long)]
    fid_runs: Option<u64>,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for everything: configuration, models, outcomes, table.md, figures
    #[arg(long)]
    out: PathBuf,
    /// Go on where an earlier call stopped
    #[arg(long)]
    resume: bool,
}

#[derive(Serialize)]
struct Config<'a> {
    command: String,
    data: &'a Option<String>,
    model: &'a Option<PathBuf>,
    classifier: &'a Option<PathBuf>,
    scale: Scale,
    size: usize,
    settings: &'a Settings,
    seed: u64,
}

impl ExperimentArgs {
    /// The scale's numbers with those that were given.
    fn settings(&self, experiment: Experiment) -> Result<Settings> {
        let mut s = Settings::of(experiment, self.scale);
        let mut given = Vec::new();
        macro_rules! take {
            ($($option:literal $($field:ident).+ <- $value:expr),* $(,)?) => {
                $(if let Some(v) = $value {
                    s.$($field).+ = v.into();
                    given.push(format!("{} {v}", $option));
                })*
            };
        }
        take!(
            "--runs" runs <- self.runs,
            "--feedback" feedback <- self.feedback,
            "--models" models <- self.models,
            "--adapt-iterations" adapt_iterations <- self.adapt_iterations,
            "--iterations" unlearn_iterations <- self.iterations,
            "--negatives-as-fakes" given_fakes <- self.negatives_as_fakes,
            "--pretrain-iterations" pretrain_iterations <- self.pretrain_iterations,
            "--retrain-iterations" retrain_iterations <- self.retrain_iterations,
            "--samples" samples <- self.samples,
            "--fid-images" fid_images <- self.fid_images,
            "--real-images" real_images <- self.real_images,
            "--fid-runs" fid_runs <- self.fid_runs,
            "--r1" hyper.r1_weight <- self.r1,
        );
        if !given.is_empty() {
            s.notes.push([given.join(", "), "this call".into(), "given as options, in place of the numbers above".into()]);
        }
        if s.runs == 0 || s.models == 0 || s.feedback == 0 || s.samples < 2 || s.fid_images < 2 || s.real_images.is_some_and(|n| n < 2) {
            return Err(Error::config("--runs, --models, --feedback, --samples, --fid-images, --real-images", "must be at least 1 (samples and images at least 2)"));
        }
        s.hyper = s.hyper.checked()?;
        // The last row's batches, too, before anything is trained.
        Hyper { given_fakes: s.given_fakes, ..s.hyper.clone() }.checked()?;
        Ok(s)
    }

    fn source(&self) -> Result<Option<Source>> {
        self.data.as_deref().map(str::parse).transpose()
    }

    fn data(&self, size: usize, why: &str) -> Result<Dataset> {
        let source = self.source()?.ok_or_else(|| Error::config("--data", format!("is needed {why}")))?;
        source.read(Split::Train, Some(size))
    }

    /// The classifier that is given, or else the embedded one with its class statistics.
    fn judge(&self, embedded: Option<(Classifier, ClassStatistics)>) -> Result<Judge> {
        match (&self.classifier, embedded) {
            (Some(path), _) => Ok((read_classifier(path)?, None)),
            (None, Some((classifier, statistics))) => Ok((classifier, Some(statistics))),
            (None, None) => Err(Error::config("--classifier", "is needed: it gives the feedback and judges; train one with `recant classifier train`")),
        }
    }

    /// The pair that everything starts from, its noise buffers and what judges. The model and Inception's weights are read before
    /// anything is trained.
    fn lab(&self, experiment: Experiment, settings: Settings, devices: Vec<Device>, embedded: Option<Checkpoint>, (classifier, own_statistics): Judge, references: &References) -> Result<Lab> {
        let device = &devices[0];
        let hyper = settings.hyper.clone();
        let given = match (&self.model, embedded.filter(|_| self.scale == Scale::Small)) {
            (Some(path), _) => {
                let model = Checkpoint::open(path)?;
                if !model.has_optimisers() {
                    eprintln!("warning: {} holds no optimiser state: every stage starts with a fresh one", path.display());
                }
                Some((model, path.as_path()))
            }
            (None, embedded) => embedded.map(|model| (model, Path::new("the embedded model"))),
        };
        let network = given.as_ref().map_or_else(|| self.network(experiment), |(model, _)| Ok(model.config.clone()))?;
        if let Some((file, _)) = references.values().find(|(_, model)| model.config != network) {
            return Err(Error::file(file, "is a network of another size than the pre-trained one"));
        }
        let extractor = self.inception.extractor(Some(network.size), device)?;
        let (original, noise) = match given {
            Some((model, path)) => {
                let noise = model.noise.clone();
                (model.into_state(path, &hyper, self.seed)?, noise)
            }
            None => {
                let data = self.data(network.size, "to pre-train; or give --model")?;
                let state = trained(&self.out.join("pretrained.safetensors"), "pre-train", &data, &network, &settings, settings.pretrain_iterations, self.seed, device)?;
                (state, default_noise(&network))
            }
        };
        let (original, classifier) = (original.to_device(device)?, classifier.to_device(device)?);
        let by_class = match (own_statistics, &self.data) {
            (Some(statistics), _) => Some(statistics),
            (None, Some(data)) => Real::of(data)?.by_class(&classifier)?,
            (None, None) => None,
        };
        Ok(Lab {
            generator: Generator::new(original.config.clone()),
            one_at_a_time: self.scale == Scale::Paper,
            batch: self.inception.fid_batch,
            seed: self.seed,
            settings,
            start: original.g_ema.to_device(&Device::Cpu)?,
            devices,
            original,
            noise,
            classifier,
            by_class,
            extractor,
        })
    }

    fn network(&self, experiment: Experiment) -> Result<StyleGan2Config> {
        match (experiment, self.scale) {
            (Experiment::Mnist, Scale::Paper) => Ok(StyleGan2Config::mnist()),
            (Experiment::CelebaHq | Experiment::Afhq, Scale::Paper) => Ok(StyleGan2Config::config_f_256()),
            (_, Scale::Small) => {
                let channels: Vec<String> = (2..=self.size.max(4).ilog2()).map(|l| format!("{}:{}", 1 << l, if l < 4 { 64 } else if l == 4 { 48 } else { 32 })).collect();
                StyleGan2Config::with_channels(self.size, 64, 4, &channels.join(","))
            }
        }
    }

    /// The models of `--retrained`.
    fn references(&self, judge: &Classifier) -> Result<References> {
        let mut references = References::new();
        for entry in &self.retrained {
            let (class, file) = entry.split_once('=').ok_or_else(|| Error::config("--retrained", format!("{entry:?} is not CLASS=FILE")))?;
            if references.insert(class_of(judge, class)?, (PathBuf::from(file), Checkpoint::open(file)?)).is_some() {
                return Err(Error::config("--retrained", format!("has two files for {class}; give one")));
            }
        }
        Ok(references)
    }

    /// The model that never saw a class; none where it is neither given nor to be trained.
    fn retrained(&self, lab: &Lab, class: &str, given: Option<(PathBuf, Checkpoint)>) -> Result<Option<ParamSlab>> {
        if let Some((_, model)) = given {
            return Ok(Some(model.g_ema));
        }
        if lab.settings.retrain_iterations == 0 {
            return Ok(None);
        }
        let config = &lab.original.config;
        let data = self.data(config.size, "for the retrained reference; or give --retrained, or --retrain-iterations 0")?;
        let data = data.without_class(data.class(class)?)?;
        let file = self.out.join(format!("retrained_{class}.safetensors"));
        let state = trained(&file, &format!("without {class}"), &data, config, &lab.settings, lab.settings.retrain_iterations, self.seed + 1, lab.device())?;
        state.g_ema.to_device(&Device::Cpu).map(Some)
    }

    /// Inception statistics of the real images without a class.
    fn real(&self, lab: &Lab, class: &str) -> Result<Option<Statistics>> {
        match (&lab.extractor, self.source()?) {
            (Some(extractor), Some(source)) => {
                let taker = Taker { extractor, batch: lab.batch, chosen: lab.settings.real_images.map_or(Chosen::All, Chosen::Spread), without: Some(class.to_string()), cache: true };
                taker.data(&Side::Data(source)).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub(super) fn run(&self, global: &Global, experiment: Experiment) -> Result<()> {
        let devices = global.open_several(&self.side_by_side)?;
        let start = std::time::Instant::now();
        let settings = self.settings(experiment)?;
        let table = experiment.table();
        let config = Config {
            command: format!("reproduce {}", table.name),
            data: &self.data,
            model: &self.model,
            classifier: &self.classifier,
            scale: self.scale,
            size: self.size,
            settings: &settings,
            seed: self.seed,
        };
        // Checked before anything is written.
        self.source()?;
        let (embedded_model, embedded_judge) = match (experiment == Experiment::Mnist).then(Embedded::load).transpose()? {
            Some(e) => (Some(e.model), Some((e.classifier, e.statistics))),
            None => (None, None),
        };
        let judge = self.judge(embedded_judge)?;
        let classes: Vec<String> = if self.classes.is_empty() { table.classes.iter().map(|c| c.to_string()).collect() } else { self.classes.clone() };
        let methods = if self.methods.is_empty() { Method::ALL.to_vec() } else { self.methods.clone() };
        let numbers = classes.iter().map(|c| class_of(&judge.0, c)).collect::<Result<Vec<_>>>()?;
        // By their names, whatever they were called by.
        if let Some(twice) = numbers.iter().enumerate().find_map(|(i, n)| numbers[..i].contains(n).then_some(i)) {
            return Err(Error::config("--classes", format!("names {} twice", classes[twice])));
        }
        let classes: Vec<String> = numbers.iter().map(|n| judge.0.config().classes[*n].clone()).collect();
        let mut references = self.references(&judge.0)?;
        let mut folder = RunFolder::create(&self.out, self.resume, &config, &devices[0], &[])?;
        let lab = self.lab(experiment, settings, devices, embedded_model, judge, &references)?;
        let mut outcomes = Vec::new();
        for (class, number) in classes.iter().zip(numbers) {
            let retrained = self.retrained(&lab, class, references.remove(&number))?;
            if retrained.is_none() && methods.contains(&Method::Retraining) {
                println!("class {class}: no retrained reference, so neither its row nor Ret-FID; give --retrained {class}=FILE or --retrain-iterations");
            }
            let real = self.real(&lab, class)?;
            for run in 0..lab.settings.runs {
                let task = Task { lab: &lab, class: number, run, folder: self.out.join(class).join(format!("run_{run}")), real: real.as_ref(), retrained: retrained.as_ref() };
                let (found, generators) = task.outcomes(&methods)?;
                for o in &found {
                    println!("{}", line(o));
                    folder.log(o)?;
                }
                if run == 0 && !found.is_empty() {
                    self.figures(&task, &generators)?;
                }
                outcomes.extend(found);
            }
        }
        let text = markdown(experiment, self.scale, &lab, &classes, &outcomes);
        atomic::write_bytes(&folder.file("table.md"), text.as_bytes())?;
        println!("\n{text}");
        println!("table and figures: {}", self.out.display());
        summary(global, &serde_json::json!({"outcomes": outcomes, "out": self.out, "seconds": start.elapsed().as_secs_f64(), "device": lab.device().to_string()}));
        Ok(())
    }

    /// The methods side by side on the same latents (Fig. 3 and 4), half of them latents that the original turns into the
    /// class, and, where there are adapted models, the extrapolation over γ (Fig. 1).
    fn figures(&self, task: &Task, generators: &[(Method, ParamSlab)]) -> Result<()> {
        let (lab, seed) = (task.lab, self.seed);
        let latents = draw_latents(&lab.generator, 16 * COLUMNS, seed, streams::SAMPLES);
        let images = images_of(&lab.generator, &lab.original.g_ema, &latents, seed)?;
        let has = lab.classifier.judge(&images)?.has(task.class);
        let (negative, positive): (Vec<usize>, Vec<usize>) = (0..has.len()).partition(|i| has[*i]);
        let half = COLUMNS / 2;
        let chosen: Vec<usize> = negative.into_iter().take(half).chain(positive).take(COLUMNS).collect();
        let z = gather_rows(&latents, &chosen)?;
        let grid = |name: &str, slabs: &[&ParamSlab]| {
            let rows = slabs.iter().map(|s| images_of(&lab.generator, &s.to_device(lab.device())?, &z, seed)).collect::<Result<Vec<_>>>()?;
            image::write_grid(task.folder.join(name), &concat(&rows.iter().collect::<Vec<_>>(), 0)?, chosen.len())
        };
        let rows: Vec<&ParamSlab> = std::iter::once(&lab.start).chain(generators.iter().map(|(_, s)| s)).collect();
        grid("methods.png", &rows)?;
        let names: Vec<&str> = std::iter::once("Original").chain(generators.iter().map(|(m, _)| m.name())).collect();
        atomic::write_bytes(&task.folder.join("methods.txt"), format!("rows of methods.png: {}\n", names.join(", ")).as_bytes())?;
        if !generators.iter().any(|(m, _)| m.needs_adapted()) {
            return Ok(());
        }
        let adapted = task.stage1(true)?.adapted;
        let away = GAMMAS.iter().map(|g| extrapolate(&lab.start, &adapted, *g)).collect::<Result<Vec<_>>>()?;
        grid("gamma.png", &away.iter().collect::<Vec<_>>())
    }
}

/// Trains a pair on a data set and a device, continuing the file if it is there.
#[allow(clippy::too_many_arguments, reason = "each says another thing, and both calls name all")]
fn trained(file: &Path, what: &str, data: &Dataset, network: &StyleGan2Config, settings: &Settings, iterations: u64, seed: u64, device: &Device) -> Result<GanState> {
    // The settings' EMA is that of the short stages.
    let hyper = &Hyper { ema_decay: Hyper::default().ema_decay, ..settings.hyper.clone() };
    let flip = if settings.mirror { Flip::Random } else { Flip::Never };
    // On the CPU the state is the same memory on its device, which has one owner while it is trained.
    let mut state = match file.exists() {
        true => Checkpoint::open(file)?.into_state(file, hyper, seed)?,
        false => GanState::init(network, hyper, seed),
    }
    .to_device(device)?;
    let noise = default_noise(network);
    let trainer = Trainer::new(network, hyper.clone());
    let mut batches = DatasetBatches::new(data, hyper.batch, flip, seed, state.iteration)?;
    let mut progress = Progress::new(what, state.iteration, iterations);
    training::run(&trainer, &mut state, &mut batches, &mut NoRegulariser, iterations, &mut |p| {
        let i = p.state.iteration;
        progress.at(i, || describe(p));
        let stop = interrupted() && i < p.until;
        if stop || i == p.until || i.is_multiple_of(500) {
            save_state(file, p.state, &noise, &Default::default())?;
        }
        if stop { Err(Error::Interrupted { resume: Some(file.to_path_buf()) }) } else { Ok(()) }
    })?;
    progress.finish();
    Ok(state)
}

fn shown(v: Option<f64>) -> String {
    v.map_or("-".into(), |v| format!("{v:.3}"))
}

fn line(o: &Outcome) -> String {
    let name = o.method.map_or("original", Method::name);
    format!("class {}, run {}, {name}: PUL {:.2} %, FID {}, Ret-FID {}, Fréchet in the classifier's features {}", o.class, o.run, o.pul, shown(o.fid), shown(o.ret_fid), shown(o.frechet))
}

/// Mean and, of more than one value, sample deviation.
pub(super) fn mean_and_deviation(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    match values.len() {
        0 => None,
        1 => Some((mean, None)),
        _ => Some((mean, Some((values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()))),
    }
}

fn cell(values: impl Iterator<Item = f64>, digits: usize) -> String {
    match mean_and_deviation(&values.collect::<Vec<_>>()) {
        None => "-".into(),
        Some((mean, None)) => format!("{mean:.digits$}"),
        Some((mean, Some(deviation))) => format!("{mean:.digits$} ± {deviation:.digits$}"),
    }
}

fn papers(v: Option<(f64, f64)>) -> String {
    v.map_or("-".into(), |(mean, deviation)| format!("{mean:.2} ± {deviation:.2}"))
}

const NOT_RUN_HERE: &str = "not run here";

/// The row of a method that has the paper's figures alone; nothing where it has none of this class.
fn not_run(name: &str, theirs: Option<Cell>) -> String {
    theirs.map_or(String::new(), |c| {
        let [pul, fid, ret_fid] = [Some(c.pul), Some(c.fid), c.ret_fid].map(papers);
        format!("| {name} | {NOT_RUN_HERE} | {pul} | {NOT_RUN_HERE} | {fid} | {NOT_RUN_HERE} | {ret_fid} | {NOT_RUN_HERE} |\n")
    })
}

/// The table, the drift of all classes, and where every number comes from.
fn markdown(experiment: Experiment, scale: Scale, lab: &Lab, classes: &[String], outcomes: &[Outcome]) -> String {
    let (paper, s) = (experiment.table(), &lab.settings);
    let fid = lab.extractor.as_ref().map_or("FID".to_string(), |e| e.protocol().name());
    let mut out = format!("# {}, scale {}\n\n", paper.name, serde_json::to_value(scale).expect("plain data").as_str().expect("a name"));
    out += &format!("{}; the paper's figures (FID, on its own models and data) beside ours. ", if s.runs == 1 { "One run".into() } else { format!("Mean ± deviation of {} runs", s.runs) });
    match &lab.extractor {
        Some(e) => {
            let real = s.real_images.map_or("all".into(), |n| n.to_string());
            let runs = s.fid_runs.filter(|n| *n < s.runs).map_or(String::new(), |n| if n == 1 { ", in the first run".into() } else { format!(", in the first {n} runs") });
            out += &format!("Distances: {fid}, {}, {} generated images, {real} real ones{runs}. ", e.protocol(), s.fid_images)
        }
        None => out += "No Inception weights were given, so there is no FID. ",
    }
    out += &format!("PUL over {} latents. The last column is the Fréchet distance in the classifier's own features.\n", s.samples);
    for class in classes {
        out += &format!("\n## class {class}\n\n| method | PUL % | paper | {fid} | paper: FID | Ret-{fid} | paper: Ret-FID | Fréchet |\n|---|---|---|---|---|---|---|---|\n");
        for method in std::iter::once(None).chain(Method::ALL.map(Some)) {
            let found: Vec<&Outcome> = outcomes.iter().filter(|o| o.class == *class && o.method == method).collect();
            let name = method.map_or("Original", Method::name);
            if name == NOT_RUN.1 {
                NOT_RUN.0.iter().for_each(|name| out += &not_run(name, paper.cell(name, class)));
            }
            let theirs: Option<Cell> = paper.cell(name, class);
            if found.is_empty() && theirs.is_none() {
                continue;
            }
            let of = |f: fn(&Outcome) -> Option<f64>, digits| cell(found.iter().filter_map(|o| f(o)), digits);
            let fid_of_paper = if method.is_none() { format!("{:.1}", paper.pretrained_fid) } else { papers(theirs.map(|c| c.fid)) };
            out += &format!(
                "| {name} | {} | {} | {} | {fid_of_paper} | {} | {} | {} |\n",
                of(|o| Some(o.pul), 2),
                papers(theirs.map(|c| c.pul)),
                of(|o| o.fid, 3),
                of(|o| o.ret_fid, 3),
                papers(theirs.and_then(|c| c.ret_fid)),
                of(|o| o.frechet, 2),
            );
        }
        out += &drift(&lab.classifier.config().classes, outcomes.iter().filter(|o| o.class == *class));
    }
    if out.contains(NOT_RUN_HERE) {
        out += &format!("\n{WHY_NOT_RUN}\n");
    }
    out += "\n## Settings\n\n| number | source | why |\n|---|---|---|\n";
    for [number, source, why] in &s.notes {
        out += &format!("| {number} | {source} | {why} |\n");
    }
    out
}

/// Mean counts of every class or attribute, by method.
fn drift<'a>(names: &[String], outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let mut by_method: BTreeMap<usize, (&str, Vec<&[usize]>)> = BTreeMap::new();
    for o in outcomes {
        let (rank, name) = o.method.map_or((0, "Original"), |m| (1 + m as usize, m.name()));
        by_method.entry(rank).or_insert((name, Vec::new())).1.push(&o.histogram);
    }
    if by_method.is_empty() {
        return String::new();
    }
    let mut out = format!("\nImages judged as each class, mean over the runs:\n\n| | {} |\n|---|", by_method.values().map(|(n, _)| *n).collect::<Vec<_>>().join(" | "));
    out += &"---|".repeat(by_method.len());
    out.push('\n');
    for (k, name) in names.iter().enumerate() {
        let counts = by_method.values().map(|(_, h)| format!("{:.0}", h.iter().map(|h| h[k] as f64).sum::<f64>() / h.len() as f64));
        out += &format!("| {name} | {} |\n", counts.collect::<Vec<_>>().join(" | "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_deviations() {
        assert_eq!(mean_and_deviation(&[]), None);
        assert_eq!(mean_and_deviation(&[2.0]), Some((2.0, None)));
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), Some((2.0, Some(2.0_f64.sqrt()))));
        // The paper's entry for class 4 and IL2, 8.64 ± 0.90, from the three runs that its notebook shows: a population
        // deviation, which is smaller than ours by sqrt(2/3).
        let (mean, deviation) = mean_and_deviation(&[8.393, 9.871, 7.665]).unwrap();
        assert!((mean - 8.643).abs() < 1e-3 && (deviation.unwrap() * (2.0_f64 / 3.0).sqrt() - 0.917).abs() < 1e-3, "{mean} {deviation:?}");
    }
}
