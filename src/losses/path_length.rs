//! Path-length regularisation (StyleGAN2 §3.2, as rosinality computes it).

use crate::autograd::{Order, Var, add, broadcast_to, grad_seeded, mean, power, reshape, scale, square, sub, sum_to, zeros_like};
use crate::error::Result;
use crate::ops::elementwise::Power;
use crate::tensor::Tensor;

/// What one evaluation gives.
pub struct PathLength {
    /// `mean_n (length_n − m')²`, one element, differentiable; `m'` is the updated running mean, part of the graph.
    pub penalty: Var,
    /// The updated running mean, `[1]`.
    pub running_mean: Tensor,
}

/// Step of the running mean towards the batch's mean length.
pub const DECAY: f64 = 0.01;

/// The penalty of a batch; `ws`, `y` as for `path_lengths`, `running_mean` as for `path_penalty`.
pub fn path_length(images: &Var, ws: &[Var], y: &Tensor, running_mean: &Tensor) -> Result<PathLength> {
    path_penalty(&path_lengths(images, ws, y, Order::Differentiable)?, running_mean)
}

/// `length_n = sqrt(mean_layers Σ_d (∂ Σ images·y / ∂ w)²)`, `[N, 1]`. `ws`: the style of each layer, nodes that `images`
/// depends on. `y` `[N, H, W, 3]`: normal noise already divided by √(H·W).
pub fn path_lengths(images: &Var, ws: &[Var], y: &Tensor, order: Order) -> Result<Var> {
    let targets: Vec<&Var> = ws.iter().collect();
    let seed = Var::constant(y.to_dtype(images.dtype()));
    let gradients = grad_seeded(&[images], &[seed], &targets, order)?;
    let n = images.dim(0);
    let mut energy: Option<Var> = None;
    for (g, w) in gradients.into_iter().zip(ws) {
        let e = sum_to(&square(&g.map_or_else(|| zeros_like(w), Ok)?)?, &[n, 1])?;
        energy = Some(match energy {
            None => e,
            Some(sum) => add(&sum, &e)?,
        });
    }
    let energy = energy.expect("a generator has style layers");
    power(&energy, Power { gain: (ws.len() as f64).sqrt().recip(), shift: 0.0, exponent: 0.5 })
}

/// The penalty of the lengths of a batch; `running_mean` `[1]`: of the steps before.
pub fn path_penalty(lengths: &Var, running_mean: &Tensor) -> Result<PathLength> {
    let batch_mean = mean(lengths)?;
    // m' = m + decay (mean − m), with the gradient flowing through the batch's mean.
    let before = Var::constant(running_mean.to_dtype(lengths.dtype()).reshape(batch_mean.shape())?);
    let updated = add(&scale(&batch_mean, DECAY)?, &scale(&before, 1.0 - DECAY)?)?;
    let penalty = reshape(&mean(&square(&sub(lengths, &broadcast_to(&updated, lengths.shape())?)?)?)?, &[1])?;
    Ok(PathLength { penalty, running_mean: updated.value().reshape(&[1])? })
}
