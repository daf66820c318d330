//! The repulsion losses of stage 2 (paper eq. 5–7): functions of the squared distance D to the adapted models.
//!
//! `Σ_j ‖θ − θ_j‖² = k ‖θ − θ̄‖² + const`, so any number of adapted models costs one centroid, and the distance for the
//! next step is reduced by the optimiser pass of this one.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::ParamSlab;
use crate::nn::params::Init;
pub use crate::ops::optimizer::RepulsionLoss as Kind;
use crate::ops::optimizer::{Pull, weighted_squared_distance};
use crate::training::Regulariser;

/// How hard each loss pulls at the start of stage 2: the derivative of the loss by the squared distance.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Pulls {
    pub el2: f64,
    /// α of EL2 in units of 1/D₀.
    pub alpha: f64,
    pub nl2: f64,
    pub il2: f64,
}

impl Pulls {
    /// What `recant reproduce sweep` chose for digit 8, by a rule that looks at neither PUL nor real images (README.md). The
    /// paper's γ belong to its models and to the official code's distance. α is far below 1/D₀, because stage 2 itself
    /// takes the parameters many times D₀ away, and at 1/D₀ EL2 would have ended by then.
    pub const CHOSEN: Pulls = Pulls { el2: 1e-3, alpha: 0.01, nl2: 6e-4, il2: 2e-3 };

    /// EL2, NL2 and IL2 that begin so; `d0` is the squared distance of the start to the adapted models.
    pub fn kinds(self, d0: f64) -> [Kind; 3] {
        [Kind::el2_pulling(self.el2, self.alpha / d0, d0), Kind::nl2_pulling(self.nl2), Kind::il2_pulling(self.il2, d0)]
    }
}

impl Kind {
    /// EL2 that pulls so hard at the squared distance `d0`: `−dL/dD = αγ e^{−αD₀} = pull`.
    pub fn el2_pulling(pull: f64, alpha: f64, d0: f64) -> Kind {
        Kind::El2 { gamma: pull * (alpha * d0).exp() / alpha, alpha }
    }

    /// NL2, which pulls equally at all distances.
    pub fn nl2_pulling(pull: f64) -> Kind {
        Kind::Nl2 { gamma: pull }
    }

    /// IL2 that pulls so hard at the squared distance `d0`: `γ / D₀² = pull`.
    pub fn il2_pulling(pull: f64, d0: f64) -> Kind {
        Kind::Il2 { gamma: pull * d0 * d0 }
    }

    /// The same numbers if they are usable.
    pub fn checked(self) -> Result<Kind> {
        let (gamma, alpha) = match self {
            Kind::El2 { gamma, alpha } => (gamma, alpha),
            Kind::Nl2 { gamma } | Kind::Il2 { gamma } => (gamma, 1.0),
        };
        for (name, v) in [("--gamma", gamma), ("--alpha", alpha)] {
            if !(v.is_finite() && v > 0.0) {
                return Err(Error::config(name, format!("{v} must be a positive number: a negative one would attract to what is to be unlearned")));
            }
        }
        Ok(self)
    }
}

/// What "distance to the adapted models" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Distance {
    /// The paper's: mean over models of `‖θ − θ_j‖²`.
    L2,
    /// The same divided by the number of parameters.
    Mean,
    /// As `L2`, each weight in units of its initial standard deviation. The mapping network stores its weights a hundred
    /// times larger than it uses them, so in raw numbers its drift fills the distance without changing any image.
    Scaled,
    /// The official code's: `(k/2) (1/P) Σ_p Σ_j ‖θ_p − θ_jp‖² / n_p` over the P tensors. Converting γ between the two:
    /// this sums over the k models and multiplies by k/2 where a mean divides by k.
    Official,
}

/// The repulsion from a set of adapted models, as a regulariser of the generator's step.
pub struct Repulsion {
    kind: Kind,
    centroid: ParamSlab,
    /// Weight of each segment's `‖θ_p − centroid_p‖²`.
    weights: Vec<f64>,
    /// What the spread of the adapted models around their centroid adds to the distance.
    spread: f64,
    /// Distance of the current parameters.
    distance: f64,
    /// The distance of one unit of displacement in every parameter.
    unit: f64,
    /// A root mean square displacement beyond this is a run-away.
    runaway: f64,
}

/// `Σ_j θ_j / k`, in f64, on the host.
pub fn centroid(models: &[ParamSlab]) -> Result<ParamSlab> {
    let first = models.first().ok_or_else(|| Error::config("--adapted", "needs at least one adapted model (k ≥ 1)"))?;
    if models.iter().any(|m| m.layout().len() != first.layout().len()) {
        return Err(Error::config("--adapted", "the adapted models are not of one size"));
    }
    let models = models.iter().map(|m| m.to_device(&Device::Cpu)).collect::<Result<Vec<_>>>()?;
    let k = models.len() as f64;
    let mean = (0..first.layout().len()).map(|i| (models.iter().map(|m| m.as_slice()[i] as f64).sum::<f64>() / k) as f32);
    ParamSlab::from_values(first.layout(), mean.collect())
}

/// Squared distance of parameters to adapted models, D₀ of those that stage 2 starts from.
pub fn squared_distance(adapted: &[ParamSlab], start: &ParamSlab, distance: Distance) -> Result<f64> {
    Ok(Repulsion::new(Kind::Nl2 { gamma: 1.0 }, distance, adapted, start, f64::MAX)?.distance())
}

impl Repulsion {
    /// `runaway`: the root mean square displacement per parameter (in the distance's weighting) at which training is
    /// stopped. Weights of StyleGAN2 are of size one, so at 1 nothing is left of the network.
    pub fn new(kind: Kind, distance: Distance, adapted: &[ParamSlab], start: &ParamSlab, runaway: f64) -> Result<Repulsion> {
        let kind = kind.checked()?;
        let device = start.values().device();
        let centroid = centroid(adapted)?.to_device(&device)?;
        if centroid.layout().len() != start.layout().len() {
            return Err(Error::config("--adapted", format!("adapted models have {} parameters, the generator {}", centroid.layout().len(), start.layout().len())));
        }
        let (k, layout) = (adapted.len() as f64, start.layout());
        let tensors = layout.segments().len() as f64;
        let weights: Vec<f64> = layout
            .segments()
            .iter()
            .map(|s| match distance {
                Distance::L2 => 1.0,
                Distance::Mean => 1.0 / layout.len() as f64,
                Distance::Scaled => match s.init {
                    Init::Normal(std) => 1.0 / (std * std),
                    Init::Constant(_) | Init::Uniform(_) => 1.0,
                },
                Distance::Official => k * k / (2.0 * tensors * s.len() as f64),
            })
            .collect();
        let offsets = layout.offsets();
        let to_centroid = |m: &ParamSlab| weighted_squared_distance(&m.values().to_device(&device)?, centroid.values(), &offsets, &weights);
        let spread = adapted.iter().map(to_centroid).sum::<Result<f64>>()? / k;
        let distance = to_centroid(start)? + spread;
        if matches!(kind, Kind::Il2 { .. }) && distance <= 1e-12 {
            return Err(Error::config("--repulsion il2", "the start equals the adapted models, where 1/distance has its pole; adapt for more iterations"));
        }
        let unit = layout.segments().iter().zip(&weights).map(|(s, w)| w * s.len() as f64).sum();
        Ok(Repulsion { kind, centroid, weights, spread, distance, unit, runaway })
    }

    /// The current squared distance D.
    pub fn distance(&self) -> f64 {
        self.distance
    }

    /// The current loss.
    pub fn loss(&self) -> f64 {
        self.kind.loss(self.distance)
    }

    fn pull_with(&self, gradient: bool) -> Pull<'_> {
        Pull::Centroid {
            centroid: self.centroid.values(),
            weights: &self.weights,
            loss: self.kind,
            spread: self.spread,
            distance: self.distance,
            gradient,
        }
    }
}

impl Regulariser for Repulsion {
    fn pull(&self) -> Pull<'_> {
        self.pull_with(true)
    }

    fn path_pull(&self) -> Pull<'_> {
        self.pull_with(false)
    }

    fn observe(&mut self, distance: f64, iteration: u64) -> Result<()> {
        self.distance = distance;
        let stop = |problem: String| Err(Error::Diverged { what: "repulsion".into(), step: iteration as usize, problem });
        if !distance.is_finite() || !self.kind.slope(distance).is_finite() {
            return stop("the distance to the adapted models is not a finite number; lower --gamma".into());
        }
        let displacement = (distance / self.unit).sqrt();
        if displacement > self.runaway {
            return stop(format!(
                "the parameters are {displacement:.3} (root mean square) from the adapted models: the repulsion runs away; lower --gamma, use el2, or raise --runaway"
            ));
        }
        Ok(())
    }
}
