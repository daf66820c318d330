//! Host implementation: one pass over whole pixels, vectorised over channels.

use super::Activation;
use crate::device::cpu::{for_chunks, stale_vec};
use crate::tensor::{Scalar, Tensor};

pub fn bias_act<T: Scalar>(x: &Tensor, bias: Option<&Tensor>, noise: Option<(&Tensor, &Tensor)>, act: Activation) -> Tensor {
    let src = x.as_slice::<T>();
    let c = x.shape().last().copied().unwrap_or(1).max(1);
    let zeros = vec![T::ZERO; c];
    let bias = bias.map_or(&zeros[..], |b| b.as_slice::<T>());
    let noise = noise.map(|(n, s)| (n.as_slice::<T>(), s.as_slice::<T>()[0]));
    let (up, down) = (T::from_f64(act.gain), T::from_f64(act.gain * act.slope));
    let mut out = stale_vec::<T>(src.len());
    let pixels_per_chunk = ((1 << 13) / c).max(1);
    for_chunks(&mut out, pixels_per_chunk * c, |at, chunk| {
        for (i, (o, v)) in chunk.chunks_exact_mut(c).zip(src[at..].chunks_exact(c)).enumerate() {
            // Noise of one image repeats over the batch.
            let shift = noise.map_or(T::ZERO, |(n, s)| s * n[(at / c + i) % n.len()]);
            for ((o, v), b) in o.iter_mut().zip(v).zip(bias) {
                let v = *v + (shift + *b);
                *o = v * if v > T::ZERO { up } else { down };
            }
        }
    });
    Tensor::from_vec(x.shape(), out)
}

pub fn bias_act_grad<T: Scalar>(g: &Tensor, y: &Tensor, act: Activation) -> Tensor {
    let (grad, out_value) = (g.as_slice::<T>(), y.as_slice::<T>());
    let (up, down) = (T::from_f64(act.gain), T::from_f64(act.gain * act.slope));
    let mut out = stale_vec::<T>(grad.len());
    for_chunks(&mut out, 1 << 13, |at, chunk| {
        for ((o, g), y) in chunk.iter_mut().zip(&grad[at..]).zip(&out_value[at..]) {
            *o = *g * if *y > T::ZERO { up } else { down };
        }
    });
    Tensor::from_vec(g.shape(), out)
}
