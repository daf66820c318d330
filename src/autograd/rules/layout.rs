//! Moves of elements: each op's derivative is its inverse move.

use super::grads;
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::layout as ops;

struct ReshapeRule;

impl Rule for ReshapeRule {
    fn op(&self) -> &'static str {
        "reshape"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![need[0] => reshape(g, io.inputs[0].shape())?]
    }
}

/// The same elements under another shape; no copy.
pub fn reshape(x: &Var, shape: &[usize]) -> Result<Var> {
    if x.shape() == shape {
        return Ok(x.clone());
    }
    Ok(Var::from_op(x.value().reshape(shape)?, &[x], ReshapeRule))
}

struct PermuteRule(Vec<usize>);

impl Rule for PermuteRule {
    fn op(&self) -> &'static str {
        "permute"
    }
    fn vjp(&self, _: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let mut inverse = vec![0; self.0.len()];
        for (to, from) in self.0.iter().enumerate() {
            inverse[*from] = to;
        }
        grads![need[0] => permute(g, &inverse)?]
    }
}

/// Output dimension `i` is input dimension `order[i]`.
pub fn permute(x: &Var, order: &[usize]) -> Result<Var> {
    Ok(Var::from_op(ops::permute(x.value(), order)?, &[x], PermuteRule(order.to_vec())))
}

struct SliceRule {
    axis: usize,
    start: usize,
}

impl Rule for SliceRule {
    fn op(&self) -> &'static str {
        "slice"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![need[0] => pad(g, self.axis, self.start, io.inputs[0].dim(self.axis))?]
    }
}

/// `len` entries of dimension `axis` from `start`.
pub fn slice(x: &Var, axis: usize, start: usize, len: usize) -> Result<Var> {
    Ok(Var::from_op(ops::slice(x.value(), axis, start, len)?, &[x], SliceRule { axis, start }))
}

struct PadRule {
    axis: usize,
    start: usize,
}

impl Rule for PadRule {
    fn op(&self) -> &'static str {
        "pad"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![need[0] => slice(g, self.axis, self.start, io.inputs[0].dim(self.axis))?]
    }
}

/// `x` at `start` of `size` zeros along `axis`.
pub fn pad(x: &Var, axis: usize, start: usize, size: usize) -> Result<Var> {
    Ok(Var::from_op(ops::pad(x.value(), axis, start, size)?, &[x], PadRule { axis, start }))
}

struct ConcatRule(usize);

impl Rule for ConcatRule {
    fn op(&self) -> &'static str {
        "concat"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let mut start = 0;
        io.inputs
            .iter()
            .zip(need)
            .map(|(input, need)| {
                let (at, len) = (start, input.dim(self.0));
                start += len;
                need.then(|| slice(g, self.0, at, len)).transpose()
            })
            .collect()
    }
}

/// Joins along `axis`.
pub fn concat(parts: &[&Var], axis: usize) -> Result<Var> {
    let values: Vec<_> = parts.iter().map(|p| p.value()).collect();
    Ok(Var::from_op(ops::concat(&values, axis)?, parts, ConcatRule(axis)))
}

/// The same value as a node of its own, so that a gradient can be asked for this use of it alone.
pub fn alias(x: &Var) -> Var {
    Var::from_op(x.value().clone(), &[x], ReshapeRule)
}
