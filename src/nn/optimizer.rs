//! Optimiser state beside a parameter slab.

use std::sync::Arc;

use super::params::{Layout, ParamSlab};
use crate::autograd::Var;
use crate::device::Device;
use crate::error::Result;
use crate::ops::optimizer::{Adam, Pull, Resident, Slabs, Sum, adam_step};
use crate::tensor::Tensor;

/// Adam's moments and step count for one network. With β1 = 0 there is no first moment.
#[derive(Clone, Debug)]
pub struct AdamState {
    pub adam: Adam,
    pub step: u64,
    pub first_moment: Option<ParamSlab>,
    pub second_moment: ParamSlab,
    resident: Resident,
}

impl AdamState {
    pub fn new(layout: &Arc<Layout>, adam: Adam) -> AdamState {
        let first_moment = (adam.beta1 > 0.0).then(|| ParamSlab::zeros(layout));
        AdamState { first_moment, ..AdamState::after(adam, 0, ParamSlab::zeros(layout)) }
    }

    /// With β1 = 0, after `step` steps.
    pub fn after(adam: Adam, step: u64, second_moment: ParamSlab) -> AdamState {
        AdamState { adam, step, first_moment: None, second_moment, resident: Resident::default() }
    }

    /// Says that the GPU has done so many steps (or, negative, that so many were not done) without a call of `step`.
    pub fn count(&mut self, steps: i64) {
        self.step = self.step.wrapping_add_signed(steps);
        self.resident.count(steps);
    }

    /// A copy that shares no memory.
    pub fn deep_clone(&self) -> Result<AdamState> {
        self.on_each(ParamSlab::deep_clone)
    }

    /// The same state on another device.
    pub fn to_device(&self, device: &Device) -> Result<AdamState> {
        self.on_each(|slab| slab.to_device(device))
    }

    fn on_each(&self, f: impl Fn(&ParamSlab) -> Result<ParamSlab>) -> Result<AdamState> {
        let first_moment = self.first_moment.as_ref().map(&f).transpose()?;
        Ok(AdamState { first_moment, ..AdamState::after(self.adam, self.step, f(&self.second_moment)?) })
    }

    /// One step on `params` with one gradient per parameter; see `ops::optimizer::adam_step` for what is returned.
    pub fn step(&mut self, params: &mut ParamSlab, ema: Option<(&mut ParamSlab, f64)>, grads: &[Var], pull: Pull) -> Result<Option<Sum>> {
        self.step += 1;
        let grads: Vec<Tensor> = grads.iter().map(|g| g.value().clone()).collect();
        let offsets = params.layout().offsets();
        let slabs = Slabs {
            params: params.values_mut(),
            first_moment: self.first_moment.as_mut().map(ParamSlab::values_mut),
            second_moment: self.second_moment.values_mut(),
            ema: ema.map(|(e, decay)| (e.values_mut(), decay)),
        };
        adam_step(slabs, &grads, &offsets, pull, self.adam, self.step, &mut self.resident)
    }
}
