//! Feedback: samples of the EMA generator with their latents, each marked as undesired (negative) or not (positive).

use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::stylegan2::{Generator, StyleGan2Config, Styles};
use crate::nn::ParamSlab;
use crate::ops::layout;
use crate::ops::random::Random;
use crate::tensor::{Tensor, all_on};
use crate::training::{goes_in_halves, streams};

/// Fewer negatives than this and stage 1 sees the same few images again and again (the official MNIST run had ~20).
pub const FEW_NEGATIVES: usize = 100;

/// The largest map of a batch of samples takes no more bytes than this, and a batch no more images.
const MAP_BYTES: usize = 512 << 20;
const SAMPLE_BATCH: usize = 64;

/// Images that are made at a time: enough to fill the machine, and bounded memory. A power of two that depends on the
/// network alone, so that the same seed means the same noise.
pub fn sample_batch(config: &StyleGan2Config) -> usize {
    let largest = config.channels.iter().map(|(r, c)| 4 * r * r * c).max().unwrap_or(1);
    let fitting = (MAP_BYTES / largest).clamp(1, SAMPLE_BATCH);
    1 << fitting.ilog2()
}

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
    let (mut at, n, batch) = (0, latents.dim(0), sample_batch(g.config()));
    while at < n {
        let count = batch.min(n - at);
        let z = latents.rows(at, count)?;
        let (on_device, noise) = (z.to_device(&device)?, all_on(&device, &g.draw_noise(count, rng))?);
        let made = |from: usize, count: usize| {
            let noise = noise.iter().map(|map| map.rows(from, count)).collect::<Result<Vec<_>>>()?;
            Ok(g.forward(&p, &Styles::One(on_device.rows(from, count)?), &noise)?.value().clone())
        };
        let images = match goes_in_halves(g.config(), &device) && count > 1 {
            true => {
                let (first, second) = rayon::join(|| made(0, count / 2), || made(count / 2, count - count / 2));
                layout::concat(&[&first?, &second?], 0)?
            }
            false => made(0, count)?,
        };
        each(at, &images, &z)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 256² × 128 channels of f32 are 32 MiB.
    #[test]
    fn large_images_come_in_small_batches() {
        assert_eq!(sample_batch(&StyleGan2Config::mnist()), 64);
        assert_eq!(sample_batch(&StyleGan2Config::config_f_256()), 16);
    }
}
