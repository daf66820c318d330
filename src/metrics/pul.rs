//! PUL, the percentage of unlearning (paper eq. 8): how many of the images that were undesired no longer are, over the
//! same latents for both generators, EMA weights, single z, fresh noise, no truncation.

use super::feature_stats::{FeatureStats, Statistics};
use super::frechet::frechet_distance;
use crate::error::{Error, Result};
use crate::models::classifier::Classifier;
use crate::models::stylegan2::Generator;
use crate::nn::ParamSlab;
use crate::ops::layout::concat;
use crate::ops::random::Random;
use crate::tensor::Tensor;
use crate::training::streams;
use crate::unlearning::feedback::generate;

/// What a classifier says about a generator's images.
pub struct Judged {
    /// Images of each class, or with each attribute.
    pub histogram: Vec<usize>,
    /// Mean probability of what the classifier says of an image.
    pub confidence: f64,
    /// Feature statistics of the images that are not of the undesired class; none with fewer than two.
    pub features: Option<Statistics>,
}

/// Judges the images of the first `n` of `latents`; noise from `seed`. `each` sees how many images are done and every batch
/// in [−1, 1], those of the other latents too, and ends the work by an error.
pub fn judge(
    g: &Generator,
    params: &ParamSlab,
    classifier: &Classifier,
    class: usize,
    latents: &Tensor,
    n: usize,
    seed: u64,
    each: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
) -> Result<Judged> {
    let mut histogram = vec![0; classifier.n_classes()];
    let (mut confidence, mut stats) = (0.0, None::<FeatureStats>);
    let mut rng = Random { counter: 1 << 40, ..Random::new(seed, streams::EVALUATION) };
    generate(g, params, latents, &mut rng, &mut |at, images, _| {
        let done = at + images.dim(0);
        let judged = images.dim(0).min(n.saturating_sub(at));
        if judged == 0 {
            return each(done, images);
        }
        let judgement = classifier.judge(&images.rows(0, judged)?)?;
        for (k, count) in histogram.iter_mut().enumerate() {
            *count += judgement.has(k).into_iter().filter(|has| *has).count();
        }
        confidence += judgement.confidences().iter().sum::<f64>();
        let undesired = judgement.has(class);
        let others = (0..judged).filter(|i| !undesired[*i]).map(|i| judgement.features.rows(i, 1)).collect::<Result<Vec<_>>>()?;
        if !others.is_empty() {
            let rows = concat(&others.iter().collect::<Vec<_>>(), 0)?;
            stats.get_or_insert_with(|| FeatureStats::new(rows.dim(1))).add(&rows)?;
        }
        each(done, images)
    })?;
    let features = stats.filter(|s| s.count() >= 2).map(FeatureStats::finish).transpose()?;
    Ok(Judged { histogram, confidence: confidence / n.clamp(1, latents.dim(0).max(1)) as f64, features })
}

impl Judged {
    /// Fréchet distance of the images outside the undesired class to `real`, in the classifier's own features. This is
    /// not FID: the features are the classifier's.
    pub fn frechet(&self, real: &Statistics) -> Result<Option<f64>> {
        self.features.as_ref().map(|f| frechet_distance(f, real)).transpose()
    }
}

/// `100 · (N_before − N_after) / N_before`
pub fn pul(before: &Judged, after: &Judged, class: usize) -> Result<f64> {
    let (n, m) = (before.histogram[class], after.histogram[class]);
    if n == 0 {
        return Err(Error::config("--class", "the original model makes no image of this class: there is nothing to unlearn"));
    }
    Ok(100.0 * (n as f64 - m as f64) / n as f64)
}
