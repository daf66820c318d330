//! The paper's baseline without training: away from the adapted models in parameter space, `θ_G + γ (θ_G − θ̄_N)`.

use super::repulsion::centroid;
use crate::error::{Error, Result};
use crate::nn::ParamSlab;

/// `θ_G + γ (θ_G − θ̄_N)`; γ = 0 is the original, negative γ goes towards the adapted models.
pub fn extrapolate(original: &ParamSlab, adapted: &[ParamSlab], gamma: f64) -> Result<ParamSlab> {
    let mean = centroid(adapted)?;
    if mean.layout().len() != original.layout().len() {
        return Err(Error::config("--adapted", format!("adapted models have {} parameters, the generator {}", mean.layout().len(), original.layout().len())));
    }
    let g = gamma as f32;
    let values = original.as_slice().iter().zip(mean.as_slice()).map(|(o, n)| o + g * (o - n)).collect();
    ParamSlab::from_values(original.layout(), values)
}
