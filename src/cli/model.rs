//! Models and feedback as the commands read and write them.

use std::path::{Path, PathBuf};

use crate::data::dataset::LARGEST_VALUE;
use crate::error::{Error, Result};
use crate::io::npz::{self, Array, Arrays, Values};
use crate::io::safetensors;
use crate::models::classifier::Classifier;
use crate::nn::ParamSlab;
use crate::ops::layout;
use crate::tensor::DType;
use crate::training::checkpoint::Checkpoint;
use crate::training::{GanState, Hyper};
use crate::unlearning::adapt::Optimiser;
use crate::unlearning::feedback::{FEW_NEGATIVES, Feedback};

/// Reads a classifier: safetensors of this program, or the official MNIST LeNet as PyTorch saved it.
pub(super) fn read_classifier(path: &Path) -> Result<Classifier> {
    Classifier::read(path)
}

/// A classifier from the content of a safetensors file.
pub(super) fn classifier_of(content: safetensors::Content) -> std::result::Result<Classifier, String> {
    Classifier::from_content(&content)
}

/// Writes a classifier with its configuration.
pub(super) fn write_classifier(path: &Path, classifier: &Classifier) -> Result<()> {
    classifier.write(path)
}

/// The class of a name or an index.
pub(super) fn class_of(classifier: &Classifier, name: &str) -> Result<usize> {
    classifier.class(name).or_else(|e| match name.parse::<usize>() {
        Ok(i) if i < classifier.n_classes() => Ok(i),
        _ => Err(e),
    })
}

/// A pre-trained model as the state that a stage starts from.
pub(super) fn read_state(path: &Path, hyper: &Hyper, optimiser: Optimiser, seed: u64) -> Result<(GanState, Vec<crate::tensor::Tensor>)> {
    let checkpoint = Checkpoint::open(path)?;
    if optimiser == Optimiser::Restore && !checkpoint.has_optimisers() {
        return Err(Error::file(path, "holds no optimiser state to go on with; add --optimiser fresh, or give the whole training checkpoint"));
    }
    let noise = checkpoint.noise.clone();
    Ok((checkpoint.into_state(path, hyper, seed)?, noise))
}

/// The adapted models in `paths`: files, or folders made by `recant adapt`.
pub(super) fn read_adapted(paths: &[PathBuf], original: &ParamSlab) -> Result<Vec<ParamSlab>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut found: Vec<PathBuf> = std::fs::read_dir(path)
                .map_err(|e| Error::io(path, e))?
                .filter_map(|e| Some(e.ok()?.path()))
                .filter(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("adapted_") && n.ends_with(".safetensors")))
                .collect();
            if found.is_empty() {
                return Err(Error::file(path, "holds no adapted_*.safetensors; give the folder that `recant adapt` wrote"));
            }
            found.sort();
            files.extend(found);
        } else {
            files.push(path.clone());
        }
    }
    files
        .iter()
        .map(|file| {
            let slab = Checkpoint::open(file)?.g_ema;
            if slab.layout().len() != original.layout().len() {
                return Err(Error::file(file, format!("has {} parameters, the model {}: it was adapted from another one", slab.layout().len(), original.layout().len())));
            }
            Ok(slab)
        })
        .collect()
}

/// Writes feedback: `images` f32 [n, 3, H, W], `latents` [n, latent], `negative` u8 [n].
pub(super) fn write_feedback(path: &Path, feedback: &Feedback) -> Result<()> {
    let images = layout::permute(&feedback.images, &[0, 3, 1, 2])?;
    let marks = feedback.negative.iter().map(|n| *n as u8).collect::<Vec<_>>();
    let arrays = Arrays::from([
        ("images".to_string(), Array::from(&images)),
        ("latents".to_string(), Array::from(&feedback.latents)),
        ("negative".to_string(), Array::new(&[marks.len()], Values::U8(marks))),
    ]);
    npz::write(path, &arrays)
}

/// Reads feedback and checks it against the model's image size.
pub(super) fn read_feedback(path: &Path, size: usize) -> Result<Feedback> {
    let arrays = npz::read_only(path, &["images", "negative"], &["latents"])?;
    let images = arrays["images"].to_tensor().to_dtype(DType::F32);
    let n = images.shape().first().copied().unwrap_or(0);
    if images.shape() != [n, 3, size, size] {
        return Err(Error::file(path, format!("images have shape {:?}; this model makes [n, 3, {size}, {size}]", images.shape())));
    }
    // Generators make numbers around [-1, 1].
    if images.as_slice::<f32>().iter().any(|v| v.is_nan() || v.abs() > LARGEST_VALUE) {
        return Err(Error::file(path, format!("holds images with values beyond ±{LARGEST_VALUE}, or that are no numbers; they should be about from -1 to 1")));
    }
    let marks = arrays["negative"].to_tensor().to_f64_vec();
    if let Some(mark) = marks.iter().find(|m| **m != 0.0 && **m != 1.0) {
        return Err(Error::file(path, format!("holds the mark {mark}; 'negative' is 1 for an undesired image and 0 for another, one for each")));
    }
    if marks.len() != n {
        return Err(Error::file(path, format!("{} marks for {n} images", marks.len())));
    }
    let latents = arrays.get("latents").map(|a| a.to_tensor().to_dtype(DType::F32));
    Ok(Feedback {
        images: layout::permute(&images, &[0, 2, 3, 1])?,
        latents: latents.unwrap_or_else(|| crate::tensor::Tensor::zeros(&[n, 0], DType::F32)),
        negative: marks.iter().map(|m| *m != 0.0).collect(),
    })
}

/// Refuses feedback that one stage cannot use, warns when negatives are few.
pub(super) fn check_feedback(feedback: &Feedback) -> Result<()> {
    let (negatives, n) = (feedback.negatives().len(), feedback.negative.len());
    if negatives == 0 {
        return Err(Error::config("feedback", format!("none of {n} samples is negative: sample more (--n), or choose another class")));
    }
    if negatives == n {
        return Err(Error::config("feedback", format!("all {n} samples are negative: nothing is left to keep")));
    }
    if negatives < FEW_NEGATIVES {
        eprintln!("warning: only {negatives} negative samples: stage 1 will see them again and again; sample more (--n)");
    }
    Ok(())
}
