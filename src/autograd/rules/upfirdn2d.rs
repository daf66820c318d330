//! FIR resampling: linear in `x`, its transpose is the same op; the filter is data.

use super::bias_act::{Back, BiasActRule};
use super::grads;
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::bias_act::Epilogue;
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

/// Inputs: `x`, then those that are added.
struct Upfirdn2dActRule {
    filter: Upfirdn2dRule,
    then: BiasActRule,
}

impl Rule for Upfirdn2dActRule {
    fn op(&self) -> &'static str {
        "upfirdn2d_act"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let Back { between, terms, .. } = self.then.back(g, io.output, &io.inputs[1..], &need[1..], None)?;
        let mut out = self.filter.vjp(&Io { inputs: &io.inputs[..1], output: io.output }, &between, &need[..1])?;
        out.extend(terms);
        Ok(out)
    }
}

/// `act(upfirdn2d(x) + strength · noise + bias)`; see `ops::upfirdn2d_act`.
pub fn upfirdn2d_act(x: &Var, spec: &Upfirdn2d, then: Epilogue<Var>) -> Result<Var> {
    let y = ops::upfirdn2d_act(x.value(), spec, then.values())?;
    let inputs: Vec<&Var> = [x].into_iter().chain(then.terms()).collect();
    let rule = Upfirdn2dActRule { filter: Upfirdn2dRule(*spec), then: BiasActRule { act: then.act, has_bias: then.bias.is_some() } };
    Ok(Var::from_op(y, &inputs, rule))
}
