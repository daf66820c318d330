//! Adamax (Kingma and Ba 2015, section 7.1), as PyTorch has it: Adam with the running maximum of the gradient in place
//! of its second moment.

use std::sync::Arc;

use super::params::{Layout, ParamSlab};
use crate::autograd::Var;
use crate::device::Device;
use crate::error::Result;
use crate::ops::bias_act::{Activation, bias_act};
use crate::ops::elementwise::{Map, Power, Zip, map, zip};
use crate::ops::layout::concat;
use crate::tensor::Tensor;

/// Adamax's numbers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Adamax {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
}

/// Its state for one network.
#[derive(Clone, Debug)]
pub struct AdamaxState {
    pub adamax: Adamax,
    pub step: u64,
    pub first_moment: ParamSlab,
    pub infinity_norm: ParamSlab,
}

impl AdamaxState {
    pub fn new(layout: &Arc<Layout>, adamax: Adamax) -> AdamaxState {
        AdamaxState { adamax, step: 0, first_moment: ParamSlab::zeros(layout), infinity_norm: ParamSlab::zeros(layout) }
    }

    /// The same state on another device.
    pub fn to_device(&self, device: &Device) -> Result<AdamaxState> {
        Ok(AdamaxState { first_moment: self.first_moment.to_device(device)?, infinity_norm: self.infinity_norm.to_device(device)?, ..*self })
    }

    /// One step on `params` with one gradient per parameter:
    /// `m ← β1 m + (1 − β1) g`, `u ← max(β2 u, |g| + eps)`, `θ ← θ − lr / (1 − β1^t) · m / u`.
    pub fn step(&mut self, params: &mut ParamSlab, grads: &[Var]) -> Result<()> {
        self.step += 1;
        let rate = self.adamax.lr / (1.0 - self.adamax.beta1.powi(self.step.min(1 << 30) as i32));
        match params.values().device() {
            Device::Cpu => self.step_here(params, grads, rate as f32),
            Device::Cuda(_) => self.step_of_ops(params, grads, rate),
        }
    }

    /// In one pass.
    fn step_here(&mut self, params: &mut ParamSlab, grads: &[Var], rate: f32) -> Result<()> {
        let Adamax { beta1, beta2, eps, .. } = self.adamax;
        let (beta1, beta2, eps) = (beta1 as f32, beta2 as f32, eps as f32);
        let offsets = params.layout().offsets();
        let theta = params.values_mut().as_mut_slice::<f32>()?;
        let m = self.first_moment.values_mut().as_mut_slice::<f32>()?;
        let u = self.infinity_norm.values_mut().as_mut_slice::<f32>()?;
        for (grad, at) in grads.iter().zip(offsets) {
            for (i, g) in grad.value().as_slice::<f32>().iter().enumerate() {
                let i = at + i;
                m[i] = beta1 * m[i] + (1.0 - beta1) * g;
                u[i] = (beta2 * u[i]).max(g.abs() + eps);
                theta[i] -= rate * m[i] / u[i];
            }
        }
        Ok(())
    }

    /// As ops on whole slabs; some 40 transfers of the slab, few beside the batch's activations.
    fn step_of_ops(&mut self, params: &mut ParamSlab, grads: &[Var], rate: f64) -> Result<()> {
        let Adamax { beta1, beta2, eps, .. } = self.adamax;
        let scaled = |x: &Tensor, scale: f64| map(x, Map::Affine { scale, shift: 0.0 });
        let positive = |x: &Tensor| bias_act(x, None, None, Activation::RELU);
        let flat = grads.iter().map(|g| g.value().reshape(&[g.value().len()])).collect::<Result<Vec<_>>>()?;
        let g = concat(&flat.iter().collect::<Vec<_>>(), 0)?;
        let m = zip(&scaled(self.first_moment.values(), beta1)?, &scaled(&g, 1.0 - beta1)?, Zip::Add)?;
        let size = zip(&positive(&g)?, &positive(&scaled(&g, -1.0)?)?, Zip::Add)?;
        let size = map(&size, Map::Affine { scale: 1.0, shift: eps })?;
        // max(a, b) = b + relu(a − b)
        let excess = zip(&scaled(self.infinity_norm.values(), beta2)?, &size, Zip::Sub)?;
        let u = zip(&size, &positive(&excess)?, Zip::Add)?;
        let step = scaled(&zip(&m, &map(&u, Map::Power(Power::of(-1.0)))?, Zip::Mul)?, rate)?;
        let moved = zip(params.values(), &step, Zip::Sub)?;
        *params.values_mut() = moved;
        *self.first_moment.values_mut() = m;
        *self.infinity_norm.values_mut() = u;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Init;
    use crate::ops::random::Random;

    /// Two steps by hand: gradients 2, then −1 (lr 0.1, β1 0.9, β2 0.5, eps 0).
    #[test]
    fn two_steps_by_hand() {
        let mut layout = Layout::new();
        layout.plain("p", &[1], Init::Constant(1.0));
        let layout = Arc::new(layout);
        let mut params = ParamSlab::init(&layout, &mut Random::new(0, 0));
        let mut state = AdamaxState::new(&layout, Adamax { lr: 0.1, beta1: 0.9, beta2: 0.5, eps: 0.0 });
        let grad = |v: f32| [Var::constant(Tensor::from_vec(&[1], vec![v]))];
        state.step(&mut params, &grad(2.0)).unwrap();
        // m = 0.2, u = 2, rate = 0.1 / 0.1.
        assert!((params.as_slice()[0] - 0.9).abs() < 1e-6, "{:?}", params.as_slice());
        state.step(&mut params, &grad(-1.0)).unwrap();
        // m = 0.08, u = max(1, 1) = 1, rate = 0.1 / 0.19.
        let want = 0.9 - 0.1 / 0.19 * 0.08;
        assert!((params.as_slice()[0] - want).abs() < 1e-6, "{:?}", params.as_slice());
    }

    /// The composition that a GPU runs says what the one pass says; the former rounds more often.
    #[test]
    fn both_ways_are_one() {
        let mut layout = Layout::new();
        layout.plain("a", &[3, 2], Init::Normal(1.0));
        layout.plain("b", &[5], Init::Normal(1.0));
        let layout = Arc::new(layout);
        let mut params = [(); 2].map(|_| ParamSlab::init(&layout, &mut Random::new(0, 0)));
        let mut states = [(); 2].map(|_| AdamaxState::new(&layout, Adamax { lr: 0.1, beta1: 0.9, beta2: 0.5, eps: 1e-8 }));
        let mut r = Random::new(1, 0);
        for _ in 0..4 {
            let grads = [Var::constant(r.normal(&[3, 2])), Var::constant(r.normal(&[5]))];
            let ([a, b], [of_a, of_b]) = (&mut params, &mut states);
            of_a.step_here(a, &grads, 0.3).unwrap();
            of_b.step_of_ops(b, &grads, 0.3).unwrap();
        }
        for (a, b) in params[0].as_slice().iter().zip(params[1].as_slice()) {
            assert!((a - b).abs() < 1e-6, "{a} and {b}");
        }
    }
}
