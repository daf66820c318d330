//! Independent training runs side by side: the one place that decides how many at a time and on how many threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::device::Device;
use crate::error::{Error, Result};

/// Calls `job(i)` for `0..n` and returns the results in order; the first error (by index) wins.
///
/// Small networks leave threads waiting at the end of every op, so as many jobs run at once as there are threads, each
/// on its share of them. A GPU runs one job at a time: all of its work is in one stream. Results do not depend on this: no op's result depends on its number of threads.
pub fn side_by_side<T: Send>(device: &Device, n: usize, job: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = rayon::current_num_threads();
    let lanes = match device {
        Device::Cpu => n.min(threads).max(1),
        Device::Cuda(_) => 1,
    };
    if lanes == 1 {
        return (0..n).map(job).collect();
    }
    let next = AtomicUsize::new(0);
    let mut results: Vec<Option<Result<T>>> = (0..n).map(|_| None).collect();
    let done: Vec<Vec<(usize, Result<T>)>> = std::thread::scope(|scope| {
        let lane = |share: usize| {
            let (next, job) = (&next, &job);
            move || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(share).build().map_err(|e| Error::config("threads", e.to_string()));
                let mut mine = Vec::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        return mine;
                    }
                    let result = match &pool {
                        Ok(pool) => pool.install(|| job(i)),
                        Err(e) => Err(Error::config("threads", e.to_string())),
                    };
                    mine.push((i, result));
                }
            }
        };
        let handles: Vec<_> = (0..lanes).map(|l| scope.spawn(lane(threads / lanes + usize::from(l < threads % lanes)))).collect();
        handles.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (i, r) in done.into_iter().flatten() {
        results[i] = Some(r);
    }
    results.into_iter().map(|r| r.expect("every job was taken by a lane")).collect()
}
