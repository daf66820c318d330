//! Launches of kernels/conv2d_sm90.cu: TMA reads operands of bf16 where they lie; a scale is a pass before, and so is f32.

use bytemuck::{Pod, Zeroable};

use super::plan::Hopper;
use super::{Operand, params};
use crate::device::CudaDevice;
use crate::device::cuda::{Param, TensorMap};
use crate::error::Result;
use crate::ops::bias_act::Epilogue;
use crate::ops::bias_act::cuda::epilogue_params;
use crate::ops::pointer;
use crate::ops::conv2d::{Conv2d, Extent};
use crate::ops::elementwise::{cast, channel_scale};
use crate::tensor::{DType, Tensor};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Conv2dBoxParams {
    w: i32,
    h: i32,
    n: i32,
    part: i32,
}
const _: () = assert!(size_of::<Conv2dBoxParams>() == 16, "keep in step with kernels/conv2d_sm90.cu");

impl Operand {
    /// An activation times its scale, in bf16 and where TMA reads it: at a multiple of 16 bytes.
    fn scaled(x: &Tensor, scale: Option<&Tensor>) -> Result<Operand> {
        let scaled = scale.map_or_else(|| Ok(x.clone()), |s| channel_scale(x, s))?;
        let rounded = cast(&scaled, DType::Bf16)?;
        Ok(Operand::Own(if rounded.cuda_pointer().is_multiple_of(16) { rounded } else { rounded.deep_clone()? }))
    }

    fn map<const N: usize>(&self, device: &CudaDevice, extents: [usize; N], boxes: [usize; N], steps: [usize; N]) -> Result<TensorMap> {
        TensorMap::new(device, self.pointer(), extents, boxes, steps)
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
        let y = Tensor::uninitialised_cuda_of(&[e.n, e.g[0], e.g[1], e.g[2]], x.dtype(), device)?;
        let (x, w) = (Operand::scaled(x, a)?, Operand::rounded(w)?);
        let map_of_w = w.map(device, [e.k[0] * e.k[1] * e.x[2], e.g[2]], [Hopper::DEPTH, self.columns], [1; 2])?;
        let (map_of_x, params, act, boxes) = (self.map_of_x(device, &x, spec, e)?, params(spec, e, 0), epilogue_params(then), self.box_params());
        // SAFETY: the parameters of the conv2d_sm90 entries in kernels/conv2d_sm90.cu; the op has checked all shapes
        // against `e`, and the operands live until the launch is queued.
        unsafe { device.launch(self.kernel, self.grid, &[&map_of_x, &map_of_w, &pointer(b), &y.cuda_pointer(), &params, &act, &boxes])? };
        Ok(y)
    }

    /// `conv2d_transpose`.
    #[allow(clippy::too_many_arguments)]
    pub fn transpose(&self, device: &CudaDevice, g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
        let z = Tensor::uninitialised_cuda_of(&[e.n, e.x[0], e.x[1], e.x[2]], g.dtype(), device)?;
        let (g, w) = (Operand::scaled(g, b)?, Operand::rounded(w)?);
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
        let (x, g) = (Operand::scaled(x, a)?, Operand::scaled(g, b)?);
        let (map_of_g, map_of_x, params, boxes) = (self.map_of_g(device, &g, e)?, self.map_of_x(device, &x, spec, e)?, params(spec, e, 0), self.box_params());
        // SAFETY: as in `forward`, of the conv2d_weight_grad_sm90 entries; the result holds every part.
        unsafe { device.launch(self.kernel, self.grid, &[&map_of_g, &map_of_x, &v.cuda_pointer(), &params, &boxes])? };
        Ok(v)
    }
}
