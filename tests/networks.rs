//! Inception and the ResNets against PyTorch's numbers, with weights made from their names (tests/golden/README.md).

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::hashed;
use recant::autograd::gradcheck::gradient_error;
use recant::autograd::{Var, add, broadcast_to, mean, mul, reshape, scale, square};
use recant::device::Device;
use recant::io::pictures::Pictures;
use recant::models::classifier::{Architecture, Augment, Classifier, ClassifierConfig, Decision, LabelledImages, Labels, Optimizer, Preprocessing, Recipe, evaluate, train};
use recant::models::inception::{Block, Inception, SIZE};
use recant::models::resnet::ResNet;
use recant::nn::batch_norm::Normalise;
use recant::nn::{Adamax, ParamSlab, Params};
use recant::ops::random::Random;
use recant::ops::resize::{Resize, resize};
use recant::tensor::{DType, Tensor};

fn resnet(network: ResNet) -> Classifier {
    let classes = (0..40).map(|i| format!("attribute {i}")).collect();
    let preprocessing = Preprocessing::rgb([64, 64]);
    let config = ClassifierConfig { decision: Decision::Signs, preprocessing, ..ClassifierConfig::resnet(network, classes, 64) };
    let mut tensors = BTreeMap::new();
    for layout in [config.layout(), config.buffers()] {
        for s in layout.segments() {
            tensors.insert(s.name.clone(), hashed::value(&s.name, &s.torch_shape, 1.4));
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
    let net = Inception::from_torch(&hashed::inception()).unwrap();
    assert_eq!(net.last_block(), Block::D2048);
    inception_equals(&net, "nets/inception_hashed_weights.npz", &[32, 299], &Block::ALL);
}

#[test]
fn inception_with_the_real_weights_equals_pytorch_fid() {
    let Some(folder) = common::real_data("inception_with_the_real_weights_equals_pytorch_fid") else { return };
    let file = recant::io::safetensors::read(folder.join("inception_2015_up_to_mixed_6e.safetensors")).unwrap();
    let net = Inception::from_torch(&file.tensors).unwrap();
    assert_eq!(net.last_block(), Block::D768);
    inception_equals(&net, "nets/inception_real_768.npz", &[32, 256], &Block::ALL[..3]);
    let error = net.features(&Tensor::zeros(&[1, SIZE, SIZE, 3], DType::F32), &[Block::D2048]).unwrap_err();
    assert!(error.to_string().contains("ends at block 768"), "{error}");
}

/// A classifier over the Inception of a FID file has its features, by its own preprocessing; a shorter file is refused by
/// the layer that is missing.
#[test]
fn a_classifier_starts_from_the_inception_of_fid() {
    let file = hashed::inception();
    let over = |name: &str, size: usize, tensors: &BTreeMap<String, Tensor>| {
        let config = ClassifierConfig::new(name.parse().unwrap(), ["a", "b", "c"].map(String::from).to_vec(), Decision::Largest, [size; 2]);
        Classifier::over(config, tensors, &mut Random::new(0, 0))
    };
    let reference = common::npz("nets/inception_hashed_weights.npz");
    let images = &reference["images_32"];
    let images = Tensor::from_vec(images.shape(), images.to_f64_vec().iter().map(|v| *v as f32 / 127.5 - 1.0).collect::<Vec<f32>>());
    for (name, block) in [("inception768", Block::D768), ("inception2048", Block::D2048)] {
        let judged = over(name, SIZE, &file).unwrap().judge(&images).unwrap();
        assert_eq!(judged.logits.shape(), [images.dim(0), 3]);
        common::assert_near(name, &judged.features, &reference[&format!("features_{block}_32")], 1e-4);
    }
    let short = file.into_iter().filter(|(name, _)| !name.starts_with("Mixed_7") && !name.starts_with("fc")).collect();
    assert!(over("inception2048", 80, &short).unwrap_err().contains("Mixed_7a"));
    let net = over("inception768", 80, &short).unwrap();
    // With other classes the body stays and the head starts anew.
    let config = ClassifierConfig::new(net.config().architecture, ["x", "y"].map(String::from).to_vec(), Decision::Largest, [80; 2]);
    let other = net.restarted(config, &mut Random::new(1, 0)).unwrap();
    let (mine, others) = (net.to_torch(), other.to_torch());
    assert_eq!(others["fc.weight"].shape(), [2, 768]);
    assert_eq!(others["Mixed_6e.branch1x1.conv.weight"].to_f64_vec(), mine["Mixed_6e.branch1x1.conv.weight"].to_f64_vec());
    assert!(over("inception768", 74, &short).unwrap_err().contains("at least 75 px"));
}

/// What a file says of its network is read back.
#[test]
fn every_network_has_its_name() {
    for (name, network) in Architecture::ALL {
        assert_eq!(String::from(network), name);
        assert_eq!(name.parse::<Architecture>().unwrap(), network);
    }
    for block in Block::ALL {
        assert_eq!(String::from(Architecture::Inception(block)), format!("inception{block}"));
    }
}

/// Every refusal names the layer.
#[test]
fn broken_inception_files_are_refused() {
    let whole = hashed::inception();
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
        let (logits, _) = net.forward(&Params::from_vars(&layout, vars), Normalise::Batch { moments: &mut BTreeMap::new(), dropout: &mut Random::new(0, 0) }, &x)?;
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
    let data = LabelledImages { pictures: &Pictures::from_bytes(pixels, [32, 32, 3]), labels: Labels::Classes(&labels) };
    let config = ClassifierConfig::resnet(ResNet::ResNet18, vec!["red".into(), "green".into()], 32);
    let recipe = Recipe { batch: 8, epochs: 10, augment: Augment { flip: true, shift: 2, zoom: 0.1, jitter: 0.1 }, mixup: 0.2, ..Recipe::celeba() };
    let net = train(&config, data, &recipe, &Device::Cpu, &mut |_| Ok(())).unwrap();
    let result = evaluate(&net, data, 5, &mut |_| Ok(())).unwrap();
    assert_eq!(result.accuracy(), 1.0, "{:?}", result.confusion);
}

/// With a decay near 1 the result is the mean over the steps: of two, halfway between what each leaves.
#[test]
fn the_running_mean_of_two_steps_is_their_mean() {
    let labels = [0, 1, 1, 0];
    let pixels: Vec<u8> = (0..4 * 32 * 32).map(|i| (i * 37 % 251) as u8).collect();
    let data = LabelledImages { pictures: &Pictures::from_bytes(pixels, [32, 32, 1]), labels: Labels::Classes(&labels) };
    let config = ClassifierConfig::resnet(ResNet::ResNet18, vec!["a".into(), "b".into()], 32);
    // The whole set is one step, so that an epoch is a step; with a constant rate one step is the first of two.
    let trained = |epochs, ema_decay| {
        let recipe = Recipe { batch: 4, epochs, augment: Augment::default(), ema_decay, ..Recipe::celeba() };
        train(&config, data, &recipe, &Device::Cpu, &mut |_| Ok(())).unwrap().to_torch()
    };
    let (one, two, mean) = (trained(1, 0.0), trained(2, 0.0), trained(2, 0.999));
    for (name, mean) in &mean {
        let values = [&one[name], &two[name], mean].map(|t| t.to_f64_vec());
        for ((a, b), m) in values[0].iter().zip(&values[1]).zip(&values[2]) {
            // Three roundings.
            assert!((m - 0.5 * (a + b)).abs() <= 4e-7 * (a.abs() + b.abs()) + 1e-12, "{name}: {m} of {a} and {b}");
        }
    }
    assert!(one["fc.weight"].to_f64_vec() != two["fc.weight"].to_f64_vec());
}

/// A network goes on with its head where the outputs stay, also at another size, and without it where they change.
#[test]
fn a_network_is_trained_further() {
    let config = |classes: &[&str], size| ClassifierConfig::resnet(ResNet::ResNet18, classes.iter().map(|c| c.to_string()).collect(), size);
    let same = |a: &Classifier, b: &Classifier| -> Vec<String> {
        let (a, b) = (a.to_torch(), b.to_torch());
        a.keys().filter(|k| a[*k].shape() == b[*k].shape() && a[*k].to_f64_vec() == b[*k].to_f64_vec()).cloned().collect()
    };
    let old = initial(config(&["a", "b"], 32));
    let all: Vec<String> = old.to_torch().into_keys().collect();
    let larger = old.restarted(config(&["a", "b"], 48), &mut Random::new(1, 0)).unwrap();
    assert_eq!((same(&larger, &old), larger.config().preprocessing.size), (all.clone(), [48; 2]));
    let body: Vec<String> = all.iter().filter(|n| !n.starts_with("fc.")).cloned().collect();
    for classes in [&["a", "c"][..], &["a", "b", "c"]] {
        let other = old.restarted(config(classes, 32), &mut Random::new(1, 0)).unwrap();
        assert_eq!((same(&other, &old), other.n_classes()), (body.clone(), classes.len()));
    }
    let another = ClassifierConfig::resnet(ResNet::ResNet50, vec!["a".into(), "b".into()], 32);
    assert!(old.restarted(another, &mut Random::new(1, 0)).unwrap_err().to_string().contains("--from"));
}

/// `act(x wᵀ + b)` of one row.
fn linear(x: &[f64], w: &Tensor, b: &Tensor) -> Vec<f64> {
    let (w, b) = (w.to_f64_vec(), b.to_f64_vec());
    w.chunks_exact(x.len()).zip(b).map(|(row, b)| b + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
}

fn initial(config: ClassifierConfig) -> Classifier {
    let mut tensors = BTreeMap::new();
    for layout in [config.layout(), config.buffers()] {
        for s in layout.segments() {
            tensors.insert(s.name.clone(), hashed::value(&s.name, &s.torch_shape, 1.4));
        }
    }
    Classifier::from_torch(config, &tensors).unwrap()
}

/// The official CelebA network: the trunk equals ResNet-50's, the heads a plain loop over the file's tensors.
#[test]
fn celeba_heads_equal_a_plain_loop() {
    let size = [32, 32];
    let classes: Vec<String> = (0..40).map(|i| format!("A{i}")).collect();
    let net = initial(ClassifierConfig::new(Architecture::CelebaHeads, classes.clone(), Decision::Largest, size));
    let t = net.to_torch();
    assert_eq!((t["stem.fc.weight"].shape(), t["classifier07.0.fc.weight"].shape(), t["classifier39.1.weight"].shape()), (&[512, 2048][..], &[256, 512][..], &[2, 256][..]));
    let x = Random::new(1, 0).uniform(&[2, 32, 32, 3]);
    let said = net.judge(&x).unwrap();
    assert_eq!((said.logits.shape(), said.features.shape()), (&[2, 40][..], &[2, 512][..]));
    let trunk = ClassifierConfig { preprocessing: Preprocessing::symmetric(size), ..ClassifierConfig::resnet(ResNet::ResNet50, classes, 32) };
    let mut of_trunk = t.clone();
    of_trunk.insert("fc.weight".into(), Tensor::zeros(&[40, 2048], DType::F32));
    of_trunk.insert("fc.bias".into(), Tensor::zeros(&[40], DType::F32));
    let pooled = Classifier::from_torch(trunk, &of_trunk).unwrap().features(&x).unwrap().to_f64_vec();
    let block = |x: &[f64], name: &str| {
        let at = |what: &str| t[&format!("{name}.bn.{what}")].to_f64_vec();
        let (gamma, beta, mean, var) = (at("weight"), at("bias"), at("running_mean"), at("running_var"));
        let y = linear(x, &t[&format!("{name}.fc.weight")], &t[&format!("{name}.fc.bias")]);
        y.iter().enumerate().map(|(i, v)| (gamma[i] * (v - mean[i]) / (var[i] + 1e-5).sqrt() + beta[i]).max(0.0)).collect::<Vec<f64>>()
    };
    for (n, pooled) in pooled.chunks_exact(2048).enumerate() {
        let stem = block(pooled, "stem");
        for a in [0, 7, 39] {
            let two = linear(&block(&stem, &format!("classifier{a:02}.0")), &t[&format!("classifier{a:02}.1.weight")], &t[&format!("classifier{a:02}.1.bias")]);
            let (got, want) = (said.logits.to_f64_vec()[n * 40 + a], two[1] - two[0]);
            // f32 sums over 2048 and 512 terms.
            assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "attribute {a}: {got} where {want} is right");
            assert_eq!(said.has(a)[n], two[1] > two[0]);
        }
    }
}

/// A plain 3×3 convolution with stride 2 and padding 1 of `[c, h, w]`, ReLU.
fn conv3(x: &[f64], [c, h, w]: [usize; 3], weight: &Tensor, bias: &Tensor) -> (Vec<f64>, [usize; 3]) {
    let (k, b, out) = (weight.to_f64_vec(), bias.to_f64_vec(), [weight.dim(0), h.div_ceil(2), w.div_ceil(2)]);
    let mut y = Vec::new();
    for o in 0..out[0] {
        for i in 0..out[1] * out[2] {
            let (top, left) = (2 * (i / out[2]) as isize - 1, 2 * (i % out[2]) as isize - 1);
            let mut sum = b[o];
            for t in 0..c * 9 {
                let (ch, p, q) = (t / 9, top + (t % 9 / 3) as isize, left + (t % 3) as isize);
                if p >= 0 && q >= 0 && (p as usize) < h && (q as usize) < w {
                    sum += k[o * c * 9 + t] * x[(ch * h + p as usize) * w + q as usize];
                }
            }
            y.push(sum.max(0.0));
        }
    }
    (y, out)
}

/// The official AFHQ network against plain loops in PyTorch's layout, flattening included.
#[test]
fn the_afhq_network_equals_plain_loops() {
    let config = ClassifierConfig::new(Architecture::AfhqCnn, ["cat", "dog", "wild"].map(String::from).to_vec(), Decision::Largest, [250, 250]);
    let net = initial(config.clone());
    let t = net.to_torch();
    assert_eq!(t["fc1.weight"].shape(), [512, 1024]);
    let x = Random::new(5, 0).uniform(&[1, 250, 250, 3]);
    let unit = x.to_f64_vec().iter().map(|v| (v + 1.0) / 2.0).collect::<Vec<f64>>();
    let (mut y, mut shape) = ((0..3 * 250 * 250).map(|i| unit[i % 62500 * 3 + i / 62500]).collect::<Vec<f64>>(), [3, 250, 250]);
    for i in 1..=4 {
        (y, shape) = conv3(&y, shape, &t[&format!("conv{i}.weight")], &t[&format!("conv{i}.bias")]);
        if i > 1 {
            let at = |what: &str| t[&format!("batchnorm{}.{what}", i - 1)].to_f64_vec();
            let (gamma, beta, mean, var) = (at("weight"), at("bias"), at("running_mean"), at("running_var"));
            let [c, h, w] = shape;
            let (ph, pw) = (h / 2, w / 2);
            let normal = |k: usize, v: f64| gamma[k] * (v - mean[k]) / (var[k] + 1e-5).sqrt() + beta[k];
            y = (0..c * ph * pw)
                .map(|i| {
                    let (k, p, q) = (i / (ph * pw), i / pw % ph, i % pw);
                    (0..4).map(|d| normal(k, y[(k * h + 2 * p + d / 2) * w + 2 * q + d % 2])).fold(f64::MIN, f64::max)
                })
                .collect();
            shape = [c, ph, pw];
        }
    }
    assert_eq!(shape, [256, 2, 2]);
    let logits = linear(&linear(&y, &t["fc1.weight"], &t["fc1.bias"]), &t["fc2.weight"], &t["fc2.bias"]);
    let normaliser = logits.iter().map(|v| v.exp()).sum::<f64>().ln();
    for (got, want) in net.logits(&x).unwrap().to_f64_vec().iter().zip(&logits) {
        assert!((got - (want - normaliser)).abs() < 1e-4 * want.abs().max(1.0), "{got} where {} is right", want - normaliser);
    }
    let small = ClassifierConfig { preprocessing: Preprocessing::rgb([64, 64]), ..config };
    assert!(Classifier::init(small, &mut Random::new(0, 0)).unwrap_err().to_string().contains("250x250"));
}

/// Networks of every kind but ResNets train: every parameter gets a gradient, dropout included, and the loss falls.
#[test]
fn the_other_networks_learn() {
    let mut r = Random::new(4, 0);
    let mut images = |n: usize, side: usize| (0..n * side * side * 3).map(|i| (if i / (side * side * 3) % 2 == i % 3 { 200 } else { 40 } + r.below(50)) as u8).collect::<Vec<u8>>();
    let mut pictures = |n: usize, side: usize| Pictures::from_bytes(images(n, side), [side, side, 3]);
    let (faces, animals, small) = (pictures(8, 32), pictures(6, 250), pictures(6, 75));
    let attributes: Vec<u8> = (0..8).flat_map(|i| [(i % 2) as u8, 1 - (i % 2) as u8]).collect();
    let labels: Vec<u32> = (0..6).map(|i| i % 2).collect();
    let cases = [
        (Architecture::CelebaHeads, 32, LabelledImages { pictures: &faces, labels: Labels::Attributes(&attributes) }),
        (Architecture::AfhqCnn, 250, LabelledImages { pictures: &animals, labels: Labels::Classes(&labels) }),
        (Architecture::Inception(Block::D768), 75, LabelledImages { pictures: &small, labels: Labels::Classes(&labels) }),
    ];
    for (network, side, data) in cases {
        let config = ClassifierConfig::new(network, vec!["a".into(), "b".into()], Decision::Largest, [side; 2]);
        // All images in every step, so that the loss is the same function each time (but for dropout), and small steps on it.
        let optimizer = Optimizer::Adamax(Adamax { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8 });
        let recipe = Recipe { batch: 8, epochs: 4, optimizer, augment: Augment::default(), ..Recipe::celeba() };
        let mut losses = Vec::new();
        let net = train(&config, data, &recipe, &Device::Cpu, &mut |p| {
            losses.push(p.loss);
            Ok(())
        })
        .unwrap();
        assert!(losses.last().unwrap() < &losses[0], "{network:?}: {losses:?}");
        let start = Classifier::init(config, &mut Random::new(0, 0)).unwrap();
        for ((name, a), b) in start.to_torch().iter().zip(net.to_torch().values()).filter(|((n, _), _)| !n.ends_with("num_batches_tracked")) {
            assert_ne!(a.to_f64_vec(), b.to_f64_vec(), "{network:?}: {name} has not moved");
        }
    }
}
