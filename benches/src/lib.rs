//! What the benches and the programs of `src/bin` share: the measured networks, timing, one line of JSON.

use std::time::Instant;

use recant::models::stylegan2::{Generator, StyleGan2Config};
use recant::nn::{AdamState, ParamSlab};
use recant::ops::optimizer::{Pull, RepulsionLoss, Resident, Slabs, adam_step};
use recant::ops::random::Random;
use recant::tensor::Tensor;
use recant::training::{GanState, Hyper, NoRegulariser, Trainer};

/// The measured widths, by the names that `peer/stylegan2.py` uses.
pub const WIDTHS: [&str; 2] = ["demo", "full"];

/// The architecture of a measured width.
pub fn config(width: &str) -> StyleGan2Config {
    match width {
        "demo" => StyleGan2Config::with_channels(32, 64, 4, "4:64,8:64,16:48,32:32").expect("a valid table"),
        "full" => StyleGan2Config::mnist(),
        other => panic!("the width {other} is not one of {WIDTHS:?}"),
    }
}

/// Median of the seconds of `repeats` calls, after one that is not counted.
pub fn seconds(repeats: usize, mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..repeats.max(1))
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The largest resident size of this process so far; 0 where the system does not say (only Linux does, here).
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Options `--name value`, each with its default; any other is refused.
pub struct Options(std::collections::BTreeMap<String, String>);

impl Options {
    pub fn parse(defaults: &[(&str, &str)]) -> Options {
        let mut values: std::collections::BTreeMap<String, String> = defaults.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let name = name.trim_start_matches("--").to_string();
            match (values.contains_key(&name), args.next()) {
                (true, Some(value)) => values.insert(name, value),
                _ => {
                    eprintln!("--{name}: options are {}, each with a value", defaults.iter().map(|d| format!("--{}", d.0)).collect::<Vec<_>>().join(" "));
                    std::process::exit(2);
                }
            };
        }
        Options(values)
    }

    pub fn text(&self, name: &str) -> &str {
        &self.0[name]
    }

    pub fn number(&self, name: &str) -> usize {
        self.0[name].parse().unwrap_or_else(|_| {
            eprintln!("--{name} {}: not a number", self.0[name]);
            std::process::exit(2)
        })
    }

    /// Runs `program` on a thread of the pool that `--threads` asks for, as the command line does: an op then starts
    /// without a hand-over between threads.
    pub fn on_threads(&self, program: impl FnOnce() + Send) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.number("threads")).build().expect("threads");
        pool.install(program);
    }
}

/// Prints one JSON object with what every line of these programs has. `values` is the rest, without braces.
pub fn show(threads: usize, values: &str) {
    println!(r#"{{"program": "recant", "version": "{}", "machine": "{}", "threads": {threads}, {values}}}"#, env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
}

/// A pair in training on random images.
pub struct Iteration {
    trainer: Trainer,
    state: GanState,
    real: Tensor,
    hyper: Hyper,
}

impl Iteration {
    pub fn new(config: StyleGan2Config, hyper: Hyper) -> Iteration {
        let state = GanState::init(&config, &hyper, 0);
        let real = Random::new(0, 0).normal(&[hyper.batch, config.size, config.size, 3]);
        Iteration { trainer: Trainer::new(&config, hyper.clone()), state, real, hyper }
    }

    /// One iteration, drawing its random inputs included, with or without each lazy regulariser.
    pub fn step(&mut self, r1: bool, path: bool) {
        self.trainer.hyper.r1_weight = if r1 { self.hyper.r1_weight } else { 0.0 };
        self.trainer.hyper.path_weight = if path { self.hyper.path_weight } else { 0.0 };
        // At iteration 0 every regulariser with a weight fires.
        self.state.iteration = 0;
        let inputs = self.trainer.draw_inputs(&mut self.state, &self.real).expect("inputs of an iteration");
        self.trainer.iteration(&mut self.state, &inputs, &mut NoRegulariser).expect("a training iteration");
    }

    /// Parameters of generator and discriminator.
    pub fn parameters(&self) -> [usize; 2] {
        [self.state.g.layout().len(), self.state.d.layout().len()]
    }
}

/// What one optimiser pass over a generator's slab reads and writes.
pub struct SlabPass {
    params: ParamSlab,
    ema: ParamSlab,
    anchor: ParamSlab,
    fisher: ParamSlab,
    optim: AdamState,
    grads: Vec<Tensor>,
    resident: Resident,
}

/// The measured passes; each is Adam and EMA with the gradient of a regulariser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Ewc,
    Repulsion,
}

impl Pass {
    pub const ALL: [Pass; 2] = [Pass::Ewc, Pass::Repulsion];

    pub fn name(self) -> &'static str {
        match self {
            Pass::Ewc => "ewc",
            Pass::Repulsion => "repulsion",
        }
    }

    /// Bytes per parameter that must move: θ, v and EMA read and written, gradient and anchor (or centroid) read, and
    /// for EWC the Fisher read.
    pub fn bytes(self) -> usize {
        match self {
            Pass::Ewc => 4 * 9,
            Pass::Repulsion => 4 * 8,
        }
    }
}

impl SlabPass {
    pub fn new(config: StyleGan2Config) -> SlabPass {
        let g = Generator::new(config);
        let mut rng = Random::new(0, 0);
        let params = ParamSlab::init(g.layout(), &mut rng);
        let fisher = ParamSlab::from_values(g.layout(), rng.uniform(&[g.layout().len()]).to_vec()).expect("one value per parameter");
        let grads = g.layout().segments().iter().map(|s| rng.normal(&s.shape)).collect();
        let copy = || params.deep_clone().expect("a slab on the host");
        SlabPass { ema: copy(), anchor: copy(), fisher, optim: AdamState::new(g.layout(), Hyper::default().generator_adam()), grads, resident: Resident::default(), params }
    }

    pub fn parameters(&self) -> usize {
        self.params.layout().len()
    }

    pub fn step(&mut self, pass: Pass) -> f64 {
        let offsets = self.params.layout().offsets();
        let weights = vec![1.0; offsets.len()];
        let pull = match pass {
            Pass::Ewc => Pull::Ewc { anchor: self.anchor.values(), fisher: self.fisher.values(), lambda: 1.0 },
            Pass::Repulsion => Pull::Centroid {
                centroid: self.anchor.values(),
                weights: &weights,
                loss: RepulsionLoss::Nl2 { gamma: 1e-3 },
                spread: 0.0,
                distance: 0.0,
                gradient: true,
            },
        };
        self.optim.step += 1;
        let slabs = Slabs {
            params: self.params.values_mut(),
            first_moment: None,
            second_moment: self.optim.second_moment.values_mut(),
            ema: Some((self.ema.values_mut(), 0.998)),
        };
        let sum = adam_step(slabs, &self.grads, &offsets, pull, self.optim.adam, self.optim.step, &mut self.resident);
        sum.expect("one optimiser pass").map_or(0.0, |sum| sum.read().expect("a number on the host"))
    }
}
