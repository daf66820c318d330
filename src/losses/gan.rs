//! Non-saturating logistic losses.

use crate::autograd::{Var, add, mean, reshape, scale, slice, softplus};
use crate::error::Result;

/// `mean softplus(−s(real)) + mean softplus(s(fake))`, one element. `logits` `[2N, 1]`: real, then fake.
pub fn discriminator_loss(logits: &Var) -> Result<Var> {
    let n = logits.dim(0) / 2;
    let real = mean(&softplus(&scale(&slice(logits, 0, 0, n)?, -1.0)?)?)?;
    let fake = mean(&softplus(&slice(logits, 0, n, n)?)?)?;
    reshape(&add(&real, &fake)?, &[1])
}

/// `mean softplus(−s(fake))`, one element. `logits` `[N, 1]`.
pub fn generator_loss(logits: &Var) -> Result<Var> {
    reshape(&mean(&softplus(&scale(logits, -1.0)?)?)?, &[1])
}
