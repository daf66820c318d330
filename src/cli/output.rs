//! What commands print: progress on standard error, results on standard output.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Global;
use crate::error::{Error, Result};

/// A progress bar with rate and time left; plain lines, a few a minute, when standard error is no terminal.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    what: String,
    total: u64,
    start: Instant,
    first: u64,
    last_line: Instant,
}

const LINE_EVERY: Duration = Duration::from_secs(15);
/// A message may have to wait for a GPU.
const MESSAGE_EVERY: Duration = Duration::from_millis(500);

impl Progress {
    /// `at`: how much of `total` was done before (a resumed run).
    pub fn new(what: &str, at: u64, total: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{prefix:>12} {wide_bar} {pos}/{len} {per_sec} {eta} left {msg}";
            let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(style).expect("a valid template"));
            bar.set_prefix(what.to_string());
            bar.set_position(at);
            bar.reset_eta();
            bar
        });
        Progress { bar, what: what.to_string(), total, start: Instant::now(), first: at, last_line: Instant::now() }
    }

    /// `message` is asked for only when it is shown.
    pub fn at(&mut self, position: u64, message: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                if self.last_line.elapsed() >= MESSAGE_EVERY {
                    self.last_line = Instant::now();
                    bar.set_message(message());
                }
            }
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                let rate = (position - self.first) as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
                let left = (self.total.saturating_sub(position)) as f64 / rate.max(1e-9);
                eprintln!("{} {position}/{} {rate:.2}/s, {left:.0} s left, {}", self.what, self.total, message());
            }
            None => {}
        }
    }

    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Prints the JSON summary when `--json` was given.
pub(super) fn summary(global: &Global, value: &impl Serialize) {
    if global.json {
        println!("{}", serde_json::to_string(value).expect("plain data"));
    }
}

/// A table with aligned columns; the first row is the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(c, s)| {
            let gap = " ".repeat(widths[c] - s.chars().count());
            if c == 0 { format!("{s}{gap}") } else { format!("{gap}{s}") }
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Refuses an output that is one of the inputs, or that cannot be written, before the work for it is done.
pub(super) fn refuse_overwriting(out: &Path, inputs: &[&Path]) -> Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    if real(out).is_some_and(|out| inputs.iter().any(|input| real(input).as_ref() == Some(&out))) {
        return Err(Error::file(out, "is read by the same call; choose another file for the result"));
    }
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(Error::file(out, "cannot be written: its folder does not exist; create it first"));
    }
    if out.is_dir() {
        return Err(Error::file(out, "is a folder; give the path of a file"));
    }
    Ok(())
}
