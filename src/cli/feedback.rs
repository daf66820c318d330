//! `recant feedback`: samples a model and marks each image as undesired (negative) or not, by a classifier or by a person,
//! who is shown the samples first.

use std::path::{Path, PathBuf};

use clap::Args;

use super::model::{check_feedback, class_of, read_classifier, write_feedback};
use super::output::{Progress, refuse_overwriting, summary};
use super::{Global, run_folder};
use crate::error::{Error, Result};
use crate::io::{atomic, image};
use crate::models::stylegan2::Generator;
use crate::training::checkpoint::Checkpoint;
use crate::unlearning::feedback::{Feedback, collect};

#[derive(Args, Clone, Debug)]
pub(crate) struct FeedbackArgs {
    /// Model file
    #[arg(long)]
    model: PathBuf,
    /// Classifier that marks the samples
    #[arg(long, required_unless_present_any = ["marks", "show"], requires = "class")]
    classifier: Option<PathBuf>,
    /// The undesired class, by name or index
    #[arg(long)]
    class: Option<String>,
    /// Mark by hand: write the samples into this folder, one file each, named by its index, and nothing else. The same model,
    /// --n and --seed make the same samples again for --marks
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["classifier", "class", "marks", "out"])]
    show: Option<PathBuf>,
    /// A person's marks: a folder with copies of the undesired ones among the files of --show, or a text file with their
    /// indices, one a line
    #[arg(long, conflicts_with_all = ["classifier", "class"])]
    marks: Option<PathBuf>,
    /// Number of samples
    #[arg(long, default_value_t = 5000)]
    n: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Feedback file (npz) with both sets and their latents
    #[arg(long, required_unless_present = "show")]
    out: Option<PathBuf>,
}

/// Which of `n` samples a person has marked.
fn read_marks(path: &Path, n: usize) -> Result<Vec<bool>> {
    // Where a mark comes from, and what should be an index.
    let words: Vec<(String, String)> = match path.is_dir() {
        true => {
            let files = std::fs::read_dir(path).and_then(|files| files.collect::<std::io::Result<Vec<_>>>()).map_err(|e| Error::io(path, e))?;
            let stem = |file: &Path| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            files.iter().map(|file| ("file".into(), stem(&file.path()))).filter(|(_, stem)| !stem.starts_with('.')).collect()
        }
        false => {
            let text = String::from_utf8(crate::io::read(path)?).map_err(|_| Error::file(path, "is no text; give a folder of samples, or one index a line"))?;
            let lines = text.lines().map(str::trim).enumerate().filter(|(_, l)| !l.is_empty());
            lines.map(|(line, word)| (format!("line {}:", line + 1), word.to_string())).collect()
        }
    };
    let mut negative = vec![false; n];
    for (place, word) in words {
        match word.parse::<usize>() {
            Ok(i) if i < n => negative[i] = true,
            _ => return Err(Error::file(path, format!("{place} '{word}' is not an index from 0 to {}; --n must be that of --show", n.saturating_sub(1)))),
        }
    }
    Ok(negative)
}

impl FeedbackArgs {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        if let Some(out) = &self.out {
            if out.extension().is_none_or(|e| e != "npz") {
                return Err(Error::config("--out", format!("{} must end in .npz", out.display())));
            }
            refuse_overwriting(out, &[&self.model])?;
        }
        let device = global.open()?;
        let model = Checkpoint::open(&self.model)?;
        let g = Generator::new(model.config.clone());
        let marks = self.marks.as_deref().map(|path| read_marks(path, self.n)).transpose()?;
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
        if let Some(folder) = &self.show {
            atomic::create_folder(folder)?;
            for i in 0..self.n {
                run_folder::stop_if_interrupted()?;
                image::write_png(folder.join(format!("{i:05}.png")), &image::picture(&feedback.images.rows(i, 1)?)?)?;
            }
            println!("{} samples to look at: {}; copy the undesired ones into a folder, and give it to --marks", self.n, folder.display());
            summary(global, &serde_json::json!({"samples": self.n, "shown": folder, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
            return Ok(());
        }
        if let Some(marks) = marks {
            feedback.negative = marks;
        }
        let out = self.out.as_ref().expect("clap asks for it");
        check_feedback(&feedback)?;
        write_feedback(out, &feedback)?;
        let negatives = feedback.negatives().len();
        println!("{negatives} negative and {} positive samples: {}", self.n - negatives, out.display());
        summary(global, &serde_json::json!({"samples": self.n, "negatives": negatives, "out": out, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
        Ok(())
    }
}
