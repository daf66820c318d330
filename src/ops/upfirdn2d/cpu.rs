//! Host implementation: the filter is separable, so each output row is a weighted sum of whole input rows (contiguous
//! over pixels and channels) followed by a weighted sum of pixels within that row, which stays in the L1 cache.

use rayon::prelude::*;

use super::Upfirdn2d;
use crate::device::cpu::{Buffer, PARALLEL_ELEMENTS, pieces, prefetch, simd_dispatch};
use crate::ops::bias_act::Epilogue;
use crate::ops::bias_act::cpu::Finish;
use crate::tensor::{Scalar, Tensor};

/// For each output index along one axis, the input indices and coefficients that make it.
pub(crate) fn axis_table<T: Scalar>(spec: &Upfirdn2d, axis: usize, input: usize, output: usize, gain: f64) -> Vec<Vec<(usize, T)>> {
    let taps = spec.taps();
    (0..output)
        .map(|o| {
            (0..taps.len())
                .filter_map(|t| {
                    let at = (o * spec.down + t) as isize - spec.pad[axis][0];
                    let hit = at >= 0 && at % spec.up as isize == 0 && (at as usize / spec.up) < input;
                    let tap = if spec.flip { taps[t] } else { taps[taps.len() - 1 - t] };
                    hit.then(|| (at as usize / spec.up, T::from_f64(tap * gain)))
                })
                .collect()
        })
        .collect()
}

/// `out = Σ coefficient · row`, rows of `out.len()` elements at `index · pitch` of `src`.
#[inline(always)]
fn weighted_rows<T: Scalar>(out: &mut [T], src: &[T], pitch: usize, terms: &[(usize, T)]) {
    let n = out.len();
    let row = |i: usize| &src[i * pitch..][..n];
    match *terms {
        [] => out.fill(T::ZERO),
        [(i, p)] => {
            for (o, a) in out.iter_mut().zip(row(i)) {
                *o = *a * p;
            }
        }
        [(i, p), (j, q)] => {
            for ((o, a), b) in out.iter_mut().zip(row(i)).zip(row(j)) {
                *o = *a * p + *b * q;
            }
        }
        [(i, p), (j, q), (k, r), (l, s)] => {
            for ((((o, a), b), c), d) in out.iter_mut().zip(row(i)).zip(row(j)).zip(row(k)).zip(row(l)) {
                *o = (*a * p + *b * q) + (*c * r + *d * s);
            }
        }
        _ => {
            out.fill(T::ZERO);
            for &(i, p) in terms {
                for (o, a) in out.iter_mut().zip(row(i)) {
                    *o += *a * p;
                }
            }
        }
    }
}

/// Neighbouring output pixels with the same coefficients, of inputs that move along with them: one loop over all of them,
/// because their channels lie together.
struct Stretch<T> {
    pixels: usize,
    terms: Vec<(usize, T)>,
}

/// A table cut into stretches.
fn stretches<T: Scalar>(table: Vec<Vec<(usize, T)>>) -> Vec<Stretch<T>> {
    let mut all: Vec<Stretch<T>> = Vec::new();
    for terms in table {
        match all.last_mut() {
            Some(last) if terms.len() == last.terms.len() && terms.iter().zip(&last.terms).all(|(a, b)| a.0 == b.0 + last.pixels && a.1 == b.1) => last.pixels += 1,
            _ => all.push(Stretch { pixels: 1, terms }),
        }
    }
    all
}

simd_dispatch! {
    /// One output row: `line = Σ rows`, then the pixels of `out` from pixels of `line`, `c` values each.
    fn output_row<T: Scalar>(out: &mut [T], line: &mut [T], image: &[T], rows: &[(usize, T)], columns: &[Stretch<T>], c: usize) {
        if let Some((last, _)) = rows.last() {
            let next = (last + 1) * line.len();
            prefetch(image.get(next..next + line.len()).unwrap_or_default());
        }
        weighted_rows(line, image, line.len(), rows);
        for (out, stretch) in pieces(out, columns.iter().map(|s| s.pixels * c)).zip(columns) {
            weighted_rows(out, line, c, &stretch.terms);
        }
    }
}

pub fn upfirdn2d<T: Scalar>(x: &Tensor, spec: &Upfirdn2d, [n, oh, ow, c]: [usize; 4], then: Epilogue<Tensor>) -> Tensor {
    let (h, w) = (x.dim(1), x.dim(2));
    let src = x.as_slice::<T>();
    let rows = axis_table::<T>(spec, 0, h, oh, spec.gain);
    let columns = stretches(axis_table::<T>(spec, 1, w, ow, 1.0));
    let mut out = Buffer::<T>::stale(n * oh * ow * c);
    if out.is_empty() {
        return Tensor::from_buffer(&[n, oh, ow, c], out);
    }
    let finish = then.is_some().then(|| Finish::<T>::new(c, then));
    let one_row = |index: usize, out: &mut [T], line: &mut [T]| {
        output_row(out, line, &src[index / oh * h * w * c..][..h * w * c], &rows[index % oh], &columns, c);
        if let Some(finish) = &finish {
            finish.in_place(out, index * ow * c);
        }
    };
    if src.len() + out.len() < PARALLEL_ELEMENTS {
        let mut line = Buffer::stale(w * c);
        out.chunks_exact_mut(ow * c).enumerate().for_each(|(i, o)| one_row(i, o, &mut line));
    } else {
        out.par_chunks_exact_mut(ow * c).enumerate().for_each_init(|| Buffer::stale(w * c), |line, (i, o)| one_row(i, o, line));
    }
    Tensor::from_buffer(&[n, oh, ow, c], out)
}
