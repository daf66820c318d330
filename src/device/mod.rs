//! L1: where numbers live. `Device` names a place; `cpu` holds what the CPU ops share, `cuda` opens a GPU, moves bytes
//! and launches kernels, `peak` measures what a machine can do at most, `profile` where the CPU's time goes,
//! `nccl` sums over the GPUs of several processes.

pub mod cpu;
pub mod cuda;
pub mod nccl;
pub mod peak;
pub mod profile;

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
pub use cuda::{Beside, CudaDevice};

/// Where a tensor lives and an op runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// The host, its threads managed by rayon.
    Cpu,
    /// One GPU.
    Cuda(CudaDevice),
}

/// How the convolutions of a GPU multiply; their sums are f32 in all of them, and so is everything else but what `Bf16`
/// says. The CPU has F32, and rounds as `Bf16` says where that is asked for by name, which saves it nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 products: the reference.
    #[default]
    F32,
    /// Tensor cores, each operand as two TF32 numbers: the error of f32 products, but for its last bits.
    Tf32x3,
    /// Tensor cores, operands rounded to 11 bits.
    Tf32,
    /// Tensor cores, operands rounded to 8 bits. StyleGAN2's activations and their gradients are stored so, too.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = clap::ValueEnum::to_possible_value(self).expect("no precision is hidden");
        f.write_str(value.get_name())
    }
}

/// What was asked for with `--device`; nothing is opened yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The GPU of that number where it is usable by this program, else the CPU.
    Auto(usize),
    Cpu,
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Choice, String> {
        match text {
            "auto" => Ok(Choice::Auto(0)),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Choice::Cuda).ok_or("use auto, cpu, cuda or cuda:N".into()),
        }
    }
}

impl Choice {
    /// Opens the device, or says why it cannot be used. Where `auto` takes no GPU, also why.
    pub fn open(self, precision: Precision) -> Result<(Device, Option<String>)> {
        let cpu = |why: Option<String>| match precision {
            Precision::F32 => Ok((Device::Cpu, why)),
            other => Err(Error::config("--precision", format!("{other} is for GPUs and this runs on the CPU; leave it out (bf16 can be tried there: --device cpu)"))),
        };
        match self {
            Choice::Cpu if precision == Precision::Bf16 => {
                cpu::round_to_bf16(true);
                Ok((Device::Cpu, None))
            }
            Choice::Cpu => cpu(None),
            Choice::Cuda(ordinal) => Ok((Device::Cuda(CudaDevice::open(ordinal, precision)?), None)),
            Choice::Auto(ordinal) => match CudaDevice::open(ordinal, precision) {
                Ok(device) => Ok((Device::Cuda(device), None)),
                Err(Error::NoCuda { problem }) => cpu(Some(problem)),
                // A GPU that is there and fails is for its user to know.
                Err(other) => Err(other),
            },
        }
    }

    /// That of one of the processes on a machine: each has a GPU of its own.
    pub fn of_process(self, local: usize) -> Choice {
        match self {
            Choice::Auto(_) => Choice::Auto(local),
            Choice::Cuda(_) => Choice::Cuda(local),
            Choice::Cpu => Choice::Cpu,
        }
    }

    /// For work that has no CUDA path: an error when a GPU was asked for by name.
    pub fn host_only(self, what: &'static str) -> Result<()> {
        match self {
            Choice::Auto(_) | Choice::Cpu => Ok(()),
            Choice::Cuda(ordinal) => Err(Error::Unsupported { op: what, problem: format!("it runs on the CPU, not on cuda:{ordinal}; use --device cpu") }),
        }
    }
}

impl Device {
    /// How convolutions multiply there.
    pub fn precision(&self) -> Precision {
        match self {
            Device::Cpu if cpu::rounds_to_bf16() => Precision::Bf16,
            Device::Cpu => Precision::F32,
            Device::Cuda(device) => device.precision(),
        }
    }

    /// Queues what `work` queues beside what is queued after it, until the join (`CudaDevice::beside`). The CPU does it at once.
    pub fn beside<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(Option<Beside>, R)> {
        match self {
            Device::Cpu => Ok((None, work()?)),
            Device::Cuda(device) => device.beside(work).map(|(beside, result)| (Some(beside), result)),
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
        let known = [("auto", Choice::Auto(0)), ("cpu", Choice::Cpu), ("cuda", Choice::Cuda(0)), ("cuda:3", Choice::Cuda(3))];
        for (text, choice) in known {
            assert_eq!(text.parse(), Ok(choice));
        }
        for unknown in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(unknown.parse::<Choice>().unwrap_err().contains("auto, cpu, cuda or cuda:N"));
        }
    }
}
