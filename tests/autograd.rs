//! What the engine promises beyond single ops: gradients of gradients of gradients, and gradients that nobody needs.

use recant::autograd::gradcheck::gradient_error;
use recant::autograd::{Order, Scales, Var, add, bias_act, conv2d, grad_or_zero, mul, reshape, square, sum, upfirdn2d};
use recant::error::Result;
use recant::ops::bias_act::Activation;
use recant::ops::conv2d::Conv2d;
use recant::ops::random::Random;
use recant::ops::upfirdn2d::{RESAMPLE_TAPS, Upfirdn2d};
use recant::tensor::DType;

/// `Σ r · v` over several values, with fixed random `r` of each.
fn weigh(values: &[Var], stream: u64) -> Result<Var> {
    let mut total: Option<Var> = None;
    for (i, v) in values.iter().enumerate() {
        let r = Random::new(5, stream + i as u64).normal(v.shape()).to_dtype(v.dtype());
        let term = reshape(&sum(&mul(v, &Var::constant(r))?)?, &[1])?;
        total = Some(match total {
            Some(t) => add(&t, &term)?,
            None => term,
        });
    }
    Ok(total.expect("at least one value"))
}

#[test]
fn third_order() {
    let mut random = Random::new(8, 0);
    let inputs = [random.normal(&[1, 6, 6, 2]), random.normal(&[3, 3, 3, 2]), random.normal(&[3])].map(|t| t.to_dtype(DType::F64));
    let down = Upfirdn2d::new(&RESAMPLE_TAPS, 1, 2, [1, 1], 1.0);
    let net = |v: &[Var]| -> Result<Var> {
        let y = bias_act(&conv2d(&v[0], &v[1], Scales::NONE, Conv2d::square(1, 1))?, Some(&v[2]), None, Activation::LEAKY_RELU)?;
        // Squared, so that the third order is not zero: the net is linear in its input wherever it is smooth.
        square(&upfirdn2d(&y, &down)?)
    };
    let second = |v: &[Var]| -> Result<Var> {
        let targets: Vec<&Var> = v.iter().collect();
        let first = grad_or_zero(&[&weigh(&[net(v)?], 0)?], &targets, Order::Differentiable)?;
        let second = grad_or_zero(&[&weigh(&first, 10)?], &targets, Order::Differentiable)?;
        weigh(&second, 20)
    };
    let error = gradient_error(&second, &inputs).expect("a net that runs");
    assert!(error < 1e-6, "third order off by {error:e}");
}
