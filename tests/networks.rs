//! Inception and the ResNets against PyTorch's numbers, with weights made from their names (tests/golden/README.md).

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use recant::autograd::gradcheck::gradient_error;
use recant::autograd::{Var, add, broadcast_to, mean, mul, reshape, scale, square};
use recant::models::classifier::{Augment, Classifier, ClassifierConfig, Decision, LabelledImages, Labels, Preprocessing, Recipe, evaluate, train};
use recant::models::inception::{Block, Inception, SIZE};
use recant::models::resnet::{Normalise, ResNet};
use recant::nn::{ParamSlab, Params};
use recant::ops::random::Random;
use recant::ops::resize::{Resize, resize};
use recant::tensor::{DType, Tensor};

/// Element `i` of a name's stream, in [0, 1).
fn unit(name: &str, i: u64) -> f64 {
    let fnv = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut z = fnv.wrapping_add(i).wrapping_mul(GOLDEN).wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f64 / (1_u64 << 24) as f64
}

fn hashed(name: &str, shape: &[usize], gain: f64) -> Tensor {
    let fan_in: usize = shape.iter().skip(1).product();
    let value = |u: f64| match name.rsplit('.').next().unwrap() {
        "running_var" => 0.75 + 0.5 * u,
        "running_mean" => 0.2 * (u - 0.5),
        _ if shape.len() >= 2 => (2.0 * u - 1.0) * 3.0_f64.sqrt() * gain / (fan_in as f64).sqrt(),
        "weight" => 0.8 + 0.4 * u,
        _ => 0.2 * (u - 0.5),
    };
    let n: usize = shape.iter().product();
    Tensor::from_vec(shape, (0..n as u64).map(|i| value(unit(name, i)) as f32).collect::<Vec<f32>>())
}

fn resnet(network: ResNet) -> Classifier {
    let classes = (0..40).map(|i| format!("attribute {i}")).collect();
    let preprocessing = Preprocessing::rgb([64, 64]);
    let config = ClassifierConfig { decision: Decision::Signs, preprocessing, ..ClassifierConfig::resnet(network, classes, 64) };
    let mut tensors = BTreeMap::new();
    for layout in [config.layout(), config.buffers()] {
        for s in layout.segments() {
            tensors.insert(s.name.clone(), hashed(&s.name, &s.torch_shape, 1.4));
        }
    }
    Classifier::from_torch(config, &tensors).unwrap()
}

fn resnet_equals_torchvision(network: ResNet, file: &str) {
    let reference = common::npz(&format!("nets/{file}_hashed_weights.npz"));
    let x = common::nhwc(&reference["input"]);
    let net = resnet(network);
    let config = net.config().clone();
    let (params, buffers) = split(&net);
    let (logits, features) = network.forward(&params.constants(), Normalise::Running(&buffers.constants()), &Var::constant(x)).unwrap();
    common::assert_near(file, logits.value(), &reference["logits"], 1e-4);
    assert_eq!(features.shape(), [3, network.features()]);
    assert_eq!(config.classes.len(), 40);
}

/// The slabs of a classifier, by way of its file's tensors.
fn split(net: &Classifier) -> (ParamSlab, ParamSlab) {
    let tensors = net.to_torch();
    let read = |layout: Arc<recant::nn::Layout>| ParamSlab::from_torch(&layout, &tensors, "the test").unwrap();
    (read(net.config().layout()), read(net.config().buffers()))
}

#[test]
fn resnet18_equals_torchvision() {
    resnet_equals_torchvision(ResNet::ResNet18, "resnet18");
}

#[test]
fn resnet50_equals_torchvision() {
    resnet_equals_torchvision(ResNet::ResNet50, "resnet50");
}

#[test]
fn resnext50_equals_torchvision() {
    resnet_equals_torchvision(ResNet::ResNeXt50, "resnext50_32x4d");
}

/// In evaluation mode an image's logits do not depend on the batch it comes in.
#[test]
fn judging_does_not_depend_on_the_batch() {
    let net = resnet(ResNet::ResNet18);
    let images = common::npz("nets/resnet18_hashed_weights.npz")["images"].to_f64_vec();
    let images = Tensor::from_vec(&[3, 64, 64, 3], images.iter().map(|v| *v as f32 / 127.5 - 1.0).collect::<Vec<f32>>());
    let together = net.judge(&images).unwrap();
    let alone = net.judge(&images.rows(1, 1).unwrap()).unwrap();
    common::assert_near("logits", &alone.logits, &together.logits.rows(1, 1).unwrap(), 1e-5);
    assert_eq!(alone.has(7)[0], together.has(7)[1]);
}

/// Every state-dict entry of pytorch-fid's network with hashed values.
fn hashed_inception() -> BTreeMap<String, Tensor> {
    let names = std::fs::read_to_string(common::golden("nets/inception_state_dict_names.txt")).unwrap();
    names
        .lines()
        .map(|line| {
            let (name, shape) = line.split_once(' ').unwrap();
            let shape: Vec<usize> = shape.trim_matches(['[', ']']).split(", ").filter(|s| !s.is_empty()).map(|s| s.parse().unwrap()).collect();
            (name.to_string(), hashed(name, &shape, 1.6))
        })
        .collect()
}

/// pytorch-fid's way in: [0, 1], resized to 299 px, then [−1, 1].
fn pytorch_fid_input(images: &Tensor) -> Tensor {
    let x = resize(images, [SIZE; 2], Resize::Bilinear).unwrap();
    Tensor::from_vec(x.shape(), x.as_slice::<f32>().iter().map(|v| v / 127.5 - 1.0).collect::<Vec<f32>>())
}

fn inception_equals(net: &Inception, file: &str, sizes: &[usize], blocks: &[Block]) {
    let reference = common::npz(file);
    for size in sizes {
        let found = net.features(&pytorch_fid_input(&reference[&format!("images_{size}")]), blocks).unwrap();
        for (block, features) in blocks.iter().zip(&found) {
            common::assert_near(&format!("block {block} at {size} px"), features, &reference[&format!("features_{block}_{size}")], 1e-4);
        }
    }
}

#[test]
fn inception_equals_pytorch_fid() {
    let net = Inception::from_torch(&hashed_inception()).unwrap();
    assert_eq!(net.last_block(), Block::D2048);
    inception_equals(&net, "nets/inception_hashed_weights.npz", &[32, 299], &Block::ALL);
}

#[test]
fn inception_with_the_real_weights_equals_pytorch_fid() {
    let Some(folder) = std::env::var_os("RECANT_DATA").map(PathBuf::from) else {
        println!("skipped: RECANT_DATA does not name the folder of real data");
        return;
    };
    let file = recant::io::safetensors::read(folder.join("inception_2015_up_to_mixed_6e.safetensors")).unwrap();
    let net = Inception::from_torch(&file.tensors).unwrap();
    assert_eq!(net.last_block(), Block::D768);
    inception_equals(&net, "nets/inception_real_768.npz", &[32, 256], &Block::ALL[..3]);
    let error = net.features(&Tensor::zeros(&[1, SIZE, SIZE, 3], DType::F32), &[Block::D2048]).unwrap_err();
    assert!(error.to_string().contains("ends at block 768"), "{error}");
}

/// Every refusal names the layer.
#[test]
fn broken_inception_files_are_refused() {
    let whole = hashed_inception();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        Inception::from_torch(&tensors).err().expect("a broken file is refused")
    };
    let problem = refused(&|t| {
        t.remove("Mixed_6c.branch_pool.bn.weight");
    });
    assert!(problem.contains("Mixed_6c.branch_pool.bn.weight"), "{problem}");
    let problem = refused(&|t| {
        t.insert("Mixed_5b.branch1x1.conv.weight".into(), Tensor::zeros(&[64, 191, 1, 1], DType::F32));
    });
    assert!(problem.contains("Mixed_5b.branch1x1.conv.weight"), "{problem}");
    // torchvision's network has a thousand classes.
    let problem = refused(&|t| {
        t.insert("fc.weight".into(), Tensor::zeros(&[1000, 2048], DType::F32));
    });
    assert!(problem.contains("1008"), "{problem}");
    assert!(refused(&BTreeMap::clear).contains("Conv2d_1a_3x3"));
}

/// The gradient of a loss through normalisation in training mode, shortcuts, pooling and grouped convolutions, against
/// finite differences along a direction in the weights of one grouped convolution.
#[test]
fn training_gradient_of_a_resnext() {
    const NAME: &str = "layer2.0.conv2.weight";
    let net = ResNet::ResNeXt50;
    let layout = net.layout(2);
    let params = ParamSlab::init(&layout, &mut Random::new(1, 0)).constants();
    // In f64: differences of an f32 network drown in its rounding. 33 px leave 2×2 pixels at the end, so that batches
    // are normalised over twelve values.
    let all: Vec<Var> = params.all().iter().map(|v| Var::constant(v.value().to_dtype(DType::F64))).collect();
    let x = Var::constant(Random::new(1, 1).normal(&[3, 33, 33, 3]).to_dtype(DType::F64));
    let at = layout.segments().iter().position(|s| s.name == NAME).unwrap();
    let shape = all[at].shape().to_vec();
    let direction = Var::constant(Random::new(2, 0).normal(&shape).to_dtype(DType::F64));
    // The step of the differences is 1e-5; 1e-10 moves no ReLU to its other side (1e-8 does, and shows as 2e-3).
    const REACH: f64 = 1e-5;
    let f = |v: &[Var]| {
        let along = broadcast_to(&reshape(&scale(&v[0], REACH)?, &vec![1; shape.len()])?, &shape)?;
        let mut vars = all.clone();
        vars[at] = add(&all[at], &mul(&direction, &along)?)?;
        let (logits, _) = net.forward(&Params::from_vars(&layout, vars), Normalise::Batch(&mut BTreeMap::new()), &x)?;
        reshape(&scale(&mean(&square(&logits)?)?, 1.0 / REACH)?, &[1])
    };
    let error = gradient_error(&f, &[Tensor::from_vec(&[1], vec![0.0_f64])]).unwrap();
    assert!(error < 1e-5, "{error:e}");
}

/// A ResNet trains, and its running statistics follow: it judges in evaluation mode what it learned in training mode.
#[test]
fn a_resnet_learns_two_colours() {
    let labels: Vec<u32> = (0..16).map(|i| i % 2).collect();
    let mut r = Random::new(4, 0);
    let pixels: Vec<u8> = labels
        .iter()
        .flat_map(|k| (0..32 * 32 * 3).map(|i| if i % 3 == *k as usize { 200 } else { 40 }).collect::<Vec<usize>>())
        .map(|v| (v + r.below(50)) as u8)
        .collect();
    let data = LabelledImages { pixels: &pixels, size: [32, 32], channels: 3, labels: Labels::Classes(&labels) };
    let config = ClassifierConfig::resnet(ResNet::ResNet18, vec!["red".into(), "green".into()], 32);
    let recipe = Recipe { batch: 8, epochs: 10, augment: Augment { flip: true, shift: 2 }, ..Recipe::celeba() };
    let net = train(&config, data, &recipe, &mut |_| Ok(())).unwrap();
    let result = evaluate(&net, data, 5, &mut |_| Ok(())).unwrap();
    assert_eq!(result.accuracy(), 1.0, "{:?}", result.confusion);
}
