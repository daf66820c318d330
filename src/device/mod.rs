//! L1: where numbers live. `Device` names a place; `cpu` holds what the CPU ops share, `cuda` opens a GPU, moves bytes
//! and launches kernels.

pub mod cpu;
pub mod cuda;

use std::fmt;

use crate::error::{Error, Result};
pub use cuda::CudaDevice;

/// Where a tensor lives and an op runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The host, its threads managed by rayon.
    Cpu,
    /// One GPU, one stream.
    Cuda(CudaDevice),
}

impl Device {
    /// `cpu`; `cuda` or `cuda:N`, which opens that GPU or says why it cannot; `auto`: the first GPU where one is usable
    /// by this program, else the CPU.
    pub fn parse(text: &str) -> Result<Device> {
        let refused = || Error::config("--device", format!("{text:?}: use auto, cpu, cuda or cuda:N"));
        match text {
            "cpu" => Ok(Device::Cpu),
            "cuda" => CudaDevice::open(0).map(Device::Cuda),
            "auto" => match CudaDevice::open(0) {
                Ok(device) => Ok(Device::Cuda(device)),
                Err(Error::NoCuda { .. }) => Ok(Device::Cpu),
                // A GPU that is there and fails is for its user to know.
                Err(other) => Err(other),
            },
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).ok_or_else(refused)?;
                CudaDevice::open(ordinal).map(Device::Cuda)
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(device) => write!(f, "cuda:{}", device.ordinal()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!(Device::parse("cpu").unwrap(), Device::Cpu);
        for unknown in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            let refused = Device::parse(unknown).unwrap_err().to_string();
            assert!(refused.contains("--device") && refused.contains("auto, cpu, cuda or cuda:N"), "{refused}");
        }
    }
}
