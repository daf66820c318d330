//! Feature statistics per class, so that those of any set of classes follow without the images.

use std::collections::BTreeMap;
use std::path::Path;

use super::feature_stats::{FeatureStats, Statistics};
use crate::error::{Error, Result};
use crate::io::safetensors;
use crate::models::classifier::Classifier;
use crate::tensor::Tensor;

/// Count, mean and covariance of a classifier's features for the real images of each class.
#[derive(Clone, Debug)]
pub struct ClassStatistics(BTreeMap<usize, Statistics>);

impl ClassStatistics {
    /// Streams labelled batches (`[N, H, W, 3]` in [−1, 1] and their classes) through `classifier`.
    pub fn collect(classifier: &Classifier, batches: &mut dyn FnMut() -> Result<Option<(Tensor, Vec<usize>)>>) -> Result<ClassStatistics> {
        let mut stats: BTreeMap<usize, FeatureStats> = BTreeMap::new();
        while let Some((images, labels)) = batches()? {
            let features = classifier.features(&images)?;
            for (i, label) in labels.into_iter().enumerate() {
                stats.entry(label).or_insert_with(|| FeatureStats::new(features.dim(1))).add(&features.rows(i, 1)?)?;
            }
        }
        Ok(ClassStatistics(stats.into_iter().map(|(c, s)| Ok((c, s.finish()?))).collect::<Result<_>>()?))
    }

    /// Statistics of all classes but `without`, exactly as if their images had been taken together.
    pub fn without(&self, without: usize) -> Result<Statistics> {
        let parts: Vec<(f64, &Statistics)> = (self.0.iter())
            .filter(|(class, _)| **class != without)
            .filter_map(|(_, s)| Some((s.count? as f64, s)))
            .collect();
        let n: f64 = parts.iter().map(|p| p.0).sum();
        let Some((_, first)) = parts.first() else {
            return Err(Error::config("--real", "holds no other class than the one to unlearn"));
        };
        let d = first.dims();
        let mut mu = vec![0.0; d];
        for (count, s) in &parts {
            mu.iter_mut().zip(&s.mu).for_each(|(m, v)| *m += count / n * v);
        }
        let mut sigma = vec![0.0; d * d];
        for (count, s) in &parts {
            for i in 0..d {
                for j in 0..d {
                    // Scatter within the class, and of its mean around the common one.
                    sigma[i * d + j] += (count - 1.0) * s.sigma[i * d + j] + count * (s.mu[i] - mu[i]) * (s.mu[j] - mu[j]);
                }
            }
        }
        sigma.iter_mut().for_each(|v| *v /= n - 1.0);
        Ok(Statistics { count: Some(n as usize), mu, sigma })
    }

    /// Writes `count`, `mu`, `sigma` of each class; f32 is enough for what was computed in f32.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (class, s) in &self.0 {
            let (d, narrow) = (s.dims(), |v: &[f64]| v.iter().map(|v| *v as f32).collect::<Vec<f32>>());
            tensors.insert(format!("count_{class}"), Tensor::from_vec(&[1], vec![s.count.unwrap_or(0) as f32]));
            tensors.insert(format!("mu_{class}"), Tensor::from_vec(&[d], narrow(&s.mu)));
            tensors.insert(format!("sigma_{class}"), Tensor::from_vec(&[d, d], narrow(&s.sigma)));
        }
        safetensors::write(path, &tensors, &BTreeMap::new())
    }

    /// Reads what `write` wrote.
    pub fn from_tensors(tensors: &BTreeMap<String, Tensor>) -> std::result::Result<ClassStatistics, String> {
        let get = |name: String| tensors.get(&name).map(Tensor::to_f64_vec).ok_or(format!("lacks {name}"));
        let mut out = BTreeMap::new();
        for class in tensors.keys().filter_map(|k| k.strip_prefix("count_")?.parse::<usize>().ok()) {
            let count = get(format!("count_{class}"))?.first().copied().unwrap_or(0.0) as usize;
            let (mu, sigma) = (get(format!("mu_{class}"))?, get(format!("sigma_{class}"))?);
            if sigma.len() != mu.len() * mu.len() {
                return Err(format!("sigma_{class} is not the square of mu_{class}"));
            }
            let d = mu.len();
            let usable = count >= 2 && mu.iter().chain(&sigma).all(|v| v.is_finite()) && (0..d).all(|i| sigma[i * d + i] >= 0.0);
            if !usable {
                return Err(format!("the statistics of class {class} are not those of at least two images: their numbers are not finite, or variances negative"));
            }
            if out.values().next().is_some_and(|other: &Statistics| other.dims() != d) {
                return Err(format!("mu_{class} has another length than that of another class"));
            }
            out.insert(class, Statistics { count: Some(count), mu, sigma });
        }
        if out.is_empty() { Err("holds no class statistics (count_0, mu_0, sigma_0 …)".into()) } else { Ok(ClassStatistics(out)) }
    }
}
