//! L8: Adapt-then-Unlearn (arXiv 2309.14054) and what it is compared with.

pub mod adapt;
pub mod baselines;
pub mod extrapolate;
pub mod feedback;
pub mod fisher;
pub mod gaussians;
pub mod repulsion;
pub mod schedule;
pub mod unlearn;
