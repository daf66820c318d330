//! R1 gradient penalty (Mescheder et al. 2018).

use crate::autograd::{Order, Var, grad_or_zero, reshape, scale, square, sum};
use crate::error::Result;

/// `mean_n Σ_pixels (∂ Σ logits / ∂ image)²`, one element, differentiable. `images` must be a leaf. The inner gradient
/// asks for images only, so no weight gradient is computed in it.
pub fn r1_penalty(logits: &Var, images: &Var) -> Result<Var> {
    let g = grad_or_zero(&[logits], &[images], Order::Differentiable)?.remove(0);
    reshape(&scale(&sum(&square(&g)?)?, 1.0 / images.dim(0) as f64)?, &[1])
}
