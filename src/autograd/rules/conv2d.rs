//! The scaled convolution family: derivatives of one trilinear form, so each op's rule is made of the others.

use super::bias_act::{Back, BiasActRule};
use super::{channel_dot, channel_scale, inverse, mul};
use crate::autograd::{Gradients, Io, Rule, Var};
use crate::error::Result;
use crate::ops::bias_act::Epilogue;
use crate::ops::conv2d::{self as ops, Conv2d, WeightGrad};

/// Optional per-sample channel scales: `input` on the `x` side `[N, C_in]` (`a`), `output` on the `g` side
/// `[N, C_out]` (`b`).
///
/// The gradient of a scale that multiplies an op's result is taken as `Σ g·y / scale`, so such a scale must not be
/// zero when its gradient is asked; demodulation factors are positive.
#[derive(Clone, Copy, Default)]
pub struct Scales<'a> {
    pub input: Option<&'a Var>,
    pub output: Option<&'a Var>,
}

impl Scales<'_> {
    pub const NONE: Scales<'static> = Scales { input: None, output: None };
}

/// Positions of the optional scales among a node's inputs: 0 and 1 are the two operands.
#[derive(Clone, Copy)]
struct Slots {
    a: Option<usize>,
    b: Option<usize>,
}

impl Slots {
    fn of(s: Scales) -> Slots {
        Slots { a: s.input.map(|_| 2), b: s.output.map(|_| 2 + s.input.is_some() as usize) }
    }
    fn scales<'a>(&self, io: &'a Io) -> Scales<'a> {
        Scales { input: self.a.map(|i| &io.inputs[i]), output: self.b.map(|i| &io.inputs[i]) }
    }
    fn needs(&self, slot: Option<usize>, need: &[bool]) -> bool {
        slot.is_some_and(|i| need[i])
    }
    fn inputs<'a>(u: &'a Var, v: &'a Var, s: Scales<'a>) -> Vec<&'a Var> {
        [Some(u), Some(v), s.input, s.output].into_iter().flatten().collect()
    }
    /// Orders gradients as the node's inputs are.
    fn collect(&self, u: Option<Var>, v: Option<Var>, a: Option<Var>, b: Option<Var>) -> Vec<Option<Var>> {
        let mut out = vec![u, v];
        out.extend(self.a.map(|_| a));
        out.extend(self.b.map(|_| b));
        out
    }
}

/// Gradients of an operand and of the scale applied to it, from the gradient `u` of their product.
fn scaled_operand(operand: &Var, scale: Option<&Var>, need: (bool, bool), u: impl FnOnce() -> Result<Var>) -> Result<(Option<Var>, Option<Var>)> {
    if !need.0 && !need.1 {
        return Ok((None, None));
    }
    let u = u()?;
    let of_scale = need.1.then(|| channel_dot(operand, &u)).transpose()?;
    let of_operand = match (need.0, scale) {
        (false, _) => None,
        (true, None) => Some(u),
        (true, Some(s)) => Some(channel_scale(&u, s)?),
    };
    Ok((of_operand, of_scale))
}

/// Gradient of a scale that multiplies the result `y`, from the gradient `g` of `y`.
fn result_scale(g: &Var, y: &Var, scale: Option<&Var>, need: bool) -> Result<Option<Var>> {
    match scale {
        Some(s) if need => Ok(Some(mul(&channel_dot(g, y)?, &inverse(s)?)?)),
        _ => Ok(None),
    }
}

fn kernel(w: &Var) -> [usize; 2] {
    [w.dim(1), w.dim(2)]
}

fn size(x: &Var) -> [usize; 2] {
    [x.dim(1), x.dim(2)]
}

/// What the gradient of the weight, input 1, is computed from; `x` and `g` are the form's other two sides.
fn weight_grad(x: &Var, g: &Var, s: Scales, spec: Conv2d, w: &Var) -> WeightGrad {
    let value = |v: &Var| v.value().clone();
    WeightGrad { x: value(x), g: value(g), a: s.input.map(value), b: s.output.map(value), spec, kernel: kernel(w) }
}

/// `vjp` without the weight's gradient where that may be left.
fn leaving(rule: &impl Rule, io: &Io, g: &Var, need: &[bool], leave: &[bool], left: impl FnOnce() -> WeightGrad) -> Result<Gradients> {
    if !need[1] || !leave[1] {
        return Ok((rule.vjp(io, g, need)?, None));
    }
    let mut rest = need.to_vec();
    rest[1] = false;
    Ok((rule.vjp(io, g, &rest)?, Some((1, left()))))
}

struct Conv2dRule(Conv2d, Slots);

impl Rule for Conv2dRule {
    fn op(&self) -> &'static str {
        "conv2d"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let (Conv2dRule(spec, slots), x, w) = (self, &io.inputs[0], &io.inputs[1]);
        let s = slots.scales(io);
        let (gx, ga) = scaled_operand(x, s.input, (need[0], slots.needs(slots.a, need)), || {
            conv2d_transpose(g, w, Scales { input: None, output: s.output }, *spec, size(x))
        })?;
        let gw = need[1].then(|| conv2d_weight_grad(x, g, s, *spec, kernel(w))).transpose()?;
        let gb = result_scale(g, io.output, s.output, slots.needs(slots.b, need))?;
        Ok(slots.collect(gx, gw, ga, gb))
    }
    fn vjp_leaving(&self, io: &Io, g: &Var, need: &[bool], leave: &[bool]) -> Result<Gradients> {
        leaving(self, io, g, need, leave, || weight_grad(&io.inputs[0], g, self.1.scales(io), self.0, &io.inputs[1]))
    }
}

/// Convolution; see `ops::conv2d`.
pub fn conv2d(x: &Var, w: &Var, s: Scales, spec: Conv2d) -> Result<Var> {
    let y = ops::conv2d(x.value(), w.value(), s.input.map(Var::value), s.output.map(Var::value), spec)?;
    Ok(Var::from_op(y, &Slots::inputs(x, w, s), Conv2dRule(spec, Slots::of(s))))
}

/// Inputs: those of the convolution, then those that are added. The convolution's own result is not kept.
struct Conv2dActRule {
    conv: Conv2dRule,
    then: BiasActRule,
}

impl Rule for Conv2dActRule {
    fn op(&self) -> &'static str {
        "conv2d_act"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        Ok(self.vjp_leaving(io, g, need, &vec![false; need.len()])?.0)
    }
    fn vjp_leaving(&self, io: &Io, g: &Var, need: &[bool], leave: &[bool]) -> Result<Gradients> {
        let Slots { a, b } = self.conv.1;
        let convolved = 2 + a.is_some() as usize + b.is_some() as usize;
        let scale = b.filter(|b| need[*b]).map(|b| &io.inputs[b]);
        let Back { between, terms, scale } = self.then.back(g, io.output, &io.inputs[convolved..], &need[convolved..], scale)?;
        let mut of_conv = need[..convolved].to_vec();
        if let Some(b) = b {
            of_conv[b] = false;
        }
        let (mut out, left) = self.conv.vjp_leaving(&Io { inputs: &io.inputs[..convolved], output: io.output }, &between, &of_conv, leave)?;
        if let Some(b) = b {
            out[b] = scale;
        }
        out.extend(terms);
        Ok((out, left))
    }
}

/// `act(conv2d(…) + strength · noise + bias)`; see `ops::conv2d_act`. Nothing between is kept: the gradient by the output
/// scale comes from the output (`ops::epilogue_grad`).
pub fn conv2d_act(x: &Var, w: &Var, s: Scales, spec: Conv2d, then: Epilogue<Var>) -> Result<Var> {
    let y = ops::conv2d_act(x.value(), w.value(), s.input.map(Var::value), s.output.map(Var::value), spec, then.values())?;
    let inputs: Vec<&Var> = Slots::inputs(x, w, s).into_iter().chain(then.terms()).collect();
    let rule = Conv2dActRule { conv: Conv2dRule(spec, Slots::of(s)), then: BiasActRule { act: then.act, has_bias: then.bias.is_some() } };
    Ok(Var::from_op(y, &inputs, rule))
}

struct Conv2dTransposeRule(Conv2d, Slots);

impl Rule for Conv2dTransposeRule {
    fn op(&self) -> &'static str {
        "conv2d_transpose"
    }
    fn vjp(&self, io: &Io, h: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let (Conv2dTransposeRule(spec, slots), g, w) = (self, &io.inputs[0], &io.inputs[1]);
        let s = slots.scales(io);
        let (gg, gb) = scaled_operand(g, s.output, (need[0], slots.needs(slots.b, need)), || {
            conv2d(h, w, Scales { input: s.input, output: None }, *spec)
        })?;
        let gw = need[1].then(|| conv2d_weight_grad(h, g, s, *spec, kernel(w))).transpose()?;
        let ga = result_scale(h, io.output, s.input, slots.needs(slots.a, need))?;
        Ok(slots.collect(gg, gw, ga, gb))
    }
    fn vjp_leaving(&self, io: &Io, h: &Var, need: &[bool], leave: &[bool]) -> Result<Gradients> {
        leaving(self, io, h, need, leave, || weight_grad(h, &io.inputs[0], self.1.scales(io), self.0, &io.inputs[1]))
    }
}

/// The transpose of `conv2d` in its input; see `ops::conv2d_transpose`. `s.output` scales `g`, `s.input` the result.
pub fn conv2d_transpose(g: &Var, w: &Var, s: Scales, spec: Conv2d, size: [usize; 2]) -> Result<Var> {
    let z = ops::conv2d_transpose(g.value(), w.value(), s.output.map(Var::value), s.input.map(Var::value), spec, size)?;
    Ok(Var::from_op(z, &Slots::inputs(g, w, s), Conv2dTransposeRule(spec, Slots::of(s))))
}

struct Conv2dWeightGradRule(Conv2d, Slots);

impl Rule for Conv2dWeightGradRule {
    fn op(&self) -> &'static str {
        "conv2d_weight_grad"
    }
    fn vjp(&self, io: &Io, h: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let (Conv2dWeightGradRule(spec, slots), x, g) = (self, &io.inputs[0], &io.inputs[1]);
        let s = slots.scales(io);
        let (gx, ga) = scaled_operand(x, s.input, (need[0], slots.needs(slots.a, need)), || {
            conv2d_transpose(g, h, Scales { input: None, output: s.output }, *spec, size(x))
        })?;
        let (gg, gb) = scaled_operand(g, s.output, (need[1], slots.needs(slots.b, need)), || {
            conv2d(x, h, Scales { input: s.input, output: None }, *spec)
        })?;
        Ok(slots.collect(gx, gg, ga, gb))
    }
}

/// The weight side of the form; see `ops::conv2d_weight_grad`.
pub fn conv2d_weight_grad(x: &Var, g: &Var, s: Scales, spec: Conv2d, kernel: [usize; 2]) -> Result<Var> {
    let v = ops::conv2d_weight_grad(x.value(), g.value(), s.input.map(Var::value), s.output.map(Var::value), spec, kernel)?;
    Ok(Var::from_op(v, &Slots::inputs(x, g, s), Conv2dWeightGradRule(spec, Slots::of(s))))
}
