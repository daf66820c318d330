//! Bias, noise and a piecewise-linear activation in one pass, and its gradient, which is its own gradient.
//!
//! `y = gain · act(x + strength · noise + bias)`. The slope is chosen by the sign of the saved output `y`, as
//! StyleGAN2's fused leaky ReLU does (rosinality op/fused_act.py). `epilogue_grad` is the way back in one pass, sums
//! included.

pub(crate) mod cpu;
pub(crate) mod cuda;

use crate::error::{Error, Result};
use crate::ops::{on_device, parameters_of, same_kind};
use crate::tensor::Tensor;

/// `gain · (v > 0 ? v : slope · v)`; slope 1 is linear, 0 is ReLU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    pub slope: f64,
    pub gain: f64,
}

impl Activation {
    pub const LINEAR: Activation = Activation { slope: 1.0, gain: 1.0 };
    pub const RELU: Activation = Activation { slope: 0.0, gain: 1.0 };
    /// StyleGAN2's: slope 0.2, gain √2.
    pub const LEAKY_RELU: Activation = Activation { slope: 0.2, gain: std::f64::consts::SQRT_2 };

    /// Factors of positive and of other values, as kernels take them.
    pub(crate) fn factors(self) -> (f32, f32) {
        (self.gain as f32, (self.gain * self.slope) as f32)
    }
}

/// What follows another op in the same pass: `act(v + strength · noise + bias)`, with the shapes of `bias_act`.
#[derive(Debug)]
pub struct Epilogue<'a, T> {
    pub bias: Option<&'a T>,
    /// The noise and its strength.
    pub noise: Option<(&'a T, &'a T)>,
    pub act: Activation,
}

// References are copied, whatever they refer to.
impl<T> Clone for Epilogue<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Epilogue<'_, T> {}

impl<T> Epilogue<'_, T> {
    /// Nothing follows.
    pub const NONE: Self = Epilogue { bias: None, noise: None, act: Activation::LINEAR };

    /// Whether anything follows.
    pub fn is_some(&self) -> bool {
        self.bias.is_some() || self.noise.is_some() || self.act != Activation::LINEAR
    }
}

/// Checks what is added to a tensor of `shape` that is an activation as `x` is.
pub(crate) fn check_terms(op: &'static str, x: &Tensor, shape: &[usize], bias: Option<&Tensor>, noise: Option<(&Tensor, &Tensor)>) -> Result<()> {
    if let Some(b) = bias {
        if b.rank() != 1 || shape.last() != Some(&b.dim(0)) {
            return Err(Error::shape(op, format!("bias {:?} for {shape:?}", b.shape())));
        }
        parameters_of(op, x, &[b])?;
    }
    if let Some((noise, strength)) = noise {
        let fits = shape.len() == 4
            && noise.rank() == 4
            && (noise.dim(0) == shape[0] || noise.dim(0) == 1)
            && noise.shape()[1..] == [shape[1], shape[2], 1]
            && strength.len() == 1;
        if !fits {
            return Err(Error::shape(op, format!("noise {:?} (strength {:?}) for {shape:?}", noise.shape(), strength.shape())));
        }
        parameters_of(op, x, &[noise, strength])?;
    }
    Ok(())
}

/// `act(x + strength · noise + bias)`. `x` is `[…, C]`, `bias` `[C]`; `noise` is `[N or 1, H, W, 1]` for an `x` of
/// `[N, H, W, C]`, with `strength` `[1]`.
pub fn bias_act(x: &Tensor, bias: Option<&Tensor>, noise: Option<(&Tensor, &Tensor)>, act: Activation) -> Result<Tensor> {
    check_terms("bias_act", x, x.shape(), bias, noise)?;
    let then = Epilogue { bias, noise, act };
    on_device!("bias_act", &[x], T => cpu::bias_act::<T>(x, then), d or bf16 => cuda::bias_act(&d, x, then))
}

/// `g · gain · (y > 0 ? 1 : slope)`; `y` is the output of `bias_act`.
pub fn bias_act_grad(g: &Tensor, y: &Tensor, act: Activation) -> Result<Tensor> {
    if g.shape() != y.shape() {
        return Err(Error::shape("bias_act_grad", format!("gradient {:?} for output {:?}", g.shape(), y.shape())));
    }
    same_kind("bias_act_grad", &[g, y])?;
    on_device!("bias_act_grad", &[g, y], T => cpu::bias_act_grad::<T>(g, y, act), d or bf16 => cuda::bias_act_grad(&d, g, y, act))
}

/// What `epilogue_grad` finds.
#[derive(Clone, Debug)]
pub struct EpilogueGrad {
    /// By what the epilogue follows: `h = bias_act_grad(g, y)`.
    pub between: Tensor,
    /// By the bias, `Σ_np h`, `[C]`.
    pub bias: Tensor,
    /// By the noise's strength, `Σ_npc h · noise`, `[1]`; where there is noise.
    pub strength: Option<Tensor>,
    /// By the scale, `[N, C]`; where there is one.
    pub scale: Option<Tensor>,
}

/// Everything behind `y = act(v + strength · noise + bias)` `[N, …, C]` in one pass over it and its gradient `g`; where `v`
/// is `scale[n, c] · u`, also the gradient by `scale`, without `u` or `v`: as the activation is linear on either side of
/// zero, `Σ_p h · v = Σ_p g · y − strength · Σ_p h · noise − bias · Σ_p h`. No scale may be zero. The activation must not
/// be linear in all (`h` would be a copy).
pub fn epilogue_grad(g: &Tensor, y: &Tensor, then: Epilogue<Tensor>, scale: Option<&Tensor>) -> Result<EpilogueGrad> {
    const OP: &str = "epilogue_grad";
    if g.shape() != y.shape() || y.rank() < 2 {
        return Err(Error::shape(OP, format!("gradient {:?} for output {:?}: equal shapes [N, …, C]", g.shape(), y.shape())));
    }
    same_kind(OP, &[g, y])?;
    check_terms(OP, y, y.shape(), then.bias, then.noise)?;
    if let Some(scale) = scale {
        let want = [y.dim(0), y.dim(y.rank() - 1)];
        if scale.shape() != want {
            return Err(Error::shape(OP, format!("scale {:?} must be {want:?}", scale.shape())));
        }
        parameters_of(OP, y, &[scale])?;
    }
    let mut found = None;
    let mut keep = |all: EpilogueGrad| found.insert(all).between.clone();
    let between = on_device!("epilogue_grad", &[g, y], T => keep(cpu::epilogue_grad::<T>(g, y, then, scale)), d or bf16 => cuda::epilogue_grad(&d, g, y, then, scale).map(keep))?;
    Ok(EpilogueGrad { between, ..found.expect("one of them has run") })
}
