//! The adversarial steps of any generator and discriminator whose parameters are slabs. The networks come as
//! functions: `judge` maps parameters of D and a batch to logits, `generate` parameters of G to a batch. Nothing waits for
//! a GPU: losses are tensors of one element, to be read when they are wanted.

use super::Regulariser;
use crate::autograd::{Order, Var, concat, grad_or_zero, scale};
use crate::error::Result;
use crate::losses::{discriminator_loss, generator_loss, r1_penalty};
use crate::nn::{AdamState, ParamSlab, Params};
use crate::ops::optimizer::{Pull, Sum};
use crate::tensor::Tensor;

/// D's adversarial step; `judge` sees the real batch followed by the fake one. Returns the loss.
pub fn discriminator_step(d: &mut ParamSlab, optim: &mut AdamState, real: &Tensor, fake: &Var, judge: impl Fn(&Params, &Var) -> Result<Var>) -> Result<Tensor> {
    let (loss, grads) = {
        let params = d.leaves();
        let both = concat(&[&Var::constant(real.clone()), fake], 0)?;
        let loss = discriminator_loss(&judge(&params, &both)?)?;
        (loss.value().clone(), gradients(&loss, &params)?)
    };
    optim.step(d, None, &grads, Pull::None)?;
    Ok(loss)
}

/// D's gradient-penalty step on `weight · R1`. Returns R1 without the weight.
pub fn r1_step(d: &mut ParamSlab, optim: &mut AdamState, real: &Tensor, weight: f64, judge: impl Fn(&Params, &Var) -> Result<Var>) -> Result<Tensor> {
    let (penalty, grads) = {
        let params = d.leaves();
        let real = Var::leaf(real.clone());
        let penalty = r1_penalty(&judge(&params, &real)?, &real)?;
        (penalty.value().clone(), gradients(&scale(&penalty, weight)?, &params)?)
    };
    optim.step(d, None, &grads, Pull::None)?;
    Ok(penalty)
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
    let (loss, grads) = {
        let params = g.leaves();
        let loss = generator_loss(&judge(&generate(&params)?)?)?;
        (loss.value().clone(), gradients(&loss, &params)?)
    };
    let sum = optim.step(g, ema, &grads, regulariser.pull())?;
    Ok((loss, sum))
}

/// Gradients by all parameters. One without a path to the loss gets zeros, so that Adam's second moment decays for it
/// too (as the reference's `0 · output` terms have it).
pub(super) fn gradients(loss: &Var, params: &Params) -> Result<Vec<Var>> {
    grad_or_zero(&[loss], &params.all(), Order::Last)
}
