//! L7': one iteration of StyleGAN2 training, for pre-training and both stages of the method.
//!
//! Order within an iteration, as rosinality train.py: D (adversarial), D (R1, every 16), G (adversarial, with the
//! stage's regulariser), G (path length, every 4), EMA. Regularisers fire at iteration 0. All randomness of an
//! iteration is drawn beforehand into `Inputs`, so an iteration is a function.

pub mod checkpoint;
mod inputs;
mod parts;
mod replay;
pub mod ranks;
mod run;
pub mod steps;

pub use inputs::{BatchInputs, Inputs, PathInputs};
pub use parts::goes_in_halves;
pub use run::{Batches, DatasetBatches, Progress, TensorBatches, run};

use parts::{Cut, Part};
use ranks::Ranks;

use crate::autograd::{Order, Var, grad_or_zero, grad_seeded, or_zero, scale};
use crate::device::{Beside, Device};
use crate::error::{Error, Result};
use crate::losses::{discriminator_loss, generator_loss, path_lengths, path_penalty, r1_penalty};
use crate::models::stylegan2::{Discriminator, Generator, StyleGan2Config};
use crate::nn::{AdamState, ParamSlab, Params};
use crate::ops::layout;
use crate::ops::optimizer::{Adam, Pull, Sum};
use crate::ops::random::Random;
use crate::tensor::{DType, Tensor};

/// Numbers of the training loop; the defaults are rosinality's and the paper's.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Hyper {
    pub batch: usize,
    /// Learning rate before the lazy-regularisation ratios.
    pub lr: f64,
    pub r1_weight: f64,
    pub r1_every: u64,
    pub path_weight: f64,
    pub path_every: u64,
    /// The path-length batch is `batch / path_shrink`.
    pub path_shrink: usize,
    /// EMA of the generator per iteration.
    pub ema_decay: f64,
    /// Probability that a batch mixes two styles.
    pub mixing: f64,
    /// Images through the networks at a time: less memory for the same gradients. `None`: by the networks' size.
    #[serde(default)]
    pub at_once: Option<usize>,
    /// How many of the images that D judges as fake are given, not generated: the rows of a batch behind the real ones.
    /// With marked negatives there, D learns that they are not wanted even when G hardly makes any more (data redaction,
    /// Kong & Chaudhuri 2023, arXiv 2206.14389).
    #[serde(default)]
    pub given_fakes: usize,
    /// G's step judges the fakes that D's has just seen, where the reference draws others: G runs once less per iteration.
    /// Left out of files where it is off, so that runs from before there was such a choice can be resumed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub same_fakes: bool,
}

impl Default for Hyper {
    fn default() -> Hyper {
        Hyper {
            batch: 16,
            lr: 0.002,
            r1_weight: 10.0,
            r1_every: 16,
            path_weight: 2.0,
            path_every: 4,
            path_shrink: 2,
            ema_decay: 0.5_f64.powf(32.0 / 10_000.0),
            mixing: 0.9,
            at_once: None,
            given_fakes: 0,
            same_fakes: false,
        }
    }
}

impl Hyper {
    /// Adam for a network that is also stepped every `every` iterations by its lazy regulariser.
    fn adam(&self, every: u64) -> Adam {
        let ratio = every as f64 / (every as f64 + 1.0);
        Adam { lr: self.lr * ratio, beta1: 0.0, beta2: 0.99_f64.powf(ratio), eps: 1e-8 }
    }

    pub fn generator_adam(&self) -> Adam {
        self.adam(self.path_every)
    }

    pub fn discriminator_adam(&self) -> Adam {
        self.adam(self.r1_every)
    }

    /// The same numbers if they are usable.
    pub fn checked(self) -> Result<Hyper> {
        let positive = [("--lr", self.lr), ("--ema-decay", self.ema_decay)];
        if let Some((name, v)) = positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return Err(Error::config(*name, format!("{v} must be a positive number")));
        }
        if !(self.r1_weight >= 0.0 && self.path_weight >= 0.0 && self.ema_decay < 1.0 && (0.0..=1.0).contains(&self.mixing)) {
            return Err(Error::config("--r1, --path, --mixing", "weights must be ≥ 0, mixing in 0..1, EMA decay below 1"));
        }
        if !Discriminator::accepts_batch(self.batch) || self.path_shrink == 0 || self.r1_every == 0 || self.path_every == 0 {
            return Err(Error::config("--batch", format!("{} must be 1, 2, 3 or a multiple of 4, and intervals at least 1", self.batch)));
        }
        if self.at_once == Some(0) {
            return Err(Error::config("--at-once", "must be at least 1"));
        }
        if self.given_fakes >= self.batch {
            return Err(Error::config("--negatives-as-fakes", format!("{} must be below the batch of {}: some fakes must be the generator's", self.given_fakes, self.batch)));
        }
        Ok(self)
    }
}

/// Everything that training changes: what a checkpoint holds.
#[derive(Clone, Debug)]
pub struct GanState {
    pub config: StyleGan2Config,
    pub g: ParamSlab,
    pub g_ema: ParamSlab,
    pub d: ParamSlab,
    pub g_optim: AdamState,
    pub d_optim: AdamState,
    /// Iterations done.
    pub iteration: u64,
    /// `[1]`, beside the networks.
    pub mean_path_length: Tensor,
    pub rng: Random,
}

impl GanState {
    /// A fresh pair; the EMA starts as a copy of the generator.
    pub fn init(config: &StyleGan2Config, hyper: &Hyper, seed: u64) -> GanState {
        let (g, d) = (Generator::new(config.clone()), Discriminator::new(config.clone()));
        let mut init = Random::new(seed, streams::INIT);
        let g_slab = ParamSlab::init(g.layout(), &mut init);
        GanState {
            config: config.clone(),
            g_ema: g_slab.deep_clone().expect("a slab on the host can be copied"),
            d: ParamSlab::init(d.layout(), &mut init),
            g_optim: AdamState::new(g.layout(), hyper.generator_adam()),
            d_optim: AdamState::new(d.layout(), hyper.discriminator_adam()),
            g: g_slab,
            iteration: 0,
            mean_path_length: Tensor::zeros(&[1], DType::F32),
            rng: Random::new(seed, streams::TRAINING),
        }
    }
}

impl GanState {
    /// Where the networks live and training runs.
    pub fn device(&self) -> Device {
        self.g.values().device()
    }

    /// The same state on another device.
    pub fn to_device(&self, device: &Device) -> Result<GanState> {
        Ok(GanState {
            config: self.config.clone(),
            g: self.g.to_device(device)?,
            g_ema: self.g_ema.to_device(device)?,
            d: self.d.to_device(device)?,
            g_optim: self.g_optim.to_device(device)?,
            d_optim: self.d_optim.to_device(device)?,
            iteration: self.iteration,
            mean_path_length: self.mean_path_length.to_device(device)?,
            rng: self.rng,
        })
    }
}

/// Streams of random numbers by use: two uses never share numbers, whatever the seeds. All trainings of one seed (of a model,
/// the first adaptation of seed 0, stage 2) are one use: they see the same latents.
pub mod streams {
    pub const INIT: u64 = 1;
    pub const TRAINING: u64 = 2;
    pub const BATCHES: u64 = 3;
    pub const FEEDBACK: u64 = 4;
    pub const FISHER: u64 = 5;
    pub const EVALUATION: u64 = 6;
    pub const SAMPLES: u64 = 7;
    pub const TOY: u64 = 8;
    pub const RESTART: u64 = 9;
}

/// What one iteration measured.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Losses {
    pub d: f64,
    pub g: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r1: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<f64>,
    pub mean_path_length: f64,
    /// The regulariser's own number (EWC penalty, repulsion distance after the iteration), if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regulariser: Option<f64>,
}

/// What one iteration measured, where it was computed: reading waits for a GPU.
#[derive(Clone)]
pub(crate) struct Measured {
    d: Tensor,
    g: Tensor,
    r1: Option<Tensor>,
    path: Option<Tensor>,
    regulariser: Option<Sum>,
}

impl Measured {
    /// The numbers, while `state` is the one that the iteration left. The regulariser observes its sum.
    fn read(&self, state: &GanState, regulariser: &mut dyn Regulariser) -> Result<Losses> {
        let number = |t: &Option<Tensor>| t.as_ref().map(Tensor::item).transpose();
        let losses = Losses {
            d: self.d.item()?,
            g: self.g.item()?,
            r1: number(&self.r1)?,
            path: number(&self.path)?,
            mean_path_length: state.mean_path_length.item()?,
            regulariser: self.regulariser.as_ref().map(Sum::read).transpose()?,
        };
        let Losses { d, g, r1, path, .. } = losses;
        let diverged = |problem: String| Err(Error::Diverged { what: "training".into(), step: state.iteration as usize, problem });
        if ![Some(d), Some(g), r1, path].into_iter().flatten().all(f64::is_finite) {
            return diverged(format!("a loss is not a finite number (D {d}, G {g}, R1 {r1:?}, path {path:?}); lower --lr, or raise --r1"));
        }
        if let Some(sum) = losses.regulariser {
            regulariser.observe(sum, state.iteration)?;
            if !sum.is_finite() {
                return diverged(format!("the regulariser is {sum}, not a finite number; lower its weight, or --lr"));
            }
        }
        Ok(losses)
    }

    /// A copy in memory of its own.
    fn deep_clone(&self) -> Result<Measured> {
        let copy = |t: &Option<Tensor>| t.as_ref().map(Tensor::deep_clone).transpose();
        Ok(Measured { d: self.d.deep_clone()?, g: self.g.deep_clone()?, r1: copy(&self.r1)?, path: copy(&self.path)?, regulariser: self.regulariser.clone() })
    }
}

/// What a stage adds to the generator's step: the optimiser pass applies `pull`; `path_pull` is what the path-length
/// step applies: nothing, or a measurement.
pub trait Regulariser {
    fn pull(&self) -> Pull<'_>;
    fn path_pull(&self) -> Pull<'_> {
        Pull::None
    }
    /// `sum` is what the last pass with a pull has reduced. On the CPU this is called after every iteration, on a GPU
    /// when somebody reads the losses.
    fn observe(&mut self, _sum: f64, _iteration: u64) -> Result<()> {
        Ok(())
    }
    /// Whether the generator's parameter of that name is trained; a frozen one gets no gradient, and so keeps its value.
    fn trains(&self, _parameter: &str) -> bool {
        true
    }
}

/// Plain training.
pub struct NoRegulariser;

impl Regulariser for NoRegulariser {
    fn pull(&self) -> Pull<'_> {
        Pull::None
    }
}

/// The networks and numbers of a training run.
pub struct Trainer {
    pub generator: Generator,
    pub discriminator: Discriminator,
    pub hyper: Hyper,
    /// On a GPU, whether `run` records iterations as graphs (the default), or queues them op by op.
    pub record: bool,
    /// The others that train with this process.
    ranks: Option<Ranks>,
}

impl Trainer {
    pub fn new(config: &StyleGan2Config, hyper: Hyper) -> Trainer {
        Trainer { generator: Generator::new(config.clone()), discriminator: Discriminator::new(config.clone()), hyper, record: true, ranks: None }
    }

    /// The same, each batch shared with other ranks. All must start from the same state and be given the same batches.
    pub fn with_ranks(self, ranks: Ranks) -> Result<Trainer> {
        let (batch, group) = (self.hyper.batch, Discriminator::group(self.hyper.batch));
        if !(batch / group).is_multiple_of(ranks.world()) || !(batch / self.hyper.path_shrink).is_multiple_of(ranks.world()) {
            let problem = format!("{batch} images do not part into {} equal shares of whole groups of {group}; use a multiple of {}", ranks.world(), 4 * ranks.world());
            return Err(Error::config("--batch", problem));
        }
        Ok(Trainer { ranks: Some(ranks), ..self })
    }

    /// One whole iteration on `state`, and what it measured.
    pub fn iteration(&self, state: &mut GanState, inputs: &Inputs, regulariser: &mut dyn Regulariser) -> Result<Losses> {
        let measured = self.queue(state, inputs, regulariser)?;
        state.iteration += 1;
        measured.read(state, regulariser)
    }

    /// The work of one iteration. Nothing in it waits for a GPU, and nothing but `inputs` and memory that `state` keeps is
    /// read, so it can be recorded. The iterations of `state` are not counted.
    fn queue(&self, state: &mut GanState, inputs: &Inputs, regulariser: &dyn Regulariser) -> Result<Measured> {
        let shared = self.shared(state, inputs, regulariser)?;
        let (d, mut d_pass) = self.discriminator_step(state, inputs, shared.as_deref())?;
        let mut r1 = None;
        if inputs.r1 {
            d_pass.join()?;
            let penalty;
            (penalty, d_pass) = self.r1_step(state, &inputs.real)?;
            r1 = Some(penalty);
        }
        let (g, sum) = self.generator_step(state, inputs, shared, regulariser, d_pass)?;
        let (path, path_sum) = inputs.path.as_ref().map(|path| self.path_step(state, path, regulariser)).transpose()?.unzip();
        Ok(Measured { d, g, r1, path, regulariser: path_sum.flatten().or(sum) })
    }

    fn rank(&self) -> usize {
        self.ranks.as_ref().map_or(0, Ranks::rank)
    }

    /// How a batch whose images meet in groups of `members` goes through the networks.
    fn cut(&self, device: &Device, n: usize, members: usize) -> Cut {
        let ranks = self.ranks.as_ref().map_or(1, Ranks::world);
        match self.hyper.at_once {
            Some(images) => Cut::of(n, members, images, ranks),
            None => Cut::by_size(self.generator.config(), device, n, members, ranks),
        }
    }

    /// This rank's parts of a batch that D sees.
    fn own_parts(&self, device: &Device, n: usize) -> Cut {
        self.cut(device, n, Discriminator::group(n)).owned_by(self.rank())
    }

    /// The whole batch's loss and gradients, of this rank's parts of them.
    fn whole(&self, (loss, grads): (Tensor, Vec<Var>)) -> Result<(Tensor, Vec<Var>)> {
        let Some(ranks) = &self.ranks else { return Ok((loss, grads)) };
        // One slab, so that one exchange moves everything.
        let all: Vec<&Tensor> = grads.iter().map(Var::value).chain([&loss]).collect();
        let flat = all.iter().map(|t| t.reshape(&[t.len()])).collect::<Result<Vec<_>>>()?;
        let sum = ranks.sum(layout::concat(&flat.iter().collect::<Vec<_>>(), 0)?)?;
        let mut at = 0;
        let mut next = |t: &Tensor| {
            at += t.len();
            sum.segment(at - t.len(), t.shape())
        };
        let grads = grads.iter().map(|g| next(g.value()).map(Var::constant)).collect::<Result<_>>()?;
        Ok((next(&loss)?, grads))
    }

    /// The fakes of both steps, where they are the same, a graph for each part. Parts of which only one graph may exist at a
    /// time make theirs twice.
    fn shared(&self, state: &GanState, inputs: &Inputs, regulariser: &dyn Regulariser) -> Result<Option<Vec<Shared>>> {
        let cut = self.own_parts(&state.device(), inputs.real.dim(0));
        if inputs.d.is_some() || self.ranks.is_some() || !cut.is_held_at_once() {
            return Ok(None);
        }
        let params = leaves_of(&state.g, regulariser, &cut);
        let made = |i: usize| generate(&self.generator, &params[i], &inputs.g, &cut.parts[i]);
        let images = steps::each(cut.parts.len(), cut.side_by_side, &made)?;
        Ok(Some(params.into_iter().zip(images).map(|(params, images)| Shared { params, images }).collect()))
    }

    fn discriminator_step(&self, state: &mut GanState, inputs: &Inputs, shared: Option<&[Shared]>) -> Result<(Tensor, DiscriminatorPass)> {
        let (g, cut) = (state.g.constants(), self.own_parts(&state.device(), inputs.real.dim(0)));
        let n = inputs.generated();
        let (generator, discriminator) = (&self.generator, &self.discriminator);
        let of = |batch: &BatchInputs, part: &Part| Ok(generate(generator, &g, batch, part)?.value().clone());
        let made: Box<dyn Fn(&Part) -> Result<Tensor> + Sync + '_> = match (shared, &inputs.d) {
            (Some(shared), _) => {
                let images = cut.in_order(&shared.iter().map(|s| s.images.value()).collect::<Vec<_>>())?.rows(0, n)?;
                Box::new(move |part| part.of(&images))
            }
            (None, Some(batch)) => Box::new(|part| of(batch, part)),
            (None, None) => {
                let batch = inputs.g.first(n)?;
                Box::new(move |part| of(&batch, part))
            }
        };
        let params = cut.parts.iter().map(|_| state.d.leaves()).collect();
        let (loss, grads) = self.whole(steps::in_parts(params, &cut, &|i, p| {
            let part = &cut.parts[i];
            let fake = match &inputs.given_fakes {
                None => made(part)?,
                Some(given) => part.of_made_and_given(n, &*made, given)?,
            };
            let both = Var::constant(layout::concat(&[&part.of(&inputs.real)?, &fake], 0)?);
            drop(fake);
            discriminator_loss(&discriminator.forward(p, &both, 2)?)
        })?)?;
        Ok((loss, DiscriminatorPass::queue(state, &grads)?))
    }

    fn r1_step(&self, state: &mut GanState, real: &Tensor) -> Result<(Tensor, DiscriminatorPass)> {
        let weight = self.hyper.r1_weight / 2.0 * self.hyper.r1_every as f64;
        let (discriminator, cut) = (&self.discriminator, self.own_parts(&state.device(), real.dim(0)));
        let params = cut.parts.iter().map(|_| state.d.leaves()).collect();
        let (loss, grads) = self.whole(steps::in_parts(params, &cut, &|i, p| {
            let real = Var::leaf(cut.parts[i].of(real)?);
            scale(&r1_penalty(&discriminator.forward(p, &real, 1)?, &real)?, weight)
        })?)?;
        Ok((steps::unweighted(loss, weight)?, DiscriminatorPass::queue(state, &grads)?))
    }

    /// `d_pass` is done beside G's forward pass: D is needed for what G has made.
    fn generator_step(
        &self,
        state: &mut GanState,
        inputs: &Inputs,
        shared: Option<Vec<Shared>>,
        regulariser: &dyn Regulariser,
        d_pass: DiscriminatorPass,
    ) -> Result<(Tensor, Option<Sum>)> {
        let (d, cut) = (state.d.constants(), self.own_parts(&state.device(), inputs.real.dim(0)));
        let (generator, discriminator) = (&self.generator, &self.discriminator);
        let judged = |fake: &Var| {
            d_pass.join()?;
            generator_loss(&discriminator.forward(&d, fake, 1)?)
        };
        let found = match shared {
            Some(shared) => {
                let (params, images): (Vec<Params>, Vec<Var>) = shared.into_iter().map(|s| (s.params, s.images)).unzip();
                steps::in_parts(params, &cut, &|i, _| judged(&images[i]))?
            }
            None => {
                let params = leaves_of(&state.g, regulariser, &cut);
                steps::in_parts(params, &cut, &|i, p| judged(&generate(generator, p, &inputs.g, &cut.parts[i])?))?
            }
        };
        let (loss, grads) = self.whole(found)?;
        // The EMA follows the last generator step of the iteration.
        let ema = inputs.path.is_none().then_some((&mut state.g_ema, self.hyper.ema_decay));
        let sum = state.g_optim.step(&mut state.g, ema, &grads, regulariser.pull())?;
        Ok((loss, sum))
    }

    fn path_step(&self, state: &mut GanState, inputs: &PathInputs, regulariser: &dyn Regulariser) -> Result<(Tensor, Option<Sum>)> {
        let weight = self.hyper.path_weight * self.hyper.path_every as f64;
        // Images have nothing to do with each other here; one rank alone cuts them as D's where they can be cut so.
        let n = inputs.y.dim(0);
        let together = self.ranks.is_none() && Discriminator::accepts_batch(n);
        let cut = self.cut(&state.device(), n, if together { Discriminator::group(n) } else { 1 });
        let own = cut.owned_by(self.rank());
        let (grads, penalty, running_mean) = {
            let params = leaves_of(&state.g, regulariser, &own);
            let lengths = |i: usize, order: Order| lengths(&self.generator, &params[i], inputs, &own.parts[i], order);
            // The penalty mixes the lengths of all images. Where only one graph may exist at a time, each is made again for its
            // gradients.
            let graphs = match own.is_held_at_once() {
                true => Some(steps::each(own.parts.len(), own.side_by_side, &|i| lengths(i, Order::Differentiable))?),
                false => None,
            };
            let known = match &graphs {
                Some(graphs) => graphs.iter().map(|g| g.value().clone()).collect(),
                None => steps::each(own.parts.len(), false, &|i| Ok(lengths(i, Order::Last)?.value().clone()))?,
            };
            let all = Var::leaf(self.all_lengths(&cut, known)?);
            let path = path_penalty(&all, &state.mean_path_length)?;
            let seeds = grad_or_zero(&[&scale(&path.penalty, weight)?], &[&all], Order::Last)?.remove(0);
            let grads = steps::sum_of_parts(own.parts.len(), own.side_by_side, &|i| {
                let part = &own.parts[i];
                let lengths = match &graphs {
                    Some(graphs) => graphs[i].clone(),
                    None => lengths(i, Order::Differentiable)?,
                };
                let seed = Var::constant(seeds.value().rows(part.first, part.len())?);
                let targets = params[i].all();
                or_zero(grad_seeded(&[&lengths], &[seed], &targets, Order::Last)?, &targets)
            })?;
            (grads, path.penalty.value().clone(), path.running_mean)
        };
        let (_, grads) = self.whole((penalty.clone(), grads))?;
        state.mean_path_length.assign(&running_mean)?;
        let ema = Some((&mut state.g_ema, self.hyper.ema_decay));
        let sum = state.g_optim.step(&mut state.g, ema, &grads, regulariser.path_pull())?;
        Ok((penalty, sum))
    }

    /// The lengths `[n, 1]` of all parts, one after the other: this rank's own, and others' from them.
    fn all_lengths(&self, cut: &Cut, own: Vec<Tensor>) -> Result<Tensor> {
        let Some(ranks) = &self.ranks else { return layout::concat(&own.iter().collect::<Vec<_>>(), 0) };
        let device = own[0].device();
        let mut own = own.into_iter();
        let all = cut.parts.iter().map(|part| match part.owner == self.rank() {
            true => Ok(own.next().expect("lengths of each part")),
            false => Tensor::full_on(&[part.len(), 1], 0.0, DType::F32, &device),
        });
        ranks.sum(layout::concat(&all.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>(), 0)?)
    }
}

/// The pass of D's optimiser, beside what is queued after it where that can be.
struct DiscriminatorPass(Option<Beside>);

impl DiscriminatorPass {
    fn queue(state: &mut GanState, grads: &[Var]) -> Result<DiscriminatorPass> {
        let device = state.device();
        Ok(DiscriminatorPass(device.beside(|| state.d_optim.step(&mut state.d, None, grads, Pull::None))?.0))
    }

    /// D's new parameters may be read from now on.
    fn join(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), Beside::join)
    }
}

/// Path lengths of one part of a batch.
fn lengths(generator: &Generator, p: &Params, inputs: &PathInputs, part: &Part, order: Order) -> Result<Var> {
    let ws = generator.styles(p, &part.of_styles(&inputs.batch.styles)?)?;
    let images = generator.synthesis(p, &ws, &part.of_noise(&inputs.batch.noise)?)?;
    path_lengths(&images, &ws, &part.of(&inputs.y)?, order)
}

fn generate(generator: &Generator, p: &Params, batch: &BatchInputs, part: &Part) -> Result<Var> {
    generator.forward(p, &part.of_styles(&batch.styles)?, &part.of_noise(&batch.noise)?)
}

/// G's parameters for each part's graph.
fn leaves_of(g: &ParamSlab, regulariser: &dyn Regulariser, cut: &Cut) -> Vec<Params> {
    cut.parts.iter().map(|_| g.leaves_where(&|name| regulariser.trains(name))).collect()
}

/// Generated images of a part, with G's parameters that gradients will be taken by.
struct Shared {
    params: Params,
    images: Var,
}
