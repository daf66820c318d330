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

use crate::device::cpu::keep_awake;
use crate::device::profile::{self, Work};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// All tensors of one call must share a dtype and a device.
pub(crate) fn same_kind(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    all_beside(op, tensors[0], tensors[0].dtype(), &tensors[1..])
}

/// Parameters of a call lie where its activation does, in the type that sums over it have.
pub(crate) fn parameters_of(op: &'static str, activation: &Tensor, parameters: &[&Tensor]) -> Result<()> {
    all_beside(op, activation, activation.dtype().accumulator(), parameters)
}

fn all_beside(op: &'static str, first: &Tensor, dtype: DType, others: &[&Tensor]) -> Result<()> {
    for t in others {
        if t.dtype() != dtype {
            return Err(Error::shape(op, format!("dtypes {:?} and {:?} in one call, where {dtype:?} belongs", first.dtype(), t.dtype())));
        }
        if t.device() != first.device() {
            return Err(Error::shape(op, format!("tensors on {} and {} in one call", first.device(), t.device())));
        }
    }
    Ok(())
}

/// For ops that have no kernel for bf16.
pub(crate) fn refuse_bf16(op: &'static str, inputs: &[&Tensor]) -> Result<()> {
    match inputs.iter().any(|t| t.dtype() == DType::Bf16) {
        true => Err(Error::Unsupported { op, problem: "it has no kernel for bf16; cast to f32 before".into() }),
        false => Ok(()),
    }
}

/// The result of an op on the CPU as its inputs are: of bf16, rounded.
pub(crate) fn stored(result: Tensor, inputs: &[&Tensor]) -> Tensor {
    if inputs[0].dtype() == DType::Bf16 { result.rounded() } else { result }
}

/// Runs an op of the CPU, which a profile may be watching. `flops`: as `Work` counts them.
pub(crate) fn on_cpu(op: &'static str, inputs: &[&Tensor], flops: usize, job: impl FnOnce() -> Tensor) -> Tensor {
    keep_awake();
    profile::op(op, job, |output| Work {
        operands: inputs.iter().map(|t| format!("{:?}", t.shape())).collect::<Vec<_>>().join(" "),
        flops: flops as f64,
        bytes: inputs.iter().copied().chain([output]).map(|t| t.len() * t.dtype().size()).sum::<usize>() as f64,
    })
}

/// Runs op `$op` where its `$inputs` (`&[&Tensor]`) live: `$cpu` on the host, with `$t` bound to the element type, or
/// `$cuda`, which gives a `Result`, with `$device` bound to the GPU; `or bf16` where it takes that too and makes it, `or bf16 to
/// f32` where it takes it and makes f32. `$flops` where it is products that cost.
macro_rules! on_device {
    ($op:literal, $inputs:expr, $t:ident => $cpu:expr, $($cuda:tt)+) => {
        $crate::ops::on_device!($op, $inputs, 0, $t => $cpu, $($cuda)+)
    };
    ($op:literal, $inputs:expr, $flops:expr, $t:ident => $cpu:expr, $device:ident => $cuda:expr) => {{
        $crate::ops::refuse_bf16($op, $inputs)?;
        $crate::ops::on_device!($op, $inputs, $flops, $t => $cpu, $device or bf16 => $cuda)
    }};
    ($op:literal, $inputs:expr, $flops:expr, $t:ident => $cpu:expr, $device:ident or bf16 => $cuda:expr) => {{
        $crate::ops::on_device!($op, $inputs, $flops, $t => $crate::ops::stored($cpu, $inputs), $device or bf16 to f32 => $cuda)
    }};
    ($op:literal, $inputs:expr, $flops:expr, $t:ident => $cpu:expr, $device:ident or bf16 to f32 => $cuda:expr) => {{
        let inputs: &[&Tensor] = $inputs;
        match inputs[0].device() {
            $crate::device::Device::Cpu => Ok($crate::ops::on_cpu($op, inputs, $flops, || $crate::on_dtype!(inputs[0].dtype(), $t => $cpu))),
            $crate::device::Device::Cuda($device) => $cuda,
        }
    }};
}
pub(crate) use on_device;

/// Where a tensor's elements are on a GPU; null where there is no tensor.
pub(crate) fn pointer(tensor: Option<&Tensor>) -> u64 {
    tensor.map_or(0, Tensor::cuda_pointer)
}

/// The entry of kernel `$stem` for elements of that type on a GPU.
macro_rules! by_dtype {
    ($dtype:expr, $stem:literal) => {
        match $dtype {
            $crate::tensor::DType::Bf16 => concat!($stem, "_bf16"),
            _ => concat!($stem, "_f32"),
        }
    };
}
pub(crate) use by_dtype;
