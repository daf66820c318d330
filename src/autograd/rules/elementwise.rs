//! Elementwise functions; the derivative of each is written with functions of this file.

use super::grads;
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::elementwise::{self as ops, Map, Power, Zip};
use crate::tensor::{DType, Tensor};

struct MapRule(Map);

impl Rule for MapRule {
    fn op(&self) -> &'static str {
        "map"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let x = &io.inputs[0];
        grads![need[0] => match self.0 {
            Map::Affine { scale: by, .. } => scale(g, by)?,
            Map::Power(p) => mul(g, &power(x, Power { gain: p.gain * p.exponent, exponent: p.exponent - 1.0, ..p })?)?,
            Map::Exp => mul(g, io.output)?,
            Map::Log => mul(g, &inverse(x)?)?,
            Map::Sigmoid => mul(g, &sub(io.output, &square(io.output)?)?)?,
            Map::Tanh => sub(g, &mul(g, &square(io.output)?)?)?,
            Map::Softplus => mul(g, &sigmoid(x)?)?,
        }]
    }
}

fn map(x: &Var, f: Map) -> Result<Var> {
    Ok(Var::from_op(ops::map(x.value(), f)?, &[x], MapRule(f)))
}

/// `by · x`
pub fn scale(x: &Var, by: f64) -> Result<Var> {
    if by == 1.0 {
        return Ok(x.clone());
    }
    map(x, Map::Affine { scale: by, shift: 0.0 })
}

/// `gain · (x + shift)^exponent`
pub fn power(x: &Var, p: Power) -> Result<Var> {
    match p.exponent {
        1.0 => map(x, Map::Affine { scale: p.gain, shift: p.gain * p.shift }),
        _ => map(x, Map::Power(p)),
    }
}

/// `x²`
pub fn square(x: &Var) -> Result<Var> {
    power(x, Power::of(2.0))
}

/// `1 / x`
pub fn inverse(x: &Var) -> Result<Var> {
    power(x, Power::of(-1.0))
}

/// `e^x`
pub fn exp(x: &Var) -> Result<Var> {
    map(x, Map::Exp)
}

/// `log x`
pub fn log(x: &Var) -> Result<Var> {
    map(x, Map::Log)
}

/// `1 / (1 + e^{-x})`
pub fn sigmoid(x: &Var) -> Result<Var> {
    map(x, Map::Sigmoid)
}

/// `tanh x`
pub fn tanh(x: &Var) -> Result<Var> {
    map(x, Map::Tanh)
}

/// `log(1 + e^x)`
pub fn softplus(x: &Var) -> Result<Var> {
    map(x, Map::Softplus)
}

struct CastRule;

impl Rule for CastRule {
    fn op(&self) -> &'static str {
        "cast"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![need[0] => cast(g, io.inputs[0].dtype())?]
    }
}

/// `x` in another type of a GPU's; no node where it has the type. Rounding counts as the identity.
pub fn cast(x: &Var, dtype: DType) -> Result<Var> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    Ok(Var::from_op(ops::cast(x.value(), dtype)?, &[x], CastRule))
}

struct ZipRule(Zip);

impl Rule for ZipRule {
    fn op(&self) -> &'static str {
        "zip"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        match self.0 {
            Zip::Add => grads![need[0] => g.clone(), need[1] => g.clone()],
            Zip::Sub => grads![need[0] => g.clone(), need[1] => scale(g, -1.0)?],
            Zip::Mul => grads![need[0] => mul(g, &io.inputs[1])?, need[1] => mul(g, &io.inputs[0])?],
        }
    }
}

fn zip(a: &Var, b: &Var, f: Zip) -> Result<Var> {
    Ok(Var::from_op(ops::zip(a.value(), b.value(), f)?, &[a, b], ZipRule(f)))
}

/// `a + b`, equal shapes.
pub fn add(a: &Var, b: &Var) -> Result<Var> {
    zip(a, b, Zip::Add)
}

/// `a − b`, equal shapes.
pub fn sub(a: &Var, b: &Var) -> Result<Var> {
    zip(a, b, Zip::Sub)
}

/// `a · b`, equal shapes.
pub fn mul(a: &Var, b: &Var) -> Result<Var> {
    zip(a, b, Zip::Mul)
}

struct ChannelScaleRule;

impl Rule for ChannelScaleRule {
    fn op(&self) -> &'static str {
        "channel_scale"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![
            need[0] => channel_scale(g, &io.inputs[1])?,
            need[1] => super::channel_dot(g, &io.inputs[0])?,
        ]
    }
}

/// `x[n, …, c] · s[n, c]`
pub fn channel_scale(x: &Var, s: &Var) -> Result<Var> {
    Ok(Var::from_op(ops::channel_scale(x.value(), s.value())?, &[x, s], ChannelScaleRule))
}

/// A constant of zeros with the shape, dtype and device of `x`.
pub fn zeros_like(x: &Var) -> Result<Var> {
    Ok(Var::constant(Tensor::full_on(x.shape(), 0.0, x.dtype(), &x.value().device())?))
}
