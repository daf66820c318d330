//! What `doctor` and `bench` say about the machine, and the form of their numbers.

use serde::Serialize;

use super::output::table;
use crate::device::cpu::Isa;
use crate::device::cuda::embedded;
use crate::device::{CudaDevice, Device};
use crate::error::Result;

#[derive(Clone, Debug, Serialize)]
pub(super) struct Gpu {
    pub name: String,
    pub driver: String,
    pub compute_capability: String,
    pub multiprocessors: u32,
    pub cache_mib: usize,
    pub memory_mib: usize,
    pub memory_free_mib: usize,
}

/// Everything that a measurement depends on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub version: &'static str,
    pub cpu: String,
    pub threads: usize,
    pub instructions: String,
    /// What nvcc made, and for which chips; nothing without nvcc.
    pub kernels: usize,
    pub compiler: Option<&'static str>,
    pub architectures: &'static str,
    pub gpu: Option<Gpu>,
}

/// The processor's name, where the system tells it.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_string()));
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

impl Gpu {
    pub fn of(device: &CudaDevice) -> Result<Gpu> {
        let (major, minor) = device.compute_capability();
        let (free, total) = device.memory()?;
        Ok(Gpu {
            name: device.name()?,
            driver: device.driver()?,
            compute_capability: format!("{major}.{minor}"),
            multiprocessors: device.multiprocessors(),
            cache_mib: device.cache()? >> 20,
            memory_mib: total >> 20,
            memory_free_mib: free >> 20,
        })
    }
}

impl Machine {
    pub fn of(device: &Device) -> Result<Machine> {
        Ok(Machine {
            version: env!("CARGO_PKG_VERSION"),
            cpu: cpu_name(),
            threads: rayon::current_num_threads(),
            instructions: format!("{:?}", Isa::detect()).to_lowercase(),
            kernels: embedded::FATBINS.len(),
            compiler: embedded::COMPILER,
            architectures: if embedded::FATBINS.is_empty() { "" } else { embedded::ARCHITECTURES },
            gpu: match device {
                Device::Cpu => None,
                Device::Cuda(gpu) => Some(Gpu::of(gpu)?),
            },
        })
    }

    pub fn describe(&self) -> String {
        let kernels = match self.compiler {
            Some(compiler) => format!("{} files for {} ({compiler})", self.kernels, self.architectures),
            None => "none: this program was built without nvcc".into(),
        };
        let mut rows = vec![
            vec!["recant".to_string(), self.version.to_string()],
            vec!["CPU".to_string(), format!("{}, {} threads, {}", self.cpu, self.threads, self.instructions)],
            vec!["CUDA kernels".to_string(), kernels],
        ];
        if let Some(gpu) = &self.gpu {
            let memory = format!("{} of {} MiB free, {} MiB cache", gpu.memory_free_mib, gpu.memory_mib, gpu.cache_mib);
            rows.push(vec!["GPU".to_string(), format!("{}, compute capability {}, {} multiprocessors", gpu.name, gpu.compute_capability, gpu.multiprocessors)]);
            rows.push(vec!["memory".to_string(), memory]);
            rows.push(vec!["driver".to_string(), format!("CUDA {}", gpu.driver)]);
        }
        let width = rows.iter().map(|r| r[0].len()).max().unwrap_or(0);
        rows.iter().map(|r| format!("{:width$}  {}", r[0], r[1])).collect::<Vec<_>>().join("\n")
    }
}

/// A number's name with how its device multiplies, where there is a choice.
pub(super) fn in_precision(name: &str, device: &Device) -> String {
    match device {
        Device::Cpu => name.into(),
        Device::Cuda(gpu) => format!("{name}, {}", gpu.precision()),
    }
}

/// One number. `floor` and `ceiling` are what the machine allows it at least or at most to be, where that is known.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Number {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub floor: Option<f64>,
    pub ceiling: Option<f64>,
}

impl Number {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Number {
        Number { name: name.into(), value, unit, floor: None, ceiling: None }
    }

    pub fn at_least(self, floor: f64) -> Number {
        Number { floor: Some(floor), ..self }
    }

    pub fn at_most(self, ceiling: f64) -> Number {
        Number { ceiling: Some(ceiling), ..self }
    }
}

/// The last line with `--json`.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub machine: &'a Machine,
    pub device: String,
    pub results: &'a [Number],
    pub seconds: f64,
}

/// Three digits that count.
fn show(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if !(1e-3..1e5).contains(&v) => format!("{value:.2e}"),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

pub(super) fn number_table(numbers: &[Number]) -> String {
    let mut rows = vec![["", "value", "unit", "floor", "ceiling", "of the limit"].map(str::to_string).to_vec()];
    for n in numbers {
        let limit = |v: Option<f64>| v.map_or("-".to_string(), show);
        // A time is the closer to its floor the better, a rate the closer to its ceiling.
        let share = match (n.floor, n.ceiling) {
            (Some(floor), _) if floor > 0.0 => format!("{:.0} %", 100.0 * floor / n.value),
            (_, Some(ceiling)) => format!("{:.0} %", 100.0 * n.value / ceiling),
            _ => "-".into(),
        };
        rows.push(vec![n.name.clone(), show(n.value), n.unit.to_string(), limit(n.floor), limit(n.ceiling), share]);
    }
    table(&rows)
}
