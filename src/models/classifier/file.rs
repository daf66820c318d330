//! Classifier files: safetensors with PyTorch's names, and in the metadata what the classifier looks at.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Classifier, ClassifierConfig};
use crate::error::{Error, Result};
use crate::io::safetensors::{self, Content};
use crate::io::torch_file::{TorchFile, without_module_prefix};

/// Key of the configuration in a file's metadata.
const CONFIG: &str = "recant.classifier";

fn content_of(path: &Path) -> Result<Content> {
    if safetensors::recognises(path)? {
        return safetensors::read(path);
    }
    let tensors = without_module_prefix(TorchFile::open(path)?.tensors()?);
    Ok(Content { tensors, metadata: BTreeMap::new() })
}

impl Classifier {
    /// Writes the classifier; PyTorch's `load_state_dict` takes the tensors as they are.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let config = serde_json::to_string(self.config()).expect("a configuration is plain data");
        safetensors::write(path, &self.to_torch(), &BTreeMap::from([(CONFIG.to_string(), config)]))
    }

    /// Reads a classifier that says in its metadata what it is, or the official MNIST LeNet (PyTorch's file or
    /// safetensors), which is known by its names.
    pub fn read(path: impl AsRef<Path>) -> Result<Classifier> {
        let path = path.as_ref();
        Classifier::from_content(&content_of(path)?).map_err(|problem| Error::file(path, problem))
    }

    /// As `read`, of a file's content. The error is the rest of a sentence about the file.
    pub fn from_content(content: &Content) -> std::result::Result<Classifier, String> {
        let config = match content.metadata.get(CONFIG) {
            Some(text) => serde_json::from_str(text).map_err(|e| format!("its metadata {CONFIG} does not parse: {e}"))?,
            None if content.tensors.contains_key("convnet.c1.weight") => ClassifierConfig::mnist(),
            None => return Err("does not say which classifier it is; give its network, classes and preprocessing".into()),
        };
        Classifier::from_torch(config, &content.tensors)
    }

    /// Reads a classifier's tensors under a given configuration.
    pub fn read_as(path: impl AsRef<Path>, config: ClassifierConfig) -> Result<Classifier> {
        let path = path.as_ref();
        Classifier::from_torch(config, &content_of(path)?.tensors).map_err(|problem| Error::file(path, problem))
    }
}
