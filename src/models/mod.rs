//! L6: networks.

pub mod classifier;
pub mod inception;
pub mod lenet;
pub mod resnet;
pub mod stylegan2;
