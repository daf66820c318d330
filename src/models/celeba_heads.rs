//! The official feedback network for CelebA's attributes (Unlearning_CelebA/classifier_models.py): a ResNet-50 trunk, a
//! fully connected block 2048 → 512, and for each attribute a block 512 → 256 and a layer with two outputs, no and yes.

use std::sync::Arc;

use super::resnet::{ResNet, running_statistics};
use crate::autograd::{Var, bias_act, concat, matmul, reshape, slice, sub};
use crate::error::Result;
use crate::nn::batch_norm::Normalise;
use crate::nn::{Init, Layout, Params};
use crate::ops::bias_act::Activation;
use crate::ops::matmul::Read;

const TRUNK: ResNet = ResNet::ResNet50;
/// Widths of the common block and of each head's.
const STEM: usize = 512;
const HEAD: usize = 256;
/// Share of a block's outputs that training drops.
const DROPOUT: f64 = 0.15;

/// Name of attribute `i`'s head.
fn head(i: usize) -> String {
    format!("classifier{i:02}")
}

/// A fully connected layer with PyTorch's initial values: uniform in ±1/√in.
fn linear(l: &mut Layout, name: &str, [out, input]: [usize; 2]) {
    let init = Init::Uniform(1.0 / (input as f64).sqrt());
    l.plain(format!("{name}.weight"), &[out, input], init);
    l.plain(format!("{name}.bias"), &[out], init);
}

fn block(l: &mut Layout, name: &str, [out, input]: [usize; 2]) {
    linear(l, &format!("{name}.fc"), [out, input]);
    l.plain(format!("{name}.bn.weight"), &[out], Init::Constant(1.0));
    l.plain(format!("{name}.bn.bias"), &[out], Init::Constant(0.0));
}

/// Parameters under the official file's names.
pub fn layout(n_attributes: usize) -> Arc<Layout> {
    let mut l = Layout::new();
    TRUNK.trunk(&mut l);
    block(&mut l, "stem", [STEM, TRUNK.features()]);
    for i in 0..n_attributes {
        block(&mut l, &format!("{}.0", head(i)), [HEAD, STEM]);
        linear(&mut l, &format!("{}.1", head(i)), [2, HEAD]);
    }
    Arc::new(l)
}

/// Running statistics under the official file's names.
pub fn buffers(n_attributes: usize) -> Arc<Layout> {
    let mut l = (*TRUNK.buffers()).clone();
    running_statistics(&mut l, "stem.bn", STEM);
    (0..n_attributes).for_each(|i| running_statistics(&mut l, &format!("{}.0.bn", head(i)), HEAD));
    Arc::new(l)
}

fn apply(p: &Params, name: &str, x: &Var) -> Result<Var> {
    let y = matmul(x, Read::Plain, p.get(&format!("{name}.weight")), Read::Transposed)?;
    bias_act(&y, Some(p.get(&format!("{name}.bias"))), None, Activation::LINEAR)
}

/// `relu(dropout(norm(x Wᵀ + b)))`; dropout and ReLU commute.
fn apply_block(p: &Params, name: &str, norm: &mut Normalise, x: &Var) -> Result<Var> {
    let y = apply(p, &format!("{name}.fc"), x)?;
    let [n, c] = [y.dim(0), y.dim(1)];
    let y = norm.apply(p, &format!("{name}.bn"), &reshape(&y, &[n, 1, 1, c])?, Activation::RELU)?;
    norm.dropout(&reshape(&y, &[n, c])?, DROPOUT)
}

/// `x` `[N, H, W, 3]` of any size from 32 px -> for each attribute the log-odds of yes, `[N, attributes]`, and the
/// common block's features `[N, 512]`.
pub fn forward(n_attributes: usize, p: &Params, mut norm: Normalise, x: &Var) -> Result<(Var, Var)> {
    let pooled = TRUNK.pooled(p, &mut norm, x)?;
    let features = apply_block(p, "stem", &mut norm, &pooled)?;
    let odds = (0..n_attributes)
        .map(|i| {
            let y = apply(p, &format!("{}.1", head(i)), &apply_block(p, &format!("{}.0", head(i)), &mut norm, &features)?)?;
            // log p(yes) − log p(no) of the softmax over both.
            sub(&slice(&y, 1, 1, 1)?, &slice(&y, 1, 0, 1)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((concat(&odds.iter().collect::<Vec<_>>(), 1)?, features))
}
