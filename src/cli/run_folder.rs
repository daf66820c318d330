//! The folder of a long run: its resolved configuration, its metrics, its interruption.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::io::atomic;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C asks the running loop to save and stop; the second ends the program at once.
pub(super) fn listen_for_interrupt() -> Result<()> {
    let set = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(2);
        }
    });
    set.map_err(|e| Error::config("Ctrl-C", e.to_string()))
}

/// Whether Ctrl-C was pressed.
pub(super) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Ends a command that has nothing to save.
pub(super) fn stop_if_interrupted() -> Result<()> {
    if interrupted() { Err(Error::Interrupted { resume: None }) } else { Ok(()) }
}

/// A run's folder.
pub(super) struct RunFolder {
    path: PathBuf,
    metrics: std::fs::File,
}

impl RunFolder {
    /// Creates the folder, or with `resume` opens it, and writes `config.json`. A folder that holds a run, or models of
    /// something else, is not touched without `resume`; one that is resumed must have been made with the same
    /// configuration and in the same precision, except for `free` keys (the length of the run). A run that has left nothing but
    /// its configuration was refused or stopped at once, and may be begun again in any way.
    pub fn create(path: &Path, resume: bool, config: &impl Serialize, device: &Device, free: &[&str]) -> Result<RunFolder> {
        let file = path.join("config.json");
        let in_precision = |mut config: serde_json::Value, precision: Precision| {
            let fields = config.as_object_mut().expect("a configuration is a struct");
            fields.entry("precision").or_insert_with(|| serde_json::to_value(precision).expect("plain data"));
            config
        };
        let config = in_precision(serde_json::to_value(config).expect("plain data"), device.precision());
        let names: Vec<String> = match std::fs::read_dir(path) {
            Ok(entries) => entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect(),
            Err(_) => Vec::new(),
        };
        let logged = std::fs::metadata(path.join("metrics.jsonl")).is_ok_and(|m| m.len() > 0);
        let begun = logged || names.iter().any(|name| name != "config.json" && name != "metrics.jsonl");
        if !file.exists() && !resume && names.iter().any(|name| name.ends_with(".safetensors")) {
            return Err(Error::file(path, "holds models already, which the run might replace; choose another --out"));
        }
        if file.exists() && begun {
            if !resume {
                return Err(Error::file(path, "already holds a run; choose another --out, or continue it with --resume"));
            }
            let text = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
            let old: serde_json::Value = serde_json::from_str(&text).map_err(|e| Error::file(&file, format!("does not parse: {e}")))?;
            // Where the file does not say it, the program was older, and f32 what it did unless told otherwise.
            let old = if old.is_object() { in_precision(old, Precision::F32) } else { old };
            if let Some((key, before, now)) = first_difference(&old, &config, free) {
                return Err(Error::config("--resume", format!("the run was started with {key} = {before}, now it is {now}; use the same options")));
            }
        } else if resume && !file.exists() {
            return Err(Error::file(path, "holds no run to resume (no config.json); leave out --resume"));
        }
        atomic::create_folder(path)?;
        let text = serde_json::to_string_pretty(&config).expect("plain data");
        atomic::write_bytes(&file, text.as_bytes())?;
        let metrics = path.join("metrics.jsonl");
        let metrics = OpenOptions::new().create(true).append(true).open(&metrics).map_err(|e| Error::io(&metrics, e))?;
        Ok(RunFolder { path: path.to_path_buf(), metrics })
    }

    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Appends one object to `metrics.jsonl`.
    pub fn log(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(record).expect("plain data");
        line.push('\n');
        self.metrics.write_all(line.as_bytes()).map_err(|e| Error::io(self.path.join("metrics.jsonl"), e))
    }
}

/// The key of the first number or text in which two configurations differ, `spec.models`, and what it is in both.
fn first_difference(old: &serde_json::Value, new: &serde_json::Value, free: &[&str]) -> Option<(String, String, String)> {
    let (Some(a), Some(b)) = (old.as_object(), new.as_object()) else {
        return (old != new).then(|| (String::new(), old.to_string(), new.to_string()));
    };
    let missing = serde_json::Value::Null;
    let keys = a.keys().chain(b.keys()).filter(|k| !free.contains(&k.as_str()));
    keys.into_iter().find_map(|key| {
        let of = |map: &serde_json::Map<String, serde_json::Value>| map.get(key).unwrap_or(&missing).clone();
        let (inner, before, now) = first_difference(&of(a), &of(b), &[])?;
        Some((if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") }, before, now))
    })
}
