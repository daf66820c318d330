//! Host implementation: segments are cut into chunks of fixed length which threads share; partial sums are added in
//! chunk order.

use rayon::prelude::*;

use super::{Adam, Pull, Slabs};
use crate::device::cpu::lanes::{Lanes, Summed, lanes_dispatch};
use crate::device::cpu::{Buffer, for_chunks};
use crate::error::Result;
use crate::tensor::Tensor;

const CHUNK: usize = 1 << 14;

/// Cuts a slab's slice at segment borders and every `CHUNK` elements: (segment, offset in the slab, offset in the segment).
fn cuts(offsets: &[usize], total: usize) -> Vec<(usize, usize, usize)> {
    let mut out = Vec::new();
    for (p, &start) in offsets.iter().enumerate() {
        let end = offsets.get(p + 1).copied().unwrap_or(total);
        out.extend((start..end).step_by(CHUNK).map(|at| (p, at, at - start)));
    }
    out
}

/// Splits `slice` at the cuts.
fn split<'a>(mut slice: &'a mut [f32], cuts: &[(usize, usize, usize)], total: usize) -> Vec<&'a mut [f32]> {
    let mut parts = Vec::with_capacity(cuts.len());
    for (i, (_, at, _)) in cuts.iter().enumerate() {
        let end = cuts.get(i + 1).map_or(total, |c| c.1);
        let (head, tail) = slice.split_at_mut(end - at);
        parts.push(head);
        slice = tail;
    }
    parts
}

struct Chunk<'a> {
    params: &'a mut [f32],
    m: Option<&'a mut [f32]>,
    v: &'a mut [f32],
    ema: Option<&'a mut [f32]>,
    grad: &'a [f32],
    segment: usize,
    at: usize,
}

struct Rates {
    beta1: f32,
    beta2: f32,
    step_size: f32,
    inverse_root_correction: f32,
    eps: f32,
    ema_weight: f32,
}

pub fn adam_step(slabs: Slabs, grads: &[Tensor], offsets: &[usize], pull: Pull, adam: Adam, step: u64) -> Result<f64> {
    let total = slabs.params.len();
    let cuts = cuts(offsets, total);
    let ema_weight = slabs.ema.as_ref().map_or(0.0, |(_, decay)| 1.0 - decay) as f32;
    let mut params = split(slabs.params.as_mut_slice()?, &cuts, total).into_iter();
    let mut v = split(slabs.second_moment.as_mut_slice()?, &cuts, total).into_iter();
    let mut m = slabs.first_moment.map(|m| m.as_mut_slice()).transpose()?.map(|m| split(m, &cuts, total).into_iter());
    let mut ema = slabs.ema.map(|(e, _)| e.as_mut_slice()).transpose()?.map(|e| split(e, &cuts, total).into_iter());
    let chunks: Vec<Chunk> = cuts
        .iter()
        .map(|&(segment, at, inside)| {
            let params = params.next().expect("one part per cut");
            let len = params.len();
            Chunk {
                params,
                m: m.as_mut().map(|m| m.next().expect("one part per cut")),
                v: v.next().expect("one part per cut"),
                ema: ema.as_mut().map(|e| e.next().expect("one part per cut")),
                grad: &grads[segment].as_slice::<f32>()[inside..inside + len],
                segment,
                at,
            }
        })
        .collect();
    let t = step as i32;
    let rates = Rates {
        beta1: adam.beta1 as f32,
        beta2: adam.beta2 as f32,
        step_size: (adam.lr / (1.0 - adam.beta1.powi(t))) as f32,
        inverse_root_correction: (1.0 / (1.0 - adam.beta2.powi(t)).sqrt()) as f32,
        eps: adam.eps as f32,
        ema_weight,
    };
    let partial: Vec<f64> = chunks.into_par_iter().map(|c| chunk_step(c, pull, &rates)).collect();
    let constant = if let Pull::Centroid { spread, .. } = pull { spread } else { 0.0 };
    Ok(partial.iter().sum::<f64>() + constant)
}

/// `n` elements, of which a register holds as many or more; the others are zero.
///
/// # Safety
/// They are valid at `from`, and the instruction set of `L` is present.
#[inline(always)]
unsafe fn load<L: Lanes>(from: *const L::Item, n: usize) -> L {
    // SAFETY: the caller's contract.
    unsafe { if n == L::COUNT { L::load(from) } else { L::load_some(from, n) } }
}

/// # Safety
/// As `load`.
#[inline(always)]
unsafe fn store<L: Lanes>(to: *mut L::Item, n: usize, v: L) {
    // SAFETY: the caller's contract.
    unsafe { if n == L::COUNT { v.store(to) } else { v.store_some(to, n) } }
}

/// Calls `$body` with the start and the length of every register's share of `$len` elements.
macro_rules! registers {
    ($l:ident, $len:expr, |$at:ident, $n:ident| $body:block) => {
        let (len, count) = ($len, <$l as Lanes>::COUNT);
        let mut $at = 0;
        while $at + count <= len {
            // Apart, so that the compiler knows the number.
            let $n = count;
            $body
            $at += count;
        }
        if $at < len {
            let $n = len - $at;
            $body
        }
    };
}

/// What pulls at the elements of one chunk. A trait, because closures would not be compiled for the instruction set.
trait Term<L: Summed>: Copy {
    /// The gradient at the parameters `theta`, the `n` ones from `at` on, and what they add to the sum.
    ///
    /// # Safety
    /// The chunk has these elements, and the instruction set of `L` is present; here and below.
    unsafe fn before(self, at: usize, n: usize, theta: L) -> [L; 2];
    /// What the moved ones add.
    #[inline(always)]
    unsafe fn after(self, _at: usize, _n: usize, _theta: L) -> L {
        // SAFETY: the caller's contract.
        unsafe { L::splat(0.0) }
    }
}

#[derive(Clone, Copy)]
struct Nothing;

impl<L: Summed> Term<L> for Nothing {
    #[inline(always)]
    unsafe fn before(self, _: usize, _: usize, _: L) -> [L; 2] {
        // SAFETY: the caller's contract.
        unsafe { [L::splat(0.0); 2] }
    }
}

/// Elements of the longest register that signs are taken of.
const MAX_COUNT: usize = 8;

/// `strength · sign(θ)`, and `|θ|`.
#[derive(Clone, Copy)]
struct Signs {
    strength: f32,
}

impl<L: Summed> Term<L> for Signs {
    #[inline(always)]
    unsafe fn before(self, _: usize, n: usize, theta: L) -> [L; 2] {
        const { assert!(L::COUNT <= MAX_COUNT) };
        // Through memory: no other term needs signs.
        let (mut sign, mut size) = ([0.0; MAX_COUNT], [0.0; MAX_COUNT]);
        // SAFETY: no register is longer.
        unsafe {
            theta.store(sign.as_mut_ptr());
            for i in 0..n {
                (sign[i], size[i]) = (self.strength * sign[i].signum(), sign[i].abs());
            }
            [load(sign.as_ptr(), n), load(size.as_ptr(), n)]
        }
    }
}

/// `λ F (θ − anchor)`, and `F (θ − anchor)²`.
#[derive(Clone, Copy)]
struct Anchored<'a> {
    anchor: &'a [f32],
    fisher: &'a [f32],
    lambda: f32,
}

impl<L: Summed> Term<L> for Anchored<'_> {
    #[inline(always)]
    unsafe fn before(self, at: usize, n: usize, theta: L) -> [L; 2] {
        // SAFETY: both slices are as long as the chunk.
        unsafe {
            let f: L = load(self.fisher.as_ptr().add(at), n);
            let d = theta.sub(load(self.anchor.as_ptr().add(at), n));
            [L::splat(self.lambda).mul(f).mul(d), f.mul(d).mul(d)]
        }
    }
}

/// `by · (θ − centroid)`, and `(θ − centroid)²` of the moved parameters.
#[derive(Clone, Copy)]
struct Repelled<'a> {
    centroid: &'a [f32],
    by: f32,
}

impl<L: Summed> Term<L> for Repelled<'_> {
    #[inline(always)]
    unsafe fn before(self, at: usize, n: usize, theta: L) -> [L; 2] {
        // SAFETY: the slice is as long as the chunk.
        unsafe { [L::splat(self.by).mul(theta.sub(load(self.centroid.as_ptr().add(at), n))), L::splat(0.0)] }
    }
    #[inline(always)]
    unsafe fn after(self, at: usize, n: usize, theta: L) -> L {
        // SAFETY: as above.
        unsafe {
            let d = theta.sub(load(self.centroid.as_ptr().add(at), n));
            d.mul(d)
        }
    }
}

/// The sum of the terms is per chunk and lane by lane, in f64: its order does not hinder the lanes.
fn chunk_step(c: Chunk, pull: Pull, r: &Rates) -> f64 {
    let (len, range) = (c.params.len(), c.at..c.at + c.params.len());
    let same = |s: Option<&[f32]>| s.is_none_or(|s| s.len() == len);
    assert!(c.v.len() == len && c.grad.len() == len && same(c.m.as_deref()) && same(c.ema.as_deref()), "all slabs are cut alike");
    match pull {
        Pull::None => update_without(c, Nothing, r),
        Pull::L1 { strength } => update_signs(c, Signs { strength: strength as f32 }, r),
        Pull::Ewc { anchor, fisher, lambda } => {
            let term = Anchored { anchor: &anchor.as_slice::<f32>()[range.clone()], fisher: &fisher.as_slice::<f32>()[range], lambda: lambda as f32 };
            update_anchored(c, term, r) * lambda / 2.0
        }
        Pull::Centroid { centroid, weights, loss, distance, gradient, .. } => {
            let coefficient = if gradient { loss.slope(distance) } else { 0.0 };
            let weight = weights[c.segment];
            update_repelled(c, Repelled { centroid: &centroid.as_slice::<f32>()[range], by: (coefficient * 2.0 * weight) as f32 }, r) * weight
        }
    }
}

/// The pass with each kind of term.
macro_rules! updates {
    ($($name:ident: $term:ty),*) => {
        $(lanes_dispatch! {
            fn $name<L>(c: Chunk, term: $term, r: &Rates) -> f64 {
                // SAFETY: the caller's contract; terms are cut as the chunk is.
                unsafe { update::<L, _>(c, term, r) }
            }
        })*
    };
}
updates!(update_without: Nothing, update_signs: Signs, update_anchored: Anchored, update_repelled: Repelled);

/// # Safety
/// The term has an element for each of the chunk, and the instruction set of `L` is present.
#[inline(always)]
unsafe fn update<L: Summed, P: Term<L>>(c: Chunk, term: P, r: &Rates) -> f64 {
    let len = c.params.len();
    let m = c.m.map(|m| m.as_mut_ptr());
    let ema = c.ema.map(|e| e.as_mut_ptr());
    let (params, v, grad) = (c.params.as_mut_ptr(), c.v.as_mut_ptr(), c.grad.as_ptr());
    // SAFETY: `chunk_step` has asserted that all slices have `len` elements.
    unsafe {
        let [beta1, rest1, beta2, rest2] = [r.beta1, 1.0 - r.beta1, r.beta2, 1.0 - r.beta2].map(|v| L::splat(v));
        let [step_size, correction, eps, ema_weight] = [r.step_size, r.inverse_root_correction, r.eps, r.ema_weight].map(|v| L::splat(v));
        let mut sums = L::no_sums();
        registers!(L, len, |at, n| {
            let theta: L = load(params.add(at), n);
            let [extra, summands] = term.before(at, n, theta);
            sums = summands.add_to(sums);
            let g = load::<L>(grad.add(at), n).add(extra);
            let second = beta2.mul(load(v.add(at), n)).add(rest2.mul(g).mul(g));
            store(v.add(at), n, second);
            let direction = match m {
                None => g,
                Some(m) => {
                    let first = beta1.mul(load(m.add(at), n)).add(rest1.mul(g));
                    store(m.add(at), n, first);
                    first
                }
            };
            let theta = theta.sub(step_size.mul(direction).div(second.sqrt().mul(correction).add(eps)));
            store(params.add(at), n, theta);
            if let Some(ema) = ema {
                let old: L = load(ema.add(at), n);
                store(ema.add(at), n, old.add(ema_weight.mul(theta.sub(old))));
            }
            sums = term.after(at, n, theta).add_to(sums);
        });
        L::total(sums)
    }
}

lanes_dispatch! {
    /// `Σ (p − c)²`
    fn squared_distance<L>(p: &[f32], c: &[f32]) -> f64 {
        assert_eq!(p.len(), c.len());
        // SAFETY: both have as many elements.
        unsafe {
            let mut sums = L::no_sums();
            registers!(L, p.len(), |at, n| {
                let d = load::<L>(p.as_ptr().add(at), n).sub(load(c.as_ptr().add(at), n));
                sums = d.mul(d).add_to(sums);
            });
            L::total(sums)
        }
    }
}

pub fn weighted_squared_distance(params: &Tensor, centroid: &Tensor, offsets: &[usize], weights: &[f64]) -> f64 {
    let (p, c) = (params.as_slice::<f32>(), centroid.as_slice::<f32>());
    let cuts = cuts(offsets, p.len());
    let ends: Vec<usize> = cuts.iter().skip(1).map(|c| c.1).chain([p.len()]).collect();
    let partial: Vec<f64> =
        cuts.par_iter().zip(ends).map(|(&(segment, at, _), end)| squared_distance(&p[at..end], &c[at..end]) * weights[segment]).collect();
    partial.iter().sum()
}

lanes_dispatch! {
    /// Writes the term's gradient; returns its sum.
    fn ewc_chunk<L>(p: &[f32], term: Anchored, grad: &mut [f32]) -> f64 {
        assert!([term.anchor.len(), term.fisher.len(), grad.len()].iter().all(|n| *n == p.len()));
        // SAFETY: all have as many elements.
        unsafe {
            let mut sums = L::no_sums();
            registers!(L, p.len(), |at, n| {
                let [gradient, summands] = term.before(at, n, load::<L>(p.as_ptr().add(at), n));
                store(grad.as_mut_ptr().add(at), n, gradient);
                sums = summands.add_to(sums);
            });
            L::total(sums)
        }
    }
}

pub fn ewc(params: &Tensor, anchor: &Tensor, fisher: &Tensor, lambda: f64) -> (f64, Tensor) {
    let (p, a, f) = (params.as_slice::<f32>(), anchor.as_slice::<f32>(), fisher.as_slice::<f32>());
    let mut grad = Buffer::<f32>::stale(p.len());
    let partial: Vec<f64> = grad
        .par_chunks_mut(CHUNK)
        .enumerate()
        .map(|(i, out)| {
            let range = i * CHUNK..i * CHUNK + out.len();
            ewc_chunk(&p[range.clone()], Anchored { anchor: &a[range.clone()], fisher: &f[range], lambda: lambda as f32 }, out)
        })
        .collect();
    (partial.iter().sum::<f64>() * lambda / 2.0, Tensor::from_buffer(params.shape(), grad))
}

pub fn accumulate_squares(into: &mut Tensor, grads: &[Tensor], offsets: &[usize], weight: f64) -> Result<()> {
    let w = weight as f32;
    let out = into.as_mut_slice::<f32>()?;
    for (g, &at) in grads.iter().zip(offsets) {
        let (out, g) = (&mut out[at..at + g.len()], g.as_slice::<f32>());
        for_chunks(out, CHUNK, |at, out| out.iter_mut().zip(&g[at..]).for_each(|(o, g)| *o += w * g * g));
    }
    Ok(())
}
