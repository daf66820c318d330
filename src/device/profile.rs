//! Where the time of the CPU's ops goes: while a profile is being taken, every op says what it did and how long it took.
//! A GPU's kernels are measured from outside, by Nsight.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What one call had to do.
#[derive(Clone, Debug)]
pub struct Work {
    /// Shapes of the operands.
    pub operands: String,
    /// Floating-point operations of the definition, a product and its addition being two; how they are computed does not
    /// count (Winograd's transforms need fewer).
    pub flops: f64,
    /// Operands read once and results written once.
    pub bytes: f64,
}

/// All calls of an op on operands of the same shapes. Ops of several threads at a time count each for itself.
#[derive(Clone, Debug)]
pub struct Line {
    pub op: &'static str,
    pub operands: String,
    pub calls: u64,
    pub seconds: f64,
    pub flops: f64,
    pub bytes: f64,
}

static ON: AtomicBool = AtomicBool::new(false);
static LINES: Mutex<BTreeMap<(&'static str, String), Line>> = Mutex::new(BTreeMap::new());

fn lines() -> std::sync::MutexGuard<'static, BTreeMap<(&'static str, String), Line>> {
    LINES.lock().expect("no line is left half-written")
}

/// Begins a profile of this process. Only one is taken at a time.
pub fn start() {
    lines().clear();
    ON.store(true, Ordering::Relaxed);
}

/// Ends it; what took longest comes first.
pub fn stop() -> Vec<Line> {
    ON.store(false, Ordering::Relaxed);
    let mut all: Vec<Line> = std::mem::take(&mut *lines()).into_values().collect();
    all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    all
}

/// Runs an op. Without a profile this costs one load.
pub(crate) fn op<R>(name: &'static str, job: impl FnOnce() -> R, work: impl FnOnce(&R) -> Work) -> R {
    if !ON.load(Ordering::Relaxed) {
        return job();
    }
    let start = Instant::now();
    let result = job();
    let (seconds, work) = (start.elapsed().as_secs_f64(), work(&result));
    let mut lines = lines();
    let line = lines.entry((name, work.operands.clone())).or_insert(Line { op: name, operands: work.operands, calls: 0, seconds: 0.0, flops: 0.0, bytes: 0.0 });
    line.calls += 1;
    line.seconds += seconds;
    line.flops += work.flops;
    line.bytes += work.bytes;
    result
}
