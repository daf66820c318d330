//! Bias, noise and activation. The activation is piecewise linear, so `bias_act_grad` is its own derivative, and the
//! saved output only selects a branch.

use super::{mul, reshape, sum, sum_to};
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::bias_act::{self as ops, Activation, Epilogue};
use crate::tensor::Tensor;

/// Inputs: `x`, then `bias` if any, then `noise` and `strength` if any.
pub(super) struct BiasActRule {
    pub act: Activation,
    pub has_bias: bool,
}

impl BiasActRule {
    /// Gradients of the inputs after `x`, given that of their sum with it.
    pub fn terms(&self, g: &Var, inputs: &[Var], need: &[bool]) -> Result<Vec<Option<Var>>> {
        let mut out = Vec::new();
        let at = self.has_bias as usize;
        if self.has_bias {
            out.push(need[0].then(|| bias_grad(g)).transpose()?);
        }
        if let [noise, strength] = &inputs[at..] {
            let per_pixel = |like: &[usize]| sum_to(g, &[like[0], like[1], like[2], 1]);
            out.push(need[at].then(|| mul(&per_pixel(noise.shape())?, &super::broadcast_to(&reshape(strength, &[1, 1, 1, 1])?, noise.shape())?)).transpose()?);
            out.push(need[at + 1].then(|| reshape(&sum(&mul(&per_pixel(noise.shape())?, noise)?)?, strength.shape())).transpose()?);
        }
        Ok(out)
    }
}

impl Rule for BiasActRule {
    fn op(&self) -> &'static str {
        "bias_act"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let gx = bias_act_grad(g, io.output, self.act)?;
        let mut out = vec![need[0].then(|| gx.clone())];
        out.extend(self.terms(&gx, &io.inputs[1..], &need[1..])?);
        Ok(out)
    }
}

impl<'a> Epilogue<'a, Var> {
    /// Without history.
    pub(super) fn values(&self) -> Epilogue<'a, Tensor> {
        Epilogue { bias: self.bias.map(Var::value), noise: self.noise.map(|(n, s)| (n.value(), s.value())), act: self.act }
    }

    /// What is added, in the order of `BiasActRule`.
    pub(super) fn terms(&self) -> impl Iterator<Item = &'a Var> {
        self.bias.into_iter().chain(self.noise.into_iter().flat_map(|(n, s)| [n, s]))
    }
}

/// Sum of `[…, C]` over everything but channels, `[C]`.
fn bias_grad(g: &Var) -> Result<Var> {
    let c = g.dim(g.shape().len() - 1);
    let rows = g.value().len() / c.max(1);
    reshape(&sum_to(&reshape(g, &[rows, c])?, &[1, c])?, &[c])
}

/// `act(x + strength · noise + bias)`; see `ops::bias_act`.
pub fn bias_act(x: &Var, bias: Option<&Var>, noise: Option<(&Var, &Var)>, act: Activation) -> Result<Var> {
    let then = Epilogue { bias, noise, act };
    let values = then.values();
    let value = ops::bias_act(x.value(), values.bias, values.noise, act)?;
    let inputs: Vec<&Var> = [x].into_iter().chain(then.terms()).collect();
    Ok(Var::from_op(value, &inputs, BiasActRule { act, has_bias: bias.is_some() }))
}

struct BiasActGradRule(Activation);

impl Rule for BiasActGradRule {
    fn op(&self) -> &'static str {
        "bias_act_grad"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        // `y` selects a branch: its derivative is zero almost everywhere.
        Ok(vec![need[0].then(|| bias_act_grad(g, &io.inputs[1], self.0)).transpose()?, None])
    }
}

/// `g · gain · (y > 0 ? 1 : slope)`.
pub fn bias_act_grad(g: &Var, y: &Var, act: Activation) -> Result<Var> {
    if act == Activation::LINEAR {
        return Ok(g.clone());
    }
    // Only the sign of `y` matters: detached, so that its history is not kept alive.
    let y = y.detach();
    Ok(Var::from_op(ops::bias_act_grad(g.value(), y.value(), act)?, &[g, &y], BiasActGradRule(act)))
}
