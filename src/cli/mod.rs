//! L10: the command line. One file per command; what they share is in `run_folder` and `output`.

/// As the standard one, but a run goes on when nobody reads what it prints (`| head`), or the disk is full.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod adapt;
mod bench;
mod classifier;
mod convert;
mod demo;
mod doctor;
mod evaluate;
mod extrapolate;
mod feedback;
mod fid;
mod machine;
mod model;
mod output;
mod profile;
pub mod probes;
mod reproduce;
mod run_folder;
mod sample;
mod train;
mod unlearn;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::device::cuda::driver_is_present;
use crate::device::{Choice, Device, Precision};
use crate::error::{Error, Result};

/// Makes a pre-trained StyleGAN2 stop generating what you mark as undesired, without its training data.
#[derive(Parser)]
#[command(name = "recant", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Where to run: auto, cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto")]
    device: Choice,
    /// How convolutions multiply on a GPU (default: f32; doctor and bench go through all). With --device cpu, bf16 rounds as a
    /// GPU would, to see what that does to a result
    #[arg(long, global = true, value_enum)]
    precision: Option<Precision>,
    /// Threads on the CPU (default: all cores)
    #[arg(long, global = true)]
    threads: Option<usize>,
    /// Print a JSON summary as the last line of standard output
    #[arg(long, global = true)]
    json: bool,
}

/// Options of commands that train several networks.
#[derive(Args, Clone, Debug)]
pub(crate) struct SideBySide {
    /// GPUs to train on side by side, from that of --device on
    #[arg(long, default_value_t = 1)]
    gpus: usize,
    /// Networks at a time on each GPU: small ones fill it together
    #[arg(long, default_value_t = 1)]
    streams: usize,
}

impl Global {
    /// The device to run on. Where there is a driver that `auto` cannot use, its user is told.
    fn open(&self) -> Result<Device> {
        let (device, problem) = self.device.open(self.precision.unwrap_or_default())?;
        if let Some(problem) = problem.filter(|_| driver_is_present()) {
            eprintln!("warning: this runs on the CPU: {problem}");
        }
        Ok(device)
    }

    /// As `open`, of one of the processes that train together on a machine.
    fn open_of(&self, local: usize) -> Result<Device> {
        Global { device: self.device.of_process(local), ..self.clone() }.open()
    }

    /// So many GPUs from that of `open` on, each so many times, or the CPU.
    fn open_several(&self, SideBySide { gpus, streams }: &SideBySide) -> Result<Vec<Device>> {
        let (gpus, streams) = (*gpus, *streams);
        let first = self.open()?;
        match &first {
            _ if gpus == 0 || streams == 0 => Err(Error::config("--gpus, --streams", "must be at least 1")),
            Device::Cpu if gpus * streams > 1 => Err(Error::config("--gpus, --streams", "are for GPUs, and this runs on the CPU, which shares its threads by itself; leave them out")),
            Device::Cpu => Ok(vec![first]),
            Device::Cuda(gpu) => {
                let ordinals = (0..streams).flat_map(|_| gpu.ordinal()..gpu.ordinal() + gpus).skip(1);
                let others = ordinals.map(|n| Ok(Choice::Cuda(n).open(self.precision.unwrap_or_default())?.0)).collect::<Result<Vec<_>>>()?;
                Ok(std::iter::once(first).chain(others).collect())
            }
        }
    }

    /// The device in each precision that was asked for, or that it has; and why no GPU is used.
    fn open_all(&self) -> Result<(Vec<Device>, Option<String>)> {
        let (first, problem) = self.device.open(self.precision.unwrap_or_default())?;
        let others: &[Precision] = match (&first, self.precision) {
            (Device::Cuda(_), None) => clap::ValueEnum::value_variants(),
            _ => &[],
        };
        let others = others.iter().filter(|p| **p != Precision::default()).map(|p| Ok(self.device.open(*p)?.0)).collect::<Result<Vec<_>>>()?;
        Ok((std::iter::once(first).chain(others).collect(), problem))
    }
}

#[derive(Subcommand)]
enum Command {
    /// The whole method on the embedded MNIST model
    Demo(demo::Demo),
    /// Pre-train a StyleGAN2 (without a class: the retrained reference)
    Train(train::Train),
    /// Train and evaluate the networks that judge
    Classifier(classifier::ClassifierArgs),
    /// Draw images from a model
    Sample(sample::Sample),
    /// Sample a model and mark each image as undesired or not
    Feedback(feedback::FeedbackArgs),
    /// Stage 1: adapt the model to the negatives, k times
    Adapt(adapt::Adapt),
    /// Stage 2: train on the positives, repelled from the adapted models
    Unlearn(unlearn::Unlearn),
    /// The baseline without training: away from the adapted models, for a list of γ
    Extrapolate(extrapolate::Extrapolate),
    /// PUL, histograms and distances of a model against its original
    Evaluate(evaluate::Evaluate),
    /// The Fréchet inception distance of two of: folder, npz of images or statistics, IDX file, model
    Fid(fid::Fid),
    /// Experiments of the paper
    #[command(subcommand)]
    Reproduce(reproduce::Reproduce),
    /// PyTorch's files to safetensors and back
    Convert(convert::Convert),
    /// This machine: its devices, every kernel checked against the CPU and timed against its floor
    Doctor(doctor::Doctor),
    /// Times of kernels, training iterations and sampling
    Bench(bench::Bench),
}

/// Parses, runs, prints errors. Exit codes: 0 ok, 1 a requested check failed, 2 an error.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => {
            eprintln!("recant: {}", one_line(&e.to_string()));
            return ExitCode::from(2);
        }
        // Help and version.
        Err(e) => e.exit(),
    };
    match run(cli) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("recant: {e}");
            ExitCode::from(2)
        }
    }
}

/// The first paragraph of clap's message, without its prefix: usage is a `--help` away.
fn one_line(message: &str) -> String {
    let first: Vec<&str> = message.lines().take_while(|l| !l.trim().is_empty()).map(str::trim).collect();
    format!("{} (see --help)", first.join(" ").trim_start_matches("error: "))
}

fn run(cli: Cli) -> Result<ExitCode> {
    let threads = prepare(&cli.global)?;
    // The command itself runs on a thread of the pool: an op then starts without a hand-over between threads.
    threads.install(|| dispatch(cli))
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(c) => c.run(global),
        Command::Train(c) => c.run(global),
        Command::Classifier(c) => c.run(global),
        Command::Sample(c) => c.run(global),
        Command::Feedback(c) => c.run(global),
        Command::Adapt(c) => c.run(global),
        Command::Unlearn(c) => c.run(global),
        Command::Extrapolate(c) => c.run(global),
        Command::Evaluate(c) => c.run(global),
        Command::Fid(c) => c.run(global),
        Command::Reproduce(c) => c.run(global),
        Command::Convert(c) => c.run(global),
        Command::Bench(c) => c.run(global),
        // Its checks may fail without an error.
        Command::Doctor(c) => return c.run(global),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Sets the number of threads, listens for Ctrl-C. Devices are opened by the commands that run on them.
fn prepare(global: &Global) -> Result<rayon::ThreadPool> {
    if global.threads == Some(0) {
        return Err(Error::config("--threads", "must be at least 1"));
    }
    run_folder::listen_for_interrupt()?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(global.threads.unwrap_or(0));
    pool.build().map_err(|e| Error::config("--threads", e.to_string()))
}
