//! The method on points in the plane (the experiment of the paper's second version): a GAN of a mixture of eight
//! Gaussians on a circle unlearns two of them. Everything but the networks is the code that StyleGAN2 uses: losses,
//! steps, EWC, repulsion, feedback. The paper gives no numbers for this experiment besides the mixture; those of
//! `GaussiansSpec` are our own.

mod figure;
mod mixture;

pub use figure::scatter;
pub use mixture::{Counts, MODES, Mixture, NEGATIVE_MODES, RADIUS, centre, is_negative, nearest};

use super::adapt::{Ewc, model_seed};
use super::fisher::Estimator;
use super::repulsion::{Distance, Kind, Repulsion};
use super::schedule::side_by_side;
use crate::autograd::{Order, Var, grad_or_zero};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::mlp_gan::{COORDINATES, MlpGan, MlpGanConfig};
use crate::nn::{AdamState, ParamSlab};
use crate::ops::optimizer::{Adam, accumulate_squares};
use crate::ops::random::Random;
use crate::tensor::Tensor;
use crate::training::{Batches, NoRegulariser, Regulariser, TensorBatches, steps, streams};

/// Numbers of the experiment.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct GaussiansSpec {
    pub seed: u64,
    /// Standard deviation of each Gaussian.
    pub spread: f64,
    pub network: MlpGanConfig,
    pub batch: usize,
    /// Adam's learning rate at the start of each stage, for both networks; it falls linearly to zero.
    pub lr: f64,
    /// Weight of R1, in a step of its own every `r1_every` iterations.
    pub r1_weight: f64,
    pub r1_every: u64,
    pub ema_decay: f64,
    pub pretrain_iterations: u64,
    /// Points which are sampled from the pre-trained generator and marked.
    pub marked: usize,
    /// Adapted models, k.
    pub models: usize,
    pub adapt_iterations: u64,
    /// λ of EWC.
    pub lambda: f64,
    pub fisher_samples: usize,
    pub unlearn_iterations: u64,
    /// `None`: the ablation, positives only.
    pub repulsion: Option<Kind>,
    /// Points of each resulting cloud.
    pub samples: usize,
}

/// Repulsions of a strength that suits this experiment, where ‖θ − θ_N‖² starts at 170 to 220. Adam's steps hardly
/// shrink with the gradient, so NL2, whose pull never fades, alone drives every parameter that the points leave free:
/// with γ = 10⁻³ the distance is a hundred times its start after 85 iterations, with 10⁻⁵ after 650; over a whole stage
/// it grows eightfold with 10⁻⁶ and two and a half times with 10⁻⁷. EL2 ends at 1350, IL2 at 2100.
pub const EL2: Kind = Kind::El2 { gamma: 10.0, alpha: 0.01 };
pub const NL2: Kind = Kind::Nl2 { gamma: 1e-6 };
pub const IL2: Kind = Kind::Il2 { gamma: 1.0 };

impl Default for GaussiansSpec {
    /// About the smallest that keeps all modes over seeds. What was tried is in `tests/gaussians.rs`.
    fn default() -> GaussiansSpec {
        GaussiansSpec {
            seed: 0,
            spread: 0.1,
            network: MlpGanConfig { latent: 2, hidden: 64, layers: 4 },
            batch: 128,
            lr: 0.02,
            r1_weight: 0.03,
            r1_every: 4,
            ema_decay: 0.995,
            pretrain_iterations: 3000,
            marked: 5000,
            models: 3,
            adapt_iterations: 500,
            lambda: 1.0,
            fisher_samples: 256,
            unlearn_iterations: 1000,
            repulsion: Some(EL2),
            samples: 2000,
        }
    }
}

impl GaussiansSpec {
    fn adam(&self) -> Adam {
        Adam { lr: self.lr, beta1: 0.0, beta2: 0.99, eps: 1e-8 }
    }

    fn checked(&self) -> Result<()> {
        let counts = [self.batch, self.marked, self.models, self.fisher_samples, self.samples];
        if counts.contains(&0) || self.r1_every == 0 {
            return Err(Error::config("gaussians", "batch, numbers of models and samples and the interval of R1 must be at least 1"));
        }
        let numbers = [self.lr, self.spread, self.lambda, self.r1_weight];
        if !(numbers.iter().all(|v| v.is_finite()) && self.lr > 0.0 && self.spread > 0.0 && self.lambda >= 0.0 && self.r1_weight >= 0.0 && (0.0..1.0).contains(&self.ema_decay)) {
            return Err(Error::config("gaussians", "learning rate and spread must be positive, weights ≥ 0, EMA decay in 0..1"));
        }
        Ok(())
    }
}

/// What the experiment gives; each cloud is `[samples, 2]`, made from the same latents.
#[derive(Clone, Debug)]
pub struct GaussiansResult {
    pub pretrained: Tensor,
    /// Of the first adapted model.
    pub adapted: Tensor,
    pub unlearned: Tensor,
    /// Of all k adapted models.
    pub all_adapted: Vec<Tensor>,
    /// Distance `mean_j ‖θ − θ_j‖²` before and after stage 2; `None` for the ablation.
    pub distance: Option<(f64, f64)>,
    /// Marks among the sampled points: negative, positive.
    pub marks: (usize, usize),
}

/// Everything that training changes.
#[derive(Clone)]
struct State {
    g: ParamSlab,
    g_ema: ParamSlab,
    d: ParamSlab,
    g_optim: AdamState,
    d_optim: AdamState,
    rng: Random,
}

/// Points of the mixture, without end.
struct Endless {
    mixture: Mixture,
    batch: usize,
    rng: Random,
}

impl Batches for Endless {
    fn next(&mut self) -> Result<Tensor> {
        Ok(self.mixture.sample(self.batch, &mut self.rng))
    }
}

/// The networks and numbers of one experiment.
struct Experiment<'a> {
    nets: MlpGan,
    spec: &'a GaussiansSpec,
}

impl Experiment<'_> {
    fn init(&self) -> Result<State> {
        let mut rng = Random::new(self.spec.seed, streams::INIT);
        let g = ParamSlab::init(self.nets.generator.layout(), &mut rng);
        let d = ParamSlab::init(self.nets.discriminator.layout(), &mut rng);
        self.start(&g, &d, self.spec.seed)
    }

    /// A stage's start: generator and discriminator from before, optimisers and randomness new.
    fn start(&self, g: &ParamSlab, d: &ParamSlab, seed: u64) -> Result<State> {
        Ok(State {
            g: g.deep_clone()?,
            g_ema: g.deep_clone()?,
            d: d.deep_clone()?,
            g_optim: AdamState::new(g.layout(), self.spec.adam()),
            d_optim: AdamState::new(d.layout(), self.spec.adam()),
            rng: Random::new(seed, streams::TOY),
        })
    }

    fn train(&self, state: &mut State, batches: &mut dyn Batches, regulariser: &mut dyn Regulariser, iterations: u64) -> Result<()> {
        let (spec, generator, discriminator) = (self.spec, &self.nets.generator, &self.nets.discriminator);
        for i in 0..iterations {
            // Falling to zero, so that the end of a stage is the loss's minimum and not a walk around it.
            let left = 1.0 - i as f64 / iterations as f64;
            (state.g_optim.adam.lr, state.d_optim.adam.lr) = (spec.lr * left, spec.lr * left);
            let real = batches.next()?;
            let mut z = || Var::constant(state.rng.normal(&[spec.batch, spec.network.latent]));
            let (z_d, z_g) = (z(), z());
            let fake = generator.forward(&state.g.constants(), &z_d)?;
            let d_loss = steps::discriminator_step(&mut state.d, &mut state.d_optim, &real, &fake, |p, x| discriminator.forward(p, x))?;
            if spec.r1_weight > 0.0 && i.is_multiple_of(spec.r1_every) {
                let weight = spec.r1_weight / 2.0 * spec.r1_every as f64;
                steps::r1_step(&mut state.d, &mut state.d_optim, &real, weight, |p, x| discriminator.forward(p, x))?;
            }
            let d = state.d.constants();
            let ema = Some((&mut state.g_ema, spec.ema_decay));
            let (g_loss, sum) = steps::generator_step(
                &mut state.g,
                &mut state.g_optim,
                ema,
                regulariser,
                |p| generator.forward(p, &z_g),
                |x| discriminator.forward(&d, x),
            )?;
            let (d_loss, g_loss) = (d_loss.item()?, g_loss.item()?);
            if let Some(sum) = sum {
                regulariser.observe(sum.read()?, i)?;
            }
            if !(d_loss.is_finite() && g_loss.is_finite()) {
                return Err(Error::Diverged {
                    what: "gaussians".into(),
                    step: i as usize,
                    problem: format!("a loss is not a finite number (D {d_loss}, G {g_loss}); lower the learning rate, or raise the weight of R1"),
                });
            }
        }
        Ok(())
    }

    fn points(&self, g: &ParamSlab, z: &Tensor) -> Result<Tensor> {
        Ok(self.nets.generator.forward(&g.constants(), &Var::constant(z.clone()))?.value().clone())
    }

    /// The Fisher diagonal of `g` as judged by `d`: samples are independent here, so each is a batch of one.
    fn fisher(&self, g: &ParamSlab, d: &ParamSlab, rng: &mut Random) -> Result<ParamSlab> {
        let n = self.spec.fisher_samples;
        let mut fisher = ParamSlab::zeros(g.layout());
        let offsets = g.layout().offsets();
        for _ in 0..n {
            let params = g.leaves();
            let z = Var::constant(rng.normal(&[1, self.spec.network.latent]));
            let logit = self.nets.discriminator.forward(&d.constants(), &self.nets.generator.forward(&params, &z)?)?;
            let objective = Estimator::Bce.objective(logit)?;
            let grads: Vec<Tensor> = grad_or_zero(&[&objective], &params.all(), Order::Last)?.iter().map(|g| g.value().clone()).collect();
            accumulate_squares(fisher.values_mut(), &grads, &offsets, 1.0 / n as f64)?;
        }
        Ok(fisher)
    }

    /// Stage 1 for one model.
    fn adapt(&self, pretrained: &State, marked: &Tensor, negatives: Vec<usize>, index: usize) -> Result<ParamSlab> {
        let seed = model_seed(self.spec.seed, index);
        let mut state = self.start(&pretrained.g_ema, &pretrained.d, seed)?;
        let fisher = self.fisher(&pretrained.g_ema, &pretrained.d, &mut Random::new(seed, streams::FISHER))?;
        let mut ewc = Ewc { anchor: pretrained.g_ema.deep_clone()?, fisher, lambda: self.spec.lambda };
        let mut batches = TensorBatches::new(marked, negatives, self.spec.batch, seed, 0)?;
        self.train(&mut state, &mut batches, &mut ewc, self.spec.adapt_iterations)?;
        Ok(state.g_ema)
    }

    /// Stage 2. Returns the unlearned parameters and the distance before and after.
    fn unlearn(&self, pretrained: &State, adapted: &[ParamSlab], marked: &Tensor, positives: Vec<usize>) -> Result<(ParamSlab, Option<(f64, f64)>)> {
        let mut state = self.start(&pretrained.g_ema, &pretrained.d, self.spec.seed)?;
        let mut batches = TensorBatches::new(marked, positives, self.spec.batch, self.spec.seed, 0)?;
        let iterations = self.spec.unlearn_iterations;
        let Some(kind) = self.spec.repulsion else {
            self.train(&mut state, &mut batches, &mut NoRegulariser, iterations)?;
            return Ok((state.g_ema, None));
        };
        let mut repulsion = Repulsion::new(kind, Distance::L2, adapted, &state.g, RUNAWAY)?;
        let before = repulsion.distance();
        self.train(&mut state, &mut batches, &mut repulsion, iterations)?;
        Ok((state.g_ema, Some((before, repulsion.distance()))))
    }
}

/// The root mean square displacement at which a run-away of the repulsion is stopped.
const RUNAWAY: f64 = 10.0;

/// Calls `job` on a thread of its own pool of one: these ops are shorter than handing them to other threads.
fn on_one_thread<T: Send>(job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| Error::config("threads", e.to_string()))?;
    pool.install(job)
}

/// Runs the experiment. The same spec gives the same points, whatever the number of threads. `stage` is told the name
/// of each stage as it begins, and may stop the experiment by an error.
pub fn run(spec: &GaussiansSpec, stage: &mut dyn FnMut(&str) -> Result<()>) -> Result<GaussiansResult> {
    spec.checked()?;
    let this = Experiment { nets: MlpGan::new(spec.network)?, spec };
    stage("pre-training")?;
    let mut pretrained = this.init()?;
    let mut real = Endless { mixture: Mixture { spread: spec.spread }, batch: spec.batch, rng: Random::new(spec.seed, streams::BATCHES) };
    on_one_thread(|| this.train(&mut pretrained, &mut real, &mut NoRegulariser, spec.pretrain_iterations))?;

    let latents = Random::new(spec.seed, streams::FEEDBACK).normal(&[spec.marked, spec.network.latent]);
    let marked = this.points(&pretrained.g_ema, &latents)?;
    let (negatives, positives): (Vec<usize>, Vec<usize>) =
        (0..spec.marked).partition(|&i| is_negative(&marked.as_slice::<f32>()[i * COORDINATES..][..COORDINATES]));
    let marks = (negatives.len(), positives.len());
    if negatives.is_empty() || positives.is_empty() {
        return Err(Error::config("gaussians", format!("{} negatives and {} positives among the marked points: the pre-trained GAN lacks one side; train it for longer", marks.0, marks.1)));
    }

    stage("stage 1: adapting to the negatives")?;
    let adapted = side_by_side(&[Device::Cpu], spec.models, |_, j| on_one_thread(|| this.adapt(&pretrained, &marked, negatives.clone(), j)))?;
    stage("stage 2: unlearning")?;
    let (unlearned, distance) = on_one_thread(|| this.unlearn(&pretrained, &adapted, &marked, positives))?;

    let z = Random::new(spec.seed, streams::EVALUATION).normal(&[spec.samples, spec.network.latent]);
    let all_adapted = adapted.iter().map(|g| this.points(g, &z)).collect::<Result<Vec<_>>>()?;
    Ok(GaussiansResult {
        pretrained: this.points(&pretrained.g_ema, &z)?,
        adapted: all_adapted[0].clone(),
        unlearned: this.points(&unlearned, &z)?,
        all_adapted,
        distance,
        marks,
    })
}
