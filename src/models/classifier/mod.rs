//! Networks that judge images: what they look at, what their outputs mean, and how they are trained.

mod preprocessing;
mod train;

pub use preprocessing::{Colours, Preprocessing};
pub use train::{Augment, Evaluation, LabelledImages, Optimizer, Recipe, TrainProgress, evaluate, train};

use std::collections::BTreeMap;
use std::sync::Arc;

use super::lenet;
use crate::autograd::Var;
use crate::error::{Error, Result};
use crate::nn::{Layout, ParamSlab, Params};
use crate::tensor::Tensor;

/// The network of a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    #[serde(rename = "lenet")]
    LeNet,
}

/// All that must be known to use a classifier's parameters; stored with them.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClassifierConfig {
    pub architecture: Architecture,
    /// One name per output.
    pub classes: Vec<String>,
    pub preprocessing: Preprocessing,
}

impl ClassifierConfig {
    /// The paper's feedback classifier for MNIST.
    pub fn mnist() -> ClassifierConfig {
        ClassifierConfig {
            architecture: Architecture::LeNet,
            classes: (0..10).map(|d| d.to_string()).collect(),
            preprocessing: Preprocessing::grey(lenet::SIZE),
        }
    }

    /// The table of its parameters.
    pub fn layout(&self) -> Arc<Layout> {
        match self.architecture {
            Architecture::LeNet => lenet::layout(self.classes.len()),
        }
    }

    fn check(&self) -> Result<()> {
        if self.classes.len() < 2 {
            return Err(Error::config("classifier", format!("{} class: a classifier tells at least two apart", self.classes.len())));
        }
        self.preprocessing.check()?;
        match self.architecture {
            Architecture::LeNet if self.preprocessing.size != [lenet::SIZE; 2] || self.preprocessing.colours != Colours::Grey => {
                Err(Error::config("classifier", format!("LeNet takes grey {0}x{0} images, not {1}", lenet::SIZE, self.preprocessing)))
            }
            _ => Ok(()),
        }
    }

    /// Logits and penultimate features of preprocessed images.
    fn forward(&self, p: &Params, x: &Var) -> Result<(Var, Var)> {
        match self.architecture {
            Architecture::LeNet => lenet::forward(p, x),
        }
    }
}

/// A classifier that judges: always in evaluation mode, whatever it was trained with.
#[derive(Clone, Debug)]
pub struct Classifier {
    config: ClassifierConfig,
    params: ParamSlab,
}

/// What a classifier says about a batch.
pub struct Judgement {
    /// One score per class, `[N, classes]`; log-probabilities where the network ends in a log-softmax.
    pub logits: Tensor,
    /// The penultimate layer, `[N, F]`.
    pub features: Tensor,
}

impl Classifier {
    pub fn new(config: ClassifierConfig, params: ParamSlab) -> Result<Classifier> {
        config.check()?;
        Ok(Classifier { config, params })
    }

    /// From tensors in PyTorch's names and shapes. The error names what does not fit; the caller knows the file.
    pub fn from_torch(config: ClassifierConfig, tensors: &BTreeMap<String, Tensor>) -> std::result::Result<Classifier, String> {
        config.check().map_err(|e| e.to_string())?;
        let params = ParamSlab::from_torch(&config.layout(), tensors, "the classifier")?;
        Ok(Classifier { config, params })
    }

    /// The parameters in PyTorch's names and shapes.
    pub fn to_torch(&self) -> BTreeMap<String, Tensor> {
        self.params.to_torch()
    }

    pub fn config(&self) -> &ClassifierConfig {
        &self.config
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

    /// Logits and features of `images` `[N, H, W, 3 or 1]` in [−1, 1]; no history.
    pub fn judge(&self, images: &Tensor) -> Result<Judgement> {
        let x = Var::constant(self.config.preprocessing.apply(images)?);
        let (logits, features) = self.config.forward(&self.params.constants(), &x)?;
        Ok(Judgement { logits: logits.value().clone(), features: features.value().clone() })
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
    /// The most likely class of each image (the first of equals), and its probability by softmax.
    pub fn predictions(&self) -> Vec<(usize, f64)> {
        let rows = self.logits.to_f64_vec();
        rows.chunks_exact(self.logits.dim(1).max(1))
            .map(|row| {
                let best = (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
                (best, 1.0 / row.iter().map(|v| (v - row[best]).exp()).sum::<f64>())
            })
            .collect()
    }
}
