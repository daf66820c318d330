//! Networks that judge images: what they look at, what their outputs mean, and how they are trained.

mod file;
mod preprocessing;
mod train;

pub use file::{AFHQ, CELEBA, Start};
pub use preprocessing::{Colours, Preprocessing};
pub use train::{Augment, Evaluation, LabelledImages, Labels, Optimizer, Recipe, Schedule, TrainProgress, evaluate, fine_tune, train};

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use super::inception::{self, Block, Inception};
use super::resnet::ResNet;
use super::{afhq_cnn, celeba_heads, lenet};
use crate::autograd::Var;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::batch_norm::Normalise;
use crate::nn::{Layout, ParamSlab, Params};
use crate::ops::random::Random;
use crate::tensor::{DType, Tensor};

/// The network of a classifier; written as its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Architecture {
    LeNet,
    /// The official CelebA network: one head per attribute.
    CelebaHeads,
    /// The official AFHQ network of the final evaluation.
    AfhqCnn,
    ResNet(ResNet),
    /// A linear layer over FID's Inception, which ImageNet has trained, up to this block.
    Inception(Block),
}

impl Architecture {
    /// All of them, by the names that files and options use.
    pub const ALL: [(&str, Architecture); 10] = [
        ("lenet", Architecture::LeNet),
        ("celeba_heads", Architecture::CelebaHeads),
        ("afhq_cnn", Architecture::AfhqCnn),
        ("resnet18", Architecture::ResNet(ResNet::ResNet18)),
        ("resnet50", Architecture::ResNet(ResNet::ResNet50)),
        ("resnext50_32x4d", Architecture::ResNet(ResNet::ResNeXt50)),
        ("inception64", Architecture::Inception(Block::D64)),
        ("inception192", Architecture::Inception(Block::D192)),
        ("inception768", Architecture::Inception(Block::D768)),
        ("inception2048", Architecture::Inception(Block::D2048)),
    ];

    /// Side of the images that it is trained on where nothing else is said.
    pub fn default_size(self) -> usize {
        match self {
            Architecture::LeNet => lenet::SIZE,
            Architecture::AfhqCnn => afhq_cnn::SIZE,
            Architecture::CelebaHeads | Architecture::ResNet(_) => 64,
            Architecture::Inception(_) => 128,
        }
    }
}

impl FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Architecture> {
        Architecture::ALL.into_iter().find(|(n, _)| *n == name).map(|(_, a)| a).ok_or_else(|| {
            Error::config("--network", format!("{name:?} is not one of {}", Architecture::ALL.map(|(n, _)| n).join(", ")))
        })
    }
}

impl TryFrom<String> for Architecture {
    type Error = Error;

    fn try_from(name: String) -> Result<Architecture> {
        name.parse()
    }
}

impl From<Architecture> for String {
    fn from(network: Architecture) -> String {
        let (name, _) = Architecture::ALL.into_iter().find(|(_, a)| *a == network).expect("the list is whole");
        name.to_string()
    }
}

/// What the outputs mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// One class per image: the largest output.
    #[default]
    Largest,
    /// Attributes that an image has or has not, each by itself: outputs from 0 upwards. Trained towards −1 and 1.
    Signs,
    /// The same, but outputs are the log-odds of yes against no, trained by cross-entropy.
    Odds,
}

/// All that must be known to use a classifier's parameters; stored with them.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClassifierConfig {
    pub architecture: Architecture,
    /// One name per output.
    pub classes: Vec<String>,
    #[serde(default)]
    pub decision: Decision,
    pub preprocessing: Preprocessing,
}

impl ClassifierConfig {
    /// The paper's feedback classifier for MNIST.
    pub fn mnist() -> ClassifierConfig {
        ClassifierConfig {
            architecture: Architecture::LeNet,
            classes: (0..10).map(|d| d.to_string()).collect(),
            decision: Decision::Largest,
            preprocessing: Preprocessing::grey(lenet::SIZE),
        }
    }

    /// A ResNet that tells `classes` apart in images of `size` px.
    pub fn resnet(network: ResNet, classes: Vec<String>, size: usize) -> ClassifierConfig {
        ClassifierConfig { architecture: Architecture::ResNet(network), classes, decision: Decision::Largest, preprocessing: Preprocessing::imagenet(size) }
    }

    /// A network that tells `classes` apart, or attributes if `decision` says so, in images of `size` (height, width),
    /// with the preprocessing that it is usual with.
    pub fn new(architecture: Architecture, classes: Vec<String>, decision: Decision, size: [usize; 2]) -> ClassifierConfig {
        let preprocessing = match architecture {
            Architecture::LeNet => Preprocessing { size, ..Preprocessing::grey(size[0]) },
            Architecture::AfhqCnn => Preprocessing::rgb(size),
            Architecture::CelebaHeads | Architecture::Inception(_) => Preprocessing::symmetric(size),
            Architecture::ResNet(_) => Preprocessing { size, ..Preprocessing::imagenet(size[0]) },
        };
        let decision = if architecture == Architecture::CelebaHeads { Decision::Odds } else { decision };
        ClassifierConfig { architecture, classes, decision, preprocessing }
    }

    /// The table of its parameters.
    pub fn layout(&self) -> Arc<Layout> {
        match self.architecture {
            Architecture::LeNet => lenet::layout(self.classes.len()),
            Architecture::CelebaHeads => celeba_heads::layout(self.classes.len()),
            Architecture::AfhqCnn => afhq_cnn::layout(self.classes.len()),
            Architecture::ResNet(net) => net.layout(self.classes.len()),
            Architecture::Inception(last) => inception::classifier_layout(last, self.classes.len()),
        }
    }

    /// The table of its running statistics.
    pub fn buffers(&self) -> Arc<Layout> {
        match self.architecture {
            Architecture::LeNet | Architecture::Inception(_) => Arc::new(Layout::new()),
            Architecture::CelebaHeads => celeba_heads::buffers(self.classes.len()),
            Architecture::AfhqCnn => afhq_cnn::buffers(),
            Architecture::ResNet(net) => net.buffers(),
        }
    }

    fn check(&self) -> Result<()> {
        let least = if self.decision == Decision::Largest { 2 } else { 1 };
        if self.classes.len() < least {
            return Err(Error::config("classifier", format!("{} class: a classifier tells at least two apart", self.classes.len())));
        }
        self.preprocessing.check()?;
        match self.architecture {
            Architecture::LeNet if self.preprocessing.size != [lenet::SIZE; 2] || self.preprocessing.colours != Colours::Grey => {
                Err(Error::config("classifier", format!("LeNet takes grey {0}x{0} images, not {1}", lenet::SIZE, self.preprocessing)))
            }
            Architecture::CelebaHeads if self.decision != Decision::Odds => {
                Err(Error::config("classifier", "the network with a head per attribute decides by odds"))
            }
            Architecture::AfhqCnn if !self.preprocessing.size.iter().all(|s| afhq_cnn::fits(*s)) || self.preprocessing.colours != Colours::Rgb => {
                Err(Error::config("classifier", format!("the AFHQ network takes RGB {0}x{0} images, not {1}", afhq_cnn::SIZE, self.preprocessing)))
            }
            Architecture::ResNet(_) | Architecture::CelebaHeads if self.preprocessing.size.iter().any(|s| *s < 32) || self.preprocessing.colours != Colours::Rgb => {
                Err(Error::config("classifier", format!("a ResNet takes RGB images of at least 32 px, not {}", self.preprocessing)))
            }
            Architecture::Inception(_) if self.preprocessing.size.iter().any(|s| *s < inception::SMALLEST) || self.preprocessing.colours != Colours::Rgb => {
                let least = inception::SMALLEST;
                Err(Error::config("classifier", format!("an Inception takes RGB images of at least {least} px, not {}", self.preprocessing)))
            }
            _ => Ok(()),
        }
    }

    /// Logits and penultimate features of preprocessed images.
    fn forward(&self, p: &Params, norm: Normalise, x: &Var) -> Result<(Var, Var)> {
        match self.architecture {
            Architecture::LeNet => lenet::forward(p, x),
            Architecture::CelebaHeads => celeba_heads::forward(self.classes.len(), p, norm, x),
            Architecture::AfhqCnn => afhq_cnn::forward(p, norm, x),
            Architecture::ResNet(net) => net.forward(p, norm, x),
            Architecture::Inception(last) => inception::classify(last, p, norm, x),
        }
    }
}

/// A classifier that judges: always in evaluation mode, whatever it was trained with.
#[derive(Clone, Debug)]
pub struct Classifier {
    config: ClassifierConfig,
    params: ParamSlab,
    buffers: ParamSlab,
}

/// What a classifier says about a batch.
pub struct Judgement {
    decision: Decision,
    /// One score per class, `[N, classes]`, on the host; log-probabilities where the network ends in a log-softmax.
    pub logits: Tensor,
    /// The penultimate layer, `[N, F]`, on the host.
    pub features: Tensor,
}

impl Classifier {
    /// From parameters and running statistics in the layouts of `config`.
    pub fn new(config: ClassifierConfig, params: ParamSlab, buffers: ParamSlab) -> Result<Classifier> {
        config.check()?;
        if params.values().len() != config.layout().len() || buffers.values().len() != config.buffers().len() {
            return Err(Error::shape("classifier", "parameters of another network"));
        }
        Ok(Classifier { config, params, buffers })
    }

    /// At its initial values.
    pub fn init(config: ClassifierConfig, rng: &mut Random) -> Result<Classifier> {
        let (params, buffers) = (ParamSlab::init(&config.layout(), rng), ParamSlab::init(&config.buffers(), rng));
        Classifier::new(config, params, buffers)
    }

    /// Whether the outputs are those of `config`.
    pub fn same_outputs(&self, config: &ClassifierConfig) -> bool {
        config.classes == self.config.classes && config.decision == self.config.decision
    }

    /// This network with the outputs and the input of `config`, of the same architecture. Its head goes along where both
    /// have the same outputs; another starts from its initial values.
    pub fn restarted(&self, config: ClassifierConfig, rng: &mut Random) -> Result<Classifier> {
        if config.architecture != self.config.architecture {
            return Err(Error::config("--from", "holds a network of another architecture; leave --network away"));
        }
        if self.same_outputs(&config) {
            return Classifier::new(config, self.params.clone(), self.buffers.clone());
        }
        Classifier::with_body(config, &self.to_torch(), rng).map_err(|problem| Error::config("--from", problem))
    }

    /// The network of `config` over a body that was trained for something else, given in PyTorch's names and shapes: a
    /// state dict of torchvision's, or for an Inception the file of FID. The head starts from its initial values. The
    /// error names what does not fit; the caller knows the file.
    pub fn over(config: ClassifierConfig, tensors: &BTreeMap<String, Tensor>, rng: &mut Random) -> std::result::Result<Classifier, String> {
        match config.architecture {
            Architecture::Inception(_) => Classifier::with_body(config, &Inception::from_torch(tensors)?.params().to_torch(), rng),
            _ => Classifier::with_body(config, tensors, rng),
        }
    }

    fn with_body(config: ClassifierConfig, given: &BTreeMap<String, Tensor>, rng: &mut Random) -> std::result::Result<Classifier, String> {
        // What a network without outputs has is its body.
        let body = ClassifierConfig { classes: Vec::new(), ..config.clone() };
        let mut all = Classifier::init(config.clone(), rng).map_err(|e| e.to_string())?.to_torch();
        for segment in body.layout().segments().iter().chain(body.buffers().segments()) {
            if all[&segment.name].shape() == segment.torch_shape {
                let found = given.get(&segment.name).ok_or_else(|| format!("lacks {}, which this network has; --network says which it is", segment.name))?;
                all.insert(segment.name.clone(), found.clone());
            }
        }
        Classifier::from_torch(config, &all)
    }

    /// From tensors in PyTorch's names and shapes. The error names what does not fit; the caller knows the file.
    pub fn from_torch(config: ClassifierConfig, tensors: &BTreeMap<String, Tensor>) -> std::result::Result<Classifier, String> {
        config.check().map_err(|e| e.to_string())?;
        let params = ParamSlab::from_torch(&config.layout(), tensors, "the classifier")?;
        let buffers = ParamSlab::from_torch(&config.buffers(), tensors, "the classifier")?;
        Ok(Classifier { config, params, buffers })
    }

    /// Parameters and running statistics in PyTorch's names and shapes. PyTorch also wants a count of batches beside
    /// running statistics, which it uses only without a momentum: it is 0.
    pub fn to_torch(&self) -> BTreeMap<String, Tensor> {
        let mut all = self.params.to_torch();
        let buffers = self.buffers.to_torch();
        let counts = buffers.keys().filter_map(|name| name.strip_suffix("running_mean"));
        all.extend(counts.map(|layer| (format!("{layer}num_batches_tracked"), Tensor::zeros(&[], DType::F32))));
        all.extend(buffers);
        all
    }

    pub fn config(&self) -> &ClassifierConfig {
        &self.config
    }

    /// The same classifier on another device: it judges where its parameters are.
    pub fn to_device(&self, device: &Device) -> Result<Classifier> {
        Ok(Classifier { config: self.config.clone(), params: self.params.to_device(device)?, buffers: self.buffers.to_device(device)? })
    }

    pub fn params(&self) -> &ParamSlab {
        &self.params
    }

    pub fn n_classes(&self) -> usize {
        self.config.classes.len()
    }

    /// Index of a class by name; the error lists the names.
    pub fn class(&self, name: &str) -> Result<usize> {
        self.config.classes.iter().position(|c| c == name).ok_or_else(|| {
            Error::config("--class", format!("{name:?} is not one of {}", self.config.classes.join(", ")))
        })
    }

    /// Logits and features of `images` `[N, H, W, 3 or 1]` in [−1, 1], judged where the parameters are; no history.
    pub fn judge(&self, images: &Tensor) -> Result<Judgement> {
        let params = self.params.constants();
        let x = Var::constant(self.config.preprocessing.apply(&images.to_device(&params.device())?)?);
        let running = self.buffers.constants();
        let (logits, features) = self.config.forward(&params, Normalise::Running(&running), &x)?;
        let host = |v: Var| v.value().to_device(&Device::Cpu);
        Ok(Judgement { decision: self.config.decision, logits: host(logits)?, features: host(features)? })
    }

    /// `[N, classes]` for `images` `[N, H, W, 3 or 1]` in [−1, 1].
    pub fn logits(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.judge(images)?.logits)
    }

    /// Penultimate features `[N, F]` for `images` `[N, H, W, 3 or 1]` in [−1, 1].
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.judge(images)?.features)
    }

    /// The most likely class of each image, and its probability.
    pub fn predict(&self, images: &Tensor) -> Result<Vec<(usize, f64)>> {
        Ok(self.judge(images)?.predictions())
    }
}

impl Judgement {
    /// The class with the largest output for each image (the first of equals), and its probability by softmax.
    pub fn predictions(&self) -> Vec<(usize, f64)> {
        let rows = self.logits.to_f64_vec();
        rows.chunks_exact(self.logits.dim(1).max(1))
            .map(|row| {
                let best = (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
                (best, 1.0 / row.iter().map(|v| (v - row[best]).exp()).sum::<f64>())
            })
            .collect()
    }

    /// How sure the classifier is of each image: the probability of the class that it names, or the mean over the
    /// attributes of the probability of what it says. Scores that were trained towards ±1 are read as log-odds, which
    /// makes them look less sure than they are.
    pub fn confidences(&self) -> Vec<f64> {
        match self.decision {
            Decision::Largest => self.predictions().into_iter().map(|(_, p)| p).collect(),
            Decision::Signs | Decision::Odds => {
                let k = self.logits.dim(1).max(1);
                let sure = |row: &[f64]| row.iter().map(|v| 1.0 / (1.0 + (-v.abs()).exp())).sum::<f64>() / k as f64;
                self.logits.to_f64_vec().chunks_exact(k).map(sure).collect()
            }
        }
    }

    /// Whether each image is of that class, or has that attribute.
    pub fn has(&self, class: usize) -> Vec<bool> {
        match self.decision {
            Decision::Largest => self.predictions().iter().map(|(k, _)| *k == class).collect(),
            Decision::Signs | Decision::Odds => self.logits.to_f64_vec().iter().skip(class).step_by(self.logits.dim(1).max(1)).map(|v| *v >= 0.0).collect(),
        }
    }
}
