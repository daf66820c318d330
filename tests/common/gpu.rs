//! The GPU of the tests: emulated, or with `RECANT_TEST_DEVICE=driver` the machine's.

use recant::device::{CudaDevice, Device, Precision};

/// Opens it, with f32 products.
pub fn cuda() -> CudaDevice {
    cuda_with(Precision::F32)
}

pub fn cuda_with(precision: Precision) -> CudaDevice {
    cuda_on_cpu::install();
    let opened = if cuda_on_cpu::is_emulated() {
        CudaDevice::with_images(0, precision, &|stem| Some(cuda_on_cpu::image(stem)))
    } else {
        CudaDevice::open(0, precision)
    };
    opened.unwrap_or_else(|e| panic!("{e}"))
}

/// As a place for tensors.
pub fn device() -> Device {
    Device::Cuda(cuda())
}
