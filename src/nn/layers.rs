//! Layers of StyleGAN2 with equalised learning rate: the stored weight is N(0, 1), the used one is `scale · weight`.

use crate::autograd::{Var, add_scalar, bias_act, broadcast_to, matmul, mean_to, mul, powf, scale, square};
use crate::error::Result;
use crate::ops::bias_act::Activation;
use crate::ops::matmul::Read;

/// `act(x · (Wᵀ · lr_mul / √in) + lr_mul · b)`. `x` `[N, in]`, `w` `[out, in]`, `b` `[out]` (rosinality EqualLinear).
pub fn equal_linear(x: &Var, w: &Var, b: &Var, lr_mul: f64, act: Activation) -> Result<Var> {
    let factor = lr_mul / (w.dim(1) as f64).sqrt();
    // The smaller operand is scaled: activations of a batch rather than the weight.
    let y = if x.value().len() <= w.value().len() {
        matmul(&scale(x, factor)?, Read::Plain, w, Read::Transposed)?
    } else {
        matmul(x, Read::Plain, &scale(w, factor)?, Read::Transposed)?
    };
    bias_act(&y, Some(&scale(b, lr_mul)?), None, act)
}

/// `x · rsqrt(mean_c(x²) + 1e-8)` over the last dimension of `[N, C]` (PixelNorm).
pub fn pixel_norm(x: &Var) -> Result<Var> {
    let factor = powf(&add_scalar(&mean_to(&square(x)?, &[x.dim(0), 1])?, 1e-8)?, -0.5)?;
    mul(x, &broadcast_to(&factor, x.shape())?)
}
