//! Feedback: samples of the EMA generator with their latents, each marked as undesired (negative) or not (positive).

use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::stylegan2::{Generator, Styles};
use crate::nn::ParamSlab;
use crate::ops::layout;
use crate::ops::random::Random;
use crate::tensor::{Tensor, all_on};
use crate::training::streams;

/// Fewer negatives than this and stage 1 sees the same few images again and again (the official MNIST run had ~20).
pub const FEW_NEGATIVES: usize = 100;

/// Images are made this many at a time: enough to fill the machine, and bounded memory.
pub const SAMPLE_BATCH: usize = 64;

/// Marked samples.
#[derive(Clone, Debug)]
pub struct Feedback {
    /// `[n, H, W, 3]`, as the generator made them (unclamped).
    pub images: Tensor,
    /// `[n, latent]`
    pub latents: Tensor,
    pub negative: Vec<bool>,
}

impl Feedback {
    pub fn negatives(&self) -> Vec<usize> {
        (0..self.negative.len()).filter(|i| self.negative[*i]).collect()
    }

    pub fn positives(&self) -> Vec<usize> {
        (0..self.negative.len()).filter(|i| !self.negative[*i]).collect()
    }
}

/// Calls `each(first index, images, latents)` for `latents` in order, a batch at a time; images are where `params` are. Noise is fresh per batch, from
/// `rng`; one z per image, no truncation.
pub fn generate(g: &Generator, params: &ParamSlab, latents: &Tensor, rng: &mut Random, each: &mut dyn FnMut(usize, &Tensor, &Tensor) -> Result<()>) -> Result<()> {
    let p = params.constants();
    let device = p.device();
    let (mut at, n) = (0, latents.dim(0));
    while at < n {
        let count = SAMPLE_BATCH.min(n - at);
        let z = latents.rows(at, count)?;
        let noise = all_on(&device, &g.draw_noise(count, rng))?;
        let images = g.forward(&p, &Styles::One(z.to_device(&device)?), &noise)?;
        each(at, images.value(), &z)?;
        at += count;
    }
    Ok(())
}

/// Draws `n` latents.
pub fn draw_latents(g: &Generator, n: usize, seed: u64, stream: u64) -> Tensor {
    Random::new(seed, stream).normal(&[n, g.config().latent])
}

/// Samples `n` images of the generator and marks each with `judge` (a batch of images -> one mark per image).
pub fn collect(g: &Generator, params: &ParamSlab, n: usize, seed: u64, judge: &mut dyn FnMut(&Tensor) -> Result<Vec<bool>>, progress: &mut dyn FnMut(usize)) -> Result<Feedback> {
    if n == 0 {
        return Err(Error::config("--n", "needs at least one sample"));
    }
    let latents = draw_latents(g, n, seed, streams::FEEDBACK);
    let (mut parts, mut negative) = (Vec::new(), Vec::with_capacity(n));
    let mut rng = Random { counter: 1 << 40, ..Random::new(seed, streams::FEEDBACK) };
    generate(g, params, &latents, &mut rng, &mut |at, images, _| {
        negative.extend(judge(images)?);
        parts.push(images.to_device(&Device::Cpu)?);
        progress(at + images.dim(0));
        Ok(())
    })?;
    let images = layout::concat(&parts.iter().collect::<Vec<_>>(), 0)?;
    Ok(Feedback { images, latents, negative })
}
