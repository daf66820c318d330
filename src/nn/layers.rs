//! Layers of StyleGAN2 with equalised learning rate: the stored weight is N(0, 1), the used one is `scale · weight`.

use crate::autograd::{Var, bias_act, broadcast_to, matmul_scaled, mul, power, square, sum_to};
use crate::error::Result;
use crate::ops::bias_act::Activation;
use crate::ops::elementwise::Power;
use crate::ops::matmul::Read;

/// `act(x · (Wᵀ · lr_mul / √in) + lr_mul · b)`, `lr_mul` > 0. `x` `[N, in]`, `w` `[out, in]`, `b` `[out]` (rosinality EqualLinear).
pub fn equal_linear(x: &Var, w: &Var, b: &Var, lr_mul: f64, act: Activation) -> Result<Var> {
    let y = matmul_scaled(1.0 / (w.dim(1) as f64).sqrt(), x, Read::Plain, w, Read::Transposed)?;
    // A piecewise linear activation lets a positive factor of its argument pass.
    bias_act(&y, Some(b), None, Activation { gain: lr_mul * act.gain, ..act })
}

/// `x · rsqrt(mean_c(x²) + 1e-8)` over the last dimension of `[N, C]` (PixelNorm).
pub fn pixel_norm(x: &Var) -> Result<Var> {
    let c = x.dim(1) as f64;
    let factor = power(&sum_to(&square(x)?, &[x.dim(0), 1])?, Power { gain: c.sqrt(), shift: 1e-8 * c, exponent: -0.5 })?;
    mul(x, &broadcast_to(&factor, x.shape())?)
}
