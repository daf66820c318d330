//! What `doctor` checks and `bench` times: every kernel through the op that launches it, at a small size to compare with
//! the CPU and at a large one to time, with the bytes and operations that the large one cannot do without.

use crate::autograd::Var;
use crate::device::{Device, Precision};
use crate::device::cuda::Workspace;
use crate::device::peak::median;
use crate::error::Result;
use crate::metrics::FeatureStats;
use crate::nn::{AdamState, Init, Layout, ParamSlab};
use crate::ops::bias_act::{Activation, Epilogue, EpilogueGrad, bias_act, bias_act_grad, epilogue_grad};
use crate::ops::conv2d::{Conv2d, WeightGrad, conv2d, conv2d_act, conv2d_transpose, conv2d_weight_grad, conv2d_weight_grad_squared};
use crate::ops::elementwise::{Map, Zip, cast, channel_scale, map, zip};
use crate::ops::layout::{concat, permute};
use crate::ops::matmul::{Read, matmul};
use crate::ops::pool2d::{Divisor, Window, avg_pool2d, avg_pool2d_transpose, gather_taps, max_pool2d, max_pool2d_taps, scatter_taps};
use crate::ops::resize::{Resize, resize};
use crate::ops::optimizer::{Adam, Pull, RepulsionLoss, accumulate_squares, ewc, weighted_squared_distance};
use crate::ops::random::Random;
use crate::ops::reduce::{channel_dot, sum_to};
use crate::ops::upfirdn2d::{RESAMPLE_TAPS, Upfirdn2d, upfirdn2d, upfirdn2d_act};
use crate::tensor::{DType, Tensor};

/// How large a probe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Around the edges of tiles: for comparison with the CPU.
    Small,
    /// As in training: for times.
    Large,
}

impl Size {
    fn pick<T>(self, small: T, large: T) -> T {
        match self {
            Size::Small => small,
            Size::Large => large,
        }
    }
}

/// One call, with its inputs; each gives the same kind of result.
pub type Call = Box<dyn FnMut() -> Result<Tensor>>;

/// Makes a call of that size on that device, with the inputs of a seed.
type Prepare = Box<dyn Fn(Size, &Device, u64) -> Result<Call>>;

/// An op at two sizes.
pub struct Probe {
    pub name: &'static str,
    /// What a large call must at least move and compute.
    pub bytes: f64,
    pub flops: f64,
    /// How far the GPU may be from the CPU, relative, in the L2 norm.
    pub tolerance: f64,
    pub products: Products,
    /// Whether it can be timed: some calls read their result, which a recorded graph cannot.
    pub timed: bool,
    prepare: Prepare,
}

/// What an op multiplies, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// f32, if anything.
    F32,
    /// As the device's convolutions do.
    Device,
    /// bf16 on tensor cores.
    Bf16,
}

/// Where numbers are moved, drawn as integers, or rounded once or twice.
const EXACT: f64 = 1e-6;
/// A few roundings to 2^-8, which do not all have one sign.
const BF16: f64 = 8e-3;
/// Functions of two mathematical libraries; sums in another order.
const ROUNDING: f64 = 1e-5;

impl Probe {
    /// A function of tensors of these shapes. `bytes`: its inputs and its output once, counted at the large size.
    fn function(name: &'static str, shapes: fn(Size) -> Vec<Vec<usize>>, run: fn(&[Tensor]) -> Result<Tensor>, output: usize, flops: f64) -> Probe {
        let elements = shapes(Size::Large).iter().map(|s| s.iter().product::<usize>()).sum::<usize>() + output;
        let prepare = move |size: Size, device: &Device, seed: u64| -> Result<Call> {
            let inputs = shapes(size).iter().zip(0..).map(|(s, i)| Random::new(seed, i).normal(s).to_device(device)).collect::<Result<Vec<_>>>()?;
            Ok(Box::new(move || run(&inputs)))
        };
        Probe { name, bytes: 4.0 * elements as f64, flops, tolerance: ROUNDING, products: Products::F32, timed: true, prepare: Box::new(prepare) }
    }

    /// The same with bf16 in place of f32 on a GPU.
    fn stored(name: &'static str, activations: usize, dtype: DType, shapes: fn(Size) -> Vec<Vec<usize>>, run: fn(&[Tensor]) -> Result<Tensor>, output: usize, flops: f64) -> Probe {
        let bytes = |(i, shape): (usize, &Vec<usize>)| shape.iter().product::<usize>() * if i < activations { DType::Bf16 } else { DType::F32 }.size();
        let moved = shapes(Size::Large).iter().enumerate().map(bytes).sum::<usize>() + output * dtype.size();
        let prepare = move |size: Size, device: &Device, seed: u64| -> Result<Call> {
            let input = |(i, shape): (usize, &Vec<usize>)| {
                let input = Random::new(seed, i as u64).normal(shape).to_device(device)?;
                if i < activations && *device != Device::Cpu { cast(&input, DType::Bf16) } else { Ok(input) }
            };
            let inputs = shapes(size).iter().enumerate().map(input).collect::<Result<Vec<_>>>()?;
            Ok(Box::new(move || run(&inputs)))
        };
        Probe { name, bytes: moved as f64, flops, tolerance: BF16, products: Products::F32, timed: true, prepare: Box::new(prepare) }
    }

    /// A pass over a parameter slab that moves so many f32 per parameter.
    fn pass(name: &'static str, streams: usize, prepare: impl Fn(SlabInputs) -> Call + 'static) -> Probe {
        let prepare = move |size: Size, device: &Device, seed: u64| Ok(prepare(SlabInputs::new(size, device, seed)?));
        let bytes = (4 * streams * layout(Size::Large).len()) as f64;
        Probe { name, bytes, flops: 0.0, tolerance: ROUNDING, products: Products::F32, timed: true, prepare: Box::new(prepare) }
    }

    /// A function of tensors, the first of which, so many, are activations: of f32, and of bf16 with an output of that type.
    fn both(
        names: [&'static str; 2],
        activations: usize,
        dtype: DType,
        shapes: fn(Size) -> Vec<Vec<usize>>,
        run: fn(&[Tensor]) -> Result<Tensor>,
        output: usize,
        flops: f64,
    ) -> [Probe; 2] {
        [Probe::function(names[0], shapes, run, output, flops), Probe::stored(names[1], activations, dtype, shapes, run, output, flops)]
    }

    fn multiplies(self, products: Products) -> Probe {
        Probe { products, ..self }
    }

    fn exact(self) -> Probe {
        Probe { tolerance: EXACT, ..self }
    }

    fn not_timed(self) -> Probe {
        Probe { timed: false, ..self }
    }

    /// How far a device may be: convolutions as far as their products are rounded.
    pub fn allowed(&self, device: &Device) -> f64 {
        let Device::Cuda(gpu) = device else { return self.tolerance };
        match gpu.precision() {
            _ if self.products != Products::Device => self.tolerance,
            Precision::F32 | Precision::Tf32x3 => self.tolerance,
            // Two roundings to 2^-11 (2^-8) per product, which do not all have one sign.
            Precision::Tf32 => 1e-3,
            Precision::Bf16 => BF16,
        }
    }

    /// Relative distance of a device's result from the CPU's.
    pub fn error(&self, device: &Device) -> Result<f64> {
        let result = |device: &Device| -> Result<Vec<f64>> { Ok((self.prepare)(Size::Small, device, 1)?()?.to_device(&Device::Cpu)?.to_f64_vec()) };
        // Small layers are to take the kernels that are timed with large ones.
        const SMALL_CHIP: u32 = 4;
        let divide = |multiprocessors: u32| match device {
            Device::Cpu => 0,
            Device::Cuda(gpu) => gpu.divide_for(multiprocessors),
        };
        let (want, before) = (result(&Device::Cpu)?, divide(SMALL_CHIP));
        let got = result(device);
        divide(before);
        let got = got?;
        let norm: f64 = want.iter().map(|v| v * v).sum();
        let error: f64 = want.iter().zip(&got).map(|(w, g)| (w - g) * (w - g)).sum();
        // No comparison holds for a NaN: it is infinitely wrong.
        let relative = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
        Ok(if want.len() == got.len() && relative.is_finite() { relative } else { f64::INFINITY })
    }

    /// Seconds of a call with nothing in the cache: the middle of `repeats` runs over several sets of inputs, which
    /// together are larger than it.
    pub fn seconds(&self, size: Size, device: &Device, repeats: usize) -> Result<f64> {
        let cache = match device {
            Device::Cpu => 0,
            Device::Cuda(gpu) => gpu.cache()?,
        };
        /// More sets than this only for kernels that are over before their launch is.
        const MOST_SETS: f64 = 32.0;
        let sets = (2.0 * cache as f64 / self.bytes.max(1.0)).ceil().clamp(1.0, MOST_SETS) as u64;
        let mut calls = (0..sets).map(|seed| (self.prepare)(size, device, seed)).collect::<Result<Vec<_>>>()?;
        seconds(device, &mut calls, repeats)
    }

    /// The least time that a machine of that bandwidth and that rate can take.
    pub fn floor(&self, bandwidth: f64, rate: f64) -> f64 {
        (self.bytes / bandwidth).max(self.flops / rate)
    }
}

/// Seconds per call. On a GPU all calls are one recorded graph, so that the host's part is not timed.
fn seconds(device: &Device, calls: &mut [Call], repeats: usize) -> Result<f64> {
    let n = calls.len() as f64;
    let Device::Cuda(gpu) = device else {
        let mut times = Vec::new();
        for _ in 0..repeats {
            let start = std::time::Instant::now();
            for call in &mut *calls {
                call()?;
            }
            times.push(start.elapsed().as_secs_f64() / n);
        }
        return Ok(median(times));
    };
    let workspace = Workspace::default();
    let mut all = || calls.iter_mut().try_for_each(|call| call().map(|_| ()));
    gpu.with_workspace(&workspace, &mut all)?;
    let (mut graph, ()) = gpu.record(&workspace, &mut all)?;
    graph.launch()?;
    let times = (0..repeats).map(|_| gpu.time(|| graph.launch())).collect::<Result<Vec<_>>>()?;
    Ok(median(times) / n)
}

/// The slabs of one network: as large as a StyleGAN2 of 32 px at full width, or three short parameters.
fn layout(size: Size) -> Layout {
    let mut layout = Layout::new();
    let sizes = size.pick(vec![5, 1030, 3], [vec![2_359_296; 9], vec![512; 40], vec![1; 6]].concat());
    for (i, n) in sizes.into_iter().enumerate() {
        layout.plain(format!("p{i}"), &[n], Init::Normal(1.0));
    }
    layout
}

struct SlabInputs {
    params: ParamSlab,
    ema: ParamSlab,
    anchor: ParamSlab,
    fisher: ParamSlab,
    grads: Vec<Var>,
    optim: AdamState,
}

impl SlabInputs {
    fn new(size: Size, device: &Device, seed: u64) -> Result<SlabInputs> {
        let layout = std::sync::Arc::new(layout(size));
        let slab = |stream: u64| ParamSlab::init(&layout, &mut Random::new(seed, stream)).to_device(device);
        let fisher = ParamSlab::from_values(&layout, Random::new(seed, 9).uniform(&[layout.len()]).to_vec())?.to_device(device)?;
        let grads = layout.segments().iter().zip(20..).map(|(s, i)| Ok(Var::constant(Random::new(seed, i).normal(&s.shape).to_device(device)?))).collect::<Result<_>>()?;
        let adam = Adam { lr: 0.01, beta1: 0.0, beta2: 0.99, eps: 1e-8 };
        Ok(SlabInputs { params: slab(1)?, ema: slab(2)?, anchor: slab(3)?, fisher, grads, optim: AdamState::new(&layout, adam).to_device(device)? })
    }

    /// An optimiser step with its average.
    fn adam(mut self, pull: Kind) -> Call {
        let weights = vec![1.0; self.grads.len()];
        Box::new(move || {
            let pull = match pull {
                Kind::Plain => Pull::None,
                Kind::L1 => Pull::L1 { strength: 0.1 },
                Kind::Ewc => Pull::Ewc { anchor: self.anchor.values(), fisher: self.fisher.values(), lambda: 0.5 },
                Kind::Repulsion => Pull::Centroid {
                    centroid: self.anchor.values(),
                    weights: &weights,
                    loss: RepulsionLoss::Nl2 { gamma: 1e-3 },
                    spread: 0.0,
                    distance: 0.0,
                    gradient: true,
                },
            };
            self.optim.step(&mut self.params, Some((&mut self.ema, 0.99)), &self.grads, pull)?;
            Ok(self.params.values().clone())
        })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    L1,
    Ewc,
    Repulsion,
}

fn number(value: f64) -> Tensor {
    Tensor::full(&[1], value, DType::F32)
}

/// Products of a convolution `[n, out, out, co]` with `k × k` weights over `ci` channels, two operations each.
fn conv_flops(n: usize, out: usize, co: usize, k: usize, ci: usize) -> f64 {
    2.0 * (n * out * out * co * k * k * ci) as f64
}

/// All probes; together they launch every kernel.
pub fn probes() -> Vec<Probe> {
    const N: usize = 16;
    const LARGE: usize = N * 32 * 32 * 512;
    let mut all = elementwise(LARGE);
    all.extend(convolutions(N));
    all.extend(products());
    all.extend(pooling());
    all.extend(passes());
    all.push(feature_statistics());
    all
}

/// `large`: elements of the activations at the large size.
fn elementwise(large: usize) -> Vec<Probe> {
    fn x(size: Size) -> Vec<usize> {
        size.pick(vec![2, 5, 3, 16], vec![16, 32, 32, 512])
    }
    fn channels(size: Size) -> usize {
        x(size)[3]
    }
    fn random(size: Size, device: &Device, seed: u64, draw: fn(&mut Random, &[usize], &Device) -> Result<Tensor>) -> Call {
        let (device, shape, rng) = (device.clone(), vec![size.pick(1001, 1 << 23)], Random::new(seed, 1));
        Box::new(move || draw(&mut rng.clone(), &shape, &device))
    }
    let drawn = |name, draw: fn(&mut Random, &[usize], &Device) -> Result<Tensor>| Probe {
        name,
        bytes: 4.0 * (1 << 23) as f64,
        flops: 0.0,
        tolerance: ROUNDING,
        products: Products::F32,
        timed: true,
        prepare: Box::new(move |size, device, seed| Ok(random(size, device, seed, draw))),
    };
    // What is moved, or rounded once as the CPU rounds.
    let exact = |[f32, bf16]: [Probe; 2]| [f32.exact(), bf16];
    let untimed = |pair: [Probe; 2]| pair.map(Probe::not_timed);
    fn blur(x: &Tensor, up: usize, down: usize) -> Result<Tensor> {
        let pad = if up == 2 { [2, 1] } else { [1, 1] };
        upfirdn2d(x, &Upfirdn2d::new(&RESAMPLE_TAPS, up, down, pad, 1.0))
    }
    fn few(size: Size) -> Vec<usize> {
        size.pick(vec![2, 9, 7, 3], vec![16, 256, 256, 3])
    }
    fn over_pixels(x: &Tensor) -> Result<Tensor> {
        sum_to(x, &[x.dim(0), 1, 1, x.dim(3)])
    }
    /// Gradient and output, the scale's logarithm, bias, noise and its strength.
    fn way_back(x: Vec<usize>) -> Vec<Vec<usize>> {
        let (n, c) = (x[0], x[3]);
        vec![x.clone(), x.clone(), vec![n, c], vec![c], vec![n, x[1], x[2], 1], vec![1]]
    }
    fn back(t: &[Tensor]) -> Result<EpilogueGrad> {
        epilogue_grad(&t[0], &t[1], Epilogue { bias: Some(&t[3]), noise: Some((&t[4], &t[5])), act: Activation::LEAKY_RELU }, Some(&map(&t[2], Map::Exp)?))
    }
    const BF: DType = DType::Bf16;
    let pairs = [
        Probe::both(
            ["bias, noise and leaky ReLU", "bias, noise and leaky ReLU, bf16"],
            1,
            BF,
            |s| vec![x(s), vec![channels(s)], [&x(s)[..3], &[1]].concat(), vec![1]],
            |t| bias_act(&t[0], Some(&t[1]), Some((&t[2], &t[3])), Activation::LEAKY_RELU),
            large,
            0.0,
        ),
        Probe::both(
            ["FIR, noise, bias and leaky ReLU", "FIR, noise, bias and leaky ReLU, bf16"],
            1,
            BF,
            |s| vec![x(s), vec![channels(s)], vec![x(s)[0], x(s)[1] - 1, x(s)[2] - 1, 1], vec![1]],
            |t| {
                let then = Epilogue { bias: Some(&t[1]), noise: Some((&t[2], &t[3])), act: Activation::LEAKY_RELU };
                upfirdn2d_act(&t[0], &Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [1, 1], 4.0), then)
            },
            large / (32 * 32) * (31 * 31),
            0.0,
        ),
        Probe::both(
            ["leaky ReLU gradient", "leaky ReLU gradient, bf16"],
            2,
            BF,
            |s| vec![x(s), x(s)],
            |t| bias_act_grad(&t[0], &t[1], Activation::LEAKY_RELU),
            large,
            0.0,
        ),
        Probe::both(
            ["leaky ReLU gradient with sums", "leaky ReLU gradient with sums, bf16"],
            2,
            BF,
            |s| way_back(x(s)),
            |t| Ok(back(t)?.between),
            large,
            0.0,
        ),
        untimed(Probe::both(
            ["demodulation gradient", "demodulation gradient, bf16"],
            2,
            DType::F32,
            |s| way_back(x(s)),
            |t| Ok(back(t)?.scale.expect("it was given")),
            0,
            0.0,
        )),
        untimed(Probe::both(
            ["demodulation gradient of images", "demodulation gradient of images, bf16"],
            2,
            DType::F32,
            |s| way_back(few(s)),
            |t| Ok(back(t)?.scale.expect("it was given")),
            0,
            0.0,
        )),
        Probe::both(["softplus", "softplus, bf16"], 1, BF, |s| vec![x(s)], |t| map(&t[0], Map::Softplus), large, 0.0),
        exact(Probe::both(["sum of two", "sum of two, bf16"], 2, BF, |s| vec![x(s), x(s)], |t| zip(&t[0], &t[1], Zip::Add), large, 0.0)),
        exact(Probe::both(
            ["channel scale", "channel scale, bf16"],
            1,
            BF,
            |s| vec![x(s), vec![x(s)[0], channels(s)]],
            |t| channel_scale(&t[0], &t[1]),
            large,
            0.0,
        )),
        exact(Probe::both(["permute to NCHW", "permute to NCHW, bf16"], 1, BF, |s| vec![x(s)], |t| permute(&t[0], &[0, 3, 1, 2]), large, 0.0)),
        exact(Probe::both(
            ["concatenate channels", "concatenate channels, bf16"],
            2,
            BF,
            |s| vec![x(s), x(s)],
            |t| concat(&[&t[0], &t[1]], 3),
            2 * large,
            0.0,
        )),
        Probe::both(["sum over pixels", "sum over pixels, bf16"], 1, DType::F32, |s| vec![x(s)], |t| over_pixels(&t[0]), 0, 0.0),
        Probe::both(["sum over pixels of an image", "sum over pixels of an image, bf16"], 1, DType::F32, |s| vec![few(s)], |t| over_pixels(&t[0]), 0, 0.0),
        Probe::both(["channel dot", "channel dot, bf16"], 2, DType::F32, |s| vec![x(s), x(s)], |t| channel_dot(&t[0], &t[1]), 0, 0.0),
        Probe::both(["channel dot of images", "channel dot of images, bf16"], 2, DType::F32, |s| vec![few(s), few(s)], |t| channel_dot(&t[0], &t[1]), 0, 0.0),
        Probe::both(["upsample and filter", "upsample and filter, bf16"], 1, BF, |s| vec![x(s)], |t| blur(&t[0], 2, 1), 4 * large, 0.0),
        Probe::both(["filter", "filter, bf16"], 1, BF, |s| vec![x(s)], |t| blur(&t[0], 1, 1), large, 0.0),
        Probe::both(["filter and downsample", "filter and downsample, bf16"], 1, BF, |s| vec![x(s)], |t| blur(&t[0], 1, 2), large / 4, 0.0),
    ];
    let mut all: Vec<Probe> = pairs.into_iter().flatten().collect();
    all.extend([
        Probe::stored("f32 of bf16", 1, DType::F32, |s| vec![x(s)], |t| cast(&t[0], DType::F32), large, 0.0),
        // From f32 to bf16 on a GPU alone; the CPU's result is what is rounded.
        Probe::stored("bf16 of f32", 0, BF, |s| vec![x(s)], |t| if t[0].device() == Device::Cpu { Ok(t[0].clone()) } else { cast(&t[0], BF) }, large, 0.0),
        drawn("uniform numbers", |rng, shape, device| rng.uniform_on(shape, device)),
        drawn("normal numbers", |rng, shape, device| rng.normal_on(shape, device)),
    ]);
    all
}

fn convolutions(n: usize) -> Vec<Probe> {
    const SAME: Conv2d = Conv2d::square(1, 1);
    const UP: Conv2d = Conv2d::square(2, 0);
    let (hw, wide) = (32, 512);
    let activations = n * hw * hw * wide;
    let products = |[f32, bf16]: [Probe; 2]| [f32.multiplies(Products::Device), bf16.multiplies(Products::Bf16)];
    let pairs = [
        products(Probe::both(
            ["conv2d 3x3, scaled", "conv2d 3x3, scaled, bf16"],
            1,
            DType::Bf16,
            |s| s.pick(vec![vec![2, 6, 5, 9], vec![70, 3, 3, 9], vec![2, 9], vec![2, 70]], vec![vec![16, 32, 32, 512], vec![512, 3, 3, 512], vec![16, 512], vec![16, 512]]),
            |t| conv2d(&t[0], &t[1], Some(&t[2]), Some(&t[3]), SAME),
            activations,
            conv_flops(n, hw, wide, 3, wide),
        )),
        Probe::both(
            ["conv2d 1x1 to RGB", "conv2d 1x1 to RGB, bf16"],
            1,
            DType::Bf16,
            |s| s.pick(vec![vec![2, 6, 5, 20], vec![3, 1, 1, 20]], vec![vec![16, 32, 32, 512], vec![3, 1, 1, 512]]),
            |t| conv2d(&t[0], &t[1], None, None, Conv2d::square(1, 0)),
            n * hw * hw * 3,
            conv_flops(n, hw, 3, 1, wide),
        ),
        products(Probe::both(
            ["conv2d 3x3, scaled, with noise, bias and leaky ReLU", "conv2d 3x3, scaled, with noise, bias and leaky ReLU, bf16"],
            1,
            DType::Bf16,
            |s| {
                let [x, w] = s.pick([[2, 6, 5, 9], [70, 3, 3, 9]], [[16, 32, 32, 512], [512, 3, 3, 512]]);
                vec![x.into(), w.into(), vec![x[0], x[3]], vec![x[0], w[0]], vec![w[0]], vec![1, x[1], x[2], 1], vec![1]]
            },
            |t| conv2d_act(&t[0], &t[1], Some(&t[2]), Some(&t[3]), SAME, Epilogue { bias: Some(&t[4]), noise: Some((&t[5], &t[6])), act: Activation::LEAKY_RELU }),
            activations,
            conv_flops(n, hw, wide, 3, wide),
        )),
        products(Probe::both(
            ["conv2d 3x3 of a small map, with bias and leaky ReLU", "conv2d 3x3 of a small map, with bias and leaky ReLU, bf16"],
            1,
            DType::Bf16,
            |s| s.pick(vec![vec![1, 4, 3, 40], vec![70, 3, 3, 40], vec![70]], vec![vec![16, 4, 4, 512], vec![512, 3, 3, 512], vec![512]]),
            |t| conv2d_act(&t[0], &t[1], None, None, SAME, Epilogue { bias: Some(&t[2]), noise: None, act: Activation::LEAKY_RELU }),
            n * 4 * 4 * wide,
            conv_flops(n, 4, wide, 3, wide),
        )),
        Probe::both(
            ["conv2d 1x1 to RGB, with bias", "conv2d 1x1 to RGB, with bias, bf16"],
            1,
            DType::Bf16,
            |s| s.pick(vec![vec![2, 6, 5, 20], vec![3, 1, 1, 20], vec![3]], vec![vec![16, 32, 32, 512], vec![3, 1, 1, 512], vec![3]]),
            |t| conv2d_act(&t[0], &t[1], None, None, Conv2d::square(1, 0), Epilogue { bias: Some(&t[2]), noise: None, act: Activation::LINEAR }),
            n * hw * hw * 3,
            conv_flops(n, hw, 3, 1, wide),
        ),
        products(Probe::both(
            ["conv2d transpose 3x3, stride 2", "conv2d transpose 3x3, stride 2, bf16"],
            1,
            DType::Bf16,
            |s| s.pick(vec![vec![2, 4, 5, 9], vec![9, 3, 3, 70]], vec![vec![16, 16, 16, 512], vec![512, 3, 3, 512]]),
            |t| conv2d_transpose(&t[0], &t[1], None, None, UP, [2 * t[0].dim(1) + 1, 2 * t[0].dim(2) + 1]),
            n * 33 * 33 * wide,
            conv_flops(n, 16, wide, 3, wide),
        )),
        Probe::both(
            ["conv2d transpose 1x1 from RGB", "conv2d transpose 1x1 from RGB, bf16"],
            1,
            DType::Bf16,
            |s| s.pick(vec![vec![2, 6, 5, 20], vec![20, 1, 1, 3]], vec![vec![16, 32, 32, 512], vec![512, 1, 1, 3]]),
            |t| conv2d_transpose(&t[0], &t[1], None, None, Conv2d::square(1, 0), [t[0].dim(1), t[0].dim(2)]),
            n * hw * hw * 3,
            conv_flops(n, hw, 3, 1, wide),
        ),
        products(Probe::both(
            ["conv2d weight gradient 3x3", "conv2d weight gradient 3x3, bf16"],
            2,
            DType::F32,
            |s| s.pick(vec![vec![2, 16, 9, 9], vec![2, 16, 9, 70]], vec![vec![16, 32, 32, 512], vec![16, 32, 32, 512]]),
            |t| conv2d_weight_grad(&t[0], &t[1], None, None, SAME, [3, 3]),
            9 * wide * wide,
            conv_flops(n, hw, wide, 3, wide),
        )),
        products(Probe::both(
            ["conv2d squared weight gradients 3x3", "conv2d squared weight gradients 3x3, bf16"],
            2,
            DType::F32,
            |s| s.pick(vec![vec![4, 6, 5, 9], vec![4, 6, 5, 70]], vec![vec![16, 32, 32, 512], vec![16, 32, 32, 512]]),
            |t| {
                let of = WeightGrad { x: t[0].clone(), g: t[1].clone(), a: None, b: None, spec: SAME, kernel: [3, 3] };
                let shape = [t[1].dim(3), 3, 3, t[0].dim(3)];
                let mut squares = Tensor::full_on(&shape, 0.0, DType::F32, &t[0].device())?;
                conv2d_weight_grad_squared(&of, 2, None, 0.5, &mut squares, 0)?;
                Ok(squares)
            },
            9 * wide * wide,
            conv_flops(n, hw, wide, 3, wide),
        )),
    ];
    // Enough channels for Hopper's own kernels, with wide and with narrow tiles.
    let untimed = |pair: [Probe; 2]| products(pair).map(Probe::not_timed);
    let enough = [
        untimed(Probe::both(
            ["conv2d 3x3 of 64 channels", "conv2d 3x3 of 64 channels, bf16"],
            1,
            DType::Bf16,
            |_| vec![vec![3, 9, 7, 64], vec![80, 3, 3, 64], vec![3, 64], vec![3, 80]],
            |t| conv2d(&t[0], &t[1], Some(&t[2]), Some(&t[3]), SAME),
            3 * 9 * 7 * 80,
            conv_flops(3, 8, 80, 3, 64),
        )),
        untimed(Probe::both(
            ["conv2d 1x1 to 248 channels, stride 2", "conv2d 1x1 to 248 channels, stride 2, bf16"],
            1,
            DType::Bf16,
            |_| vec![vec![7, 13, 13, 64], vec![248, 1, 1, 64]],
            |t| conv2d(&t[0], &t[1], None, None, UP),
            7 * 7 * 7 * 248,
            conv_flops(7, 7, 248, 1, 64),
        )),
        untimed(Probe::both(
            ["conv2d transpose 3x3 to 64 channels, stride 2", "conv2d transpose 3x3 to 64 channels, stride 2, bf16"],
            1,
            DType::Bf16,
            |_| vec![vec![3, 5, 6, 72], vec![72, 3, 3, 64]],
            |t| conv2d_transpose(&t[0], &t[1], None, None, UP, [2 * t[0].dim(1) + 1, 2 * t[0].dim(2) + 1]),
            3 * 11 * 13 * 64,
            conv_flops(3, 6, 64, 3, 72),
        )),
        untimed(Probe::both(
            ["conv2d weight gradient 3x3 of 64 channels", "conv2d weight gradient 3x3 of 64 channels, bf16"],
            2,
            DType::F32,
            |_| vec![vec![3, 9, 7, 64], vec![3, 9, 7, 72]],
            |t| conv2d_weight_grad(&t[0], &t[1], None, None, SAME, [3, 3]),
            9 * 64 * 72,
            conv_flops(3, 8, 72, 3, 64),
        )),
    ];
    pairs.into_iter().chain(enough).flatten().collect()
}

fn pooling() -> Vec<Probe> {
    const WINDOW: Window = Window::square(3, 2, 1);
    fn x(size: Size) -> Vec<usize> {
        size.pick(vec![2, 9, 7, 12], vec![16, 64, 64, 256])
    }
    let (large, quarter) = (16 * 64 * 64 * 256, 16 * 32 * 32 * 256);
    vec![
        Probe::function("max pooling", |s| vec![x(s)], |t| max_pool2d(&t[0], WINDOW), quarter, 0.0).exact(),
        Probe::function(
            "max pooling, choice and gradient",
            |s| vec![x(s)],
            |t| {
                let taps = max_pool2d_taps(&t[0], WINDOW)?;
                scatter_taps(&gather_taps(&t[0], &taps, WINDOW)?, &taps, WINDOW, [t[0].dim(1), t[0].dim(2)])
            },
            large + 4 * quarter,
            0.0,
        )
        .exact(),
        Probe::function("average pooling", |s| vec![x(s)], |t| avg_pool2d(&t[0], WINDOW, Divisor::Inside), quarter, 0.0),
        Probe::function(
            "average pooling gradient",
            |s| vec![size_of_windows(&x(s))],
            |t| avg_pool2d_transpose(&t[0], WINDOW, Divisor::Kernel, [2 * t[0].dim(1) - 1, 2 * t[0].dim(2) - 1]),
            large,
            0.0,
        ),
        Probe::function("resize to 299 px", |s| vec![s.pick(vec![2, 9, 7, 3], vec![64, 64, 64, 3])], |t| resize(&t[0], [299; 2], Resize::AntialiasedBilinear), 64 * 299 * 299 * 3, 0.0).not_timed(),
    ]
}

/// Of windows of three with stride two.
fn size_of_windows(x: &[usize]) -> Vec<usize> {
    vec![x[0], x[1].div_ceil(2), x[2].div_ceil(2), x[3]]
}

fn products() -> Vec<Probe> {
    const M: usize = 1024;
    let flops = 2.0 * (M * M * M) as f64;
    fn pair(size: Size, a: [usize; 2], b: [usize; 2]) -> Vec<Vec<usize>> {
        size.pick(vec![a.to_vec(), b.to_vec()], vec![vec![M, M]; 2])
    }
    vec![
        Probe::function("matmul", |s| pair(s, [65, 40], [40, 70]), |t| matmul(&t[0], Read::Plain, &t[1], Read::Plain), M * M, flops),
        Probe::function("matmul, second transposed", |s| pair(s, [65, 40], [70, 40]), |t| matmul(&t[0], Read::Plain, &t[1], Read::Transposed), M * M, flops),
        Probe::function("matmul, first transposed", |s| pair(s, [40, 65], [40, 70]), |t| matmul(&t[0], Read::Transposed, &t[1], Read::Plain), M * M, flops),
        Probe::function("matmul, both transposed", |s| pair(s, [40, 65], [70, 40]), |t| matmul(&t[0], Read::Transposed, &t[1], Read::Transposed), M * M, flops),
    ]
}

/// Mean and covariance of as many features as FID has.
fn feature_statistics() -> Probe {
    const LARGE: [usize; 2] = [512, 2048];
    Probe::function(
        "feature statistics",
        |s| vec![s.pick([37, 70], LARGE).to_vec()],
        |t| {
            let mut stats = FeatureStats::new(t[0].dim(1));
            stats.add(&t[0])?;
            let found = stats.finish()?;
            let all = found.mu.iter().chain(&found.sigma).map(|v| *v as f32).collect::<Vec<f32>>();
            Ok(Tensor::from_vec(&[all.len()], all))
        },
        2 * 2 * LARGE[1] * LARGE[1],
        (LARGE[0] * LARGE[1] * LARGE[1]) as f64,
    )
    .not_timed()
}

fn passes() -> Vec<Probe> {
    vec![
        Probe::pass("Adam and average", 7, |s| s.adam(Kind::Plain)),
        Probe::pass("Adam, average and L1", 7, |s| s.adam(Kind::L1)),
        Probe::pass("Adam, average and EWC", 9, |s| s.adam(Kind::Ewc)),
        Probe::pass("Adam, average and repulsion", 8, |s| s.adam(Kind::Repulsion)),
        Probe::pass("squared gradients", 3, |mut s| {
            Box::new(move || {
                let grads: Vec<Tensor> = s.grads.iter().map(|g| g.value().clone()).collect();
                let offsets = s.fisher.layout().offsets();
                accumulate_squares(s.fisher.values_mut(), &grads, &offsets, 0.1)?;
                Ok(s.fisher.values().clone())
            })
        })
        .not_timed(),
        Probe::pass("EWC penalty and gradient", 5, |s| {
            Box::new(move || {
                let (penalty, gradient) = ewc(s.params.values(), s.anchor.values(), s.fisher.values(), 0.5)?;
                concat(&[&number(penalty), &gradient.to_device(&Device::Cpu)?], 0)
            })
        })
        .not_timed(),
        Probe::pass("repulsion distance", 2, |s| {
            let offsets = s.params.layout().offsets();
            Box::new(move || {
                let weights = vec![0.5; offsets.len()];
                Ok(number(weighted_squared_distance(s.params.values(), s.anchor.values(), &offsets, &weights)?))
            })
        })
        .not_timed(),
    ]
}
