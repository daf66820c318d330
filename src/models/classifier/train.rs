//! Training of classifiers on labelled images in memory.

use super::{Classifier, ClassifierConfig};
use crate::autograd::{Order, Var, grad_or_zero};
use crate::error::{Error, Result};
use crate::nn::softmax::cross_entropy;
use crate::nn::{AdamState, ParamSlab};
use crate::ops::optimizer::{Adam, Pull};
use crate::ops::random::Random;
use crate::tensor::Tensor;

/// Streams of one seed.
const INITIAL: u64 = 0;
const ORDER: u64 = 1;
const AUGMENT: u64 = 2;

/// Labelled images in memory, `[N, H, W, C]`, C 1 or 3, 0 to 255.
#[derive(Clone, Copy)]
pub struct LabelledImages<'a> {
    pub pixels: &'a [u8],
    pub size: [usize; 2],
    pub channels: usize,
    /// Class of each image.
    pub labels: &'a [usize],
}

impl LabelledImages<'_> {
    fn check(&self, n_classes: usize) -> Result<()> {
        let [h, w] = self.size;
        if self.labels.is_empty() || self.pixels.len() != self.labels.len() * h * w * self.channels {
            return Err(Error::shape("labelled images", format!("{} labels for {} bytes of {h}x{w}x{}", self.labels.len(), self.pixels.len(), self.channels)));
        }
        if let Some(k) = self.labels.iter().find(|k| **k >= n_classes) {
            return Err(Error::config("labels", format!("class {k} where the classifier has {n_classes} classes")));
        }
        Ok(())
    }

    /// The images at `indices` in [−1, 1], each moved as `augment` draws.
    fn batch(&self, indices: &[usize], augment: Augment, rng: &mut Random) -> Tensor {
        let ([h, w], c) = (self.size, self.channels);
        let mut out = Vec::with_capacity(indices.len() * h * w * c);
        for i in indices {
            let image = &self.pixels[i * h * w * c..][..h * w * c];
            let flip = augment.flip && rng.unit() < 0.5;
            let [dy, dx] = if augment.shift == 0 { [0, 0] } else { [(); 2].map(|_| rng.below(2 * augment.shift + 1) as isize - augment.shift as isize) };
            for y in 0..h {
                let from_y = (y as isize + dy).clamp(0, h as isize - 1) as usize;
                for x in 0..w {
                    let x = if flip { w - 1 - x } else { x };
                    let from_x = (x as isize + dx).clamp(0, w as isize - 1) as usize;
                    let pixel = &image[(from_y * w + from_x) * c..][..c];
                    out.extend(pixel.iter().map(|v| *v as f32 / 127.5 - 1.0));
                }
            }
        }
        Tensor::from_vec(&[indices.len(), h, w, c], out)
    }
}

/// Random changes of training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Augment {
    /// Mirrors every second image.
    pub flip: bool,
    /// Moves by up to this many pixels per axis, the border repeated: a crop of a padded image.
    pub shift: usize,
}

/// How the parameters move.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    Adam(Adam),
}

/// Numbers of one training run.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Recipe {
    pub optimizer: Optimizer,
    pub batch: usize,
    pub epochs: usize,
    pub augment: Augment,
    pub seed: u64,
}

impl Recipe {
    /// The paper's for LeNet on MNIST (appendix A.1.2).
    pub fn mnist() -> Recipe {
        Recipe {
            optimizer: Optimizer::Adam(Adam { lr: 2e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
            batch: 256,
            epochs: 12,
            augment: Augment::default(),
            seed: 0,
        }
    }
}

/// Where a training run stands, after each step.
pub struct TrainProgress {
    /// Steps done, of `steps`.
    pub step: usize,
    pub steps: usize,
    /// Epoch of that step, from 0.
    pub epoch: usize,
    /// Loss of that step's batch.
    pub loss: f64,
}

/// Trains a classifier from its initial values. `progress` is called after every step and ends the run by an error.
/// The result depends on configuration, data and recipe only.
pub fn train(config: &ClassifierConfig, data: LabelledImages, recipe: &Recipe, progress: &mut dyn FnMut(&TrainProgress) -> Result<()>) -> Result<Classifier> {
    config.check()?;
    data.check(config.classes.len())?;
    if recipe.batch == 0 {
        return Err(Error::config("--batch", "0 images per step; ask for at least 1"));
    }
    let mut params = ParamSlab::init(&config.layout(), &mut Random::new(recipe.seed, INITIAL));
    let Optimizer::Adam(adam) = recipe.optimizer;
    let mut state = AdamState::new(params.layout(), adam);
    let (mut order, mut moves) = (Random::new(recipe.seed, ORDER), Random::new(recipe.seed, AUGMENT));
    let per_epoch = data.labels.len().div_ceil(recipe.batch);
    let steps = recipe.epochs * per_epoch;
    for epoch in 0..recipe.epochs {
        for (i, indices) in order.permutation(data.labels.len()).chunks(recipe.batch).enumerate() {
            let step = epoch * per_epoch + i + 1;
            let labels: Vec<usize> = indices.iter().map(|i| data.labels[*i]).collect();
            let images = data.batch(indices, recipe.augment, &mut moves);
            let (loss, gradients) = loss_and_gradients(config, &params, &images, &labels)?;
            if !loss.is_finite() {
                let problem = format!("the loss is {loss}; lower the learning rate");
                return Err(Error::Diverged { what: "classifier training".into(), step, problem });
            }
            state.step(&mut params, None, &gradients, Pull::None)?;
            progress(&TrainProgress { step, steps, epoch, loss })?;
        }
    }
    Classifier::new(config.clone(), params)
}

fn loss_and_gradients(config: &ClassifierConfig, params: &ParamSlab, images: &Tensor, labels: &[usize]) -> Result<(f64, Vec<Var>)> {
    let leaves = params.leaves();
    let x = Var::constant(config.preprocessing.apply(images)?);
    let (logits, _) = config.forward(&leaves, &x)?;
    let loss = cross_entropy(&logits, labels)?;
    Ok((loss.item()?, grad_or_zero(&[&loss], &leaves.all(), Order::Last)?))
}

/// How a classifier does on labelled images.
pub struct Evaluation {
    /// `confusion[truth][said]`: numbers of images.
    pub confusion: Vec<Vec<usize>>,
}

impl Evaluation {
    /// Share of images that were named rightly.
    pub fn accuracy(&self) -> f64 {
        let right: usize = self.confusion.iter().enumerate().map(|(k, row)| row[k]).sum();
        right as f64 / self.confusion.iter().flatten().sum::<usize>().max(1) as f64
    }

    /// Mean over the classes that occur of the share of their images that were named rightly.
    pub fn balanced_accuracy(&self) -> f64 {
        let recalls: Vec<f64> = (self.confusion.iter().enumerate())
            .filter_map(|(k, row)| {
                let n = row.iter().sum::<usize>();
                (n > 0).then(|| row[k] as f64 / n as f64)
            })
            .collect();
        recalls.iter().sum::<f64>() / recalls.len().max(1) as f64
    }
}

/// Judges all of `data`, `batch` images at a time.
pub fn evaluate(classifier: &Classifier, data: LabelledImages, batch: usize) -> Result<Evaluation> {
    let k = classifier.n_classes();
    data.check(k)?;
    let mut confusion = vec![vec![0; k]; k];
    let all: Vec<usize> = (0..data.labels.len()).collect();
    for indices in all.chunks(batch.max(1)) {
        let images = data.batch(indices, Augment::default(), &mut Random::new(0, 0));
        for (i, (said, _)) in indices.iter().zip(classifier.predict(&images)?) {
            confusion[data.labels[*i]][said] += 1;
        }
    }
    Ok(Evaluation { confusion })
}
