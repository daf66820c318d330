//! Cases of resizing: every filter, up, down and both at once, odd sizes and a single pixel.

use super::{Case, Tolerance, normal};
use recant::ops::resize::{Resize, resize};
use recant::tensor::Tensor;

const SIZES: [([usize; 2], [usize; 2]); 6] =
    [([4, 5], [9, 13]), ([12, 10], [5, 3]), ([7, 16], [14, 8]), ([1, 1], [3, 2]), ([9, 1], [1, 6]), ([28, 28], [32, 32])];

/// Weight of input pixel `p` in output pixel `i`, before normalisation, by the definition.
fn weight(how: Resize, input: usize, output: usize, i: usize, p: usize) -> f64 {
    let scale = input as f64 / output as f64;
    let centre = (i as f64 + 0.5) * scale - 0.5;
    let triangle = |t: f64| (1.0 - t.abs()).max(0.0);
    match how {
        // Positions beyond the border see the border pixel.
        Resize::Bilinear => triangle(centre.clamp(0.0, input as f64 - 1.0) - p as f64),
        Resize::AntialiasedBilinear => triangle((centre - p as f64) / scale.max(1.0)),
        Resize::AntialiasedBicubic => {
            let t = ((centre - p as f64) / scale.max(1.0)).abs();
            match t {
                t if t < 1.0 => 1.5 * t.powi(3) - 2.5 * t.powi(2) + 1.0,
                t if t < 2.0 => -0.5 * t.powi(3) + 2.5 * t.powi(2) - 4.0 * t + 2.0,
                _ => 0.0,
            }
        }
    }
}

/// Normalised weights `[output][input]`.
fn matrix(how: Resize, input: usize, output: usize) -> Vec<Vec<f64>> {
    (0..output)
        .map(|i| {
            let row: Vec<f64> = (0..input).map(|p| weight(how, input, output, i, p)).collect();
            let sum: f64 = row.iter().sum();
            row.iter().map(|w| w / sum).collect()
        })
        .collect()
}

fn reference(x: &Tensor, to: [usize; 2], how: Resize) -> Vec<f64> {
    let [n, h, w, c]: [usize; 4] = x.shape().try_into().expect("rank 4");
    let (v, ys, xs) = (x.to_f64_vec(), matrix(how, h, to[0]), matrix(how, w, to[1]));
    (0..n * to[0] * to[1] * c)
        .map(|o| {
            let (b, y, x, k) = (o / c / to[1] / to[0], o / c / to[1] % to[0], o / c % to[1], o % c);
            (0..h * w).map(|p| ys[y][p / w] * xs[x][p % w] * v[((b * h + p / w) * w + p % w) * c + k]).sum()
        })
        .collect()
}

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (stream, (from, to)) in SIZES.into_iter().enumerate() {
        for how in [Resize::Bilinear, Resize::AntialiasedBilinear, Resize::AntialiasedBicubic] {
            let x = normal(700 + stream as u64, &[2, from[0], from[1], 3]);
            all.push(Case::new(
                format!("resize {from:?} to {to:?} {how:?}"),
                vec![x],
                move |t| resize(&t[0], to, how),
                move |t| reference(&t[0], to, how),
                Tolerance { abs: 2e-6, rel: 1e-6, reason: "weights and two sums of some ten products, each rounded" },
            ));
        }
    }
    all
}
