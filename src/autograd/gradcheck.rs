//! Finite differences in f64: what every rule is checked against.

use super::{Order, Var, grad_or_zero, mul, sum};
use crate::error::Result;
use crate::ops::random::Random;
use crate::tensor::{DType, Tensor};

/// Largest error of the gradient of `f` (a function to one element) by each input, relative to the largest gradient
/// element of that input. Central differences in f64 with step 1e-5: rounding and truncation stay near 1e-9.
pub fn gradient_error(f: &dyn Fn(&[Var]) -> Result<Var>, inputs: &[Tensor]) -> Result<f64> {
    const STEP: f64 = 1e-5;
    let leaves: Vec<Var> = inputs.iter().map(|t| Var::leaf(t.to_dtype(DType::F64))).collect();
    let refs: Vec<&Var> = leaves.iter().collect();
    let gradients = grad_or_zero(&[&f(&leaves)?], &refs, Order::Last)?;
    let mut worst: f64 = 0.0;
    for (which, input) in inputs.iter().enumerate() {
        let analytic = gradients[which].value().to_f64_vec();
        let largest = analytic.iter().fold(1e-3_f64, |m, v| m.max(v.abs()));
        let base = input.to_f64_vec();
        for i in 0..base.len() {
            let at = |shift: f64| -> Result<f64> {
                let mut moved = base.clone();
                moved[i] += shift;
                let mut vars: Vec<Var> = leaves.iter().map(Var::detach).collect();
                // Tracked, because `f` may take gradients itself.
                vars[which] = Var::leaf(Tensor::from_vec(input.shape(), moved));
                for (k, v) in vars.iter_mut().enumerate() {
                    if k != which {
                        *v = Var::leaf(leaves[k].value().clone());
                    }
                }
                f(&vars)?.item()
            };
            let numeric = (at(STEP)? - at(-STEP)?) / (2.0 * STEP);
            worst = worst.max((numeric - analytic[i]).abs() / largest);
        }
    }
    Ok(worst)
}

/// First- and second-order errors of an op: of `Σ r·f(x)` and of `Σ_i Σ r_i · ∂(Σ r·f)/∂x_i`, with fixed random `r`.
pub fn op_gradient_errors(f: &dyn Fn(&[Var]) -> Result<Var>, inputs: &[Tensor]) -> Result<(f64, f64)> {
    let weigh = |v: &Var, stream: u64| -> Result<Var> {
        let r = Random::new(11, stream).normal(v.shape()).to_dtype(v.dtype());
        sum(&mul(v, &Var::constant(r))?)
    };
    let flat = |v: Var| super::reshape(&v, &[1]);
    let first = gradient_error(&|v| flat(weigh(&f(v)?, 0)?), inputs)?;
    let second = gradient_error(
        &|v| {
            let refs: Vec<&Var> = v.iter().collect();
            let gradients = grad_or_zero(&[&weigh(&f(v)?, 0)?], &refs, Order::Differentiable)?;
            let mut total = flat(weigh(&gradients[0], 1)?)?;
            for (i, g) in gradients.iter().enumerate().skip(1) {
                total = super::add(&total, &flat(weigh(g, 1 + i as u64)?)?)?;
            }
            Ok(total)
        },
        inputs,
    )?;
    Ok((first, second))
}
