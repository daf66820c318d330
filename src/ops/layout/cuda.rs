//! Launches of kernels/layout.cu: every op here is one kind of strided copy.

use bytemuck::{Pod, Zeroable};

use crate::device::cuda::{Grid, Param};
use crate::device::{CudaDevice, Device};
use crate::error::{Error, Result};
use crate::ops::by_dtype;
use crate::tensor::{DType, Tensor};

const DIMENSIONS: usize = 6;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CopyParams {
    count: i32,
    size: [i32; DIMENSIONS],
    from: [i32; DIMENSIONS],
    to: [i32; DIMENSIONS],
}
const _: () = assert!(size_of::<CopyParams>() == 76, "keep in step with kernels/layout.cu");

/// `to[Σ index · to] = from[Σ index · from]` over all indices below `size`.
#[derive(Debug)]
pub struct StridedCopy {
    pub size: Vec<usize>,
    pub from: Vec<usize>,
    pub to: Vec<usize>,
}

/// Strides of a contiguous tensor.
pub fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for d in (0..shape.len().saturating_sub(1)).rev() {
        strides[d] = strides[d + 1] * shape[d + 1];
    }
    strides
}

impl StridedCopy {
    /// The same copy with as few dimensions as it can be written with.
    fn merged(&self) -> StridedCopy {
        let mut merged = StridedCopy { size: Vec::new(), from: Vec::new(), to: Vec::new() };
        for ((&size, &from), &to) in self.size.iter().zip(&self.from).zip(&self.to) {
            if size == 1 {
                continue;
            }
            // One step of the outer dimension is a whole run of this one, on both sides.
            let continues = merged.from.last() == Some(&(from * size)) && merged.to.last() == Some(&(to * size));
            if continues {
                let last = merged.size.len() - 1;
                (merged.size[last], merged.from[last], merged.to[last]) = (merged.size[last] * size, from, to);
            } else {
                merged.size.push(size);
                merged.from.push(from);
                merged.to.push(to);
            }
        }
        merged
    }

    /// The same copy in vectors of 16 bytes, each so many elements, if runs, strides and addresses allow.
    fn in_vectors(&self, of: usize, from: u64, to: u64) -> Option<StridedCopy> {
        let last = self.size.len().checked_sub(1)?;
        let whole = self.size[last].is_multiple_of(of) && self.from[last] == 1 && self.to[last] == 1;
        let apart = self.from[..last].iter().chain(&self.to[..last]).all(|stride| stride % of == 0);
        let vectors = |strides: &[usize]| strides[..last].iter().map(|s| s / of).chain([1]).collect();
        (whole && apart && from.is_multiple_of(16) && to.is_multiple_of(16)).then(|| StridedCopy {
            size: self.size[..last].iter().copied().chain([self.size[last] / of]).collect(),
            from: vectors(&self.from),
            to: vectors(&self.to),
        })
    }

    /// Runs it between two addresses of f32 or of bf16.
    ///
    /// # Safety
    /// Every element that the strides reach lies inside live buffers of the device, and no two writes meet.
    pub unsafe fn launch(&self, device: &CudaDevice, op: &'static str, dtype: DType, from: u64, to: u64) -> Result<()> {
        let merged = self.merged();
        let (kernel, copy) = match merged.in_vectors(16 / dtype.size(), from, to) {
            // 16 bytes are copied alike whatever they hold.
            Some(vectors) => ("copy_strided_f32x4", vectors),
            None => (by_dtype!(dtype, "copy_strided"), merged),
        };
        if copy.size.len() > DIMENSIONS {
            return Err(Error::Unsupported { op, problem: format!("{} separate dimensions on a GPU; reshape to at most {DIMENSIONS}", copy.size.len()) });
        }
        let count: usize = copy.size.iter().product();
        let padded = |values: &[usize], fill: i32| {
            let mut all = [fill; DIMENSIONS];
            for (to, value) in all[DIMENSIONS - values.len()..].iter_mut().zip(values) {
                *to = *value as i32;
            }
            all
        };
        let params = Param(CopyParams { count: count as i32, size: padded(&copy.size, 1), from: padded(&copy.from, 0), to: padded(&copy.to, 0) });
        // SAFETY: the parameters of all entries in kernels/layout.cu; what they touch is passed on to the caller.
        unsafe { device.launch(kernel, Grid::strided(count), &[&from, &to, &params]) }
    }
}

pub fn permute(device: &CudaDevice, x: &Tensor, order: &[usize]) -> Result<Tensor> {
    let strides = row_major(x.shape());
    let shape: Vec<usize> = order.iter().map(|&d| x.dim(d)).collect();
    let y = Tensor::uninitialised_cuda_of(&shape, x.dtype(), device)?;
    let copy = StridedCopy { from: order.iter().map(|&d| strides[d]).collect(), to: row_major(&shape), size: shape };
    // SAFETY: the strides are those of x, reordered, and those of y.
    unsafe { copy.launch(device, "permute", x.dtype(), x.cuda_pointer(), y.cuda_pointer())? };
    Ok(y)
}

/// Address of entry `start` of dimension `axis`.
fn entry(x: &Tensor, axis: usize, start: usize) -> u64 {
    x.cuda_pointer() + (start * row_major(x.shape())[axis] * x.dtype().size()) as u64
}

pub fn slice(device: &CudaDevice, x: &Tensor, axis: usize, start: usize, len: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    shape[axis] = len;
    let y = Tensor::uninitialised_cuda_of(&shape, x.dtype(), device)?;
    let copy = StridedCopy { from: row_major(x.shape()), to: row_major(&shape), size: shape };
    // SAFETY: the op has checked that start + len entries of the axis are inside x.
    unsafe { copy.launch(device, "slice", x.dtype(), entry(x, axis, start), y.cuda_pointer())? };
    Ok(y)
}

pub fn pad(device: &CudaDevice, x: &Tensor, axis: usize, start: usize, size: usize) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    shape[axis] = size;
    let y = Tensor::full_on(&shape, 0.0, x.dtype(), &Device::Cuda(device.clone()))?;
    put(device, "pad", x, axis, start, &y)?;
    Ok(y)
}

pub fn concat(device: &CudaDevice, parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let mut shape = parts[0].shape().to_vec();
    shape[axis] = parts.iter().map(|p| p.dim(axis)).sum();
    let y = Tensor::uninitialised_cuda_of(&shape, parts[0].dtype(), device)?;
    let mut start = 0;
    for part in parts {
        put(device, "concat", part, axis, start, &y)?;
        start += part.dim(axis);
    }
    Ok(y)
}

/// Writes `x` at `start` of dimension `axis` of `y`, whose other dimensions are equal.
fn put(device: &CudaDevice, op: &'static str, x: &Tensor, axis: usize, start: usize, y: &Tensor) -> Result<()> {
    let copy = StridedCopy { size: x.shape().to_vec(), from: row_major(x.shape()), to: row_major(y.shape()) };
    // SAFETY: the caller has made y as long in the axis as start + x.
    unsafe { copy.launch(device, op, x.dtype(), x.cuda_pointer(), entry(y, axis, start)) }
}
