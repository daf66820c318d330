//! Batch normalisation over the channels of `[N, H, W, C]`, as a composition of the op set.

use std::collections::BTreeMap;

use super::Params;
use crate::autograd::{Scales, Var, bias_act, broadcast_to, channel_dot, channel_scale, conv2d, conv2d_act, mean_to, mul, power, reshape, scale, sub};
use crate::error::Result;
use crate::ops::bias_act::{Activation, Epilogue};
use crate::ops::conv2d::Conv2d;
use crate::ops::elementwise::Power;
use crate::ops::random::Random;
use crate::tensor::Tensor;

/// PyTorch's and torchvision's default.
pub const EPS: f64 = 1e-5;
/// What a variance becomes: `1 / sqrt(v + eps)`.
const RSQRT: Power = Power { gain: 1.0, shift: EPS, exponent: -0.5 };
/// Share of a batch in the running statistics, PyTorch's default.
pub const MOMENTUM: f64 = 0.1;

/// Statistics of one batch, for the running ones.
pub struct Moments {
    /// `[C]`
    pub mean: Tensor,
    /// `[C]`, unbiased, which is what PyTorch keeps.
    pub var: Tensor,
}

/// Whether a network judges or is trained: where its normalisation takes statistics, and whether it drops out.
pub enum Normalise<'a> {
    /// Judging: from these running statistics.
    Running(&'a Params),
    /// Training: from the batch.
    Batch {
        /// What the running statistics take in, by layer; filled.
        moments: &'a mut BTreeMap<String, Moments>,
        /// Chooses what is dropped.
        dropout: &'a mut Random,
    },
}

impl Normalise<'_> {
    /// The normalisation `layer` (`layer.weight` and `layer.bias` among `p`) of `x` `[N, H, W, C]`, then `act`.
    pub fn apply(&mut self, p: &Params, layer: &str, x: &Var, act: Activation) -> Result<Var> {
        let affine = Affine::of(p, layer);
        match self {
            Normalise::Running(buffers) => batch_norm_eval(x, affine, running(buffers, layer), act),
            Normalise::Batch { moments, .. } => {
                let (y, of_batch) = batch_norm_train(x, affine, act)?;
                moments.insert(layer.to_string(), of_batch);
                Ok(y)
            }
        }
    }

    /// The same of a convolution's output; one pass less where the statistics are known beforehand.
    pub fn convolve(&mut self, p: &Params, layer: &str, [x, w]: [&Var; 2], spec: Conv2d, act: Activation) -> Result<Var> {
        match self {
            Normalise::Running(buffers) => conv_batch_norm_eval(x, w, spec, Affine::of(p, layer), running(buffers, layer), act),
            Normalise::Batch { .. } => self.apply(p, layer, &conv2d(x, w, Scales::NONE, spec)?, act),
        }
    }

    /// In training each element is dropped with probability `rate` and the others grow to make up for it.
    pub fn dropout(&mut self, x: &Var, rate: f64) -> Result<Var> {
        match self {
            Normalise::Running(_) => Ok(x.clone()),
            Normalise::Batch { dropout, .. } => {
                let draw = dropout.uniform(x.shape());
                let keep = draw.as_slice::<f32>().iter().map(|u| if (*u as f64) < rate { 0.0 } else { 1.0 / (1.0 - rate) as f32 }).collect::<Vec<f32>>();
                mul(x, &Var::constant(Tensor::from_vec(x.shape(), keep).to_dtype(x.dtype()).to_device(&x.value().device())?))
            }
        }
    }
}

fn running<'a>(buffers: &'a Params, layer: &str) -> [&'a Var; 2] {
    ["running_mean", "running_var"].map(|s| buffers.get(&format!("{layer}.{s}")))
}

impl<'a> Affine<'a> {
    fn of(p: &'a Params, layer: &str) -> Affine<'a> {
        Affine { gamma: p.get(&format!("{layer}.weight")), beta: p.get(&format!("{layer}.bias")) }
    }
}

/// Scale and shift per channel, `[C]`.
pub struct Affine<'a> {
    pub gamma: &'a Var,
    pub beta: &'a Var,
}

/// `act(γ (x − mean) / √(var + eps) + β)` with mean and biased variance of the batch; also returns what the running
/// statistics take in.
pub fn batch_norm_train(x: &Var, affine: Affine, act: Activation) -> Result<(Var, Moments)> {
    let c = x.dim(3);
    let rows = x.value().len() / c.max(1);
    // One sample of `rows` pixels: per-sample channel ops then work on the whole batch.
    let flat = reshape(x, &[1, rows, c])?;
    let mean = reshape(&mean_to(&flat, &[1, 1, c])?, &[c])?;
    let centred = bias_act(&flat, Some(&scale(&mean, -1.0)?), None, Activation::LINEAR)?;
    let var = scale(&channel_dot(&centred, &centred)?, 1.0 / rows.max(1) as f64)?;
    let factor = mul(&power(&var, RSQRT)?, &reshape(affine.gamma, &[1, c])?)?;
    let y = bias_act(&channel_scale(&centred, &factor)?, Some(affine.beta), None, act)?;
    let unbiased = scale(&var.detach(), rows as f64 / rows.saturating_sub(1).max(1) as f64)?;
    let moments = Moments { mean: mean.value().clone(), var: unbiased.value().reshape(&[c])? };
    Ok((reshape(&y, x.shape())?, moments))
}

/// `act(γ (conv(x) − mean) / √(var + eps) + β)` with running statistics `[C]`: the factor is the convolution's output
/// scale and what remains is a bias.
pub fn conv_batch_norm_eval(x: &Var, w: &Var, spec: Conv2d, affine: Affine, [mean, var]: [&Var; 2], act: Activation) -> Result<Var> {
    let (factor, shift) = folded(affine, [mean, var])?;
    let c = factor.dim(0);
    let per_sample = broadcast_to(&reshape(&factor, &[1, c])?, &[x.dim(0), c])?;
    conv2d_act(x, w, Scales { input: None, output: Some(&per_sample) }, spec, Epilogue { bias: Some(&shift), noise: None, act })
}

/// `act(γ (x − mean) / √(var + eps) + β)` with running statistics `[C]`.
pub fn batch_norm_eval(x: &Var, affine: Affine, stats: [&Var; 2], act: Activation) -> Result<Var> {
    let (factor, shift) = folded(affine, stats)?;
    let c = factor.dim(0);
    let y = channel_scale(x, &broadcast_to(&reshape(&factor, &[1, c])?, &[x.dim(0), c])?)?;
    bias_act(&y, Some(&shift), None, act)
}

/// Factor and shift per channel that normalisation with running statistics amounts to.
fn folded(affine: Affine, [mean, var]: [&Var; 2]) -> Result<(Var, Var)> {
    let factor = mul(&power(var, RSQRT)?, affine.gamma)?;
    let shift = sub(affine.beta, &mul(mean, &factor)?)?;
    Ok((factor, shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::gradcheck::op_gradient_errors;
    use crate::ops::random::Random;
    use crate::tensor::DType;

    #[test]
    fn a_batch_is_normalised() {
        let x = Var::constant(Random::new(1, 0).normal(&[3, 4, 5, 2]).to_dtype(DType::F64));
        let v = x.value().to_f64_vec();
        let (gamma, beta) = (Var::constant(Tensor::from_vec(&[2], vec![2.0, 0.5])), Var::constant(Tensor::from_vec(&[2], vec![0.1, -3.0])));
        let affine = || Affine { gamma: &gamma, beta: &beta };
        let (y, moments) = batch_norm_train(&x, affine(), Activation::LINEAR).unwrap();
        for c in 0..2 {
            let channel: Vec<f64> = v.iter().skip(c).step_by(2).copied().collect();
            let mean = channel.iter().sum::<f64>() / 60.0;
            let squares = channel.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
            assert!((moments.mean.to_f64_vec()[c] - mean).abs() < 1e-14);
            assert!((moments.var.to_f64_vec()[c] - squares / 59.0).abs() < 1e-14);
            let (g, b) = (gamma.value().to_f64_vec()[c], beta.value().to_f64_vec()[c]);
            for (got, v) in y.value().to_f64_vec().iter().skip(c).step_by(2).zip(&channel) {
                let want = (v - mean) / (squares / 60.0 + EPS).sqrt() * g + b;
                assert!((got - want).abs() < 1e-12, "{got} where {want} is right");
            }
        }
        // With the batch's own biased statistics evaluation says the same.
        let biased = Var::constant(Tensor::from_vec(&[2], moments.var.to_f64_vec().iter().map(|v| v * 59.0 / 60.0).collect::<Vec<f64>>()));
        let mean = Var::constant(moments.mean.clone());
        let eval = batch_norm_eval(&x, affine(), [&mean, &biased], Activation::LINEAR).unwrap();
        // A 1×1 convolution that changes nothing.
        let identity = Var::constant(Tensor::from_vec(&[2, 1, 1, 2], vec![1.0, 0.0, 0.0, 1.0]));
        let fused = conv_batch_norm_eval(&x, &identity, Conv2d::square(1, 0), affine(), [&mean, &biased], Activation::LINEAR).unwrap();
        for other in [eval, fused] {
            for (a, b) in y.value().to_f64_vec().iter().zip(other.value().to_f64_vec()) {
                assert!((a - b).abs() < 1e-12, "{a} and {b}");
            }
        }
    }

    /// As many are dropped as the rate says, the mean stays, and judging drops nothing.
    #[test]
    fn dropout_keeps_the_mean() {
        let x = Var::constant(Tensor::full(&[100, 100], 2.0, DType::F32));
        let mut dropout = Random::new(3, 0);
        let y = Normalise::Batch { moments: &mut BTreeMap::new(), dropout: &mut dropout }.dropout(&x, 0.15).unwrap();
        let v = y.value().to_f64_vec();
        let dropped = v.iter().filter(|v| **v == 0.0).count();
        // Standard deviation of the count: 36.
        assert!((1350..1650).contains(&dropped), "{dropped}");
        assert!((v.iter().sum::<f64>() / 1e4 - 2.0).abs() < 0.04);
        let layout = std::sync::Arc::new(crate::nn::Layout::new());
        let none = Params::from_vars(&layout, vec![]);
        assert_eq!(Normalise::Running(&none).dropout(&x, 0.15).unwrap().value().to_f64_vec(), x.value().to_f64_vec());
    }

    #[test]
    fn derivatives_of_both_orders() {
        let mut r = Random::new(2, 0);
        let inputs = [r.normal(&[2, 3, 2, 3]), r.normal(&[3]), r.normal(&[3])];
        let norm = |v: &[Var]| Ok(batch_norm_train(&v[0], Affine { gamma: &v[1], beta: &v[2] }, Activation::LINEAR)?.0);
        let (first, second) = op_gradient_errors(&norm, &inputs).unwrap();
        assert!(first < 1e-7 && second < 1e-6, "{first:e} {second:e}");
    }
}
