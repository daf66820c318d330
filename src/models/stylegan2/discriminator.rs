//! The discriminator: residual down-sampling blocks, minibatch standard deviation, two linear layers.

use std::f64::consts::FRAC_1_SQRT_2;
use std::sync::Arc;

use super::as_activation;
use super::config::{IMAGE_CHANNELS, StyleGan2Config};
use crate::autograd::{Scales, Var, add, broadcast_to, cast, concat, conv2d, conv2d_act, mean_to, reshape, std_to, upfirdn2d};
use crate::error::{Error, Result};
use crate::nn::layers::equal_linear;
use crate::nn::params::{Init, Layout, Params};
use crate::ops::bias_act::{Activation, Epilogue};
use crate::ops::conv2d::Conv2d;
use crate::ops::upfirdn2d::{RESAMPLE_TAPS, Upfirdn2d};

/// Largest group whose standard deviation is taken.
const STDDEV_GROUP: usize = 4;
const STDDEV_EPS: f64 = 1e-8;

/// Architecture and parameter table of a discriminator.
#[derive(Clone)]
pub struct Discriminator {
    config: StyleGan2Config,
    layout: Arc<Layout>,
}

impl Discriminator {
    pub fn new(config: StyleGan2Config) -> Discriminator {
        let layout = Arc::new(table(&config));
        Discriminator { config, layout }
    }

    pub fn config(&self) -> &StyleGan2Config {
        &self.config
    }

    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Whether a batch of `n` can be split into groups for the minibatch standard deviation.
    pub fn accepts_batch(n: usize) -> bool {
        n > 0 && (n < STDDEV_GROUP || n.is_multiple_of(STDDEV_GROUP))
    }

    /// Members of each group of a batch of `n`.
    pub fn group(n: usize) -> usize {
        n.clamp(1, STDDEV_GROUP)
    }

    /// Logits `[N, 1]` for images `[N, size, size, 3]`. The batch holds `sets` batches one after the other (real and
    /// fake), each with its own groups for the minibatch standard deviation; they go through the convolutions together.
    pub fn forward(&self, p: &Params, images: &Var, sets: usize) -> Result<Var> {
        let (n, s) = (images.shape()[0], self.config.size);
        if images.shape() != [n, s, s, IMAGE_CHANNELS] {
            return Err(Error::shape("discriminator", format!("images {:?} must be [N, {s}, {s}, {IMAGE_CHANNELS}]", images.shape())));
        }
        if sets == 0 || n % sets != 0 || !Self::accepts_batch(n / sets) {
            return Err(Error::shape("discriminator", format!("a batch of {n} in {sets} sets: each must be under {STDDEV_GROUP} or a multiple of it")));
        }
        let mut x = conv_act(p, "convs.0.0.weight", "convs.0.1.bias", &as_activation(images)?, Conv2d::square(1, 0))?;
        let mut resolution = s;
        let mut block = 1;
        while resolution > 4 {
            x = self.block(p, &format!("convs.{block}"), &x)?;
            (resolution, block) = (resolution / 2, block + 1);
        }
        // Statistics and what follows them are few numbers, in the images' type.
        let x = cast(&x, images.dtype())?;
        let deviation = minibatch_stddev(&x, sets)?;
        let x = concat(&[&x, &deviation], 3)?;
        let x = conv_act(p, "final_conv.0.weight", "final_conv.1.bias", &x, Conv2d::square(1, 1))?;
        let x = reshape(&x, &[n, 16 * self.config.channels_at(4)])?;
        let linear = |x: &Var, layer: &str, act| equal_linear(x, p.get(&format!("{layer}.weight")), p.get(&format!("{layer}.bias")), 1.0, act);
        let x = linear(&x, "final_linear.0", Activation::LEAKY_RELU)?;
        linear(&x, "final_linear.1", Activation::LINEAR)
    }

    fn block(&self, p: &Params, name: &str, x: &Var) -> Result<Var> {
        let y = conv_act(p, &format!("{name}.conv1.0.weight"), &format!("{name}.conv1.1.bias"), x, Conv2d::square(1, 1))?;
        let y = upfirdn2d(&y, &Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [2, 2], 1.0))?;
        // The sum's 1/√2 lies in both branches, where it costs no pass: in the activation's gain, and in the convolution's.
        let halved = Activation { gain: Activation::LEAKY_RELU.gain * FRAC_1_SQRT_2, ..Activation::LEAKY_RELU };
        let y = conv_then(p, &format!("{name}.conv2.1.weight"), &format!("{name}.conv2.2.bias"), &y, Conv2d::square(2, 0), halved)?;
        // A blur followed by a 1×1 convolution with stride 2 is a blur that only makes every second pixel.
        let skip = upfirdn2d(x, &Upfirdn2d::new(&RESAMPLE_TAPS, 1, 2, [1, 1], 1.0))?;
        let w = p.get(&format!("{name}.skip.1.weight"));
        let skip = conv2d(&skip, w, Scales::NONE, equalised(w, FRAC_1_SQRT_2, Conv2d::square(1, 0)))?;
        add(&y, &skip)
    }
}

/// The convolution by `gain · w / √fan_in` for a weight `w` `[C_out, k, k, C_in]`.
fn equalised(w: &Var, gain: f64, spec: Conv2d) -> Conv2d {
    let fan_in = w.value().len() / w.dim(0);
    Conv2d { gain: gain / (fan_in as f64).sqrt(), ..spec }
}

fn conv_then(p: &Params, weight: &str, bias: &str, x: &Var, spec: Conv2d, act: Activation) -> Result<Var> {
    let then = Epilogue { bias: Some(p.get(bias)), noise: None, act };
    let w = p.get(weight);
    conv2d_act(x, w, Scales::NONE, equalised(w, 1.0, spec), then)
}

fn conv_act(p: &Params, weight: &str, bias: &str, x: &Var, spec: Conv2d) -> Result<Var> {
    conv_then(p, weight, bias, x, spec, Activation::LEAKY_RELU)
}

/// Standard deviation over groups of up to four samples, averaged over pixels and channels, as one more channel
/// `[N, H, W, 1]`. Within a set of B, sample b belongs to group b mod (B / g).
fn minibatch_stddev(x: &Var, sets: usize) -> Result<Var> {
    let (n, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let members = Discriminator::group(n / sets);
    let groups = n / sets / members;
    let grouped = reshape(x, &[sets, members, groups, h * w * c])?;
    let deviation = std_to(&grouped, &[sets, 1, groups, h * w * c], STDDEV_EPS)?;
    let mean = mean_to(&deviation, &[sets, 1, groups, 1])?;
    reshape(&broadcast_to(&mean, &[sets, members, groups, h * w])?, &[n, h, w, 1])
}

/// The parameters in rosinality's registration order.
fn table(c: &StyleGan2Config) -> Layout {
    let mut t = Layout::new();
    let conv = |t: &mut Layout, name: String, ci: usize, co: usize, k: usize| {
        t.permuted(name, &[co, ci, k, k], &[co, ci, k, k], &[0, 2, 3, 1], &[co, k, k, ci], Init::Normal(1.0));
    };
    let bias = |t: &mut Layout, name: String, n: usize| t.plain(name, &[n], Init::Constant(0.0));
    let mut channels = c.channels_at(c.size);
    conv(&mut t, "convs.0.0.weight".into(), IMAGE_CHANNELS, channels, 1);
    bias(&mut t, "convs.0.1.bias".into(), channels);
    let mut resolution = c.size;
    let mut block = 1;
    while resolution > 4 {
        resolution /= 2;
        let (name, out) = (format!("convs.{block}"), c.channels_at(resolution));
        conv(&mut t, format!("{name}.conv1.0.weight"), channels, channels, 3);
        bias(&mut t, format!("{name}.conv1.1.bias"), channels);
        conv(&mut t, format!("{name}.conv2.1.weight"), channels, out, 3);
        bias(&mut t, format!("{name}.conv2.2.bias"), out);
        conv(&mut t, format!("{name}.skip.1.weight"), channels, out, 1);
        (channels, block) = (out, block + 1);
    }
    conv(&mut t, "final_conv.0.weight".into(), channels + 1, channels, 3);
    bias(&mut t, "final_conv.1.bias".into(), channels);
    // PyTorch flattens (c, h, w), the engine (h, w, c).
    t.permuted("final_linear.0.weight", &[channels, channels * 16], &[channels, channels, 4, 4], &[0, 2, 3, 1], &[channels, 16 * channels], Init::Normal(1.0));
    bias(&mut t, "final_linear.0.bias".into(), channels);
    t.plain("final_linear.1.weight", &[1, channels], Init::Normal(1.0));
    bias(&mut t, "final_linear.1.bias".into(), 1);
    t
}
