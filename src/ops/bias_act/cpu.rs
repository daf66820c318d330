//! Host implementation: one pass over whole pixels, vectorised over channels.

use super::Activation;
use crate::device::cpu::{for_chunks, simd_dispatch, stale_vec};
use crate::tensor::{Scalar, Tensor};

/// Values of a pixel beside which the loop over pixels costs little.
const WIDE: usize = 96;

simd_dispatch! {
    /// Pixels of `bias.len()` channels; `shift` is what pixel `i` gets on all channels.
    fn act_pixels<T: Scalar, F: Fn(usize) -> T>(out: &mut [T], x: &[T], bias: &[T], shift: F, up: T, down: T) {
        for (i, (o, v)) in out.chunks_exact_mut(bias.len()).zip(x.chunks_exact(bias.len())).enumerate() {
            let shift = shift(i);
            for ((o, v), b) in o.iter_mut().zip(v).zip(bias) {
                let v = *v + (shift + *b);
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

pub fn bias_act<T: Scalar>(x: &Tensor, bias: Option<&Tensor>, noise: Option<(&Tensor, &Tensor)>, act: Activation) -> Tensor {
    let src = x.as_slice::<T>();
    let c = x.shape().last().copied().unwrap_or(1).max(1);
    // Several narrow pixels count as one wide one, where all of them get the same: loops over channels are vectorised.
    let pixels = if noise.is_none() { (WIDE / c).max(1) } else { 1 };
    let bias = bias.map_or(vec![T::ZERO; c], |b| b.to_vec::<T>()).repeat(pixels);
    let noise = noise.map(|(n, s)| (n.as_slice::<T>(), s.as_slice::<T>()[0]));
    let (up, down) = (T::from_f64(act.gain), T::from_f64(act.gain * act.slope));
    let mut out = stale_vec::<T>(src.len());
    let pixels_per_chunk = ((1 << 13) / (pixels * c)).max(1) * pixels;
    for_chunks(&mut out, pixels_per_chunk * c, |at, chunk| {
        match noise {
            None => {
                let whole = chunk.len() / bias.len() * bias.len();
                let (wide, rest) = chunk.split_at_mut(whole);
                act_pixels(wide, &src[at..], &bias, |_| T::ZERO, up, down);
                act_pixels(rest, &src[at + whole..], &bias[..c], |_| T::ZERO, up, down);
            }
            // Noise of one image repeats over the batch.
            Some((n, s)) => act_pixels(chunk, &src[at..], &bias, |i| s * n[(at / c + i) % n.len()], up, down),
        }
    });
    Tensor::from_vec(x.shape(), out)
}

pub fn bias_act_grad<T: Scalar>(g: &Tensor, y: &Tensor, act: Activation) -> Tensor {
    let (grad, out_value) = (g.as_slice::<T>(), y.as_slice::<T>());
    let (up, down) = (T::from_f64(act.gain), T::from_f64(act.gain * act.slope));
    let mut out = stale_vec::<T>(grad.len());
    for_chunks(&mut out, 1 << 13, |at, chunk| act_grad(chunk, &grad[at..], &out_value[at..], up, down));
    Tensor::from_vec(g.shape(), out)
}
