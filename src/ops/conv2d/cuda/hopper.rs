//! Launches of kernels/conv2d_sm90.cu: operands are packed as bf16, with their scales, and read by TMA; weights that an
//! optimiser's pass has left in bf16 are read there.

use bytemuck::{Pod, Zeroable};

use super::plan::Hopper;
use super::{act_params, params, pointer};
use crate::device::CudaDevice;
use crate::device::cuda::{CudaBuffer, Grid, Param, TensorMap};
use crate::error::Result;
use crate::ops::bias_act::Epilogue;
use crate::ops::conv2d::{Conv2d, Extent};
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Conv2dBoxParams {
    w: i32,
    h: i32,
    n: i32,
    part: i32,
}
const _: () = assert!(size_of::<Conv2dBoxParams>() == 16, "keep in step with kernels/conv2d_sm90.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Conv2dPackParams {
    count: i32,
    channels: i32,
    image: i32,
}
const _: () = assert!(size_of::<Conv2dPackParams>() == 12, "keep in step with kernels/conv2d_sm90.cu");

/// A bf16 copy of `[N, …, C]`, times a scale `[N, C]`.
fn packed(device: &CudaDevice, x: &Tensor, scale: Option<&Tensor>) -> Result<CudaBuffer> {
    let y = device.allocate(2 * x.len())?;
    let (channels, image) = (x.dim(x.rank() - 1), x.len() / x.dim(0).max(1));
    let params = Param(Conv2dPackParams { count: x.len() as i32, channels: channels as i32, image: image as i32 });
    // SAFETY: the parameters of conv2d_pack_bf16 in kernels/conv2d_sm90.cu; y has two bytes for each element of x, the
    // scale one number for each sample and channel.
    unsafe { device.launch("conv2d_pack_bf16", Grid::strided(x.len()), &[&x.cuda_pointer(), &pointer(scale), &y.pointer(), &params])? };
    Ok(y)
}

/// An operand in bf16.
enum Operand {
    Packed(CudaBuffer),
    /// Where the optimiser's pass has left it.
    Shadow(u64),
}

impl Operand {
    /// `[N, …, C]`, times a scale `[N, C]`.
    fn scaled(device: &CudaDevice, x: &Tensor, scale: Option<&Tensor>) -> Result<Operand> {
        packed(device, x, scale).map(Operand::Packed)
    }

    fn weight(device: &CudaDevice, w: &Tensor) -> Result<Operand> {
        w.cuda_shadow().map_or_else(|| Operand::scaled(device, w, None), |address| Ok(Operand::Shadow(address)))
    }

    fn map<const N: usize>(&self, device: &CudaDevice, extents: [usize; N], boxes: [usize; N], steps: [usize; N]) -> Result<TensorMap> {
        let address = match self {
            Operand::Packed(memory) => memory.pointer(),
            Operand::Shadow(address) => *address,
        };
        TensorMap::new(device, address, extents, boxes, steps)
    }
}

impl Hopper {
    fn box_params(&self) -> Param<Conv2dBoxParams> {
        let [w, h, n] = self.boxes.map(|v| v as i32);
        Param(Conv2dBoxParams { w, h, n, part: self.part as i32 })
    }

    /// Boxes of the `x` side: those of outputs, spread by the stride.
    fn map_of_x(&self, device: &CudaDevice, x: &Operand, spec: Conv2d, e: Extent) -> Result<TensorMap> {
        let ([h, w, c], [bw, bh, bn], [sy, sx]) = (e.x, self.boxes, spec.stride);
        x.map(device, [c, w, h, e.n], [Hopper::DEPTH, bw * sx, bh * sy, bn], [1, sx, sy, 1])
    }

    fn map_of_g(&self, device: &CudaDevice, g: &Operand, e: Extent) -> Result<TensorMap> {
        let ([h, w, c], [bw, bh, bn]) = (e.g, self.boxes);
        g.map(device, [c, w, h, e.n], [Hopper::DEPTH, bw, bh, bn], [1; 4])
    }

    /// `conv2d_act`.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(&self, device: &CudaDevice, x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent, then: Epilogue<Tensor>) -> Result<Tensor> {
        let y = Tensor::uninitialised_cuda(&[e.n, e.g[0], e.g[1], e.g[2]], device)?;
        let (x, w) = (Operand::scaled(device, x, a)?, Operand::weight(device, w)?);
        let map_of_w = w.map(device, [e.k[0] * e.k[1] * e.x[2], e.g[2]], [Hopper::DEPTH, self.columns], [1; 2])?;
        let (map_of_x, params, act, boxes) = (self.map_of_x(device, &x, spec, e)?, params(spec, e, 0), act_params(then), self.box_params());
        // SAFETY: the parameters of the conv2d_sm90 entries in kernels/conv2d_sm90.cu; the op has checked all shapes
        // against `e`, and the packed operands live until the launch is queued.
        unsafe { device.launch(self.kernel, self.grid, &[&map_of_x, &map_of_w, &pointer(b), &y.cuda_pointer(), &params, &act, &boxes])? };
        Ok(y)
    }

    /// `conv2d_transpose`.
    #[allow(clippy::too_many_arguments)]
    pub fn transpose(&self, device: &CudaDevice, g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
        let z = Tensor::uninitialised_cuda(&[e.n, e.x[0], e.x[1], e.x[2]], device)?;
        let (g, w) = (Operand::scaled(device, g, b)?, Operand::weight(device, w)?);
        let map_of_w = w.map(device, [e.x[2], e.k[0] * e.k[1], e.g[2]], [Hopper::DEPTH, 1, Hopper::DEPTH], [1; 3])?;
        let (map_of_g, params, boxes) = (self.map_of_g(device, &g, e)?, params(spec, e, 0), self.box_params());
        // SAFETY: as in `forward`, of the conv2d_transpose_sm90 entries.
        unsafe { device.launch(self.kernel, self.grid, &[&map_of_g, &map_of_w, &pointer(a), &z.cuda_pointer(), &params, &boxes])? };
        Ok(z)
    }

    /// The parts of `conv2d_weight_grad`, `[parts, C_out, k_h, k_w, C_in]`.
    #[allow(clippy::too_many_arguments)]
    pub fn weight_grad(&self, device: &CudaDevice, x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
        let v = Tensor::uninitialised_cuda(&[self.parts, e.g[2], e.k[0], e.k[1], e.x[2]], device)?;
        let (x, g) = (Operand::scaled(device, x, a)?, Operand::scaled(device, g, b)?);
        let (map_of_g, map_of_x, params, boxes) = (self.map_of_g(device, &g, e)?, self.map_of_x(device, &x, spec, e)?, params(spec, e, 0), self.box_params());
        // SAFETY: as in `forward`, of the conv2d_weight_grad_sm90 entries; the result holds every part.
        unsafe { device.launch(self.kernel, self.grid, &[&map_of_g, &map_of_x, &v.cuda_pointer(), &params, &boxes])? };
        Ok(v)
    }
}
