//! Launches of kernels/bias_act.cu.

use bytemuck::{Pod, Zeroable};

use super::{Activation, Epilogue};
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::{by_dtype, pointer};
use crate::tensor::Tensor;

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
    let z = Tensor::uninitialised_cuda_of(g.shape(), g.dtype(), device)?;
    let (up, down) = act.factors();
    let params = Param(BiasActGradParams { count: g.len() as i32, up, down });
    // SAFETY: the parameters of the bias_act_grad entries in kernels/bias_act.cu; g, y and z hold `count` elements.
    unsafe { device.launch(by_dtype!(g.dtype(), "bias_act_grad"), Grid::strided(g.len()), &[&g.cuda_pointer(), &y.cuda_pointer(), &z.cuda_pointer(), &params])? };
    Ok(z)
}
