//! LeNet against the official one, on real digits where they are at hand, and the training loop.

mod common;


use recant::data::mnist::{Mnist, Split};
use recant::device::Device;
use recant::io::pictures::Pictures;
use recant::models::classifier::{Augment, Classifier, ClassifierConfig, LabelledImages, Labels, Recipe, evaluate, train};
use recant::models::resnet::ResNet;
use recant::ops::random::Random;
use recant::tensor::{DType, Tensor};

/// By way of PyTorch's file.
fn official(folder: &std::path::Path) -> Classifier {
    Classifier::read(folder.join("lenet_mnist_official.pth")).unwrap()
}

#[test]
fn the_official_lenet_says_what_it_said_in_pytorch() {
    let Some(folder) = common::real_data("the_official_lenet_says_what_it_said_in_pytorch") else { return };
    let reference = common::npz("nets/lenet_mnist_first64.npz");
    let pixels = reference["images32"].to_f64_vec().iter().map(|v| *v as f32 / 127.5 - 1.0).collect();
    let said = official(&folder).judge(&Tensor::from_vec(&[64, 32, 32, 1], pixels)).unwrap();
    common::assert_near("log-probabilities", &said.logits, &reference["log_probs"], 1e-5);
    assert_eq!(said.features.shape(), [64, 84]);
}

#[test]
fn the_official_lenet_on_all_test_digits() {
    let Some(folder) = common::real_data("the_official_lenet_on_all_test_digits") else { return };
    let digits = Mnist::read(folder.join("mnist"), Split::Test).unwrap().resized(32);
    let labels: Vec<u32> = digits.labels.iter().map(|l| *l as u32).collect();
    let data = LabelledImages { pictures: &Pictures::from_bytes(digits.images, [32, 32, 1]), labels: Labels::Classes(&labels) };
    assert_eq!(evaluate(&official(&folder), data, 500, &mut |_| Ok(())).unwrap().accuracy(), 0.9907);
}

fn untrained(seed: u64) -> Classifier {
    Classifier::init(ClassifierConfig::mnist(), &mut Random::new(seed, 0)).unwrap()
}

/// Parameters survive the way through PyTorch's names and shapes.
#[test]
fn parameters_go_both_ways() {
    let first = untrained(3);
    let tensors = first.to_torch();
    assert_eq!(tensors["convnet.c3.weight"].shape(), [16, 6, 5, 5]);
    let second = Classifier::from_torch(ClassifierConfig::mnist(), &tensors).unwrap();
    assert_eq!(first.params().as_slice(), second.params().as_slice());
    let mut cut = tensors.clone();
    cut.remove("fc.f7.bias");
    let problem = Classifier::from_torch(ClassifierConfig::mnist(), &cut).unwrap_err();
    assert!(problem.contains("fc.f7.bias"), "{problem}");
}

/// A file keeps parameters, running statistics and what the network looks at; what is none is refused by name.
#[test]
fn files_go_both_ways() {
    let folder = std::env::temp_dir().join(format!("recant-classifier-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("net.safetensors");
    let resnet = ClassifierConfig::resnet(ResNet::ResNet18, vec!["cat".into(), "dog".into()], 64);
    for config in [ClassifierConfig::mnist(), resnet] {
        let written = Classifier::init(config, &mut Random::new(2, 0)).unwrap();
        written.write(&path).unwrap();
        let read = Classifier::read(&path).unwrap();
        assert_eq!(read.config(), written.config());
        let (a, b) = (written.to_torch(), read.to_torch());
        assert!(a.keys().eq(b.keys()) && a.iter().all(|(k, t)| t.to_f64_vec() == b[k].to_f64_vec()));
    }
    let mut tensors = Classifier::read(&path).unwrap().to_torch();
    recant::io::safetensors::write(&path, &tensors, &Default::default()).unwrap();
    let error = Classifier::read(&path).unwrap_err().to_string();
    assert!(error.contains("does not say which classifier") && error.contains("net.safetensors"), "{error}");
    tensors.remove("layer3.0.downsample.1.running_var");
    recant::io::safetensors::write(&path, &tensors, &Default::default()).unwrap();
    let resnet = ClassifierConfig::resnet(ResNet::ResNet18, vec!["cat".into(), "dog".into()], 64);
    let error = Classifier::read_as(&path, resnet).unwrap_err().to_string();
    assert!(error.contains("layer3.0.downsample.1.running_var"), "{error}");
    std::fs::remove_dir_all(&folder).ok();
}

/// Grey and RGB of the same grey pixels are judged alike, up to the luma's weights, which sum to 0.9999.
#[test]
fn colours_are_reduced_to_luma() {
    let net = untrained(1);
    let grey = Random::new(2, 0).uniform(&[3, 20, 20, 1]);
    let rgb = recant::ops::layout::concat(&[&grey, &grey, &grey], 3).unwrap();
    let (a, b) = (net.logits(&grey).unwrap(), net.logits(&rgb).unwrap());
    common::assert_near("RGB of grey pixels", &b, &a, 1e-3);
    assert!(net.logits(&Tensor::zeros(&[1, 8, 8, 2], DType::F32)).is_err());
}

/// Values beyond [−1, 1] are judged as the screen shows them.
#[test]
fn values_out_of_range_are_clamped() {
    let net = untrained(1);
    let wild = Random::new(5, 0).normal(&[2, 32, 32, 3]);
    let clamped = Tensor::from_vec(wild.shape(), wild.as_slice::<f32>().iter().map(|v| v.clamp(-1.0, 1.0)).collect::<Vec<f32>>());
    common::assert_near("clamped", &net.logits(&wild).unwrap(), &net.logits(&clamped).unwrap(), 1e-6);
}

/// Two kinds of images, told apart by where they are bright.
fn two_kinds(n: usize) -> (Pictures, Vec<u32>) {
    let mut r = Random::new(8, 0);
    let labels: Vec<u32> = (0..n as u32).map(|i| i % 2).collect();
    let pixels = labels.iter().flat_map(|k| (0..16 * 16).map(|p| if (p % 16 < 8) == (*k == 0) { 160 } else { 60 }).collect::<Vec<usize>>()).map(|v| (v + r.below(60)) as u8).collect();
    (Pictures::from_bytes(pixels, [16, 16, 1]), labels)
}

/// Training learns, and is a function of its recipe.
#[test]
fn training_learns_and_repeats() {
    let (pictures, labels) = two_kinds(64);
    let data = LabelledImages { pictures: &pictures, labels: Labels::Classes(&labels) };
    let config = ClassifierConfig { classes: vec!["left".into(), "right".into()], ..ClassifierConfig::mnist() };
    let recipe = Recipe { batch: 24, epochs: 6, augment: Augment { shift: 1, ..Augment::default() }, ..Recipe::mnist() };
    let mut losses = Vec::new();
    let first = train(&config, data, &recipe, &Device::Cpu, &mut |p| {
        losses.push(p.loss);
        assert_eq!((p.steps, p.epoch), (18, (p.step - 1) / 3));
        Ok(())
    })
    .unwrap();
    assert_eq!(losses.len(), 18);
    let result = evaluate(&first, data, 10, &mut |_| Ok(())).unwrap();
    assert_eq!(result.accuracy(), 1.0, "{:?}, losses {losses:?}", result.confusion);
    let again = train(&config, data, &recipe, &Device::Cpu, &mut |_| Ok(())).unwrap();
    assert_eq!(first.params().as_slice(), again.params().as_slice());
    let other = train(&config, data, &Recipe { seed: 1, ..recipe }, &Device::Cpu, &mut |_| Ok(())).unwrap();
    assert_ne!(first.params().as_slice(), other.params().as_slice());
}

#[test]
fn bad_input_is_refused_in_one_line() {
    let (pictures, labels) = two_kinds(4);
    let data = LabelledImages { pictures: &pictures, labels: Labels::Classes(&labels) };
    let (one_less, none) = (pictures.select(&[0, 1, 2]), pictures.select(&[]));
    let mnist = ClassifierConfig::mnist();
    let mut failures = Vec::new();
    let mut refuse = |config: &ClassifierConfig, data: LabelledImages, recipe: Recipe, part: &str| {
        let error = train(config, data, &recipe, &Device::Cpu, &mut |_| Ok(())).unwrap_err().to_string();
        if !error.contains(part) || error.contains('\n') {
            failures.push(format!("{error:?} does not say {part:?}"));
        }
    };
    refuse(&ClassifierConfig { classes: vec!["one".into()], ..mnist.clone() }, data, Recipe::mnist(), "at least two");
    refuse(&mnist, LabelledImages { labels: Labels::Classes(&[0, 1, 11, 0]), ..data }, Recipe::mnist(), "class 11");
    refuse(&mnist, LabelledImages { pictures: &one_less, ..data }, Recipe::mnist(), "4 labels for 3 images");
    refuse(&mnist, LabelledImages { pictures: &none, labels: Labels::Classes(&[]) }, Recipe::mnist(), "0 labels");
    refuse(&mnist, LabelledImages { labels: Labels::Attributes(&[0; 40]), ..data }, Recipe::mnist(), "attributes");
    refuse(&mnist, data, Recipe { batch: 0, ..Recipe::mnist() }, "--batch");
    let mut rgb = mnist.clone();
    rgb.preprocessing = recant::models::classifier::Preprocessing::rgb([32, 32]);
    refuse(&rgb, data, Recipe::mnist(), "grey 32x32");
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(untrained(0).class("ten").unwrap_err().to_string().contains("0, 1, 2"));
}
