//! A GPU: its kernels, its memory, one stream.
//!
//! The driver library is looked up at run time. Every cudarc call panics where there is none, so `open` asks for it
//! first. All work of a device goes through one stream: memory is given back in stream order, so a buffer may be
//! dropped while kernels that read it are still queued.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::result::{self, mem_pool};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchArgs, LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;

use crate::error::{Error, Result};

/// The table that build.rs writes: `STEMS`, `FATBINS`, `COMPILER`, `ARCHITECTURES`.
pub mod embedded {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Kernel files and the entries of each that ops launch. All are looked up when a device opens, so a missing one is
/// found then.
pub const KERNELS: &[(&str, &[&str])] = &[
    ("bias_act", &["bias_act_f32", "bias_act_grad_f32"]),
    (
        "conv2d",
        &["conv2d_f32", "conv2d_narrow_f32", "conv2d_transpose_f32", "conv2d_transpose_narrow_f32", "conv2d_weight_grad_f32"],
    ),
    ("elementwise", &["map_f32", "zip_f32", "channel_scale_f32"]),
    ("ewc", &["ewc_penalty_grad_f32"]),
    ("layout", &["copy_strided_f32", "copy_strided_f32x4"]),
    ("matmul", &["matmul_nn_f32", "matmul_nt_f32", "matmul_tn_f32", "matmul_tt_f32"]),
    ("optimizer", &["adam_f32", "adam_ewc_f32", "adam_repulsion_f32", "adam_l1_f32", "accumulate_squares_f32"]),
    ("random", &["random_uniform_f32", "random_normal_f32"]),
    ("reduce", &["sum_middle_f32", "channel_dot_f32"]),
    ("repulsion", &["repulsion_norm_f32"]),
    ("upfirdn2d", &["upfirdn2d_f32"]),
];

/// The oldest driver that runs fatbins of the CUDA this crate is built for, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: i32 = 13_000;

/// More elements than this in one tensor are refused: kernels index with 32 bits.
const MOST_ELEMENTS: usize = i32::MAX as usize;

/// An open GPU. Cloning shares it; two openings are two devices, whose tensors do not mix.
#[derive(Clone)]
pub struct CudaDevice(Arc<Inner>);

struct Inner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
}

impl PartialEq for CudaDevice {
    fn eq(&self, other: &CudaDevice) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CudaDevice {}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaDevice({})", self.ordinal())
    }
}

fn no_cuda(problem: impl Into<String>) -> Error {
    Error::NoCuda { problem: problem.into() }
}

/// For `map_err`: what was being done when the driver failed.
fn failed(what: &str) -> impl FnOnce(DriverError) -> Error + '_ {
    move |e| Error::Cuda { what: what.into(), problem: e.to_string() }
}

impl CudaDevice {
    /// Opens GPU number `ordinal` with the kernels in this program.
    pub fn open(ordinal: usize) -> Result<CudaDevice> {
        if embedded::FATBINS.is_empty() {
            return Err(no_cuda(
                "this program was built without nvcc and holds no CUDA kernels; install nvcc (README.md, \"CUDA\") and build again, or use --device cpu",
            ));
        }
        let image = |stem: &str| embedded::FATBINS.iter().find(|(name, _)| *name == stem).map(|(_, image)| image.to_vec());
        CudaDevice::with_images(ordinal, &image)
    }

    /// Opens a GPU with other module images than this program's: how tests run on an emulated driver.
    #[doc(hidden)]
    pub fn with_images(ordinal: usize, image: &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<CudaDevice> {
        let context = driver_context(ordinal)?;
        // SAFETY: all work of this device is on one stream, so no event is needed to order it; nothing is allocated yet.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context)?;
        let stream = context.new_stream().map_err(failed("creating a stream"))?;
        let mut functions = HashMap::new();
        for (stem, entries) in KERNELS {
            let image = image(stem).ok_or_else(|| Error::Cuda {
                what: format!("loading kernels/{stem}.cu"),
                problem: "this program holds no image of it; build again".into(),
            })?;
            let module = context.load_module(Ptx::from_binary(image)).map_err(|e| unusable_module(stem, e))?;
            for entry in *entries {
                let function = module.load_function(entry).map_err(failed(&format!("{entry} of kernels/{stem}.cu")))?;
                functions.insert(*entry, function);
            }
        }
        Ok(CudaDevice(Arc::new(Inner { context, stream, functions })))
    }

    pub fn ordinal(&self) -> usize {
        self.0.context.ordinal()
    }

    /// The GPU's own name.
    pub fn name(&self) -> Result<String> {
        self.0.context.name().map_err(failed("asking for the GPU's name"))
    }

    /// Bytes of memory: free, in all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.0.context.mem_get_info().map_err(failed("asking for free memory"))
    }

    /// Waits until all work is done; reports what failed in it.
    pub fn synchronize(&self) -> Result<()> {
        self.0.stream.synchronize().map_err(failed("running kernels"))
    }

    /// Memory of `bytes` bytes that nobody has written.
    pub fn allocate(&self, bytes: usize) -> Result<CudaBuffer> {
        // The driver refuses an allocation of nothing.
        // SAFETY: the content is unspecified; whoever asked writes it before anything reads it.
        let memory = unsafe { self.0.stream.alloc::<u8>(bytes.max(1)) }.map_err(|e| self.out_of_memory(bytes, e))?;
        Ok(CudaBuffer { memory, device: self.clone() })
    }

    /// Memory for `len` f32 that nobody has written.
    pub fn allocate_f32(&self, len: usize) -> Result<CudaBuffer> {
        if len > MOST_ELEMENTS {
            return Err(Error::Cuda {
                what: format!("a tensor of {len} elements"),
                problem: format!("kernels index at most {MOST_ELEMENTS}; use a smaller batch"),
            });
        }
        self.allocate(len * size_of::<f32>())
    }

    fn out_of_memory(&self, bytes: usize, error: DriverError) -> Error {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let problem = match self.memory() {
            Ok((free, total)) => format!("{error}; {} MiB are free of {} MiB, a smaller --batch needs less", mib(free), mib(total)),
            Err(_) => error.to_string(),
        };
        Error::Cuda { what: format!("asking for {} MiB of GPU memory", mib(bytes)), problem }
    }

    /// A copy of `data` on the device.
    pub fn upload<T: Pod>(&self, data: &[T]) -> Result<CudaBuffer> {
        let buffer = self.allocate(size_of_val(data))?;
        if !data.is_empty() {
            self.bind()?;
            // SAFETY: the buffer holds as many bytes. The source is ordinary memory, which the driver has read when the
            // call returns.
            unsafe { result::memcpy_htod_async(buffer.pointer(), data, self.0.stream.cu_stream()) }.map_err(failed("copying to the GPU"))?;
        }
        Ok(buffer)
    }

    /// `count` elements from byte `offset` of `buffer`, after all work queued so far.
    pub fn download<T: Pod>(&self, buffer: &CudaBuffer, offset: usize, count: usize) -> Result<Vec<T>> {
        assert!(offset + count * size_of::<T>() <= buffer.memory.len(), "a copy stays inside its buffer");
        let mut data = vec![T::zeroed(); count];
        if count > 0 {
            self.bind()?;
            // SAFETY: both sides hold the bytes, by the assertion; `data` is not touched before the stream is done.
            unsafe { result::memcpy_dtoh_async(&mut data, buffer.pointer() + offset as u64, self.0.stream.cu_stream()) }
                .map_err(failed("copying from the GPU"))?;
        }
        self.synchronize()?;
        Ok(data)
    }

    /// Copies `bytes` bytes between addresses of this device.
    ///
    /// # Safety
    /// Both ranges lie inside live buffers of this device and do not overlap.
    pub unsafe fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: passed on to the caller.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.0.stream.cu_stream()) }.map_err(failed("copying on the GPU"))
    }

    /// Memory of `len` f32, all `value`.
    pub fn filled(&self, len: usize, value: f32) -> Result<CudaBuffer> {
        let buffer = self.allocate_f32(len)?;
        if len > 0 {
            self.bind()?;
            // SAFETY: the buffer holds `len` words.
            unsafe { sys::cuMemsetD32Async(buffer.pointer(), value.to_bits(), len, self.0.stream.cu_stream()) }
                .result()
                .map_err(failed("filling GPU memory"))?;
        }
        Ok(buffer)
    }

    /// The driver works on the device that is current in the calling thread.
    fn bind(&self) -> Result<()> {
        self.0.context.bind_to_thread().map_err(failed("selecting the GPU"))
    }

    /// Queues a kernel. A grid without blocks is no work.
    ///
    /// # Safety
    /// `arguments` are the parameters of the kernel in its order and of its types; the pointers among them are to
    /// buffers of this device with all elements that the kernel touches on this grid.
    pub unsafe fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[&dyn Argument]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let function = self.0.functions.get(kernel).unwrap_or_else(|| panic!("{kernel} is not among KERNELS"));
        let mut builder = self.0.stream.launch_builder(function);
        for argument in arguments {
            argument.push(&mut builder);
        }
        let [x, y, z] = grid.blocks;
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (grid.threads, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: passed on to the caller.
        unsafe { builder.launch(config) }.map(|_| ()).map_err(failed(kernel))
    }
}

/// The GPU, or why there is none.
fn driver_context(ordinal: usize) -> Result<Arc<CudaContext>> {
    // SAFETY: looks for a library by name and calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        return Err(no_cuda("there is no NVIDIA driver (libcuda) on this machine; install one, or use --device cpu"));
    }
    let unusable = |e: DriverError| no_cuda(format!("the NVIDIA driver does not start: {e}; see nvidia-smi, or use --device cpu"));
    let count = CudaContext::device_count().map_err(unusable)?;
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(unusable)?;
    if version < OLDEST_DRIVER {
        let text = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        return Err(no_cuda(format!("the NVIDIA driver is for CUDA {}, this program needs {}; update the driver, or use --device cpu", text(version), text(OLDEST_DRIVER))));
    }
    if ordinal >= count.max(0) as usize {
        return Err(no_cuda(format!("cuda:{ordinal} was asked for and the driver sees {count} GPUs; use another --device")));
    }
    CudaContext::new(ordinal).map_err(unusable)
}

/// Without this, memory goes back to the system at every synchronisation and is asked for again.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    // SAFETY: the device is the context's; the attribute is a u64.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).map_err(failed("asking for the memory pool"))?;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast()).map_err(failed("setting up the memory pool"))
    }
}

fn unusable_module(stem: &str, error: DriverError) -> Error {
    let problem = format!("{error}; this program holds kernels for {}: build with RECANT_CUDA_ARCHS naming this GPU", embedded::ARCHITECTURES);
    Error::Cuda { what: format!("loading kernels/{stem}.cu"), problem }
}

/// Memory on a device. Dropping it gives it back after the work queued so far.
pub struct CudaBuffer {
    memory: CudaSlice<u8>,
    device: CudaDevice,
}

impl CudaBuffer {
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Its address on the device, aligned for any access.
    pub fn pointer(&self) -> u64 {
        self.memory.device_ptr(&self.device.0.stream).0
    }
}

impl fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaBuffer({} bytes on cuda:{})", self.memory.len(), self.device.ordinal())
    }
}

/// What one kernel parameter is made from.
pub trait Argument {
    fn push<'a>(&'a self, to: &mut LaunchArgs<'a>);
}

/// An address on the device; 0 is null.
impl Argument for u64 {
    fn push<'a>(&'a self, to: &mut LaunchArgs<'a>) {
        to.arg(self);
    }
}

/// A parameter passed by value: a number, or the struct that a kernel file declares, with its size asserted on both
/// sides.
#[repr(transparent)]
pub struct Param<T: Pod>(pub T);

// SAFETY: `Pod` has no padding and no pointers, and the wrapper has the layout of what it wraps.
unsafe impl<T: Pod> DeviceRepr for Param<T> {}

impl<T: Pod> Argument for Param<T> {
    fn push<'a>(&'a self, to: &mut LaunchArgs<'a>) {
        to.arg(self);
    }
}

/// Blocks of a launch and threads of each.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
}

impl Grid {
    /// For a kernel that strides over `count` items by the grid: one thread per item, up to what fills any GPU.
    pub fn strided(count: usize) -> Grid {
        const THREADS: usize = 256;
        const MOST_BLOCKS: usize = 4096;
        Grid { blocks: [count.div_ceil(THREADS).min(MOST_BLOCKS) as u32, 1, 1], threads: THREADS as u32 }
    }
}
