//! The Inception-v3 of the Fréchet inception distance: pytorch-fid's port of the TensorFlow network of 2015-12-05
//! (pytorch_fid/inception.py). It is not torchvision's: see the patches in `network`.

mod network;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::fingerprint::Fingerprint;
use crate::io::safetensors;
use crate::io::torch_file::{TorchFile, without_module_prefix};
use crate::ops::bias_act::{Activation, Epilogue};
use crate::ops::conv2d::{Conv2d, conv2d_act};
use crate::ops::layout::{concat, permute};
use crate::ops::pool2d::{Divisor, Window, avg_pool2d, max_pool2d};
use crate::tensor::{DType, Tensor};
use network::{Step, network};

/// Height and width of the input.
pub const SIZE: usize = 299;
/// Sides under this leave its last blocks no pixel.
const SMALLEST: usize = 75;
/// pytorch-fid's `BasicConv2d`.
const BATCH_NORM_EPS: f64 = 1e-3;

/// Where features are taken, named by their number as pytorch-fid's `--dims`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum Block {
    /// After the first max pooling.
    D64,
    /// After the second max pooling.
    D192,
    /// After Mixed_6e.
    D768,
    /// After Mixed_7c: the features of "FID" without further words.
    D2048,
}

impl Block {
    pub const ALL: [Block; 4] = [Block::D64, Block::D192, Block::D768, Block::D2048];

    /// Number of features.
    pub fn dims(self) -> usize {
        match self {
            Block::D64 => 64,
            Block::D192 => 192,
            Block::D768 => 768,
            Block::D2048 => 2048,
        }
    }

    pub fn from_dims(dims: usize) -> Result<Block> {
        Block::ALL.into_iter().find(|b| b.dims() == dims).ok_or_else(|| Error::config("--dims", format!("{dims} is not one of 64, 192, 768, 2048")))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dims())
    }
}

struct Weights {
    /// `[C_out, k_h, k_w, C_in]`, batch normalisation folded in.
    weight: Tensor,
    /// `[C_out]`
    bias: Tensor,
}

/// The network as far as its file goes.
pub struct Inception {
    convolutions: HashMap<String, Weights>,
    last: Block,
    device: Device,
    fingerprint: u64,
}

impl Inception {
    /// From a state dict of pytorch-fid (`X.conv.weight` and `X.bn.*`) or one with batch normalisation folded
    /// (`X.conv.weight`, `X.conv.bias`), PyTorch's shapes. Layers may be missing from the end; `last_block` then says
    /// how far it goes. The error names what does not fit; the caller knows the file.
    pub fn from_torch(tensors: &BTreeMap<String, Tensor>) -> std::result::Result<Inception, String> {
        if let Some(fc) = tensors.get("fc.weight").filter(|t| t.shape() != [1008, 2048]) {
            return Err(format!(
                "fc.weight is {:?}, not [1008, 2048]: this is another Inception (torchvision's?); take pt_inception-2015-12-05-6726825d.pth",
                fc.shape()
            ));
        }
        let (mut convolutions, mut last, mut channels, mut missing) = (HashMap::new(), None, 3, None);
        for (block, steps) in network() {
            match load(&steps, tensors, &mut channels, &mut convolutions)? {
                Some(name) => {
                    missing = Some((block, name));
                    break;
                }
                None => last = Some(block),
            }
        }
        // A block that is there in part is a broken file, not a shorter one.
        if let Some((block, name)) = &missing {
            let started = |steps: &[Step]| network::names(steps).iter().any(|n| convolutions.contains_key(n));
            let (_, steps) = network().into_iter().find(|(b, _)| b == block).expect("the block came from the network");
            if started(&steps) || last.is_none() {
                return Err(format!("{name} is missing: the file is cut short, or not the Inception of FID"));
            }
        }
        let last = last.ok_or("no block of the Inception of FID is complete")?;
        let fingerprint = fingerprint(&convolutions);
        Ok(Inception { convolutions, last, device: Device::Cpu, fingerprint })
    }

    /// Reads a file: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, or safetensors of the same names.
    pub fn read(path: impl AsRef<Path>) -> Result<Inception> {
        let path = path.as_ref();
        let tensors = match safetensors::recognises(path)? {
            true => safetensors::read(path)?.tensors,
            false => without_module_prefix(TorchFile::open(path)?.tensors()?),
        };
        Inception::from_torch(&tensors).map_err(|problem| Error::file(path, problem))
    }

    /// A number that tells networks with other weights apart, whatever file they came from.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The same network on another device: it looks at images where its weights are.
    pub fn to_device(self, device: &Device) -> Result<Inception> {
        let moved = |w: Weights| Ok(Weights { weight: w.weight.to_device(device)?, bias: w.bias.to_device(device)? });
        let convolutions = self.convolutions.into_iter().map(|(name, w)| Ok((name, moved(w)?))).collect::<Result<_>>()?;
        Ok(Inception { convolutions, device: device.clone(), ..self })
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The last block whose layers are all there.
    pub fn last_block(&self) -> Block {
        self.last
    }

    /// Features of `images` `[N, H, W, 3]` in [−1, 1] at each of `blocks`, averaged over pixels: `[N, dims]` each, where
    /// the network is. For FID H and W are `SIZE`; the network itself takes any from `SMALLEST`.
    pub fn features(&self, images: &Tensor, blocks: &[Block]) -> Result<Vec<Tensor>> {
        if images.rank() != 4 || images.dim(1).min(images.dim(2)) < SMALLEST || images.dim(3) != 3 {
            return Err(Error::shape("Inception", format!("images {:?} where [N, H, W, 3] of at least {SMALLEST} px is needed", images.shape())));
        }
        let Some(end) = blocks.iter().max() else { return Ok(Vec::new()) };
        if *end > self.last {
            return Err(Error::config("--dims", format!("the Inception file ends at block {}; block {end} needs the whole file", self.last)));
        }
        let mut found = HashMap::new();
        let mut x = images.to_device(&self.device)?;
        for (block, steps) in network().into_iter().filter(|(b, _)| b <= end) {
            x = self.run(&steps, x)?;
            if blocks.contains(&block) {
                let pooled = avg_pool2d(&x, Window::whole([x.dim(1), x.dim(2)]), Divisor::Inside)?;
                found.insert(block, pooled.reshape(&[x.dim(0), block.dims()])?);
            }
        }
        Ok(blocks.iter().map(|b| found[b].clone()).collect())
    }

    fn run(&self, steps: &[Step], mut x: Tensor) -> Result<Tensor> {
        for step in steps {
            x = match step {
                Step::Convolve { name, stride, padding, .. } => {
                    let w = &self.convolutions[name];
                    let spec = Conv2d { stride: [*stride; 2], padding: *padding };
                    conv2d_act(&x, &w.weight, None, None, spec, Epilogue { bias: Some(&w.bias), noise: None, act: Activation::RELU })?
                }
                Step::MaxPool(window) => max_pool2d(&x, *window)?,
                Step::AvgPool(window) => avg_pool2d(&x, *window, Divisor::Inside)?,
                Step::Branches(branches) => {
                    let parts = branches.iter().map(|b| self.run(b, x.clone())).collect::<Result<Vec<_>>>()?;
                    concat(&parts.iter().collect::<Vec<_>>(), 3)?
                }
            };
        }
        Ok(x)
    }
}

fn fingerprint(convolutions: &HashMap<String, Weights>) -> u64 {
    let mut names: Vec<&String> = convolutions.keys().collect();
    names.sort();
    let mut all = Fingerprint::default();
    for name in names {
        let w = &convolutions[name];
        all.add(name.as_bytes());
        all.add(bytemuck::cast_slice(w.weight.as_slice::<f32>()));
        all.add(bytemuck::cast_slice(w.bias.as_slice::<f32>()));
    }
    all.finish()
}

/// Loads the convolutions of `steps`, which start at `channels` channels and leave their own there. `Some(name)` is
/// the first tensor that is not in the file.
fn load(steps: &[Step], tensors: &BTreeMap<String, Tensor>, channels: &mut usize, into: &mut HashMap<String, Weights>) -> std::result::Result<Option<String>, String> {
    for step in steps {
        match step {
            Step::Convolve { name, out, kernel, .. } => {
                let shape = [*out, *channels, kernel[0], kernel[1]];
                match convolution(name, &shape, tensors)? {
                    Ok(weights) => into.insert(name.clone(), weights),
                    Err(missing) => return Ok(Some(missing)),
                };
                *channels = *out;
            }
            Step::Branches(branches) => {
                let mut total = 0;
                for b in branches {
                    let mut c = *channels;
                    if let Some(missing) = load(b, tensors, &mut c, into)? {
                        return Ok(Some(missing));
                    }
                    total += c;
                }
                *channels = total;
            }
            Step::MaxPool(_) | Step::AvgPool(_) => {}
        }
    }
    Ok(None)
}

/// One convolution with its bias, folding `y = γ (conv(x) − mean) / √(var + eps) + β` where the file has it apart.
/// The inner error is the name of a tensor that is missing.
fn convolution(name: &str, shape: &[usize; 4], tensors: &BTreeMap<String, Tensor>) -> std::result::Result<std::result::Result<Weights, String>, String> {
    let find = |suffix: &str, shape: &[usize]| {
        let key = format!("{name}.{suffix}");
        match tensors.get(&key) {
            None => Ok(Err(key)),
            Some(t) if t.shape() != shape => Err(format!("{key} has shape {:?} where {shape:?} is needed", t.shape())),
            Some(t) => Ok(Ok(t.to_dtype(DType::F32))),
        }
    };
    macro_rules! need {
        ($suffix:expr, $shape:expr) => {
            match find($suffix, $shape)? {
                Ok(t) => t,
                Err(missing) => return Ok(Err(missing)),
            }
        };
    }
    let out = &shape[..1];
    let weight = permute(&need!("conv.weight", shape), &[0, 2, 3, 1]).map_err(|e| e.to_string())?;
    if let Ok(bias) = find("conv.bias", out)? {
        return Ok(Ok(Weights { weight, bias }));
    }
    let (gamma, beta) = (need!("bn.weight", out), need!("bn.bias", out));
    let (mean, var) = (need!("bn.running_mean", out), need!("bn.running_var", out));
    let per_channel = shape[1..].iter().product::<usize>();
    let mut folded = weight.to_vec::<f32>();
    let mut bias = Vec::with_capacity(shape[0]);
    for (o, row) in folded.chunks_exact_mut(per_channel).enumerate() {
        let at = |t: &Tensor| t.as_slice::<f32>()[o] as f64;
        let factor = at(&gamma) / (at(&var) + BATCH_NORM_EPS).sqrt();
        row.iter_mut().for_each(|w| *w = (*w as f64 * factor) as f32);
        bias.push((at(&beta) - at(&mean) * factor) as f32);
    }
    Ok(Ok(Weights { weight: Tensor::from_vec(weight.shape(), folded), bias: Tensor::from_vec(out, bias) }))
}
