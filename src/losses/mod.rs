//! L7: losses of GAN training, as compositions of differentiable ops.

mod gan;
mod path_length;
mod r1;

pub use gan::{discriminator_loss, generator_loss};
pub use path_length::{PathLength, path_length, path_lengths, path_penalty};
pub use r1::r1_penalty;
