//! L6: networks.

pub mod classifier;
pub mod lenet;
pub mod stylegan2;
