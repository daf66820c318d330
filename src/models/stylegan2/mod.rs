//! StyleGAN2 as the paper used it (rosinality's definition), channels-last. Networks are stateless: a `Generator` or
//! `Discriminator` holds its architecture and parameter table, the values come as `Params`.

mod config;
mod discriminator;
mod generator;

pub use config::StyleGan2Config;
pub use discriminator::Discriminator;
pub use generator::{Generator, Styles};
