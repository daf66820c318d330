//! recant: makes a pre-trained StyleGAN2 stop generating what its user marks as undesired.

pub mod autograd;
pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod io;
pub mod losses;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod ops;
pub mod tensor;
pub mod training;
pub mod unlearning;
