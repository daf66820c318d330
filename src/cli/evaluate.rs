//! `recant evaluate`: PUL, class histograms and distances of an unlearned model against its original.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::model::{class_of, read_classifier};
use super::output::{Progress, summary, table};
use super::{Global, run_folder};
use crate::data::dataset::{Dataset, Source};
use crate::data::mnist::Split;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::safetensors;
use crate::metrics::class_statistics::ClassStatistics;
use crate::metrics::pul::{Judged, judge, pul};
use crate::models::classifier::Classifier;
use crate::models::stylegan2::Generator;
use crate::nn::ParamSlab;
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
    /// Real images for the Fréchet distance in the classifier's own features: mnist:DIR, folder:DIR, npz:FILE, or
    /// class statistics that `classifier stats` wrote (.safetensors)
    #[arg(long)]
    real: Option<String>,
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

/// Real images by class, as features of the classifier.
pub(super) fn real_statistics(source: &str, classifier: &Classifier) -> Result<ClassStatistics> {
    if Path::new(source).extension().is_some_and(|e| e == "safetensors") {
        return ClassStatistics::from_tensors(&safetensors::read(source)?.tensors).map_err(|e| Error::file(source, e));
    }
    let source: Source = source.parse()?;
    let size = classifier.config().preprocessing.size[0];
    collect_statistics(classifier, &source.read(Split::Train, Some(size))?)
}

/// Statistics of a labelled data set.
pub(super) fn collect_statistics(classifier: &Classifier, data: &Dataset) -> Result<ClassStatistics> {
    let mut at = 0;
    ClassStatistics::collect(classifier, &mut || {
        run_folder::stop_if_interrupted()?;
        let indices: Vec<usize> = (at..data.len().min(at + 256)).collect();
        at += indices.len();
        if indices.is_empty() {
            return Ok(None);
        }
        let labels = data.batch_labels(&indices)?.into_iter().map(|l| l as usize).collect();
        Ok(Some((data.batch(&indices, &[]), labels)))
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
        let latents = draw_latents(self.g, self.n, self.seed, streams::EVALUATION);
        let mut progress = Progress::new(what, 0, self.n as u64);
        let judged = judge(self.g, &params.to_device(self.device)?, self.classifier, self.class, &latents, self.seed, &mut |done| {
            progress.at(done as u64, String::new);
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

impl Evaluate {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        if self.n == 0 {
            return Err(Error::config("--n", "must be at least 1"));
        }
        let (original, unlearned) = (Checkpoint::open(&self.model)?, Checkpoint::open(&self.unlearned)?);
        if original.config != unlearned.config {
            return Err(Error::file(&self.unlearned, "is a network of another size than --model"));
        }
        let classifier = read_classifier(&self.classifier)?.to_device(&device)?;
        let class = class_of(&classifier, &self.class)?;
        let real = self.real.as_ref().map(|r| real_statistics(r, &classifier)).transpose()?;
        let g = Generator::new(original.config.clone());
        let bench = Bench { device: &device, g: &g, classifier: &classifier, class, n: self.n, seed: self.seed };
        let before = bench.judge("original", &original.g_ema)?;
        let after = bench.judge("unlearned", &unlearned.g_ema)?;
        let report = bench.report(&before, &after, real.as_ref(), start.elapsed().as_secs_f64())?;
        let classes = &classifier.config().classes;
        println!("{}", histogram_table(classes, &[("original", &report.histogram_before), ("unlearned", &report.histogram_after)]));
        println!("PUL {:.2} % of class {} over {} shared latents", report.pul, report.class, report.samples);
        if report.frechet_before.is_some() || report.frechet_after.is_some() {
            println!(
                "Fréchet distance in the classifier's features (not FID) to the real images of the other classes: {} before, {} after",
                show_distance(report.frechet_before),
                show_distance(report.frechet_after)
            );
        }
        summary(global, &report);
        Ok(())
    }
}
