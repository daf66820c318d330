//! Host implementation. Every sum is cut into chunks whose bounds depend on the shape alone and whose partial sums
//! are added in order, so the result is the same for any number of threads.

use rayon::prelude::*;

use crate::device::cpu::{Buffer, PARALLEL_ELEMENTS, for_chunks, simd_dispatch};
use crate::tensor::{Scalar, Tensor};

/// Adjacent dimensions that are all kept or all summed, as (size, kept).
pub(super) fn runs(large: &[usize], small: &[usize]) -> Vec<(usize, bool)> {
    let mut runs: Vec<(usize, bool)> = Vec::new();
    for (l, s) in large.iter().zip(small) {
        if *l == 1 {
            continue;
        }
        match runs.last_mut() {
            Some((size, kept)) if *kept == (l == s) => *size *= l,
            _ => runs.push((*l, l == s)),
        }
    }
    runs
}

/// Splits runs into `[outer, mid, inner]` where only `mid` is summed, peeling more than one summed run recursively.
fn sum_runs<T: Scalar>(x: &[T], runs: &[(usize, bool)]) -> Buffer<T> {
    let Some(last) = runs.iter().rposition(|(_, kept)| !kept) else {
        return x.to_vec().into();
    };
    let inner: usize = runs[last + 1..].iter().map(|r| r.0).product();
    let mid = runs[last].0;
    let outer: usize = runs[..last].iter().map(|r| r.0).product();
    let partial = sum_middle(x, outer, mid, inner);
    let mut rest: Vec<(usize, bool)> = runs[..last].to_vec();
    rest.extend_from_slice(&runs[last + 1..]);
    if rest.iter().all(|(_, kept)| *kept) { partial } else { sum_runs(&partial, &rest) }
}

simd_dispatch! {
    /// Adds each row of `out.len()` values.
    fn add_rows<T: Scalar>(out: &mut [T], rows: &[T]) {
        for row in rows.chunks_exact(out.len()) {
            for (o, v) in out.iter_mut().zip(row) {
                *o += *v;
            }
        }
    }
}

simd_dispatch! {
    /// Adds the products of each pair of rows of `out.len()` values.
    fn add_products<T: Scalar>(out: &mut [T], u: &[T], v: &[T]) {
        for (p, q) in u.chunks_exact(out.len()).zip(v.chunks_exact(out.len())) {
            for ((o, p), q) in out.iter_mut().zip(p).zip(q) {
                *o += *p * *q;
            }
        }
    }
}

/// `out[o, i] = Σ_m x[o, m, i]`.
fn sum_middle<T: Scalar>(x: &[T], outer: usize, mid: usize, inner: usize) -> Buffer<T> {
    let mut out = Buffer::<T>::zeros(outer * inner);
    if x.is_empty() {
        return out;
    }
    let one = |rows: &[T], out: &mut [T]| {
        if inner == 1 {
            out[0] = sum_slice(rows);
        } else {
            add_rows(out, rows);
        }
    };
    // Long columns are cut so that several threads can share one; 64 cuts keep the partial sums small.
    let cut = mid.div_ceil(64).max(PARALLEL_ELEMENTS / (8 * inner).max(1)).max(1);
    if outer * 4 >= 64 || mid <= cut {
        if x.len() < PARALLEL_ELEMENTS {
            x.chunks_exact(mid * inner).zip(out.chunks_exact_mut(inner)).for_each(|(r, o)| one(r, o));
        } else {
            x.par_chunks_exact(mid * inner).zip(out.par_chunks_exact_mut(inner)).for_each(|(r, o)| one(r, o));
        }
        return out;
    }
    for (rows, out) in x.chunks_exact(mid * inner).zip(out.chunks_exact_mut(inner)) {
        let parts: Vec<Vec<T>> = rows
            .par_chunks(cut * inner)
            .map(|part| {
                let mut sum = vec![T::ZERO; inner];
                one(part, &mut sum);
                sum
            })
            .collect();
        for part in parts {
            for (o, v) in out.iter_mut().zip(part) {
                *o += v;
            }
        }
    }
    out
}

/// Sum of a slice through 16 interleaved partial sums: vectorised, fixed order, smaller rounding error.
fn sum_slice<T: Scalar>(x: &[T]) -> T {
    let mut lanes = [T::ZERO; 16];
    let chunks = x.chunks_exact(16);
    let tail = chunks.remainder();
    for c in chunks {
        for (l, v) in lanes.iter_mut().zip(c) {
            *l += *v;
        }
    }
    let mut sum = T::ZERO;
    for v in lanes.iter().chain(tail) {
        sum += *v;
    }
    sum
}

pub fn sum_to<T: Scalar>(x: &Tensor, shape: &[usize]) -> Tensor {
    Tensor::from_buffer(shape, sum_runs(x.as_slice::<T>(), &runs(x.shape(), shape)))
}

pub fn broadcast_to<T: Scalar>(x: &Tensor, shape: &[usize]) -> Tensor {
    let src = x.as_slice::<T>();
    let len: usize = shape.iter().product();
    let mut out = Buffer::<T>::stale(len);
    if len == 0 {
        return Tensor::from_buffer(shape, out);
    }
    // The innermost run is either copied from `inner` values or filled from one.
    let runs = runs(shape, x.shape());
    let (inner, inner_kept) = runs.last().copied().unwrap_or((1, true));
    let outer = &runs[..runs.len().saturating_sub(1)];
    let source_row = |mut row: usize| {
        let (mut at, mut stride) = (0, if inner_kept { inner } else { 1 });
        for (size, kept) in outer.iter().rev() {
            if *kept {
                at += row % size * stride;
                stride *= size;
            }
            row /= size;
        }
        at
    };
    let rows_per_chunk = ((1 << 13) / inner).max(1);
    for_chunks(&mut out, rows_per_chunk * inner, |at, chunk| {
        for (i, row) in chunk.chunks_mut(inner).enumerate() {
            let from = source_row(at / inner + i);
            if inner_kept {
                row.copy_from_slice(&src[from..from + inner]);
            } else {
                row.fill(src[from]);
            }
        }
    });
    Tensor::from_buffer(shape, out)
}

pub fn channel_dot<T: Scalar>(u: &Tensor, v: &Tensor) -> Tensor {
    let (n, c) = (u.dim(0), u.dim(u.rank() - 1));
    let (a, b) = (u.as_slice::<T>(), v.as_slice::<T>());
    if a.is_empty() {
        return Tensor::from_buffer(&[n, c], Buffer::<T>::zeros(n * c));
    }
    let pixels = a.len() / (n * c);
    // Parts of a sample's pixels, the last one smaller, whose sums are then added in order.
    let per_part = (PARALLEL_ELEMENTS / c).clamp(1, pixels);
    let parts = pixels.div_ceil(per_part);
    let mut partial = Buffer::<T>::zeros(n * parts * c);
    let one = |index: usize, out: &mut [T]| {
        let (sample, part) = (index / parts, index % parts);
        let range = (sample * pixels + part * per_part) * c..(sample * pixels + ((part + 1) * per_part).min(pixels)) * c;
        add_products(out, &a[range.clone()], &b[range]);
    };
    if a.len() < PARALLEL_ELEMENTS {
        partial.chunks_exact_mut(c).enumerate().for_each(|(i, o)| one(i, o));
    } else {
        partial.par_chunks_exact_mut(c).enumerate().for_each(|(i, o)| one(i, o));
    }
    if parts == 1 {
        return Tensor::from_buffer(&[n, c], partial);
    }
    let mut out = Buffer::<T>::zeros(n * c);
    for (out, parts) in out.chunks_exact_mut(c).zip(partial.chunks_exact(parts * c)) {
        add_rows(out, parts);
    }
    Tensor::from_buffer(&[n, c], out)
}
