//! Host implementation: one pass over whole pixels, vectorised over channels.

use super::{Activation, Epilogue};
use crate::device::cpu::{for_chunks, simd_dispatch, stale_vec};
use crate::tensor::{Scalar, Tensor};

/// Values of a pixel beside which the loop over pixels costs little.
const WIDE: usize = 96;
/// Elements that one task takes.
const CHUNK: usize = 1 << 13;

simd_dispatch! {
    /// Pixels of `bias.len()` channels, in place; `shift` is what pixel `i` gets on all channels.
    fn act_pixels<T: Scalar, F: Fn(usize) -> T>(out: &mut [T], bias: &[T], shift: F, up: T, down: T) {
        for (i, o) in out.chunks_exact_mut(bias.len()).enumerate() {
            let shift = shift(i);
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
        match self.noise {
            None => {
                let (wide, rest) = out.split_at_mut(out.len() / bias.len() * bias.len());
                act_pixels(wide, bias, |_| T::ZERO, up, down);
                act_pixels(rest, &bias[..c], |_| T::ZERO, up, down);
            }
            // Noise of one image repeats over the batch.
            Some((n, s)) => act_pixels(out, bias, |i| s * n[(at / c + i) % n.len()], up, down),
        }
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
    let mut out = stale_vec::<T>(src.len());
    for_chunks(&mut out, finish.chunk(), |at, chunk| {
        chunk.copy_from_slice(&src[at..][..chunk.len()]);
        finish.in_place(chunk, at);
    });
    Tensor::from_vec(x.shape(), out)
}

pub fn bias_act_grad<T: Scalar>(g: &Tensor, y: &Tensor, act: Activation) -> Tensor {
    let (grad, out_value) = (g.as_slice::<T>(), y.as_slice::<T>());
    let (up, down) = (T::from_f64(act.gain), T::from_f64(act.gain * act.slope));
    let mut out = stale_vec::<T>(grad.len());
    for_chunks(&mut out, CHUNK, |at, chunk| act_grad(chunk, &grad[at..], &out_value[at..], up, down));
    Tensor::from_vec(g.shape(), out)
}
