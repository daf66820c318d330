//! Launches of kernels/reduce.cu, and how sums of kernels/column_sums.cuh are divided; repetition is a copy of
//! kernels/layout.cu.

use bytemuck::{Pod, Zeroable};

use super::cpu::runs;
use crate::device::CudaDevice;
use crate::device::cuda::{Argument, Grid, Param};
use crate::error::Result;
use crate::ops::by_dtype;
use crate::ops::layout::cuda::{StridedCopy, row_major};
use crate::tensor::{DType, Tensor};

/// `SumParams` in kernels/column_sums.cuh.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(in crate::ops) struct SumParams {
    columns: i32,
    mid: i32,
    inner: i32,
    rows: i32,
    part: i32,
    folded: i32,
}
const _: () = assert!(size_of::<SumParams>() == 24, "keep in step with kernels/column_sums.cuh");

/// `kSumThreads` in kernels/column_sums.cuh.
pub(in crate::ops) const THREADS: usize = 256;
/// A thread adds at least this many terms before a sum is cut into parts.
const TERMS_PER_THREAD: usize = 16;
/// Blocks that keep any GPU busy: more parts than that makes no sense.
const ENOUGH_BLOCKS: usize = 512;

/// How one launch divides `[outer, mid, inner]` among blocks. Depends on the shape alone, as the order of sums must.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Division {
    rows: usize,
    column_blocks: usize,
    pub parts: usize,
    part: usize,
}

impl Division {
    pub fn of(outer: usize, mid: usize, inner: usize) -> Division {
        // Up to a warp of neighbouring columns, so that their loads coalesce; more where the sums are short.
        let lanes = inner.next_power_of_two().min(32);
        let rows = (THREADS / lanes).min(mid.next_power_of_two());
        let column_blocks = (outer * inner).div_ceil(THREADS / rows);
        let wanted = (ENOUGH_BLOCKS / column_blocks.max(1)).min(mid / (rows * TERMS_PER_THREAD)).max(1);
        let part = mid.div_ceil(wanted).max(1);
        Division { rows, column_blocks, parts: mid.div_ceil(part).max(1), part }
    }

    pub fn grid(&self) -> Grid {
        Grid { blocks: [self.column_blocks as u32, self.parts as u32, 1], threads: THREADS as u32, shared: 0 }
    }

    /// What the kernel is told of `[outer, mid, inner]`; `folded`: where a thread takes several neighbours, whether they are
    /// terms of one sum.
    pub fn params(&self, [outer, mid, inner]: [usize; 3], folded: bool) -> Param<SumParams> {
        let [columns, mid, inner, rows, part] = [outer * inner, mid, inner, self.rows, self.part].map(|v| v as i32);
        Param(SumParams { columns, mid, inner, rows, part, folded: folded.into() })
    }
}

/// Elements of bf16 that a thread takes at a time where it can.
const EIGHT: usize = 8;

/// One launch: `[outer, mid, inner]` to `[outer, parts, inner]`.
fn sum_parts(device: &CudaDevice, terms: &[&Tensor], [outer, mid, inner]: [usize; 3]) -> Result<(Tensor, usize)> {
    let sources: Vec<u64> = terms.iter().map(|t| t.cuda_pointer()).collect();
    let (of_bf16, dot) = (terms[0].dtype() == DType::Bf16, terms.len() == 2);
    // Neighbours in memory are terms of one sum, or columns.
    let folded = inner == 1;
    let eights = of_bf16 && (if folded { mid } else { inner }).is_multiple_of(EIGHT) && sources.iter().all(|at| at.is_multiple_of(16));
    let (mid, units) = match (eights, folded) {
        (true, true) => (mid / EIGHT, inner),
        (true, false) => (mid, inner / EIGHT),
        (false, _) => (mid, inner),
    };
    let kernel = match (eights, dot) {
        (true, false) => "sum_middle_bf16x8",
        (true, true) => "channel_dot_bf16x8",
        (false, false) => by_dtype!(terms[0].dtype(), "sum_middle"),
        (false, true) => by_dtype!(terms[0].dtype(), "channel_dot"),
    };
    let d = Division::of(outer, mid, units);
    let y = Tensor::uninitialised_cuda(&[outer, d.parts, inner], device)?;
    let params = d.params([outer, mid, units], folded);
    let to = y.cuda_pointer();
    let arguments: Vec<&dyn Argument> = sources.iter().chain([&to]).map(|p| p as &dyn Argument).chain([&params as &dyn Argument]).collect();
    // SAFETY: the parameters of the kernel in kernels/reduce.cu: one or two operands of outer · mid · inner elements, the
    // result with one element per column and part.
    unsafe { device.launch(kernel, d.grid(), &arguments)? };
    Ok((y, d.parts))
}

/// `y[o, i] = Σ_m x[o, m, i]`, flat; `terms` is `x`, or two tensors that are multiplied first.
fn sum_middle(device: &CudaDevice, terms: &[&Tensor], [outer, mid, inner]: [usize; 3]) -> Result<Tensor> {
    if mid == 0 {
        return Ok(Tensor::from_cuda(&[outer * inner], device.filled(outer * inner, 0.0)?));
    }
    let (mut y, mut parts) = sum_parts(device, terms, [outer, mid, inner])?;
    while parts > 1 {
        let (sums, left) = sum_parts(device, &[&y], [outer, parts, inner])?;
        (y, parts) = (sums, left);
    }
    y.reshape(&[outer * inner])
}

/// The sum of `parts` tensors of `len` elements that lie one behind the other.
pub(crate) fn add_parts(device: &CudaDevice, x: &Tensor, parts: usize, len: usize) -> Result<Tensor> {
    sum_middle(device, &[x], [1, parts, len])
}

pub fn sum_to(device: &CudaDevice, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let mut runs = runs(x.shape(), shape);
    let mut sum = x.clone();
    while let Some(last) = runs.iter().rposition(|(_, kept)| !kept) {
        let product = |runs: &[(usize, bool)]| runs.iter().map(|r| r.0).product();
        sum = sum_middle(device, &[&sum], [product(&runs[..last]), runs[last].0, product(&runs[last + 1..])])?;
        runs.remove(last);
    }
    sum.reshape(shape)
}

pub fn broadcast_to(device: &CudaDevice, x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let y = Tensor::uninitialised_cuda_of(shape, x.dtype(), device)?;
    let from = row_major(x.shape()).iter().zip(x.shape()).zip(shape).map(|((stride, have), want)| if have == want { *stride } else { 0 }).collect();
    // SAFETY: the strides are those of x, 0 where it repeats, and those of y.
    unsafe { StridedCopy { size: shape.to_vec(), from, to: row_major(shape) }.launch(device, "broadcast_to", x.dtype(), x.cuda_pointer(), y.cuda_pointer())? };
    Ok(y)
}

pub fn channel_dot(device: &CudaDevice, u: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (n, c) = (u.dim(0), u.dim(u.rank() - 1));
    let pixels = u.shape()[1..u.rank() - 1].iter().product();
    sum_middle(device, &[u, v], [n, pixels, c])?.reshape(&[n, c])
}
