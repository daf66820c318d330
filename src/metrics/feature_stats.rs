//! Mean and covariance of features, streamed: memory is one `D × D` matrix and one block of rows, however many images.
//! Where the features are on a GPU, so are the sums, until they are finished.

mod cuda;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::layout::slice;
use crate::ops::matmul::{Read, matmul};
use crate::tensor::Tensor;

/// Rows are summed up in blocks of this many, whatever the batches they come in: the sums do not depend on batching.
const BLOCK: usize = 512;
/// Width of the column strips of which only the lower triangle is computed.
const STRIP: usize = 256;

/// Mean and unbiased covariance of features.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Number of images; a file of pytorch-fid does not say.
    pub count: Option<usize>,
    /// `[D]`
    pub mu: Vec<f64>,
    /// `[D, D]`, row-major, symmetric.
    pub sigma: Vec<f64>,
}

impl Statistics {
    pub fn dims(&self) -> usize {
        self.mu.len()
    }
}

/// Accumulates `Σ (x − s)` and `Σ (x − s)(x − s)ᵀ` in f64, where `s` is the mean of the first block: covariances much
/// smaller than the squared mean keep their digits.
pub struct FeatureStats {
    dims: usize,
    sums: Option<Sums>,
}

enum Sums {
    Host(HostSums),
    Cuda(cuda::Sums),
}

impl FeatureStats {
    /// For features of `dims` numbers.
    pub fn new(dims: usize) -> FeatureStats {
        FeatureStats { dims, sums: None }
    }

    /// Number of images so far.
    pub fn count(&self) -> usize {
        match &self.sums {
            None => 0,
            Some(Sums::Host(sums)) => sums.count(),
            Some(Sums::Cuda(sums)) => sums.count(),
        }
    }

    /// Adds a batch `[N, D]`, all of them on one device. A feature that is not a number is refused: on a GPU by `finish`.
    pub fn add(&mut self, features: &Tensor) -> Result<()> {
        if features.rank() != 2 || features.dim(1) != self.dims || self.dims == 0 {
            return Err(Error::shape("feature statistics", format!("features {:?} where [N, {}] is needed", features.shape(), self.dims)));
        }
        let device = features.device();
        if self.sums.is_none() {
            self.sums = Some(match &device {
                Device::Cpu => Sums::Host(HostSums::new(self.dims)),
                Device::Cuda(gpu) => Sums::Cuda(cuda::Sums::new(gpu, self.dims)?),
            });
        }
        match (self.sums.as_mut().expect("just made"), device) {
            (Sums::Host(sums), Device::Cpu) => sums.add(features),
            (Sums::Cuda(sums), Device::Cuda(gpu)) if *sums.device() == gpu => sums.add(features),
            (_, device) => Err(Error::shape("feature statistics", format!("features on {device} after others elsewhere"))),
        }
    }

    /// The statistics of all images added; at least two are needed.
    pub fn finish(self) -> Result<Statistics> {
        let count = self.count();
        match self.sums {
            Some(Sums::Host(sums)) if count >= 2 => sums.finish(),
            Some(Sums::Cuda(sums)) if count >= 2 => sums.finish(),
            _ => Err(Error::config("images", format!("{count} image: a covariance needs at least 2"))),
        }
    }
}

/// The sums on the host.
struct HostSums {
    dims: usize,
    count: usize,
    shift: Vec<f64>,
    sum: Vec<f64>,
    /// Lower triangle in strips, `[D, D]`.
    products: Vec<f64>,
    pending: Vec<f64>,
}

impl HostSums {
    fn new(dims: usize) -> HostSums {
        HostSums { dims, count: 0, shift: Vec::new(), sum: vec![0.0; dims], products: vec![0.0; dims * dims], pending: Vec::new() }
    }

    fn count(&self) -> usize {
        self.count + self.pending.len() / self.dims
    }

    fn add(&mut self, features: &Tensor) -> Result<()> {
        let rows = features.to_f64_vec();
        if let Some(i) = rows.iter().position(|v| !v.is_finite()) {
            return Err(Error::Diverged {
                what: "feature statistics".into(),
                step: self.count() + i / self.dims,
                problem: format!("feature {} of that image is {}; the network or the image is broken", i % self.dims, rows[i]),
            });
        }
        self.pending.extend(rows);
        let whole = self.pending.len() / (BLOCK * self.dims) * BLOCK * self.dims;
        if whole > 0 {
            let rest = self.pending.split_off(whole);
            let blocks = std::mem::replace(&mut self.pending, rest);
            blocks.chunks_exact(BLOCK * self.dims).try_for_each(|b| self.add_block(b))?;
        }
        Ok(())
    }

    fn add_block(&mut self, rows: &[f64]) -> Result<()> {
        let (d, n) = (self.dims, rows.len() / self.dims);
        if self.shift.is_empty() {
            let mut mean = vec![0.0; d];
            for row in rows.chunks_exact(d) {
                mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / n as f64);
            }
            self.shift = mean;
        }
        let mut centred = Vec::with_capacity(rows.len());
        for row in rows.chunks_exact(d) {
            for ((v, s), sum) in row.iter().zip(&self.shift).zip(&mut self.sum) {
                centred.push(v - s);
                *sum += v - s;
            }
        }
        let centred = Tensor::from_vec(&[n, d], centred);
        for start in (0..d).step_by(STRIP) {
            let width = STRIP.min(d - start);
            let below = slice(&centred, 1, start, d - start)?;
            let product = matmul(&below, Read::Transposed, &slice(&centred, 1, start, width)?, Read::Plain)?;
            for (i, row) in product.as_slice::<f64>().chunks_exact(width).enumerate() {
                let into = &mut self.products[(start + i) * d + start..][..width];
                into.iter_mut().zip(row).for_each(|(o, v)| *o += v);
            }
        }
        self.count += n;
        Ok(())
    }

    fn finish(mut self) -> Result<Statistics> {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.add_block(&rest)?;
        }
        let (d, n) = (self.dims, self.count as f64);
        let mu = self.sum.iter().zip(&self.shift).map(|(s, shift)| s / n + shift).collect();
        let mut sigma = self.products;
        for i in 0..d {
            for j in 0..=i {
                let v = (sigma[i * d + j] - self.sum[i] * self.sum[j] / n) / (n - 1.0);
                (sigma[i * d + j], sigma[j * d + i]) = (v, v);
            }
        }
        Ok(Statistics { count: Some(self.count), mu, sigma })
    }
}
