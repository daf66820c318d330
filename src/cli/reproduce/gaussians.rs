//! `recant reproduce gaussians`: the eight-Gaussians experiment, with its figure.

use std::path::PathBuf;

use clap::Args;

use crate::cli::output::{summary, table};
use crate::cli::run_folder::{RunFolder, stop_if_interrupted};
use crate::cli::unlearn::Loss;
use crate::cli::Global;
use crate::device::Device;
use crate::error::Result;
use crate::io::atomic;
use crate::io::npz::{self, Array, Arrays};
use crate::unlearning::gaussians::{self, Counts, GaussiansSpec, MODES, NEGATIVE_MODES, centre, scatter};

#[derive(Args, Clone, Debug)]
pub(crate) struct Gaussians {
    /// Folder for the figure, the points and the numbers
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Repulsion loss
    #[arg(long, value_enum, default_value = "el2")]
    repulsion: Loss,
}

impl Gaussians {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        global.device.host_only("gaussians")?;
        let repulsion = match self.repulsion {
            Loss::El2 => Some(gaussians::EL2),
            Loss::Nl2 => Some(gaussians::NL2),
            Loss::Il2 => Some(gaussians::IL2),
            Loss::None => None,
        };
        let spec = GaussiansSpec { seed: self.seed, repulsion, ..GaussiansSpec::default() };
        let mut folder = RunFolder::create(&self.out, false, &spec, &Device::Cpu, &[])?;
        let result = gaussians::run(&spec, &mut |stage| {
            eprintln!("{stage}");
            stop_if_interrupted()
        })?;
        let clouds = [("pre-trained", &result.pretrained), ("adapted", &result.adapted), ("unlearned", &result.unlearned)];
        let counts = clouds.map(|(_, points)| Counts::of(points));
        let arrays: Arrays = clouds.iter().map(|(name, points)| (name.replace('-', "_"), Array::from(*points))).collect();
        npz::write(folder.file("points.npz"), &arrays)?;
        let figure = folder.file("gaussians.svg");
        atomic::write_bytes(&figure, scatter(&result).as_bytes())?;

        let mut rows = vec![[vec!["points near".to_string()], clouds.map(|(name, _)| name.to_string()).to_vec()].concat()];
        let row = |name: String, f: &dyn Fn(&Counts) -> String| [vec![name], counts.iter().map(f).collect()].concat();
        for mode in 0..MODES {
            let [x, y] = centre(mode);
            let mark = if NEGATIVE_MODES.contains(&mode) { " negative" } else { "" };
            rows.push(row(format!("({x:.2}, {y:.2}){mark}"), &|c| c.near[mode].to_string()));
        }
        rows.push(row("no centre".into(), &|c| format!("{:.1} %", 100.0 * c.stray_share())));
        rows.push(row("marked negative".into(), &|c| format!("{:.1} %", 100.0 * c.negative_share())));
        println!("{}", table(&rows));
        println!("figure: {}", figure.display());
        for ((name, _), counts) in clouds.iter().zip(&counts) {
            folder.log(&serde_json::json!({"cloud": name, "counts": counts, "negative_share": counts.negative_share(), "stray_share": counts.stray_share()}))?;
        }
        summary(
            global,
            &serde_json::json!({
                "negative_share_before": counts[0].negative_share(),
                "negative_share_adapted": counts[1].negative_share(),
                "negative_share_after": counts[2].negative_share(),
                "near_before": counts[0].near,
                "near_adapted": counts[1].near,
                "near_after": counts[2].near,
                "samples": spec.samples,
                "figure": figure,
                "seconds": start.elapsed().as_secs_f64(),
                "device": "cpu",
            }),
        );
        Ok(())
    }
}
