//! Bias, noise and activation. The activation is piecewise linear, so `bias_act_grad` is its own derivative, and the
//! saved output only selects a branch.

use super::{broadcast_to, cast, channel_dot, inverse, mul, reshape, sub, sum, sum_to};
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::bias_act::{self as ops, Activation, Epilogue};
use crate::tensor::Tensor;

/// Inputs: `x`, then `bias` if any, then `noise` and `strength` if any.
pub(super) struct BiasActRule {
    pub act: Activation,
    pub has_bias: bool,
}

/// The way back through what is added and the activation.
pub(super) struct Back {
    /// The gradient of what the epilogue follows.
    pub between: Var,
    /// Those of what is added, in the order of the inputs.
    pub terms: Vec<Option<Var>>,
    /// That of the factor of what the epilogue follows, where it is asked for.
    pub scale: Option<Var>,
}

impl BiasActRule {
    fn epilogue<'a>(&self, terms: &'a [Var]) -> Epilogue<'a, Var> {
        let (bias, noise) = terms.split_at(self.has_bias as usize);
        let noise = match noise {
            [map, strength] => Some((map, strength)),
            _ => None,
        };
        Epilogue { bias: bias.first(), noise, act: self.act }
    }

    /// From the gradient `g` of the output `y` back to `terms`, to what the activation was taken of, and to the `scale`
    /// `[N, C]` by which that was multiplied. In one pass unless the result will be differentiated.
    pub fn back(&self, g: &Var, y: &Var, terms: &[Var], need: &[bool], scale: Option<&Var>) -> Result<Back> {
        let then = self.epilogue(terms);
        let any = scale.is_some() || need.contains(&true);
        if any && self.act != Activation::LINEAR && !g.is_tracked() && !y.is_tracked() {
            let found = ops::epilogue_grad(g.value(), y.value(), then.values(), scale.map(Var::value))?;
            let between = Var::constant(found.between);
            let terms = self.terms(then, &between, need, || Ok(Var::constant(found.bias)), || Ok(Var::constant(found.strength.expect("there is noise"))))?;
            return Ok(Back { between, terms, scale: found.scale.map(Var::constant) });
        }
        let between = bias_act_grad(g, y, self.act)?;
        let strength = || {
            let (noise, strength) = then.noise.expect("there is noise");
            reshape(&sum(&mul(&per_pixel(&between, noise)?, noise)?)?, strength.shape())
        };
        let of_terms = self.terms(then, &between, need, || bias_grad(&between), strength)?;
        let scale = scale.map(|scale| of_scale(g, y, &between, then, scale)).transpose()?;
        Ok(Back { between, terms: of_terms, scale })
    }

    /// Gradients of what is added, in the order of the inputs, given that of the sum.
    fn terms(
        &self,
        then: Epilogue<Var>,
        between: &Var,
        need: &[bool],
        bias: impl FnOnce() -> Result<Var>,
        strength: impl FnOnce() -> Result<Var>,
    ) -> Result<Vec<Option<Var>>> {
        let (of_bias, of_noise) = need.split_at(self.has_bias as usize);
        let mut out = Vec::new();
        if let [needed] = of_bias {
            out.push(needed.then(bias).transpose()?);
        }
        if let (Some((noise, by)), [of_map, of_strength]) = (then.noise, of_noise) {
            let map = || mul(&per_pixel(between, noise)?, &broadcast_to(&reshape(by, &[1, 1, 1, 1])?, noise.shape())?);
            out.push(of_map.then(map).transpose()?);
            out.push(of_strength.then(strength).transpose()?);
        }
        Ok(out)
    }
}

/// The sum over channels, and over the images that share `noise`.
fn per_pixel(between: &Var, noise: &Var) -> Result<Var> {
    sum_to(between, noise.shape())
}

/// `Σ_p between · v / scale` for `y = act(v + strength · noise + bias)`; see `ops::epilogue_grad`.
fn of_scale(g: &Var, y: &Var, between: &Var, then: Epilogue<Var>, scale: &Var) -> Result<Var> {
    let (n, c) = (scale.dim(0), scale.dim(1));
    let per_sample = |x: &Var| reshape(&sum_to(&reshape(x, &[n, x.value().len() / (n * c).max(1), c])?, &[n, 1, c])?, &[n, c]);
    let times = |sums: &Var, factor: &Var, shape: [usize; 2]| mul(sums, &broadcast_to(&reshape(factor, &shape)?, &[n, c])?);
    let mut dot = channel_dot(g, y)?;
    if let Some(bias) = then.bias {
        dot = sub(&dot, &times(&per_sample(between)?, bias, [1, c])?)?;
    }
    if let Some((noise, strength)) = then.noise {
        let noise = broadcast_to(&cast(noise, between.dtype())?, between.shape())?;
        dot = sub(&dot, &times(&per_sample(&mul(between, &noise)?)?, strength, [1, 1])?)?;
    }
    mul(&dot, &inverse(scale)?)
}

impl Rule for BiasActRule {
    fn op(&self) -> &'static str {
        "bias_act"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let Back { between, terms, .. } = self.back(g, io.output, &io.inputs[1..], &need[1..], None)?;
        Ok([need[0].then_some(between)].into_iter().chain(terms).collect())
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
