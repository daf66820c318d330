//! Host implementation: one pass, vectorised by the compiler.

use super::{Map, Zip};
use crate::device::cpu::{PARALLEL_ELEMENTS, for_chunks, stale_vec};
use crate::tensor::{Scalar, Tensor};

const CHUNK: usize = 1 << 13;

fn pass<T: Scalar>(x: &Tensor, f: impl Fn(T) -> T + Sync + Send) -> Tensor {
    let src = x.as_slice::<T>();
    let mut out = stale_vec::<T>(src.len());
    for_chunks(&mut out, CHUNK, |at, chunk| {
        for (o, v) in chunk.iter_mut().zip(&src[at..]) {
            *o = f(*v);
        }
    });
    Tensor::from_vec(x.shape(), out)
}

pub fn map<T: Scalar>(x: &Tensor, f: Map) -> Tensor {
    let one = T::ONE;
    match f {
        Map::Affine { scale, shift } => {
            let (scale, shift) = (T::from_f64(scale), T::from_f64(shift));
            pass(x, |v: T| v * scale + shift)
        }
        Map::Powf(p) if p == 2.0 => pass(x, |v: T| v * v),
        Map::Powf(p) if p == 1.0 => x.clone(),
        Map::Powf(p) if p == 0.5 => pass(x, |v: T| v.sqrt()),
        Map::Powf(p) if p == -0.5 => pass(x, |v: T| one / v.sqrt()),
        Map::Powf(p) if p == -1.0 => pass(x, |v: T| one / v),
        Map::Powf(p) => {
            let p = T::from_f64(p);
            pass(x, |v: T| v.powf(p))
        }
        Map::Exp => pass(x, |v: T| v.exp()),
        Map::Log => pass(x, |v: T| v.ln()),
        Map::Sigmoid => pass(x, |v: T| one / (one + (-v).exp())),
        Map::Tanh => pass(x, |v: T| v.tanh()),
        Map::Softplus => pass(x, |v: T| if v > T::ZERO { v + (-v).exp().ln_1p() } else { v.exp().ln_1p() }),
    }
}

pub fn zip<T: Scalar>(a: &Tensor, b: &Tensor, f: Zip) -> Tensor {
    let (u, v) = (a.as_slice::<T>(), b.as_slice::<T>());
    let mut out = stale_vec::<T>(u.len());
    for_chunks(&mut out, CHUNK, |at, chunk| {
        let pairs = chunk.iter_mut().zip(u[at..].iter().zip(&v[at..]));
        match f {
            Zip::Add => pairs.for_each(|(o, (p, q))| *o = *p + *q),
            Zip::Sub => pairs.for_each(|(o, (p, q))| *o = *p - *q),
            Zip::Mul => pairs.for_each(|(o, (p, q))| *o = *p * *q),
        }
    });
    Tensor::from_vec(a.shape(), out)
}

pub fn channel_scale<T: Scalar>(x: &Tensor, s: &Tensor) -> Tensor {
    let (src, scale) = (x.as_slice::<T>(), s.as_slice::<T>());
    let (n, c) = (s.dim(0), s.dim(1));
    let mut out = stale_vec::<T>(src.len());
    if n == 0 || c == 0 {
        return Tensor::from_vec(x.shape(), out);
    }
    let per_sample = src.len() / n;
    let one = |sample: usize, out: &mut [T]| {
        let scale = &scale[sample * c..][..c];
        for (o, v) in out.chunks_exact_mut(c).zip(src[sample * per_sample..].chunks_exact(c)) {
            for ((o, v), s) in o.iter_mut().zip(v).zip(scale) {
                *o = *v * *s;
            }
        }
    };
    if src.len() < PARALLEL_ELEMENTS || per_sample == 0 {
        out.chunks_mut(per_sample.max(1)).enumerate().for_each(|(i, o)| one(i, o));
    } else {
        use rayon::prelude::*;
        out.par_chunks_mut(per_sample).enumerate().for_each(|(i, o)| one(i, o));
    }
    Tensor::from_vec(x.shape(), out)
}
