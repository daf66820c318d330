//! The generator: mapping network and synthesis (method: rosinality model.py, `fused_modconv=False` form: styles scale
//! the input of a shared convolution, demodulation scales its output).

use std::sync::Arc;

use super::as_activation;
use super::config::{IMAGE_CHANNELS, StyleGan2Config};
use crate::autograd::{
    Scales, Var, add, alias, cast, channel_dot, conv2d_act, conv2d_transpose, matmul, power, reshape, scale, slice, square, sub, sum_to, upfirdn2d, upfirdn2d_act,
};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::layers::{equal_linear, pixel_norm};
use crate::nn::params::{Init, Layout, Params};
use crate::ops::bias_act::{Activation, Epilogue};
use crate::ops::conv2d::Conv2d;
use crate::ops::elementwise::Power;
use crate::ops::layout::{concat, gather_rows};
use crate::ops::matmul::Read;
use crate::ops::random::Random;
use crate::ops::upfirdn2d::{RESAMPLE_TAPS, Upfirdn2d};
use crate::tensor::{DType, Tensor};

const DEMOD_EPS: f64 = 1e-8;
/// Learning-rate multiplier of the mapping network.
const MAPPING_LR: f64 = 0.01;

/// Latents of a batch before mapping.
#[derive(Clone, Debug)]
pub enum Styles {
    /// One z for all layers, `[N, latent]`.
    One(Tensor),
    /// Style mixing: layers below `crossover` take `z1`, the others `z2`.
    Mixed { z1: Tensor, z2: Tensor, crossover: usize },
    /// The same with the crossover as data, `[layers, 2]`: `[1, 0]` for a layer that takes `z1`, `[0, 1]` for one that
    /// takes `z2`. Work that is recorded once mixes otherwise each time.
    Chosen { z1: Tensor, z2: Tensor, choice: Tensor },
}

impl Styles {
    /// The same latents on another device.
    pub fn to_device(&self, device: &Device) -> Result<Styles> {
        Ok(match self {
            Styles::One(z) => Styles::One(z.to_device(device)?),
            Styles::Mixed { z1, z2, crossover } => Styles::Mixed { z1: z1.to_device(device)?, z2: z2.to_device(device)?, crossover: *crossover },
            Styles::Chosen { z1, z2, choice } => {
                Styles::Chosen { z1: z1.to_device(device)?, z2: z2.to_device(device)?, choice: choice.to_device(device)? }
            }
        })
    }

    /// Those of some of the images.
    pub fn rows(&self, indices: &[usize]) -> Result<Styles> {
        Ok(match self {
            Styles::One(z) => Styles::One(gather_rows(z, indices)?),
            Styles::Mixed { z1, z2, crossover } => Styles::Mixed { z1: gather_rows(z1, indices)?, z2: gather_rows(z2, indices)?, crossover: *crossover },
            Styles::Chosen { z1, z2, choice } => {
                Styles::Chosen { z1: gather_rows(z1, indices)?, z2: gather_rows(z2, indices)?, choice: choice.clone() }
            }
        })
    }
}

/// Architecture and parameter table of a generator.
#[derive(Clone)]
pub struct Generator {
    config: StyleGan2Config,
    layout: Arc<Layout>,
}

/// One modulated convolution of the parameter table.
struct Modulated<'a> {
    weight: &'a Var,
    modulation_weight: &'a Var,
    modulation_bias: &'a Var,
}

fn modulated<'a>(p: &'a Params, prefix: &str) -> Modulated<'a> {
    Modulated {
        weight: p.get(&format!("{prefix}.weight")),
        modulation_weight: p.get(&format!("{prefix}.modulation.weight")),
        modulation_bias: p.get(&format!("{prefix}.modulation.bias")),
    }
}

impl Modulated<'_> {
    /// The style times the weight's 1/√fan_in, `[N, C_in]`: equalised learning rate costs no pass over the weight.
    fn input_scale(&self, w: &Var, fan_in: usize) -> Result<Var> {
        let scaled = Activation { gain: 1.0 / (fan_in as f64).sqrt(), ..Activation::LINEAR };
        equal_linear(w, self.modulation_weight, self.modulation_bias, 1.0, scaled)
    }

    /// `rsqrt(Σ_i a² Σ_k w² + eps)`, `[N, C_out]`; `energy` is `Σ_k w²` with `C_out` where `read` expects it.
    fn demodulation(a: &Var, energy: &Var, read: Read) -> Result<Var> {
        power(&matmul(&square(a)?, Read::Plain, energy, read)?, Power { gain: 1.0, shift: DEMOD_EPS, exponent: -0.5 })
    }

    /// `Σ_k w²` of a weight `[D, k_h, k_w, E]` as `[D, E]`.
    fn energy(&self) -> Result<Var> {
        channel_dot(self.weight, self.weight)
    }

    /// 3×3 with demodulation, same size, and what follows. `x` `[N, H, W, C_in]`, `w` `[N, latent]`.
    fn same(&self, x: &Var, w: &Var, then: Epilogue<Var>) -> Result<Var> {
        let (kh, kw, ci) = (self.weight.dim(1), self.weight.dim(2), self.weight.dim(3));
        let a = self.input_scale(w, kh * kw * ci)?;
        let b = Self::demodulation(&a, &self.energy()?, Read::Transposed)?;
        conv2d_act(x, self.weight, Scales { input: Some(&a), output: Some(&b) }, Conv2d::square(1, kh / 2), then)
    }

    /// 3×3 transposed with stride 2, then the blur: twice the size, and what follows. Its weight is kept as
    /// `[C_in, k, k, C_out]`.
    fn up(&self, x: &Var, w: &Var, then: Epilogue<Var>) -> Result<Var> {
        let (ci, kh, kw) = (self.weight.dim(0), self.weight.dim(1), self.weight.dim(2));
        let a = self.input_scale(w, kh * kw * ci)?;
        let b = Self::demodulation(&a, &self.energy()?, Read::Plain)?;
        let size = [2 * (x.dim(1) - 1) + kh, 2 * (x.dim(2) - 1) + kw];
        // The transposed convolution reads `x` from the form's `g` side, so the style scales that side.
        let scales = Scales { input: Some(&b), output: Some(&a) };
        let y = conv2d_transpose(x, self.weight, scales, Conv2d::square(2, 0), size)?;
        upfirdn2d_act(&y, &Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [1, 1], 4.0), then)
    }

    /// 1×1 without demodulation, and a bias. Images are sums of these, in the parameters' type.
    fn to_rgb(&self, x: &Var, w: &Var, bias: &Var) -> Result<Var> {
        let a = self.input_scale(w, self.weight.dim(3))?;
        let then = Epilogue { bias: Some(bias), noise: None, act: Activation::LINEAR };
        let rgb = conv2d_act(x, self.weight, Scales { input: Some(&a), output: None }, Conv2d::square(1, 0), then)?;
        cast(&rgb, self.weight.dtype())
    }
}

impl Generator {
    pub fn new(config: StyleGan2Config) -> Generator {
        let layout = Arc::new(table(&config));
        Generator { config, layout }
    }

    pub fn config(&self) -> &StyleGan2Config {
        &self.config
    }

    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The segments that the official Fisher estimate covers: `convs.*` (the styled convolutions from 8×8 upward).
    pub fn is_conv(name: &str) -> bool {
        name.starts_with("convs.")
    }

    /// `z` `[N, latent]` -> `w` `[N, latent]`.
    pub fn mapping(&self, p: &Params, z: &Var) -> Result<Var> {
        if z.shape().len() != 2 || z.dim(1) != self.config.latent {
            return Err(Error::shape("mapping", format!("latents {:?} must be [N, {}]", z.shape(), self.config.latent)));
        }
        let mut x = pixel_norm(z)?;
        for i in 1..=self.config.mapping_layers {
            let (w, b) = (p.get(&format!("style.{i}.weight")), p.get(&format!("style.{i}.bias")));
            x = equal_linear(&x, w, b, MAPPING_LR, Activation::LEAKY_RELU)?;
        }
        Ok(x)
    }

    /// `mapping` of two batches of latents in one pass, `[2 N, latent]`.
    fn mapping_of_both(&self, p: &Params, z1: &Tensor, z2: &Tensor) -> Result<Var> {
        self.mapping(p, &Var::constant(concat(&[z1, z2], 0)?))
    }

    /// The style of each layer, `style_layers()` entries of `[N, latent]`, each its own node: gradients by layer.
    pub fn styles(&self, p: &Params, styles: &Styles) -> Result<Vec<Var>> {
        let layers = self.config.style_layers();
        match styles {
            Styles::One(z) => {
                let w = self.mapping(p, &Var::constant(z.clone()))?;
                Ok((0..layers).map(|_| alias(&w)).collect())
            }
            Styles::Mixed { z1, z2, crossover } => {
                let (n, both) = (z1.dim(0), self.mapping_of_both(p, z1, z2)?);
                let (w1, w2) = (slice(&both, 0, 0, n)?, slice(&both, 0, n, n)?);
                Ok((0..layers).map(|i| alias(if i < *crossover { &w1 } else { &w2 })).collect())
            }
            Styles::Chosen { z1, z2, choice } => {
                let (n, latent) = (z1.dim(0), z1.dim(1));
                let both = reshape(&self.mapping_of_both(p, z1, z2)?, &[2, n * latent])?;
                // Products with one and zero: the chosen style, bit for bit.
                let all = matmul(&Var::constant(choice.clone()), Read::Plain, &both, Read::Plain)?;
                (0..layers).map(|i| reshape(&slice(&all, 0, i, 1)?, &[n, latent])).collect()
            }
        }
    }

    /// `centre + psi · (w − centre)` for every layer; `centre` is `[1, latent]`.
    pub fn truncate(ws: &[Var], centre: &Tensor, psi: f64) -> Result<Vec<Var>> {
        let centre = Var::constant(centre.clone());
        ws.iter()
            .map(|w| {
                let c = crate::autograd::broadcast_to(&centre, w.shape())?;
                add(&c, &scale(&sub(w, &c)?, psi)?)
            })
            .collect()
    }

    /// Mean of `mapping` over `samples` random latents, `[1, latent]`.
    pub fn mean_latent(&self, p: &Params, samples: usize, rng: &mut Random) -> Result<Tensor> {
        let device = p.device();
        let mut total = Var::constant(Tensor::full_on(&[1, self.config.latent], 0.0, DType::F32, &device)?);
        let mut left = samples;
        while left > 0 {
            let n = left.min(1024);
            let w = self.mapping(p, &Var::constant(rng.normal(&[n, self.config.latent]).to_device(&device)?))?;
            total = add(&total, &sum_to(&w, &[1, self.config.latent])?)?;
            left -= n;
        }
        Ok(scale(&total, 1.0 / samples as f64)?.value().clone())
    }

    /// Shapes of the noise maps for `n` images, `[n, r, r, 1]` for each noise layer.
    pub fn noise_shapes(&self, n: usize) -> impl Iterator<Item = [usize; 4]> {
        (0..self.config.noise_layers()).map(move |k| {
            let r = self.config.noise_size(k);
            [n, r, r, 1]
        })
    }

    /// Fresh noise maps for `n` images.
    pub fn draw_noise(&self, n: usize, rng: &mut Random) -> Vec<Tensor> {
        self.noise_shapes(n).map(|shape| rng.normal(&shape)).collect()
    }

    /// Images `[N, size, size, 3]`, unclamped, around [−1, 1]. `ws`: one style per layer; `noise`: one map per noise
    /// layer, `[N or 1, r, r, 1]`.
    pub fn synthesis(&self, p: &Params, ws: &[Var], noise: &[Tensor]) -> Result<Var> {
        let c = &self.config;
        if ws.len() != c.style_layers() || noise.len() != c.noise_layers() {
            return Err(Error::shape("synthesis", format!("{} styles and {} noise maps where {} and {} are needed", ws.len(), noise.len(), c.style_layers(), c.noise_layers())));
        }
        let n = ws[0].dim(0);
        let constant = p.get("input.input");
        let x = as_activation(&crate::autograd::broadcast_to(constant, &[n, 4, 4, c.channels_at(4)])?)?;
        let maps: Vec<Var> = noise.iter().map(|map| Var::constant(map.to_dtype(constant.dtype()))).collect();
        let mut x = modulated(p, "conv1.conv").same(&x, &ws[0], finish(p, "conv1", &maps[0]))?;
        let mut rgb = to_rgb(p, "to_rgb1", &x, &ws[1])?;
        for (block, _) in c.blocks().enumerate() {
            let (up, same, layer) = (format!("convs.{}", 2 * block), format!("convs.{}", 2 * block + 1), 1 + 2 * block);
            x = modulated(p, &format!("{up}.conv")).up(&x, &ws[layer], finish(p, &up, &maps[layer]))?;
            x = modulated(p, &format!("{same}.conv")).same(&x, &ws[layer + 1], finish(p, &same, &maps[layer + 1]))?;
            let skip = upfirdn2d(&rgb, &Upfirdn2d::new(&RESAMPLE_TAPS, 2, 1, [2, 1], 4.0))?;
            rgb = add(&skip, &to_rgb(p, &format!("to_rgbs.{block}"), &x, &ws[layer + 2])?)?;
        }
        Ok(rgb)
    }

    /// Mapping and synthesis.
    pub fn forward(&self, p: &Params, styles: &Styles, noise: &[Tensor]) -> Result<Var> {
        self.synthesis(p, &self.styles(p, styles)?, noise)
    }
}

/// Noise, bias and leaky ReLU of a styled convolution.
fn finish<'a>(p: &'a Params, name: &str, noise: &'a Var) -> Epilogue<'a, Var> {
    let (strength, bias) = (p.get(&format!("{name}.noise.weight")), p.get(&format!("{name}.activate.bias")));
    Epilogue { bias: Some(bias), noise: Some((noise, strength)), act: Activation::LEAKY_RELU }
}

fn to_rgb(p: &Params, name: &str, x: &Var, w: &Var) -> Result<Var> {
    modulated(p, &format!("{name}.conv")).to_rgb(x, w, p.get(&format!("{name}.bias")))
}

/// The parameters in rosinality's registration order, which is also the order of its optimiser state.
fn table(c: &StyleGan2Config) -> Layout {
    let mut t = Layout::new();
    let d = c.latent;
    let modulation = |t: &mut Layout, prefix: &str, channels: usize| {
        t.plain(format!("{prefix}.modulation.weight"), &[channels, d], Init::Normal(1.0));
        t.plain(format!("{prefix}.modulation.bias"), &[channels], Init::Constant(1.0));
    };
    let styled = |t: &mut Layout, name: &str, ci: usize, co: usize, up: bool| {
        let (order, shape) = if up { ([1, 2, 3, 0], [ci, 3, 3, co]) } else { ([0, 2, 3, 1], [co, 3, 3, ci]) };
        t.permuted(format!("{name}.conv.weight"), &[1, co, ci, 3, 3], &[co, ci, 3, 3], &order, &shape, Init::Normal(1.0));
        modulation(t, &format!("{name}.conv"), ci);
        t.plain(format!("{name}.noise.weight"), &[1], Init::Constant(0.0));
        t.plain(format!("{name}.activate.bias"), &[co], Init::Constant(0.0));
    };
    let rgb = |t: &mut Layout, name: &str, ci: usize| {
        t.permuted(format!("{name}.bias"), &[1, IMAGE_CHANNELS, 1, 1], &[IMAGE_CHANNELS], &[0], &[IMAGE_CHANNELS], Init::Constant(0.0));
        let weight = [IMAGE_CHANNELS, ci, 1, 1];
        t.permuted(format!("{name}.conv.weight"), &[1, IMAGE_CHANNELS, ci, 1, 1], &weight, &[0, 2, 3, 1], &[IMAGE_CHANNELS, 1, 1, ci], Init::Normal(1.0));
        modulation(t, &format!("{name}.conv"), ci);
    };
    for i in 1..=c.mapping_layers {
        t.plain(format!("style.{i}.weight"), &[d, d], Init::Normal(1.0 / MAPPING_LR));
        t.plain(format!("style.{i}.bias"), &[d], Init::Constant(0.0));
    }
    let c4 = c.channels_at(4);
    t.permuted("input.input", &[1, c4, 4, 4], &[1, c4, 4, 4], &[0, 2, 3, 1], &[1, 4, 4, c4], Init::Normal(1.0));
    styled(&mut t, "conv1", c4, c4, false);
    rgb(&mut t, "to_rgb1", c4);
    let mut channels = c4;
    for (block, r) in c.blocks().enumerate() {
        styled(&mut t, &format!("convs.{}", 2 * block), channels, c.channels_at(r), true);
        channels = c.channels_at(r);
        styled(&mut t, &format!("convs.{}", 2 * block + 1), channels, channels, false);
    }
    for (block, r) in c.blocks().enumerate() {
        rgb(&mut t, &format!("to_rgbs.{block}"), c.channels_at(r));
    }
    t
}
