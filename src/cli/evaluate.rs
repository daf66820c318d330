//! `recant evaluate`: PUL, class histograms and distances of an unlearned model against its original.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::fid::{Chosen, InceptionOptions, Side, Taker};
use super::model::{class_of, read_classifier};
use super::output::{Progress, summary, table};
use super::{Global, run_folder};
use crate::data::dataset::{Dataset, Source};
use crate::data::mnist::Split;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::ahead::ReadAhead;
use crate::io::safetensors;
use crate::metrics::class_statistics::ClassStatistics;
use crate::metrics::pul::{Judged, judge, pul};
use crate::metrics::{Extractor, FidReport, Statistics, fid};
use crate::models::classifier::Classifier;
use crate::models::stylegan2::Generator;
use crate::nn::ParamSlab;
use crate::tensor::Tensor;
use crate::training::checkpoint::Checkpoint;
use crate::training::streams;
use crate::unlearning::feedback::draw_latents;

#[derive(Args, Clone, Debug)]
pub(crate) struct Evaluate {
    /// Original model
    #[arg(long)]
    model: PathBuf,
    /// Unlearned model
    #[arg(long)]
    unlearned: PathBuf,
    /// Classifier that judges
    #[arg(long)]
    classifier: PathBuf,
    /// The unlearned class, by name or index
    #[arg(long)]
    class: String,
    /// Shared latents
    #[arg(long, default_value_t = 15_000)]
    n: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Real images: mnist:DIR, folder:DIR, celeba:DIR or npz:FILE, for FID (with --inception) and, where they have
    /// classes, the Fréchet distance in the classifier's own features; or, for the latter alone, class statistics that
    /// `classifier stats` wrote (.safetensors)
    #[arg(long)]
    real: Option<String>,
    /// The reference that `train --without` made: Ret-FID is the unlearned model's distance to it (with --inception)
    #[arg(long, requires = "inception_weights")]
    retrained: Option<PathBuf>,
    #[command(flatten)]
    inception: InceptionOptions,
}

/// The numbers of one comparison.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub class: String,
    /// Percent.
    pub pul: f64,
    pub histogram_before: Vec<usize>,
    pub histogram_after: Vec<usize>,
    pub confidence_before: f64,
    pub confidence_after: f64,
    /// Fréchet distance in the classifier's features to the real images of the other classes.
    pub frechet_before: Option<f64>,
    pub frechet_after: Option<f64>,
    pub samples: usize,
    pub seconds: f64,
    pub device: String,
}

/// Real images as an option names them.
pub(super) enum Real {
    /// Written by `classifier stats`.
    Statistics(ClassStatistics),
    Data(Source),
}

impl Real {
    pub fn of(text: &str) -> Result<Real> {
        match Path::new(text).extension() {
            Some(e) if e == "safetensors" => {
                ClassStatistics::from_tensors(&safetensors::read(text)?.tensors).map(Real::Statistics).map_err(|e| Error::file(text, e))
            }
            _ => text.parse().map(Real::Data),
        }
    }

    /// By class, as features of the classifier; none of data without classes.
    pub fn by_class(self, classifier: &Classifier) -> Result<Option<ClassStatistics>> {
        match self {
            Real::Statistics(statistics) => Ok(Some(statistics)),
            Real::Data(Source::Celeba(_)) => Ok(None),
            Real::Data(source) => {
                let data = source.read_at(Split::Train, Some(classifier.config().preprocessing.size))?.in_order_of(&classifier.config().classes);
                if data.labels.is_some() { collect_statistics(classifier, &data).map(Some) } else { Ok(None) }
            }
        }
    }
}

/// Images read at a time for class statistics.
const READ_AT_ONCE: usize = 256;

/// Statistics of a labelled data set.
pub(super) fn collect_statistics(classifier: &Classifier, data: &Dataset) -> Result<ClassStatistics> {
    let all: Vec<usize> = (0..data.len()).collect();
    let mut batches = ReadAhead::new(all.chunks(READ_AT_ONCE).map(|indices| {
        let (pictures, indices) = (data.pictures.clone(), indices.to_vec());
        move || Ok((pictures.batch(&indices, &[])?, indices))
    }));
    ClassStatistics::collect(classifier, &mut || {
        run_folder::stop_if_interrupted()?;
        let Some(batch) = batches.next() else { return Ok(None) };
        let (images, indices) = batch?;
        let labels = data.batch_labels(&indices)?.into_iter().map(|l| l as usize).collect();
        Ok(Some((images, labels)))
    })
}

/// A generator with what judges it.
pub(super) struct Bench<'a> {
    /// Where the generator runs.
    pub device: &'a Device,
    pub g: &'a Generator,
    pub classifier: &'a Classifier,
    pub class: usize,
    pub n: usize,
    pub seed: u64,
}

impl Bench<'_> {
    pub fn judge(&self, what: &str, params: &ParamSlab) -> Result<Judged> {
        self.judge_and(what, params, self.n, &mut |_| Ok(()))
    }

    /// As `judge`; `each` sees every batch of images, of which at least so many are made.
    fn judge_and(&self, what: &str, params: &ParamSlab, images: usize, each: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<Judged> {
        let latents = draw_latents(self.g, self.n.max(images), self.seed, streams::EVALUATION);
        let mut progress = Progress::new(what, 0, latents.dim(0) as u64);
        let judged = judge(self.g, &params.to_device(self.device)?, self.classifier, self.class, &latents, self.n, self.seed, &mut |done, images| {
            progress.at(done as u64, String::new);
            each(images)?;
            run_folder::stop_if_interrupted()
        })?;
        progress.finish();
        Ok(judged)
    }

    pub fn report(&self, before: &Judged, after: &Judged, real: Option<&ClassStatistics>, seconds: f64) -> Result<Report> {
        let real = real.map(|r| r.without(self.class)).transpose()?;
        let frechet = |j: &Judged| Ok::<_, Error>(real.as_ref().map(|r| j.frechet(r)).transpose()?.flatten());
        Ok(Report {
            class: self.classifier.config().classes[self.class].clone(),
            pul: pul(before, after, self.class)?,
            histogram_before: before.histogram.clone(),
            histogram_after: after.histogram.clone(),
            confidence_before: before.confidence,
            confidence_after: after.confidence,
            frechet_before: frechet(before)?,
            frechet_after: frechet(after)?,
            samples: self.n,
            seconds,
            device: self.device.to_string(),
        })
    }
}

/// Histogram rows: one column per class.
pub(super) fn histogram_table(classes: &[String], rows: &[(&str, &[usize])]) -> String {
    let mut lines = vec![std::iter::once("images judged as".to_string()).chain(classes.iter().cloned()).collect::<Vec<_>>()];
    for (name, h) in rows {
        lines.push(std::iter::once(name.to_string()).chain(h.iter().map(|c| c.to_string())).collect());
    }
    table(&lines)
}

/// A distance for a table.
pub(super) fn show_distance(d: Option<f64>) -> String {
    d.map_or("-".into(), |d| format!("{d:.2}"))
}

/// Counts of a class or attribute before and after: what else changed than what was meant to.
#[derive(Clone, Debug, Serialize)]
struct Drift {
    class: String,
    before: usize,
    after: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    retrained: Option<usize>,
}

impl Drift {
    fn row(&self) -> Vec<String> {
        let change = match self.before {
            0 => "-".to_string(),
            n => format!("{:+.1} %", 100.0 * (self.after as f64 / n as f64 - 1.0)),
        };
        let retrained = self.retrained.map(|n| n.to_string());
        [vec![self.class.clone(), self.before.to_string(), self.after.to_string(), change], retrained.into_iter().collect()].concat()
    }
}

/// A distance as `--json` has it.
fn distance_json(report: &FidReport) -> serde_json::Value {
    serde_json::json!({"name": report.protocol.name(), "distance": report.distance, "protocol": report.protocol.to_string(), "images": report.images})
}

/// What is known of one model's images.
pub(super) struct Measured {
    pub judged: Judged,
    pub inception: Option<Statistics>,
}

/// Inception features of the first so many images.
#[derive(Clone, Copy)]
pub(super) struct Features<'a> {
    pub extractor: &'a Extractor,
    pub batch: usize,
    pub images: usize,
}

/// Generates a model's images once, for the classifier and for Inception, as many as either wants.
pub(super) fn measure(bench: &Bench, what: &str, params: &ParamSlab, features: Option<Features>) -> Result<Measured> {
    let mut stats = features.map(|f| f.extractor.start());
    let judged = bench.judge_and(what, params, features.map_or(0, |f| f.images), &mut |images| {
        let (Some(f), Some(stats)) = (features, &mut stats) else { return Ok(()) };
        let n = images.dim(0).min(f.images.saturating_sub(stats.count()));
        for at in (0..n).step_by(f.batch) {
            f.extractor.add_images(stats, &images.rows(at, f.batch.min(n - at))?)?;
            run_folder::stop_if_interrupted()?;
        }
        Ok(())
    })?;
    Ok(Measured { judged, inception: stats.map(|s| s.finish()).transpose()? })
}

impl Evaluate {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        if self.n < 2 {
            return Err(Error::config("--n", "must be at least 2"));
        }
        let original = Checkpoint::open(&self.model)?;
        let same_size = |path: &PathBuf| {
            let model = Checkpoint::open(path)?;
            if original.config == model.config { Ok(model) } else { Err(Error::file(path, "is a network of another size than --model")) }
        };
        let unlearned = same_size(&self.unlearned)?;
        let retrained = self.retrained.as_ref().map(same_size).transpose()?;
        let classifier = read_classifier(&self.classifier)?.to_device(&device)?;
        let class = class_of(&classifier, &self.class)?;
        let extractor = self.inception.extractor(Some(original.config.size), &device)?;
        let (name, real) = (classifier.config().classes[class].clone(), self.real.as_deref().map(Real::of).transpose()?);
        let real_features = match (&extractor, &real) {
            (Some(extractor), Some(Real::Data(source))) => {
                let taker = Taker { extractor, batch: self.inception.fid_batch, chosen: Chosen::All, without: Some(name.clone()), cache: true };
                Some(taker.data(&Side::Data(source.clone()))?)
            }
            _ => None,
        };
        let by_class = real.map(|r| r.by_class(&classifier)).transpose()?.flatten();
        let g = Generator::new(original.config.clone());
        let bench = Bench { device: &device, g: &g, classifier: &classifier, class, n: self.n, seed: self.seed };
        let features = extractor.as_ref().map(|extractor| Features { extractor, batch: self.inception.fid_batch, images: self.n });
        let before = measure(&bench, "original", &original.g_ema, features)?;
        // What cannot be told afterwards is said before the other models are measured.
        pul(&before.judged, &before.judged, class)?;
        let after = measure(&bench, "unlearned", &unlearned.g_ema, features)?;
        let reference = retrained.as_ref().map(|r| measure(&bench, "retrained", &r.g_ema, features)).transpose()?;
        let compare = |a: &Option<Statistics>, b: &Option<Statistics>| match (&extractor, a, b) {
            (Some(e), Some(a), Some(b)) => fid(e.protocol(), a, b).map(Some),
            _ => Ok(None),
        };
        let distances = [
            ("before", "original to the real images without the class", compare(&before.inception, &real_features)?),
            ("after", "unlearned to the real images without the class", compare(&after.inception, &real_features)?),
            ("retrained", "Ret: unlearned to the retrained model", compare(&after.inception, &reference.as_ref().and_then(|r| r.inception.clone()))?),
        ];
        let report = bench.report(&before.judged, &after.judged, by_class.as_ref(), start.elapsed().as_secs_f64())?;
        let drift: Vec<Drift> = (classifier.config().classes.iter().enumerate())
            .map(|(k, class)| Drift {
                class: class.clone(),
                before: before.judged.histogram[k],
                after: after.judged.histogram[k],
                retrained: reference.as_ref().map(|r| r.judged.histogram[k]),
            })
            .collect();
        let mut rows = vec![vec!["images judged as".to_string(), "original".into(), "unlearned".into(), "change".into()]];
        rows[0].extend(reference.is_some().then(|| "retrained".to_string()));
        rows.extend(drift.iter().map(Drift::row));
        println!("{}", table(&rows));
        println!("PUL {:.2} % of class {} over {} shared latents", report.pul, report.class, report.samples);
        if report.frechet_before.is_some() || report.frechet_after.is_some() {
            println!(
                "Fréchet distance in the classifier's features (not FID) to the real images of the other classes: {} before, {} after",
                show_distance(report.frechet_before),
                show_distance(report.frechet_after)
            );
        }
        let mut json = serde_json::to_value(&report).expect("plain data");
        json["drift"] = serde_json::to_value(&drift).expect("plain data");
        for (key, what, distance) in &distances {
            if let Some(d) = distance {
                println!("{what}: {d}");
                json["fid"][*key] = distance_json(d);
            }
        }
        summary(global, &json);
        Ok(())
    }
}
