//! LeNet-5 with ReLU and max pooling, the feedback classifier of the MNIST experiments (csinva's gan-vae-pretrained
//! collection, after activatedgeek/LeNet-5): 32 px grey images in [0, 1] to log-probabilities of ten digits.

use std::sync::Arc;

use crate::autograd::{Scales, Var, bias_act, conv2d_act, matmul, max_pool2d, reshape};
use crate::error::{Error, Result};
use crate::nn::{Init, Layout, Params, softmax::log_softmax};
use crate::ops::bias_act::{Activation, Epilogue};
use crate::ops::conv2d::Conv2d;
use crate::ops::matmul::Read;
use crate::ops::pool2d::Window;

/// Height and width of the input.
pub const SIZE: usize = 32;
/// Width of the penultimate layer `fc.f6`.
pub const FEATURES: usize = 84;

/// Parameters under the official file's names. Initial values are PyTorch's defaults: uniform in ±1/√fan_in, weights
/// and biases alike.
pub fn layout(n_classes: usize) -> Arc<Layout> {
    let mut l = Layout::new();
    for (name, [o, i, k]) in [("c1", [6, 1, 5]), ("c3", [16, 6, 5]), ("c5", [120, 16, 5])] {
        let init = Init::Uniform(1.0 / ((i * k * k) as f64).sqrt());
        let (name, shape) = (format!("convnet.{name}"), [o, i, k, k]);
        l.permuted(format!("{name}.weight"), &shape, &shape, &[0, 2, 3, 1], &[o, k, k, i], init);
        l.plain(format!("{name}.bias"), &[o], init);
    }
    for (name, [o, i]) in [("f6", [FEATURES, 120]), ("f7", [n_classes, FEATURES])] {
        let init = Init::Uniform(1.0 / (i as f64).sqrt());
        l.plain(format!("fc.{name}.weight"), &[o, i], init);
        l.plain(format!("fc.{name}.bias"), &[o], init);
    }
    Arc::new(l)
}

/// `x` `[N, 32, 32, 1]` in [0, 1] -> log-probabilities `[N, classes]` and the features of `fc.f6` after its ReLU
/// `[N, 84]`.
pub fn forward(p: &Params, x: &Var) -> Result<(Var, Var)> {
    if x.shape().len() != 4 || x.shape()[1..] != [SIZE, SIZE, 1] {
        return Err(Error::shape("LeNet", format!("images {:?} where [N, {SIZE}, {SIZE}, 1] is needed", x.shape())));
    }
    let conv = |x: &Var, name: &str| {
        let then = Epilogue { bias: Some(p.get(&format!("convnet.{name}.bias"))), noise: None, act: Activation::RELU };
        conv2d_act(x, p.get(&format!("convnet.{name}.weight")), Scales::NONE, Conv2d::square(1, 0), then)
    };
    let linear = |x: &Var, name: &str, act| {
        let y = matmul(x, Read::Plain, p.get(&format!("fc.{name}.weight")), Read::Transposed)?;
        bias_act(&y, Some(p.get(&format!("fc.{name}.bias"))), None, act)
    };
    let halved = |x: &Var| max_pool2d(x, Window::square(2, 2, 0));
    let x = halved(&conv(x, "c1")?)?;
    let x = halved(&conv(&x, "c3")?)?;
    let x = conv(&x, "c5")?;
    let features = linear(&reshape(&x, &[x.dim(0), 120])?, "f6", Activation::RELU)?;
    let logits = linear(&features, "f7", Activation::LINEAR)?;
    Ok((log_softmax(&logits)?, features))
}
