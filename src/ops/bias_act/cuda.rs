//! Launches of kernels/bias_act.cu.

use bytemuck::{Pod, Zeroable};

use super::{Activation, Epilogue, EpilogueGrad};
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::reduce::cuda::{Division, THREADS, add_parts, sum_to};
use crate::ops::{by_dtype, pointer};
use crate::tensor::{DType, Tensor};

/// `EpilogueParams` in kernels/epilogue.cuh.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(in crate::ops) struct EpilogueParams {
    bias: u64,
    noise: u64,
    strength: u64,
    noise_count: i32,
    up: f32,
    down: f32,
    padding: i32,
}
const _: () = assert!(size_of::<EpilogueParams>() == 40, "keep in step with kernels/epilogue.cuh");

/// What follows, as kernels take it. The noise divides the pixels that it is for, as `check_terms` sees to.
pub(in crate::ops) fn epilogue_params(then: Epilogue<Tensor>) -> Param<EpilogueParams> {
    let (up, down) = then.act.factors();
    Param(EpilogueParams {
        bias: pointer(then.bias),
        noise: pointer(then.noise.map(|(map, _)| map)),
        strength: pointer(then.noise.map(|(_, strength)| strength)),
        noise_count: then.noise.map_or(1, |(map, _)| map.len().max(1)) as i32,
        up,
        down,
        padding: 0,
    })
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BiasActGradParams {
    count: i32,
    up: f32,
    down: f32,
}
const _: () = assert!(size_of::<BiasActGradParams>() == 12, "keep in step with kernels/bias_act.cu");

pub fn bias_act(device: &CudaDevice, x: &Tensor, then: Epilogue<Tensor>) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(x.shape(), x.dtype(), device)?;
    let (count, channels) = (Param(x.len() as i32), Param(x.shape().last().copied().unwrap_or(1).max(1) as i32));
    // SAFETY: the parameters of the bias_act entries in kernels/bias_act.cu; x and y hold `count` elements, what is added
    // fits x.
    unsafe { device.launch(by_dtype!(x.dtype(), "bias_act"), Grid::strided(x.len()), &[&x.cuda_pointer(), &y.cuda_pointer(), &count, &channels, &epilogue_params(then)])? };
    Ok(y)
}

pub fn bias_act_grad(device: &CudaDevice, g: &Tensor, y: &Tensor, act: Activation) -> Result<Tensor> {
    let h = Tensor::uninitialised_cuda_of(g.shape(), g.dtype(), device)?;
    let (up, down) = act.factors();
    let params = Param(BiasActGradParams { count: g.len() as i32, up, down });
    // SAFETY: the parameters of the bias_act_grad entries in kernels/bias_act.cu; g, y and h hold `count` elements.
    unsafe { device.launch(by_dtype!(g.dtype(), "bias_act_grad"), Grid::strided(g.len()), &[&g.cuda_pointer(), &y.cuda_pointer(), &h.cuda_pointer(), &params])? };
    Ok(h)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScaleGradParams {
    samples: i32,
    parts: i32,
    channels: i32,
}
const _: () = assert!(size_of::<ScaleGradParams>() == 12, "keep in step with kernels/bias_act.cu");

/// Sums per channel of epilogue_grad, and channels of a block of epilogue_grad_scale.
const SUMS: usize = 3;
const SCALE_CHANNELS: usize = 16;

pub fn epilogue_grad(device: &CudaDevice, g: &Tensor, y: &Tensor, then: Epilogue<Tensor>, scale: Option<&Tensor>) -> Result<EpilogueGrad> {
    let (n, c) = (y.dim(0), y.dim(y.rank() - 1));
    // Only a scale needs the sums of each sample.
    let samples = if scale.is_some() { n } else { 1 };
    let pixels = y.len() / (samples * c).max(1);
    let zeros = |shape: &[usize]| Ok(Tensor::from_cuda(shape, device.filled(shape.iter().product(), 0.0)?));
    if y.len() == 0 {
        let scale = scale.map(|s| zeros(s.shape())).transpose()?;
        return Ok(EpilogueGrad { between: g.clone(), bias: zeros(&[c])?, strength: then.noise.map(|_| zeros(&[1])).transpose()?, scale });
    }
    let h = Tensor::uninitialised_cuda_of(g.shape(), g.dtype(), device)?;
    let (many, kernel, single) = match g.dtype() {
        DType::Bf16 => (8, "epilogue_grad_bf16x8", "epilogue_grad_bf16"),
        _ => (4, "epilogue_grad_f32x4", "epilogue_grad_f32"),
    };
    let wide = c.is_multiple_of(many) && [g, y, &h].iter().all(|t| t.cuda_pointer().is_multiple_of(16));
    let (kernel, units) = if wide { (kernel, c / many) } else { (single, c) };
    let d = Division::of(samples, pixels, units);
    let sums = Tensor::uninitialised_cuda(&[samples, d.parts, SUMS, c], device)?;
    let (params, epilogue) = (d.params([samples, pixels, units], false), epilogue_params(then));
    // SAFETY: the parameters of the epilogue_grad entries in kernels/bias_act.cu; g, y and h hold samples · pixels · c
    // elements, the noise divides the pixels, and the sums have an element per sample, part, kind and channel.
    unsafe { device.launch(kernel, d.grid(), &[&g.cuda_pointer(), &y.cuda_pointer(), &h.cuda_pointer(), &sums.cuda_pointer(), &params, &epilogue])? };
    let added = |strengths: &Tensor| sum_to(device, strengths, &[1]);
    let Some(scale) = scale else {
        let sums = if d.parts == 1 { sums } else { add_parts(device, &sums, d.parts, SUMS * c)? };
        let strength = then.noise.map(|_| added(&sums.segment(c, &[c])?)).transpose()?;
        return Ok(EpilogueGrad { between: h, bias: sums.segment(0, &[c])?, strength, scale: None });
    };
    let (to_scale, to_bias, to_strength) = (Tensor::uninitialised_cuda(&[n, c], device)?, Tensor::uninitialised_cuda(&[c], device)?, Tensor::uninitialised_cuda(&[c], device)?);
    let params = Param(ScaleGradParams { samples: n as i32, parts: d.parts as i32, channels: c as i32 });
    let grid = Grid { blocks: [c.div_ceil(SCALE_CHANNELS) as u32, 1, 1], threads: THREADS as u32, shared: 0 };
    let arguments = [&sums, scale, &to_scale, &to_bias, &to_strength].map(|t| t.cuda_pointer());
    let [of_sums, of_scale, at_scale, at_bias, at_strength] = &arguments;
    // SAFETY: the parameters of epilogue_grad_scale_f32 in kernels/bias_act.cu; scale and its gradient are [n, c].
    unsafe { device.launch("epilogue_grad_scale_f32", grid, &[of_sums, of_scale, at_scale, at_bias, at_strength, &params, &epilogue])? };
    Ok(EpilogueGrad { between: h, bias: to_bias, strength: then.noise.map(|_| added(&to_strength)).transpose()?, scale: Some(to_scale) })
}
