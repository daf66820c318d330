//! StyleGAN2 as the paper used it (rosinality's definition), channels-last. Networks are stateless: a `Generator` or
//! `Discriminator` holds its architecture and parameter table, the values come as `Params`.

mod config;
mod discriminator;
mod generator;

use crate::autograd::{Var, cast};
use crate::device::cpu::rounds_to_bf16;
use crate::device::{Device, Precision};
use crate::error::Result;
use crate::tensor::DType;
pub use config::StyleGan2Config;
pub use discriminator::Discriminator;
pub use generator::{Generator, Styles};

/// `x` as the networks' activations are stored, from here on with their gradients: as bf16 where the device multiplies bf16,
/// which would round what it reads in any case, else as it is. What they end in (images, logits) is cast back.
fn as_activation(x: &Var) -> Result<Var> {
    let in_bf16 = match x.value().device() {
        Device::Cuda(gpu) => gpu.precision() == Precision::Bf16,
        Device::Cpu => x.dtype() == DType::F32 && rounds_to_bf16(),
    };
    if in_bf16 { cast(x, DType::Bf16) } else { Ok(x.clone()) }
}
