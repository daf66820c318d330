//! What `recant doctor` does on a GPU, on the emulated one: every kernel is checked against the CPU, and what is timed can
//! be recorded. Times themselves mean nothing here.

mod common;

use common::gpu;
use recant::cli::probes::{Size, probes};
use recant::device::Device;
use recant::device::peak::{Effort, copy_bandwidth, fma_rate, median, mma_rate};

/// Small enough for the emulator.
const EFFORT: Effort = Effort { bytes: 1 << 12, rounds: 3, repeats: 1 };

#[test]
fn every_kernel_is_checked_against_the_cpu() {
    let gpu = gpu::cuda();
    let device = Device::Cuda(gpu.clone());
    for probe in probes() {
        let error = probe.error(&device).unwrap_or_else(|e| panic!("{}: {e} {}", probe.name, cuda_on_cpu::last_error()));
        assert!(error <= probe.tolerance, "{}: {error}", probe.name);
        assert!(probe.bytes > 0.0 && probe.floor(1e12, 1e12) > 0.0, "{} has no floor", probe.name);
    }
    for rate in [copy_bandwidth(&gpu, EFFORT), fma_rate(&gpu, EFFORT), mma_rate(&gpu, EFFORT)] {
        assert!(rate.unwrap() > 0.0);
    }
    let unused: Vec<&str> = gpu.launches().into_iter().filter(|(_, n)| *n == 0).map(|(name, _)| name).collect();
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
