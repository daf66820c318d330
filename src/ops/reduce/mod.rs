//! Reduce family: `sum_to` and its transpose `broadcast_to`, and `channel_dot`. Sums run in a fixed order; those of bf16 are
//! f32.

mod cpu;
pub(crate) mod cuda;

use crate::error::{Error, Result};
use crate::ops::elementwise::cast;
use crate::ops::{on_device, same_kind};
use crate::tensor::Tensor;

fn check_pair(op: &'static str, large: &[usize], small: &[usize]) -> Result<()> {
    let fits = large.len() == small.len() && large.iter().zip(small).all(|(l, s)| l == s || *s == 1);
    if !fits {
        return Err(Error::shape(op, format!("{small:?} must equal {large:?} or be 1 in each dimension")));
    }
    Ok(())
}

/// Sums `x` over the dimensions that are 1 in `shape`. Same rank; each dimension equal or 1.
pub fn sum_to(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    check_pair("sum_to", x.shape(), shape)?;
    if x.shape() == shape {
        return cast(x, x.dtype().accumulator());
    }
    on_device!("sum_to", &[x], T => cpu::sum_to::<T>(x, shape), d or bf16 to f32 => cuda::sum_to(&d, x, shape))
}

/// Repeats `x` along its dimensions of size 1. Same rank.
pub fn broadcast_to(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    check_pair("broadcast_to", shape, x.shape())?;
    if x.shape() == shape {
        return Ok(x.clone());
    }
    on_device!("broadcast_to", &[x], T => cpu::broadcast_to::<T>(x, shape), d or bf16 => cuda::broadcast_to(&d, x, shape))
}

/// `Σ_hw u[n, h, w, c] · v[n, h, w, c]` as `[N, C]`; equal shapes `[N, …, C]`.
pub fn channel_dot(u: &Tensor, v: &Tensor) -> Result<Tensor> {
    if u.shape() != v.shape() || u.rank() < 2 {
        return Err(Error::shape("channel_dot", format!("{:?} and {:?}: equal shapes [N, …, C]", u.shape(), v.shape())));
    }
    same_kind("channel_dot", &[u, v])?;
    on_device!("channel_dot", &[u, v], T => cpu::channel_dot::<T>(u, v), d or bf16 to f32 => cuda::channel_dot(&d, u, v))
}
