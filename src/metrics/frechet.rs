//! Fréchet distance between two Gaussians, `‖μ₁ − μ₂‖² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½` (Heusel et al. 2017).
//!
//! With `Σ₁ = L Lᵀ` the product `Σ₁Σ₂` has the eigenvalues of the symmetric `Lᵀ Σ₂ L`, so the last trace is the sum of
//! the square roots of symmetric eigenvalues: no matrix square root, nothing imaginary, and a singular covariance
//! (fewer images than dimensions) only makes `L` narrower.

use nalgebra::DMatrix;

use super::Statistics;
use crate::error::{Error, Result};
use crate::ops::matmul::{Read, matmul};
use crate::tensor::Tensor;

/// Columns of the Cholesky factor between two updates of the rest.
const PANEL: usize = 64;

/// `L` `[D, rank]` with `L Lᵀ = a`, for a symmetric positive semi-definite `a` `[D, D]`: Cholesky with the largest
/// remaining diagonal element as pivot, ended where what remains is rounding. Rows are not permuted.
fn pivoted_cholesky(a: &[f64], d: usize) -> Result<Tensor> {
    let mut rest = a.to_vec();
    let mut diagonal: Vec<f64> = (0..d).map(|i| a[i * d + i]).collect();
    let negligible = d as f64 * f64::EPSILON * diagonal.iter().fold(0.0, |m: f64, v| m.max(*v));
    let mut used = vec![false; d];
    // Columns are kept as rows: `columns[k]` is column k of L.
    let mut columns: Vec<f64> = Vec::with_capacity(d * d);
    let mut updated = 0;
    loop {
        let done = columns.len() / d;
        let pivot = (0..d).filter(|i| !used[*i]).max_by(|i, j| diagonal[*i].total_cmp(&diagonal[*j]));
        let Some(pivot) = pivot.filter(|p| diagonal[*p] > negligible) else { break };
        let root = diagonal[pivot].sqrt();
        let mut column = rest[pivot * d..][..d].to_vec();
        for earlier in columns[updated * d..].chunks_exact(d) {
            let factor = earlier[pivot];
            column.iter_mut().zip(earlier).for_each(|(c, e)| *c -= factor * e);
        }
        for (i, c) in column.iter_mut().enumerate() {
            *c = if used[i] { 0.0 } else { *c / root };
            diagonal[i] -= *c * *c;
        }
        column[pivot] = root;
        used[pivot] = true;
        columns.extend(column);
        if done + 1 - updated == PANEL {
            let panel = Tensor::from_slice(&[PANEL, d], &columns[updated * d..]);
            let product = matmul(&panel, Read::Transposed, &panel, Read::Plain)?;
            rest.iter_mut().zip(product.as_slice::<f64>()).for_each(|(r, p)| *r -= p);
            updated = done + 1;
        }
    }
    let rank = columns.len() / d;
    Ok(Tensor::from_vec(&[rank, d], columns))
}

/// `tr (Σ₁Σ₂)^½`
fn trace_of_root(sigma1: &[f64], sigma2: &[f64], d: usize) -> Result<f64> {
    // [rank, D]: the transpose of L.
    let factor = pivoted_cholesky(sigma1, d)?;
    let rank = factor.dim(0);
    if rank == 0 {
        return Ok(0.0);
    }
    let half = matmul(&factor, Read::Plain, &Tensor::from_slice(&[d, d], sigma2), Read::Plain)?;
    let symmetric = matmul(&half, Read::Plain, &factor, Read::Transposed)?;
    let eigenvalues = DMatrix::from_row_slice(rank, rank, symmetric.as_slice::<f64>()).symmetric_eigenvalues();
    let largest = eigenvalues.iter().fold(0.0, |m: f64, v| m.max(*v));
    // Below this an eigenvalue is rounding; its square root would not be.
    let negligible = rank as f64 * f64::EPSILON * largest;
    let mut roots: Vec<f64> = eigenvalues.iter().filter(|v| **v > negligible).map(|v| v.sqrt()).collect();
    roots.sort_by(f64::total_cmp);
    Ok(roots.iter().sum())
}

/// The Fréchet distance of two sets of statistics; never negative.
pub fn frechet_distance(a: &Statistics, b: &Statistics) -> Result<f64> {
    let d = a.dims();
    if b.dims() != d || a.sigma.len() != d * d || b.sigma.len() != d * d {
        return Err(Error::shape("frechet_distance", format!("statistics of {d} and {} dimensions: take both from the same features", b.dims())));
    }
    if let Some(what) = [&a.mu, &a.sigma, &b.mu, &b.sigma].iter().position(|v| v.iter().any(|x| !x.is_finite())) {
        return Err(Error::shape("frechet_distance", format!("{} holds a value that is not finite", ["mu 1", "sigma 1", "mu 2", "sigma 2"][what])));
    }
    let trace = |s: &[f64]| (0..d).map(|i| s[i * d + i]).sum::<f64>();
    let means: f64 = a.mu.iter().zip(&b.mu).map(|(x, y)| (x - y).powi(2)).sum();
    Ok((means + trace(&a.sigma) + trace(&b.sigma) - 2.0 * trace_of_root(&a.sigma, &b.sigma, d)?).max(0.0))
}
