//! `recant convert`: rosinality / official `.pt` to safetensors, and back to what PyTorch loads.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::output::summary;
use crate::error::{Error, Result};
use crate::io::torch_file::{self, Item};
use crate::training::checkpoint::{Checkpoint, discriminator_state_dict, generator_state_dict, save_generator, save_state};
use crate::training::Hyper;

#[derive(Args, Clone, Debug)]
pub(crate) struct Convert {
    /// Model file of either format
    input: PathBuf,
    /// FILE.safetensors, FILE.pt or FILE.pth
    output: PathBuf,
}

impl Convert {
    pub fn run(&self, global: &Global) -> Result<()> {
        let checkpoint = Checkpoint::open(&self.input)?;
        let parts: Vec<&str> = [("g_ema", true), ("g", checkpoint.g.is_some()), ("d", checkpoint.d.is_some())]
            .into_iter()
            .filter_map(|(name, there)| there.then_some(name))
            .collect();
        let (parts, size) = (parts.join(", "), checkpoint.config.size);
        match self.output.extension().and_then(|e| e.to_str()) {
            Some("safetensors") => self.to_safetensors(checkpoint)?,
            Some("pt" | "pth") => self.to_torch(&checkpoint)?,
            _ => return Err(Error::config("output", format!("{} must end in .safetensors, .pt or .pth", self.output.display()))),
        }
        println!("{parts} at {size} px: {}", self.output.display());
        summary(global, &serde_json::json!({"networks": parts, "size": size, "out": self.output}));
        Ok(())
    }

    fn to_safetensors(&self, c: Checkpoint) -> Result<()> {
        let noise = c.noise.clone();
        if c.d.is_none() {
            return save_generator(&self.output, &c.config, &c.g_ema, &noise, &Default::default());
        }
        let state = c.into_state(&self.input, &Hyper::default(), 0)?;
        save_state(&self.output, &state, &noise, &Default::default())
    }

    /// `{g_ema, g, d}` of state_dicts, as rosinality's scripts load them.
    fn to_torch(&self, c: &Checkpoint) -> Result<()> {
        let generator = |slab| Item::state_dict(&generator_state_dict(&c.config, slab, &c.noise));
        let mut entries = vec![("g_ema".to_string(), generator(&c.g_ema))];
        entries.extend(c.g.as_ref().map(|g| ("g".to_string(), generator(g))));
        entries.extend(c.d.as_ref().map(|d| ("d".to_string(), Item::state_dict(&discriminator_state_dict(&c.config, d)))));
        torch_file::write(&self.output, &Item::Dict(entries))
    }
}
