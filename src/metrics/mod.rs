//! L9: measurements of what a model makes.

pub mod class_statistics;
pub mod feature_stats;
pub mod fid;
pub mod frechet;
pub mod pul;

pub use feature_stats::{FeatureStats, Statistics};
pub use fid::{Extractor, FidProtocol, FidReport, Origin, Preparation, fid};
pub use frechet::frechet_distance;
