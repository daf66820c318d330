//! Pooling over windows of `[N, H, W, C]`. Average pooling is linear and comes with its transpose. Max pooling is a
//! selection: `max_pool2d_taps` says which element of each window is the largest, and `gather_taps` /
//! `scatter_taps` read and write by that choice. The two are transposes of each other and the choice is a constant to
//! differentiation, so the family is closed.

mod cpu;
mod cuda;

use crate::error::{Error, Result};
use crate::ops::on_device;
use crate::tensor::{DType, Tensor};

/// Geometry of the windows, per axis `[y, x]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
}

/// What an average divides by at the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Divisor {
    /// The whole kernel, padding included (PyTorch's default).
    Kernel,
    /// The elements inside the image only (TensorFlow; PyTorch's `count_include_pad=False`).
    Inside,
}

impl Window {
    /// The same kernel, stride and padding on both axes.
    pub const fn square(kernel: usize, stride: usize, padding: usize) -> Window {
        Window { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2] }
    }

    /// One window over a whole image of `size`.
    pub const fn whole(size: [usize; 2]) -> Window {
        Window { kernel: size, stride: [1; 2], padding: [0; 2] }
    }

    /// `[H_out, W_out]` for an image of `size`. Windows that would reach past the padding are left out, and padding is
    /// at most half a kernel, so that every window holds an element of the image.
    fn output(&self, op: &'static str, size: [usize; 2]) -> Result<[usize; 2]> {
        let mut out = [0; 2];
        for axis in 0..2 {
            let (kernel, stride, padding) = (self.kernel[axis], self.stride[axis], self.padding[axis]);
            if kernel == 0 || stride == 0 || 2 * padding > kernel || size[axis] == 0 {
                return Err(Error::shape(op, format!("{self:?} on {size:?}: needs a kernel, a stride, and padding up to half the kernel")));
            }
            let Some(room) = (size[axis] + 2 * padding).checked_sub(kernel) else {
                return Err(Error::shape(op, format!("image {size:?} is smaller than the window {self:?}")));
            };
            out[axis] = room / stride + 1;
        }
        Ok(out)
    }
}

fn rank4(op: &'static str, t: &Tensor) -> Result<[usize; 4]> {
    t.shape().try_into().map_err(|_| Error::shape(op, format!("{:?}: needs rank 4", t.shape())))
}

/// Checks that `g` is shaped as the output of windows on images of `size`.
fn check_output(op: &'static str, g: &Tensor, window: Window, size: [usize; 2]) -> Result<()> {
    let out = window.output(op, size)?;
    let shape = rank4(op, g)?;
    if shape[1..3] != out {
        return Err(Error::shape(op, format!("{:?} is no output of {window:?} on {size:?}", g.shape())));
    }
    Ok(())
}

fn check_taps(op: &'static str, like: &[usize], taps: &Tensor, beside: &Tensor) -> Result<()> {
    if taps.shape() != like || taps.dtype() != DType::F32 || taps.device() != beside.device() {
        let problem = format!("taps {:?} of {:?} on {} for windows {like:?} on {}", taps.shape(), taps.dtype(), taps.device(), beside.device());
        return Err(Error::shape(op, problem));
    }
    Ok(())
}

/// Largest element of every window, per channel: `[N, H, W, C]` -> `[N, H_out, W_out, C]`. A NaN wins.
pub fn max_pool2d(x: &Tensor, window: Window) -> Result<Tensor> {
    const OP: &str = "max_pool2d";
    let [_, h, w, _] = rank4(OP, x)?;
    let out = window.output(OP, [h, w])?;
    on_device!("max_pool2d", &[x], T => cpu::max_pool2d::<T>(x, window, out), d => cuda::over_windows(&d, "max_pool2d_f32", &[x], window, Divisor::Kernel, out))
}

/// Which element of each window is the largest (the first of equals): `k_y · kernel_x + k_x` as an f32, exact up to
/// 2^24 elements per window. `[N, H_out, W_out, C]`.
pub fn max_pool2d_taps(x: &Tensor, window: Window) -> Result<Tensor> {
    const OP: &str = "max_pool2d_taps";
    let [_, h, w, _] = rank4(OP, x)?;
    let out = window.output(OP, [h, w])?;
    if window.kernel[0] * window.kernel[1] > 1 << 24 {
        return Err(Error::shape(OP, format!("{window:?} has more elements than f32 counts exactly")));
    }
    on_device!("max_pool2d_taps", &[x], T => cpu::max_pool2d_taps::<T>(x, window, out), d => cuda::over_windows(&d, "max_pool2d_taps_f32", &[x], window, Divisor::Kernel, out))
}

/// The element of each window that `taps` (of `max_pool2d_taps`, same window and sizes) names.
pub fn gather_taps(x: &Tensor, taps: &Tensor, window: Window) -> Result<Tensor> {
    const OP: &str = "gather_taps";
    let [n, h, w, c] = rank4(OP, x)?;
    let out = window.output(OP, [h, w])?;
    check_taps(OP, &[n, out[0], out[1], c], taps, x)?;
    on_device!("gather_taps", &[x, taps], T => cpu::gather_taps::<T>(x, taps, window), d => cuda::over_windows(&d, "gather_taps_f32", &[x, taps], window, Divisor::Kernel, out))
}

/// Adds each element of `g` `[N, H_out, W_out, C]` to the element of its window that `taps` names, in zeros
/// `[N, H, W, C]` with `[H, W] = size`: the transpose of `gather_taps`.
pub fn scatter_taps(g: &Tensor, taps: &Tensor, window: Window, size: [usize; 2]) -> Result<Tensor> {
    const OP: &str = "scatter_taps";
    check_output(OP, g, window, size)?;
    check_taps(OP, g.shape(), taps, g)?;
    on_device!("scatter_taps", &[g, taps], T => cpu::scatter_taps::<T>(g, taps, window, size), d => cuda::over_images(&d, "scatter_taps_f32", &[g, taps], window, Divisor::Kernel, size))
}

/// Average of every window, per channel: `[N, H, W, C]` -> `[N, H_out, W_out, C]`.
pub fn avg_pool2d(x: &Tensor, window: Window, divisor: Divisor) -> Result<Tensor> {
    const OP: &str = "avg_pool2d";
    let [_, h, w, _] = rank4(OP, x)?;
    let out = window.output(OP, [h, w])?;
    on_device!("avg_pool2d", &[x], T => cpu::avg_pool2d::<T>(x, window, divisor, out), d => cuda::over_windows(&d, "avg_pool2d_f32", &[x], window, divisor, out))
}

/// Spreads each element of `g` over its window, divided as `avg_pool2d` divides: its transpose, `[N, H, W, C]` with
/// `[H, W] = size`.
pub fn avg_pool2d_transpose(g: &Tensor, window: Window, divisor: Divisor, size: [usize; 2]) -> Result<Tensor> {
    const OP: &str = "avg_pool2d_transpose";
    check_output(OP, g, window, size)?;
    on_device!("avg_pool2d_transpose", &[g], T => cpu::avg_pool2d_transpose::<T>(g, window, divisor, size), d => cuda::over_images(&d, "avg_pool2d_transpose_f32", &[g], window, divisor, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_is_not_hidden() {
        let x = Tensor::from_vec(&[1, 1, 3, 1], vec![1.0_f32, f32::NAN, 2.0]);
        let w = Window::whole([1, 3]);
        assert!(max_pool2d(&x, w).unwrap().item().unwrap().is_nan());
        assert_eq!(max_pool2d_taps(&x, w).unwrap().item().unwrap(), 1.0);
    }

    #[test]
    fn unusable_windows_are_refused() {
        let x = Tensor::zeros(&[1, 3, 3, 1], DType::F32);
        for w in [Window::square(4, 1, 0), Window::square(0, 1, 0), Window::square(2, 0, 0), Window::square(2, 1, 2)] {
            assert!(max_pool2d(&x, w).is_err(), "{w:?}");
        }
        assert!(avg_pool2d_transpose(&x, Window::square(2, 2, 0), Divisor::Kernel, [4, 4]).is_err());
    }
}
