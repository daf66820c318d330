//! FIR resampling: linear in `x`, its transpose is the same op; the filter is data.

use super::grads;
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::upfirdn2d::{self as ops, Upfirdn2d};

struct Upfirdn2dRule(Upfirdn2d);

impl Rule for Upfirdn2dRule {
    fn op(&self) -> &'static str {
        "upfirdn2d"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let hw = |v: &Var| [v.dim(1), v.dim(2)];
        grads![need[0] => upfirdn2d(g, &self.0.adjoint(hw(&io.inputs[0]), hw(io.output)))?]
    }
}

/// Applies `spec` to `x` `[N, H, W, C]`.
pub fn upfirdn2d(x: &Var, spec: &Upfirdn2d) -> Result<Var> {
    Ok(Var::from_op(ops::upfirdn2d(x.value(), spec)?, &[x], Upfirdn2dRule(*spec)))
}
