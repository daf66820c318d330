//! The small network that the official code judges AFHQ with in the end (Unlearning_AFHQ/classifier_models.py, CNN): four
//! convolutions with stride 2, three of them normalised and pooled, and two layers without anything between them.

use std::sync::Arc;

use super::resnet::running_statistics;
use crate::autograd::{Scales, Var, bias_act, conv2d_act, matmul, max_pool2d, reshape};
use crate::error::{Error, Result};
use crate::nn::batch_norm::Normalise;
use crate::nn::softmax::log_softmax;
use crate::nn::{Init, Layout, Params};
use crate::ops::bias_act::{Activation, Epilogue};
use crate::ops::conv2d::Conv2d;
use crate::ops::matmul::Read;
use crate::ops::pool2d::Window;

/// Height and width that the official code resizes to.
pub const SIZE: usize = 250;
/// Width of the penultimate layer.
const FEATURES: usize = 512;
const CHANNELS: [usize; 5] = [3, 32, 64, 128, 256];
/// Side of the last map: 2×2 pixels go into the first linear layer.
const LAST: usize = 2;

/// Whether images of this side end in a map of 2×2.
pub fn fits(side: usize) -> bool {
    let halved = |n: usize| n.div_ceil(2);
    let convolved = halved(side);
    let last = (0..3).fold(convolved, |n, _| halved(n) / 2);
    last == LAST
}

/// Parameters under the official file's names, with PyTorch's initial values.
pub fn layout(n_classes: usize) -> Arc<Layout> {
    let mut l = Layout::new();
    for i in 1..=4 {
        let (out, input) = (CHANNELS[i], CHANNELS[i - 1]);
        let init = Init::Uniform(1.0 / ((input * 9) as f64).sqrt());
        l.permuted(format!("conv{i}.weight"), &[out, input, 3, 3], &[out, input, 3, 3], &[0, 2, 3, 1], &[out, 3, 3, input], init);
        l.plain(format!("conv{i}.bias"), &[out], init);
        if i > 1 {
            l.plain(format!("batchnorm{}.weight", i - 1), &[out], Init::Constant(1.0));
            l.plain(format!("batchnorm{}.bias", i - 1), &[out], Init::Constant(0.0));
        }
    }
    let flat = CHANNELS[4] * LAST * LAST;
    let init = Init::Uniform(1.0 / (flat as f64).sqrt());
    // PyTorch flattens (c, h, w), the engine (h, w, c).
    l.permuted("fc1.weight", &[FEATURES, flat], &[FEATURES, CHANNELS[4], LAST, LAST], &[0, 2, 3, 1], &[FEATURES, flat], init);
    l.plain("fc1.bias", &[FEATURES], init);
    let init = Init::Uniform(1.0 / (FEATURES as f64).sqrt());
    l.plain("fc2.weight", &[n_classes, FEATURES], init);
    l.plain("fc2.bias", &[n_classes], init);
    Arc::new(l)
}

/// Running statistics under the official file's names.
pub fn buffers() -> Arc<Layout> {
    let mut l = Layout::new();
    (1..=3).for_each(|i| running_statistics(&mut l, &format!("batchnorm{i}"), CHANNELS[i + 1]));
    Arc::new(l)
}

/// `x` `[N, H, W, 3]` of a size that `fits` -> log-probabilities `[N, classes]` and the features of `fc1` `[N, 512]`.
pub fn forward(p: &Params, mut norm: Normalise, x: &Var) -> Result<(Var, Var)> {
    if x.shape().len() != 4 || x.dim(3) != 3 || !fits(x.dim(1)) || !fits(x.dim(2)) {
        return Err(Error::shape("AFHQ network", format!("images {:?} where [N, {SIZE}, {SIZE}, 3] is needed", x.shape())));
    }
    let mut y = x.clone();
    for i in 1..=4 {
        let then = Epilogue { bias: Some(p.get(&format!("conv{i}.bias"))), noise: None, act: Activation::RELU };
        y = conv2d_act(&y, p.get(&format!("conv{i}.weight")), Scales::NONE, Conv2d::square(2, 1), then)?;
        if i > 1 {
            y = norm.apply(p, &format!("batchnorm{}", i - 1), &y, Activation::LINEAR)?;
            y = max_pool2d(&y, Window::square(2, 2, 0))?;
        }
    }
    let linear = |x: &Var, name: &str| {
        let y = matmul(x, Read::Plain, p.get(&format!("{name}.weight")), Read::Transposed)?;
        bias_act(&y, Some(p.get(&format!("{name}.bias"))), None, Activation::LINEAR)
    };
    let flat = reshape(&y, &[y.dim(0), CHANNELS[4] * LAST * LAST])?;
    let features = linear(&flat, "fc1")?;
    Ok((log_softmax(&linear(&features, "fc2")?)?, features))
}
