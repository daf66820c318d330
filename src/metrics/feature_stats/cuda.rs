//! Launches of kernels/feature_stats.cu.

use bytemuck::{Pod, Zeroable};

use super::{BLOCK, Statistics};
use crate::device::CudaDevice;
use crate::device::cuda::{CudaBuffer, Grid, Param};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FeatureParams {
    count: i32,
    dims: i32,
}
const _: () = assert!(size_of::<FeatureParams>() == 8, "keep in step with kernels/feature_stats.cu");

/// Features along either side of a block's tile of products.
const TILE: usize = 64;

/// Compute capabilities whose f64 units are half as many as the f32 ones; others have 1/64 and add pairs of f32.
const FULL_F64: [(i32, i32); 3] = [(8, 0), (9, 0), (10, 0)];

/// The sums of `FeatureStats` on a GPU.
pub struct Sums {
    device: CudaDevice,
    dims: usize,
    /// Images whose products are in the sums.
    count: usize,
    /// Rows that wait for a block to be full, `[BLOCK, D]`: the sums do not depend on batching.
    block: CudaBuffer,
    pending: usize,
    /// f32 `[D]`, f64 `[D]`, f64 `[D, D]`.
    shift: CudaBuffer,
    sums: CudaBuffer,
    products: CudaBuffer,
}

impl Sums {
    pub fn new(device: &CudaDevice, dims: usize) -> Result<Sums> {
        // An f64 of zero is two f32 of zero.
        let zeros = |count: usize| device.filled(2 * count, 0.0);
        Ok(Sums {
            device: device.clone(),
            dims,
            count: 0,
            block: device.allocate_f32(BLOCK * dims)?,
            pending: 0,
            shift: device.allocate_f32(dims)?,
            sums: zeros(dims)?,
            products: zeros(dims * dims)?,
        })
    }

    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    pub fn count(&self) -> usize {
        self.count + self.pending
    }

    /// Adds rows `[N, D]`; does not wait for the GPU.
    pub fn add(&mut self, features: &Tensor) -> Result<()> {
        let row = self.dims * size_of::<f32>();
        let mut done = 0;
        while done < features.dim(0) {
            let rows = (BLOCK - self.pending).min(features.dim(0) - done);
            let (to, from) = (self.block.pointer() + (self.pending * row) as u64, features.cuda_pointer() + (done * row) as u64);
            // SAFETY: the rows lie inside the features and, after those that wait, inside the block.
            unsafe { self.device.copy(to, from, rows * row)? };
            (self.pending, done) = (self.pending + rows, done + rows);
            if self.pending == BLOCK {
                self.add_block()?;
            }
        }
        Ok(())
    }

    fn params(&self, count: usize) -> Param<FeatureParams> {
        Param(FeatureParams { count: count as i32, dims: self.dims as i32 })
    }

    fn add_block(&mut self) -> Result<()> {
        let params = self.params(self.pending);
        let [x, shift, sums, products] = [&self.block, &self.shift, &self.sums, &self.products].map(CudaBuffer::pointer);
        if self.count == 0 {
            // SAFETY: the parameters of feature_shift_f32 in kernels/feature_stats.cu; x has `pending` rows of `dims`.
            unsafe { self.device.launch("feature_shift_f32", Grid::strided(self.dims), &[&x, &shift, &params])? };
        }
        let (kernel, threads) = match FULL_F64.contains(&self.device.compute_capability()) {
            true => ("feature_products_f64", 128),
            false => ("feature_products_f32x2", 256),
        };
        let tiles = self.dims.div_ceil(TILE);
        let grid = Grid { blocks: [(tiles * (tiles + 1) / 2) as u32, 1, 1], threads, shared: 0 };
        // SAFETY: the parameters of both kernels in kernels/feature_stats.cu; one block per tile of the lower triangle.
        unsafe { self.device.launch(kernel, grid, &[&x, &shift, &sums, &products, &params])? };
        self.count += std::mem::take(&mut self.pending);
        Ok(())
    }

    /// Waits for the GPU.
    pub fn finish(mut self) -> Result<Statistics> {
        if self.pending > 0 {
            self.add_block()?;
        }
        let d = self.dims;
        let [mu, sigma] = [d, d * d].map(|count| self.device.allocate(count * size_of::<f64>()));
        let (mu, sigma) = (mu?, sigma?);
        let arguments = [&self.shift, &self.sums, &self.products, &mu, &sigma].map(CudaBuffer::pointer);
        let [shift, sums, products, to_mu, to_sigma] = &arguments;
        // SAFETY: the parameters of feature_covariance_f64 in kernels/feature_stats.cu; the results hold `dims` and its
        // square in f64.
        unsafe { self.device.launch("feature_covariance_f64", Grid::strided(d * d), &[shift, sums, products, to_mu, to_sigma, &self.params(self.count)])? };
        let (mu, sigma) = (self.device.download::<f64>(&mu, 0, d)?, self.device.download::<f64>(&sigma, 0, d * d)?);
        if let Some(feature) = (0..d).find(|&i| !mu[i].is_finite() || !sigma[i * d + i].is_finite()) {
            let problem = format!("feature {feature} of an image is not a finite number; the network or the image is broken, --device cpu says which");
            return Err(Error::Diverged { what: "feature statistics".into(), step: self.count, problem });
        }
        Ok(Statistics { count: Some(self.count), mu, sigma })
    }
}
