//! Models and training states as files: safetensors with rosinality's parameter names under `g.`, `g_ema.`, `d.`, and
//! PyTorch's own files. A state written here continues with the same bits.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::safetensors::{self, Content};
use crate::io::torch_file::{TorchFile, Value};
use crate::models::stylegan2::{Discriminator, Generator, StyleGan2Config};
use crate::nn::{AdamState, Layout, ParamSlab};
use crate::ops::optimizer::Adam;
use crate::ops::random::Random;
use crate::tensor::{DType, Tensor};

use super::{GanState, Hyper, streams};

/// Metadata key of the architecture, as JSON.
const CONFIG: &str = "recant.stylegan2";
/// Metadata key of `StateNumbers`, as JSON.
const STATE: &str = "recant.training";

/// The numbers of a training state.
#[derive(serde::Serialize, serde::Deserialize)]
struct StateNumbers {
    iteration: u64,
    mean_path_length: f64,
    rng: Random,
    g_step: u64,
    d_step: u64,
    g_adam: Adam,
    d_adam: Adam,
}

/// What a model file holds.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub config: StyleGan2Config,
    pub g_ema: ParamSlab,
    pub g: Option<ParamSlab>,
    pub d: Option<ParamSlab>,
    pub g_optim: Option<AdamState>,
    pub d_optim: Option<AdamState>,
    /// The generator's noise buffers, `[1, r, r, 1]` per noise layer.
    pub noise: Vec<Tensor>,
    pub iteration: u64,
    pub mean_path_length: f64,
    pub rng: Option<Random>,
}

/// Tensors under `prefix`, without it.
fn under(all: &BTreeMap<String, Tensor>, prefix: &str) -> BTreeMap<String, Tensor> {
    all.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_string(), t.clone()))).collect()
}

/// Removes the prefix that PyTorch's DataParallel leaves on names.
fn without_module(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    tensors.into_iter().map(|(name, t)| (name.strip_prefix("module.").map(str::to_string).unwrap_or(name), t)).collect()
}

/// The seed of noise buffers where a file has none.
const NOISE_SEED: u64 = 0;

/// Noise buffers of a new generator.
pub fn default_noise(config: &StyleGan2Config) -> Vec<Tensor> {
    noise_buffers(config, &BTreeMap::new()).expect("drawn with the right shapes")
}

fn noise_buffers(config: &StyleGan2Config, tensors: &BTreeMap<String, Tensor>) -> std::result::Result<Vec<Tensor>, String> {
    let mut rng = Random::new(NOISE_SEED, streams::INIT);
    (0..config.noise_layers())
        .map(|k| {
            let r = config.noise_size(k);
            match tensors.get(&format!("noises.noise_{k}")) {
                Some(t) if t.shape() == [1, 1, r, r] => t.reshape(&[1, r, r, 1]).map_err(|e| e.to_string()),
                Some(t) => Err(format!("noises.noise_{k} has shape {:?} where [1, 1, {r}, {r}] is needed", t.shape())),
                None => Ok(rng.normal(&[1, r, r, 1])),
            }
        })
        .collect()
}

impl Checkpoint {
    /// Reads a model of either format, recognised by its content.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let refuse = |problem: String| Error::file(path, problem);
        if safetensors::recognises(path)? {
            Checkpoint::from_safetensors(safetensors::read(path)?).map_err(refuse)
        } else {
            Checkpoint::from_torch(&TorchFile::open(path)?).map_err(refuse)
        }
    }

    /// From the content of a safetensors file.
    pub fn from_safetensors(content: Content) -> std::result::Result<Checkpoint, String> {
        let declared = content.metadata.get(CONFIG).map(|text| serde_json::from_str::<StyleGan2Config>(text)).transpose();
        let declared = declared.map_err(|e| format!("its metadata {CONFIG} does not parse: {e}"))?;
        let mut c = Checkpoint::from_networks(&content.tensors, declared)?;
        if let Some(text) = content.metadata.get(STATE) {
            let numbers: StateNumbers = serde_json::from_str(text).map_err(|e| format!("its metadata {STATE} does not parse: {e}"))?;
            (c.iteration, c.mean_path_length, c.rng) = (numbers.iteration, numbers.mean_path_length, Some(numbers.rng));
            let optim = |slab: &Option<ParamSlab>, prefix: &str, step, adam| -> std::result::Result<Option<AdamState>, String> {
                let Some(slab) = slab else { return Ok(None) };
                let second_moment = ParamSlab::from_torch(slab.layout(), &under(&content.tensors, prefix), prefix)?;
                Ok(Some(AdamState::after(adam, step, second_moment)))
            };
            c.g_optim = optim(&c.g, "g_optim.exp_avg_sq.", numbers.g_step, numbers.g_adam)?;
            c.d_optim = optim(&c.d, "d_optim.exp_avg_sq.", numbers.d_step, numbers.d_adam)?;
        }
        Ok(c)
    }

    /// From a PyTorch file: a training checkpoint `{g, d, g_ema, g_optim, d_optim, args}` or a bare generator.
    pub fn from_torch(file: &TorchFile) -> std::result::Result<Checkpoint, String> {
        let tensors = file.tensors().map_err(|e| e.to_string())?;
        let mut c = Checkpoint::from_networks(&tensors, None)?;
        let optim = |slab: &Option<ParamSlab>, name: &str| -> std::result::Result<Option<AdamState>, String> {
            match (slab, file.root().get(name)) {
                (Some(slab), Some(state)) => torch_adam(slab.layout(), state, &tensors, name).map(Some),
                _ => Ok(None),
            }
        };
        c.g_optim = optim(&c.g, "g_optim")?;
        c.d_optim = optim(&c.d, "d_optim")?;
        Ok(c)
    }

    fn from_networks(all: &BTreeMap<String, Tensor>, declared: Option<StyleGan2Config>) -> std::result::Result<Checkpoint, String> {
        let section = |prefix: &str| Some(without_module(under(all, prefix))).filter(|t| !t.is_empty());
        let (g, d) = (section("g."), section("d."));
        let bare = || Some(without_module(all.clone())).filter(|t| t.contains_key("style.1.weight"));
        let ema = section("g_ema.").or_else(|| g.clone()).or_else(bare).ok_or("holds no StyleGAN2 generator (neither g_ema, nor g, nor a bare state_dict)")?;
        // The parameters decide: nothing is allocated for what a file only says of itself.
        let config = StyleGan2Config::infer(&ema)?;
        if declared.is_some_and(|declared| declared != config) {
            return Err(format!("its metadata {CONFIG} name another network than its parameters are of"));
        }
        check_filters(&ema)?;
        let generator = Generator::new(config.clone());
        let discriminator = Discriminator::new(config.clone());
        let slab = |layout: &Arc<Layout>, t: &BTreeMap<String, Tensor>, what: &str| {
            let slab = ParamSlab::from_torch(layout, t, what)?;
            if slab.is_finite() { Ok(slab) } else { Err(format!("{what} holds values that are not finite numbers: its training has diverged")) }
        };
        let read = |layout: &Arc<Layout>, t: &Option<BTreeMap<String, Tensor>>, what: &str| t.as_ref().map(|t| slab(layout, t, what)).transpose();
        Ok(Checkpoint {
            g_ema: slab(generator.layout(), &ema, "g_ema")?,
            g: read(generator.layout(), &g, "g")?,
            d: read(discriminator.layout(), &d, "d")?,
            g_optim: None,
            d_optim: None,
            noise: noise_buffers(&config, &ema)?,
            iteration: 0,
            mean_path_length: 0.0,
            rng: None,
            config,
        })
    }

    /// Whether both networks come with their optimisers' moments.
    pub fn has_optimisers(&self) -> bool {
        self.g_optim.is_some() && self.d_optim.is_some()
    }

    /// The training state, for going on or for a stage of the method. A file without optimiser state gets a fresh one.
    pub fn into_state(self, path: &Path, hyper: &Hyper, seed: u64) -> Result<GanState> {
        let Some(d) = self.d else {
            return Err(Error::file(path, "holds no discriminator (d); training needs the whole checkpoint, not only the generator"));
        };
        let g = self.g.map_or_else(|| self.g_ema.deep_clone(), Ok)?;
        Ok(GanState {
            g_optim: self.g_optim.unwrap_or_else(|| AdamState::new(g.layout(), hyper.generator_adam())),
            d_optim: self.d_optim.unwrap_or_else(|| AdamState::new(d.layout(), hyper.discriminator_adam())),
            config: self.config,
            g,
            g_ema: self.g_ema,
            d,
            iteration: self.iteration,
            mean_path_length: Tensor::full(&[1], self.mean_path_length, DType::F32),
            rng: self.rng.unwrap_or(Random::new(seed, streams::TRAINING)),
        })
    }
}

/// Adam's state as PyTorch keeps it: by parameter index, in registration order.
fn torch_adam(layout: &Arc<Layout>, optim: Value, tensors: &BTreeMap<String, Tensor>, name: &str) -> std::result::Result<AdamState, String> {
    let state = optim.get("state").ok_or(format!("{name} has no state"))?;
    let mut moments = BTreeMap::new();
    let mut step = 0;
    for (i, s) in layout.segments().iter().enumerate() {
        let key = format!("{name}.state.{i}");
        let v = tensors.get(&format!("{key}.exp_avg_sq")).ok_or(format!("{key} has no exp_avg_sq"))?;
        moments.insert(s.name.clone(), v.clone());
        let count = state.get_index(i as i64).and_then(|s| s.get("step")).and_then(|s| s.as_f64());
        let count = count.or_else(|| tensors.get(&format!("{key}.step")).and_then(|t| t.item().ok()));
        step = step.max(count.unwrap_or(0.0) as u64);
    }
    let group = optim.get("param_groups").and_then(|g| g.items().next());
    let number = |key: &str| group.and_then(|g| g.get(key)).and_then(|v| v.as_f64());
    let betas: Vec<f64> = group.and_then(|g| g.get("betas")).map(|b| b.items().filter_map(|v| v.as_f64()).collect()).unwrap_or_default();
    let adam = Adam {
        lr: number("lr").unwrap_or(0.0),
        beta1: betas.first().copied().unwrap_or(0.0),
        beta2: betas.get(1).copied().unwrap_or(0.99),
        eps: number("eps").unwrap_or(1e-8),
    };
    if adam.beta1 != 0.0 {
        return Err(format!("{name} has beta1 = {}; StyleGAN2's optimisers have 0", adam.beta1));
    }
    Ok(AdamState::after(adam, step, ParamSlab::from_torch(layout, &moments, name)?))
}

/// FIR buffers are part of a state_dict; the engine has StyleGAN2's built in, so others are refused.
fn check_filters(tensors: &BTreeMap<String, Tensor>) -> std::result::Result<(), String> {
    for (name, t) in tensors.iter().filter(|(name, _)| name.ends_with(".kernel")) {
        let want = fir(4.0);
        let fits = t.shape() == [4, 4] && t.to_f64_vec().iter().zip(want.as_slice::<f32>()).all(|(a, b)| (a - *b as f64).abs() < 1e-5);
        if !fits {
            return Err(format!("{name} is not the filter [1, 3, 3, 1] that this engine resamples with"));
        }
    }
    Ok(())
}

/// `outer([1, 3, 3, 1]) / 64 · gain`, `[4, 4]`.
fn fir(gain: f32) -> Tensor {
    let taps = [1.0_f32, 3.0, 3.0, 1.0];
    Tensor::from_vec(&[4, 4], (0..16).map(|i| taps[i / 4] * taps[i % 4] / 64.0 * gain).collect::<Vec<f32>>())
}

/// A generator's state_dict as PyTorch has it, buffers included.
pub fn generator_state_dict(config: &StyleGan2Config, slab: &ParamSlab, noise: &[Tensor]) -> BTreeMap<String, Tensor> {
    let mut out = slab.to_torch();
    for (block, _) in config.blocks().enumerate() {
        out.insert(format!("convs.{}.conv.blur.kernel", 2 * block), fir(4.0));
        out.insert(format!("to_rgbs.{block}.upsample.kernel"), fir(4.0));
    }
    for (k, t) in noise.iter().enumerate() {
        let r = config.noise_size(k);
        out.insert(format!("noises.noise_{k}"), t.reshape(&[1, 1, r, r]).expect("one map per noise layer"));
    }
    out
}

/// A discriminator's state_dict as PyTorch has it, buffers included.
pub fn discriminator_state_dict(config: &StyleGan2Config, slab: &ParamSlab) -> BTreeMap<String, Tensor> {
    let mut out = slab.to_torch();
    for (block, _) in config.blocks().enumerate() {
        out.insert(format!("convs.{}.conv2.0.kernel", block + 1), fir(1.0));
        out.insert(format!("convs.{}.skip.0.kernel", block + 1), fir(1.0));
    }
    out
}

fn put(into: &mut BTreeMap<String, Tensor>, prefix: &str, tensors: BTreeMap<String, Tensor>) {
    into.extend(tensors.into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)));
}

/// Refuses to write what is not a number: it may not replace a good file.
fn check_finite(path: &Path, step: u64, slab: &ParamSlab) -> Result<()> {
    match slab.to_device(&Device::Cpu)?.is_finite() {
        true => Ok(()),
        false => Err(Error::Diverged {
            what: "training".into(),
            step: step as usize,
            problem: format!("parameters are not finite numbers, so {} is not written; lower --lr, or raise --r1", path.display()),
        }),
    }
}

/// Writes a whole training state; `metadata` goes along.
pub fn save_state(path: &Path, state: &GanState, noise: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<()> {
    for slab in [&state.g, &state.g_ema, &state.d] {
        check_finite(path, state.iteration, slab)?;
    }
    let mut tensors = BTreeMap::new();
    put(&mut tensors, "g.", generator_state_dict(&state.config, &state.g, noise));
    put(&mut tensors, "g_ema.", generator_state_dict(&state.config, &state.g_ema, noise));
    put(&mut tensors, "d.", discriminator_state_dict(&state.config, &state.d));
    put(&mut tensors, "g_optim.exp_avg_sq.", state.g_optim.second_moment.to_torch());
    put(&mut tensors, "d_optim.exp_avg_sq.", state.d_optim.second_moment.to_torch());
    let numbers = StateNumbers {
        iteration: state.iteration,
        mean_path_length: state.mean_path_length.item()?,
        rng: state.rng,
        g_step: state.g_optim.step,
        d_step: state.d_optim.step,
        g_adam: state.g_optim.adam,
        d_adam: state.d_optim.adam,
    };
    let mut metadata = metadata.clone();
    metadata.insert(CONFIG.into(), serde_json::to_string(&state.config).expect("plain data"));
    metadata.insert(STATE.into(), serde_json::to_string(&numbers).expect("plain data"));
    safetensors::write(path, &tensors, &metadata)
}

/// Writes a bare generator, names without prefix.
pub fn save_generator(path: &Path, config: &StyleGan2Config, slab: &ParamSlab, noise: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut metadata = metadata.clone();
    metadata.insert(CONFIG.into(), serde_json::to_string(config).expect("plain data"));
    safetensors::write(path, &generator_state_dict(config, slab, noise), &metadata)
}
