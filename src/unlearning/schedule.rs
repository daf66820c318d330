//! Independent training runs side by side: the one place that decides how many at a time and on how many threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::device::Device;
use crate::error::{Error, Result};

/// Calls `job(device, i)` for `0..n` and returns the results in order. After an error no other job is begun; the first one
/// (by index) wins. `devices`: the CPU alone, or GPUs.
///
/// On a CPU, small networks leave threads waiting at the end of every op, so as many jobs run at once as there are
/// threads, each on its share of them. Each entry of GPUs runs one job at a time: all of its work is in one stream. A GPU
/// that is opened several times has several streams, and small layers of several jobs fill it together. Results do not
/// depend on this: no op's result depends on its number of threads, or on what else the device does.
pub fn side_by_side<T: Send>(devices: &[Device], n: usize, job: impl Fn(&Device, usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = rayon::current_num_threads();
    let at_once = match devices {
        [Device::Cpu] => threads,
        gpus => gpus.len(),
    };
    let lanes = n.min(at_once).max(1);
    if lanes == 1 {
        return (0..n).map(|i| job(&devices[0], i)).collect();
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let mut results: Vec<Option<Result<T>>> = (0..n).map(|_| None).collect();
    let done: Vec<Vec<(usize, Result<T>)>> = std::thread::scope(|scope| {
        let lane = |lane: usize| {
            let (next, failed, job, device) = (&next, &failed, &job, &devices[lane.min(devices.len() - 1)]);
            let share = (threads / lanes + usize::from(lane < threads % lanes)).max(1);
            move || {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(share).build().map_err(|e| Error::config("threads", e.to_string()));
                let mut mine = Vec::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n || failed.load(Ordering::Relaxed) {
                        return mine;
                    }
                    let result = match &pool {
                        Ok(pool) => pool.install(|| job(device, i)),
                        Err(e) => Err(Error::config("threads", e.to_string())),
                    };
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    mine.push((i, result));
                }
            }
        };
        let handles: Vec<_> = (0..lanes).map(|l| scope.spawn(lane(l))).collect();
        handles.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (i, r) in done.into_iter().flatten() {
        results[i] = Some(r);
    }
    // Of jobs that were not begun there is nothing; then an earlier one has failed, as jobs are handed out in order.
    results.into_iter().flatten().collect()
}
