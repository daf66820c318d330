//! Classifier files: safetensors with PyTorch's names, and in the metadata what the classifier looks at.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Classifier, ClassifierConfig};
use crate::error::{Error, Result};
use crate::io::torch_file::{TorchFile, without_module_prefix};
use crate::io::safetensors;
use crate::tensor::Tensor;

/// Key of the configuration in a file's metadata.
const CONFIG: &str = "classifier";

fn tensors_of(path: &Path) -> Result<(BTreeMap<String, Tensor>, Option<String>)> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
        let mut content = safetensors::read(path)?;
        return Ok((content.tensors, content.metadata.remove(CONFIG)));
    }
    Ok((without_module_prefix(TorchFile::open(path)?.tensors()?), None))
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
        let (tensors, config) = tensors_of(path)?;
        let config = match config {
            Some(text) => serde_json::from_str(&text).map_err(|e| Error::file(path, format!("its classifier metadata cannot be read: {e}")))?,
            None if tensors.contains_key("convnet.c1.weight") => ClassifierConfig::mnist(),
            None => {
                let problem = "does not say which classifier it is; give its network, classes and preprocessing";
                return Err(Error::file(path, problem));
            }
        };
        Classifier::from_torch(config, &tensors).map_err(|problem| Error::file(path, problem))
    }

    /// Reads a classifier's tensors under a given configuration.
    pub fn read_as(path: impl AsRef<Path>, config: ClassifierConfig) -> Result<Classifier> {
        let (tensors, _) = tensors_of(path.as_ref())?;
        Classifier::from_torch(config, &tensors).map_err(|problem| Error::file(path, problem))
    }
}
