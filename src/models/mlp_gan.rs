//! A generator and a discriminator of points in the plane, both multilayer perceptrons with equalised learning rate:
//! large enough for a mixture of Gaussians, small enough to train in seconds on a CPU.

use std::sync::Arc;

use crate::autograd::Var;
use crate::error::{Error, Result};
use crate::nn::layers::equal_linear;
use crate::nn::params::{Init, Layout, Params};
use crate::ops::bias_act::Activation;

/// Coordinates of a point.
pub const COORDINATES: usize = 2;

/// Sizes of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MlpGanConfig {
    /// Length of z.
    pub latent: usize,
    /// Width of every hidden layer, in both networks.
    pub hidden: usize,
    /// Hidden layers of each network.
    pub layers: usize,
}

/// A perceptron: leaky ReLU after each layer but the last. Parameters `0.weight`, `0.bias`, `1.weight`, ….
#[derive(Clone)]
pub struct Mlp {
    sizes: Vec<usize>,
    layout: Arc<Layout>,
}

impl Mlp {
    /// `sizes`: width of the input, of each hidden layer, of the output.
    pub fn new(sizes: &[usize]) -> Mlp {
        let mut layout = Layout::new();
        for (i, pair) in sizes.windows(2).enumerate() {
            layout.plain(format!("{i}.weight"), &[pair[1], pair[0]], Init::Normal(1.0));
            layout.plain(format!("{i}.bias"), &[pair[1]], Init::Constant(0.0));
        }
        Mlp { sizes: sizes.to_vec(), layout: Arc::new(layout) }
    }

    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// `[N, first size]` -> `[N, last size]`.
    pub fn forward(&self, p: &Params, x: &Var) -> Result<Var> {
        if x.shape().len() != 2 || x.dim(1) != self.sizes[0] {
            return Err(Error::shape("mlp", format!("input {:?} must be [N, {}]", x.shape(), self.sizes[0])));
        }
        let last = self.sizes.len() - 2;
        (0..=last).try_fold(x.clone(), |x, i| {
            let act = if i < last { Activation::LEAKY_RELU } else { Activation::LINEAR };
            equal_linear(&x, p.get(&format!("{i}.weight")), p.get(&format!("{i}.bias")), 1.0, act)
        })
    }
}

/// Architecture and parameter tables of the pair.
#[derive(Clone)]
pub struct MlpGan {
    config: MlpGanConfig,
    /// z `[N, latent]` -> points `[N, 2]`.
    pub generator: Mlp,
    /// Points `[N, 2]` -> logits `[N, 1]`.
    pub discriminator: Mlp,
}

impl MlpGan {
    pub fn new(config: MlpGanConfig) -> Result<MlpGan> {
        if config.latent == 0 || config.hidden == 0 || config.layers == 0 {
            return Err(Error::config("network", "latent length, width and number of hidden layers must be at least 1"));
        }
        let hidden = vec![config.hidden; config.layers];
        let sizes = |first: usize, last: usize| [&[first], &hidden[..], &[last]].concat();
        Ok(MlpGan { config, generator: Mlp::new(&sizes(config.latent, COORDINATES)), discriminator: Mlp::new(&sizes(COORDINATES, 1)) })
    }

    pub fn config(&self) -> MlpGanConfig {
        self.config
    }
}
