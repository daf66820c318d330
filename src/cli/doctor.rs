//! `recant doctor`: this machine, every kernel checked against the CPU and timed against its floor.

use std::process::ExitCode;

use clap::Args;

use super::Global;
use super::machine::{Machine, Number, Report, in_precision, number_table};
use super::output::{Progress, summary, table};
use super::probes::{Probe, Products, Size, probes};
use super::run_folder::stop_if_interrupted;
use crate::device::peak::{self, Effort};
use crate::device::{CudaDevice, Device, Precision};
use crate::error::Result;

#[derive(Args, Clone, Debug)]
pub(crate) struct Doctor {
    /// Check only, without times
    #[arg(long)]
    check_only: bool,
    /// Runs of each kernel, of which the middle one counts
    #[arg(long, default_value_t = 11)]
    repeats: usize,
}

/// The limits of a GPU, measured: bytes per second copied, operations per second in f32.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub bandwidth: f64,
    pub fma: f64,
    mma: f64,
}

impl Limits {
    pub fn measure(gpu: &CudaDevice) -> Result<Limits> {
        let effort = Effort::FULL;
        Ok(Limits { bandwidth: peak::copy_bandwidth(gpu, effort)?, fma: peak::fma_rate(gpu, effort)?, mma: peak::mma_rate(gpu, effort)? })
    }

    /// Operations per second that a probe's products can have on a device: bf16's is twice TF32's.
    fn rate(&self, probe: &Probe, device: &Device) -> f64 {
        match device {
            Device::Cuda(_) if probe.products == Products::Bf16 => self.mma,
            Device::Cuda(gpu) if probe.products == Products::Device => match gpu.precision() {
                Precision::F32 => self.fma,
                Precision::Tf32 => self.mma / 2.0,
                Precision::Tf32x3 => self.mma / 6.0,
                Precision::Bf16 => self.mma,
            },
            _ => self.fma,
        }
    }

    pub fn numbers(&self) -> Vec<Number> {
        vec![
            Number::new("copy", self.bandwidth * 1e-9, "GB/s"),
            Number::new("f32 products", self.fma * 1e-12, "TFLOP/s"),
            Number::new("bf16 products (mma.sync)", self.mma * 1e-12, "TFLOP/s"),
        ]
    }
}

/// Probes with the devices to run them on: the first one, and for convolutions the other precisions too.
pub(super) fn in_every_precision<'a>(probes: &'a [Probe], devices: &'a [Device]) -> impl Iterator<Item = (&'a Probe, &'a Device)> {
    probes.iter().flat_map(move |probe| devices[..if probe.products == Products::Device { devices.len() } else { 1 }].iter().map(move |device| (probe, device)))
}

/// A probe's name, with the device's precision where that matters.
fn label(probe: &Probe, device: &Device) -> String {
    if probe.products == Products::Device { in_precision(probe.name, device) } else { probe.name.into() }
}

/// A probe's time on a device, with its floor there.
pub(super) fn timed(probe: &Probe, device: &Device, limits: Option<Limits>, repeats: usize) -> Result<Number> {
    let time = Number::new(label(probe, device), probe.seconds(Size::Large, device, repeats)? * 1e6, "us");
    Ok(match limits {
        Some(l) => time.at_least(probe.floor(l.bandwidth, l.rate(probe, device)) * 1e6),
        None => time,
    })
}

impl Doctor {
    pub fn run(&self, global: &Global) -> Result<ExitCode> {
        let start = std::time::Instant::now();
        let (devices, no_gpu) = global.open_all()?;
        let machine = Machine::of(&devices[0])?;
        println!("{}", machine.describe());
        if let Some(problem) = &no_gpu {
            println!("no GPU is used: {problem}");
        }
        let (numbers, wrong) = match &devices[0] {
            Device::Cpu => {
                println!("on a GPU this would be checked against the CPU and timed:\n{}", plan(&probes()));
                (Vec::new(), Vec::new())
            }
            Device::Cuda(gpu) => self.examine(gpu, &devices)?,
        };
        summary(global, &Report { machine: &machine, device: devices[0].to_string(), results: &numbers, seconds: start.elapsed().as_secs_f64() });
        Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }

    /// Numbers, and names of what is wrong: every kernel once, convolutions in every precision.
    fn examine(&self, gpu: &CudaDevice, devices: &[Device]) -> Result<(Vec<Number>, Vec<String>)> {
        let probes = probes();
        let each: Vec<(&Probe, &Device)> = in_every_precision(&probes, devices).collect();
        let mut progress = Progress::new("doctor", 0, 2 * each.len() as u64);
        let (mut checks, mut wrong) = (Vec::new(), Vec::new());
        for (i, (probe, device)) in each.iter().enumerate() {
            stop_if_interrupted()?;
            let name = label(probe, device);
            let (error, allowed) = (probe.error(device)?, probe.allowed(device));
            if error > allowed {
                wrong.push(name.clone());
            }
            checks.push(Number::new(format!("{name}, against the CPU"), error, "relative").at_most(allowed));
            progress.at(i as u64 + 1, || name.clone());
        }
        let mut times = Vec::new();
        if !self.check_only {
            let limits = Limits::measure(gpu)?;
            times = limits.numbers();
            for (i, (probe, device)) in each.iter().enumerate().filter(|(_, (probe, _))| probe.timed) {
                stop_if_interrupted()?;
                times.push(timed(probe, device, Some(limits), self.repeats)?);
                progress.at((each.len() + i + 1) as u64, || probe.name.into());
            }
        }
        progress.finish();
        println!("{}", number_table(&checks));
        if !times.is_empty() {
            println!("{}", number_table(&times));
        }
        match wrong.len() {
            0 => println!("all {} checks agree with the CPU", checks.len()),
            n => println!("{n} of {} checks are wrong: {}", checks.len(), wrong.join(", ")),
        }
        Ok((checks.into_iter().chain(times).collect(), wrong))
    }
}

/// What would run, with its least bytes and operations.
fn plan(probes: &[Probe]) -> String {
    let mut rows = vec![["", "MB moved", "GFLOP"].map(str::to_string).to_vec()];
    rows.extend(probes.iter().map(|p| vec![p.name.to_string(), format!("{:.0}", p.bytes * 1e-6), format!("{:.1}", p.flops * 1e-9)]));
    table(&rows)
}
