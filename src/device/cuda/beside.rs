//! A second stream: work that is queued beside other work and waited for later, as one fork and one join. A recording keeps
//! both as edges of its graph.

use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::CudaSlice;

use super::{CudaDevice, Last, Workspace, failed, locked};
use crate::error::{Error, Result};

/// Memory that was dropped, and where it goes.
pub(super) type Dropped = (Option<Workspace>, CudaSlice<u8>);

/// Work that runs beside what is queued after it, until it is waited for: by `join`, or at the latest when this is dropped.
#[must_use = "the work is waited for when this is dropped"]
pub struct Beside {
    device: CudaDevice,
    /// Whether it has not been waited for.
    open: AtomicBool,
}

impl CudaDevice {
    /// Queues what `work` queues on a stream of its own: after all that was queued before, and beside all that will be
    /// queued until the join. Only one such work may be unfinished at a time. What is queued beside it must not touch what it
    /// writes, nor write what it reads; memory that is dropped meanwhile is not used again before the join.
    pub fn beside<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(Beside, R)> {
        /// A panic in the work ends it, too.
        struct Aside<'a>(&'a CudaDevice);
        impl Drop for Aside<'_> {
            fn drop(&mut self) {
                self.0.0.aside.store(false, Ordering::Relaxed);
                self.0.follow(Last::OtherStream);
            }
        }
        match &mut *locked(&self.0.kept) {
            Some(_) => return Err(Error::Cuda { what: "queueing work beside other work".into(), problem: "the work before it has not been waited for".into() }),
            none => *none = Some(Vec::new()),
        }
        // From here on the streams are joined again, whatever fails: a recording could not end otherwise.
        let beside = Beside { device: self.clone(), open: AtomicBool::new(true) };
        self.0.side.join(&self.0.stream).map_err(failed("parting two streams"))?;
        self.0.aside.store(true, Ordering::Relaxed);
        self.follow(Last::OtherStream);
        let aside = Aside(self);
        let result = work();
        drop(aside);
        Ok((beside, result?))
    }

    fn follow(&self, last: Last) {
        *locked(&self.0.last) = last;
    }
}

impl Beside {
    /// What is queued from now on comes after the work. Another time does nothing.
    pub fn join(&self) -> Result<()> {
        if !self.open.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let device = &self.device;
        let waited = device.0.stream.join(&device.0.side).map_err(failed("joining two streams"));
        device.follow(Last::OtherStream);
        let kept = locked(&device.0.kept).take();
        for (home, memory) in kept.into_iter().flatten() {
            device.give_back(home.as_ref(), memory);
        }
        waited
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // A stream that cannot wait has failed, which the next call of the driver says.
        let _ = self.join();
    }
}
