//! The adversarial steps of any generator and discriminator whose parameters are slabs. The networks come as
//! functions: `judge` maps parameters of D and a batch to logits, `generate` parameters of G to a batch. Nothing waits for
//! a GPU: losses are tensors of one element, to be read when they are wanted.

use super::Regulariser;
use crate::autograd::{Order, Var, add, concat, grad_or_zero, scale};
use crate::error::{Error, Result};
use crate::losses::{discriminator_loss, generator_loss, r1_penalty};
use crate::nn::{AdamState, ParamSlab, Params};
use crate::ops::optimizer::{Pull, Sum};
use crate::tensor::Tensor;

/// The loss of a batch that goes through the networks in parts, and its gradients. `loss(i, parameters)` is part i's own;
/// `shares[i]` is its weight in the batch's. Only one part's graph exists at a time. Parameters that `trains` leaves out
/// get zeros.
pub(super) fn in_parts(
    slab: &ParamSlab,
    trains: &dyn Fn(&str) -> bool,
    shares: &[f64],
    loss: &mut dyn FnMut(usize, &Params) -> Result<Var>,
) -> Result<(Tensor, Vec<Var>)> {
    let mut total: Option<(Var, Vec<Var>)> = None;
    for (i, share) in shares.iter().enumerate() {
        let params = slab.leaves_where(trains);
        let own = loss(i, &params)?;
        let own = if *share == 1.0 { own } else { scale(&own, *share)? };
        let (value, found) = of_loss(&own, &params)?;
        total = Some(match total {
            None => (Var::constant(value), found),
            Some((sum, grads)) => (add(&sum, &Var::constant(value))?, grads.iter().zip(&found).map(|(a, b)| add(a, b)).collect::<Result<_>>()?),
        });
    }
    let (value, sum) = total.ok_or_else(|| Error::shape("training", "a batch without images"))?;
    Ok((value.value().clone(), sum))
}

/// A loss and its gradients by all parameters. One without a path to the loss gets zeros, so that Adam's second moment
/// decays for it too (as the reference's `0 · output` terms have it).
pub(super) fn of_loss(loss: &Var, params: &Params) -> Result<(Tensor, Vec<Var>)> {
    Ok((loss.value().clone(), grad_or_zero(&[loss], &params.all(), Order::Last)?))
}

/// A loss without its weight, to be read.
pub(super) fn unweighted(loss: Tensor, weight: f64) -> Result<Tensor> {
    Ok(scale(&Var::constant(loss), 1.0 / weight)?.value().clone())
}

/// D's adversarial step; `judge` sees the real batch followed by the fake one. Returns the loss.
pub fn discriminator_step(d: &mut ParamSlab, optim: &mut AdamState, real: &Tensor, fake: &Var, judge: impl Fn(&Params, &Var) -> Result<Var>) -> Result<Tensor> {
    let both = concat(&[&Var::constant(real.clone()), fake], 0)?;
    let (loss, grads) = in_parts(d, &|_| true, &[1.0], &mut |_, p| discriminator_loss(&judge(p, &both)?))?;
    optim.step(d, None, &grads, Pull::None)?;
    Ok(loss)
}

/// D's gradient-penalty step on `weight · R1`. Returns R1 without the weight.
pub fn r1_step(d: &mut ParamSlab, optim: &mut AdamState, real: &Tensor, weight: f64, judge: impl Fn(&Params, &Var) -> Result<Var>) -> Result<Tensor> {
    let (loss, grads) = in_parts(d, &|_| true, &[1.0], &mut |_, p| {
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
    let (loss, grads) = in_parts(g, &|name| regulariser.trains(name), &[1.0], &mut |_, p| generator_loss(&judge(&generate(p)?)?))?;
    let sum = optim.step(g, ema, &grads, regulariser.pull())?;
    Ok((loss, sum))
}
