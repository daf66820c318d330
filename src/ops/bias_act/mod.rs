//! Bias, noise and a piecewise-linear activation in one pass, and its gradient, which is its own gradient.
//!
//! `y = gain · act(x + strength · noise + bias)`. The slope is chosen by the sign of the saved output `y`, as
//! StyleGAN2's fused leaky ReLU does (rosinality op/fused_act.py).

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
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, T> {
    pub bias: Option<&'a T>,
    /// The noise and its strength.
    pub noise: Option<(&'a T, &'a T)>,
    pub act: Activation,
}

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
