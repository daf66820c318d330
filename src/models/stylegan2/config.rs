//! Architecture of a StyleGAN2 pair.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Image channels; MNIST too is three equal ones, as in the paper.
pub const IMAGE_CHANNELS: usize = 3;

/// Beyond these a number is a mistake, and would ask for more memory than there is.
const WIDEST: usize = 1 << 14;
const DEEPEST: usize = 64;

/// Sizes of generator and discriminator.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StyleGan2Config {
    /// Image height and width: a power of two from 8.
    pub size: usize,
    /// Length of z and w.
    pub latent: usize,
    /// Layers of the mapping network.
    pub mapping_layers: usize,
    /// Channels by resolution: 4, 8, … `size`.
    pub channels: BTreeMap<usize, usize>,
}

impl StyleGan2Config {
    /// The paper's table with channel multiplier 2: 512 up to 64 px, then halved at each resolution.
    pub fn full_width(size: usize, latent: usize) -> Result<StyleGan2Config> {
        let channels = resolutions(size).map(|r| (r, if r <= 64 { 512 } else { 512 * 64 / r })).collect();
        StyleGan2Config { size, latent, mapping_layers: 8, channels }.checked()
    }

    /// The paper's MNIST model: 32 px, latent 128.
    pub fn mnist() -> StyleGan2Config {
        StyleGan2Config::full_width(32, 128).expect("a valid table")
    }

    /// The paper's CelebA-HQ and AFHQ model: 256 px, latent 512.
    pub fn config_f_256() -> StyleGan2Config {
        StyleGan2Config::full_width(256, 512).expect("a valid table")
    }

    /// Parses `4:64,8:64,16:48,32:32`.
    pub fn with_channels(size: usize, latent: usize, mapping_layers: usize, table: &str) -> Result<StyleGan2Config> {
        let bad = || Error::config("--channels", format!("'{table}' is not a list like 4:64,8:64,16:48,32:32"));
        let mut channels = BTreeMap::new();
        for entry in table.split([',', ' ']).filter(|e| !e.is_empty()) {
            let (r, c) = entry.split_once(':').ok_or_else(bad)?;
            channels.insert(r.trim().parse().map_err(|_| bad())?, c.trim().parse().map_err(|_| bad())?);
        }
        StyleGan2Config { size, latent, mapping_layers, channels }.checked()
    }

    /// The same table if every size is usable.
    pub fn checked(self) -> Result<StyleGan2Config> {
        if !self.size.is_power_of_two() || self.size < 8 || self.size > 4096 {
            return Err(Error::config("--size", format!("{} is not a power of two from 8 to 4096", self.size)));
        }
        if !(1..=WIDEST).contains(&self.latent) || !(1..=DEEPEST).contains(&self.mapping_layers) {
            return Err(Error::config("--latent, --mapping-layers", format!("must be from 1 to {WIDEST}, and from 1 to {DEEPEST}")));
        }
        let wanted: Vec<usize> = resolutions(self.size).collect();
        if !self.channels.keys().copied().eq(wanted.iter().copied()) || self.channels.values().any(|c| !(1..=WIDEST).contains(c)) {
            return Err(Error::config("--channels", format!("needs one number from 1 to {WIDEST} for each of {wanted:?}")));
        }
        Ok(self)
    }

    /// Channels at a resolution.
    pub fn channels_at(&self, resolution: usize) -> usize {
        self.channels[&resolution]
    }

    /// Resolutions above 4: one up-sampling block each.
    pub fn blocks(&self) -> impl Iterator<Item = usize> {
        resolutions(self.size).skip(1)
    }

    /// Number of layers that take a noise map: 2 (log2 size − 2) + 1.
    pub fn noise_layers(&self) -> usize {
        2 * (self.size.ilog2() as usize - 2) + 1
    }

    /// Side of noise map `k`: 2^((k + 5) / 2), rounded down.
    pub fn noise_size(&self, k: usize) -> usize {
        1 << ((k + 5) / 2)
    }

    /// Number of style inputs: 2 log2 size − 2.
    pub fn style_layers(&self) -> usize {
        2 * self.size.ilog2() as usize - 2
    }

    /// Reads the architecture off a generator's tensors (names without prefix, PyTorch's shapes).
    pub fn infer(generator: &BTreeMap<String, Tensor>) -> std::result::Result<StyleGan2Config, String> {
        let shape = |name: &str| generator.get(name).map(|t| t.shape().to_vec()).ok_or(format!("no tensor {name}: not a StyleGAN2 generator"));
        let latent = *shape("style.1.weight")?.first().ok_or("style.1.weight has no dimensions")?;
        let mapping_layers = (1..).take_while(|i| generator.contains_key(&format!("style.{i}.weight"))).count();
        let constant = shape("input.input")?;
        let mut channels = BTreeMap::from([(4, *constant.get(1).ok_or("input.input must have rank 4")?)]);
        let mut size = 4;
        for n in (0..).step_by(2) {
            let name = format!("convs.{n}.conv.weight");
            if !generator.contains_key(&name) {
                break;
            }
            size *= 2;
            if size > 4096 {
                return Err("more up-sampling blocks than 4096 px need".into());
            }
            channels.insert(size, *shape(&name)?.get(1).ok_or(format!("{name} must have rank 5"))?);
        }
        StyleGan2Config { size, latent, mapping_layers, channels }.checked().map_err(|e| e.to_string())
    }
}

fn resolutions(size: usize) -> impl Iterator<Item = usize> {
    (2..=size.max(4).ilog2()).map(|l| 1 << l)
}
