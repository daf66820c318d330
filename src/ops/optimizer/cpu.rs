//! Host implementation: segments are cut into chunks of fixed length which threads share; partial sums are added in
//! chunk order.

use rayon::prelude::*;

use super::{Adam, Pull, Slabs};
use crate::device::cpu::{for_chunks, simd_dispatch, stale_vec};
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

/// Elements that the loops here take at a time: two AVX2 registers of f32. Sums are kept by lane, so their order does not
/// hinder the lanes.
const LANES: usize = 16;
type Block = [f32; LANES];

/// Up to `LANES` elements from `at` on; zeros where there are fewer.
#[inline(always)]
fn load(from: &[f32], at: usize) -> Block {
    match from[at..].first_chunk::<LANES>() {
        Some(all) => *all,
        None => {
            let mut some = [0.0; LANES];
            some[..from.len() - at].copy_from_slice(&from[at..]);
            some
        }
    }
}

#[inline(always)]
fn store(to: &mut [f32], at: usize, lanes: Block) {
    match to[at..].first_chunk_mut::<LANES>() {
        Some(all) => *all = lanes,
        None => {
            let rest = to.len() - at;
            to[at..].copy_from_slice(&lanes[..rest]);
        }
    }
}

/// `f` of every lane.
#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Block {
    std::array::from_fn(f)
}

#[inline(always)]
fn add_to(sums: &mut [f64; LANES], lanes: Block) {
    for (s, v) in sums.iter_mut().zip(lanes) {
        *s += v as f64;
    }
}

simd_dispatch! {
    fn chunk_step(c: Chunk, pull: Pull, r: &Rates) -> f64 {
        let range = c.at..c.at + c.params.len();
        let nothing = |_, _: &Block| [0.0; LANES];
        match pull {
            Pull::None => update(c, r, |_, _| ([0.0; LANES], [0.0; LANES]), nothing),
            Pull::L1 { strength } => {
                let s = strength as f32;
                update(c, r, |_, theta| (each(|l| s * theta[l].signum()), each(|l| theta[l].abs())), nothing)
            }
            Pull::Ewc { anchor, fisher, lambda } => {
                let (anchor, fisher, lambda) = (&anchor.as_slice::<f32>()[range.clone()], &fisher.as_slice::<f32>()[range], lambda as f32);
                let before = |at, theta: &Block| {
                    let (f, a) = (load(fisher, at), load(anchor, at));
                    let d = each(|l| theta[l] - a[l]);
                    (each(|l| lambda * f[l] * d[l]), each(|l| f[l] * d[l] * d[l]))
                };
                update(c, r, before, nothing) * lambda as f64 / 2.0
            }
            Pull::Centroid { centroid, weights, loss, distance, gradient, .. } => {
                let coefficient = if gradient { loss.slope(distance) } else { 0.0 };
                let (centroid, weight) = (&centroid.as_slice::<f32>()[range], weights[c.segment]);
                let by = (coefficient * 2.0 * weight) as f32;
                let away = |at, theta: &Block| {
                    let c = load(centroid, at);
                    each(|l| theta[l] - c[l])
                };
                let before = |at, theta: &Block| {
                    let d = away(at, theta);
                    (each(|l| by * d[l]), [0.0; LANES])
                };
                let after = |at, theta: &Block| {
                    let d = away(at, theta);
                    each(|l| d[l] * d[l])
                };
                update(c, r, before, after) * weight
            }
        }
    }
}

/// The pass itself. `before(at, θ)` gives the regulariser's gradient and summands, `after(at, θ')` summands.
#[inline(always)]
fn update(mut c: Chunk, r: &Rates, before: impl Fn(usize, &Block) -> (Block, Block), after: impl Fn(usize, &Block) -> Block) -> f64 {
    let mut sums = [0.0; LANES];
    for at in (0..c.params.len()).step_by(LANES) {
        let theta = load(c.params, at);
        let (extra, summands) = before(at, &theta);
        add_to(&mut sums, summands);
        let (g, v) = (load(c.grad, at), load(c.v, at));
        let g = each(|l| g[l] + extra[l]);
        let v = each(|l| r.beta2 * v[l] + (1.0 - r.beta2) * g[l] * g[l]);
        store(c.v, at, v);
        let direction = match &mut c.m {
            None => g,
            Some(m) => {
                let old = load(m, at);
                let new = each(|l| r.beta1 * old[l] + (1.0 - r.beta1) * g[l]);
                store(m, at, new);
                new
            }
        };
        let theta = each(|l| theta[l] - r.step_size * direction[l] / (v[l].sqrt() * r.inverse_root_correction + r.eps));
        store(c.params, at, theta);
        if let Some(ema) = &mut c.ema {
            let old = load(ema, at);
            store(ema, at, each(|l| old[l] + r.ema_weight * (theta[l] - old[l])));
        }
        add_to(&mut sums, after(at, &theta));
    }
    sums.iter().sum()
}

simd_dispatch! {
    /// `Σ (p − c)²`
    fn squared_distance(p: &[f32], c: &[f32]) -> f64 {
        let mut sums = [0.0; LANES];
        for at in (0..p.len()).step_by(LANES) {
            let (p, c) = (load(p, at), load(c, at));
            add_to(&mut sums, each(|l| (p[l] - c[l]) * (p[l] - c[l])));
        }
        sums.iter().sum()
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

simd_dispatch! {
    /// `grad = λ f (p − a)`; returns `Σ f (p − a)²`.
    fn ewc_chunk(p: &[f32], a: &[f32], f: &[f32], lambda: f32, grad: &mut [f32]) -> f64 {
        let mut sums = [0.0; LANES];
        for at in (0..p.len()).step_by(LANES) {
            let (p, a, f) = (load(p, at), load(a, at), load(f, at));
            let d = each(|l| p[l] - a[l]);
            store(grad, at, each(|l| lambda * f[l] * d[l]));
            add_to(&mut sums, each(|l| f[l] * d[l] * d[l]));
        }
        sums.iter().sum()
    }
}

pub fn ewc(params: &Tensor, anchor: &Tensor, fisher: &Tensor, lambda: f64) -> (f64, Tensor) {
    let (p, a, f) = (params.as_slice::<f32>(), anchor.as_slice::<f32>(), fisher.as_slice::<f32>());
    let mut grad = stale_vec::<f32>(p.len());
    let partial: Vec<f64> = grad
        .par_chunks_mut(CHUNK)
        .enumerate()
        .map(|(i, out)| {
            let range = i * CHUNK..i * CHUNK + out.len();
            ewc_chunk(&p[range.clone()], &a[range.clone()], &f[range], lambda as f32, out)
        })
        .collect();
    (partial.iter().sum::<f64>() * lambda / 2.0, Tensor::from_vec(params.shape(), grad))
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
