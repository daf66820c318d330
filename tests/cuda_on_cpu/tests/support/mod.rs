//! A device, its kernels by name, and launches: what the tests of this package share.
// Every test file is a crate of its own and uses a part of this one.
#![allow(dead_code)]

use std::{ffi::c_void, sync::Arc};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr,
    DriverError, LaunchArgs, LaunchConfig, ValidAsZeroBits, sys,
};

/// Where the fatbins of the kernels lie, `<stem>.fatbin`, when the tests run on a real driver.
const FATBINS_VARIABLE: &str = "RECANT_TEST_FATBINS";

fn image(stem: &str) -> Vec<u8> {
    if cuda_on_cpu::is_emulated() {
        return cuda_on_cpu::image(stem);
    }
    let folder = std::env::var(FATBINS_VARIABLE).unwrap_or_else(|_| {
        panic!("a real driver needs fatbins: set {FATBINS_VARIABLE} (README.md)")
    });
    let path = std::path::Path::new(&folder)
        .join(stem)
        .with_extension("fatbin");
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub struct Gpu {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
}

impl Gpu {
    /// The device, with the kernels of one file.
    pub fn with_kernels(stem: &str) -> Gpu {
        cuda_on_cpu::install();
        let context = CudaContext::new(0).expect("a device");
        // SAFETY: each test uses one stream, so no events are needed to order its accesses.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        let module = context
            .load_module(cudarc::nvrtc::Ptx::from_binary(image(stem)))
            .expect("a module");
        Gpu {
            context,
            stream,
            module,
        }
    }

    pub fn function(&self, name: &str) -> CudaFunction {
        self.module
            .load_function(name)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The same with leave to use so much dynamic shared memory.
    pub fn function_with(&self, name: &str, dynamic_shared: u32) -> CudaFunction {
        let function = self.function(name);
        let limit = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function
            .set_attribute(limit, dynamic_shared as i32)
            .unwrap_or_else(|e| panic!("{name}: {dynamic_shared} bytes of shared memory: {e}"));
        function
    }

    /// Where memory lies on the device.
    pub fn address<T>(&self, memory: &CudaSlice<T>) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    pub fn upload<T: DeviceRepr>(&self, host: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(host).expect("a copy to the device")
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> CudaSlice<T> {
        self.stream.alloc_zeros(count).expect("device memory")
    }

    /// Memory that nobody has written: all ones, which are NaN, as the emulator hands it out. A driver may hand out
    /// zeros.
    pub fn uninitialised<T: DeviceRepr>(&self, count: usize) -> CudaSlice<T> {
        // SAFETY: a kernel writes every element before one is read; that it does is what the tests check.
        let memory = unsafe { self.stream.alloc::<T>(count) }.expect("device memory");
        if !cuda_on_cpu::is_emulated() {
            let bytes = count * size_of::<T>();
            // SAFETY: the memory holds the bytes.
            unsafe { sys::cuMemsetD8Async(self.address(&memory), 0xff, bytes, self.stream.cu_stream()) }
                .result()
                .expect("device memory filled");
        }
        memory
    }

    pub fn download<T: DeviceRepr + Clone + Default>(&self, device: &CudaSlice<T>) -> Vec<T> {
        self.stream
            .clone_dtoh(device)
            .expect("a copy from the device")
    }

    /// Launches the named kernel with what `arguments` pushes, which must match the kernel's parameters.
    pub fn launch<'a>(
        &'a self,
        function: &'a CudaFunction,
        geometry: Geometry,
        arguments: impl FnOnce(&mut LaunchArgs<'a>),
    ) -> Result<(), DriverError> {
        let mut builder = self.stream.launch_builder(function);
        arguments(&mut builder);
        let config = LaunchConfig {
            grid_dim: geometry.blocks.into(),
            block_dim: (geometry.threads, 1, 1),
            shared_mem_bytes: geometry.dynamic_shared,
        };
        // SAFETY: the callers pass the kernel's parameters in its order, with buffers of the sizes it accesses; the
        // mutants break that on purpose.
        unsafe { builder.launch(config) }.map(|_| ())
    }

    /// Launches a kernel whose parameters are addresses, with a launch attribute.
    pub fn launch_with(
        &self,
        (id, value): (sys::CUlaunchAttributeID, i32),
        function: &CudaFunction,
        geometry: Geometry,
        addresses: &[u64],
    ) -> Result<(), DriverError> {
        // All attributes of one integer have it at the same place.
        let value = sys::CUlaunchAttributeValue { cooperative: value };
        let pad = [0; 4];
        let mut attribute = sys::CUlaunchAttribute { id, pad, value };
        let [x, y, z] = geometry.blocks;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: geometry.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: geometry.dynamic_shared,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        let mut parameters: Vec<*mut c_void> = addresses
            .iter()
            .map(|address| std::ptr::from_ref(address).cast_mut().cast())
            .collect();
        let parameters = parameters.as_mut_ptr();
        let none = std::ptr::null_mut();
        // SAFETY: as in `launch`.
        unsafe { sys::cuLaunchKernelEx(&raw const config, function.cu_function(), parameters, none) }
            .result()
    }
}

/// The launch attribute of a kernel that may overlap those before it.
pub const OVERLAPS: (sys::CUlaunchAttributeID, i32) = (
    sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
    1,
);

#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct TensorMap(sys::CUtensorMap);
// SAFETY: the driver's own type for a kernel parameter of this kind, passed by value.
unsafe impl DeviceRepr for TensorMap {}

/// The map of a dense bf16 tensor at `address`, swizzled over 128 bytes. Extents, boxes and element strides from the
/// innermost dimension; a box counts the elements it spans, of which every stride-th is loaded.
pub fn tensor_map(address: u64, extents: &[u64], boxes: &[u32], steps: &[u32]) -> TensorMap {
    let strides: Vec<u64> = extents
        .iter()
        .scan(2, |bytes, extent| {
            *bytes *= extent;
            Some(*bytes)
        })
        .collect();
    let mut map = std::mem::MaybeUninit::zeroed();
    // SAFETY: the arrays have as many elements as the rank asks for, and the map is written before it is read.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            extents.len() as u32,
            address as *mut _,
            extents.as_ptr(),
            strides.as_ptr(),
            boxes.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
        .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
        TensorMap(map.assume_init())
    }
}

#[derive(Clone, Copy)]
pub struct Geometry {
    pub blocks: [u32; 3],
    pub threads: u32,
    pub dynamic_shared: u32,
}

/// Whether a sanitizer looks on, which is slow: each kind of tile and of copy once, since larger tiles are the same code.
pub fn is_watched() -> bool {
    cuda_on_cpu::orders().len() == 1
}

/// One-dimensional, without dynamic shared memory.
pub fn grid(blocks: u32, threads: u32) -> Geometry {
    Geometry {
        blocks: [blocks, 1, 1],
        threads,
        dynamic_shared: 0,
    }
}

/// Reproducible numbers in [-1, 1) with all bits of an f32 in use.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

pub fn bf16_value(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// What a tensor of a kernel consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    F32,
    Bf16,
}

impl Stored {
    pub fn size(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::Bf16 => 2,
        }
    }

    /// The nearest numbers of the kind.
    pub fn round(self, values: &[f32]) -> Vec<f32> {
        self.decode(&self.encode(values))
    }

    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Stored::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Stored::Bf16 => values
                .iter()
                .flat_map(|v| bf16_bits(*v).to_le_bytes())
                .collect(),
        }
    }

    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Stored::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
                .collect(),
            Stored::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| bf16_value(u16::from_le_bytes(b.try_into().expect("two bytes"))))
                .collect(),
        }
    }
}

pub mod conv2d;
pub mod matmul_sm90;
