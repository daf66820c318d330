//! Independent training runs side by side: the one place that decides how many at a time and on how many threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::device::Device;
use crate::error::{Error, Result};

/// Calls `job(device, i)` for `0..n` and returns the results in order. After an error no other job is begun; the first one
/// (by index) wins. `devices`: the CPU alone, or GPUs.
///
/// On a CPU, small networks leave threads waiting at the end of every op, so as many jobs run at once as there are threads,
/// each on one of them; a thread that finds no job left helps with the ops of those that still run. Each entry of GPUs runs
/// one job at a time: all of its work is in one stream. A GPU that is opened several times has several streams, and small
/// layers of several jobs fill it together. Results do not depend on this: no op's result depends on its number of threads,
/// or on what else the device does.
pub fn side_by_side<T: Send>(devices: &[Device], n: usize, job: impl Fn(&Device, usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Mutex<Vec<Option<Result<T>>>> = Mutex::new((0..n).map(|_| None).collect());
    let lane = |device: &Device| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n || failed.load(Ordering::Relaxed) {
                return;
            }
            let result = job(device, i);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.lock().expect("no job panics while it holds the results")[i] = Some(result);
        }
    };
    match devices {
        [Device::Cpu] => rayon::scope(|scope| (0..n.min(rayon::current_num_threads())).for_each(|_| scope.spawn(|_| lane(&Device::Cpu)))),
        [only] => lane(only),
        gpus => {
            // A thread that waits for a GPU does nothing else meanwhile, so these are not the pool's; each has its share of that.
            let share = (rayon::current_num_threads() / gpus.len().min(n.max(1))).max(1);
            let pools = gpus.iter().take(n).map(|_| rayon::ThreadPoolBuilder::new().num_threads(share).build());
            let pools = pools.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| Error::config("threads", e.to_string()))?;
            std::thread::scope(|scope| {
                for (pool, gpu) in pools.iter().zip(gpus) {
                    scope.spawn(|| pool.install(|| lane(gpu)));
                }
            });
        }
    }
    let results = results.into_inner().expect("no job panics while it holds the results");
    // Of jobs that were not begun there is nothing; then an earlier one has failed, as jobs are handed out in order.
    results.into_iter().flatten().collect()
}
