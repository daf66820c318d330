//! `recant classifier`: trains and evaluates the networks that judge, and measures real images with them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use super::Global;
use super::evaluate::collect_statistics;
use super::model::{read_classifier, write_classifier};
use super::output::{Progress, refuse_overwriting, summary, table};
use super::run_folder::stop_if_interrupted;
use crate::data::dataset::{Dataset, Part, Source};
use crate::data::mnist::Split;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::models::classifier::{
    AFHQ, Architecture, Augment, CELEBA, Classifier, ClassifierConfig, Decision, Evaluation, LabelledImages, Labels, Optimizer, Preprocessing, Recipe, Schedule,
    Start, TrainProgress, evaluate, fine_tune, train,
};
use crate::nn::Adamax;
use crate::ops::optimizer::Adam;
use crate::ops::random::Random;
use crate::training::streams;

#[derive(Args, Clone, Debug)]
pub(crate) struct ClassifierArgs {
    #[command(subcommand)]
    command: ClassifierCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ClassifierCommand {
    /// Train a classifier on labelled images
    Train(TrainArgs),
    /// Accuracy on labelled images
    Eval(EvalArgs),
    /// Say of a PyTorch file without a declaration which classifier it is, and write it with that
    Declare(DeclareArgs),
    /// Mean and covariance of the classifier's features for each class of real images
    Stats(StatsArgs),
}

/// Height and width: `64` or `218x178`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size([usize; 2]);

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Size> {
        let (h, w) = text.split_once('x').unwrap_or((text, text));
        match (h.parse(), w.parse()) {
            (Ok(h), Ok(w)) if h > 0 && w > 0 => Ok(Size([h, w])),
            _ => Err(Error::config("--size", format!("{text:?} is not a side in pixels or HEIGHTxWIDTH"))),
        }
    }
}

/// What is done to [0, 1] pixels before the network sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pixels {
    /// As they are
    Unit,
    /// To [-1, 1]
    Symmetric,
    /// Mean and standard deviation of ImageNet
    Imagenet,
    /// One channel of luma
    Grey,
}

/// What the outputs mean, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DecisionName {
    /// One class: the largest output
    Largest,
    /// Attributes: outputs from 0 upwards, trained towards -1 and 1
    Signs,
    /// Attributes: log-odds of yes
    Odds,
}

#[derive(Args, Clone, Debug)]
struct DeclareArgs {
    /// State_dict of the network (.pt, .pth or safetensors)
    input: PathBuf,
    #[arg(long)]
    network: Architecture,
    /// Names of the outputs in order, separated by commas; `celeba` stands for its 40 attributes, `afhq` for cat,dog,wild
    #[arg(long)]
    classes: String,
    /// Input in pixels: a side, or HEIGHTxWIDTH
    #[arg(long)]
    size: Size,
    #[arg(long, value_enum)]
    pixels: Pixels,
    #[arg(long, value_enum, default_value = "largest")]
    decision: DecisionName,
    /// Classifier file to write (safetensors)
    #[arg(long)]
    out: PathBuf,
}

/// The optimisers by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OptimizerName {
    Adam,
    Adamax,
}

#[derive(Args, Clone, Debug)]
struct TrainArgs {
    /// Labelled images: mnist:DIR, folder:DIR with class subfolders, npz:FILE with labels, or celeba:DIR with attributes
    #[arg(long)]
    data: Source,
    /// lenet, resnet18, resnet50, resnext50_32x4d, celeba_heads, afhq_cnn, or FID's Inception up to a block of features:
    /// inception64, inception192, inception768, inception2048 (default: lenet, or that of --from)
    #[arg(long)]
    network: Option<Architecture>,
    /// File to start from instead of random values: a classifier, whose head goes along where the classes are the same, or
    /// weights trained for something else (torchvision's ResNets; for an Inception FID's), of which --network says what
    /// they are
    #[arg(long)]
    from: Option<PathBuf>,
    /// The network's input in pixels: a side, or HEIGHTxWIDTH (default: that of --from, 32 for lenet, 250 for afhq_cnn,
    /// 128 for an Inception, else 64)
    #[arg(long)]
    size: Option<Size>,
    /// Train on nine tenths of each class and judge the result on the others
    #[arg(long)]
    hold_out: bool,
    /// (default: 3, lenet 12, an Inception or over weights trained for something else 5)
    #[arg(long)]
    epochs: Option<usize>,
    /// Images per step (default: 50, lenet 256, an Inception or over weights trained for something else 32)
    #[arg(long)]
    batch: Option<usize>,
    /// (default: adamax; adam for lenet, an Inception, or over weights trained for something else)
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerName>,
    /// Learning rate (default: 0.002, for an Inception or over weights trained for something else 0.0001)
    #[arg(long, allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Learning rate over the run (default: constant; cosine for lenet, an Inception, or over weights trained for something else)
    #[arg(long, value_enum)]
    schedule: Option<Schedule>,
    /// AdamW's weight decay, on every parameter
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    weight_decay: f64,
    /// Write a running mean of the parameters, of which one step keeps this share (0: the last ones)
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    ema_decay: f64,
    /// Mirror every second image
    #[arg(long)]
    flip: bool,
    /// Move images at random by up to this many pixels per axis: crops of padded images
    #[arg(long, default_value_t = 0)]
    shift: usize,
    /// Show parts of images, or with a border more than them, whose side is off by up to this share
    #[arg(long, default_value_t = 0.0)]
    zoom: f32,
    /// Change contrast and brightness at random by up to this share
    #[arg(long, default_value_t = 0.0)]
    jitter: f32,
    /// Blend images and their losses in pairs, by shares from Beta(α, α) with this α (0: do not)
    #[arg(long, default_value_t = 0.0)]
    mixup: f32,
    /// Let every class weigh the same, however many images it has
    #[arg(long)]
    balance: bool,
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
    /// Labelled images; of MNIST the test split for eval, the training split for stats
    #[arg(long)]
    data: Source,
}

#[derive(Args, Clone, Debug)]
struct EvalArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Which images: all, or the part that `classifier train --hold-out` trained on or held out
    #[arg(long, value_enum, default_value = "all")]
    part: Part,
}

#[derive(Args, Clone, Debug)]
struct StatsArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Statistics file (safetensors)
    #[arg(long)]
    out: PathBuf,
}

/// A data set as training and evaluation take it.
fn labelled<'a>(data: &'a Dataset) -> Result<LabelledImages<'a>> {
    let labels = match (&data.labels, &data.attributes) {
        (Some(labels), _) => Labels::Classes(labels),
        (None, Some(attributes)) => Labels::Attributes(attributes),
        (None, None) => return Err(Error::config("--data", "has no labels; use class folders, an npz with labels, or celeba:DIR")),
    };
    Ok(LabelledImages { pictures: &data.pictures, labels })
}

impl ClassifierArgs {
    pub fn run(&self, global: &Global) -> Result<()> {
        match &self.command {
            ClassifierCommand::Train(c) => c.run(global),
            ClassifierCommand::Eval(c) => c.run(global),
            ClassifierCommand::Stats(c) => c.run(global),
            ClassifierCommand::Declare(c) => c.run(global),
        }
    }
}

impl TrainArgs {
    /// `over`: from weights trained for something else.
    fn recipe(&self, network: Architecture, over: bool) -> Result<Recipe> {
        let base = match network {
            Architecture::LeNet => Recipe::mnist(),
            Architecture::Inception(_) => Recipe::fine_tuning(),
            _ if over => Recipe::fine_tuning(),
            _ => Recipe::celeba(),
        };
        let (usual, lr) = match base.optimizer {
            Optimizer::Adam(adam) => (OptimizerName::Adam, adam.lr),
            Optimizer::Adamax(adamax) => (OptimizerName::Adamax, adamax.lr),
        };
        let (optimizer, lr) = (self.optimizer.unwrap_or(usual), self.lr.unwrap_or(lr));
        if !(lr.is_finite() && lr > 0.0) {
            return Err(Error::config("--lr", format!("{lr} must be a positive number")));
        }
        let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
        Ok(Recipe {
            optimizer: match optimizer {
                OptimizerName::Adam => Optimizer::Adam(Adam { lr, beta1, beta2, eps }),
                OptimizerName::Adamax => Optimizer::Adamax(Adamax { lr, beta1, beta2, eps }),
            },
            schedule: self.schedule.unwrap_or(base.schedule),
            weight_decay: self.weight_decay,
            ema_decay: self.ema_decay,
            batch: self.batch.unwrap_or(base.batch),
            epochs: self.epochs.unwrap_or(base.epochs),
            augment: Augment { flip: self.flip, shift: self.shift, zoom: self.zoom, jitter: self.jitter },
            balance: self.balance,
            mixup: self.mixup,
            seed: self.seed,
        })
    }

    fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        refuse_overwriting(&self.out, &[])?;
        let device = global.open()?;
        let from = self.from.as_deref().map(Start::read).transpose()?;
        let known = match &from {
            Some(Start::Classifier(classifier)) => Some(classifier.config()),
            Some(Start::Body(_)) if self.network.is_none() => {
                return Err(Error::config("--from", "does not say which network it holds; name it by --network"));
            }
            _ => None,
        };
        let network = self.network.or(known.map(|c| c.architecture)).unwrap_or(Architecture::LeNet);
        let recipe = self.recipe(network, matches!(from, Some(Start::Body(_))))?;
        let size = self.size.map_or(known.map_or([network.default_size(); 2], |c| c.preprocessing.size), |s| s.0);
        let all = self.data.read_at(Split::Train, Some(size))?;
        let data = if self.hold_out { all.part(Part::Training) } else { all.clone() };
        if self.hold_out && data.len() == all.len() {
            return Err(Error::config("--hold-out", "no class has the ten images of which one is held out; leave it out, or give more"));
        }
        let decision = if data.attributes.is_some() { Decision::Signs } else { Decision::Largest };
        let mut config = ClassifierConfig::new(network, data.class_names.clone(), decision, size);
        if let Some(known) = known {
            config.preprocessing = Preprocessing { size, ..known.preprocessing.clone() };
            // Both are of attributes: what the outputs mean goes along.
            if decision != Decision::Largest && known.decision != Decision::Largest {
                config.decision = known.decision;
            }
        }
        let mut progress: Option<Progress> = None;
        let (unfinished, mut saved) = (self.out.with_extension("unfinished.safetensors"), false);
        let mut report = |p: &TrainProgress| {
            let bar = progress.get_or_insert_with(|| Progress::new("classifier", 0, p.steps as u64));
            bar.at(p.step as u64, || format!("epoch {} loss {:.4}", p.epoch + 1, p.loss));
            // An interrupted run leaves its last whole epoch, beside what may be at its place.
            if let Some(classifier) = p.epoch_done {
                write_classifier(&unfinished, classifier)?;
                saved = true;
            }
            match stop_if_interrupted() {
                Err(_) if saved => Err(Error::Stopped { saved: unfinished.clone() }),
                stopped => stopped,
            }
        };
        let classifier = match &from {
            Some(from) => {
                let rng = &mut Random::new(recipe.seed, streams::INIT);
                let (start, same) = match from {
                    Start::Classifier(classifier) => (classifier.restarted(config.clone(), rng)?, classifier.same_outputs(&config)),
                    Start::Body(tensors) => (Classifier::over(config, tensors, rng).map_err(|problem| Error::config("--from", problem))?, false),
                };
                if !same {
                    println!("other outputs than in --from: the head starts anew");
                }
                fine_tune(start.to_device(&device)?, labelled(&data)?, &recipe, &mut report)?
            }
            None => train(&config, labelled(&data)?, &recipe, &device, &mut report)?,
        };
        if let Some(bar) = progress {
            bar.finish();
        }
        write_classifier(&self.out, &classifier)?;
        atomic::remove(&unfinished)?;
        println!("trained on {} images: {}", data.len(), self.out.display());
        let held_out = match self.hold_out {
            true => Some(judged(&classifier, &all.part(Part::HeldOut), "held-out images")?),
            false => None,
        };
        let seconds = start.elapsed().as_secs_f64();
        summary(
            global,
            &serde_json::json!({
                "images": data.len(), "out": self.out, "accuracy": held_out.as_ref().map(Evaluation::accuracy),
                "balanced_accuracy": held_out.as_ref().map(Evaluation::balanced_accuracy), "seconds": seconds, "device": device.to_string(),
            }),
        );
        Ok(())
    }
}

/// Judges labelled images and prints how well.
fn judged(classifier: &Classifier, data: &Dataset, what: &str) -> Result<Evaluation> {
    let images = labelled(data)?;
    if data.is_empty() {
        return Err(Error::config("--data", "holds no image"));
    }
    let mut progress = Progress::new("judge", 0, data.len() as u64);
    let result = evaluate(classifier, images, 250, &mut |done| {
        progress.at(done as u64, String::new);
        stop_if_interrupted()
    })?;
    progress.finish();
    let classes = &classifier.config().classes;
    let mut rows = vec![vec!["of".to_string(), "images".to_string(), "judged rightly".to_string()]];
    for (name, n, share) in result.shares(classes) {
        rows.push(vec![name, n.to_string(), format!("{:.2} %", 100.0 * share)]);
    }
    println!("{}", table(&rows));
    println!("accuracy {:.2} %, balanced {:.2} % on {} {what}", 100.0 * result.accuracy(), 100.0 * result.balanced_accuracy(), data.len());
    Ok(result)
}

impl EvalArgs {
    fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        let classifier = read_classifier(&self.data.classifier)?.to_device(&device)?;
        println!("it looks at {}", classifier.config().preprocessing);
        let data = self.data.data.read_at(Split::Test, Some(classifier.config().preprocessing.size))?;
        let data = data.in_order_of(&classifier.config().classes).part(self.part);
        let result = judged(&classifier, &data, "images")?;
        let seconds = start.elapsed().as_secs_f64();
        summary(
            global,
            &serde_json::json!({
                "accuracy": result.accuracy(), "balanced_accuracy": result.balanced_accuracy(), "balanced": result.balanced(),
                "images": data.len(), "seconds": seconds, "device": device.to_string(),
            }),
        );
        Ok(())
    }
}

impl StatsArgs {
    fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        refuse_overwriting(&self.out, &[&self.data.classifier])?;
        let classifier = read_classifier(&self.data.classifier)?.to_device(&device)?;
        let data = self.data.data.read_at(Split::Train, Some(classifier.config().preprocessing.size))?.in_order_of(&classifier.config().classes);
        collect_statistics(&classifier, &data)?.write(&self.out)?;
        println!("statistics of {} images: {}", data.len(), self.out.display());
        summary(global, &serde_json::json!({"images": data.len(), "out": self.out, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
        Ok(())
    }
}

impl DeclareArgs {
    fn run(&self, global: &Global) -> Result<()> {
        let classes: Vec<String> = match self.classes.as_str() {
            "celeba" => CELEBA.map(String::from).to_vec(),
            "afhq" => AFHQ.map(String::from).to_vec(),
            list => list.split(',').map(|name| name.trim().to_string()).collect(),
        };
        let size = self.size.0;
        let preprocessing = match self.pixels {
            Pixels::Unit => Preprocessing::rgb(size),
            Pixels::Symmetric => Preprocessing::symmetric(size),
            Pixels::Imagenet => Preprocessing { size, ..Preprocessing::imagenet(size[0]) },
            Pixels::Grey => Preprocessing { size, ..Preprocessing::grey(size[0]) },
        };
        let decision = match self.decision {
            DecisionName::Largest => Decision::Largest,
            DecisionName::Signs => Decision::Signs,
            DecisionName::Odds => Decision::Odds,
        };
        let classifier = Classifier::read_as(&self.input, ClassifierConfig { architecture: self.network, classes, decision, preprocessing })?;
        write_classifier(&self.out, &classifier)?;
        println!("{} outputs, it looks at {}: {}", classifier.n_classes(), classifier.config().preprocessing, self.out.display());
        summary(global, &serde_json::json!({"outputs": classifier.n_classes(), "out": self.out}));
        Ok(())
    }
}
