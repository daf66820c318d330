//! `recant feedback`: samples a model and marks each image as undesired (negative) or not.

use std::path::{Path, PathBuf};

use clap::Args;

use super::model::{check_feedback, class_of, read_classifier, write_feedback};
use super::output::{Progress, summary};
use super::{Global, run_folder};
use crate::error::{Error, Result};
use crate::models::stylegan2::Generator;
use crate::training::checkpoint::Checkpoint;
use crate::unlearning::feedback::{Feedback, collect};

#[derive(Args, Clone, Debug)]
pub(crate) struct FeedbackArgs {
    /// Model file
    #[arg(long)]
    model: PathBuf,
    /// Classifier that marks the samples
    #[arg(long, required_unless_present = "marks", requires = "class")]
    classifier: Option<PathBuf>,
    /// The undesired class, by name or index
    #[arg(long)]
    class: Option<String>,
    /// A person's marks instead: a text file with the indices of the undesired samples, one a line
    #[arg(long, conflicts_with_all = ["classifier", "class"])]
    marks: Option<PathBuf>,
    /// Number of samples
    #[arg(long, default_value_t = 5000)]
    n: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Feedback file (npz) with both sets and their latents
    #[arg(long)]
    out: PathBuf,
}

fn read_marks(path: &Path, n: usize) -> Result<Vec<bool>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let mut negative = vec![false; n];
    for (line, word) in text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty()) {
        match word.parse::<usize>() {
            Ok(i) if i < n => negative[i] = true,
            _ => return Err(Error::file(path, format!("line {}: '{word}' is not an index from 0 to {}", line + 1, n.saturating_sub(1)))),
        }
    }
    Ok(negative)
}

impl FeedbackArgs {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        let model = Checkpoint::open(&self.model)?;
        let g = Generator::new(model.config.clone());
        let judge_by = match (&self.classifier, &self.class) {
            (Some(path), Some(class)) => {
                let classifier = read_classifier(path)?.to_device(&device)?;
                let class = class_of(&classifier, class)?;
                Some((classifier, class))
            }
            _ => None,
        };
        let mut progress = Progress::new("feedback", 0, self.n as u64);
        let mut judge = |images: &crate::tensor::Tensor| {
            run_folder::stop_if_interrupted()?;
            match &judge_by {
                Some((classifier, class)) => Ok(classifier.judge(images)?.has(*class)),
                None => Ok(vec![false; images.dim(0)]),
            }
        };
        let mut feedback: Feedback = collect(&g, &model.g_ema.to_device(&device)?, self.n, self.seed, &mut judge, &mut |done| progress.at(done as u64, String::new))?;
        progress.finish();
        if let Some(marks) = &self.marks {
            feedback.negative = read_marks(marks, self.n)?;
        }
        check_feedback(&feedback)?;
        write_feedback(&self.out, &feedback)?;
        let negatives = feedback.negatives().len();
        println!("{negatives} negative and {} positive samples: {}", self.n - negatives, self.out.display());
        summary(global, &serde_json::json!({"samples": self.n, "negatives": negatives, "out": self.out, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
        Ok(())
    }
}
