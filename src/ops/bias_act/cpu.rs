//! Host implementation: one pass over whole pixels, vectorised over channels.

use rayon::prelude::*;

use super::{Activation, Epilogue, EpilogueGrad};
use crate::device::cpu::{Buffer, PARALLEL_ELEMENTS, for_chunks, simd_dispatch};
use crate::tensor::{Scalar, Tensor};

/// Values of a pixel beside which the loop over pixels costs little.
const WIDE: usize = 96;
/// Elements that one task takes.
const CHUNK: usize = 1 << 13;

/// A number per pixel for ever, from a pixel on: maps of one image repeat over the batch. Without a division for each.
struct Repeated<'a, T> {
    values: &'a [T],
    at: usize,
}

impl<'a, T: Scalar> Repeated<'a, T> {
    /// From pixel `first` on.
    #[inline(always)]
    fn new(values: &'a [T], first: usize) -> Repeated<'a, T> {
        Repeated { values, at: first % values.len().max(1) }
    }

    #[inline(always)]
    fn next(&mut self) -> T {
        let value = self.values[self.at];
        self.at += 1;
        if self.at == self.values.len() {
            self.at = 0;
        }
        value
    }
}

simd_dispatch! {
    /// Pixels of `bias.len()` channels, of which `first` is the first one's place in the map of `noise`, in place.
    fn act_pixels<T: Scalar>(out: &mut [T], bias: &[T], noise: &[T], first: usize, strength: T, up: T, down: T) {
        let mut noise = Repeated::new(noise, first);
        for o in out.chunks_exact_mut(bias.len()) {
            let shift = strength * noise.next();
            for (o, b) in o.iter_mut().zip(bias) {
                let v = *o + (shift + *b);
                *o = v * if v > T::ZERO { up } else { down };
            }
        }
    }
}

simd_dispatch! {
    fn act_grad<T: Scalar>(out: &mut [T], g: &[T], y: &[T], up: T, down: T) {
        for ((o, g), y) in out.iter_mut().zip(g).zip(y) {
            *o = *g * if *y > T::ZERO { up } else { down };
        }
    }
}

/// What becomes of pixels of `channels` values: `act(v + strength · noise + bias)`.
pub(in crate::ops) struct Finish<'a, T> {
    channels: usize,
    /// Of one pixel, or of several narrow ones that count as a wide one where all of them get the same: loops over channels
    /// are vectorised.
    bias: Vec<T>,
    noise: Option<(&'a [T], T)>,
    up: T,
    down: T,
}

impl<'a, T: Scalar> Finish<'a, T> {
    pub fn new(channels: usize, then: Epilogue<'a, Tensor>) -> Finish<'a, T> {
        let pixels = if then.noise.is_none() { (WIDE / channels.max(1)).max(1) } else { 1 };
        Finish {
            channels,
            bias: then.bias.map_or(vec![T::ZERO; channels], |b| b.to_vec::<T>()).repeat(pixels),
            noise: then.noise.map(|(n, s)| (n.as_slice::<T>(), s.as_slice::<T>()[0])),
            up: T::from_f64(then.act.gain),
            down: T::from_f64(then.act.gain * then.act.slope),
        }
    }

    /// Whole pixels, of which the first value is element `at` of the tensor, in place.
    pub fn in_place(&self, out: &mut [T], at: usize) {
        let Finish { channels: c, ref bias, up, down, .. } = *self;
        let none = [T::ZERO];
        let (noise, strength) = self.noise.unwrap_or((&none, T::ZERO));
        let (wide, rest) = out.split_at_mut(out.len() / bias.len() * bias.len());
        act_pixels(wide, bias, noise, at / c.max(1), strength, up, down);
        // Fewer than a wide one: there is no noise.
        act_pixels(rest, &bias[..c], &none, 0, strength, up, down);
    }

    /// Elements of whole pixels for one task.
    fn chunk(&self) -> usize {
        (CHUNK / self.bias.len().max(1)).max(1) * self.bias.len().max(1)
    }

    /// A whole tensor's values, in place.
    pub fn all_in_place(&self, out: &mut [T]) {
        for_chunks(out, self.chunk(), |at, chunk| self.in_place(chunk, at));
    }
}

pub fn bias_act<T: Scalar>(x: &Tensor, then: Epilogue<Tensor>) -> Tensor {
    let src = x.as_slice::<T>();
    let finish = Finish::<T>::new(x.shape().last().copied().unwrap_or(1), then);
    let mut out = Buffer::<T>::stale(src.len());
    for_chunks(&mut out, finish.chunk(), |at, chunk| {
        chunk.copy_from_slice(&src[at..][..chunk.len()]);
        finish.in_place(chunk, at);
    });
    Tensor::from_buffer(x.shape(), out)
}

pub fn bias_act_grad<T: Scalar>(g: &Tensor, y: &Tensor, act: Activation) -> Tensor {
    let (grad, out_value) = (g.as_slice::<T>(), y.as_slice::<T>());
    let (up, down) = (T::from_f64(act.gain), T::from_f64(act.gain * act.slope));
    let mut out = Buffer::<T>::stale(grad.len());
    for_chunks(&mut out, CHUNK, |at, chunk| act_grad(chunk, &grad[at..], &out_value[at..], up, down));
    Tensor::from_buffer(g.shape(), out)
}

/// Channels whose sums stay in registers while the pixels go by.
const LANES: usize = 16;
/// Sums per channel of `epilogue_grad`: of `h`, of `h · noise`, of `g · y`.
const SUMS: usize = 3;

simd_dispatch! {
    /// Writes `h` for whole pixels of `sums.len() / SUMS` channels, from pixel `first` on, and adds to their sums,
    /// `[SUMS, C]`.
    fn epilogue_grad_pixels<T: Scalar>(h: &mut [T], g: &[T], y: &[T], noise: &[T], first: usize, sums: &mut [T], up: T, down: T) {
        let c = sums.len() / SUMS;
        let pixels = h.len() / c;
        let whole = c / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let [mut plain, mut with_noise, mut with_output] = [[T::ZERO; LANES]; SUMS];
            let mut noise = Repeated::new(noise, first);
            for i in 0..pixels {
                let noise = noise.next();
                let row = i * c + at;
                let lanes = |of: &[T]| -> [T; LANES] { of[row..row + LANES].try_into().expect("as many") };
                let (g, y) = (lanes(g), lanes(y));
                let h: &mut [T; LANES] = (&mut h[row..row + LANES]).try_into().expect("as many");
                for lane in 0..LANES {
                    let v = g[lane] * if y[lane] > T::ZERO { up } else { down };
                    h[lane] = v;
                    plain[lane] += v;
                    with_noise[lane] += v * noise;
                    with_output[lane] += g[lane] * y[lane];
                }
            }
            for (k, found) in [plain, with_noise, with_output].iter().enumerate() {
                for (sum, v) in sums[k * c + at..][..LANES].iter_mut().zip(found) {
                    *sum += *v;
                }
            }
        }
        if whole == c {
            return;
        }
        let mut noise = Repeated::new(noise, first);
        let (plain, rest) = sums.split_at_mut(c);
        let (with_noise, with_output) = rest.split_at_mut(c);
        for i in 0..pixels {
            let noise = noise.next();
            for channel in whole..c {
                let (g, y) = (g[i * c + channel], y[i * c + channel]);
                let v = g * if y > T::ZERO { up } else { down };
                h[i * c + channel] = v;
                plain[channel] += v;
                with_noise[channel] += v * noise;
                with_output[channel] += g * y;
            }
        }
    }
}

/// One pass over the pixels, in parts whose sums are then added in order. Only a scale needs those of each sample.
pub fn epilogue_grad<T: Scalar>(g: &Tensor, y: &Tensor, then: Epilogue<Tensor>, scale: Option<&Tensor>) -> EpilogueGrad {
    let (n, c) = (y.dim(0), y.dim(y.rank() - 1));
    let (grad, out_value) = (g.as_slice::<T>(), y.as_slice::<T>());
    let (up, down) = (T::from_f64(then.act.gain), T::from_f64(then.act.gain * then.act.slope));
    let none = [T::ZERO];
    let noise = then.noise.map_or(&none[..], |(map, _)| map.as_slice::<T>());
    let samples = if scale.is_some() { n } else { 1 };
    let mut h = Buffer::<T>::stale(grad.len());
    let mut sums = Buffer::<T>::zeros(samples * SUMS * c);
    if !h.is_empty() {
        let pixels = h.len() / (samples * c);
        let per_part = (CHUNK / c).clamp(1, pixels);
        let parts = pixels.div_ceil(per_part);
        let mut partial = Buffer::<T>::zeros(samples * parts * SUMS * c);
        let mut tasks = Vec::with_capacity(samples * parts);
        for (sample, (h, sums)) in h.chunks_exact_mut(pixels * c).zip(partial.chunks_exact_mut(parts * SUMS * c)).enumerate() {
            let of_sample = h.chunks_mut(per_part * c).zip(sums.chunks_exact_mut(SUMS * c)).enumerate();
            tasks.extend(of_sample.map(|(part, (h, sums))| (sample * pixels + part * per_part, h, sums)));
        }
        let one = |(first, h, sums): (usize, &mut [T], &mut [T])| {
            epilogue_grad_pixels(h, &grad[first * c..], &out_value[first * c..], noise, first, sums, up, down);
        };
        if grad.len() < PARALLEL_ELEMENTS {
            tasks.into_iter().for_each(one);
        } else {
            tasks.into_par_iter().for_each(one);
        }
        for (sums, parts) in sums.chunks_exact_mut(SUMS * c).zip(partial.chunks_exact(parts * SUMS * c)) {
            for part in parts.chunks_exact(SUMS * c) {
                sums.iter_mut().zip(part).for_each(|(sum, v)| *sum += *v);
            }
        }
    }
    let mut bias = vec![T::ZERO; c];
    let mut strength = T::ZERO;
    for sums in sums.chunks_exact(SUMS * c) {
        bias.iter_mut().zip(&sums[..c]).for_each(|(b, v)| *b += *v);
        sums[c..2 * c].iter().for_each(|v| strength += *v);
    }
    let scale = scale.map(|scale| {
        let (added, s) = (then.bias.map(|b| b.as_slice::<T>()), then.noise.map_or(T::ZERO, |(_, s)| s.as_slice::<T>()[0]));
        let scale = scale.as_slice::<T>();
        let value = |i: usize| {
            let [plain, with_noise, with_output] = [0, 1, 2].map(|k| sums[(i / c * SUMS + k) * c + i % c]);
            let bias = added.map_or(T::ZERO, |b| b[i % c]);
            (with_output - s * with_noise - bias * plain) / scale[i]
        };
        Tensor::from_vec(&[n, c], (0..n * c).map(value).collect())
    });
    EpilogueGrad {
        between: Tensor::from_buffer(g.shape(), h),
        bias: Tensor::from_vec(&[c], bias),
        strength: then.noise.map(|_| Tensor::from_vec(&[1], vec![strength])),
        scale,
    }
}
