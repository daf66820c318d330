//! The GPU of the tests: emulated, or with `RECANT_TEST_DEVICE=driver` the machine's.

use std::sync::{Mutex, PoisonError};

use recant::device::{CudaDevice, Device, Precision};

/// The compute capability that the emulator has unless it is told another.
const USUAL: (i32, i32) = (9, 0);

/// Opens it, with f32 products.
pub fn cuda() -> CudaDevice {
    cuda_with(Precision::F32)
}

pub fn cuda_with(precision: Precision) -> CudaDevice {
    cuda_of(USUAL, precision)
}

fn open(precision: Precision) -> CudaDevice {
    let opened = if cuda_on_cpu::is_emulated() {
        CudaDevice::with_images(0, precision, &|stem| Some(cuda_on_cpu::image(stem)))
    } else {
        CudaDevice::open(0, precision)
    };
    let device = opened.unwrap_or_else(|e| panic!("{e}"));
    // The tests' layers are large ones on a chip as small as the emulated one.
    device.divide_for(4);
    device
}

/// Opens one that says it is of that compute capability. A real GPU says its own.
pub fn cuda_of(capability: (i32, i32), precision: Precision) -> CudaDevice {
    // The emulator answers for the whole process, so openings take turns.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    cuda_on_cpu::install();
    cuda_on_cpu::with_compute_capability(capability, || open(precision))
}

/// As a place for tensors.
pub fn device() -> Device {
    Device::Cuda(cuda())
}
