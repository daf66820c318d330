//! `recant bench`: times of kernels, training iterations and sampling on this machine.

use std::time::Instant;

use clap::{Args, ValueEnum};

use super::Global;
use super::doctor::{Limits, timed};
use super::machine::{Machine, Number, Report, number_table};
use super::output::summary;
use super::probes::probes;
use super::run_folder::stop_if_interrupted;
use crate::device::Device;
use crate::device::cuda::Mark;
use crate::device::peak::median;
use crate::error::{Error, Result};
use crate::models::stylegan2::{Generator, StyleGan2Config};
use crate::nn::ParamSlab;
use crate::ops::random::Random;
use crate::training::{GanState, Hyper, NoRegulariser, TensorBatches, Trainer, run, streams};
use crate::unlearning::feedback::{draw_latents, generate, sample_batch};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Every kernel by itself, with nothing in the cache.
    Kernels,
    /// Whole training iterations: plain, with R1, with path length, and what they come to with the usual intervals.
    Iterations,
    /// Images per second out of the generator.
    Pipeline,
}

/// Networks by their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Width {
    /// The demo's: 32 px, 64 to 32 channels.
    Demo,
    /// 32 px at the paper's full width.
    #[value(name = "32")]
    Small,
    /// 256 px, config-f.
    #[value(name = "256")]
    Large,
}

impl Width {
    fn config(self) -> Result<StyleGan2Config> {
        match self {
            Width::Demo => StyleGan2Config::with_channels(32, 64, 4, "4:64,8:64,16:48,32:32"),
            Width::Small => StyleGan2Config::full_width(32, 128),
            Width::Large => StyleGan2Config::full_width(256, 512),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Width::Demo => "32 px, demo width",
            Width::Small => "32 px, full width",
            Width::Large => "256 px, config-f",
        }
    }
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Bench {
    /// What to time
    #[arg(long, value_enum, value_delimiter = ',', default_value = "kernels,iterations,pipeline")]
    what: Vec<What>,
    /// Networks (default: 32 and 256 on a GPU, demo on a CPU)
    #[arg(long, value_enum, value_delimiter = ',')]
    widths: Vec<Width>,
    /// Images per batch
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Runs, of which the middle one counts
    #[arg(long, default_value_t = 11)]
    repeats: usize,
}

impl Bench {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = Instant::now();
        let hyper = Hyper { batch: self.batch, ..Hyper::default() }.checked()?;
        if self.repeats == 0 {
            return Err(Error::config("--repeats", "must be at least 1"));
        }
        let (device, no_gpu) = global.device.open(global.precision)?;
        let machine = Machine::of(&device)?;
        println!("{}", machine.describe());
        if let Some(problem) = no_gpu {
            println!("no GPU is used: {problem}");
        }
        let mut numbers = Vec::new();
        if self.what.contains(&What::Kernels) {
            self.report(&mut numbers, self.kernels(&device)?);
        }
        for width in self.widths(&device) {
            if self.what.contains(&What::Iterations) {
                self.report(&mut numbers, self.iterations(&device, width, &hyper)?);
            }
            if self.what.contains(&What::Pipeline) {
                self.report(&mut numbers, vec![self.sampling(&device, width)?]);
            }
        }
        summary(global, &Report { machine: &machine, device: device.to_string(), results: &numbers, seconds: start.elapsed().as_secs_f64() });
        Ok(())
    }

    fn report(&self, all: &mut Vec<Number>, new: Vec<Number>) {
        println!("{}", number_table(&new));
        all.extend(new);
    }

    fn widths(&self, device: &Device) -> Vec<Width> {
        match (&self.widths[..], device) {
            ([], Device::Cpu) => vec![Width::Demo],
            ([], Device::Cuda(_)) => vec![Width::Small, Width::Large],
            (chosen, _) => chosen.to_vec(),
        }
    }

    fn kernels(&self, device: &Device) -> Result<Vec<Number>> {
        let limits = match device {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(Limits::measure(gpu)?),
        };
        let mut numbers = limits.map_or(Vec::new(), |l| l.numbers());
        for probe in probes().iter().filter(|p| p.timed) {
            stop_if_interrupted()?;
            numbers.push(timed(probe, device, limits, self.repeats)?);
        }
        Ok(numbers)
    }

    fn iterations(&self, device: &Device, width: Width, hyper: &Hyper) -> Result<Vec<Number>> {
        let config = width.config()?;
        let kinds = [("plain", false, false), ("with R1", true, false), ("with path length", false, true)];
        let mut seconds = Vec::new();
        for (_, r1, path) in kinds {
            let weight = |on: bool, weight: f64| if on { weight } else { 0.0 };
            let always = Hyper { r1_weight: weight(r1, hyper.r1_weight), r1_every: 1, path_weight: weight(path, hyper.path_weight), path_every: 1, ..hyper.clone() };
            seconds.push(self.iteration(device, &config, &always)?);
        }
        let name = |kind: &str| format!("iteration {}, batch {}, {kind}", width.name(), hyper.batch);
        let usual = seconds[0] + (seconds[1] - seconds[0]) / hyper.r1_every as f64 + (seconds[2] - seconds[0]) / hyper.path_every as f64;
        let mut numbers: Vec<Number> = kinds.iter().zip(&seconds).map(|((kind, ..), s)| Number::new(name(kind), s * 1e3, "ms")).collect();
        numbers.push(Number::new(name("usual intervals"), usual * 1e3, "ms"));
        numbers.push(Number::new(name("usual intervals"), hyper.batch as f64 / usual, "images/s"));
        Ok(numbers)
    }

    /// Seconds of one iteration on random images.
    fn iteration(&self, device: &Device, config: &StyleGan2Config, hyper: &Hyper) -> Result<f64> {
        /// The first is queued op by op and recorded, the second loads the graph.
        const WARM: usize = 2;
        let mut state = GanState::init(config, hyper, 0).to_device(device)?;
        let images = Random::new(0, 0).normal(&[2 * hyper.batch, config.size, config.size, 3]);
        let mut batches = TensorBatches::new(&images, (0..images.dim(0)).collect(), hyper.batch, 0, 0)?;
        let (trainer, mut clock) = (Trainer::new(config, hyper.clone()), Clock::new(device));
        run(&trainer, &mut state, &mut batches, &mut NoRegulariser, (WARM + self.repeats) as u64, &mut |_| {
            stop_if_interrupted()?;
            clock.tick()
        })?;
        Ok(median(clock.laps()?.split_off(WARM - 1)))
    }

    fn sampling(&self, device: &Device, width: Width) -> Result<Number> {
        let g = Generator::new(width.config()?);
        let params = ParamSlab::init(g.layout(), &mut Random::new(0, streams::INIT)).to_device(device)?;
        let batch = sample_batch(g.config());
        let latents = draw_latents(&g, batch * (self.repeats + 1), 0, streams::SAMPLES);
        let mut clock = Clock::new(device);
        generate(&g, &params, &latents, &mut Random::new(0, streams::SAMPLES), &mut |_, _, _| {
            stop_if_interrupted()?;
            clock.tick()
        })?;
        Ok(Number::new(format!("sampling {}", width.name()), batch as f64 / median(clock.laps()?), "images/s"))
    }
}

/// The device's own clock.
enum Clock<'a> {
    Cpu(Vec<Instant>),
    Cuda(&'a crate::device::CudaDevice, Vec<Mark>),
}

impl Clock<'_> {
    fn new(device: &Device) -> Clock<'_> {
        match device {
            Device::Cpu => Clock::Cpu(Vec::new()),
            Device::Cuda(gpu) => Clock::Cuda(gpu, Vec::new()),
        }
    }

    fn tick(&mut self) -> Result<()> {
        match self {
            Clock::Cpu(ticks) => ticks.push(Instant::now()),
            Clock::Cuda(gpu, ticks) => ticks.push(gpu.mark()?),
        }
        Ok(())
    }

    /// Seconds between neighbouring ticks.
    fn laps(&self) -> Result<Vec<f64>> {
        match self {
            Clock::Cpu(ticks) => Ok(ticks.windows(2).map(|t| (t[1] - t[0]).as_secs_f64()).collect()),
            Clock::Cuda(_, ticks) => ticks.windows(2).map(|t| t[0].until(&t[1])).collect(),
        }
    }
}
