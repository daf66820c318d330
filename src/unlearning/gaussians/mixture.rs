//! The mixture, and what a cloud of points looks like beside it.

use crate::ops::random::Random;
use crate::tensor::Tensor;

/// Gaussians of the mixture, at equal angles from (RADIUS, 0), all of one weight.
pub const MODES: usize = 8;
/// Radius of the circle of centres.
pub const RADIUS: f64 = 2.0;
/// The modes to unlearn: centres (2, 0) and (−1.41, −1.41).
pub const NEGATIVE_MODES: [usize; 2] = [0, 5];
/// A point further than this from every centre belongs to no mode. Neighbouring centres are 1.53 apart.
pub const REACH: f64 = 0.5;

/// Centre of mode `i`.
pub fn centre(i: usize) -> [f64; 2] {
    let angle = std::f64::consts::TAU * i as f64 / MODES as f64;
    [RADIUS * angle.cos(), RADIUS * angle.sin()]
}

/// The mode whose centre is nearest to a point, and the distance to that centre.
pub fn nearest(point: &[f32]) -> (usize, f64) {
    let distance = |i: usize| {
        let c = centre(i);
        (point[0] as f64 - c[0]).hypot(point[1] as f64 - c[1])
    };
    (0..MODES).map(|i| (i, distance(i))).fold((0, f64::INFINITY), |best, next| if next.1 < best.1 { next } else { best })
}

/// How a point is marked: negative when the nearest centre is one of `NEGATIVE_MODES`.
pub fn is_negative(point: &[f32]) -> bool {
    NEGATIVE_MODES.contains(&nearest(point).0)
}

/// The distribution that the GAN is pre-trained on.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    /// Standard deviation of each Gaussian.
    pub spread: f64,
}

impl Mixture {
    /// `n` points, `[n, 2]`.
    pub fn sample(&self, n: usize, rng: &mut Random) -> Tensor {
        let modes = rng.uniform(&[n]);
        let offsets = rng.normal(&[n, 2]);
        let points = modes.as_slice::<f32>().iter().zip(offsets.as_slice::<f32>().chunks_exact(2)).flat_map(|(u, o)| {
            let c = centre((*u as f64 * MODES as f64) as usize);
            [0, 1].map(|d| (c[d] + self.spread * o[d] as f64) as f32)
        });
        Tensor::from_vec(&[n, 2], points.collect())
    }
}

/// A cloud of points by mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Points by nearest centre: how they are marked.
    pub marked: [usize; MODES],
    /// Points within `REACH` of each centre.
    pub near: [usize; MODES],
    pub total: usize,
}

impl Counts {
    /// Counts points `[n, 2]`.
    pub fn of(points: &Tensor) -> Counts {
        let mut counts = Counts { marked: [0; MODES], near: [0; MODES], total: points.dim(0) };
        for point in points.as_slice::<f32>().chunks_exact(2) {
            let (mode, distance) = nearest(point);
            counts.marked[mode] += 1;
            counts.near[mode] += usize::from(distance <= REACH);
        }
        counts
    }

    /// Share of points that are marked negative.
    pub fn negative_share(&self) -> f64 {
        NEGATIVE_MODES.iter().map(|m| self.marked[*m]).sum::<usize>() as f64 / self.total.max(1) as f64
    }

    /// Share of points within `REACH` of a negative centre.
    pub fn negative_near_share(&self) -> f64 {
        NEGATIVE_MODES.iter().map(|m| self.near[*m]).sum::<usize>() as f64 / self.total.max(1) as f64
    }

    /// Share of points that belong to no mode.
    pub fn stray_share(&self) -> f64 {
        1.0 - self.near.iter().sum::<usize>() as f64 / self.total.max(1) as f64
    }

    /// Smallest share, within `REACH`, among the modes for which `keep` holds.
    pub fn smallest_share(&self, keep: impl Fn(usize) -> bool) -> f64 {
        let smallest = (0..MODES).filter(|m| keep(*m)).map(|m| self.near[m]).min().unwrap_or(0);
        smallest as f64 / self.total.max(1) as f64
    }
}
