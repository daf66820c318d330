//! The Inception-v3 of the Fréchet inception distance: pytorch-fid's port of the TensorFlow network of 2015-12-05
//! (pytorch_fid/inception.py). It is not torchvision's: see the patches in `network`.

mod network;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::autograd::{Scales, Var, avg_pool2d, bias_act, concat, conv2d_act, matmul, max_pool2d, reshape};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::fingerprint::Fingerprint;
use crate::io::safetensors;
use crate::io::torch_file::{TorchFile, without_module_prefix};
use crate::nn::batch_norm::Normalise;
use crate::nn::{Init, Layout, ParamSlab, Params};
use crate::ops::bias_act::{Activation, Epilogue};
use crate::ops::conv2d::Conv2d;
use crate::ops::matmul::Read;
use crate::ops::pool2d::{Divisor, Window};
use crate::tensor::{DType, Tensor};
use network::{Step, network};

/// Height and width of the input.
pub const SIZE: usize = 299;
/// Sides under this leave its last blocks no pixel.
pub const SMALLEST: usize = 75;
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

/// The network as far as its file goes.
pub struct Inception {
    /// Of `layout(last)`.
    params: ParamSlab,
    last: Block,
    fingerprint: u64,
}

/// The table of the parameters up to `last`: pytorch-fid's names, batch normalisation folded into `X.conv.weight` and
/// `X.conv.bias`. Without a file convolutions start as He et al. 2015 would have them, biases at 0.
pub fn layout(last: Block) -> Layout {
    fn add(steps: &[Step], channels: &mut usize, l: &mut Layout) {
        for step in steps {
            match step {
                Step::Convolve { name, out, kernel: [kh, kw], .. } => {
                    let torch = [*out, *channels, *kh, *kw];
                    let init = Init::Normal((2.0 / (*channels * kh * kw) as f64).sqrt());
                    l.permuted(format!("{name}.conv.weight"), &torch, &torch, &[0, 2, 3, 1], &[*out, *kh, *kw, *channels], init);
                    l.plain(format!("{name}.conv.bias"), &[*out], Init::Constant(0.0));
                    *channels = *out;
                }
                Step::Branches(branches) => {
                    let arriving = *channels;
                    *channels = 0;
                    for branch in branches {
                        let mut c = arriving;
                        add(branch, &mut c, l);
                        *channels += c;
                    }
                }
                Step::MaxPool(_) | Step::AvgPool(_) => {}
            }
        }
    }
    let (mut l, mut channels) = (Layout::new(), 3);
    up_to(last).for_each(|(_, steps)| add(&steps, &mut channels, &mut l));
    l
}

fn up_to(last: Block) -> impl Iterator<Item = (Block, Vec<Step>)> {
    network().into_iter().filter(move |(block, _)| *block <= last)
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
        let (mut folded, mut last) = (BTreeMap::new(), None);
        for (block, steps) in network() {
            let names = network::names(&steps);
            let Some(missing) = names.iter().find_map(|name| fold(name, tensors, &mut folded).err()) else {
                last = Some(block);
                continue;
            };
            // A block that is there in part is a broken file, not a shorter one.
            if last.is_none() || names.iter().any(|name| tensors.contains_key(&format!("{name}.conv.weight"))) {
                return Err(format!("{missing}: the file is cut short, or not the Inception of FID"));
            }
            break;
        }
        let last = last.ok_or("no block of the Inception of FID is complete")?;
        let params = ParamSlab::from_torch(&Arc::new(layout(last)), &folded, "the Inception of FID")?;
        let fingerprint = fingerprint(&params);
        Ok(Inception { params, last, fingerprint })
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
        Ok(Inception { params: self.params.to_device(device)?, ..self })
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.params.values().device()
    }

    /// Its parameters, of `layout(last_block())`.
    pub fn params(&self) -> &ParamSlab {
        &self.params
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
        let params = self.params.constants();
        let mut found = HashMap::new();
        let mut x = Var::constant(images.to_device(&self.device())?);
        for (block, steps) in up_to(*end) {
            x = run(&steps, &params, x)?;
            if blocks.contains(&block) {
                found.insert(block, pooled(&x)?.value().clone());
            }
        }
        Ok(blocks.iter().map(|b| found[b].clone()).collect())
    }
}

/// A classifier's parameters: those up to `last`, and a linear layer over its features.
pub(super) fn classifier_layout(last: Block, n_outputs: usize) -> Arc<Layout> {
    let mut l = layout(last);
    let init = Init::Uniform(1.0 / (last.dims() as f64).sqrt());
    l.plain("fc.weight", &[n_outputs, last.dims()], init);
    l.plain("fc.bias", &[n_outputs], init);
    Arc::new(l)
}

/// A classifier over the features at `last`: `x` `[N, H, W, 3]` in [−1, 1] -> logits `[N, outputs]`, and the features
/// `[N, dims]`. Half of the features are dropped in training, as in torchvision's Inception.
pub(super) fn classify(last: Block, p: &Params, mut norm: Normalise, x: &Var) -> Result<(Var, Var)> {
    let maps = up_to(last).try_fold(x.clone(), |x, (_, steps)| run(&steps, p, x))?;
    let features = pooled(&maps)?;
    let logits = matmul(&norm.dropout(&features, 0.5)?, Read::Plain, p.get("fc.weight"), Read::Transposed)?;
    Ok((bias_act(&logits, Some(p.get("fc.bias")), None, Activation::LINEAR)?, features))
}

/// `[N, H, W, C]` averaged over pixels: `[N, C]`.
fn pooled(x: &Var) -> Result<Var> {
    let mean = avg_pool2d(x, Window::whole([x.dim(1), x.dim(2)]), Divisor::Inside)?;
    reshape(&mean, &[x.dim(0), x.dim(3)])
}

fn run(steps: &[Step], p: &Params, mut x: Var) -> Result<Var> {
    for step in steps {
        x = match step {
            Step::Convolve { name, stride, padding, .. } => {
                let [weight, bias] = ["weight", "bias"].map(|part| p.get(&format!("{name}.conv.{part}")));
                let spec = Conv2d { stride: [*stride; 2], padding: *padding, gain: 1.0 };
                conv2d_act(&x, weight, Scales::NONE, spec, Epilogue { bias: Some(bias), noise: None, act: Activation::RELU })?
            }
            Step::MaxPool(window) => max_pool2d(&x, *window)?,
            Step::AvgPool(window) => avg_pool2d(&x, *window, Divisor::Inside)?,
            Step::Branches(branches) => {
                let parts = branches.iter().map(|b| run(b, p, x.clone())).collect::<Result<Vec<_>>>()?;
                concat(&parts.iter().collect::<Vec<_>>(), 3)?
            }
        };
    }
    Ok(x)
}

fn fingerprint(params: &ParamSlab) -> u64 {
    let mut all = Fingerprint::default();
    params.layout().segments().iter().for_each(|s| all.add(s.name.as_bytes()));
    all.add(bytemuck::cast_slice(params.as_slice()));
    all.finish()
}

/// Adds weight and bias of one convolution, PyTorch's shapes, folding `y = γ (conv(x) − mean) / √(var + eps) + β` where
/// the file has it apart. The error says what is missing or does not fit.
fn fold(name: &str, tensors: &BTreeMap<String, Tensor>, into: &mut BTreeMap<String, Tensor>) -> std::result::Result<(), String> {
    let find = |part: &str| {
        let key = format!("{name}.{part}");
        tensors.get(&key).map(|t| t.to_dtype(DType::F32)).ok_or_else(|| format!("{key} is missing"))
    };
    let weight = find("conv.weight")?;
    let (weight, bias) = match find("conv.bias") {
        Ok(bias) => (weight, bias),
        Err(_) => {
            let out = weight.shape().first().copied().unwrap_or(0);
            let of = |part: &str| match find(part)? {
                t if t.shape() == [out] => Ok(t),
                t => Err(format!("{name}.{part} has shape {:?} where [{out}] is needed", t.shape())),
            };
            let (gamma, beta) = (of("bn.weight")?, of("bn.bias")?);
            let (mean, var) = (of("bn.running_mean")?, of("bn.running_var")?);
            let mut folded = weight.to_vec::<f32>();
            let mut bias = Vec::with_capacity(out);
            let per_channel = (folded.len() / out.max(1)).max(1);
            for (o, row) in folded.chunks_exact_mut(per_channel).enumerate() {
                let at = |t: &Tensor| t.as_slice::<f32>()[o] as f64;
                let factor = at(&gamma) / (at(&var) + BATCH_NORM_EPS).sqrt();
                row.iter_mut().for_each(|w| *w = (*w as f64 * factor) as f32);
                bias.push((at(&beta) - at(&mean) * factor) as f32);
            }
            (Tensor::from_vec(weight.shape(), folded), Tensor::from_vec(&[out], bias))
        }
    };
    into.insert(format!("{name}.conv.weight"), weight);
    into.insert(format!("{name}.conv.bias"), bias);
    Ok(())
}
