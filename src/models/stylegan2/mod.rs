//! StyleGAN2 as the paper used it (rosinality's definition), channels-last. Networks are stateless: a `Generator` or
//! `Discriminator` holds its architecture and parameter table, the values come as `Params`.

mod config;
mod discriminator;
mod generator;

use crate::autograd::{Var, cast};
use crate::device::{Device, Precision};
use crate::error::Result;
use crate::tensor::DType;
pub use config::StyleGan2Config;
pub use discriminator::Discriminator;
pub use generator::{Generator, Styles};

/// `x` as the networks' activations are stored, from here on with their gradients: as bf16 where a GPU multiplies bf16,
/// which would round what it reads in any case, else as it is. What they end in (images, logits) is cast back.
fn as_activation(x: &Var) -> Result<Var> {
    match x.value().device() {
        Device::Cuda(gpu) if gpu.precision() == Precision::Bf16 => cast(x, DType::Bf16),
        _ => Ok(x.clone()),
    }
}
