//! Separable resampling of 8-bit images, antialiased: the filter widens with the reduction. Arithmetic and rounding
//! are Pillow's (22-bit fixed point, 8 bits between the two passes, rows first), because the data sets and classifiers
//! of the field were prepared with it. (Pillow 13 sometimes does the columns first; the same pixels but for clipping.)

/// The weights' function and its radius, in output pixels when reducing and input pixels when enlarging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    Bilinear,
    Lanczos,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
        match self {
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

/// Fraction bits of a weight: 8 bits of pixel and 2 of overshoot leave 22 of 32.
const FRACTION: u32 = 32 - 8 - 2;

/// For each output position the first input position and the weights from there on.
fn taps(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<i32>)> {
    let scale = from as f64 / to as f64;
    let widened = scale.max(1.0);
    let radius = filter.radius() * widened;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - radius + 0.5).max(0.0) as usize;
            let end = ((centre + radius + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (first..end).map(|j| filter.weight((j as f64 - centre + 0.5) * (1.0 / widened))).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: &f64| {
                let scaled = (if sum != 0.0 { w / sum } else { *w }) * (1u32 << FRACTION) as f64;
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            };
            (first, weights.iter().map(fixed).collect())
        })
        .collect()
}

fn rounded(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

/// Resizes an image `[height, width, channels]` to `[to_height, to_width, channels]`. All sizes are positive.
pub fn resize(
    image: &[u8],
    (height, width): (usize, usize),
    channels: usize,
    (to_height, to_width): (usize, usize),
    filter: Filter,
) -> Vec<u8> {
    assert_eq!(image.len(), height * width * channels, "an image must fill its shape");
    let rows = if to_width == width {
        image.to_vec()
    } else {
        let taps = taps(width, to_width, filter);
        let mut out = Vec::with_capacity(height * to_width * channels);
        for row in image.chunks_exact(width * channels) {
            for (first, weights) in &taps {
                for c in 0..channels {
                    let pixels = row[first * channels + c..].iter().step_by(channels);
                    let start = 1 << (FRACTION - 1);
                    out.push(rounded(weights.iter().zip(pixels).fold(start, |sum, (w, p)| sum + w * *p as i32)));
                }
            }
        }
        out
    };
    if to_height == height {
        return rows;
    }
    let line = to_width * channels;
    let mut out = Vec::with_capacity(to_height * line);
    let mut sums = vec![0i32; line];
    for (first, weights) in taps(height, to_height, filter) {
        sums.fill(1 << (FRACTION - 1));
        for (weight, row) in weights.iter().zip(rows[first * line..].chunks_exact(line)) {
            for (sum, p) in sums.iter_mut().zip(row) {
                *sum += weight * *p as i32;
            }
        }
        out.extend(sums.iter().map(|sum| rounded(*sum)));
    }
    out
}

/// Resizes the shorter side of an image `[height, width, channels]` to `size` and cuts `[size, size, channels]` out of
/// the middle, as torchvision's Resize and CenterCrop do.
pub fn square(image: &[u8], from: (usize, usize), channels: usize, size: usize, filter: Filter) -> Vec<u8> {
    cover(image, from, channels, (size, size), filter)
}

/// Resizes an image `[height, width, channels]`, keeping its proportions, until it just covers `(to_height, to_width)`
/// and cuts that out of the middle.
pub fn cover(image: &[u8], (height, width): (usize, usize), channels: usize, (to_height, to_width): (usize, usize), filter: Filter) -> Vec<u8> {
    let (h, w) = if width * to_height <= height * to_width {
        ((to_width * height / width).max(to_height), to_width)
    } else {
        (to_height, (to_height * width / height).max(to_width))
    };
    let resized = resize(image, (height, width), channels, (h, w), filter);
    // Half of an odd rest rounds to even, as Python's round does.
    let start = |rest: usize| rest / 2 + (rest % 4 == 3) as usize;
    let (top, left) = (start(h - to_height), start(w - to_width));
    let mut out = Vec::with_capacity(to_height * to_width * channels);
    for row in resized.chunks_exact(w * channels).skip(top).take(to_height) {
        out.extend_from_slice(&row[left * channels..(left + to_width) * channels]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_stay_and_sizes_fit() {
        for filter in [Filter::Bilinear, Filter::Lanczos] {
            for (from, to) in [((5, 7), (3, 2)), ((5, 7), (11, 13)), ((5, 7), (5, 3)), ((1, 1), (4, 4)), ((9, 9), (1, 1))] {
                let out = resize(&vec![200; from.0 * from.1 * 3], from, 3, to, filter);
                assert!(out == vec![200; to.0 * to.1 * 3], "{filter:?} {from:?} to {to:?}");
            }
        }
    }

    /// Values of Pillow 13.0: a row of 0, 10, .. 90 resized by Lanczos, down and up.
    #[test]
    fn pillows_values() {
        let row: Vec<u8> = (0..10).map(|i| i * 10).collect();
        assert_eq!(resize(&row, (1, 10), 1, (1, 4), Filter::Lanczos), [8, 32, 58, 82]);
        assert_eq!(resize(&row, (1, 10), 1, (1, 15), Filter::Lanczos), [0, 4, 12, 19, 25, 31, 39, 45, 51, 59, 65, 71, 78, 86, 91]);
    }

    #[test]
    fn middle_squares() {
        // The shorter side is kept, the middle of the longer one stays: rows 0 to 4, of which 1 to 3.
        let image: Vec<u8> = (0..5).flat_map(|y| [y; 3]).collect();
        assert_eq!(square(&image, (5, 3), 1, 3, Filter::Lanczos), [1, 1, 1, 2, 2, 2, 3, 3, 3]);
        let wide: Vec<u8> = (0..2).flat_map(|_| 0..7).collect();
        // A rest of 5 columns: 2.5 rounds to 2.
        assert_eq!(square(&wide, (2, 7), 1, 2, Filter::Lanczos), [2, 3, 2, 3]);
    }
}
