//! L1: where numbers live. `Device` names a place; `cpu` holds what the CPU ops share.

pub mod cpu;

use std::fmt;

/// Where a tensor lives and an op runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The host, its threads managed by rayon.
    Cpu,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
        }
    }
}
