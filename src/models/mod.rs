//! L6: networks.

pub mod afhq_cnn;
pub mod celeba_heads;
pub mod classifier;
pub mod inception;
pub mod lenet;
pub mod mlp_gan;
pub mod resnet;
pub mod stylegan2;
