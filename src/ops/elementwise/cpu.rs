//! Host implementation: one pass, vectorised by the compiler for AVX2 and for the baseline.

use super::{Map, Power, Zip};
use crate::device::cpu::{Buffer, for_chunks, simd_dispatch};
use crate::tensor::{Scalar, Tensor};

const CHUNK: usize = 1 << 13;

simd_dispatch! {
    fn map_slice<T: Scalar, F: Fn(T) -> T>(out: &mut [T], x: &[T], f: F) {
        for (o, v) in out.iter_mut().zip(x) {
            *o = f(*v);
        }
    }
}

simd_dispatch! {
    fn zip_slice<T: Scalar, F: Fn(T, T) -> T>(out: &mut [T], u: &[T], v: &[T], f: F) {
        for (o, (p, q)) in out.iter_mut().zip(u.iter().zip(v)) {
            *o = f(*p, *q);
        }
    }
}

simd_dispatch! {
    /// Pixels of one sample.
    fn scale_pixels<T: Scalar>(out: &mut [T], x: &[T], scale: &[T]) {
        for (o, v) in out.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
            for ((o, v), s) in o.iter_mut().zip(v).zip(scale) {
                *o = *v * *s;
            }
        }
    }
}

fn pass<T: Scalar>(x: &Tensor, f: impl Fn(T) -> T + Sync + Send) -> Tensor {
    let src = x.as_slice::<T>();
    let mut out = Buffer::<T>::stale(src.len());
    for_chunks(&mut out, CHUNK, |at, chunk| map_slice(chunk, &src[at..], &f));
    Tensor::from_buffer(x.shape(), out)
}

pub fn map<T: Scalar>(x: &Tensor, f: Map) -> Tensor {
    let one = T::ONE;
    match f {
        Map::Affine { scale, shift } => {
            let (scale, shift) = (T::from_f64(scale), T::from_f64(shift));
            pass(x, |v: T| v * scale + shift)
        }
        Map::Power(p) => power::<T>(x, p),
        Map::Exp => pass(x, |v: T| v.exp()),
        Map::Log => pass(x, |v: T| v.ln()),
        Map::Sigmoid => pass(x, |v: T| one / (one + (-v).exp())),
        Map::Tanh => pass(x, |v: T| v.tanh()),
        Map::Softplus => pass(x, |v: T| if v > T::ZERO { v + (-v).exp().ln_1p() } else { v.exp().ln_1p() }),
    }
}

/// Roots, squares and inverses without the library's function.
fn power<T: Scalar>(x: &Tensor, p: Power) -> Tensor {
    let (gain, shift) = (T::from_f64(p.gain), T::from_f64(p.shift));
    match p.exponent {
        _ if p == Power::of(1.0) => x.clone(),
        1.0 => pass(x, |v: T| gain * (v + shift)),
        2.0 => pass(x, |v: T| {
            let v = v + shift;
            gain * (v * v)
        }),
        0.5 => pass(x, |v: T| gain * (v + shift).sqrt()),
        -0.5 => pass(x, |v: T| gain / (v + shift).sqrt()),
        -1.0 => pass(x, |v: T| gain / (v + shift)),
        exponent => {
            let exponent = T::from_f64(exponent);
            pass(x, |v: T| gain * (v + shift).powf(exponent))
        }
    }
}

pub fn saturate<T: Scalar>(x: &Tensor, scale: f64, shift: f64) -> Tensor {
    let (scale, shift) = (T::from_f64(scale), T::from_f64(shift));
    pass(x, |v: T| {
        let v = v * scale + shift;
        let v = if v < T::ZERO { T::ZERO } else { v };
        if v > T::ONE { T::ONE } else { v }
    })
}

pub fn zip<T: Scalar>(a: &Tensor, b: &Tensor, f: Zip) -> Tensor {
    let (u, v) = (a.as_slice::<T>(), b.as_slice::<T>());
    let mut out = Buffer::<T>::stale(u.len());
    for_chunks(&mut out, CHUNK, |at, chunk| match f {
        Zip::Add => zip_slice(chunk, &u[at..], &v[at..], |p, q| p + q),
        Zip::Sub => zip_slice(chunk, &u[at..], &v[at..], |p, q| p - q),
        Zip::Mul => zip_slice(chunk, &u[at..], &v[at..], |p, q| p * q),
    });
    Tensor::from_buffer(a.shape(), out)
}

pub fn channel_scale<T: Scalar>(x: &Tensor, s: &Tensor) -> Tensor {
    let (src, scale) = (x.as_slice::<T>(), s.as_slice::<T>());
    let (n, c) = (s.dim(0), s.dim(1));
    let mut out = Buffer::<T>::stale(src.len());
    if out.is_empty() {
        return Tensor::from_buffer(x.shape(), out);
    }
    let per_sample = src.len() / n;
    let pixels_per_chunk = (CHUNK / c).max(1);
    for_chunks(&mut out, pixels_per_chunk * c, |at, chunk| {
        // A chunk may hold the end of one sample and the start of the next.
        let (mut at, mut rest) = (at, chunk);
        while !rest.is_empty() {
            let sample = at / per_sample;
            let len = rest.len().min((sample + 1) * per_sample - at);
            let (mine, others) = rest.split_at_mut(len);
            scale_pixels(mine, &src[at..], &scale[sample * c..][..c]);
            (at, rest) = (at + len, others);
        }
    });
    Tensor::from_buffer(x.shape(), out)
}
