//! Pad, upsample, filter with a separable FIR filter, downsample: one linear op whose transpose is the same op with
//! other numbers.
//!
//! `y[n,oy,ox,c] = gain · Σ_{ty,tx} f[ty] f[tx] · up(x)[n, oy·down + ty − pad_y, ox·down + tx − pad_x, c]`, where
//! `up(x)` puts `up − 1` zeros after each pixel, and `f` is read back to front unless `flip` (so the default is a
//! true convolution, as rosinality op/upfirdn2d.py).

pub(crate) mod cpu;
mod cuda;

use crate::error::{Error, Result};
use crate::ops::bias_act::{Epilogue, check_terms};
use crate::ops::on_device;
use crate::tensor::Tensor;

/// Most taps that a filter may have.
pub const MAX_TAPS: usize = 8;

/// StyleGAN2's resampling filter, `[1, 3, 3, 1] / 8` along each axis.
pub const RESAMPLE_TAPS: [f64; 4] = [0.125, 0.375, 0.375, 0.125];

/// The spec: everything but the data. Axes are `[y, x]`, pads `[before, after]` (negative crops).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Upfirdn2d {
    taps: [f64; MAX_TAPS],
    n_taps: usize,
    pub up: usize,
    pub down: usize,
    pub pad: [[isize; 2]; 2],
    pub flip: bool,
    pub gain: f64,
}

impl Upfirdn2d {
    /// A filter with the same `pad` on both axes.
    pub fn new(taps: &[f64], up: usize, down: usize, pad: [isize; 2], gain: f64) -> Upfirdn2d {
        assert!((1..=MAX_TAPS).contains(&taps.len()) && up > 0 && down > 0, "between 1 and {MAX_TAPS} taps");
        let mut padded = [0.0; MAX_TAPS];
        padded[..taps.len()].copy_from_slice(taps);
        Upfirdn2d { taps: padded, n_taps: taps.len(), up, down, pad: [pad, pad], flip: false, gain }
    }

    pub fn taps(&self) -> &[f64] {
        &self.taps[..self.n_taps]
    }

    /// Output length of an axis with `n` input entries; `None` when nothing is left.
    fn output_len(&self, n: usize, axis: usize) -> Option<usize> {
        let padded = (n * self.up) as isize + self.pad[axis][0] + self.pad[axis][1] - self.n_taps as isize;
        (padded >= 0).then(|| padded as usize / self.down + 1)
    }

    /// `[N, H_out, W_out, C]` for an input `[N, H, W, C]`.
    pub fn output_shape(&self, x: &[usize]) -> Result<[usize; 4]> {
        let &[n, h, w, c] = x else {
            return Err(Error::shape("upfirdn2d", format!("{x:?}: needs [N, H, W, C]")));
        };
        match (self.output_len(h, 0), self.output_len(w, 1)) {
            (Some(oh), Some(ow)) => Ok([n, oh, ow, c]),
            _ => Err(Error::shape("upfirdn2d", format!("nothing is left of {x:?} with {self:?}"))),
        }
    }

    /// The transpose of this linear map for inputs of `[H, W]`, itself an `Upfirdn2d`.
    pub fn adjoint(&self, input: [usize; 2], output: [usize; 2]) -> Upfirdn2d {
        let pad = |axis: usize| {
            let before = self.n_taps as isize - 1 - self.pad[axis][0];
            let after = (input[axis] * self.up) as isize - (output[axis] * self.down) as isize + self.pad[axis][0] - self.up as isize + 1;
            [before, after]
        };
        Upfirdn2d { up: self.down, down: self.up, pad: [pad(0), pad(1)], flip: !self.flip, ..*self }
    }
}

/// Applies `spec` to `x` `[N, H, W, C]`.
pub fn upfirdn2d(x: &Tensor, spec: &Upfirdn2d) -> Result<Tensor> {
    upfirdn2d_act(x, spec, Epilogue::NONE)
}

/// `act(upfirdn2d(x) + strength · noise + bias)` in one pass.
pub fn upfirdn2d_act(x: &Tensor, spec: &Upfirdn2d, then: Epilogue<Tensor>) -> Result<Tensor> {
    let shape = spec.output_shape(x.shape())?;
    check_terms("upfirdn2d_act", x, &shape, then.bias, then.noise)?;
    let taps = spec.n_taps.div_ceil(spec.up).pow(2);
    on_device!("upfirdn2d", &[x], 2 * shape.iter().product::<usize>() * taps, T => cpu::upfirdn2d::<T>(x, spec, shape, then), d or bf16 => cuda::upfirdn2d(&d, x, spec, shape, then))
}
