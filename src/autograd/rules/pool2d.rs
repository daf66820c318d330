//! Pooling: averages and their transpose; max pooling as a selection that is constant to differentiation.

use super::grads;
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::pool2d::{self as ops, Divisor, Window};
use crate::tensor::Tensor;

/// Largest element of every window; see `ops::pool2d::max_pool2d`. Its derivative is that of the selection it makes.
pub fn max_pool2d(x: &Var, window: Window) -> Result<Var> {
    if !x.is_tracked() {
        return Ok(Var::constant(ops::max_pool2d(x.value(), window)?));
    }
    gather_taps(x, &ops::max_pool2d_taps(x.value(), window)?, window)
}

struct GatherTapsRule {
    taps: Tensor,
    window: Window,
}

impl Rule for GatherTapsRule {
    fn op(&self) -> &'static str {
        "gather_taps"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let x = &io.inputs[0];
        grads![need[0] => scatter_taps(g, &self.taps, self.window, [x.dim(1), x.dim(2)])?]
    }
}

/// The element of each window that `taps` names; see `ops::pool2d::gather_taps`.
pub fn gather_taps(x: &Var, taps: &Tensor, window: Window) -> Result<Var> {
    let y = ops::gather_taps(x.value(), taps, window)?;
    Ok(Var::from_op(y, &[x], GatherTapsRule { taps: taps.clone(), window }))
}

struct ScatterTapsRule {
    taps: Tensor,
    window: Window,
}

impl Rule for ScatterTapsRule {
    fn op(&self) -> &'static str {
        "scatter_taps"
    }
    fn vjp(&self, _: &Io, h: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![need[0] => gather_taps(h, &self.taps, self.window)?]
    }
}

/// The transpose of `gather_taps`; see `ops::pool2d::scatter_taps`.
pub fn scatter_taps(g: &Var, taps: &Tensor, window: Window, size: [usize; 2]) -> Result<Var> {
    let x = ops::scatter_taps(g.value(), taps, window, size)?;
    Ok(Var::from_op(x, &[g], ScatterTapsRule { taps: taps.clone(), window }))
}

struct AvgPool2dRule(Window, Divisor);

impl Rule for AvgPool2dRule {
    fn op(&self) -> &'static str {
        "avg_pool2d"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let x = &io.inputs[0];
        grads![need[0] => avg_pool2d_transpose(g, self.0, self.1, [x.dim(1), x.dim(2)])?]
    }
}

/// Average of every window; see `ops::pool2d::avg_pool2d`.
pub fn avg_pool2d(x: &Var, window: Window, divisor: Divisor) -> Result<Var> {
    Ok(Var::from_op(ops::avg_pool2d(x.value(), window, divisor)?, &[x], AvgPool2dRule(window, divisor)))
}

struct AvgPool2dTransposeRule(Window, Divisor);

impl Rule for AvgPool2dTransposeRule {
    fn op(&self) -> &'static str {
        "avg_pool2d_transpose"
    }
    fn vjp(&self, _: &Io, h: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        grads![need[0] => avg_pool2d(h, self.0, self.1)?]
    }
}

/// The transpose of `avg_pool2d`; see `ops::pool2d::avg_pool2d_transpose`.
pub fn avg_pool2d_transpose(g: &Var, window: Window, divisor: Divisor, size: [usize; 2]) -> Result<Var> {
    let x = ops::avg_pool2d_transpose(g.value(), window, divisor, size)?;
    Ok(Var::from_op(x, &[g], AvgPool2dTransposeRule(window, divisor)))
}
