//! Launches of kernels/bias_act.cu.

use bytemuck::{Pod, Zeroable};

use super::Activation;
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::by_dtype;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BiasActParams {
    count: i32,
    channels: i32,
    noise_count: i32,
    up: f32,
    down: f32,
}
const _: () = assert!(size_of::<BiasActParams>() == 20, "keep in step with kernels/bias_act.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BiasActGradParams {
    count: i32,
    up: f32,
    down: f32,
}
const _: () = assert!(size_of::<BiasActGradParams>() == 12, "keep in step with kernels/bias_act.cu");

const NULL: u64 = 0;

pub fn bias_act(device: &CudaDevice, x: &Tensor, bias: Option<&Tensor>, noise: Option<(&Tensor, &Tensor)>, act: Activation) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(x.shape(), x.dtype(), device)?;
    let (up, down) = act.factors();
    let params = Param(BiasActParams {
        count: x.len() as i32,
        channels: x.shape().last().copied().unwrap_or(1).max(1) as i32,
        noise_count: noise.map_or(1, |(n, _)| n.len().max(1)) as i32,
        up,
        down,
    });
    let bias = bias.map_or(NULL, Tensor::cuda_pointer);
    let (map, strength) = noise.map_or((NULL, NULL), |(n, s)| (n.cuda_pointer(), s.cuda_pointer()));
    // SAFETY: the parameters of the bias_act entries in kernels/bias_act.cu; x and y hold `count` elements, bias one per channel,
    // the noise `noise_count`, which divides the number of pixels, the strength one.
    unsafe { device.launch(by_dtype!(x.dtype(), "bias_act"), Grid::strided(x.len()), &[&x.cuda_pointer(), &bias, &map, &strength, &y.cuda_pointer(), &params])? };
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
