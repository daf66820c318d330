//! Host implementation.

use super::{Conv2d, Extent};
use crate::device::cpu::zero_vec;
use crate::tensor::{Scalar, Tensor};

/// Visits every (x, w, g) index triple of the trilinear form once, with sample, input and output channel.
fn visit(spec: Conv2d, e: Extent, mut f: impl FnMut(usize, usize, usize, [usize; 3])) {
    for n in 0..e.n {
        for py in 0..e.g[0] {
            for px in 0..e.g[1] {
                for ty in 0..e.k[0] {
                    for tx in 0..e.k[1] {
                        let qy = (py * spec.stride[0] + ty).wrapping_sub(spec.padding[0]);
                        let qx = (px * spec.stride[1] + tx).wrapping_sub(spec.padding[1]);
                        if qy >= e.x[0] || qx >= e.x[1] {
                            continue;
                        }
                        for o in 0..e.g[2] {
                            for i in 0..e.x[2] {
                                let x = ((n * e.x[0] + qy) * e.x[1] + qx) * e.x[2] + i;
                                let w = ((o * e.k[0] + ty) * e.k[1] + tx) * e.x[2] + i;
                                let g = ((n * e.g[0] + py) * e.g[1] + px) * e.g[2] + o;
                                f(x, w, g, [n, i, o]);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn scale_at<T: Scalar>(s: Option<&Tensor>, at: usize) -> T {
    s.map_or(T::ONE, |s| s.as_slice::<T>()[at])
}

pub fn conv2d<T: Scalar>(x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Tensor {
    let (xs, ws) = (x.as_slice::<T>(), w.as_slice::<T>());
    let mut y = zero_vec::<T>(e.n * e.g.iter().product::<usize>());
    visit(spec, e, |xi, wi, gi, [n, i, o]| {
        y[gi] += xs[xi] * ws[wi] * scale_at(a, n * e.x[2] + i) * scale_at(b, n * e.g[2] + o);
    });
    Tensor::from_vec(&[e.n, e.g[0], e.g[1], e.g[2]], y)
}

pub fn conv2d_transpose<T: Scalar>(g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, e: Extent) -> Tensor {
    let (gs, ws) = (g.as_slice::<T>(), w.as_slice::<T>());
    let mut z = zero_vec::<T>(e.n * e.x.iter().product::<usize>());
    visit(spec, e, |xi, wi, gi, [n, i, o]| {
        z[xi] += gs[gi] * ws[wi] * scale_at(a, n * e.x[2] + i) * scale_at(b, n * e.g[2] + o);
    });
    Tensor::from_vec(&[e.n, e.x[0], e.x[1], e.x[2]], z)
}

pub fn conv2d_weight_grad<T: Scalar>(x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Tensor {
    let (xs, gs) = (x.as_slice::<T>(), g.as_slice::<T>());
    let mut v = zero_vec::<T>(e.g[2] * e.k[0] * e.k[1] * e.x[2]);
    visit(spec, e, |xi, wi, gi, [n, i, o]| {
        v[wi] += gs[gi] * xs[xi] * scale_at(a, n * e.x[2] + i) * scale_at(b, n * e.g[2] + o);
    });
    Tensor::from_vec(&[e.g[2], e.k[0], e.k[1], e.x[2]], v)
}
