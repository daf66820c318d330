//! Matrix product of two matrices, either of them read transposed.

mod cpu;
pub(crate) mod cuda;

use crate::error::{Error, Result};
use crate::ops::{on_device, same_kind};
use crate::tensor::Tensor;

/// Whether an operand is read as it lies or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    Plain,
    Transposed,
}

impl Read {
    pub fn flipped(self) -> Read {
        match self {
            Read::Plain => Read::Transposed,
            Read::Transposed => Read::Plain,
        }
    }
}

/// `op(a) · op(b)`: `[M, K] · [K, N] -> [M, N]` after transposition.
pub fn matmul(a: &Tensor, ra: Read, b: &Tensor, rb: Read) -> Result<Tensor> {
    matmul_scaled(1.0, a, ra, b, rb)
}

/// `alpha · op(a) · op(b)`; the factor multiplies each finished sum.
pub fn matmul_scaled(alpha: f64, a: &Tensor, ra: Read, b: &Tensor, rb: Read) -> Result<Tensor> {
    if a.rank() != 2 || b.rank() != 2 {
        return Err(Error::shape("matmul", format!("{:?} and {:?}: two matrices", a.shape(), b.shape())));
    }
    let dims = |t: &Tensor, r: Read| if r == Read::Plain { (t.dim(0), t.dim(1)) } else { (t.dim(1), t.dim(0)) };
    let ((m, k), (k2, n)) = (dims(a, ra), dims(b, rb));
    if k != k2 {
        return Err(Error::shape("matmul", format!("{:?} ({ra:?}) times {:?} ({rb:?})", a.shape(), b.shape())));
    }
    same_kind("matmul", &[a, b])?;
    on_device!("matmul", &[a, b], 2 * m * n * k, T => cpu::matmul::<T>(alpha, a, ra, b, rb, [m, n, k]), d => cuda::matmul(&d, alpha, a, ra, b, rb, [m, n, k]))
}
