//! Sums over the GPUs of several processes, by NCCL. The library is looked up at run time.

use std::fmt;
use std::mem::MaybeUninit;

use cudarc::nccl::{result, sys};

use super::CudaDevice;
use crate::error::{Error, Result};

/// What ranks tell each other to find themselves.
pub type Id = [u8; 128];

fn failed(what: &str) -> impl FnOnce(result::NcclError) -> Error + '_ {
    move |e| Error::Cuda { what: format!("NCCL, {what}"), problem: format!("{:?}; NCCL_DEBUG=INFO makes it say more", e.0) }
}

/// Whether this machine has the library.
pub fn is_present() -> bool {
    // SAFETY: looks for a library by name and calls nothing in it.
    unsafe { sys::is_culib_present() }
}

fn present() -> Result<()> {
    if is_present() {
        return Ok(());
    }
    let problem = "training by several processes needs NCCL, and there is no libnccl.so; install it (it comes with PyTorch, or as nvidia-nccl-cu13 from PyPI) and put its folder into LD_LIBRARY_PATH";
    Err(Error::NoCuda { problem: problem.into() })
}

/// One rank's end of the connection between all GPUs.
pub struct Communicator {
    comm: sys::ncclComm_t,
    device: CudaDevice,
}

// SAFETY: NCCL wants the calls on one communicator one after the other; `Ranks` keeps it behind a lock.
unsafe impl Send for Communicator {}

impl Communicator {
    /// A new name for a group, made by one of its ranks.
    pub fn id() -> Result<Id> {
        present()?;
        let id = result::get_uniqueid().map_err(failed("making an id"))?;
        Ok(id.internal.map(|c| c as u8))
    }

    /// Joins the group; returns when all ranks have.
    pub fn join(device: &CudaDevice, rank: usize, world: usize, id: Id) -> Result<Communicator> {
        present()?;
        device.bind()?;
        let id = sys::ncclUniqueId { internal: id.map(|b| b as std::ffi::c_char) };
        let mut comm = MaybeUninit::uninit();
        // SAFETY: the communicator is written when the call succeeds.
        let comm = unsafe {
            result::comm_init_rank(comm.as_mut_ptr(), world as i32, id, rank as i32).map_err(failed("joining the other ranks"))?;
            comm.assume_init()
        };
        Ok(Communicator { comm, device: device.clone() })
    }

    /// Replaces `n` f32 at `pointer` by their sums over all ranks, the same bits on each: queued on the device's stream,
    /// or recorded.
    ///
    /// # Safety
    /// `pointer` is memory of this communicator's device with room for `n` f32, which nobody else uses meanwhile.
    pub unsafe fn sum(&self, pointer: u64, n: usize) -> Result<()> {
        self.device.bind()?;
        let (at, stream) = (pointer as *mut std::ffi::c_void, self.device.stream().cu_stream());
        // SAFETY: by the caller; the stream is the device's.
        unsafe { result::all_reduce(at, at, n, sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum, self.comm, stream.cast()) }
            .map(drop)
            .map_err(failed("summing over the ranks"))
    }
}

impl Drop for Communicator {
    /// Aborting does not wait for ranks that are gone.
    fn drop(&mut self) {
        // SAFETY: the communicator is used no more.
        let _ = unsafe { result::comm_abort(self.comm) };
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Communicator on {:?}", self.device)
    }
}
