//! Classifier files: safetensors with PyTorch's names, and in the metadata what the classifier looks at.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Architecture, Classifier, ClassifierConfig, Decision, Preprocessing};
use crate::models::resnet::ResNet;
use crate::error::{Error, Result};
use crate::io::safetensors::{self, Content};
use crate::io::torch_file::{TorchFile, without_module_prefix};
use crate::tensor::Tensor;

/// Key of the configuration in a file's metadata.
const CONFIG: &str = "recant.classifier";

fn content_of(path: &Path) -> Result<Content> {
    if safetensors::recognises(path)? {
        return safetensors::read(path);
    }
    Ok(Content { tensors: unwrapped(TorchFile::open(path)?.tensors()?), metadata: BTreeMap::new() })
}

/// Without what training scripts wrap a state_dict in.
fn unwrapped(mut tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    for section in ["model_state_dict.", "state_dict."] {
        if tensors.keys().any(|name| name.starts_with(section)) {
            tensors = tensors.into_iter().filter_map(|(name, t)| Some((name.strip_prefix(section)?.to_string(), t))).collect();
        }
    }
    let mut tensors = without_module_prefix(tensors);
    // The official AFHQ classifier keeps torchvision's network as a member of that name.
    if !tensors.is_empty() && tensors.keys().all(|name| name.starts_with("resnet.")) {
        tensors = tensors.into_iter().map(|(name, t)| (name["resnet.".len()..].to_string(), t)).collect();
    }
    tensors
}

/// CelebA's attributes in the order of its list, which official files do not say.
pub const CELEBA: [&str; 40] = [
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair",
    "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones",
    "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
];

/// AFHQ's classes in the order of its folders.
pub const AFHQ: [&str; 3] = ["cat", "dog", "wild"];

/// What an official file without a declaration is, by its names and shapes. Each with the preprocessing of the code that
/// uses it; where the official code disagrees with itself, with that of its evaluation.
fn official(tensors: &BTreeMap<String, Tensor>) -> Option<ClassifierConfig> {
    let names = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let shape = |name: &str| tensors.get(name).map(Tensor::shape);
    let declared = |architecture, classes: &[&str], decision, preprocessing| Some(ClassifierConfig { architecture, classes: names(classes), decision, preprocessing });
    let resnext = || shape("layer1.0.conv2.weight") == Some(&[128, 4, 3, 3]);
    if tensors.contains_key("convnet.c1.weight") {
        Some(ClassifierConfig::mnist())
    } else if tensors.contains_key("classifier39.1.weight") {
        // Unlearning_CelebA/image_generator_util_ewc.py: raw generator images of 256 px in [−1, 1].
        declared(Architecture::CelebaHeads, &CELEBA, Decision::Odds, Preprocessing::symmetric([256, 256]))
    } else if shape("fc.weight") == Some(&[40, 2048]) && resnext() {
        // Unlearning_CelebA/eval_newgrad.py: [0, 1], 218×178.
        declared(Architecture::ResNet(ResNet::ResNeXt50), &CELEBA, Decision::Signs, Preprocessing::rgb([218, 178]))
    } else if shape("fc1.weight") == Some(&[512, 1024]) && tensors.contains_key("batchnorm3.weight") {
        // Unlearning_AFHQ/eval_multiple_gan.py: [0, 1], 250×250.
        declared(Architecture::AfhqCnn, &AFHQ, Decision::Largest, Preprocessing::rgb([250, 250]))
    } else if shape("fc.weight") == Some(&[3, 2048]) && !resnext() {
        // Unlearning_AFHQ/image_generator_util_ewc.py: raw generator images in [−1, 1] at 224 px.
        declared(Architecture::ResNet(ResNet::ResNet50), &AFHQ, Decision::Largest, Preprocessing::symmetric([224, 224]))
    } else {
        None
    }
}

/// What a file holds that training may start from.
pub enum Start {
    Classifier(Box<Classifier>),
    /// Tensors of a network that says nothing of classes: see `Classifier::over`.
    Body(BTreeMap<String, Tensor>),
}

impl Start {
    /// Reads a classifier as `Classifier::read` does, or else any state dict.
    pub fn read(path: impl AsRef<Path>) -> Result<Start> {
        let path = path.as_ref();
        let content = content_of(path)?;
        if !content.metadata.contains_key(CONFIG) && official(&content.tensors).is_none() {
            return Ok(Start::Body(content.tensors));
        }
        let classifier = Classifier::from_content(&content).map_err(|problem| Error::file(path, problem))?;
        Ok(Start::Classifier(Box::new(classifier)))
    }
}

impl Classifier {
    /// Writes the classifier; PyTorch's `load_state_dict` takes the tensors as they are.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let config = serde_json::to_string(self.config()).expect("a configuration is plain data");
        safetensors::write(path, &self.to_torch(), &BTreeMap::from([(CONFIG.to_string(), config)]))
    }

    /// Reads a classifier that says in its metadata what it is, or one of the official files (PyTorch's or safetensors),
    /// which are known by their names and shapes: MNIST's LeNet, both of CelebA's networks, both of AFHQ's.
    pub fn read(path: impl AsRef<Path>) -> Result<Classifier> {
        let path = path.as_ref();
        Classifier::from_content(&content_of(path)?).map_err(|problem| Error::file(path, problem))
    }

    /// As `read`, of a file's content. The error is the rest of a sentence about the file.
    pub fn from_content(content: &Content) -> std::result::Result<Classifier, String> {
        let config = match content.metadata.get(CONFIG) {
            Some(text) => serde_json::from_str(text).map_err(|e| format!("its metadata {CONFIG} does not parse: {e}"))?,
            None => official(&content.tensors).ok_or("does not say which classifier it is; declare its network, classes and preprocessing with `recant classifier declare`")?,
        };
        Classifier::from_torch(config, &content.tensors)
    }

    /// Reads a classifier's tensors under a given configuration.
    pub fn read_as(path: impl AsRef<Path>, config: ClassifierConfig) -> Result<Classifier> {
        let path = path.as_ref();
        Classifier::from_torch(config, &content_of(path)?.tensors).map_err(|problem| Error::file(path, problem))
    }
}
