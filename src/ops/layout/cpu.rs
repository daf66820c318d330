//! Host implementation: runs of contiguous elements are copied whole.

use crate::device::cpu::{Buffer, for_chunks};
use crate::tensor::{Scalar, Tensor};

pub fn permute<T: Scalar>(x: &Tensor, order: &[usize]) -> Tensor {
    let src = x.as_slice::<T>();
    let mut strides = vec![1; x.rank()];
    for d in (0..x.rank().saturating_sub(1)).rev() {
        strides[d] = strides[d + 1] * x.dim(d + 1);
    }
    let shape: Vec<usize> = order.iter().map(|&d| x.dim(d)).collect();
    let from: Vec<usize> = order.iter().map(|&d| strides[d]).collect();
    let mut out = Buffer::<T>::stale(src.len());
    let inner = shape.last().copied().unwrap_or(1).max(1);
    let inner_stride = from.last().copied().unwrap_or(1);
    let rows_per_chunk = ((1 << 13) / inner).max(1);
    for_chunks(&mut out, rows_per_chunk * inner, |at, chunk| {
        for (i, row) in chunk.chunks_mut(inner).enumerate() {
            let (mut index, mut base) = (at / inner + i, 0);
            for d in (0..shape.len().saturating_sub(1)).rev() {
                base += index % shape[d] * from[d];
                index /= shape[d];
            }
            for (k, o) in row.iter_mut().enumerate() {
                *o = src[base + k * inner_stride];
            }
        }
    });
    Tensor::from_buffer(&shape, out)
}

fn outer_inner(shape: &[usize], axis: usize) -> (usize, usize) {
    (shape[..axis].iter().product(), shape[axis + 1..].iter().product())
}

pub fn slice<T: Scalar>(x: &Tensor, axis: usize, start: usize, len: usize) -> Tensor {
    let (outer, inner) = outer_inner(x.shape(), axis);
    let (src, width) = (x.as_slice::<T>(), x.dim(axis) * inner);
    let mut shape = x.shape().to_vec();
    shape[axis] = len;
    let mut out = Buffer::<T>::stale(outer * len * inner);
    for o in 0..outer {
        out[o * len * inner..][..len * inner].copy_from_slice(&src[o * width + start * inner..][..len * inner]);
    }
    Tensor::from_buffer(&shape, out)
}

pub fn pad<T: Scalar>(x: &Tensor, axis: usize, start: usize, size: usize) -> Tensor {
    let (outer, inner) = outer_inner(x.shape(), axis);
    let (src, len) = (x.as_slice::<T>(), x.dim(axis) * inner);
    let mut shape = x.shape().to_vec();
    shape[axis] = size;
    let mut out = Buffer::<T>::zeros(outer * size * inner);
    for o in 0..outer {
        out[(o * size + start) * inner..][..len].copy_from_slice(&src[o * len..][..len]);
    }
    Tensor::from_buffer(&shape, out)
}

pub fn concat<T: Scalar>(parts: &[&Tensor], axis: usize) -> Tensor {
    let (outer, inner) = outer_inner(parts[0].shape(), axis);
    let total: usize = parts.iter().map(|p| p.dim(axis)).sum();
    let mut shape = parts[0].shape().to_vec();
    shape[axis] = total;
    let mut out = Buffer::<T>::stale(outer * total * inner);
    let mut at = 0;
    for p in parts {
        let (src, len) = (p.as_slice::<T>(), p.dim(axis) * inner);
        for o in 0..outer {
            out[o * total * inner + at..][..len].copy_from_slice(&src[o * len..][..len]);
        }
        at += len;
    }
    Tensor::from_buffer(&shape, out)
}
