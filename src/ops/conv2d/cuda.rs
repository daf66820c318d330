//! Launches of kernels/conv2d.cu.

use bytemuck::{Pod, Zeroable};

use super::{Conv2d, Extent, WeightGrad};
use crate::device::cuda::{Grid, Param};
use crate::device::{CudaDevice, Precision};
use crate::error::Result;
use crate::ops::matmul::cuda::{ENOUGH_BLOCKS, parts_of};
use crate::ops::reduce::cuda::add_parts;
use crate::tensor::Tensor;

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
}
const _: () = assert!(size_of::<Conv2dParams>() == 56, "keep in step with kernels/conv2d.cu");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Conv2dSquaredParams {
    conv: Conv2dParams,
    groups: i32,
    part: i32,
    weight: f32,
    accumulate: i32,
}
const _: () = assert!(size_of::<Conv2dSquaredParams>() == 72, "keep in step with kernels/conv2d.cu");

fn params(spec: Conv2d, e: Extent, part: usize) -> Param<Conv2dParams> {
    let pair = |v: [usize; 2]| v.map(|v| v as i32);
    let triple = |v: [usize; 3]| v.map(|v| v as i32);
    Param(Conv2dParams { n: e.n as i32, x: triple(e.x), g: triple(e.g), k: pair(e.k), stride: pair(spec.stride), padding: pair(spec.padding), part: part as i32 })
}

/// A kernel's tile of outputs, threads per block, and bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
struct Tile {
    size: [usize; 2],
    threads: u32,
    shared: u32,
}

impl Tile {
    /// Blocks for all outputs, in `layers`.
    fn grid(&self, outputs: [usize; 2], layers: usize) -> Grid {
        let [rows, columns] = [0, 1].map(|d| outputs[d].div_ceil(self.size[d]) as u32);
        Grid { blocks: [rows, columns, layers as u32], threads: self.threads, shared: self.shared }
    }
}

/// WideTile and NarrowTile in kernels/gemm_tile.cuh.
const WIDE: Tile = Tile { size: [64, 64], threads: 256, shared: 0 };
const NARROW: Tile = Tile { size: [128, 16], threads: 256, shared: 0 };
/// LargeMmaTile and SmallMmaTile in kernels/mma_tile.cuh.
const LARGE: Tile = tensor_core(128, 256);
const SMALL: Tile = tensor_core(64, 128);

const fn tensor_core(side: usize, threads: u32) -> Tile {
    // kSharedBytes in kernels/mma_tile.cuh: four stages of sixteen and four floats for each row of both operands.
    Tile { size: [side; 2], threads, shared: (4 * 2 * side * 20 * 4) as u32 }
}

/// The kernels of one op.
struct Kernels {
    wide: &'static str,
    narrow: Option<&'static str>,
    /// Large and small tiles: TF32, 3xTF32, bf16.
    tensor_core: [[&'static str; 2]; 3],
}

const FORWARD: Kernels = Kernels {
    wide: "conv2d_f32",
    narrow: Some("conv2d_narrow_f32"),
    tensor_core: [["conv2d_tf32", "conv2d_small_tf32"], ["conv2d_tf32x3", "conv2d_small_tf32x3"], ["conv2d_bf16", "conv2d_small_bf16"]],
};
const TRANSPOSE: Kernels = Kernels {
    wide: "conv2d_transpose_f32",
    narrow: Some("conv2d_transpose_narrow_f32"),
    tensor_core: [
        ["conv2d_transpose_tf32", "conv2d_transpose_small_tf32"],
        ["conv2d_transpose_tf32x3", "conv2d_transpose_small_tf32x3"],
        ["conv2d_transpose_bf16", "conv2d_transpose_small_bf16"],
    ],
};
const WEIGHT_GRAD: Kernels = Kernels {
    wide: "conv2d_weight_grad_f32",
    narrow: None,
    tensor_core: [
        ["conv2d_weight_grad_tf32", "conv2d_weight_grad_small_tf32"],
        ["conv2d_weight_grad_tf32x3", "conv2d_weight_grad_small_tf32x3"],
        ["conv2d_weight_grad_bf16", "conv2d_weight_grad_small_bf16"],
    ],
};

impl Kernels {
    /// The kernel for that many outputs. Few columns (images, a toy's channels) take the narrow tile whatever the
    /// precision: a tensor core's would be mostly empty.
    fn choose(&self, precision: Precision, [rows, columns]: [usize; 2]) -> (&'static str, Tile) {
        if let Some(narrow) = self.narrow.filter(|_| columns <= 2 * NARROW.size[1]) {
            return (narrow, NARROW);
        }
        let [large, small] = match precision {
            Precision::F32 => return (self.wide, WIDE),
            Precision::Tf32 => self.tensor_core[0],
            Precision::Tf32x3 => self.tensor_core[1],
            Precision::Bf16 => self.tensor_core[2],
        };
        let blocks = rows.div_ceil(LARGE.size[0]) * columns.div_ceil(LARGE.size[1]);
        if 2 * blocks >= ENOUGH_BLOCKS { (large, LARGE) } else { (small, SMALL) }
    }
}

/// How one product is launched: `layers` of blocks, times the parts of a sum over `depth`.
struct Plan {
    kernel: &'static str,
    grid: Grid,
    part: usize,
    parts: usize,
}

impl Plan {
    fn new(device: &CudaDevice, kernels: &Kernels, outputs: [usize; 2], depth: usize, layers: usize) -> Plan {
        let (kernel, tile) = kernels.choose(device.precision(), outputs);
        let [rows, columns, _] = tile.grid(outputs, layers).blocks;
        let (part, parts) = parts_of((rows * columns) as usize * layers, depth);
        Plan { kernel, grid: tile.grid(outputs, layers * parts), part: if parts == 1 { 0 } else { part }, parts }
    }

    /// Runs it: the first operand's scale comes first.
    ///
    /// # Safety
    /// The operands, their scales and the result's shape are those of the op, checked against `e`.
    unsafe fn launch(&self, device: &CudaDevice, operands: [&Tensor; 2], scales: [Option<&Tensor>; 2], spec: Conv2d, e: Extent, shape: [usize; 4]) -> Result<Tensor> {
        let len = shape.iter().product();
        let result = Tensor::uninitialised_cuda(&[self.parts, len], device)?;
        let arguments = [operands[0].cuda_pointer(), operands[1].cuda_pointer(), pointer(scales[0]), pointer(scales[1]), result.cuda_pointer()];
        let [u, v, first, second, to] = &arguments;
        // SAFETY: the parameters of all entries in kernels/conv2d.cu; the result holds every part.
        unsafe { device.launch(self.kernel, self.grid, &[u, v, first, second, to, &params(spec, e, self.part)])? };
        let sum = if self.parts == 1 { result } else { add_parts(device, &result, self.parts, len)? };
        sum.reshape(&shape)
    }
}

/// Null where there is no tensor.
fn pointer(tensor: Option<&Tensor>) -> u64 {
    tensor.map_or(0, Tensor::cuda_pointer)
}

pub fn conv2d(device: &CudaDevice, x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let [oh, ow, co] = e.g;
    let plan = Plan::new(device, &FORWARD, [e.n * oh * ow, co], e.k[0] * e.k[1] * e.x[2], 1);
    // SAFETY: the op has checked all shapes against `e`.
    unsafe { plan.launch(device, [x, w], [a, b], spec, e, [e.n, oh, ow, co]) }
}

pub fn conv2d_transpose(device: &CudaDevice, g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let ([h, wd, ci], [sy, sx]) = (e.x, spec.stride);
    // One layer of blocks per residue class of the stride; the first class is the largest, in pixels and in taps.
    let rows = e.n * h.div_ceil(sy) * wd.div_ceil(sx);
    let depth = e.k[0].div_ceil(sy) * e.k[1].div_ceil(sx) * e.g[2];
    let plan = Plan::new(device, &TRANSPOSE, [rows, ci], depth, sy * sx);
    // SAFETY: the op has checked all shapes against `e`; the layers cover every pixel of the result.
    unsafe { plan.launch(device, [g, w], [b, a], spec, e, [e.n, h, wd, ci]) }
}

pub fn conv2d_weight_grad(device: &CudaDevice, x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let ([kh, kw], ci, co) = (e.k, e.x[2], e.g[2]);
    let plan = Plan::new(device, &WEIGHT_GRAD, [co, kh * kw * ci], e.n * e.g[0] * e.g[1], 1);
    // SAFETY: the op has checked all shapes against `e`.
    unsafe { plan.launch(device, [x, g], [a, b], spec, e, [co, kh, kw, ci]) }
}

#[allow(clippy::too_many_arguments)]
pub fn conv2d_weight_grad_squared(device: &CudaDevice, of: &WeightGrad, e: Extent, groups: usize, rest: Option<&Tensor>, weight: f64, into: &mut Tensor, offset: usize) -> Result<()> {
    let outputs = [e.g[2], e.k[0] * e.k[1] * e.x[2]];
    let (kernel, tile) = match device.precision() {
        Precision::F32 => ("conv2d_weight_grad_squared_f32", WIDE),
        Precision::Tf32 => ("conv2d_weight_grad_squared_tf32", SMALL),
        Precision::Tf32x3 => ("conv2d_weight_grad_squared_tf32x3", SMALL),
        Precision::Bf16 => ("conv2d_weight_grad_squared_bf16", SMALL),
    };
    let Param(conv) = params(of.spec, e, 0);
    let params = Param(Conv2dSquaredParams { conv, groups: groups as i32, part: 0, weight: weight as f32, accumulate: 1 });
    let to = into.cuda_pointer_mut()? + (offset * size_of::<f32>()) as u64;
    let arguments = [of.x.cuda_pointer(), of.g.cuda_pointer(), pointer(of.a.as_ref()), pointer(of.b.as_ref()), pointer(rest), to];
    let [x, g, a, b, rest, to] = &arguments;
    // SAFETY: the parameters of the entries in kernels/conv2d.cu; the op has checked all shapes against `e`, and that the
    // rest has every group's weights and the slab has the weights at the offset.
    unsafe { device.launch(kernel, tile.grid(outputs, 1), &[x, g, a, b, rest, to, &params]) }
}
