//! Launches of kernels/conv2d.cu, and where `plan` says so of kernels/conv2d_sm90.cu (`hopper`). Beside activations of bf16
//! weights are read as bf16 too: where an optimiser's pass has left them so, else rounded here.

use bytemuck::{Pod, Zeroable};

use super::{Conv2d, Extent, WeightGrad};
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::bias_act::Epilogue;
use crate::ops::bias_act::cuda::epilogue_params;
use crate::ops::elementwise::cast;
use crate::ops::reduce::cuda::add_parts;
use crate::ops::{by_dtype, pointer};
use crate::tensor::{DType, Tensor};
use plan::{Direction, Plan, Tiled};

mod hopper;
mod plan;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Conv2dParams {
    n: i32,
    x: [i32; 3],
    g: [i32; 3],
    k: [i32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    part: i32,
    gain: f32,
}
const _: () = assert!(size_of::<Conv2dParams>() == 60, "keep in step with kernels/conv2d.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Conv2dSquaredParams {
    conv: Conv2dParams,
    groups: i32,
    part: i32,
    weight: f32,
    accumulate: i32,
}
const _: () = assert!(size_of::<Conv2dSquaredParams>() == 76, "keep in step with kernels/conv2d.cu");

fn params(spec: Conv2d, e: Extent, part: usize) -> Param<Conv2dParams> {
    let pair = |v: [usize; 2]| v.map(|v| v as i32);
    let triple = |v: [usize; 3]| v.map(|v| v as i32);
    Param(Conv2dParams {
        n: e.n as i32,
        x: triple(e.x),
        g: triple(e.g),
        k: pair(e.k),
        stride: pair(spec.stride),
        padding: pair(spec.padding),
        part: part as i32,
        gain: spec.gain as f32,
    })
}

/// A tensor of which a kernel reads the elements, or a bf16 copy of them.
enum Operand {
    Own(Tensor),
    /// Where the optimiser's pass has left it.
    Shadow(u64),
}

impl Operand {
    /// A weight in bf16.
    fn rounded(w: &Tensor) -> Result<Operand> {
        w.cuda_shadow().map_or_else(|| cast(w, DType::Bf16).map(Operand::Own), |address| Ok(Operand::Shadow(address)))
    }

    /// A weight as the plan's kernel reads it.
    fn weight(plan: &Tiled, w: &Tensor) -> Result<Operand> {
        if plan.rounds_weights { Operand::rounded(w) } else { Ok(Operand::Own(w.clone())) }
    }

    fn pointer(&self) -> u64 {
        match self {
            Operand::Own(tensor) => tensor.cuda_pointer(),
            Operand::Shadow(address) => *address,
        }
    }
}

/// Runs a product as planned: the parts of its sums, `[parts, shape]`, of f32, or its whole sums of `dtype`, `[1, shape]`.
/// The first operand's scale comes first.
///
/// # Safety
/// The operands, their scales and the result's shape are those of the op, checked against `e`; the type is the one that
/// the kernel stores.
#[allow(clippy::too_many_arguments)]
unsafe fn launch(device: &CudaDevice, plan: &Tiled, operands: [u64; 2], scales: [Option<&Tensor>; 2], spec: Conv2d, e: Extent, shape: [usize; 4], dtype: DType) -> Result<Tensor> {
    let dtype = if plan.parts == 1 { dtype } else { DType::F32 };
    let sums = Tensor::uninitialised_cuda_of(&[&[plan.parts], &shape[..]].concat(), dtype, device)?;
    let arguments = [operands[0], operands[1], pointer(scales[0]), pointer(scales[1]), sums.cuda_pointer()];
    let [u, v, first, second, to] = &arguments;
    // SAFETY: the parameters of all entries in kernels/conv2d.cu; the result holds every part.
    unsafe { device.launch(plan.kernel, plan.grid, &[u, v, first, second, to, &params(spec, e, plan.part)])? };
    Ok(sums)
}

/// The sum of the parts that `launch` has left.
fn whole(device: &CudaDevice, sums: Tensor, shape: [usize; 4], dtype: DType) -> Result<Tensor> {
    match (sums.dim(0), dtype) {
        (1, _) => sums.reshape(&shape),
        (_, DType::Bf16) => add_parts_act(device, &sums, shape, dtype, Epilogue::NONE),
        (parts, _) => add_parts(device, &sums, parts, shape.iter().product())?.reshape(&shape),
    }
}

/// The sum of the parts, and what follows.
fn add_parts_act(device: &CudaDevice, sums: &Tensor, shape: [usize; 4], dtype: DType, then: Epilogue<Tensor>) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(&shape, dtype, device)?;
    let (numbers, act) = ([y.len(), shape[3], sums.dim(0)].map(|v| Param(v as i32)), epilogue_params(then));
    let [count, channels, parts] = &numbers;
    // SAFETY: the parameters of the conv2d_add_parts_act entries in kernels/conv2d.cu; the sums are so many parts of y's
    // length, bias and noise are as the op has checked.
    unsafe { device.launch(by_dtype!(dtype, "conv2d_add_parts_act"), Grid::strided(y.len()), &[&sums.cuda_pointer(), &y.cuda_pointer(), count, channels, parts, &act])? };
    Ok(y)
}

pub fn conv2d(device: &CudaDevice, x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    match Plan::new(device, x.dtype(), Direction::Forward, spec, e) {
        Plan::Hopper(plan) => plan.forward(device, x, w, a, b, spec, e, Epilogue::NONE),
        Plan::Tiled(plan) => {
            let (sums, shape) = forward_sums(device, &plan, x, w, a, b, spec, e)?;
            whole(device, sums, shape, x.dtype())
        }
    }
}

/// What `launch` leaves of a convolution, and the shape of its result.
#[allow(clippy::too_many_arguments)]
fn forward_sums(device: &CudaDevice, plan: &Tiled, x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<(Tensor, [usize; 4])> {
    let (w, shape) = (Operand::weight(plan, w)?, [e.n, e.g[0], e.g[1], e.g[2]]);
    // SAFETY: the op has checked all shapes against `e`.
    let sums = unsafe { launch(device, plan, [x.cuda_pointer(), w.pointer()], [a, b], spec, e, shape, x.dtype())? };
    Ok((sums, shape))
}

/// What follows goes with the product's own stores, or with the addition of its parts.
#[allow(clippy::too_many_arguments)]
pub fn conv2d_act(device: &CudaDevice, x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent, then: Epilogue<Tensor>) -> Result<Tensor> {
    let plan = match Plan::new(device, x.dtype(), Direction::ForwardAct, spec, e) {
        Plan::Hopper(plan) => return plan.forward(device, x, w, a, b, spec, e, then),
        Plan::Tiled(plan) => plan,
    };
    if plan.parts > 1 {
        let plan = Tiled::new(device.precision(), x.dtype(), Direction::Forward, spec, e);
        let (sums, shape) = forward_sums(device, &plan, x, w, a, b, spec, e)?;
        return add_parts_act(device, &sums, shape, x.dtype(), then);
    }
    let (w, y) = (Operand::weight(&plan, w)?, Tensor::uninitialised_cuda_of(&[e.n, e.g[0], e.g[1], e.g[2]], x.dtype(), device)?);
    let arguments = [x.cuda_pointer(), w.pointer(), pointer(a), pointer(b), y.cuda_pointer()];
    let [x, w, a, b, to] = &arguments;
    // SAFETY: the parameters of the conv2d_act entries in kernels/conv2d.cu; the op has checked all shapes against `e`.
    unsafe { device.launch(plan.kernel, plan.grid, &[x, w, a, b, to, &params(spec, e, 0), &epilogue_params(then)])? };
    Ok(y)
}

pub fn conv2d_transpose(device: &CudaDevice, g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let plan = match Plan::new(device, g.dtype(), Direction::Transpose, spec, e) {
        Plan::Hopper(plan) => return plan.transpose(device, g, w, b, a, spec, e),
        Plan::Tiled(plan) => plan,
    };
    let (w, shape) = (Operand::weight(&plan, w)?, [e.n, e.x[0], e.x[1], e.x[2]]);
    // SAFETY: the op has checked all shapes against `e`; the layers of blocks cover every pixel of the result.
    let sums = unsafe { launch(device, &plan, [g.cuda_pointer(), w.pointer()], [b, a], spec, e, shape, g.dtype())? };
    whole(device, sums, shape, g.dtype())
}

pub fn conv2d_weight_grad(device: &CudaDevice, x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let shape = [e.g[2], e.k[0], e.k[1], e.x[2]];
    let sums = match Plan::new(device, x.dtype(), Direction::WeightGrad, spec, e) {
        Plan::Hopper(plan) => plan.weight_grad(device, x, g, a, b, spec, e)?,
        // SAFETY: the op has checked all shapes against `e`.
        Plan::Tiled(plan) => unsafe { launch(device, &plan, [x.cuda_pointer(), g.cuda_pointer()], [a, b], spec, e, shape, DType::F32)? },
    };
    whole(device, sums, shape, DType::F32)
}

#[allow(clippy::too_many_arguments)]
pub fn conv2d_weight_grad_squared(device: &CudaDevice, of: &WeightGrad, e: Extent, groups: usize, rest: Option<&Tensor>, weight: f64, into: &mut Tensor, offset: usize) -> Result<()> {
    let plan = Tiled::new(device.precision(), of.x.dtype(), Direction::WeightGradSquared, of.spec, e);
    let Param(conv) = params(of.spec, e, 0);
    let params = Param(Conv2dSquaredParams { conv, groups: groups as i32, part: 0, weight: weight as f32, accumulate: 1 });
    let to = into.cuda_pointer_mut()? + (offset * size_of::<f32>()) as u64;
    let arguments = [of.x.cuda_pointer(), of.g.cuda_pointer(), pointer(of.a.as_ref()), pointer(of.b.as_ref()), pointer(rest), to];
    let [x, g, a, b, rest, to] = &arguments;
    // SAFETY: the parameters of the entries in kernels/conv2d.cu; the op has checked all shapes against `e`, and that the
    // rest has every group's weights and the slab has the weights at the offset.
    unsafe { device.launch(plan.kernel, plan.grid, &[x, g, a, b, rest, to, &params]) }
}
