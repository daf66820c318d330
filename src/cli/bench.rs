//! `recant bench`: times of kernels, of training iterations and of the method's parts on this machine.

use std::time::Instant;

use clap::{Args, ValueEnum};

use super::Global;
use super::doctor::{Limits, in_every_precision, timed};
use super::machine::{Machine, Number, Report, in_precision, number_table};
use super::output::summary;
use super::probes::probes;
use super::profile::{Ceilings, rows_table, watched};
use super::run_folder::stop_if_interrupted;
use crate::device::Device;
use crate::device::cuda::Mark;
use crate::device::peak::median;
use crate::error::{Error, Result};
use crate::models::classifier::{Classifier, ClassifierConfig};
use crate::models::stylegan2::{Generator, StyleGan2Config};
use crate::nn::ParamSlab;
use crate::ops::random::Random;
use crate::tensor::Tensor;
use crate::training::{GanState, Hyper, NoRegulariser, Regulariser, TensorBatches, Trainer, run, streams};
use crate::unlearning::adapt::{Ewc, LAMBDA};
use crate::unlearning::feedback::{draw_latents, generate, sample_batch};
use crate::unlearning::fisher::{FisherSpec, fisher_diagonal};
use crate::unlearning::repulsion::{Distance, Kind, Repulsion};

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Every kernel by itself, with nothing in the cache.
    Kernels,
    /// Whole training iterations: plain, with R1, with path length, and what they come to with the usual intervals.
    Iterations,
    /// The method's parts: marking samples, Fisher information, iterations of both stages; and what it all comes to.
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
    /// Show instead where the time of an iteration at the usual intervals goes, op by op (CPU)
    #[arg(long, conflicts_with = "what")]
    profile: bool,
}

impl Bench {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = Instant::now();
        let hyper = Hyper { batch: self.batch, ..Hyper::default() }.checked()?;
        if self.repeats == 0 {
            return Err(Error::config("--repeats", "must be at least 1"));
        }
        let (devices, no_gpu) = global.open_all()?;
        let machine = Machine::of(&devices[0])?;
        println!("{}", machine.describe());
        if let Some(problem) = no_gpu {
            println!("no GPU is used: {problem}");
        }
        if self.profile {
            return self.profile(global, &machine, &devices[0], &hyper, start);
        }
        let mut numbers = Vec::new();
        if self.what.contains(&What::Kernels) {
            self.report(&mut numbers, self.kernels(&devices)?);
        }
        for width in self.widths(&devices[0]) {
            for device in &devices {
                if self.what.contains(&What::Iterations) {
                    self.report(&mut numbers, self.iterations(device, width, &hyper)?);
                }
                if self.what.contains(&What::Pipeline) {
                    self.report(&mut numbers, self.pipeline(device, width, &hyper)?);
                }
            }
        }
        summary(global, &Report { machine: &machine, device: devices[0].to_string(), results: &numbers, seconds: start.elapsed().as_secs_f64() });
        Ok(())
    }

    /// See `profile`.
    fn profile(&self, global: &Global, machine: &Machine, device: &Device, hyper: &Hyper, start: Instant) -> Result<()> {
        if *device != Device::Cpu {
            return Err(Error::config("--profile", "watches the CPU's ops: give --device cpu; Nsight (nsys profile recant bench ...) shows a GPU's kernels"));
        }
        let ceilings = Ceilings::measure()?;
        println!("ceilings: {:.1} GB/s copied, {:.0} GFLOP/s in a matrix product", 1e-9 * ceilings.bytes_per_second, 1e-9 * ceilings.flops_per_second);
        // As often as it takes to see every penalty at its usual interval.
        let iterations = hyper.r1_every * hyper.path_every / gcd(hyper.r1_every, hyper.path_every);
        let mut profiles = Vec::new();
        for width in self.widths(device) {
            let config = width.config()?;
            let (mut state, images) = self.in_training(&config, hyper, device)?;
            let mut batches = batches(&images, hyper)?;
            let trainer = Trainer::new(&config, hyper.clone());
            let mut train = |until: u64| run(&trainer, &mut state, &mut batches, &mut NoRegulariser, until, &mut |_| stop_if_interrupted());
            train(1)?;
            let found = watched(iterations, ceilings, || train(1 + iterations))?;
            println!("\n{}, batch {}:\n{}\n\n{}", width.name(), hyper.batch, rows_table(&found.ops), rows_table(&found.operands));
            profiles.push(serde_json::json!({"name": width.name(), "ops": found.ops, "operands": found.operands}));
        }
        summary(global, &serde_json::json!({"machine": machine, "ceilings": ceilings, "profiles": profiles, "seconds": start.elapsed().as_secs_f64()}));
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

    fn kernels(&self, devices: &[Device]) -> Result<Vec<Number>> {
        let limits = match &devices[0] {
            Device::Cpu => None,
            Device::Cuda(gpu) => Some(Limits::measure(gpu)?),
        };
        let mut numbers = limits.map_or(Vec::new(), |l| l.numbers());
        let probes: Vec<_> = probes().into_iter().filter(|p| p.timed).collect();
        for (probe, device) in in_every_precision(&probes, devices) {
            stop_if_interrupted()?;
            numbers.push(timed(probe, device, limits, self.repeats)?);
        }
        Ok(numbers)
    }

    fn iterations(&self, device: &Device, width: Width, hyper: &Hyper) -> Result<Vec<Number>> {
        let name = |kind: &str| in_precision(&format!("iteration {}, batch {}, {kind}", width.name(), hyper.batch), device);
        let kinds = self.kinds(device, width, hyper, &mut NoRegulariser)?;
        let mut numbers: Vec<Number> = KINDS.iter().zip(kinds).map(|((kind, ..), s)| Number::new(name(kind), s * 1e3, "ms")).collect();
        let usual = amortised(kinds, hyper);
        numbers.push(Number::new(name("usual intervals"), usual * 1e3, "ms"));
        numbers.push(Number::new(name("usual intervals"), hyper.batch as f64 / usual, "images/s"));
        Ok(numbers)
    }

    /// Seconds of an iteration of each of `KINDS`.
    fn kinds(&self, device: &Device, width: Width, hyper: &Hyper, regulariser: &mut dyn Regulariser) -> Result<[f64; 3]> {
        let config = width.config()?;
        let mut seconds = [0.0; 3];
        for ((_, r1, path), seconds) in KINDS.iter().zip(&mut seconds) {
            let weight = |on: bool, weight: f64| if on { weight } else { 0.0 };
            let always = Hyper { r1_weight: weight(*r1, hyper.r1_weight), r1_every: 1, path_weight: weight(*path, hyper.path_weight), path_every: 1, ..hyper.clone() };
            *seconds = self.iteration(device, &config, &always, regulariser)?;
        }
        Ok(seconds)
    }

    /// A pair at its start, and random images.
    fn in_training(&self, config: &StyleGan2Config, hyper: &Hyper, device: &Device) -> Result<(GanState, Tensor)> {
        let state = GanState::init(config, hyper, 0).to_device(device)?;
        Ok((state, Random::new(0, 0).normal(&[2 * hyper.batch, config.size, config.size, 3])))
    }

    /// Seconds of one iteration on random images.
    fn iteration(&self, device: &Device, config: &StyleGan2Config, hyper: &Hyper, regulariser: &mut dyn Regulariser) -> Result<f64> {
        /// The first is queued op by op and recorded, the second loads the graph.
        const WARM: usize = 2;
        let (mut state, images) = self.in_training(config, hyper, device)?;
        let mut batches = batches(&images, hyper)?;
        let (trainer, mut clock) = (Trainer::new(config, hyper.clone()), Clock::new(device));
        run(&trainer, &mut state, &mut batches, regulariser, (WARM + self.repeats) as u64, &mut |_| {
            stop_if_interrupted()?;
            clock.tick()
        })?;
        Ok(median(clock.laps()?.split_off(WARM - 1)))
    }

    fn pipeline(&self, device: &Device, width: Width, hyper: &Hyper) -> Result<Vec<Number>> {
        let (config, name) = (width.config()?, |part: &str| in_precision(&format!("{}: {part}", width.name()), device));
        let state = GanState::init(&config, hyper, 0).to_device(device)?;
        let (sampled, marked) = (self.sampling(device, &state, None)?, self.sampling(device, &state, Some(&Classifier::init(ClassifierConfig::mnist(), &mut Random::new(0, streams::INIT))?))?);
        let spec = FisherSpec::default();
        let trainer = Trainer::new(&config, hyper.clone());
        let (fisher, fisher_seconds) = self.fisher(device, &trainer, &state, spec)?;
        let mut ewc = Ewc { anchor: state.g.deep_clone()?, fisher, lambda: PAPER.lambda };
        let adapting = amortised(self.kinds(device, width, hyper, &mut ewc)?, hyper);
        let adapted = (1..=PAPER.models as u64).map(|seed| Ok(GanState::init(&config, hyper, seed).to_device(device)?.g)).collect::<Result<Vec<_>>>()?;
        let mut repulsion = Repulsion::new(Kind::El2 { gamma: PAPER.gamma, alpha: PAPER.alpha }, Distance::L2, &adapted, &state.g, f64::INFINITY)?;
        let unlearning = amortised(self.kinds(device, width, hyper, &mut repulsion)?, hyper);
        let stage_1 = PAPER.models as f64 * (fisher_seconds + PAPER.adapting * adapting);
        let whole = (PAPER.feedback + PAPER.judged) / marked + stage_1 + PAPER.unlearning * unlearning;
        Ok(vec![
            Number::new(name("sampling"), sampled, "images/s"),
            Number::new(name("sampling and marking"), marked, "images/s"),
            Number::new(name(&format!("Fisher information of {} samples", spec.samples)), fisher_seconds * 1e3, "ms"),
            Number::new(name("adapting, usual intervals"), adapting * 1e3, "ms"),
            Number::new(name("unlearning, usual intervals"), unlearning * 1e3, "ms"),
            Number::new(name("stage 1 at the paper's size, from these"), stage_1, "s"),
            Number::new(name("the method at the paper's size, from these"), whole, "s"),
        ])
    }

    fn fisher(&self, device: &Device, trainer: &Trainer, state: &GanState, spec: FisherSpec) -> Result<(ParamSlab, f64)> {
        let mut clock = Clock::new(device);
        clock.tick()?;
        let mut found = None;
        for _ in 0..=self.repeats.min(3) {
            stop_if_interrupted()?;
            found = Some(fisher_diagonal(trainer, &state.g, &state.d, spec, &mut Random::new(0, streams::FISHER))?);
            clock.tick()?;
        }
        let seconds = median(clock.laps()?.split_off(1));
        Ok((found.expect("it ran at least once"), seconds))
    }

    /// Images per second out of the generator, judged where there is a judge.
    fn sampling(&self, device: &Device, state: &GanState, judge: Option<&Classifier>) -> Result<f64> {
        let g = Generator::new(state.config.clone());
        let judge = judge.map(|j| j.to_device(device)).transpose()?;
        let batch = sample_batch(g.config());
        let latents = draw_latents(&g, batch * (self.repeats + 1), 0, streams::SAMPLES);
        let mut clock = Clock::new(device);
        generate(&g, &state.g_ema, &latents, &mut Random::new(0, streams::SAMPLES), &mut |_, images, _| {
            stop_if_interrupted()?;
            if let Some(judge) = &judge {
                judge.judge(images)?;
            }
            clock.tick()
        })?;
        Ok(batch as f64 / median(clock.laps()?))
    }
}

/// Iterations that are timed: name, R1, path length.
const KINDS: [(&str, bool, bool); 3] = [("plain", false, false), ("with R1", true, false), ("with path length", false, true)];

/// What `KINDS` come to at the usual intervals of the lazy penalties.
fn amortised([plain, r1, path]: [f64; 3], hyper: &Hyper) -> f64 {
    plain + (r1 - plain) / hyper.r1_every as f64 + (path - plain) / hyper.path_every as f64
}

fn batches<'a>(images: &'a Tensor, hyper: &Hyper) -> Result<TensorBatches<'a>> {
    TensorBatches::new(images, (0..images.dim(0)).collect(), hyper.batch, 0, 0)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The paper's MNIST run.
struct Sizes {
    feedback: f64,
    models: usize,
    lambda: f64,
    adapting: f64,
    gamma: f64,
    alpha: f64,
    unlearning: f64,
    judged: f64,
}

const PAPER: Sizes = Sizes { feedback: 5000.0, models: 5, lambda: LAMBDA, adapting: 2000.0, gamma: 100.0, alpha: 0.001, unlearning: 1000.0, judged: 15_000.0 };

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
