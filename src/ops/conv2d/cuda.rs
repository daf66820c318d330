//! Launches of kernels/conv2d.cu.

use bytemuck::{Pod, Zeroable};

use super::{Conv2d, Extent};
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::matmul::cuda::{THREADS, WIDE, parts};
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

fn params(spec: Conv2d, e: Extent, part: usize) -> Param<Conv2dParams> {
    let pair = |v: [usize; 2]| v.map(|v| v as i32);
    let triple = |v: [usize; 3]| v.map(|v| v as i32);
    Param(Conv2dParams { n: e.n as i32, x: triple(e.x), g: triple(e.g), k: pair(e.k), stride: pair(spec.stride), padding: pair(spec.padding), part: part as i32 })
}

/// NarrowTile in kernels/gemm_tile.cuh.
const NARROW: [usize; 2] = [128, 16];

/// The narrow kernel where the wide one would compute mostly columns that are not there, and the blocks that cover
/// `rows` by `columns`.
fn tiling(rows: usize, columns: usize, wide: &'static str, narrow: &'static str) -> (&'static str, [u32; 2]) {
    let (kernel, tile) = if columns <= 2 * NARROW[1] { (narrow, NARROW) } else { (wide, WIDE) };
    (kernel, [rows.div_ceil(tile[0]) as u32, columns.div_ceil(tile[1]) as u32])
}

fn pointer(scale: Option<&Tensor>) -> u64 {
    scale.map_or(0, Tensor::cuda_pointer)
}

pub fn conv2d(device: &CudaDevice, x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let [oh, ow, co] = e.g;
    let y = Tensor::uninitialised_cuda(&[e.n, oh, ow, co], device)?;
    let (kernel, [rows, columns]) = tiling(e.n * oh * ow, co, "conv2d_f32", "conv2d_narrow_f32");
    let (grid, params) = (Grid { blocks: [rows, columns, 1], threads: THREADS }, params(spec, e, 0));
    // SAFETY: the parameters of both entries in kernels/conv2d.cu; the op has checked all shapes against `e`.
    unsafe { device.launch(kernel, grid, &[&x.cuda_pointer(), &w.cuda_pointer(), &pointer(a), &pointer(b), &y.cuda_pointer(), &params])? };
    Ok(y)
}

pub fn conv2d_transpose(device: &CudaDevice, g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let [h, wd, ci] = e.x;
    let z = Tensor::uninitialised_cuda(&[e.n, h, wd, ci], device)?;
    let [sy, sx] = spec.stride;
    // The first residue class is the largest.
    let largest = e.n * h.div_ceil(sy) * wd.div_ceil(sx);
    let (kernel, [rows, columns]) = tiling(largest, ci, "conv2d_transpose_f32", "conv2d_transpose_narrow_f32");
    let (grid, params) = (Grid { blocks: [rows, columns, (sy * sx) as u32], threads: THREADS }, params(spec, e, 0));
    // SAFETY: the parameters of both entries in kernels/conv2d.cu; the op has checked all shapes against `e`. One layer
    // of blocks per residue class of the stride covers every pixel of z.
    unsafe { device.launch(kernel, grid, &[&g.cuda_pointer(), &w.cuda_pointer(), &pointer(b), &pointer(a), &z.cuda_pointer(), &params])? };
    Ok(z)
}

pub fn conv2d_weight_grad(device: &CudaDevice, x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Result<Tensor> {
    let (rows, columns, depth) = (e.g[2], e.k[0] * e.k[1] * e.x[2], e.n * e.g[0] * e.g[1]);
    let (part, parts) = parts([rows, columns], depth);
    let v = Tensor::uninitialised_cuda(&[parts, rows, columns], device)?;
    let blocks = [rows.div_ceil(WIDE[0]) as u32, columns.div_ceil(WIDE[1]) as u32, parts as u32];
    let (grid, params) = (Grid { blocks, threads: THREADS }, params(spec, e, part));
    let arguments = [x.cuda_pointer(), g.cuda_pointer(), pointer(a), pointer(b), v.cuda_pointer()];
    // SAFETY: the parameters of conv2d_weight_grad_f32 in kernels/conv2d.cu; the op has checked all shapes against `e`,
    // and v holds one weight per part.
    unsafe { device.launch("conv2d_weight_grad_f32", grid, &[&arguments[0], &arguments[1], &arguments[2], &arguments[3], &arguments[4], &params])? };
    let v = if parts == 1 { v } else { add_parts(device, &v, parts, rows * columns)? };
    v.reshape(&[e.g[2], e.k[0], e.k[1], e.x[2]])
}
