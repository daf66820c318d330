//! What `recant doctor` does on a GPU, on the emulated one: every kernel is checked against the CPU, and what is timed can
//! be recorded. Times themselves mean nothing here.

mod common;

use std::collections::BTreeSet;

use common::gpu;
use recant::cli::probes::{Products, Size, probes};
use recant::device::cuda::KERNELS;
use recant::device::{Device, Precision};
use recant::device::peak::{Effort, copy_bandwidth, fma_rate, median, mma_rate};

/// Kernels that ops choose for a hundred tiles of 128 x 128 and more.
const LARGE_TILES: [&str; 16] = [
    "conv2d_act_tf32",
    "conv2d_act_tf32x3",
    "conv2d_act_bf16",
    "conv2d_act_stored_bf16",
    "conv2d_tf32",
    "conv2d_tf32x3",
    "conv2d_bf16",
    "conv2d_stored_bf16",
    "conv2d_transpose_tf32",
    "conv2d_transpose_tf32x3",
    "conv2d_transpose_bf16",
    "conv2d_transpose_stored_bf16",
    "conv2d_weight_grad_tf32",
    "conv2d_weight_grad_tf32x3",
    "conv2d_weight_grad_bf16",
    "conv2d_weight_grad_stored_bf16",
];

/// Small enough for the emulator.
const EFFORT: Effort = Effort { bytes: 1 << 12, rounds: 3, repeats: 1 };

#[test]
fn every_kernel_is_checked_against_the_cpu() {
    let mut unused: BTreeSet<&str> = gpu::cuda().launches().into_keys().collect();
    for precision in [Precision::F32, Precision::Tf32x3, Precision::Tf32, Precision::Bf16] {
        let gpu = gpu::cuda_with(precision);
        let device = Device::Cuda(gpu.clone());
        for probe in probes().iter().filter(|p| p.products == Products::Device || precision == Precision::F32) {
            let error = probe.error(&device).unwrap_or_else(|e| panic!("{}: {e} {}", probe.name, cuda_on_cpu::last_error()));
            assert!(error <= probe.allowed(&device), "{} in {precision:?}: {error}", probe.name);
            assert!(probe.bytes > 0.0 && probe.floor(1e12, 1e12) > 0.0, "{} has no floor", probe.name);
        }
        unused.retain(|name| gpu.launches()[name] == 0);
    }
    // A chip that is slow in double precision.
    let slow = gpu::cuda_of((8, 6), Precision::F32);
    for probe in probes().iter().filter(|p| p.name == "feature statistics") {
        let error = probe.error(&Device::Cuda(slow.clone())).unwrap();
        assert!(error <= probe.tolerance, "{}: {error}", probe.name);
    }
    // A real chip is of one kind.
    unused.retain(|name| slow.launches()[name] == 0 && (cuda_on_cpu::is_emulated() || !name.starts_with("feature_products")));
    let gpu = gpu::cuda();
    for rate in [copy_bandwidth(&gpu, EFFORT), fma_rate(&gpu, EFFORT), mma_rate(&gpu, EFFORT)] {
        assert!(rate.unwrap() > 0.0);
    }
    unused.retain(|name| gpu.launches()[name] == 0);
    // The large tiles, and all of Hopper's, are for more outputs than the emulator computes in a test; tests/cuda.rs and
    // tests/cuda_on_cpu have them.
    let (_, hopper) = KERNELS.iter().find(|(stem, _)| *stem == "conv2d_sm90").expect("Hopper's kernels");
    unused.retain(|name| !LARGE_TILES.contains(name) && !hopper.contains(name));
    assert!(unused.is_empty(), "no probe launches {unused:?}");
}

#[test]
fn what_is_timed_can_be_recorded() {
    let device = gpu::device();
    for probe in probes().iter().filter(|p| p.timed) {
        let seconds = probe.seconds(Size::Small, &device, 1).unwrap_or_else(|e| panic!("{}: {e} {}", probe.name, cuda_on_cpu::last_error()));
        assert!(seconds > 0.0, "{}", probe.name);
    }
}

#[test]
fn the_middle_counts() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(vec![5.0]), 5.0);
}
