//! Adamax (Kingma and Ba 2015, section 7.1), as PyTorch has it: Adam with the running maximum of the gradient in place
//! of its second moment.

use std::sync::Arc;

use super::params::{Layout, ParamSlab};
use crate::autograd::Var;
use crate::error::Result;

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

    /// One step on `params` with one gradient per parameter:
    /// `m ← β1 m + (1 − β1) g`, `u ← max(β2 u, |g| + eps)`, `θ ← θ − lr / (1 − β1^t) · m / u`.
    pub fn step(&mut self, params: &mut ParamSlab, grads: &[Var]) -> Result<()> {
        self.step += 1;
        let Adamax { lr, beta1, beta2, eps } = self.adamax;
        let rate = (lr / (1.0 - beta1.powi(self.step.min(1 << 30) as i32))) as f32;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Init;
    use crate::ops::random::Random;
    use crate::tensor::Tensor;

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
}
