//! What the paper compares the method with, as far as it trains on the positives alone: EWC, ℓ1-sparse, CF-k, EU-k. All
//! start as stage 2 does and take its iterations; "positives only" is stage 2 without repulsion, retraining is plain
//! training without the class, extrapolation trains nothing.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::adapt::{Ewc, Optimiser, Start, stage_start};
use super::fisher::{FisherSpec, fisher_diagonal};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::stylegan2::StyleGan2Config;
use crate::nn::{Layout, ParamSlab};
use crate::ops::optimizer::Pull;
use crate::ops::random::Random;
use crate::training::{Batches, GanState, Progress, Regulariser, Trainer, run, streams};

/// The generator's parameters that CF-k and EU-k train; the others are frozen. Neither paper nor code says this in words.
///
/// The official code trains the last ten tensors in order of registration (`tensors:10`): with StyleGAN2 these are ToRGB
/// layers, which can only recolour, so its two baselines cannot unlearn whatever their merits. The default is what "the
/// last k layers" means in the papers that they come from (Goel et al. 2022): layers in order of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trained {
    /// The last tensors in order of registration.
    Tensors(usize),
    /// The last styled convolutions, each with its modulation, noise and bias, and the ToRGB layers that follow them.
    Layers(usize),
}

impl Trained {
    /// The upper half of the synthesis network.
    pub fn default_of(config: &StyleGan2Config) -> Trained {
        Trained::Layers(config.noise_layers() / 2)
    }

    /// Names of the trained parameters.
    pub fn names(self, config: &StyleGan2Config, layout: &Layout) -> Result<HashSet<String>> {
        let all = layout.segments().len();
        let layers = config.noise_layers();
        let (k, most) = match self {
            Trained::Tensors(k) => (k, all),
            Trained::Layers(k) => (k, layers),
        };
        if k == 0 || k > most {
            return Err(Error::config("--trained", format!("{self}: this generator has 1 to {most} of them")));
        }
        // Styled convolution i is `convs.{i − 1}`, the first is `conv1`; the second of each pair ends in a ToRGB.
        let trained = |name: &str| {
            let number = |prefix: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
            let layer = match (number("convs."), number("to_rgbs.")) {
                (Some(i), _) => i + 1,
                (_, Some(block)) => 2 * block + 2,
                _ if name.starts_with("conv1.") || name.starts_with("to_rgb1.") => 0,
                _ => return false,
            };
            layer >= layers - k
        };
        let segments = layout.segments().iter().enumerate();
        let chosen = segments.filter(|(i, s)| match self {
            Trained::Tensors(k) => i + k >= all,
            Trained::Layers(_) => trained(&s.name),
        });
        Ok(chosen.map(|(_, s)| s.name.clone()).collect())
    }
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trained::Tensors(k) => write!(f, "tensors:{k}"),
            Trained::Layers(k) => write!(f, "layers:{k}"),
        }
    }
}

impl FromStr for Trained {
    type Err = Error;

    fn from_str(text: &str) -> Result<Trained> {
        let number = |n: &str| n.parse().map_err(|_| Error::config("--trained", format!("{n:?} is not a number")));
        match text.split_once(':') {
            Some(("tensors", n)) => Ok(Trained::Tensors(number(n)?)),
            Some(("layers", n)) => Ok(Trained::Layers(number(n)?)),
            _ => Err(Error::config("--trained", format!("{text:?} is not layers:N or tensors:N"))),
        }
    }
}

/// Which baseline, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// Few-shot adaptation to the positives, held near θ_G by EWC (unlearn_ewc.py).
    Ewc { lambda: f64, fisher: FisherSpec },
    /// The ℓ1 norm of all parameters beside the loss (l2_unlearn.py; Jia et al. 2023).
    L1 { strength: f64 },
    /// Catastrophic forgetting: only some layers are trained (adapt_cfk.py).
    CfK { trained: Trained },
    /// Exact unlearning: these layers start anew.
    EuK { trained: Trained },
}

/// Weight of the ℓ1 norm in the official code.
pub const L1_STRENGTH: f64 = 5e-5;

/// One baseline run.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct BaselineSpec {
    pub baseline: Baseline,
    pub iterations: u64,
    pub optimiser: Optimiser,
    pub start: Start,
    pub seed: u64,
}

/// Trains the parameters of these names.
struct Frozen {
    trained: HashSet<String>,
}

impl Regulariser for Frozen {
    fn pull(&self) -> Pull<'_> {
        Pull::None
    }
    fn trains(&self, parameter: &str) -> bool {
        self.trained.contains(parameter)
    }
}

struct Sparse {
    strength: f64,
}

impl Regulariser for Sparse {
    fn pull(&self) -> Pull<'_> {
        Pull::L1 { strength: self.strength }
    }
}

/// Puts new initial values where `names` says; not those that pre-training began with, whatever the seeds.
fn start_anew(slab: &mut ParamSlab, names: &HashSet<String>, seed: u64) -> Result<()> {
    let fresh = ParamSlab::init(slab.layout(), &mut Random::new(seed, streams::RESTART));
    let (layout, device) = (slab.layout().clone(), slab.values().device());
    let mut values = slab.values().to_device(&Device::Cpu)?.to_vec::<f32>();
    for s in layout.segments().iter().filter(|s| names.contains(&s.name)) {
        values[s.offset..s.offset + s.len()].copy_from_slice(&fresh.as_slice()[s.offset..s.offset + s.len()]);
    }
    *slab = ParamSlab::from_values(&layout, values)?.to_device(&device)?;
    Ok(())
}

/// Runs a baseline on the positives; `resumed` continues an interrupted run. The weights are the result's `g_ema`.
pub fn baseline(
    trainer: &Trainer,
    pretrained: &GanState,
    positives: &mut dyn Batches,
    spec: &BaselineSpec,
    resumed: Option<GanState>,
    on_iteration: &mut dyn FnMut(&Progress) -> Result<()>,
) -> Result<GanState> {
    let mut start = stage_start(pretrained, spec.start, spec.optimiser, trainer, spec.seed)?;
    let names = |trained: Trained| trained.names(&pretrained.config, trainer.generator.layout());
    let mut regulariser: Box<dyn Regulariser> = match spec.baseline {
        Baseline::Ewc { lambda, fisher } => {
            let anchor = start.g.deep_clone()?;
            let fisher = fisher_diagonal(trainer, &anchor, &pretrained.d, fisher, &mut Random::new(spec.seed, streams::FISHER))?;
            Box::new(Ewc { anchor, fisher, lambda })
        }
        Baseline::L1 { strength } => Box::new(Sparse { strength }),
        Baseline::CfK { trained } => Box::new(Frozen { trained: names(trained)? }),
        Baseline::EuK { trained } => {
            let trained = names(trained)?;
            for slab in [&mut start.g, &mut start.g_ema] {
                start_anew(slab, &trained, spec.seed)?;
            }
            Box::new(Frozen { trained })
        }
    };
    let mut state = resumed.unwrap_or(start);
    run(trainer, &mut state, positives, &mut *regulariser, spec.iterations, on_iteration)?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::stylegan2::Generator;

    fn tiny() -> StyleGan2Config {
        StyleGan2Config::with_channels(16, 4, 2, "4:4,8:4,16:4").expect("a valid table")
    }

    #[test]
    fn the_last_layers_are_the_last_to_compute() {
        let (config, g) = (tiny(), Generator::new(tiny()));
        let of = |t: Trained| {
            let mut names: Vec<String> = t.names(&config, g.layout()).unwrap().into_iter().filter(|n| n.ends_with("conv.weight")).collect();
            names.sort();
            names
        };
        assert_eq!(of(Trained::Layers(1)), ["convs.3.conv.weight", "to_rgbs.1.conv.weight"]);
        assert_eq!(of(Trained::Layers(3)), ["convs.1.conv.weight", "convs.2.conv.weight", "convs.3.conv.weight", "to_rgbs.0.conv.weight", "to_rgbs.1.conv.weight"]);
        assert_eq!(of(Trained::Layers(5)).len(), 8);
        // The official choice: ToRGB layers only.
        assert!(Trained::Tensors(8).names(&config, g.layout()).unwrap().iter().all(|n| n.starts_with("to_rgbs.")));
        assert_eq!(Trained::default_of(&StyleGan2Config::mnist()), Trained::Layers(3));
        for bad in [Trained::Layers(0), Trained::Layers(6), Trained::Tensors(1000)] {
            assert!(bad.names(&config, g.layout()).unwrap_err().to_string().contains("--trained"));
        }
    }

    #[test]
    fn options_go_both_ways() {
        for t in [Trained::Tensors(10), Trained::Layers(3)] {
            assert_eq!(t.to_string().parse::<Trained>().unwrap(), t);
        }
        assert!("10".parse::<Trained>().unwrap_err().to_string().contains("layers:N"));
        assert!("layers:x".parse::<Trained>().is_err());
    }
}
