//! Bias, noise and a piecewise-linear activation in one pass, and its gradient, which is its own gradient.
//!
//! `y = gain · act(x + strength · noise + bias)`. The slope is chosen by the sign of the saved output `y`, as
//! StyleGAN2's fused leaky ReLU does (rosinality op/fused_act.py).

mod cpu;
mod cuda;

use crate::error::{Error, Result};
use crate::ops::{on_device, same_kind};
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
}

/// `act(x + strength · noise + bias)`. `x` is `[…, C]`, `bias` `[C]`; `noise` is `[N or 1, H, W, 1]` for an `x` of
/// `[N, H, W, C]`, with `strength` `[1]`.
pub fn bias_act(x: &Tensor, bias: Option<&Tensor>, noise: Option<(&Tensor, &Tensor)>, act: Activation) -> Result<Tensor> {
    if let Some(b) = bias {
        if b.rank() != 1 || x.rank() == 0 || b.dim(0) != x.dim(x.rank() - 1) {
            return Err(Error::shape("bias_act", format!("bias {:?} for {:?}", b.shape(), x.shape())));
        }
        same_kind("bias_act", &[x, b])?;
    }
    if let Some((noise, strength)) = noise {
        let fits = x.rank() == 4
            && noise.rank() == 4
            && (noise.dim(0) == x.dim(0) || noise.dim(0) == 1)
            && noise.shape()[1..] == [x.dim(1), x.dim(2), 1]
            && strength.len() == 1;
        if !fits {
            return Err(Error::shape("bias_act", format!("noise {:?} (strength {:?}) for {:?}", noise.shape(), strength.shape(), x.shape())));
        }
        same_kind("bias_act", &[x, noise, strength])?;
    }
    on_device!(x, T => cpu::bias_act::<T>(x, bias, noise, act), d => cuda::bias_act(&d, x, bias, noise, act))
}

/// `g · gain · (y > 0 ? 1 : slope)`; `y` is the output of `bias_act`.
pub fn bias_act_grad(g: &Tensor, y: &Tensor, act: Activation) -> Result<Tensor> {
    if g.shape() != y.shape() {
        return Err(Error::shape("bias_act_grad", format!("gradient {:?} for output {:?}", g.shape(), y.shape())));
    }
    same_kind("bias_act_grad", &[g, y])?;
    on_device!(g, T => cpu::bias_act_grad::<T>(g, y, act), d => cuda::bias_act_grad(&d, g, y, act))
}
