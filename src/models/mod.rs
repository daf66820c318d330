//! L6: networks.

pub mod mlp_gan;
pub mod stylegan2;
