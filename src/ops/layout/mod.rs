//! Layout family: copies that move elements: `permute`, `slice` and its transpose `pad`, `concat`.
//! Reshaping needs no op: `Tensor::reshape` shares the memory.

mod cpu;
pub(crate) mod cuda;

use crate::error::{Error, Result};
use crate::ops::{on_device, same_kind};
use crate::tensor::Tensor;

/// Reorders dimensions: output dimension `i` is input dimension `order[i]`.
pub fn permute(x: &Tensor, order: &[usize]) -> Result<Tensor> {
    let mut seen = vec![false; x.rank()];
    for &d in order {
        if d >= x.rank() || std::mem::replace(&mut seen[d], true) {
            return Err(Error::shape("permute", format!("order {order:?} is no permutation of rank {}", x.rank())));
        }
    }
    if order.len() != x.rank() {
        return Err(Error::shape("permute", format!("order {order:?} for rank {}", x.rank())));
    }
    on_device!("permute", &[x], T => cpu::permute::<T>(x, order), d or bf16 => cuda::permute(&d, x, order))
}

/// `len` entries of dimension `axis` from `start`.
pub fn slice(x: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
    if axis >= x.rank() || start + len > x.dim(axis) {
        return Err(Error::shape("slice", format!("{start}..{} of dimension {axis} of {:?}", start + len, x.shape())));
    }
    if axis == 0 {
        return x.rows(start, len);
    }
    on_device!("slice", &[x], T => cpu::slice::<T>(x, axis, start, len), d or bf16 => cuda::slice(&d, x, axis, start, len))
}

/// Puts `x` at `start` of dimension `axis` of zeros with `size` entries there: the transpose of `slice`.
pub fn pad(x: &Tensor, axis: usize, start: usize, size: usize) -> Result<Tensor> {
    if axis >= x.rank() || start + x.dim(axis) > size {
        return Err(Error::shape("pad", format!("{:?} at {start} of {size} in dimension {axis}", x.shape())));
    }
    on_device!("pad", &[x], T => cpu::pad::<T>(x, axis, start, size), d or bf16 => cuda::pad(&d, x, axis, start, size))
}

/// Joins tensors along `axis`; all other dimensions equal.
pub fn concat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let first = parts.first().ok_or(Error::shape("concat", "needs at least one tensor"))?;
    for p in parts {
        let fits = p.rank() == first.rank()
            && axis < p.rank()
            && (0..p.rank()).all(|d| d == axis || p.dim(d) == first.dim(d));
        if !fits {
            return Err(Error::shape("concat", format!("{:?} and {:?} along {axis}", first.shape(), p.shape())));
        }
    }
    same_kind("concat", parts)?;
    on_device!("concat", parts, T => cpu::concat::<T>(parts, axis), d or bf16 => cuda::concat(&d, parts, axis))
}

/// Rows `indices` of the first dimension, in that order.
pub fn gather_rows(x: &Tensor, indices: &[usize]) -> Result<Tensor> {
    let rows = indices.iter().map(|&i| x.rows(i, 1)).collect::<Result<Vec<_>>>()?;
    concat(&rows.iter().collect::<Vec<_>>(), 0)
}
