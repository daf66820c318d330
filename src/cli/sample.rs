//! `recant sample`: draws images from a model.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::output::{Progress, summary};
use super::{Global, run_folder};
use crate::autograd::Var;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::npz;
use crate::io::{atomic, image};
use crate::models::stylegan2::{Generator, StyleGan2Config, Styles};
use crate::nn::ParamSlab;
use crate::ops::layout;
use crate::ops::random::Random;
use crate::tensor::{Tensor, all_on};
use crate::training::checkpoint::Checkpoint;
use crate::training::streams;
use crate::unlearning::feedback::{draw_latents, generate, sample_batch};

/// Which of a checkpoint's generators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Weights {
    /// The running mean: what is evaluated.
    Ema,
    /// The raw generator.
    Raw,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Sample {
    /// Model file: safetensors, .pt or .pth
    #[arg(long)]
    model: PathBuf,
    /// Which generator of a training checkpoint
    #[arg(long, value_enum, default_value = "ema")]
    weights: Weights,
    /// Number of images
    #[arg(long, default_value_t = 64)]
    n: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Latents [n, latent] instead of random ones (.npy)
    #[arg(long)]
    latents: Option<PathBuf>,
    /// Second latents for style mixing (.npy), with --crossover
    #[arg(long, requires = "crossover", requires = "latents")]
    latents2: Option<PathBuf>,
    /// First layer that takes the second latents
    #[arg(long, requires = "latents2")]
    crossover: Option<usize>,
    /// Noise maps: random, buffers (the model's own), or an npz with noise_0 …
    #[arg(long, default_value = "random")]
    noise: String,
    /// Pull styles towards their mean: 1 is none
    #[arg(long, default_value_t = 1.0)]
    truncation: f64,
    /// The mean style (.npy, [latent] or [1, latent]) instead of one of 4096 samples
    #[arg(long, requires = "truncation")]
    truncation_latent: Option<PathBuf>,
    /// Columns of a PNG grid (default: about a square)
    #[arg(long)]
    columns: Option<usize>,
    /// FILE.png (a grid) or FILE.npz (images, f32 [n, 3, H, W], unclamped)
    #[arg(long)]
    out: PathBuf,
}

/// Where noise maps come from.
enum Noise {
    Random(Random),
    Fixed(Vec<Tensor>),
}

impl Noise {
    /// Maps for images `at .. at + n`.
    fn maps(&mut self, g: &Generator, at: usize, n: usize) -> Result<Vec<Tensor>> {
        match self {
            Noise::Random(rng) => Ok(g.draw_noise(n, rng)),
            Noise::Fixed(maps) => maps.iter().map(|m| if m.dim(0) == 1 { Ok(m.clone()) } else { m.rows(at, n) }).collect(),
        }
    }
}

/// NHWC to the NCHW of files.
pub(super) fn to_nchw(images: &Tensor) -> Result<Tensor> {
    layout::permute(images, &[0, 3, 1, 2])
}

/// Columns and rows of a training run's samples: about a thousand pixels, and no more than ten.
pub(super) fn columns(config: &StyleGan2Config) -> usize {
    (1024 / config.size).clamp(1, 10)
}

/// A grid of `n` images of a generator, the same ones for a seed.
pub(super) fn write_grid(g: &Generator, params: &ParamSlab, n: usize, columns: usize, seed: u64, path: &Path) -> Result<()> {
    let latents = draw_latents(g, n, seed, streams::SAMPLES);
    write_grid_of(g, params, &latents, columns, seed, path)
}

/// A grid of the images of `latents`.
pub(super) fn write_grid_of(g: &Generator, params: &ParamSlab, latents: &Tensor, columns: usize, seed: u64, path: &Path) -> Result<()> {
    let images = images_of(g, params, latents, seed)?;
    if let Some(folder) = path.parent() {
        atomic::create_folder(folder)?;
    }
    image::write_grid(path, &images, columns)
}

/// All images of `latents`; noise from `seed`.
pub(super) fn images_of(g: &Generator, params: &ParamSlab, latents: &Tensor, seed: u64) -> Result<Tensor> {
    let mut parts = Vec::new();
    let mut rng = Random { counter: 1 << 40, ..Random::new(seed, streams::SAMPLES) };
    generate(g, params, latents, &mut rng, &mut |_, images, _| {
        parts.push(images.to_device(&Device::Cpu)?);
        Ok(())
    })?;
    layout::concat(&parts.iter().collect::<Vec<_>>(), 0)
}

fn read_latents(path: &Path, latent: usize) -> Result<Tensor> {
    let t = npz::read_npy(path)?.to_tensor().to_dtype(crate::tensor::DType::F32);
    let t = if t.rank() == 1 { t.reshape(&[1, t.len()])? } else { t };
    if t.rank() != 2 || t.dim(1) != latent || t.dim(0) == 0 {
        return Err(Error::file(path, format!("has shape {:?}; this model takes latents [n, {latent}]", t.shape())));
    }
    Ok(t)
}

impl Sample {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        let kind = self.out.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        if kind != "png" && kind != "npz" {
            return Err(Error::config("--out", format!("{} must end in .png or .npz", self.out.display())));
        }
        if !(self.truncation.is_finite() && self.truncation >= 0.0) {
            return Err(Error::config("--truncation", format!("{} must be a number ≥ 0", self.truncation)));
        }
        let model = Checkpoint::open(&self.model)?;
        let g = Generator::new(model.config.clone());
        let slab = match self.weights {
            Weights::Ema => &model.g_ema,
            Weights::Raw => model.g.as_ref().ok_or_else(|| Error::file(&self.model, "holds no raw generator (g); use --weights ema"))?,
        };
        let (n, mut next) = self.draw(&g, &slab.to_device(&device)?, &model.noise)?;
        let size = g.config().size;
        if kind == "png" {
            let columns = self.columns.unwrap_or((n as f64).sqrt().ceil() as usize).max(1);
            image::write_grid_streamed(&self.out, n, [size; 2], columns, &mut next)?;
        } else {
            npz::write_streamed(&self.out, "images", &[n, 3, size, size], &mut || to_nchw(&next()?))?;
        }
        println!("{n} images of {size} px: {}", self.out.display());
        summary(global, &serde_json::json!({"images": n, "out": self.out, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
        Ok(())
    }

    /// How many images, and what makes them batch by batch.
    fn draw<'a>(&self, g: &'a Generator, slab: &ParamSlab, buffers: &[Tensor]) -> Result<(usize, impl FnMut() -> Result<Tensor> + use<'a>)> {
        let latent = g.config().latent;
        let z1 = match &self.latents {
            Some(path) => read_latents(path, latent)?,
            None if self.n == 0 => return Err(Error::config("--n", "must be at least 1")),
            None => draw_latents(g, self.n, self.seed, streams::SAMPLES),
        };
        let z2 = self.latents2.as_ref().map(|p| read_latents(p, latent)).transpose()?;
        if z2.as_ref().is_some_and(|z| z.dim(0) != z1.dim(0)) {
            return Err(Error::config("--latents2", "must hold as many latents as --latents"));
        }
        let layers = g.config().style_layers();
        let crossover = self.crossover.unwrap_or(layers);
        if self.crossover.is_some_and(|c| c == 0 || c > layers) {
            return Err(Error::config("--crossover", format!("must be from 1 to {layers}")));
        }
        let p = slab.constants();
        let device = p.device();
        let centre = self.centre(g, slab)?.map(|c| c.to_device(&device)).transpose()?;
        let n = z1.dim(0);
        let mut noise = self.noise_source(g, buffers, n)?;
        let (mut at, truncation, batch) = (0, self.truncation, sample_batch(g.config()));
        let mut progress = Progress::new("sample", 0, n as u64);
        let next = move || {
            run_folder::stop_if_interrupted()?;
            let count = batch.min(n - at);
            let first = z1.rows(at, count)?;
            let styles = match &z2 {
                Some(z2) => Styles::Mixed { z1: first, z2: z2.rows(at, count)?, crossover },
                None => Styles::One(first),
            };
            let mut ws: Vec<Var> = g.styles(&p, &styles.to_device(&device)?)?;
            if let Some(centre) = &centre {
                ws = Generator::truncate(&ws, centre, truncation)?;
            }
            let maps = all_on(&device, &noise.maps(g, at, count)?)?;
            let images = g.synthesis(&p, &ws, &maps)?.value().to_device(&Device::Cpu)?;
            at += count;
            progress.at(at as u64, String::new);
            Ok(images)
        };
        Ok((n, next))
    }

    fn centre(&self, g: &Generator, slab: &ParamSlab) -> Result<Option<Tensor>> {
        if self.truncation == 1.0 {
            return Ok(None);
        }
        let centre = match &self.truncation_latent {
            Some(path) => read_latents(path, g.config().latent)?.rows(0, 1)?,
            None => g.mean_latent(&slab.constants(), 4096, &mut Random::new(self.seed, streams::SAMPLES + 100))?,
        };
        Ok(Some(centre))
    }

    fn noise_source(&self, g: &Generator, buffers: &[Tensor], n: usize) -> Result<Noise> {
        match self.noise.as_str() {
            "random" => Ok(Noise::Random(Random { counter: 1 << 40, ..Random::new(self.seed, streams::SAMPLES) })),
            "buffers" => Ok(Noise::Fixed(buffers.to_vec())),
            file => {
                let arrays = npz::read(file)?;
                let map = |k: usize| {
                    let (name, r) = (format!("noise_{k}"), g.config().noise_size(k));
                    let array = arrays.get(&name).ok_or_else(|| Error::file(file, format!("lacks {name}; this model has {} noise layers", g.config().noise_layers())))?;
                    let fits = array.shape == [n, 1, r, r] || array.shape == [1, 1, r, r];
                    if !fits {
                        return Err(Error::file(file, format!("{name} has shape {:?}; [{n} or 1, 1, {r}, {r}] is needed", array.shape)));
                    }
                    array.to_tensor().to_dtype(crate::tensor::DType::F32).reshape(&[array.shape[0], r, r, 1])
                };
                Ok(Noise::Fixed((0..g.config().noise_layers()).map(map).collect::<Result<_>>()?))
            }
        }
    }
}
