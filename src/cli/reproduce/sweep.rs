//! `recant reproduce sweep`: EL2, NL2 and IL2 over their strengths, as a figure of PUL against distance, and a strength
//! for each chosen by a rule that looks at neither.
//!
//! The rule sees what a user without test data sees: on latents of its own, how many images of the class remain, and how
//! far the others are (Fréchet distance in the classifier's features) from the feedback's positives, which the original
//! made. Of the strengths whose distance is at most `TOLERATED` times that of training on the positives without any
//! repulsion, it takes the one that leaves the fewest; of equals the weakest.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::chart::{Curve, Point, pul_against_distance};
use super::lab::{Lab, Outcome, Stage1, Task};
use super::settings::{Experiment, Scale, Settings};
use crate::cli::demo::{Embedded, Watched};
use crate::cli::evaluate::Bench;
use crate::cli::model::class_of;
use crate::cli::output::{summary, table};
use crate::cli::run_folder::RunFolder;
use crate::cli::{Global, SideBySide};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::metrics::{FeatureStats, Statistics};
use crate::models::stylegan2::Generator;
use crate::nn::ParamSlab;
use crate::ops::layout::gather_rows;
use crate::training::checkpoint::{Checkpoint, save_generator};
use crate::unlearning::repulsion::{Kind, Pulls};

/// How much further than training without repulsion the images may go.
const TOLERATED: f64 = 1.5;
/// Latents of the rule come from this seed upwards: the evaluation never uses them.
const VALIDATION: u64 = 1_000_000;

#[derive(Args, Clone, Debug)]
pub(crate) struct Sweep {
    /// The digit to unlearn
    #[arg(long, default_value = "8")]
    class: String,
    /// Pulls at the start of stage 2 (the derivative of the loss by the squared distance)
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, default_value = "1e-4,6e-4,1e-3,2e-3,3e-2")]
    pulls: Vec<f64>,
    /// α of EL2 in units of 1/D₀, D₀ being the squared distance at the start
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, default_value = "0.01,0.03,0.1,1")]
    alphas: Vec<f64>,
    /// Iterations of each adaptation
    #[arg(long)]
    adapt_iterations: Option<u64>,
    /// Iterations of stage 2
    #[arg(long)]
    iterations: Option<u64>,
    /// Feedback samples
    #[arg(long)]
    feedback: Option<usize>,
    /// Latents of the evaluation, and of the rule
    #[arg(long)]
    samples: Option<usize>,
    #[command(flatten)]
    side_by_side: SideBySide,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for models, outcomes and sweep.svg
    #[arg(long)]
    out: PathBuf,
    /// Go on where an earlier call stopped, or add pulls and alphas to its
    #[arg(long)]
    resume: bool,
}

/// What the rule sees of a setting, and what it does not.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Trial {
    loss: String,
    setting: String,
    pull: f64,
    /// Images of the class on the rule's latents, and the others' distance to the positives.
    remaining: usize,
    distance_to_positives: f64,
    /// On the evaluation's latents; the distance is to real images.
    pul: f64,
    distance: f64,
    #[serde(default)]
    chosen: bool,
}

/// A repulsion under its name.
struct Setting {
    loss: &'static str,
    name: String,
    pull: f64,
    kind: Option<Kind>,
    /// Of the file that keeps its generator.
    key: String,
}

/// The index that the rule takes among trials of one loss, in the order of their pull.
fn chosen(trials: &[&Trial], without: f64) -> Option<usize> {
    let allowed = trials.iter().enumerate().filter(|(_, t)| t.distance_to_positives <= TOLERATED * without);
    allowed.min_by(|(_, a), (_, b)| (a.remaining, a.pull).partial_cmp(&(b.remaining, b.pull)).expect("finite")).map(|(i, _)| i)
}

impl Sweep {
    fn lab(&self, settings: Settings, devices: Vec<Device>) -> Result<Lab> {
        let e = Embedded::load()?;
        let noise = e.model.noise.clone();
        let original = e.model.into_state(std::path::Path::new("the embedded model"), &settings.hyper, self.seed)?.to_device(&devices[0])?;
        Ok(Lab {
            generator: Generator::new(original.config.clone()),
            start: original.g_ema.to_device(&Device::Cpu)?,
            original,
            noise,
            classifier: e.classifier.to_device(&devices[0])?,
            devices,
            by_class: Some(e.statistics),
            extractor: None,
            batch: 1,
            seed: self.seed,
            one_at_a_time: false,
            settings,
        })
    }

    fn settings_of(&self, d0: f64) -> Vec<Setting> {
        let mut all = vec![Setting { loss: "none", name: "positives only".into(), pull: 0.0, kind: None, key: "none".into() }];
        for &pull in &self.pulls {
            for &alpha in &self.alphas {
                let [el2, ..] = (Pulls { el2: pull, alpha, nl2: pull, il2: pull }).kinds(d0);
                all.push(Setting { loss: "EL2", name: format!("pull {pull:e}, α {alpha}/D₀"), pull, kind: Some(el2), key: format!("el2_{pull:e}_{alpha}") });
            }
            let [_, nl2, il2] = (Pulls { el2: pull, alpha: 1.0, nl2: pull, il2: pull }).kinds(d0);
            for (loss, key, kind) in [("NL2", "nl2", nl2), ("IL2", "il2", il2)] {
                all.push(Setting { loss, name: format!("pull {pull:e}"), pull, kind: Some(kind), key: format!("{key}_{pull:e}") });
            }
        }
        all
    }

    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let devices = global.open_several(&self.side_by_side)?;
        for (option, list) in [("--pulls", &self.pulls), ("--alphas", &self.alphas)] {
            if list.is_empty() || list.iter().any(|v| !(v.is_finite() && *v > 0.0)) {
                return Err(Error::config(option, "needs positive numbers"));
            }
        }
        let mut settings = Settings::of(Experiment::Mnist, Scale::Small);
        settings.adapt_iterations = self.adapt_iterations.unwrap_or(settings.adapt_iterations);
        settings.unlearn_iterations = self.iterations.unwrap_or(settings.unlearn_iterations);
        settings.feedback = self.feedback.unwrap_or(settings.feedback);
        settings.samples = self.samples.unwrap_or(settings.samples);
        let mut described = serde_json::to_value(&settings).expect("plain data");
        // What the sweep is to choose is no setting of it.
        described.as_object_mut().expect("a struct").remove("strength");
        let config = serde_json::json!({"command": "reproduce sweep", "class": self.class, "pulls": self.pulls, "alphas": self.alphas, "settings": described, "seed": self.seed});
        let mut folder = RunFolder::create(&self.out, self.resume, &config, &devices[0], &["pulls", "alphas"])?;
        let lab = self.lab(settings, devices)?;
        let class = class_of(&lab.classifier, &self.class)?;
        let task = Task { lab: &lab, class, run: 0, folder: self.out.clone(), real: None, retrained: None };
        let stage1 = task.stage1(true)?;
        let d0 = lab.initial_distance(&stage1.adapted, stage1.distance)?;
        println!("squared distance of the start to the adapted models: D₀ = {d0:.1}");
        let all = self.settings_of(d0);
        let before = task.outcome(None, &lab.start, None, None)?;
        let positives = positives(&lab, &stage1)?;
        let slabs = self.generators(&task, &stage1, &all)?;
        let mut trials = Vec::new();
        for (setting, slab) in all.iter().zip(&slabs) {
            // A setting that ran away has no model.
            let Some(slab) = slab else { continue };
            let trial = self.trial(&task, setting, slab, &before, &positives)?;
            folder.log(&trial)?;
            trials.push(trial);
        }
        self.choose(&mut trials);
        self.report(&trials)?;
        summary(global, &serde_json::json!({"d0": d0, "trials": trials, "out": self.out, "seconds": start.elapsed().as_secs_f64(), "device": lab.device().to_string()}));
        Ok(())
    }

    /// The generator of each setting; none where the repulsion ran away.
    fn generators(&self, task: &Task, stage1: &Stage1, all: &[Setting]) -> Result<Vec<Option<ParamSlab>>> {
        let lab = task.lab;
        let watch = Watched::new("unlearn", lab.settings.unlearn_iterations * all.len() as u64);
        let slabs = lab.all(all.len(), |device, i| {
            let file = self.out.join(format!("{}.safetensors", all[i].key));
            if file.exists() {
                return Ok(Some(Checkpoint::open(&file)?.g_ema));
            }
            match task.unlearned(all[i].kind, 0, stage1, device, &watch) {
                Ok(slab) => save_generator(&file, lab.generator.config(), &slab, &lab.noise, &Default::default()).map(|()| Some(slab)),
                Err(Error::Diverged { problem, .. }) => {
                    eprintln!("{} {}: {problem}", all[i].loss, all[i].name);
                    Ok(None)
                }
                Err(e) => Err(e),
            }
        })?;
        watch.finish();
        Ok(slabs)
    }

    fn trial(&self, task: &Task, setting: &Setting, slab: &ParamSlab, before: &Outcome, positives: &Statistics) -> Result<Trial> {
        let lab = task.lab;
        let validation = Bench { seed: VALIDATION + self.seed, ..lab.bench(task.class, 0) }.judge(&setting.name, slab)?;
        let judged = lab.bench(task.class, 0).judge(&setting.name, slab)?;
        let (n, now) = (before.histogram[task.class] as f64, judged.histogram[task.class] as f64);
        let real = lab.by_class.as_ref().expect("the embedded statistics").without(task.class)?;
        Ok(Trial {
            loss: setting.loss.into(),
            setting: setting.name.clone(),
            pull: setting.pull,
            remaining: validation.histogram[task.class],
            distance_to_positives: validation.frechet(positives)?.unwrap_or(f64::MAX),
            pul: 100.0 * (n - now) / n,
            distance: judged.frechet(&real)?.unwrap_or(f64::MAX),
            chosen: false,
        })
    }

    fn choose(&self, trials: &mut [Trial]) {
        let Some(without) = trials.iter().find(|t| t.loss == "none").map(|t| t.distance_to_positives) else { return };
        for loss in ["EL2", "NL2", "IL2"] {
            let indices: Vec<usize> = (0..trials.len()).filter(|i| trials[*i].loss == loss).collect();
            let of_loss: Vec<&Trial> = indices.iter().map(|i| &trials[*i]).collect();
            if let Some(best) = chosen(&of_loss, without) {
                trials[indices[best]].chosen = true;
            }
        }
    }

    fn report(&self, trials: &[Trial]) -> Result<()> {
        let mut rows = vec![["loss", "setting", "remaining (rule)", "to positives (rule)", "PUL %", "to real", ""].map(String::from).to_vec()];
        for t in trials {
            rows.push(vec![
                t.loss.clone(),
                t.setting.clone(),
                t.remaining.to_string(),
                format!("{:.2}", t.distance_to_positives),
                format!("{:.2}", t.pul),
                format!("{:.2}", t.distance),
                if t.chosen { "chosen".into() } else { String::new() },
            ]);
        }
        let text = table(&rows);
        println!("{text}");
        let mut names: Vec<(String, Vec<&Trial>)> = Vec::new();
        for t in trials {
            // EL2 has one curve for each α.
            let name = if t.loss == "EL2" { format!("EL2, {}", t.setting.rsplit(", ").next().unwrap_or_default()) } else { t.loss.clone() };
            match names.iter_mut().find(|(n, _)| *n == name) {
                Some((_, list)) => list.push(t),
                None => names.push((name, vec![t])),
            }
        }
        let point = |t: &&Trial| Point { distance: t.distance, pul: t.pul, chosen: t.chosen };
        let curves: Vec<Curve> = names.into_iter().map(|(name, list)| Curve { name, points: list.iter().map(point).collect() }).collect();
        let figure = self.out.join("sweep.svg");
        atomic::write_bytes(&figure, pul_against_distance(&curves, "Fréchet distance in LeNet's features to the real images of the other classes").as_bytes())?;
        atomic::write_bytes(&self.out.join("sweep.txt"), format!("{text}\n").as_bytes())?;
        println!("figure: {}", figure.display());
        Ok(())
    }
}

/// Statistics of the feedback's positives in the classifier's features.
fn positives(lab: &Lab, stage1: &Stage1) -> Result<Statistics> {
    let mut stats: Option<FeatureStats> = None;
    for indices in stage1.feedback.positives().chunks(256) {
        let features = lab.classifier.features(&gather_rows(&stage1.feedback.images, indices)?)?;
        stats.get_or_insert_with(|| FeatureStats::new(features.dim(1))).add(&features)?;
    }
    stats.ok_or_else(|| Error::config("feedback", "holds no positive sample"))?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_takes_the_fewest_among_the_faithful() {
        let trial = |pull, remaining, distance_to_positives| Trial {
            loss: "EL2".into(),
            setting: String::new(),
            pull,
            remaining,
            distance_to_positives,
            pul: 0.0,
            distance: 0.0,
            chosen: false,
        };
        let trials = [trial(1.0, 30, 1.0), trial(2.0, 10, 1.4), trial(3.0, 10, 1.5), trial(4.0, 0, 1.6)];
        let all: Vec<&Trial> = trials.iter().collect();
        assert_eq!(chosen(&all, 1.0), Some(1));
        assert_eq!(chosen(&all, 2.0), Some(3));
        assert_eq!(chosen(&all[3..], 1.0), None);
    }
}
