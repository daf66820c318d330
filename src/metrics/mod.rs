//! L9: measurements of what a model makes.

pub mod feature_stats;
pub mod frechet;

pub use feature_stats::{FeatureStats, Statistics};
pub use frechet::frechet_distance;
