//! Host implementation: gathers work row by row of the output, scatters sample by sample; both vectorise over channels.

use std::ops::Range;

use rayon::prelude::*;

use super::{Divisor, Window};
use crate::device::cpu::{PARALLEL_ELEMENTS, for_chunks, stale_vec, zero_vec};
use crate::tensor::{Scalar, Tensor};

/// The positions of window `at` that lie inside an axis of `len`, and the first of them as a tap of the kernel.
fn inside(window: &Window, axis: usize, at: usize, len: usize) -> (Range<usize>, usize) {
    let start = at * window.stride[axis];
    let first = start.saturating_sub(window.padding[axis]);
    let end = (start + window.kernel[axis] - window.padding[axis]).min(len);
    (first..end, first + window.padding[axis] - start)
}

/// Sizes that every loop here needs.
struct Sizes {
    image: [usize; 2],
    out: [usize; 2],
    c: usize,
}

/// Calls `f(sample, y_out, row)` for every row `[W_out, C]` of the output, in parallel.
fn output_rows<T: Scalar>(n: usize, s: &Sizes, f: impl Fn(usize, usize, &mut [T]) + Sync + Send) -> Tensor {
    let row = s.out[1] * s.c;
    let mut y = stale_vec::<T>(n * s.out[0] * row);
    if !y.is_empty() {
        for_chunks(&mut y, row, |at, chunk| f(at / row / s.out[0], at / row % s.out[0], chunk));
    }
    Tensor::from_vec(&[n, s.out[0], s.out[1], s.c], y)
}

fn gather_sizes(x: &Tensor, out: [usize; 2]) -> Sizes {
    Sizes { image: [x.dim(1), x.dim(2)], out, c: x.dim(3) }
}

/// Calls `f(tap, elements)` for every position of the window of output pixel (y, x), elements `[C]` each.
fn for_window<'a, T>(image: &'a [T], s: &Sizes, window: &Window, y: usize, x: usize, mut f: impl FnMut(usize, &'a [T])) {
    let (ys, ky) = inside(window, 0, y, s.image[0]);
    let (xs, kx) = inside(window, 1, x, s.image[1]);
    for (iy, qy) in ys.enumerate() {
        for (ix, qx) in xs.clone().enumerate() {
            f((ky + iy) * window.kernel[1] + kx + ix, &image[(qy * s.image[1] + qx) * s.c..][..s.c]);
        }
    }
}

fn sample<'a, T>(src: &'a [T], s: &Sizes, n: usize) -> &'a [T] {
    let len = s.image[0] * s.image[1] * s.c;
    &src[n * len..][..len]
}

#[allow(clippy::eq_op, reason = "elements of either type know only comparisons, and NaN alone is not equal to itself")]
#[inline(always)]
fn is_nan<T: Scalar>(v: T) -> bool {
    v != v
}

pub fn max_pool2d<T: Scalar>(x: &Tensor, window: Window, out: [usize; 2]) -> Tensor {
    let (src, s) = (x.as_slice::<T>(), gather_sizes(x, out));
    output_rows::<T>(x.dim(0), &s, |n, y, row| {
        let image = sample(src, &s, n);
        for (px, best) in row.chunks_exact_mut(s.c).enumerate() {
            best.fill(T::from_f64(f64::NEG_INFINITY));
            for_window(image, &s, &window, y, px, |_, v| {
                for (b, v) in best.iter_mut().zip(v) {
                    // Kept unless the new one is known to be smaller or the old one is NaN.
                    *b = if *v <= *b || is_nan(*b) { *b } else { *v };
                }
            });
        }
    })
}

pub fn max_pool2d_taps<T: Scalar>(x: &Tensor, window: Window, out: [usize; 2]) -> Tensor {
    let (src, s) = (x.as_slice::<T>(), gather_sizes(x, out));
    output_rows::<f32>(x.dim(0), &s, |n, y, row| {
        let image = sample(src, &s, n);
        let mut best = vec![T::ZERO; s.c];
        for (px, taps) in row.chunks_exact_mut(s.c).enumerate() {
            let mut first = true;
            for_window(image, &s, &window, y, px, |tap, v| {
                for ((b, t), v) in best.iter_mut().zip(taps.iter_mut()).zip(v) {
                    if first || !(*v <= *b || is_nan(*b)) {
                        (*b, *t) = (*v, tap as f32);
                    }
                }
                first = false;
            });
        }
    })
}

/// Flat pixel of `tap` in the window of output pixel (y, x).
fn pixel(tap: f32, window: &Window, s: &Sizes, y: usize, x: usize) -> usize {
    let tap = tap as usize;
    let qy = (y * window.stride[0] + tap / window.kernel[1]) - window.padding[0];
    let qx = (x * window.stride[1] + tap % window.kernel[1]) - window.padding[1];
    qy * s.image[1] + qx
}

pub fn gather_taps<T: Scalar>(x: &Tensor, taps: &Tensor, window: Window) -> Tensor {
    let (src, chosen) = (x.as_slice::<T>(), taps.as_slice::<f32>());
    let s = gather_sizes(x, [taps.dim(1), taps.dim(2)]);
    output_rows::<T>(x.dim(0), &s, |n, y, row| {
        let image = sample(src, &s, n);
        let taps = &chosen[(n * s.out[0] + y) * row.len()..][..row.len()];
        for (i, (o, tap)) in row.iter_mut().zip(taps).enumerate() {
            *o = image[pixel(*tap, &window, &s, y, i / s.c) * s.c + i % s.c];
        }
    })
}

/// Calls `f(sample, image)` for every image of zeros `[N, H, W, C]`, in parallel.
fn scattered<T: Scalar>(n: usize, s: &Sizes, f: impl Fn(usize, &mut [T]) + Sync + Send) -> Tensor {
    let len = s.image[0] * s.image[1] * s.c;
    let mut z = zero_vec::<T>(n * len);
    if len > 0 && z.len() < PARALLEL_ELEMENTS {
        z.chunks_mut(len).enumerate().for_each(|(n, image)| f(n, image));
    } else if len > 0 {
        z.par_chunks_mut(len).enumerate().for_each(|(n, image)| f(n, image));
    }
    Tensor::from_vec(&[n, s.image[0], s.image[1], s.c], z)
}

fn scatter_sizes(g: &Tensor, size: [usize; 2]) -> Sizes {
    Sizes { image: size, out: [g.dim(1), g.dim(2)], c: g.dim(3) }
}

pub fn scatter_taps<T: Scalar>(g: &Tensor, taps: &Tensor, window: Window, size: [usize; 2]) -> Tensor {
    let (grad, chosen, s) = (g.as_slice::<T>(), taps.as_slice::<f32>(), scatter_sizes(g, size));
    let len = s.out[0] * s.out[1] * s.c;
    scattered::<T>(g.dim(0), &s, |n, image| {
        for (i, (g, tap)) in grad[n * len..][..len].iter().zip(&chosen[n * len..][..len]).enumerate() {
            let p = i / s.c;
            image[pixel(*tap, &window, &s, p / s.out[1], p % s.out[1]) * s.c + i % s.c] += *g;
        }
    })
}

/// One over what the average of output pixel (y, x) divides by.
fn share<T: Scalar>(window: &Window, divisor: Divisor, s: &Sizes, y: usize, x: usize) -> T {
    let count = match divisor {
        Divisor::Kernel => window.kernel[0] * window.kernel[1],
        Divisor::Inside => inside(window, 0, y, s.image[0]).0.len() * inside(window, 1, x, s.image[1]).0.len(),
    };
    T::ONE / T::from_f64(count as f64)
}

pub fn avg_pool2d<T: Scalar>(x: &Tensor, window: Window, divisor: Divisor, out: [usize; 2]) -> Tensor {
    let (src, s) = (x.as_slice::<T>(), gather_sizes(x, out));
    output_rows::<T>(x.dim(0), &s, |n, y, row| {
        let image = sample(src, &s, n);
        for (px, sum) in row.chunks_exact_mut(s.c).enumerate() {
            sum.fill(T::ZERO);
            for_window(image, &s, &window, y, px, |_, v| {
                for (o, v) in sum.iter_mut().zip(v) {
                    *o += *v;
                }
            });
            let share = share::<T>(&window, divisor, &s, y, px);
            for o in sum {
                *o *= share;
            }
        }
    })
}

pub fn avg_pool2d_transpose<T: Scalar>(g: &Tensor, window: Window, divisor: Divisor, size: [usize; 2]) -> Tensor {
    let (grad, s) = (g.as_slice::<T>(), scatter_sizes(g, size));
    let len = s.out[0] * s.out[1] * s.c;
    scattered::<T>(g.dim(0), &s, |n, image| {
        for (p, g) in grad[n * len..][..len].chunks_exact(s.c).enumerate() {
            let (y, x) = (p / s.out[1], p % s.out[1]);
            let share = share::<T>(&window, divisor, &s, y, x);
            for qy in inside(&window, 0, y, size[0]).0 {
                for qx in inside(&window, 1, x, size[1]).0 {
                    for (o, g) in image[(qy * size[1] + qx) * s.c..][..s.c].iter_mut().zip(g) {
                        *o += *g * share;
                    }
                }
            }
        }
    })
}
