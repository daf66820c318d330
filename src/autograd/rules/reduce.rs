//! Sums and broadcasts, each the derivative of the other; `channel_dot` and `channel_scale` likewise.

use super::{cast, channel_scale, grads, power, scale, square, sub};
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::elementwise::Power;
use crate::ops::reduce as ops;

struct SumToRule;

impl Rule for SumToRule {
    fn op(&self) -> &'static str {
        "sum_to"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let x = &io.inputs[0];
        grads![need[0] => broadcast_to(&cast(g, x.dtype())?, x.shape())?]
    }
}

/// Sums over the dimensions that are 1 in `shape`; of bf16 in f32.
pub fn sum_to(x: &Var, shape: &[usize]) -> Result<Var> {
    if x.shape() == shape {
        return cast(x, x.dtype().accumulator());
    }
    Ok(Var::from_op(ops::sum_to(x.value(), shape)?, &[x], SumToRule))
}

struct BroadcastToRule;

impl Rule for BroadcastToRule {
    fn op(&self) -> &'static str {
        "broadcast_to"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let x = &io.inputs[0];
        grads![need[0] => cast(&sum_to(g, x.shape())?, x.dtype())?]
    }
}

/// Repeats `x` along its dimensions of size 1.
pub fn broadcast_to(x: &Var, shape: &[usize]) -> Result<Var> {
    if x.shape() == shape {
        return Ok(x.clone());
    }
    Ok(Var::from_op(ops::broadcast_to(x.value(), shape)?, &[x], BroadcastToRule))
}

struct ChannelDotRule;

impl Rule for ChannelDotRule {
    fn op(&self) -> &'static str {
        "channel_dot"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![
            need[0] => channel_scale(&io.inputs[1], g)?,
            need[1] => channel_scale(&io.inputs[0], g)?,
        ]
    }
}

/// `Σ_hw u · v` as `[N, C]`.
pub fn channel_dot(u: &Var, v: &Var) -> Result<Var> {
    Ok(Var::from_op(ops::channel_dot(u.value(), v.value())?, &[u, v], ChannelDotRule))
}

/// Sum of all elements, shape `[1; rank]`.
pub fn sum(x: &Var) -> Result<Var> {
    sum_to(x, &vec![1; x.shape().len()])
}

/// Mean of all elements, shape `[1; rank]`.
pub fn mean(x: &Var) -> Result<Var> {
    scale(&sum(x)?, 1.0 / x.value().len().max(1) as f64)
}

/// Mean over the dimensions that are 1 in `shape`.
pub fn mean_to(x: &Var, shape: &[usize]) -> Result<Var> {
    let summed = sum_to(x, shape)?;
    scale(&summed, summed.value().len() as f64 / x.value().len().max(1) as f64)
}

/// Biased standard deviation over the dimensions that are 1 in `shape`: `sqrt(mean((x − mean)²) + eps)`.
pub fn std_to(x: &Var, shape: &[usize], eps: f64) -> Result<Var> {
    let centred = sub(x, &broadcast_to(&mean_to(x, shape)?, x.shape())?)?;
    let squares = sum_to(&square(&centred)?, shape)?;
    let n = x.value().len() as f64 / squares.value().len().max(1) as f64;
    power(&squares, Power { gain: n.sqrt().recip(), shift: eps * n, exponent: 0.5 })
}
