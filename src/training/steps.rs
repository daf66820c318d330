//! The adversarial steps of any generator and discriminator whose parameters are slabs. The networks come as
//! functions: `judge` maps parameters of D and a batch to logits, `generate` parameters of G to a batch. Nothing waits for
//! a GPU: losses are tensors of one element, to be read when they are wanted.

use rayon::prelude::*;

use super::Regulariser;
use super::parts::Cut;
use crate::autograd::{Order, Var, add, concat, grad_or_zero, scale};
use crate::error::{Error, Result};
use crate::losses::{discriminator_loss, generator_loss, r1_penalty};
use crate::nn::{AdamState, ParamSlab, Params};
use crate::ops::optimizer::{Pull, Sum};
use crate::tensor::Tensor;

/// Calls `one` for `0..n` and returns the results in order, all at once if they are to be side by side.
pub(super) fn each<R: Send>(n: usize, side_by_side: bool, one: &(dyn Fn(usize) -> Result<R> + Sync)) -> Result<Vec<R>> {
    if side_by_side { (0..n).into_par_iter().map(one).collect() } else { (0..n).map(one).collect() }
}

/// The sums, in order, of what `one` gives for each of `n` parts: as many values each time, of the same shapes. Unless the
/// parts go side by side, one begins when the sum with the one before is made.
pub(super) fn sum_of_parts(n: usize, side_by_side: bool, one: &(dyn Fn(usize) -> Result<Vec<Var>> + Sync)) -> Result<Vec<Var>> {
    let plus = |sum: Vec<Var>, next: Vec<Var>| sum.iter().zip(&next).map(|(a, b)| add(a, b)).collect::<Result<_>>();
    let sum = match side_by_side {
        true => each(n, true, one)?.into_iter().map(Ok).reduce(|sum, next| plus(sum?, next?)),
        false => (0..n).map(one).reduce(|sum, next| plus(sum?, next?)),
    };
    sum.unwrap_or_else(|| Err(Error::shape("training", "a batch without images")))
}

/// The loss of a batch that goes through the networks in parts, and its gradients. `loss(i, parameters)` is part i's own;
/// `shares[i]` is its weight in the batch's, and `params[i]` what its gradients are taken by.
pub(super) fn in_parts(params: Vec<Params>, cut: &Cut, loss: &(dyn Fn(usize, &Params) -> Result<Var> + Sync)) -> Result<(Tensor, Vec<Var>)> {
    let mut found = sum_of_parts(cut.parts.len(), cut.side_by_side, &|i| {
        let (own, share) = (loss(i, &params[i])?, cut.parts[i].share);
        let (value, mut grads) = of_loss(&if share == 1.0 { own } else { scale(&own, share)? }, &params[i])?;
        grads.push(Var::constant(value));
        Ok(grads)
    })?;
    let loss = found.pop().expect("the loss is behind the gradients");
    Ok((loss.value().clone(), found))
}

/// A loss and its gradients by all parameters. One without a path to the loss gets zeros, so that Adam's second moment
/// decays for it too (as the reference's `0 · output` terms have it).
pub(super) fn of_loss(loss: &Var, params: &Params) -> Result<(Tensor, Vec<Var>)> {
    Ok((loss.value().clone(), grad_or_zero(&[loss], &params.all(), Order::Last)?))
}

/// The loss of a whole batch, and its gradients. No graph refers to the parameters afterwards.
fn alone(params: Params, loss: impl FnOnce(&Params) -> Result<Var>) -> Result<(Tensor, Vec<Var>)> {
    of_loss(&loss(&params)?, &params)
}

/// A loss without its weight, to be read.
pub(super) fn unweighted(loss: Tensor, weight: f64) -> Result<Tensor> {
    Ok(scale(&Var::constant(loss), 1.0 / weight)?.value().clone())
}

/// D's adversarial step; `judge` sees the real batch followed by the fake one. Returns the loss.
pub fn discriminator_step(d: &mut ParamSlab, optim: &mut AdamState, real: &Tensor, fake: &Var, judge: impl Fn(&Params, &Var) -> Result<Var>) -> Result<Tensor> {
    let both = concat(&[&Var::constant(real.clone()), fake], 0)?;
    let (loss, grads) = alone(d.leaves(), |p| discriminator_loss(&judge(p, &both)?))?;
    optim.step(d, None, &grads, Pull::None)?;
    Ok(loss)
}

/// D's gradient-penalty step on `weight · R1`. Returns R1 without the weight.
pub fn r1_step(d: &mut ParamSlab, optim: &mut AdamState, real: &Tensor, weight: f64, judge: impl Fn(&Params, &Var) -> Result<Var>) -> Result<Tensor> {
    let (loss, grads) = alone(d.leaves(), |p| {
        let real = Var::leaf(real.clone());
        scale(&r1_penalty(&judge(p, &real)?, &real)?, weight)
    })?;
    optim.step(d, None, &grads, Pull::None)?;
    unweighted(loss, weight)
}

/// G's adversarial step under a stage's regulariser; `judge` maps the generated batch to logits. Returns the loss and
/// what the regulariser's pass reduced.
pub fn generator_step(
    g: &mut ParamSlab,
    optim: &mut AdamState,
    ema: Option<(&mut ParamSlab, f64)>,
    regulariser: &dyn Regulariser,
    generate: impl Fn(&Params) -> Result<Var>,
    judge: impl Fn(&Var) -> Result<Var>,
) -> Result<(Tensor, Option<Sum>)> {
    let (loss, grads) = alone(g.leaves_where(&|name| regulariser.trains(name)), |p| generator_loss(&judge(&generate(p)?)?))?;
    let sum = optim.step(g, ema, &grads, regulariser.pull())?;
    Ok((loss, sum))
}
