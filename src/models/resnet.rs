//! ResNet-18, ResNet-50 (He et al. 2016) and ResNeXt-50 32x4d (Xie et al. 2017) as torchvision has them
//! (torchvision/models/resnet.py), with any number of outputs.

use std::sync::Arc;

use crate::autograd::{Scales, Var, add, avg_pool2d, bias_act, concat, conv2d, matmul, max_pool2d, pad, reshape, slice};
use crate::error::{Error, Result};
use crate::nn::batch_norm::Normalise;
use crate::nn::{Init, Layout, Params};
use crate::ops::bias_act::Activation;
use crate::ops::conv2d::Conv2d;
use crate::ops::matmul::Read;
use crate::ops::pool2d::{Divisor, Window};

/// Which network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResNet {
    ResNet18,
    ResNet50,
    ResNeXt50,
}

/// One convolution with its batch normalisation.
struct Conv {
    weight: String,
    norm: String,
    out: usize,
    input: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
}

/// One residual block: its convolutions in order, and the one on the shortcut if sizes change.
struct Block {
    convs: Vec<Conv>,
    shortcut: Option<Conv>,
}

impl Conv {
    fn new(prefix: &str, index: usize, [out, input]: [usize; 2], kernel: usize, stride: usize) -> Conv {
        let (weight, norm) = (format!("{prefix}conv{index}.weight"), format!("{prefix}bn{index}"));
        Conv { weight, norm, out, input, kernel, stride, groups: 1 }
    }
}

impl ResNet {
    /// Blocks per layer, groups and width per group of the bottlenecks (none: two 3×3 convolutions).
    fn table(self) -> ([usize; 4], Option<(usize, usize)>) {
        match self {
            ResNet::ResNet18 => ([2, 2, 2, 2], None),
            ResNet::ResNet50 => ([3, 4, 6, 3], Some((1, 64))),
            ResNet::ResNeXt50 => ([3, 4, 6, 3], Some((32, 4))),
        }
    }

    /// Width of the penultimate layer.
    pub fn features(self) -> usize {
        if self.table().1.is_some() { 2048 } else { 512 }
    }

    fn stem() -> Conv {
        Conv::new("", 1, [64, 3], 7, 2)
    }

    fn blocks(self) -> Vec<Block> {
        let (counts, bottleneck) = self.table();
        let (mut blocks, mut input) = (Vec::new(), 64);
        for (layer, count) in counts.into_iter().enumerate() {
            let planes = 64 << layer;
            for i in 0..count {
                let p = format!("layer{}.{i}.", layer + 1);
                let stride = if layer > 0 && i == 0 { 2 } else { 1 };
                let (convs, out) = match bottleneck {
                    None => (vec![Conv::new(&p, 1, [planes, input], 3, stride), Conv::new(&p, 2, [planes, planes], 3, 1)], planes),
                    Some((groups, base)) => {
                        let (width, out) = (planes * base / 64 * groups, 4 * planes);
                        let middle = Conv { groups, ..Conv::new(&p, 2, [width, width], 3, stride) };
                        // torchvision strides in the 3×3 convolution, not in the first 1×1 (its "V1.5").
                        (vec![Conv::new(&p, 1, [width, input], 1, 1), middle, Conv::new(&p, 3, [out, width], 1, 1)], out)
                    }
                };
                let shortcut = (stride != 1 || input != out).then(|| Conv {
                    weight: format!("{p}downsample.0.weight"),
                    norm: format!("{p}downsample.1"),
                    ..Conv::new(&p, 0, [out, input], 1, stride)
                });
                blocks.push(Block { convs, shortcut });
                input = out;
            }
        }
        blocks
    }

    /// All convolutions, in PyTorch's order of registration.
    fn convs(self) -> Vec<Conv> {
        let mut all = vec![ResNet::stem()];
        for block in self.blocks() {
            all.extend(block.convs);
            all.extend(block.shortcut);
        }
        all
    }

    /// Adds all parameters but the last layer's, under torchvision's names and with its initial values (He et al. 2015
    /// over the outputs; γ 1, β 0).
    pub(super) fn trunk(self, l: &mut Layout) {
        for c in self.convs() {
            let (k, i) = (c.kernel, c.input / c.groups);
            let init = Init::Normal((2.0 / (c.out * k * k) as f64).sqrt());
            l.permuted(c.weight, &[c.out, i, k, k], &[c.out, i, k, k], &[0, 2, 3, 1], &[c.out, k, k, i], init);
            l.plain(format!("{}.weight", c.norm), &[c.out], Init::Constant(1.0));
            l.plain(format!("{}.bias", c.norm), &[c.out], Init::Constant(0.0));
        }
    }

    /// All parameters.
    pub fn layout(self, n_outputs: usize) -> Arc<Layout> {
        let mut l = Layout::new();
        self.trunk(&mut l);
        let init = Init::Uniform(1.0 / (self.features() as f64).sqrt());
        l.plain("fc.weight", &[n_outputs, self.features()], init);
        l.plain("fc.bias", &[n_outputs], init);
        Arc::new(l)
    }

    /// Running statistics under torchvision's names; mean 0 and variance 1 at first.
    pub fn buffers(self) -> Arc<Layout> {
        let mut l = Layout::new();
        self.convs().iter().for_each(|c| running_statistics(&mut l, &c.norm, c.out));
        Arc::new(l)
    }

    /// `x` `[N, H, W, 3]` of any size from 32 px -> logits `[N, outputs]` and pooled features `[N, features]`.
    pub fn forward(self, p: &Params, mut norm: Normalise, x: &Var) -> Result<(Var, Var)> {
        let features = self.pooled(p, &mut norm, x)?;
        let logits = matmul(&features, Read::Plain, p.get("fc.weight"), Read::Transposed)?;
        Ok((bias_act(&logits, Some(p.get("fc.bias")), None, Activation::LINEAR)?, features))
    }

    /// Everything but the last layer: pooled features `[N, features]`.
    pub(super) fn pooled(self, p: &Params, norm: &mut Normalise, x: &Var) -> Result<Var> {
        if x.shape().len() != 4 || x.dim(3) != 3 || x.dim(1) < 32 || x.dim(2) < 32 {
            return Err(Error::shape("ResNet", format!("images {:?} where [N, H, W, 3] of at least 32 px is needed", x.shape())));
        }
        let x = normalised(&ResNet::stem(), p, norm, x, Activation::RELU)?;
        let mut x = max_pool2d(&x, Window::square(3, 2, 1))?;
        for block in self.blocks() {
            let mut y = x.clone();
            for (i, conv) in block.convs.iter().enumerate() {
                let act = if i + 1 < block.convs.len() { Activation::RELU } else { Activation::LINEAR };
                y = normalised(conv, p, norm, &y, act)?;
            }
            if let Some(shortcut) = &block.shortcut {
                x = normalised(shortcut, p, norm, &x, Activation::LINEAR)?;
            }
            x = bias_act(&add(&x, &y)?, None, None, Activation::RELU)?;
        }
        let pooled = avg_pool2d(&x, Window::whole([x.dim(1), x.dim(2)]), Divisor::Kernel)?;
        reshape(&pooled, &[x.dim(0), self.features()])
    }
}

/// Adds the running statistics of one normalisation of `c` channels.
pub(super) fn running_statistics(l: &mut Layout, layer: &str, c: usize) {
    l.plain(format!("{layer}.running_mean"), &[c], Init::Constant(0.0));
    l.plain(format!("{layer}.running_var"), &[c], Init::Constant(1.0));
}

fn normalised(c: &Conv, p: &Params, norm: &mut Normalise, x: &Var, act: Activation) -> Result<Var> {
    let (weight, spec) = (p.get(&c.weight), Conv2d::square(c.stride, c.kernel / 2));
    match c.groups {
        1 => norm.convolve(p, &c.norm, [x, weight], spec, act),
        groups => norm.apply(p, &c.norm, &grouped(x, weight, groups, spec)?, act),
    }
}

/// Channels that one convolution of a grouped one takes: groups narrower than this share one, with zeros between
/// them. A GEMM of a few channels per group runs far below its speed.
const SHARED_CHANNELS: usize = 64;

/// Grouped convolution: `x` `[N, H, W, C_in]`, `w` `[C_out, k_h, k_w, C_in / groups]`; output channels of group `g` see
/// input channels of group `g` only.
fn grouped(x: &Var, w: &Var, groups: usize, spec: Conv2d) -> Result<Var> {
    let (per_in, per_out) = (x.dim(3) / groups, w.dim(0) / groups);
    let together = (1..=groups).rev().find(|t| groups.is_multiple_of(*t) && t * per_in <= SHARED_CHANNELS).unwrap_or(1);
    let mut parts = Vec::new();
    for first in (0..groups).step_by(together) {
        let blocks = (0..together)
            .map(|i| pad(&slice(w, 0, (first + i) * per_out, per_out)?, 3, i * per_in, together * per_in))
            .collect::<Result<Vec<_>>>()?;
        let weight = concat(&blocks.iter().collect::<Vec<_>>(), 0)?;
        let channels = slice(x, 3, first * per_in, together * per_in)?;
        parts.push(conv2d(&channels, &weight, Scales::NONE, spec)?);
    }
    concat(&parts.iter().collect::<Vec<_>>(), 3)
}
