//! `recant extrapolate`: θ_G + γ (θ_G − θ̄_N) for a list of γ, each as a file, all in one figure.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::model::read_adapted;
use super::output::summary;
use super::sample::images_of;
use crate::error::{Error, Result};
use crate::io::{atomic, image};
use crate::models::stylegan2::Generator;
use crate::ops::layout::concat;
use crate::training::checkpoint::{Checkpoint, save_generator};
use crate::training::streams;
use crate::unlearning::extrapolate::extrapolate;
use crate::unlearning::feedback::draw_latents;

#[derive(Args, Clone, Debug)]
pub(crate) struct Extrapolate {
    /// Original model
    #[arg(long)]
    model: PathBuf,
    /// Adapted models: the folder that `recant adapt` wrote, or files
    #[arg(long, required = true)]
    adapted: Vec<PathBuf>,
    /// Values of γ: 0 is the original, −1 the adapted models' mean
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, default_value = "0,0.5,1,1.5,2")]
    gamma: Vec<f64>,
    /// Images per row of the figure (one row per γ, the same latents in each)
    #[arg(long, default_value_t = 12)]
    n: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for extrapolated_γ.safetensors and extrapolated.png
    #[arg(long)]
    out: PathBuf,
}

impl Extrapolate {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        if let Some(g) = self.gamma.iter().find(|g| !g.is_finite()) {
            return Err(Error::config("--gamma", format!("{g} is not a finite number")));
        }
        if self.n == 0 {
            return Err(Error::config("--n", "must be at least 1"));
        }
        let model = Checkpoint::open(&self.model)?;
        let adapted = read_adapted(&self.adapted, &model.g_ema)?;
        atomic::create_folder(&self.out)?;
        let g = Generator::new(model.config.clone());
        let latents = draw_latents(&g, self.n, self.seed, streams::SAMPLES);
        let mut rows = Vec::new();
        for gamma in &self.gamma {
            let slab = extrapolate(&model.g_ema, &adapted, *gamma)?;
            save_generator(&self.out.join(format!("extrapolated_{gamma}.safetensors")), &model.config, &slab, &model.noise, &Default::default())?;
            rows.push(images_of(&g, &slab.to_device(&device)?, &latents, self.seed)?);
        }
        let figure = self.out.join("extrapolated.png");
        image::write_grid(&figure, &concat(&rows.iter().collect::<Vec<_>>(), 0)?, self.n)?;
        println!("γ = {:?} from top to bottom: {}", self.gamma, figure.display());
        summary(global, &serde_json::json!({"gamma": self.gamma, "figure": figure, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
        Ok(())
    }
}
