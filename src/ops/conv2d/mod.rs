//! The scaled convolution family: one trilinear form, three ops that read it from three sides.
//!
//! `T = gain · Σ b[n,o] · g[n,p,o] · w[o,t,i] · a[n,i] · x[n,q(p,t),i]` with `q(p, t) = p · stride + t − padding`.
//! `conv2d` is its derivative by `g`, `conv2d_transpose` by `x`, `conv2d_weight_grad` by `w`; each takes the optional
//! per-sample scales (`a` of StyleGAN2's style, `b` of its demodulation), so no per-sample weights are ever made.
//! `x` and `g` may be bf16; weights, their gradients and scales are f32 then as ever.
//! `conv2d_weight_grad_squared` adds up squares of weight gradients of samples.

pub(crate) mod cpu;
mod cuda;

use crate::device::Device;
use crate::device::cpu::rounds_to_bf16;
use crate::error::{Error, Result};
use crate::ops::bias_act::{Epilogue, check_terms};
use crate::ops::elementwise::{Zip, cast, channel_scale, zip};
use crate::ops::layout::gather_rows;
use crate::ops::optimizer::accumulate_squares;
use crate::ops::{on_device, parameters_of, same_kind};
use crate::tensor::{DType, Tensor};

/// Geometry, per axis `[y, x]`, and a factor of the whole form: with it an equalised learning rate costs no pass over the
/// weight, and the weight that is multiplied is the parameter itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2d {
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub gain: f64,
}

impl Conv2d {
    /// The same stride and padding on both axes.
    pub const fn square(stride: usize, padding: usize) -> Conv2d {
        Conv2d { stride: [stride; 2], padding: [padding; 2], gain: 1.0 }
    }

    fn output_len(&self, axis: usize, input: usize, kernel: usize) -> Option<usize> {
        (input + 2 * self.padding[axis]).checked_sub(kernel).map(|v| v / self.stride[axis] + 1)
    }
}

impl Extent {
    /// Floating-point operations of the definition.
    fn flops(&self) -> usize {
        2 * self.n * self.g.iter().product::<usize>() * self.k[0] * self.k[1] * self.x[2]
    }
}

/// Sizes of one call, whichever op it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub n: usize,
    /// `x` side: height, width, channels.
    pub x: [usize; 3],
    /// `g` side: height, width, channels.
    pub g: [usize; 3],
    /// Kernel height, width.
    pub k: [usize; 2],
}

fn rank4(op: &'static str, t: &Tensor) -> Result<[usize; 4]> {
    t.shape().try_into().map_err(|_| Error::shape(op, format!("{:?}: needs rank 4", t.shape())))
}

fn check_scale(op: &'static str, scale: Option<&Tensor>, n: usize, c: usize) -> Result<()> {
    match scale {
        Some(s) if s.shape() != [n, c] => Err(Error::shape(op, format!("scale {:?} must be [{n}, {c}]", s.shape()))),
        _ => Ok(()),
    }
}

/// Checks the types and places of an activation and of parameters beside it.
fn check_kinds(op: &'static str, activation: &Tensor, parameters: [Option<&Tensor>; 3]) -> Result<()> {
    parameters_of(op, activation, &parameters.into_iter().flatten().collect::<Vec<_>>())
}

/// Two factors of the form and their scales as the CPU multiplies them.
struct Factors {
    values: [Tensor; 2],
    scales: [Option<Tensor>; 2],
}

impl Factors {
    /// Where the CPU rounds as a GPU does, each with its scale and then rounded to bf16; else as they are.
    fn new(values: [&Tensor; 2], scales: [Option<&Tensor>; 2]) -> Result<Factors> {
        let [first, _] = values;
        let rounds = match first.dtype() {
            DType::Bf16 => true,
            DType::F32 => rounds_to_bf16(),
            DType::F64 => false,
        };
        if first.device() != Device::Cpu || !rounds {
            return Ok(Factors { values: values.map(Tensor::clone), scales: scales.map(Option::<&Tensor>::cloned) });
        }
        let rounded = |value: &Tensor, scale: Option<&Tensor>| {
            let scaled = scale.map(|s| channel_scale(&cast(value, DType::F32)?, s)).transpose()?;
            cast(&cast(scaled.as_ref().unwrap_or(value), DType::Bf16)?, value.dtype())
        };
        let ([u, v], [a, b]) = (values, scales);
        Ok(Factors { values: [rounded(u, a)?, rounded(v, b)?], scales: [None, None] })
    }
}

/// Checks the arguments of a convolution.
fn extent(op: &'static str, x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d) -> Result<Extent> {
    let ([n, h, wd, ci], [co, kh, kw, ci2]) = (rank4(op, x)?, rank4(op, w)?);
    if ci != ci2 {
        return Err(Error::shape(op, format!("input {:?} has not the channels of weight {:?}", x.shape(), w.shape())));
    }
    let (Some(oh), Some(ow)) = (spec.output_len(0, h, kh), spec.output_len(1, wd, kw)) else {
        return Err(Error::shape(op, format!("input {:?} is smaller than the kernel {kh}x{kw}", x.shape())));
    };
    check_scale(op, a, n, ci)?;
    check_scale(op, b, n, co)?;
    check_kinds(op, x, [Some(w), a, b])?;
    Ok(Extent { n, x: [h, wd, ci], g: [oh, ow, co], k: [kh, kw] })
}

/// `y[n,p,o] = gain · b[n,o] · Σ_{t,i} a[n,i] · x[n,q(p,t),i] · w[o,t,i]`.
/// `x` `[N, H, W, C_in]`, `w` `[C_out, k_h, k_w, C_in]`, `a` `[N, C_in]`, `b` `[N, C_out]` -> `[N, H_out, W_out, C_out]`.
pub fn conv2d(x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d) -> Result<Tensor> {
    let extent = extent("conv2d", x, w, a, b, spec)?;
    let Factors { values: [x, w], scales: [a, _] } = &Factors::new([x, w], [a, None])?;
    let a = a.as_ref();
    on_device!("conv2d", &[x, w], extent.flops(), T => cpu::conv2d::<T>(x, w, a, b, spec, extent, Epilogue::NONE), d or bf16 => cuda::conv2d(&d, x, w, a, b, spec, extent))
}

/// `act(conv2d(…) + strength · noise + bias)` in one pass.
pub fn conv2d_act(x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, then: Epilogue<Tensor>) -> Result<Tensor> {
    const OP: &str = "conv2d_act";
    let extent = extent(OP, x, w, a, b, spec)?;
    let [oh, ow, co] = extent.g;
    check_terms(OP, x, &[extent.n, oh, ow, co], then.bias, then.noise)?;
    let Factors { values: [x, w], scales: [a, _] } = &Factors::new([x, w], [a, None])?;
    let a = a.as_ref();
    on_device!("conv2d_act", &[x, w], extent.flops(), T => cpu::conv2d::<T>(x, w, a, b, spec, extent, then), d or bf16 => cuda::conv2d_act(&d, x, w, a, b, spec, extent, then))
}

/// `z[n,q,i] = gain · a[n,i] · Σ_{t,o} b[n,o] · g[n,p,o] · w[o,t,i]` over `q = q(p, t)`: the transpose of `conv2d` in `x`.
/// `g` `[N, H_out, W_out, C_out]`, `b` scales `g`, `a` scales the result `[N, H, W, C_in]` with `[H, W] = size`.
pub fn conv2d_transpose(g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, size: [usize; 2]) -> Result<Tensor> {
    const OP: &str = "conv2d_transpose";
    let ([n, oh, ow, co], [co2, kh, kw, ci]) = (rank4(OP, g)?, rank4(OP, w)?);
    let fits = co == co2 && spec.output_len(0, size[0], kh) == Some(oh) && spec.output_len(1, size[1], kw) == Some(ow);
    if !fits {
        return Err(Error::shape(OP, format!("{:?} is no output of weight {:?} on {size:?} with {spec:?}", g.shape(), w.shape())));
    }
    check_scale(OP, b, n, co)?;
    check_scale(OP, a, n, ci)?;
    check_kinds(OP, g, [Some(w), a, b])?;
    let extent = Extent { n, x: [size[0], size[1], ci], g: [oh, ow, co], k: [kh, kw] };
    let Factors { values: [g, w], scales: [b, _] } = &Factors::new([g, w], [b, None])?;
    let b = b.as_ref();
    on_device!("conv2d_transpose", &[g, w], extent.flops(), T => cpu::conv2d_transpose::<T>(g, w, b, a, spec, extent), d or bf16 => cuda::conv2d_transpose(&d, g, w, b, a, spec, extent))
}

/// Checks the arguments of a weight gradient.
fn weight_grad_extent(op: &'static str, x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, kernel: [usize; 2]) -> Result<Extent> {
    let ([n, h, wd, ci], [n2, oh, ow, co]) = (rank4(op, x)?, rank4(op, g)?);
    let fits = n == n2 && spec.output_len(0, h, kernel[0]) == Some(oh) && spec.output_len(1, wd, kernel[1]) == Some(ow);
    if !fits {
        return Err(Error::shape(op, format!("{:?} is no output of a {kernel:?} kernel on {:?} with {spec:?}", g.shape(), x.shape())));
    }
    check_scale(op, a, n, ci)?;
    check_scale(op, b, n, co)?;
    same_kind(op, &[x, g])?;
    check_kinds(op, x, [a, b, None])?;
    Ok(Extent { n, x: [h, wd, ci], g: [oh, ow, co], k: kernel })
}

/// `v[o,t,i] = gain · Σ_{n,p} b[n,o] · g[n,p,o] · a[n,i] · x[n,q(p,t),i]`, `[C_out, k_h, k_w, C_in]` with `[k_h, k_w] = kernel`.
pub fn conv2d_weight_grad(x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, kernel: [usize; 2]) -> Result<Tensor> {
    let extent = weight_grad_extent("conv2d_weight_grad", x, g, a, b, spec, kernel)?;
    let Factors { values: [x, g], scales: [a, b] } = &Factors::new([x, g], [a, b])?;
    let (a, b) = (a.as_ref(), b.as_ref());
    on_device!("conv2d_weight_grad", &[x, g], extent.flops(), T => cpu::conv2d_weight_grad::<T>(x, g, a, b, spec, extent), d or bf16 to f32 => cuda::conv2d_weight_grad(&d, x, g, a, b, spec, extent))
}

/// A weight gradient that has not been computed: the arguments of `conv2d_weight_grad`.
#[derive(Clone, Debug)]
pub struct WeightGrad {
    pub x: Tensor,
    pub g: Tensor,
    pub a: Option<Tensor>,
    pub b: Option<Tensor>,
    pub spec: Conv2d,
    pub kernel: [usize; 2],
}

impl WeightGrad {
    /// `conv2d_weight_grad` of the samples that `rows` picks of each operand.
    fn compute_of(&self, rows: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let scale = |s: &Option<Tensor>| s.as_ref().map(&rows).transpose();
        let (a, b) = (scale(&self.a)?, scale(&self.b)?);
        conv2d_weight_grad(&rows(&self.x)?, &rows(&self.g)?, a.as_ref(), b.as_ref(), self.spec, self.kernel)
    }

    pub fn compute(&self) -> Result<Tensor> {
        self.compute_of(|t| Ok(t.clone()))
    }
}

/// Adds `weight · Σ_j (v_j + rest_j)²` to `into` from its element `offset` on, as `[C_out, k_h, k_w, C_in]`. `v_j` is the
/// gradient of group `j` of `groups`, the samples `j, j + groups, …`; `rest` `[groups, C_out, k_h, k_w, C_in]` is what
/// else the gradient consists of. A GPU stores no `v_j`.
pub fn conv2d_weight_grad_squared(of: &WeightGrad, groups: usize, rest: Option<&Tensor>, weight: f64, into: &mut Tensor, offset: usize) -> Result<()> {
    const OP: &str = "conv2d_weight_grad_squared";
    let extent = weight_grad_extent(OP, &of.x, &of.g, of.a.as_ref(), of.b.as_ref(), of.spec, of.kernel)?;
    let len = extent.g[2] * extent.k[0] * extent.k[1] * extent.x[2];
    if groups == 0 || extent.n % groups != 0 || offset + len > into.len() || rest.is_some_and(|r| r.len() != groups * len) {
        let problem = format!("{groups} groups of {} samples, {len} weights at {offset} of {} with a rest of {:?}", extent.n, into.len(), rest.map(Tensor::shape));
        return Err(Error::shape(OP, problem));
    }
    check_kinds(OP, &of.x, [Some(&*into), rest, None])?;
    if let Device::Cuda(device) = into.device() {
        return cuda::conv2d_weight_grad_squared(&device, of, extent, groups, rest, weight, into, offset);
    }
    for group in 0..groups {
        let members: Vec<usize> = (group..extent.n).step_by(groups).collect();
        let gradient = if groups == 1 { of.compute()? } else { of.compute_of(|t| gather_rows(t, &members))? };
        let whole = match rest {
            Some(rest) => zip(&gradient, &rest.segment(group * len, gradient.shape())?, Zip::Add)?,
            None => gradient,
        };
        accumulate_squares(into, &[whole], &[offset], weight)?;
    }
    Ok(())
}
