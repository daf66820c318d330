//! Host implementation: sample by sample, first along x, then along y, vectorised over pixels and channels.

use super::Axis;
use crate::device::cpu::{Buffer, for_chunks};
use crate::tensor::{Scalar, Tensor};

/// First input position and weights of every output position, in the element type.
fn taps<T: Scalar>(axis: &Axis) -> Vec<(usize, Vec<T>)> {
    axis.taps.iter().map(|(start, weights)| (*start, weights.iter().map(|w| T::from_f64(*w)).collect())).collect()
}

pub fn resize<T: Scalar>(x: &Tensor, [oh, ow]: [usize; 2], axes: &[Axis; 2]) -> Tensor {
    let (n, h, w, c) = (x.dim(0), x.dim(1), x.dim(2), x.dim(3));
    let src = x.as_slice::<T>();
    let [along_y, along_x] = [taps::<T>(&axes[0]), taps::<T>(&axes[1])];
    let mut out = Buffer::<T>::stale(n * oh * ow * c);
    if out.is_empty() {
        return Tensor::from_buffer(&[n, oh, ow, c], out);
    }
    let mut wide = Buffer::<T>::stale(n * h * ow * c);
    for_chunks(&mut wide, ow * c, |at, row| {
        let from = &src[at / (ow * c) * w * c..][..w * c];
        for (pixel, (start, weights)) in row.chunks_exact_mut(c).zip(&along_x) {
            pixel.fill(T::ZERO);
            for (p, weight) in from[start * c..].chunks_exact(c).zip(weights) {
                for (o, v) in pixel.iter_mut().zip(p) {
                    *o += *v * *weight;
                }
            }
        }
    });
    for_chunks(&mut out, ow * c, |at, row| {
        let at = at / (ow * c);
        let image = &wide[at / oh * h * ow * c..][..h * ow * c];
        let (start, weights) = &along_y[at % oh];
        row.fill(T::ZERO);
        for (line, weight) in image[start * ow * c..].chunks_exact(ow * c).zip(weights) {
            for (o, v) in row.iter_mut().zip(line) {
                *o += *v * *weight;
            }
        }
    });
    Tensor::from_buffer(&[n, oh, ow, c], out)
}
