//! The networks that judge on a GPU: classifiers train and judge there as on the CPU, Inception has the same features and
//! two sets of images the same distance. On the emulator of tests/cuda_on_cpu, or with `RECANT_TEST_DEVICE=driver` on the
//! machine's GPU.

mod common;

use std::collections::BTreeMap;

use common::{gpu, hashed};
use recant::autograd::Var;
use recant::device::Device;
use recant::io::pictures::Pictures;
use recant::metrics::{Extractor, FidProtocol, Preparation, fid};
use recant::models::classifier::{Architecture, Augment, Classifier, ClassifierConfig, Decision, LabelledImages, Labels, Optimizer, Recipe, Schedule, train};
use recant::models::inception::{Block, Inception, SIZE};
use recant::models::resnet::ResNet;
use recant::nn::{AdamState, Adamax, Init, Layout, ParamSlab};
use recant::ops::optimizer::{Adam, Pull};
use recant::ops::random::Random;
use recant::tensor::Tensor;

/// Images that have little in common, each with stripes of its own: batch statistics of images that are alike amplify
/// rounding errors.
fn pictures(n: usize, shape: [usize; 3]) -> Pictures {
    let [h, w, c] = shape;
    let mut r = Random::new(8, 0);
    let mut bytes = Vec::new();
    for _ in 0..n {
        let waves: Vec<[f32; 3]> = (0..c).map(|_| [r.unit() * 1.5, r.unit() * 1.5, r.unit() * 6.0]).collect();
        for pixel in 0..h * w {
            let (y, x) = ((pixel / w) as f32, (pixel % w) as f32);
            bytes.extend(waves.iter().map(|[fy, fx, phase]| (128.0 + 100.0 * (fy * y + fx * x + phase).sin()) as u8));
        }
    }
    Pictures::from_bytes(bytes, shape)
}

/// Steps in proportion to the gradient: with the usual ε a gradient of rounding errors would move a parameter as far as
/// any other.
const EPS: f64 = 1.0;
const ADAM: Optimizer = Optimizer::Adam(Adam { lr: 0.02, beta1: 0.9, beta2: 0.999, eps: EPS });
const ADAMAX: Optimizer = Optimizer::Adamax(Adamax { lr: 0.02, beta1: 0.9, beta2: 0.999, eps: EPS });

/// Losses of a run and the trained classifier, on the host.
fn trained(config: &ClassifierConfig, data: LabelledImages, recipe: &Recipe, device: &Device) -> (Vec<f64>, Classifier) {
    let mut losses = Vec::new();
    let net = train(config, data, recipe, device, &mut |p| {
        losses.push(p.loss);
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()));
    (losses, net.to_device(&Device::Cpu).unwrap())
}

/// Trains on both devices. Of the tensors that `compared` names, the largest difference may be `tolerance` of the way that
/// training moved it; so much may losses differ, too.
fn compare_training(config: &ClassifierConfig, data: LabelledImages, recipe: Recipe, tolerance: f64, compared: fn(&str) -> bool) {
    let (on_cpu, cpu) = trained(config, data, &recipe, &Device::Cpu);
    let device = gpu::device();
    let (on_gpu, gpu) = trained(config, data, &recipe, &device);
    for (step, (a, b)) in on_cpu.iter().zip(&on_gpu).enumerate() {
        assert!((a - b).abs() <= tolerance * a.abs(), "{:?}, step {step}: losses {a} and {b}", config.architecture);
    }
    let start = Classifier::init(config.clone(), &mut Random::new(recipe.seed, 0)).unwrap().to_torch();
    let (a, b) = (cpu.to_torch(), gpu.to_torch());
    let largest = |x: &Tensor, y: &Tensor| x.to_f64_vec().iter().zip(y.to_f64_vec()).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    let of_training = start.iter().filter(|(name, _)| !name.ends_with("num_batches_tracked") && compared(name));
    for (name, from) in of_training {
        let (moved, error) = (largest(&a[name], from), largest(&a[name], &b[name]));
        assert!(moved > 0.0, "{:?}: {name} has not moved", config.architecture);
        // Parameters are of size one: f32 knows them to 1e-7.
        assert!(error <= tolerance * moved + 1e-6, "{:?}: {name} differs by {error:e} where training moved it by {moved:e}", config.architecture);
    }
    // Judging there is judging here.
    let images = data.pictures.batch(&[1, 0, 2], &[]).unwrap();
    let [a, b] = [&cpu, &cpu.to_device(&device).unwrap()].map(|net| net.judge(&images).unwrap());
    common::assert_near("outputs", &b.logits, &a.logits, 1e-4);
    common::assert_near("features", &b.features, &a.features, 1e-4);
}

#[test]
fn lenet_trains_as_on_the_cpu() {
    let pictures = pictures(6, [32, 32, 1]);
    let data = LabelledImages { pictures: &pictures, labels: Labels::Classes(&[3, 0, 9, 3, 1, 0]) };
    let recipe = Recipe { optimizer: ADAM, schedule: Schedule::Cosine, weight_decay: 0.1, ema_decay: 0.8, batch: 4, epochs: 2, augment: Augment { flip: true, shift: 1, ..Augment::default() }, balance: false, mixup: 0.0, seed: 5 };
    // Sums of a thousand f32 products in another order.
    compare_training(&ClassifierConfig::mnist(), data, recipe, 1e-4, |_| true);
}

/// Convolutions with batch statistics and running ones, pooling, cross-entropy: statistics of many pixels, and few layers.
#[test]
fn the_afhq_network_trains_as_on_the_cpu() {
    let pictures = pictures(3, [250, 250, 3]);
    let data = LabelledImages { pictures: &pictures, labels: Labels::Classes(&[0, 1, 1]) };
    let config = ClassifierConfig::new(Architecture::AfhqCnn, vec!["a".into(), "b".into()], Decision::Largest, [250; 2]);
    let recipe = Recipe { optimizer: ADAMAX, schedule: Schedule::Constant, weight_decay: 0.0, ema_decay: 0.0, batch: 3, epochs: 1, augment: Augment::default(), balance: false, mixup: 0.0, seed: 5 };
    // Seen: 7e-5, sums over 12,000 pixels in another order.
    compare_training(&config, data, recipe, 1e-3, |_| true);
}

/// Shortcuts, and twenty layers of which the last have statistics of four numbers. Some of its rectifiers stand at zero: on the
/// CPU alone any change of the input from 1e-6 on turns the same gradients of early layers by a quarter. So the forward pass is
/// compared (loss, running statistics), and gradients as far as the last block.
#[test]
fn a_resnet_trains_as_on_the_cpu() {
    let pictures = pictures(4, [32, 32, 3]);
    let data = LabelledImages { pictures: &pictures, labels: Labels::Classes(&[0, 1, 1, 0]) };
    let config = ClassifierConfig::resnet(ResNet::ResNet18, vec!["a".into(), "b".into()], 32);
    let recipe = Recipe { optimizer: ADAMAX, schedule: Schedule::Constant, weight_decay: 0.0, ema_decay: 0.0, batch: 4, epochs: 1, augment: Augment::default(), balance: false, mixup: 0.0, seed: 5 };
    // Seen: 2e-4.
    compare_training(&config, data, recipe, 3e-3, |name| name.starts_with("layer4.1.") || name.starts_with("fc.") || name.contains("running_"));
}

/// Attributes by odds, dropout, two outputs for each head. Untrained, fifty layers of small batches' statistics are chaotic:
/// on the CPU, input scaled by 1 + 1e-6 changes the loss by 4e-5 and turns gradients of the trunk around. So the loss and the
/// heads' outputs are compared.
#[test]
fn celeba_heads_train_as_on_the_cpu() {
    let pictures = pictures(8, [32, 32, 3]);
    let labels: Vec<u8> = (0..16).map(|i| (i * 5 % 3 == 0) as u8).collect();
    let data = LabelledImages { pictures: &pictures, labels: Labels::Attributes(&labels) };
    let config = ClassifierConfig::new(Architecture::CelebaHeads, vec!["a".into(), "b".into()], Decision::Odds, [32; 2]);
    let recipe = Recipe { optimizer: ADAM, schedule: Schedule::Constant, weight_decay: 0.0, ema_decay: 0.0, batch: 8, epochs: 1, augment: Augment::default(), balance: false, mixup: 0.0, seed: 5 };
    compare_training(&config, data, recipe, 1e-2, |name| name.starts_with("classifier") && name.contains(".1."));
}

/// More parameters than a kernel takes gradients' addresses, as the network of 40 heads has.
#[test]
fn adam_takes_any_number_of_parameters() {
    let mut layout = Layout::new();
    (0..300).for_each(|i| layout.plain(format!("p{i}"), &[i % 3 + 1], Init::Normal(1.0)));
    let layout = std::sync::Arc::new(layout);
    let run = |device: &Device| {
        let mut params = ParamSlab::init(&layout, &mut Random::new(1, 0)).to_device(device).unwrap();
        let mut state = AdamState::new(&layout, Adam { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8 }).to_device(device).unwrap();
        let mut r = Random::new(2, 0);
        for _ in 0..3 {
            let grads: Vec<Var> = layout.segments().iter().map(|s| Var::constant(r.normal(&s.shape).to_device(device).unwrap())).collect();
            state.step(&mut params, None, &grads, Pull::None).unwrap();
        }
        params.values().to_f64_vec()
    };
    for (i, (a, b)) in run(&Device::Cpu).iter().zip(run(&gpu::device())).enumerate() {
        assert!((a - b).abs() < 1e-5, "element {i}: {a} and {b}");
    }
}

/// All blocks. The emulator's time goes into the number of pixels, so it gets the smallest images that the network takes.
#[test]
fn inception_has_the_same_features() {
    let side = if cuda_on_cpu::is_emulated() { 75 } else { SIZE };
    let images = Random::new(3, 0).uniform(&[1, side, side, 3]);
    let net = || Inception::from_torch(&hashed::inception()).unwrap();
    let here = net().features(&images, &Block::ALL).unwrap();
    let there = net().to_device(&gpu::device()).unwrap().features(&images, &Block::ALL).unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()));
    for (block, (a, b)) in Block::ALL.iter().zip(here.iter().zip(&there)) {
        // The bound that the CPU keeps to PyTorch's features.
        common::assert_near(&format!("block {block}"), &b.to_device(&Device::Cpu).unwrap(), a, 1e-4);
    }
}

/// The first layers of the hashed Inception: what block 64 needs.
fn stem() -> Inception {
    let mut tensors = BTreeMap::new();
    for (name, shape) in [("Conv2d_1a_3x3", [32, 3, 3, 3]), ("Conv2d_2a_3x3", [32, 32, 3, 3]), ("Conv2d_2b_3x3", [64, 32, 3, 3])] {
        tensors.insert(format!("{name}.conv.weight"), hashed::value(&format!("{name}.conv.weight"), &shape, 1.6));
        tensors.insert(format!("{name}.conv.bias"), hashed::value(&format!("{name}.conv.bias"), &shape[..1], 1.6));
    }
    Inception::from_torch(&tensors).unwrap()
}

/// Two sets, one read as data and one as a model's images, from bytes to the printed line.
#[test]
fn distances_are_those_of_the_cpu() {
    let protocol = FidProtocol { preparation: Preparation::PytorchFid, block: Block::D64, size: None };
    let pictures = pictures(2, [6, 6, 3]);
    let data = recant::data::Dataset { pictures, labels: None, attributes: None, class_names: Vec::new() };
    let made = Random::new(4, 0).normal(&[2, 6, 6, 3]);
    let report = |device: &Device| {
        let extractor = Extractor::new(stem().to_device(device)?, protocol)?;
        let of_data = extractor.dataset(&data, 2, &mut |_| Ok(()))?;
        let mut stats = extractor.start();
        extractor.add_images(&mut stats, &made.to_device(device)?)?;
        fid(protocol, &of_data, &stats.finish()?)
    };
    let [here, there] = [Device::Cpu, gpu::device()].map(|d| report(&d).unwrap_or_else(|e: recant::error::Error| panic!("{e} {}", cuda_on_cpu::last_error())));
    assert!(here.distance > 1e-2 && (here.distance - there.distance).abs() <= 1e-4 * here.distance, "{here} and {there}");
    assert_eq!(here.to_string().split(" (").nth(1), there.to_string().split(" (").nth(1));
}
