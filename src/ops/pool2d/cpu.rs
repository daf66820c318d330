//! Host implementation: gathers work row by row of the output, scatters sample by sample; both vectorise over channels.

use std::ops::Range;

use rayon::prelude::*;

use super::{Divisor, Window};
use crate::device::cpu::{Buffer, PARALLEL_ELEMENTS, for_chunks, simd_dispatch};
use crate::tensor::{Scalar, Tensor};

/// Values of the result that one task makes, about.
const CHUNK: usize = 1 << 12;

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
    let mut y = Buffer::<T>::stale(n * s.out[0] * row);
    if !y.is_empty() {
        for_chunks(&mut y, (CHUNK / row).max(1) * row, |at, chunk| {
            for (i, row) in chunk.chunks_exact_mut(row).enumerate() {
                let at = at / row.len() + i;
                f(at / s.out[0], at % s.out[0], row);
            }
        });
    }
    Tensor::from_buffer(&[n, s.out[0], s.out[1], s.c], y)
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

/// The larger of two; the first unless the second is known to be larger or is NaN.
#[inline(always)]
fn larger<T: Scalar>(a: T, b: T) -> T {
    if b <= a || is_nan(a) { a } else { b }
}

simd_dispatch! {
    /// One output row: the larger of whole input rows, then of pixels within that line.
    fn max_row<T: Scalar>(out: &mut [T], line: &mut [T], rows: &[T], columns: &[Range<usize>], c: usize) {
        let (first, others) = rows.split_at(line.len());
        line.copy_from_slice(first);
        for row in others.chunks_exact(line.len()) {
            for (a, b) in line.iter_mut().zip(row) {
                *a = larger(*a, *b);
            }
        }
        for (out, pixels) in out.chunks_exact_mut(c).zip(columns) {
            let mut pixels = line[pixels.start * c..pixels.end * c].chunks_exact(c);
            // In pairs: most windows have two columns or three.
            let first = pixels.next().expect("a window holds a pixel");
            let second = pixels.next().unwrap_or(first);
            for ((out, a), b) in out.iter_mut().zip(first).zip(second) {
                *out = larger(*a, *b);
            }
            for pixel in pixels {
                for (a, b) in out.iter_mut().zip(pixel) {
                    *a = larger(*a, *b);
                }
            }
        }
    }
}

pub fn max_pool2d<T: Scalar>(x: &Tensor, window: Window, out: [usize; 2]) -> Tensor {
    let (src, s) = (x.as_slice::<T>(), gather_sizes(x, out));
    let columns: Vec<Range<usize>> = (0..out[1]).map(|px| inside(&window, 1, px, s.image[1]).0).collect();
    output_rows::<T>(x.dim(0), &s, |n, y, row| {
        let rows = inside(&window, 0, y, s.image[0]).0;
        let width = s.image[1] * s.c;
        let mut line = Buffer::<T>::stale(width);
        max_row(row, &mut line, &sample(src, &s, n)[rows.start * width..rows.end * width], &columns, s.c);
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
    let mut z = Buffer::<T>::zeros(n * len);
    if len > 0 && z.len() < PARALLEL_ELEMENTS {
        z.chunks_mut(len).enumerate().for_each(|(n, image)| f(n, image));
    } else if len > 0 {
        z.par_chunks_mut(len).enumerate().for_each(|(n, image)| f(n, image));
    }
    Tensor::from_buffer(&[n, s.image[0], s.image[1], s.c], z)
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
