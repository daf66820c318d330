//! Host implementation: segments are cut into chunks of fixed length which threads share; partial sums are added in
//! chunk order.

use rayon::prelude::*;

use super::{Adam, Pull, Slabs};
use crate::device::cpu::stale_vec;
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

fn chunk_step(c: Chunk, pull: Pull, r: &Rates) -> f64 {
    let range = c.at..c.at + c.params.len();
    match pull {
        Pull::None => update(c, r, |_, _| (0.0, 0.0), |_, _| 0.0),
        Pull::L1 { strength } => {
            let s = strength as f32;
            update(c, r, |_, theta| (s * theta.signum(), theta.abs()), |_, _| 0.0)
        }
        Pull::Ewc { anchor, fisher, lambda } => {
            let (anchor, fisher, lambda) = (&anchor.as_slice::<f32>()[range.clone()], &fisher.as_slice::<f32>()[range], lambda as f32);
            let sum = update(
                c,
                r,
                |i, theta| {
                    let (f, d) = (fisher[i], theta - anchor[i]);
                    (lambda * f * d, f * d * d)
                },
                |_, _| 0.0,
            );
            sum * lambda as f64 / 2.0
        }
        Pull::Centroid { centroid, weights, loss, distance, gradient, .. } => {
            let coefficient = if gradient { loss.slope(distance) } else { 0.0 };
            let (centroid, weight) = (&centroid.as_slice::<f32>()[range], weights[c.segment]);
            let by = (coefficient * 2.0 * weight) as f32;
            let sum = update(
                c,
                r,
                |i, theta| (by * (theta - centroid[i]), 0.0),
                |i, theta| {
                    let d = theta - centroid[i];
                    d * d
                },
            );
            sum * weight
        }
    }
}

/// The pass itself. `before(i, θ)` gives the regulariser's gradient and a summand, `after(i, θ')` a summand.
#[inline(always)]
fn update(mut c: Chunk, r: &Rates, before: impl Fn(usize, f32) -> (f32, f32), after: impl Fn(usize, f32) -> f32) -> f64 {
    let mut sum = 0.0;
    for i in 0..c.params.len() {
        let theta = c.params[i];
        let (extra, summand) = before(i, theta);
        let g = c.grad[i] + extra;
        let v = r.beta2 * c.v[i] + (1.0 - r.beta2) * g * g;
        c.v[i] = v;
        let direction = match &mut c.m {
            None => g,
            Some(m) => {
                m[i] = r.beta1 * m[i] + (1.0 - r.beta1) * g;
                m[i]
            }
        };
        let theta = theta - r.step_size * direction / (v.sqrt() * r.inverse_root_correction + r.eps);
        c.params[i] = theta;
        if let Some(ema) = &mut c.ema {
            ema[i] += r.ema_weight * (theta - ema[i]);
        }
        sum += summand as f64 + after(i, theta) as f64;
    }
    sum
}

pub fn weighted_squared_distance(params: &Tensor, centroid: &Tensor, offsets: &[usize], weights: &[f64]) -> f64 {
    let (p, c) = (params.as_slice::<f32>(), centroid.as_slice::<f32>());
    let cuts = cuts(offsets, p.len());
    let ends: Vec<usize> = cuts.iter().skip(1).map(|c| c.1).chain([p.len()]).collect();
    let partial: Vec<f64> = cuts
        .par_iter()
        .zip(ends)
        .map(|(&(segment, at, _), end)| {
            let sum: f64 = p[at..end].iter().zip(&c[at..end]).map(|(p, c)| ((p - c) * (p - c)) as f64).sum();
            sum * weights[segment]
        })
        .collect();
    partial.iter().sum()
}

pub fn ewc(params: &Tensor, anchor: &Tensor, fisher: &Tensor, lambda: f64) -> (f64, Tensor) {
    let (p, a, f) = (params.as_slice::<f32>(), anchor.as_slice::<f32>(), fisher.as_slice::<f32>());
    let mut grad = stale_vec::<f32>(p.len());
    let l = lambda as f32;
    let partial: Vec<f64> = grad
        .par_chunks_mut(CHUNK)
        .enumerate()
        .map(|(i, out)| {
            let at = i * CHUNK;
            let mut sum = 0.0;
            for (k, g) in out.iter_mut().enumerate() {
                let (d, f) = (p[at + k] - a[at + k], f[at + k]);
                *g = l * f * d;
                sum += (f * d * d) as f64;
            }
            sum
        })
        .collect();
    (partial.iter().sum::<f64>() * lambda / 2.0, Tensor::from_vec(params.shape(), grad))
}

pub fn accumulate_squares(into: &mut Tensor, grads: &[Tensor], offsets: &[usize], weight: f64) -> Result<()> {
    let w = weight as f32;
    let out = into.as_mut_slice::<f32>()?;
    for (g, &at) in grads.iter().zip(offsets) {
        for (o, g) in out[at..at + g.len()].iter_mut().zip(g.as_slice::<f32>()) {
            *o += w * g * g;
        }
    }
    Ok(())
}
