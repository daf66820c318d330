//! L5: what networks are built from: parameter slabs, equalised layers, optimiser state.

pub mod adamax;
pub mod batch_norm;
pub mod layers;
pub mod optimizer;
pub mod params;
pub mod softmax;

pub use adamax::{Adamax, AdamaxState};
pub use optimizer::AdamState;
pub use params::{Init, Layout, ParamSlab, Params, Segment};
