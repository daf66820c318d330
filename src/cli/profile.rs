//! `recant bench --profile`: where the time of training iterations on the CPU goes, op by op, beside what the machine
//! reaches at most.

use std::time::Instant;

use serde::Serialize;

use super::output::table;
use crate::device::peak::{copy_on_host, median};
use crate::device::profile::{self, Line};
use crate::error::Result;
use crate::ops::matmul::{Read, matmul};
use crate::ops::random::Random;

/// Far beyond any cache.
const COPIED: usize = 1 << 25;
/// Side of the matrices whose product shows how fast the machine multiplies.
const SIDE: usize = 1024;
const REPEATS: usize = 7;
/// How many operands of ops are listed.
const LISTED: usize = 15;

/// What the machine reaches in one go.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ceilings {
    /// Of a copy, read and written.
    pub bytes_per_second: f64,
    /// Of a large matrix product.
    pub flops_per_second: f64,
}

impl Ceilings {
    pub fn measure() -> Result<Ceilings> {
        let (from, mut to) = (vec![1.0; COPIED], vec![0.0; COPIED]);
        let copy = seconds(|| {
            copy_on_host(&from, &mut to);
            Ok(())
        })?;
        let matrix = Random::new(0, 0).normal(&[SIDE, SIDE]);
        let product = seconds(|| matmul(&matrix, Read::Plain, &matrix, Read::Plain).map(drop))?;
        Ok(Ceilings { bytes_per_second: (2 * size_of_val(&from[..])) as f64 / copy, flops_per_second: 2.0 * (SIDE as f64).powi(3) / product })
    }

    /// Seconds that the work takes at least.
    fn floor(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops_per_second).max(bytes / self.bytes_per_second)
    }
}

fn seconds(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let times = (0..REPEATS).map(|_| {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed().as_secs_f64())
    });
    Ok(median(times.collect::<Result<_>>()?))
}

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub name: String,
    pub calls: f64,
    pub milliseconds: f64,
    /// Of the whole, or of all threads' time in ops where that is more.
    pub share: f64,
    pub gflops_per_second: f64,
    pub gbytes_per_second: f64,
    /// The time that the work takes at the ceilings, over the time that it took. Above 1 where fewer products do (Winograd)
    /// or operands come from the cache.
    pub of_ceiling: f64,
}

/// What was seen of `iterations`.
pub(super) struct Profile {
    pub ops: Vec<Row>,
    /// The operands that took longest.
    pub operands: Vec<Row>,
}

/// Watches `work`, which does so many iterations.
pub(super) fn watched(iterations: u64, ceilings: Ceilings, work: impl FnOnce() -> Result<()>) -> Result<Profile> {
    let start = Instant::now();
    profile::start();
    let done = work();
    let lines = profile::stop();
    done?;
    Ok(Profile::of(&lines, iterations, start.elapsed().as_secs_f64(), ceilings))
}

impl Profile {
    /// `seconds`: of all iterations. Where ops run at the same time they may take longer together; shares are of their sum then.
    fn of(lines: &[Line], iterations: u64, seconds: f64, ceilings: Ceilings) -> Profile {
        let in_ops: f64 = lines.iter().map(|l| l.seconds).sum();
        let whole = seconds.max(in_ops);
        let row = |name: String, calls: u64, seconds: f64, flops: f64, bytes: f64| Row {
            name,
            calls: calls as f64 / iterations as f64,
            milliseconds: 1e3 * seconds / iterations as f64,
            share: seconds / whole,
            gflops_per_second: 1e-9 * flops / seconds,
            gbytes_per_second: 1e-9 * bytes / seconds,
            of_ceiling: ceilings.floor(flops, bytes) / seconds,
        };
        let mut by_op: Vec<Line> = Vec::new();
        for line in lines {
            match by_op.iter_mut().find(|l| l.op == line.op) {
                Some(sum) => {
                    sum.calls += line.calls;
                    sum.seconds += line.seconds;
                    sum.flops += line.flops;
                    sum.bytes += line.bytes;
                }
                None => by_op.push(line.clone()),
            }
        }
        by_op.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let mut ops: Vec<Row> = by_op.iter().map(|l| row(l.op.to_string(), l.calls, l.seconds, l.flops, l.bytes)).collect();
        ops.push(row("between ops".into(), 0, whole - in_ops, 0.0, 0.0));
        let operands = lines.iter().take(LISTED).map(|l| row(format!("{} {}", l.op, l.operands), l.calls, l.seconds, l.flops, l.bytes)).collect();
        Profile { ops, operands }
    }
}

/// The rows as text.
pub(super) fn rows_table(rows: &[Row]) -> String {
    let mut all = vec![["per iteration", "calls", "ms", "share", "GFLOP/s", "GB/s", "of the ceiling"].map(str::to_string).to_vec()];
    let rate = |v: f64| if v > 0.0 { format!("{v:.1}") } else { "-".into() };
    for r in rows {
        let ceiling = if r.of_ceiling > 0.0 { format!("{:.0} %", 100.0 * r.of_ceiling) } else { "-".into() };
        all.push(vec![r.name.clone(), format!("{:.1}", r.calls), format!("{:.2}", r.milliseconds), format!("{:.1} %", 100.0 * r.share), rate(r.gflops_per_second), rate(r.gbytes_per_second), ceiling]);
    }
    table(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_shares_and_rates() {
        let line = |op, operands: &str, calls, seconds, flops, bytes| Line { op, operands: operands.into(), calls, seconds, flops, bytes };
        let lines = [line("conv2d", "[1]", 4, 3.0, 6e9, 1e9), line("zip", "[3]", 2, 2.0, 0.0, 4e9), line("conv2d", "[2]", 2, 1.0, 6e9, 1e9)];
        let found = Profile::of(&lines, 2, 8.0, Ceilings { bytes_per_second: 4e9, flops_per_second: 6e9 });
        let seen: Vec<_> = found.ops.iter().map(|r| (r.name.as_str(), r.calls, r.milliseconds, r.share)).collect();
        assert_eq!(seen, [("conv2d", 3.0, 2000.0, 0.5), ("zip", 1.0, 1000.0, 0.25), ("between ops", 0.0, 1000.0, 0.25)]);
        assert_eq!((found.ops[0].gflops_per_second, found.ops[1].gbytes_per_second), (3.0, 2.0));
        // On two threads, in half of the time.
        assert_eq!(Profile::of(&lines, 2, 4.0, Ceilings { bytes_per_second: 4e9, flops_per_second: 6e9 }).ops.iter().map(|r| r.share).sum::<f64>(), 1.0);
        // Two seconds of products, and one second of bytes.
        assert_eq!((found.ops[0].of_ceiling, found.ops[1].of_ceiling), (0.5, 0.5));
        assert_eq!(found.operands.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["conv2d [1]", "zip [3]", "conv2d [2]"]);
    }

    /// Other tests of this process may run ops meanwhile; the shapes are this one's.
    #[test]
    fn an_op_says_what_it_did() {
        let (a, b) = (Random::new(0, 0).normal(&[37, 41]), Random::new(0, 0).normal(&[41, 3]));
        profile::start();
        for _ in 0..4 {
            matmul(&a, Read::Plain, &b, Read::Plain).unwrap();
        }
        let lines = profile::stop();
        let line = lines.iter().find(|l| l.op == "matmul" && l.operands == "[37, 41] [41, 3]").expect("its line");
        assert_eq!((line.calls, line.flops, line.bytes), (4, 4.0 * 2.0 * 37.0 * 41.0 * 3.0, 4.0 * 4.0 * (37.0 * 41.0 + 41.0 * 3.0 + 37.0 * 3.0)));
        assert!(line.seconds > 0.0);
    }
}
