//! `recant convert`: rosinality / official `.pt` to safetensors, and back to what PyTorch loads.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::output::{refuse_overwriting, summary};
use crate::error::{Error, Result};
use crate::io::torch_file::{self, Item};
use crate::nn::AdamState;
use crate::tensor::Tensor;
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
        refuse_overwriting(&self.output, &[&self.input])?;
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

    /// `{g_ema, g, d, g_optim, d_optim}` of state_dicts, as rosinality's scripts load them.
    fn to_torch(&self, c: &Checkpoint) -> Result<()> {
        let generator = |slab| Item::state_dict(&generator_state_dict(&c.config, slab, &c.noise));
        let mut entries = vec![("g_ema".to_string(), generator(&c.g_ema))];
        entries.extend(c.g.as_ref().map(|g| ("g".to_string(), generator(g))));
        entries.extend(c.d.as_ref().map(|d| ("d".to_string(), Item::state_dict(&discriminator_state_dict(&c.config, d)))));
        entries.extend(c.g_optim.as_ref().map(|o| ("g_optim".to_string(), adam_item(o))));
        entries.extend(c.d_optim.as_ref().map(|o| ("d_optim".to_string(), adam_item(o))));
        torch_file::write(&self.output, &Item::Dict(entries))
    }
}

/// The state_dict of PyTorch's Adam. With β1 = 0 its `exp_avg` is the last gradient, which no step reads: zeros.
fn adam_item(o: &AdamState) -> Item {
    let moments = o.second_moment.to_torch();
    let segments = o.second_moment.layout().segments();
    let state = segments.iter().enumerate().map(|(i, s)| {
        let v = &moments[&s.name];
        let entry = [
            ("step", Item::Float(o.step as f64)),
            ("exp_avg", Item::Tensor(Tensor::zeros(v.shape(), v.dtype()))),
            ("exp_avg_sq", Item::Tensor(v.clone())),
        ];
        (i as i64, dict(entry))
    });
    let group = [
        ("lr", Item::Float(o.adam.lr)),
        ("betas", Item::List(vec![Item::Float(o.adam.beta1), Item::Float(o.adam.beta2)])),
        ("eps", Item::Float(o.adam.eps)),
        ("weight_decay", Item::Float(0.0)),
        ("amsgrad", Item::Bool(false)),
        ("params", Item::List((0..segments.len() as i64).map(Item::Int).collect())),
    ];
    dict([("state", Item::Numbered(state.collect())), ("param_groups", Item::List(vec![dict(group)]))])
}

fn dict<const N: usize>(entries: [(&str, Item); N]) -> Item {
    Item::Dict(entries.into_iter().map(|(name, item)| (name.to_string(), item)).collect())
}
