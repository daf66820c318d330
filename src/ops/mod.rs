//! L3: functions on `Tensor`: check, dispatch, compute. One directory per family: `mod.rs` holds the spec, every
//! check and the dispatch, `cpu.rs` the host implementation, `cuda.rs` the launches of `kernels/<family>.cu`. Nothing
//! here knows about gradients.

pub mod bias_act;
pub mod conv2d;
pub mod elementwise;
pub mod layout;
pub mod matmul;
pub mod pool2d;
pub mod optimizer;
pub mod random;
pub mod reduce;
pub mod resize;
pub mod upfirdn2d;

use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// All tensors of one call must share a dtype and a device.
pub(crate) fn same_kind(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    for t in &tensors[1..] {
        if t.dtype() != tensors[0].dtype() {
            return Err(Error::shape(op, format!("dtypes {:?} and {:?} in one call", tensors[0].dtype(), t.dtype())));
        }
        if t.device() != tensors[0].device() {
            return Err(Error::shape(op, format!("tensors on {} and {} in one call", tensors[0].device(), t.device())));
        }
    }
    Ok(())
}

/// Runs an op where `$x` lives: `$cpu` on the host, with `$t` bound to the element type, or `$cuda`, which gives a
/// `Result`, with `$device` bound to the GPU.
macro_rules! on_device {
    ($x:expr, $t:ident => $cpu:expr, $device:ident => $cuda:expr) => {
        match $x.device() {
            $crate::device::Device::Cpu => Ok($crate::on_dtype!($x.dtype(), $t => $cpu)),
            $crate::device::Device::Cuda($device) => $cuda,
        }
    };
}
pub(crate) use on_device;
