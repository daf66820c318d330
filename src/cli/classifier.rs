//! `recant classifier`: trains and evaluates the networks that judge, and measures real images with them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Global;
use super::evaluate::collect_statistics;
use super::model::{read_classifier, write_classifier};
use super::output::{Progress, summary};
use super::run_folder::stop_if_interrupted;
use crate::data::dataset::{Dataset, Source};
use crate::data::mnist::Split;
use crate::error::{Error, Result};
use crate::models::classifier::{ClassifierConfig, LabelledImages, Labels, Recipe, evaluate, train};

#[derive(Args, Clone, Debug)]
pub(crate) struct ClassifierArgs {
    #[command(subcommand)]
    command: ClassifierCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ClassifierCommand {
    /// Train LeNet on labelled images with the paper's recipe
    Train(TrainArgs),
    /// Accuracy on labelled images
    Eval(DataArgs),
    /// Mean and covariance of the classifier's features for each class of real images
    Stats(StatsArgs),
}

#[derive(Args, Clone, Debug)]
struct TrainArgs {
    /// Labelled images: mnist:DIR, folder:DIR with class subfolders, or npz:FILE with labels
    #[arg(long)]
    data: Source,
    #[arg(long, default_value_t = 12)]
    epochs: usize,
    #[arg(long, default_value_t = 256)]
    batch: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Classifier file to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args, Clone, Debug)]
struct DataArgs {
    #[arg(long)]
    classifier: PathBuf,
    /// Labelled images; of MNIST the test split
    #[arg(long)]
    data: Source,
}

#[derive(Args, Clone, Debug)]
struct StatsArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Statistics file (safetensors)
    #[arg(long)]
    out: PathBuf,
}

/// Classes of the images, and the images as training takes them.
fn labels_of(data: &Dataset) -> Result<Vec<u32>> {
    data.batch_labels(&(0..data.len()).collect::<Vec<_>>())
}

fn labelled<'a>(data: &'a Dataset, labels: &'a [u32]) -> LabelledImages<'a> {
    LabelledImages { pixels: &data.images, size: [data.height, data.width], channels: data.channels, labels: Labels::Classes(labels) }
}

impl ClassifierArgs {
    pub fn run(&self, global: &Global) -> Result<()> {
        match &self.command {
            ClassifierCommand::Train(c) => c.run(global),
            ClassifierCommand::Eval(c) => c.run(global),
            ClassifierCommand::Stats(c) => c.run(global),
        }
    }
}

impl TrainArgs {
    fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        global.device.host_only("classifier")?;
        let config = ClassifierConfig::mnist();
        let size = config.preprocessing.size[0];
        let data = self.data.read(Split::Train, Some(size))?;
        let labels = labels_of(&data)?;
        let config = ClassifierConfig { classes: data.class_names.clone(), ..config };
        let recipe = Recipe { epochs: self.epochs, batch: self.batch, seed: self.seed, ..Recipe::mnist() };
        let mut progress: Option<Progress> = None;
        let classifier = train(&config, labelled(&data, &labels), &recipe, &mut |p| {
            let bar = progress.get_or_insert_with(|| Progress::new("classifier", 0, p.steps as u64));
            bar.at(p.step as u64, || format!("epoch {} loss {:.4}", p.epoch + 1, p.loss));
            stop_if_interrupted()
        })?;
        if let Some(bar) = progress {
            bar.finish();
        }
        write_classifier(&self.out, &classifier)?;
        println!("trained on {} images: {}", data.len(), self.out.display());
        summary(global, &serde_json::json!({"images": data.len(), "out": self.out, "seconds": start.elapsed().as_secs_f64(), "device": "cpu"}));
        Ok(())
    }
}

impl DataArgs {
    fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        global.device.host_only("classifier")?;
        let classifier = read_classifier(&self.classifier)?;
        let data = self.data.read(Split::Test, Some(classifier.config().preprocessing.size[0]))?;
        let labels = labels_of(&data)?;
        if labels.is_empty() {
            return Err(Error::config("--data", "holds no image"));
        }
        let result = evaluate(&classifier, labelled(&data, &labels), 256)?;
        println!("accuracy {:.2} %, balanced {:.2} % on {} images", 100.0 * result.accuracy(), 100.0 * result.balanced_accuracy(), data.len());
        let seconds = start.elapsed().as_secs_f64();
        summary(global, &serde_json::json!({"accuracy": result.accuracy(), "balanced_accuracy": result.balanced_accuracy(), "images": data.len(), "seconds": seconds, "device": "cpu"}));
        Ok(())
    }
}

impl StatsArgs {
    fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        global.device.host_only("classifier")?;
        let classifier = read_classifier(&self.data.classifier)?;
        let data = self.data.data.read(Split::Train, Some(classifier.config().preprocessing.size[0]))?;
        collect_statistics(&classifier, &data)?.write(&self.out)?;
        println!("statistics of {} images: {}", data.len(), self.out.display());
        summary(global, &serde_json::json!({"images": data.len(), "out": self.out, "seconds": start.elapsed().as_secs_f64(), "device": "cpu"}));
        Ok(())
    }
}
