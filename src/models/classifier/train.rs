//! Training of classifiers on labelled images.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Classifier, ClassifierConfig, Decision};
use crate::autograd::{Order, Var, add, grad_or_zero, mean, mul, reshape, scale, softplus, square, sub};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::ahead::ReadAhead;
use crate::io::pictures::Pictures;
use crate::nn::batch_norm::{MOMENTUM, Moments, Normalise};
use crate::nn::softmax::cross_entropy;
use crate::nn::{AdamState, Adamax, AdamaxState, Layout, ParamSlab};
use crate::ops::elementwise::{Map, Zip, map, zip};
use crate::ops::layout::concat;
use crate::ops::optimizer::{Adam, Pull};
use crate::ops::random::Random;
use crate::tensor::Tensor;

/// Streams of one seed.
const INITIAL: u64 = 0;
const ORDER: u64 = 1;
const AUGMENT: u64 = 2;
const DROPOUT: u64 = 3;
const MIXING: u64 = 4;

/// Images and what is known about each.
#[derive(Clone, Copy)]
pub struct LabelledImages<'a> {
    pub pictures: &'a Pictures,
    pub labels: Labels<'a>,
}

/// What is known about each image.
#[derive(Clone, Copy, Debug)]
pub enum Labels<'a> {
    /// Its class.
    Classes(&'a [u32]),
    /// `[N, attributes]`: 1 where it has the attribute, 0 where not.
    Attributes(&'a [u8]),
}

impl Labels<'_> {
    /// The mean number of images per class over that of each class.
    fn class_weights(&self, classes: usize) -> Result<Vec<f32>> {
        let Labels::Classes(all) = self else {
            return Err(Error::config("--balance", "it is for classes; these images have attributes"));
        };
        let mut counts = vec![0_usize; classes];
        all.iter().for_each(|c| counts[*c as usize] += 1);
        let mean = all.len() as f64 / classes as f64;
        Ok(counts.into_iter().map(|n| if n == 0 { 0.0 } else { (mean / n as f64) as f32 }).collect())
    }
}

impl LabelledImages<'_> {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    fn check(&self, config: &ClassifierConfig) -> Result<()> {
        let k = config.classes.len();
        let labels = match (self.labels, config.decision) {
            (Labels::Classes(l), Decision::Largest) => l.len(),
            (Labels::Attributes(l), Decision::Signs | Decision::Odds) => l.len() / k,
            _ => return Err(Error::config("labels", "classes go with a classifier of classes, attributes with one of attributes")),
        };
        if self.is_empty() || self.len() != labels {
            return Err(Error::shape("labelled images", format!("{labels} labels for {} images", self.len())));
        }
        match self.labels {
            Labels::Classes(l) => l.iter().find(|c| **c as usize >= k).map_or(Ok(()), |c| {
                Err(Error::config("labels", format!("class {c} where the classifier has {k} classes")))
            }),
            Labels::Attributes(l) => l.iter().find(|v| **v > 1).map_or(Ok(()), |v| {
                Err(Error::config("labels", format!("{v} for an attribute, which is 0 or 1")))
            }),
        }
    }

    /// Reads the images at `indices`, each as `moves` says, in [−1, 1], and blends each with the next one's share of
    /// 1 − `kept`; those that follow may be read ahead.
    fn reader(&self, indices: Vec<usize>, moves: Vec<Move>, kept: f32) -> impl FnOnce() -> Result<Batch> + Send + use<> {
        let pictures = self.pictures.clone();
        move || {
            let [h, w, c] = pictures.shape();
            let images = pictures.read(&indices)?;
            let mut out = Vec::with_capacity(images.len());
            for (image, m) in images.chunks_exact((h * w * c).max(1)).zip(moves) {
                m.apply(image, [h, w, c], &mut out);
            }
            if kept < 1.0 {
                let mut next = out.clone();
                next.rotate_left(h * w * c);
                out.iter_mut().zip(next).for_each(|(v, n)| *v = kept * *v + (1.0 - kept) * n);
            }
            Ok(Batch { images: Tensor::from_vec(&[indices.len(), h, w, c], out), indices, kept })
        }
    }
}

/// Some of the images, in [−1, 1], with their numbers.
struct Batch {
    images: Tensor,
    indices: Vec<usize>,
    /// Share of the image itself; the rest is of the next in the batch.
    kept: f32,
}

/// How one image is changed.
#[derive(Clone, Copy)]
struct Move {
    flip: bool,
    /// Pixels down and right that the image is read from.
    by: [isize; 2],
    /// Side of the part that is read, over the image's.
    side: f32,
    /// Factor on the values about 0, which is mid-grey, and what is added then.
    contrast: f32,
    brightness: f32,
}

impl Move {
    const NONE: Move = Move { flip: false, by: [0, 0], side: 1.0, contrast: 1.0, brightness: 0.0 };

    /// Adds the changed image `[h, w, c]` in [−1, 1] to `out`.
    fn apply(self, image: &[u8], [h, w, c]: [usize; 3], out: &mut Vec<f32>) {
        // The neighbours of where position `i` of `n` is read, and the second one's share.
        let source = |i: usize, n: usize, by: isize| {
            let centre = (n as f32 - 1.0) / 2.0;
            let at = ((i as f32 - centre) * self.side + centre + by as f32).clamp(0.0, n as f32 - 1.0);
            (at as usize, (at as usize + 1).min(n - 1), at.fract())
        };
        let columns: Vec<_> = (0..w).map(|x| source(if self.flip { w - 1 - x } else { x }, w, self.by[1])).collect();
        for y in 0..h {
            let (above, below, share_y) = source(y, h, self.by[0]);
            for &(left, right, share_x) in &columns {
                for k in 0..c {
                    let at = |y: usize, x: usize| image[(y * w + x) * c + k] as f32 / 127.5 - 1.0;
                    let row = |y: usize| (1.0 - share_x) * at(y, left) + share_x * at(y, right);
                    let value = (1.0 - share_y) * row(above) + share_y * row(below);
                    out.push((value * self.contrast + self.brightness).clamp(-1.0, 1.0));
                }
            }
        }
    }
}

/// Random changes of training images.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Augment {
    /// Mirrors every second image.
    pub flip: bool,
    /// Moves by up to this many pixels per axis, the border repeated: a crop of a padded image.
    pub shift: usize,
    /// Shows parts, or with a border more than the image, whose side is off by up to this share.
    pub zoom: f32,
    /// Changes contrast and brightness by up to this share of their range.
    pub jitter: f32,
}

impl Augment {
    fn draw(self, rng: &mut Random) -> Move {
        let flip = self.flip && rng.unit() < 0.5;
        let by = if self.shift == 0 { [0, 0] } else { [(); 2].map(|_| rng.below(2 * self.shift + 1) as isize - self.shift as isize) };
        let mut within = |most: f32| if most == 0.0 { 0.0 } else { most * (2.0 * rng.unit() - 1.0) };
        Move { flip, by, side: 1.0 + within(self.zoom), contrast: 1.0 + within(self.jitter), brightness: within(self.jitter) }
    }
}

/// How the parameters move.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    Adam(Adam),
    Adamax(Adamax),
}

/// An optimiser at work.
enum State {
    Adam(Box<AdamState>),
    Adamax(AdamaxState),
}

impl Optimizer {
    fn start(self, layout: &Arc<Layout>, device: &Device) -> Result<State> {
        match self {
            Optimizer::Adam(adam) => AdamState::new(layout, adam).to_device(device).map(|s| State::Adam(Box::new(s))),
            Optimizer::Adamax(adamax) => AdamaxState::new(layout, adamax).to_device(device).map(State::Adamax),
        }
    }
}

impl State {
    fn lr(&self) -> f64 {
        match self {
            State::Adam(s) => s.adam.lr,
            State::Adamax(s) => s.adamax.lr,
        }
    }

    /// One step at `factor` times the optimiser's learning rate, after a share of it times `decay` is taken off every
    /// parameter: the decoupled decay of AdamW (Loshchilov and Hutter, ICLR 2019), in PyTorch's order.
    fn step(&mut self, params: &mut ParamSlab, gradients: &[Var], factor: f64, decay: f64) -> Result<()> {
        if decay > 0.0 {
            let scale = 1.0 - self.lr() * factor * decay;
            let decayed = map(params.values(), Map::Affine { scale, shift: 0.0 })?;
            *params.values_mut() = decayed;
        }
        match self {
            State::Adam(s) => {
                let full = s.adam.lr;
                s.adam.lr = full * factor;
                let result = s.step(params, None, gradients, Pull::None);
                s.adam.lr = full;
                result.map(|_| ())
            }
            State::Adamax(s) => {
                let full = s.adamax.lr;
                s.adamax.lr = full * factor;
                let result = s.step(params, gradients);
                s.adamax.lr = full;
                result
            }
        }
    }
}

/// How the learning rate goes over a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    Constant,
    /// Half a cosine from the given rate to 0.
    Cosine,
}

impl Schedule {
    /// Factor on the learning rate of `step`, counted from 0, of `steps`.
    fn factor(self, step: usize, steps: usize) -> f64 {
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * step as f64 / steps.max(1) as f64).cos(),
        }
    }
}

/// Numbers of one training run.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Recipe {
    pub optimizer: Optimizer,
    pub schedule: Schedule,
    /// Share of a parameter, times the learning rate, that a step takes off beside its gradient: AdamW's weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// The result is a running mean of parameters and statistics over the steps, of which one step keeps this share: the
    /// plain mean at first. 0 takes the last values.
    #[serde(default)]
    pub ema_decay: f64,
    pub batch: usize,
    pub epochs: usize,
    pub augment: Augment,
    /// Every class weighs the same in the loss, however many images it has. Attributes have no classes to balance.
    pub balance: bool,
    /// Mixup (Zhang et al., ICLR 2018): images and their losses are blended in pairs, by shares from Beta(mixup, mixup).
    /// Below 1; 0 blends nothing.
    pub mixup: f32,
    pub seed: u64,
}

/// A number from Beta(α, α), 0 < α ≤ 1, by Jöhnk's method: of u^{1/α} and v^{1/α} with a sum of at most 1, the share of the
/// first. A quarter and more of the draws are taken.
fn beta(alpha: f32, rng: &mut Random) -> f32 {
    loop {
        let [u, v] = [(); 2].map(|_| rng.unit().powf(1.0 / alpha));
        if u + v <= 1.0 && u + v > 0.0 {
            return u / (u + v);
        }
    }
}

impl Recipe {
    /// The paper's for LeNet on MNIST (appendix A.1.2), with the learning rate going to 0. At a constant 2e-3 the
    /// accuracy after an epoch moves by a tenth of a percent either way, and one run ended at 98.87 %.
    pub fn mnist() -> Recipe {
        Recipe {
            optimizer: Optimizer::Adam(Adam { lr: 2e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
            schedule: Schedule::Cosine,
            weight_decay: 0.0,
            ema_decay: 0.0,
            batch: 256,
            epochs: 12,
            augment: Augment::default(),
            balance: false,
            mixup: 0.0,
            seed: 0,
        }
    }

    /// Over a body that was trained for something else, which large steps would undo: Adam, batch 32, 5 epochs.
    pub fn fine_tuning() -> Recipe {
        Recipe {
            optimizer: Optimizer::Adam(Adam { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
            batch: 32,
            epochs: 5,
            ..Recipe::mnist()
        }
    }

    /// The paper's for CelebA's attributes (appendix A.1.2): Adamax, batch 50, 3 epochs, mirrored and moved.
    pub fn celeba() -> Recipe {
        Recipe {
            optimizer: Optimizer::Adamax(Adamax { lr: 2e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            ema_decay: 0.0,
            batch: 50,
            epochs: 3,
            augment: Augment { flip: true, shift: 8, ..Augment::default() },
            balance: false,
            mixup: 0.0,
            seed: 0,
        }
    }
}

/// Where a training run stands, after each step.
pub struct TrainProgress<'a> {
    /// The classifier as it is, after the last step of an epoch.
    pub epoch_done: Option<&'a Classifier>,
    /// Steps done, of `steps`.
    pub step: usize,
    pub steps: usize,
    /// Epoch of that step, from 0.
    pub epoch: usize,
    /// Loss of that step's batch.
    pub loss: f64,
}

/// Trains a classifier from its initial values on `device`. `progress` is called after every step and ends the run by an
/// error. The result depends on configuration, data, recipe and kind of device only.
pub fn train(
    config: &ClassifierConfig,
    data: LabelledImages,
    recipe: &Recipe,
    device: &Device,
    progress: &mut dyn FnMut(&TrainProgress) -> Result<()>,
) -> Result<Classifier> {
    let start = Classifier::init(config.clone(), &mut Random::new(recipe.seed, INITIAL))?;
    fine_tune(start.to_device(device)?, data, recipe, progress)
}

/// As `train`, from a given classifier and where that is.
pub fn fine_tune(start: Classifier, data: LabelledImages, recipe: &Recipe, progress: &mut dyn FnMut(&TrainProgress) -> Result<()>) -> Result<Classifier> {
    let Classifier { config, params, buffers } = start;
    let (mut params, mut buffers) = (params.deep_clone()?, buffers.deep_clone()?);
    data.check(&config)?;
    if recipe.batch == 0 {
        return Err(Error::config("--batch", "0 images per step; ask for at least 1"));
    }
    if recipe.epochs == 0 {
        return Err(Error::config("--epochs", "0 trains nothing; use at least 1"));
    }
    let weights = recipe.balance.then(|| data.labels.class_weights(config.classes.len())).transpose()?;
    let mut state = recipe.optimizer.start(params.layout(), &params.values().device())?;
    if !(0.0..=1.0).contains(&recipe.mixup) {
        return Err(Error::config("--mixup", format!("{} must lie in 0..1", recipe.mixup)));
    }
    if !(recipe.weight_decay.is_finite() && recipe.weight_decay >= 0.0) {
        return Err(Error::config("--weight-decay", format!("{} must be 0 or more", recipe.weight_decay)));
    }
    if !(0.0..1.0).contains(&recipe.ema_decay) {
        return Err(Error::config("--ema-decay", format!("{} must be at least 0 and less than 1", recipe.ema_decay)));
    }
    if ![recipe.augment.zoom, recipe.augment.jitter].iter().all(|v| (0.0..1.0).contains(v)) {
        return Err(Error::config("--zoom, --jitter", "are shares: at least 0 and less than 1"));
    }
    let mut mean = (recipe.ema_decay > 0.0).then(|| Ok((params.deep_clone()?, buffers.deep_clone()?))).transpose()?;
    let [mut order, mut moves, mut dropout, mut mixing] = [ORDER, AUGMENT, DROPOUT, MIXING].map(|stream| Random::new(recipe.seed, stream));
    let per_epoch = data.len().div_ceil(recipe.batch);
    let steps = recipe.epochs * per_epoch;
    let batches = (0..recipe.epochs).flat_map(|_| {
        let order = order.permutation(data.len());
        order.chunks(recipe.batch).map(<[usize]>::to_vec).collect::<Vec<_>>()
    });
    let jobs = batches.map(|indices| {
        let drawn = indices.iter().map(|_| recipe.augment.draw(&mut moves)).collect();
        let kept = if recipe.mixup > 0.0 { beta(recipe.mixup, &mut mixing) } else { 1.0 };
        data.reader(indices, drawn, kept)
    });
    for (done, batch) in ReadAhead::new(jobs).enumerate() {
        let (batch, step) = (batch?, done + 1);
        let mut moments = BTreeMap::new();
        let norm = Normalise::Batch { moments: &mut moments, dropout: &mut dropout };
        let (loss, gradients) = loss_and_gradients(&config, &params, norm, &batch, data.labels, weights.as_deref())?;
        if !loss.is_finite() {
            let problem = format!("the loss is {loss}; lower the learning rate");
            return Err(Error::Diverged { what: "classifier training".into(), step, problem });
        }
        state.step(&mut params, &gradients, recipe.schedule.factor(done, steps), recipe.weight_decay)?;
        take_in(&mut buffers, &moments)?;
        if let Some((of_params, of_buffers)) = &mut mean {
            let share = (1.0 - recipe.ema_decay).max(1.0 / step as f64);
            move_towards(of_params, params.values(), share)?;
            move_towards(of_buffers, buffers.values(), share)?;
        }
        let whole = match step.is_multiple_of(per_epoch) {
            true => {
                let (params, buffers) = mean.as_ref().map_or((&params, &buffers), |(p, b)| (p, b));
                Some(Classifier::new(config.clone(), params.deep_clone()?, buffers.deep_clone()?)?)
            }
            false => None,
        };
        progress(&TrainProgress { epoch_done: whole.as_ref(), step, steps, epoch: done / per_epoch, loss })?;
    }
    let (params, buffers) = mean.unwrap_or((params, buffers));
    Classifier::new(config, params, buffers)
}

/// `slab ← slab + share (target − slab)`
fn move_towards(slab: &mut ParamSlab, target: &Tensor, share: f64) -> Result<()> {
    let change = zip(target, slab.values(), Zip::Sub)?;
    let moved = zip(slab.values(), &map(&change, Map::Affine { scale: share, shift: 0.0 })?, Zip::Add)?;
    *slab.values_mut() = moved;
    Ok(())
}

/// Loss of a batch and its gradient by every parameter; `norm` takes the batch's statistics of every normalisation.
fn loss_and_gradients(config: &ClassifierConfig, params: &ParamSlab, norm: Normalise, batch: &Batch, labels: Labels, weights: Option<&[f32]>) -> Result<(f64, Vec<Var>)> {
    let (leaves, device) = (params.leaves(), params.values().device());
    let x = Var::constant(config.preprocessing.apply(&batch.images.to_device(&device)?)?);
    let (outputs, _) = config.forward(&leaves, norm, &x)?;
    let mut whole = loss(config, &outputs, labels, &batch.indices, weights)?;
    if batch.kept < 1.0 {
        let mut next = batch.indices.clone();
        next.rotate_left(1);
        let other = loss(config, &outputs, labels, &next, weights)?;
        whole = add(&scale(&whole, batch.kept as f64)?, &scale(&other, 1.0 - batch.kept as f64)?)?;
    }
    Ok((whole.item()?, grad_or_zero(&[&whole], &leaves.all(), Order::Last)?))
}

/// Mean loss `[1]` of outputs for images with the labels of those at `indices`.
fn loss(config: &ClassifierConfig, outputs: &Var, labels: Labels, indices: &[usize], weights: Option<&[f32]>) -> Result<Var> {
    let loss = match labels {
        Labels::Classes(all) => cross_entropy(outputs, &indices.iter().map(|i| all[*i] as usize).collect::<Vec<_>>(), weights)?,
        Labels::Attributes(all) => {
            let k = config.classes.len();
            let signs: Vec<f32> = indices.iter().flat_map(|i| &all[i * k..][..k]).map(|v| if *v > 0 { 1.0 } else { -1.0 }).collect();
            let signs = Var::constant(Tensor::from_vec(&[indices.len(), k], signs).to_device(&outputs.value().device())?);
            match config.decision {
                Decision::Odds => mean(&softplus(&scale(&mul(outputs, &signs)?, -1.0)?)?)?,
                _ => mean(&square(&sub(outputs, &signs)?)?)?,
            }
        }
    };
    reshape(&loss, &[1])
}

/// `running ← running + momentum (batch − running)`
fn take_in(buffers: &mut ParamSlab, moments: &BTreeMap<String, Moments>) -> Result<()> {
    if moments.is_empty() {
        return Ok(());
    }
    let of_batch = |name: &str| {
        let (layer, kind) = name.rsplit_once('.').expect("running statistics belong to a layer");
        let found = moments.get(layer).expect("every layer with running statistics normalises");
        if kind == "running_mean" { &found.mean } else { &found.var }
    };
    let layout = buffers.layout().clone();
    let parts: Vec<&Tensor> = layout.segments().iter().map(|s| of_batch(&s.name)).collect();
    move_towards(buffers, &concat(&parts, 0)?, MOMENTUM)
}

/// How a classifier does on labelled images.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// `[truth][said]`: numbers of images; one matrix over the classes, or one of no and yes per attribute.
    pub confusion: Vec<Vec<Vec<usize>>>,
}

impl Evaluation {
    /// Share of decisions that were right.
    pub fn accuracy(&self) -> f64 {
        let right: usize = self.confusion.iter().flat_map(|m| m.iter().enumerate().map(|(k, row)| row[k])).sum();
        right as f64 / self.confusion.iter().flatten().flatten().sum::<usize>().max(1) as f64
    }

    /// For each matrix, the mean over the classes that occur of the share of their images that were named rightly.
    pub fn balanced(&self) -> Vec<f64> {
        let one = |matrix: &Vec<Vec<usize>>| {
            let recalls: Vec<f64> = (matrix.iter().enumerate())
                .filter_map(|(k, row)| {
                    let n = row.iter().sum::<usize>();
                    (n > 0).then(|| row[k] as f64 / n as f64)
                })
                .collect();
            recalls.iter().sum::<f64>() / recalls.len().max(1) as f64
        };
        self.confusion.iter().map(one).collect()
    }

    /// For each class or attribute its name, the number of its images, and the share of them that were judged rightly:
    /// of an attribute, the balanced share of all images.
    pub fn shares(&self, names: &[String]) -> Vec<(String, usize, f64)> {
        match &self.confusion[..] {
            [matrix] if matrix.len() == names.len() => {
                let of = |k: usize| matrix[k].iter().sum::<usize>();
                names.iter().enumerate().map(|(k, name)| (name.clone(), of(k), matrix[k][k] as f64 / of(k).max(1) as f64)).collect()
            }
            _ => names.iter().zip(&self.confusion).zip(self.balanced()).map(|((name, m), share)| (name.clone(), m[1].iter().sum(), share)).collect(),
        }
    }

    /// Mean of `balanced`.
    pub fn balanced_accuracy(&self) -> f64 {
        self.balanced().iter().sum::<f64>() / self.confusion.len().max(1) as f64
    }
}

/// Judges all of `data`, `batch` images at a time; `progress` gets the number of images done and may end the work.
pub fn evaluate(classifier: &Classifier, data: LabelledImages, batch: usize, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Evaluation> {
    let k = classifier.n_classes();
    data.check(classifier.config())?;
    let mut confusion = match data.labels {
        Labels::Classes(_) => vec![vec![vec![0; k]; k]],
        Labels::Attributes(_) => vec![vec![vec![0; 2]; 2]; k],
    };
    let all: Vec<usize> = (0..data.len()).collect();
    let jobs = all.chunks(batch.max(1)).map(|indices| data.reader(indices.to_vec(), vec![Move::NONE; indices.len()], 1.0));
    for read in ReadAhead::new(jobs) {
        let Batch { images, indices, .. } = read?;
        let said = classifier.judge(&images)?;
        match data.labels {
            Labels::Classes(truth) => {
                for (i, (said, _)) in indices.iter().zip(said.predictions()) {
                    confusion[0][truth[*i] as usize][said] += 1;
                }
            }
            Labels::Attributes(truth) => {
                for (a, matrix) in confusion.iter_mut().enumerate() {
                    for (i, said) in indices.iter().zip(said.has(a)) {
                        matrix[truth[i * k + a] as usize][said as usize] += 1;
                    }
                }
            }
        }
        progress(indices.last().map_or(0, |i| i + 1))?;
    }
    Ok(Evaluation { confusion })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn moved(m: Move) -> Vec<f32> {
        // Columns 0, 51, … 255 in three rows.
        let image: Vec<u8> = (0..3).flat_map(|_| (0..6).map(|x| 51 * x)).collect();
        let mut out = Vec::new();
        m.apply(&image, [3, 6, 1], &mut out);
        out.iter().take(6).map(|v| 2.5 * (v + 1.0)).collect()
    }

    #[test]
    fn images_move_as_they_are_told() {
        let near = |m: Move, expected: [f32; 6]| {
            let got = moved(m);
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} instead of {expected:?}");
        };
        near(Move::NONE, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        near(Move { flip: true, ..Move::NONE }, [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
        near(Move { by: [7, 2], ..Move::NONE }, [2.0, 3.0, 4.0, 5.0, 5.0, 5.0]);
        near(Move { side: 0.5, ..Move::NONE }, [1.25, 1.75, 2.25, 2.75, 3.25, 3.75]);
        near(Move { side: 1.2, ..Move::NONE }, [0.0, 0.7, 1.9, 3.1, 4.3, 5.0]);
        near(Move { contrast: 0.5, brightness: 0.2, ..Move::NONE }, [1.75, 2.25, 2.75, 3.25, 3.75, 4.25]);
    }

    /// Without a gradient neither optimiser moves a parameter, so that what is left is the decay.
    #[test]
    fn weights_decay_beside_the_gradient() {
        let config = ClassifierConfig::mnist();
        let none: Vec<Var> = config.layout().segments().iter().map(|s| Var::constant(Tensor::zeros(&s.shape, DType::F32))).collect();
        for optimizer in [Recipe::mnist().optimizer, Recipe::celeba().optimizer] {
            let mut params = ParamSlab::init(&config.layout(), &mut Random::new(1, 0));
            let before = params.as_slice().to_vec();
            let mut state = optimizer.start(params.layout(), &Device::Cpu).unwrap();
            state.step(&mut params, &none, 0.5, 0.0).unwrap();
            assert_eq!(params.as_slice(), before);
            state.step(&mut params, &none, 0.5, 100.0).unwrap();
            // 1 − 2e-3 · 0.5 · 100
            assert!(params.as_slice().iter().zip(before).all(|(p, b)| (p - 0.9 * b).abs() <= 1e-7 * b.abs()));
        }
    }

    #[test]
    fn shares_of_blends_are_symmetric_and_mostly_near_the_ends() {
        let mut rng = Random::new(1, 0);
        let drawn: Vec<f32> = (0..4000).map(|_| beta(0.2, &mut rng)).collect();
        assert!(drawn.iter().all(|v| (0.0..=1.0).contains(v)));
        let mean = drawn.iter().sum::<f32>() / 4000.0;
        // The variance of Beta(α, α) is 1 / (4 (2α + 1)); the mean of 4000 is within five of its deviations.
        assert!((mean - 0.5).abs() < 5.0 * (1.0_f32 / 5.6 / 4000.0).sqrt(), "{mean}");
        let variance = drawn.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 4000.0;
        assert!((variance - 1.0 / 5.6).abs() < 0.02, "{variance}");
    }
}
