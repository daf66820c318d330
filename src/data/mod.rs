//! L6': data sets of 8-bit images, and their way into batches.

pub mod celeba;
pub mod dataset;
pub mod folder;
pub mod mnist;

pub use dataset::{Dataset, Flip, Part, Sampler, SamplerState, Source};
