//! Reading ahead: what is needed next is read and decoded while something else is computed.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use rayon::Yield;

use crate::error::Result;

/// Work that the pool's threads do.
pub type Job<T> = Box<dyn FnOnce() -> Result<T> + Send>;

/// Pause between two looks at a job that another thread is at.
const PAUSE: Duration = Duration::from_millis(1);

/// The results of jobs, in the order of the jobs. While one result is used, the next job is under way: at most one
/// finished result waits.
pub struct ReadAhead<'a, T> {
    jobs: Box<dyn Iterator<Item = Job<T>> + 'a>,
    next: Option<Receiver<Result<T>>>,
}

fn start<T: Send + 'static>(job: Job<T>) -> Receiver<Result<T>> {
    let (done, result) = sync_channel(1);
    rayon::spawn(move || {
        // Nobody waits any more when the reader was dropped.
        let _ = done.send(job());
    });
    result
}

/// Waits for a result, and meanwhile does what the pool has to do: this may be its only thread.
fn finish<T>(job: &Receiver<Result<T>>) -> Result<T> {
    const LOST: &str = "a job that panics ends the program";
    loop {
        match job.try_recv() {
            Ok(result) => return result,
            Err(TryRecvError::Disconnected) => panic!("{LOST}"),
            Err(TryRecvError::Empty) if rayon::yield_now() == Some(Yield::Executed) => {}
            Err(TryRecvError::Empty) => match job.recv_timeout(PAUSE) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("{LOST}"),
            },
        }
    }
}

impl<'a, T: Send + 'static> ReadAhead<'a, T> {
    /// Takes jobs from `jobs` one by one, on the thread that asks for results: what it draws at random it draws in order.
    pub fn new<J: FnOnce() -> Result<T> + Send + 'static>(jobs: impl Iterator<Item = J> + 'a) -> ReadAhead<'a, T> {
        ReadAhead { jobs: Box::new(jobs.map(|job| Box::new(job) as Job<T>)), next: None }
    }
}

impl<T: Send + 'static> Iterator for ReadAhead<'_, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        let current = self.next.take().or_else(|| self.jobs.next().map(start))?;
        let result = finish(&current);
        self.next = self.jobs.next().map(start);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rayon::prelude::*;

    use super::*;
    use crate::error::Error;

    /// Jobs that themselves ask for the pool's threads.
    fn squares(n: usize) -> Vec<usize> {
        let jobs = (0..n).map(|i| move || Ok((0..i).into_par_iter().map(|_| i).sum()));
        ReadAhead::new(jobs).collect::<Result<_>>().unwrap()
    }

    #[test]
    fn results_come_in_order_on_any_number_of_threads() {
        let expected: Vec<usize> = (0..40).map(|i| i * i).collect();
        assert_eq!(squares(40), expected, "outside of a pool of its own");
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| squares(40)), expected, "{threads} threads");
        }
    }

    #[test]
    fn one_job_ahead_and_errors_in_their_place() {
        let started = Arc::new(AtomicUsize::new(0));
        let counter = started.clone();
        let jobs = (0..5).map(|i| {
            counter.fetch_add(1, Ordering::SeqCst);
            move || if i == 2 { Err(Error::config("data", "the third")) } else { Ok(i) }
        });
        let mut ahead = ReadAhead::new(jobs);
        assert_eq!(started.load(Ordering::SeqCst), 0);
        assert_eq!(ahead.next().unwrap().unwrap(), 0);
        assert_eq!(started.load(Ordering::SeqCst), 2);
        assert_eq!(ahead.next().unwrap().unwrap(), 1);
        assert!(ahead.next().unwrap().unwrap_err().to_string().contains("the third"));
        assert_eq!(ahead.next().unwrap().unwrap(), 3);
        assert_eq!((ahead.next().unwrap().unwrap(), ahead.next().is_none()), (4, true));
    }
}
