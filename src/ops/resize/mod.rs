//! Separable image resizing of `[N, H, W, C]`, forward only: images on their way into a judging network.
//!
//! Output pixel `i` looks at input position `(i + 0.5) · in/out − 0.5` (PyTorch's `align_corners=False`; Pillow's
//! convention is the same).

mod cpu;
mod cuda;

use std::fmt;

use crate::error::{Error, Result};
use crate::ops::on_device;
use crate::tensor::Tensor;

/// How an output pixel weighs its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Between the two nearest pixels per axis, whatever the scale: aliases when it shrinks. PyTorch's
    /// `interpolate(mode="bilinear", align_corners=False)`.
    Bilinear,
    /// A triangle as wide as the scale: Pillow's `BILINEAR`, PyTorch's with `antialias=True`.
    AntialiasedBilinear,
    /// The cubic with a = −0.5 as wide as the scale: Pillow's `BICUBIC`, which clean-fid uses (resize.py).
    AntialiasedBicubic,
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Resize::Bilinear => "bilinear without antialiasing",
            Resize::AntialiasedBilinear => "antialiased bilinear",
            Resize::AntialiasedBicubic => "antialiased bicubic",
        })
    }
}

/// Weights of one axis: for every output position the first input position and the weights from there on.
pub(crate) struct Axis {
    pub taps: Vec<(usize, Vec<f64>)>,
}

impl Axis {
    /// From `input` to `output` pixels.
    pub(crate) fn new(how: Resize, input: usize, output: usize) -> Axis {
        let scale = input as f64 / output as f64;
        let taps = (0..output).map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            match how {
                Resize::Bilinear => {
                    let at = (centre - 0.5).max(0.0);
                    let first = (at as usize).min(input - 1);
                    let part = if first + 1 < input { at - first as f64 } else { 0.0 };
                    (first, if first + 1 < input { vec![1.0 - part, part] } else { vec![1.0] })
                }
                Resize::AntialiasedBilinear => filtered(centre, scale, input, 1.0, |t| (1.0 - t).max(0.0)),
                Resize::AntialiasedBicubic => filtered(centre, scale, input, 2.0, |t| {
                    const A: f64 = -0.5;
                    if t < 1.0 {
                        ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
                    } else if t < 2.0 {
                        (((t - 5.0) * t + 8.0) * t - 4.0) * A
                    } else {
                        0.0
                    }
                }),
            }
        });
        Axis { taps: taps.collect() }
    }
}

/// Pillow's `precompute_coeffs`: the filter of |t|, widened when it shrinks the image, cut at the border and
/// normalised.
fn filtered(centre: f64, scale: f64, input: usize, support: f64, filter: impl Fn(f64) -> f64) -> (usize, Vec<f64>) {
    let width = scale.max(1.0);
    let reach = support * width;
    let first = ((centre - reach + 0.5).max(0.0)) as usize;
    let end = ((centre + reach + 0.5) as usize).min(input);
    let mut weights: Vec<f64> = (first..end).map(|p| filter(((p as f64 - centre + 0.5) / width).abs())).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|w| *w /= sum);
    (first, weights)
}

/// `x` `[N, H, W, C]` at `[H, W] = size`.
pub fn resize(x: &Tensor, size: [usize; 2], how: Resize) -> Result<Tensor> {
    let [_, h, w, _]: [usize; 4] =
        x.shape().try_into().map_err(|_| Error::shape("resize", format!("{:?}: needs rank 4", x.shape())))?;
    if h == 0 || w == 0 || size.contains(&0) {
        return Err(Error::shape("resize", format!("{:?} to {size:?}: an image has pixels", x.shape())));
    }
    if [h, w] == size {
        return Ok(x.clone());
    }
    let axes = [Axis::new(how, h, size[0]), Axis::new(how, w, size[1])];
    on_device!("resize", &[x], T => cpu::resize::<T>(x, size, &axes), d => cuda::resize(&d, x, size, &axes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::Random;

    const ALL: [Resize; 3] = [Resize::Bilinear, Resize::AntialiasedBilinear, Resize::AntialiasedBicubic];

    /// Weights of an inner output pixel at half the size, where the filters have simple values.
    #[test]
    fn halving_has_known_weights() {
        let expected: [&[f64]; 3] = [
            &[0.5, 0.5],
            &[0.125, 0.375, 0.375, 0.125],
            &[-0.01171875, -0.03515625, 0.11328125, 0.43359375, 0.43359375, 0.11328125, -0.03515625, -0.01171875],
        ];
        for (how, expected) in ALL.into_iter().zip(expected) {
            let axis = Axis::new(how, 16, 8);
            let (start, weights) = &axis.taps[4];
            assert_eq!(*start, 9 - expected.len() / 2, "{how}");
            assert_eq!(weights, expected, "{how}");
        }
    }

    /// A sample's result does not depend on its neighbours.
    #[test]
    fn samples_are_independent() {
        let x = Random::new(2, 0).normal(&[3, 6, 5, 2]);
        for how in ALL {
            let all = resize(&x, [9, 4], how).unwrap();
            let one = resize(&x.rows(1, 1).unwrap(), [9, 4], how).unwrap();
            assert_eq!(all.rows(1, 1).unwrap().to_f64_vec(), one.to_f64_vec(), "{how}");
        }
        assert!(resize(&x, [0, 4], Resize::Bilinear).is_err());
    }
}
