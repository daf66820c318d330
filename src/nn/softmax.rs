//! Log-softmax and cross-entropy, as compositions of the op set.

use crate::autograd::{Var, broadcast_to, exp, log, max_pool2d, mul, reshape, scale, sub, sum, sum_to};
use crate::error::{Error, Result};
use crate::ops::pool2d::Window;
use crate::tensor::Tensor;

/// `x − log Σ_c e^x` over the last dimension of `[N, C]`. The largest element of each row is subtracted first; a
/// constant shift, since it cancels.
pub fn log_softmax(x: &Var) -> Result<Var> {
    let (n, c) = (x.dim(0), x.dim(1));
    let rows = reshape(&x.detach(), &[n, 1, c, 1])?;
    let largest = reshape(&max_pool2d(&rows, Window::whole([1, c]))?, &[n, 1])?;
    let shifted = sub(x, &broadcast_to(&largest, &[n, c])?)?;
    let normaliser = log(&sum_to(&exp(&shifted)?, &[n, 1])?)?;
    sub(&shifted, &broadcast_to(&normaliser, &[n, c])?)
}

/// Mean over the batch of `−log p[class]`, from logits (or log-probabilities) `[N, C]`; shape `[1, 1]`.
pub fn cross_entropy(logits: &Var, classes: &[usize]) -> Result<Var> {
    let (n, c) = (logits.dim(0), logits.dim(1));
    if classes.len() != n || classes.iter().any(|k| *k >= c) {
        return Err(Error::shape("cross_entropy", format!("{} classes, at most {:?}, for logits {:?}", classes.len(), classes.iter().max(), logits.shape())));
    }
    let mut one_hot = vec![0.0_f32; n * c];
    for (row, k) in one_hot.chunks_exact_mut(c.max(1)).zip(classes) {
        row[*k] = 1.0;
    }
    let one_hot = Var::constant(Tensor::from_vec(&[n, c], one_hot).to_dtype(logits.dtype()).to_device(&logits.value().device())?);
    scale(&sum(&mul(&log_softmax(logits)?, &one_hot)?)?, -1.0 / n.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::op_gradient_errors;
    use crate::ops::random::Random;
    use crate::tensor::DType;

    #[test]
    fn rows_are_probabilities_even_at_large_logits() {
        let x = Var::constant(Tensor::from_vec(&[2, 3], vec![1000.0_f32, 1001.0, 999.0, -2.0, 0.0, 1.0]));
        let p: Vec<f64> = log_softmax(&x).unwrap().value().to_f64_vec().iter().map(|v| v.exp()).collect();
        // softmax(0, 1, −1) and softmax(−2, 0, 1).
        let expected = [0.244_728_471, 0.665_240_956, 0.090_030_573, 0.035_119_19, 0.259_496_46, 0.705_384_35];
        for (p, e) in p.iter().zip(expected) {
            assert!((p - e).abs() < 1e-6, "{p} where {e} is right");
        }
    }

    #[test]
    fn cross_entropy_has_derivatives_of_both_orders() {
        let logits = Random::new(3, 0).normal(&[4, 5]);
        let (first, second) = op_gradient_errors(&|v| cross_entropy(&v[0], &[0, 4, 2, 2]), &[logits]).unwrap();
        assert!(first < 1e-7 && second < 1e-7, "{first:e} {second:e}");
    }

    #[test]
    fn a_class_that_does_not_exist_is_refused() {
        let logits = Var::constant(Tensor::zeros(&[1, 3], DType::F32));
        assert!(cross_entropy(&logits, &[3]).is_err());
    }
}
