//! A GPU: its kernels, its memory, its stream.
//!
//! The driver library is looked up at run time. Every cudarc call panics where there is none, so `open` asks for it
//! first. All work of a device goes through one stream, but for what `beside` forks off and joins again: memory is given back in
//! stream order, so a buffer may be dropped while kernels that read it are still queued.

mod beside;

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;
use cudarc::driver::result::{self, mem_pool};
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError, PinnedHostSlice, sys};
use cudarc::nvrtc::Ptx;
use half::bf16;

use super::Precision;
use crate::error::{Error, Result};
pub use beside::Beside;

/// The table that build.rs writes: `STEMS`, `FATBINS`, `COMPILER`, `ARCHITECTURES`.
pub mod embedded {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Kernel files and the entries of each that ops launch. All are looked up when a device opens, so a missing one is
/// found then.
pub const KERNELS: &[(&str, &[&str])] = &[
    (
        "bias_act",
        &[
            "bias_act_f32",
            "bias_act_bf16",
            "bias_act_grad_f32",
            "bias_act_grad_bf16",
            "epilogue_grad_f32",
            "epilogue_grad_f32x4",
            "epilogue_grad_bf16",
            "epilogue_grad_bf16x8",
            "epilogue_grad_scale_f32",
        ],
    ),
    (
        "conv2d",
        &[
            "conv2d_f32",
            "conv2d_narrow_f32",
            "conv2d_tf32",
            "conv2d_small_tf32",
            "conv2d_tf32x3",
            "conv2d_small_tf32x3",
            "conv2d_bf16",
            "conv2d_small_bf16",
            "conv2d_stored_bf16",
            "conv2d_small_stored_bf16",
            "conv2d_narrow_stored_bf16",
            "conv2d_act_f32",
            "conv2d_act_narrow_f32",
            "conv2d_act_tf32",
            "conv2d_act_small_tf32",
            "conv2d_act_tf32x3",
            "conv2d_act_small_tf32x3",
            "conv2d_act_bf16",
            "conv2d_act_small_bf16",
            "conv2d_act_stored_bf16",
            "conv2d_act_small_stored_bf16",
            "conv2d_act_narrow_stored_bf16",
            "conv2d_add_parts_act_f32",
            "conv2d_add_parts_act_bf16",
            "conv2d_transpose_f32",
            "conv2d_transpose_narrow_f32",
            "conv2d_transpose_tf32",
            "conv2d_transpose_small_tf32",
            "conv2d_transpose_tf32x3",
            "conv2d_transpose_small_tf32x3",
            "conv2d_transpose_bf16",
            "conv2d_transpose_small_bf16",
            "conv2d_transpose_stored_bf16",
            "conv2d_transpose_small_stored_bf16",
            "conv2d_transpose_narrow_stored_bf16",
            "conv2d_weight_grad_f32",
            "conv2d_weight_grad_tf32",
            "conv2d_weight_grad_small_tf32",
            "conv2d_weight_grad_tf32x3",
            "conv2d_weight_grad_small_tf32x3",
            "conv2d_weight_grad_bf16",
            "conv2d_weight_grad_small_bf16",
            "conv2d_weight_grad_stored_bf16",
            "conv2d_weight_grad_small_stored_bf16",
            "conv2d_weight_grad_squared_f32",
            "conv2d_weight_grad_squared_tf32",
            "conv2d_weight_grad_squared_tf32x3",
            "conv2d_weight_grad_squared_bf16",
            "conv2d_weight_grad_squared_stored_bf16",
        ],
    ),
    (
        "conv2d_sm90",
        &[
            "conv2d_sm90_bf16",
            "conv2d_sm90_narrow_bf16",
            "conv2d_sm90_stored_bf16",
            "conv2d_sm90_narrow_stored_bf16",
            "conv2d_transpose_sm90_bf16",
            "conv2d_transpose_sm90_narrow_bf16",
            "conv2d_transpose_sm90_stored_bf16",
            "conv2d_transpose_sm90_narrow_stored_bf16",
            "conv2d_weight_grad_sm90_bf16",
            "conv2d_weight_grad_sm90_narrow_bf16",
        ],
    ),
    (
        "elementwise",
        &["cast_f32", "cast_bf16", "map_f32", "map_bf16", "zip_f32", "zip_bf16", "channel_scale_f32", "channel_scale_bf16"],
    ),
    ("ewc", &["ewc_penalty_grad_f32"]),
    ("feature_stats", &["feature_shift_f32", "feature_products_f64", "feature_products_f32x2", "feature_covariance_f64"]),
    ("layout", &["copy_strided_f32", "copy_strided_bf16", "copy_strided_f32x4"]),
    ("matmul", &["matmul_nn_f32", "matmul_nt_f32", "matmul_tn_f32", "matmul_tt_f32"]),
    ("optimizer", &["adam_f32", "adam_ewc_f32", "adam_repulsion_f32", "adam_l1_f32", "accumulate_squares_f32"]),
    ("peak", &["fma_peak_f32", "mma_peak_bf16"]),
    (
        "pool2d",
        &["max_pool2d_f32", "max_pool2d_taps_f32", "gather_taps_f32", "scatter_taps_f32", "avg_pool2d_f32", "avg_pool2d_transpose_f32"],
    ),
    ("random", &["random_uniform_f32", "random_normal_f32"]),
    (
        "reduce",
        &["sum_middle_f32", "sum_middle_bf16", "sum_middle_bf16x8", "channel_dot_f32", "channel_dot_bf16", "channel_dot_bf16x8"],
    ),
    ("repulsion", &["repulsion_norm_f32"]),
    ("resize", &["resize_axis_f32"]),
    ("upfirdn2d", &["upfirdn2d_f32", "upfirdn2d_bf16"]),
];

/// The oldest driver that runs fatbins of the CUDA this crate is built for, as `cuDriverGetVersion` counts.
const OLDEST_DRIVER: i32 = 13_000;

/// The first architecture for which `dependent_launch` of kernels/common.cuh is compiled to something, as the driver counts
/// what a kernel was compiled for: compute capability 9.0.
const OVERLAPPING_SINCE: i32 = 90;

/// More elements than this in one tensor are refused: kernels index with 32 bits.
const MOST_ELEMENTS: usize = i32::MAX as usize;

/// An open GPU. Cloning shares it; two openings are two devices, whose tensors do not mix.
#[derive(Clone)]
pub struct CudaDevice(Arc<Inner>);

struct Inner {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// Where work goes that is queued beside that of the stream.
    side: Arc<CudaStream>,
    /// Whether what is queued goes there.
    aside: AtomicBool,
    /// What was dropped while there is work that the stream has not waited for.
    kept: Mutex<Option<Vec<beside::Dropped>>>,
    precision: Precision,
    capability: (i32, i32),
    multiprocessors: u32,
    /// For how many of them work is divided.
    chip: AtomicU32,
    functions: HashMap<&'static str, Entry>,
    /// Where allocations come from, if not from the driver.
    workspace: Mutex<Option<Workspace>>,
    /// Whether queued work is recorded instead of run.
    recording: AtomicBool,
    /// What was queued or recorded last.
    last: Mutex<Last>,
    /// The driver's memory that was dropped during a recording: it cannot be given back there.
    late: Mutex<Vec<CudaSlice<u8>>>,
}

/// What a kernel is queued behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Kernel,
    /// A copy or a fill, or the beginning.
    Other,
    /// Two streams have parted or joined.
    OtherStream,
}

struct Entry {
    function: CudaFunction,
    launches: AtomicU64,
    /// Whether it may use more dynamic shared memory than kernels may without being asked.
    roomy: AtomicBool,
    /// Whether its launches may overlap the kernel before it: whether its code waits for that.
    overlaps: bool,
}

/// What a lock holds. A panic in another thread leaves these values whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub fn open(ordinal: usize, precision: Precision) -> Result<CudaDevice> {
        if embedded::FATBINS.is_empty() {
            return Err(no_cuda(
                "this program was built without nvcc and holds no CUDA kernels; install nvcc (README.md, \"CUDA\") and build again, or use --device cpu",
            ));
        }
        let image = |stem: &str| embedded::FATBINS.iter().find(|(name, _)| *name == stem).map(|(_, image)| image.to_vec());
        CudaDevice::with_images(ordinal, precision, &image)
    }

    /// Opens a GPU with other module images than this program's: how tests run on an emulated driver.
    #[doc(hidden)]
    pub fn with_images(ordinal: usize, precision: Precision, image: &dyn Fn(&str) -> Option<Vec<u8>>) -> Result<CudaDevice> {
        let context = driver_context(ordinal)?;
        // SAFETY: all work of this device is on one stream, or ordered with it by `beside`; nothing is allocated yet.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context)?;
        let capability = context.compute_capability().map_err(failed("asking for the GPU's compute capability"))?;
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(count).map_err(failed("asking what the GPU is"))?.max(1) as u32;
        let [stream, side] = [context.new_stream(), context.new_stream()].map(|s| s.map_err(failed("creating a stream")));
        let mut functions = HashMap::new();
        for (stem, entries) in KERNELS {
            let image = image(stem).ok_or_else(|| Error::Cuda {
                what: format!("loading kernels/{stem}.cu"),
                problem: "this program holds no image of it; build again".into(),
            })?;
            let module = context.load_module(Ptx::from_binary(image)).map_err(|e| unusable_module(stem, e))?;
            for entry in *entries {
                let function = module.load_function(entry).map_err(failed(&format!("{entry} of kernels/{stem}.cu")))?;
                let compiled_for = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PTX_VERSION;
                let overlaps = function.get_attribute(compiled_for).map_err(failed("asking what a kernel was compiled for"))? >= OVERLAPPING_SINCE;
                functions.insert(*entry, Entry { function, launches: AtomicU64::new(0), roomy: AtomicBool::new(false), overlaps });
            }
        }
        let inner = Inner {
            context,
            stream: stream?,
            side: side?,
            aside: AtomicBool::new(false),
            kept: Mutex::default(),
            precision,
            capability,
            multiprocessors,
            chip: AtomicU32::new(multiprocessors),
            functions,
            workspace: Mutex::default(),
            recording: AtomicBool::new(false),
            last: Mutex::new(Last::Other),
            late: Mutex::default(),
        };
        Ok(CudaDevice(Arc::new(inner)))
    }

    pub fn ordinal(&self) -> usize {
        self.0.context.ordinal()
    }

    /// How its convolutions multiply.
    pub fn precision(&self) -> Precision {
        self.0.precision
    }

    /// The GPU's own name.
    pub fn name(&self) -> Result<String> {
        self.0.context.name().map_err(failed("asking for the GPU's name"))
    }

    /// Bytes of memory: free, in all.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.0.context.mem_get_info().map_err(failed("asking for free memory"))
    }

    /// Major and minor version of what the GPU's kernels are compiled for.
    pub fn compute_capability(&self) -> (i32, i32) {
        self.0.capability
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<usize> {
        let value = self.0.context.attribute(attribute).map_err(failed("asking what the GPU is"))?;
        Ok(value.max(0) as usize)
    }

    /// Whether the kernels for Hopper alone are there and run on it.
    pub(crate) fn has_hopper_code(&self) -> bool {
        self.0.capability == (9, 0) && embedded::ARCHITECTURES.split(',').any(|arch| arch.trim() == "90a")
    }

    pub fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors
    }

    /// For how many multiprocessors convolutions are divided: all, unless [`CudaDevice::divide_for`] says otherwise.
    pub(crate) fn chip(&self) -> usize {
        self.0.chip.load(Ordering::Relaxed) as usize
    }

    /// Divides convolutions as for a chip of so many multiprocessors, 0 meaning its own, and returns what held before.
    /// Layers that are small enough to be compared with a CPU then take the kernels that large ones take on a large chip.
    pub fn divide_for(&self, multiprocessors: u32) -> u32 {
        let all = if multiprocessors == 0 { self.0.multiprocessors } else { multiprocessors };
        self.0.chip.swap(all, Ordering::Relaxed)
    }

    /// Bytes of the second-level cache.
    pub fn cache(&self) -> Result<usize> {
        self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
    }

    /// The newest CUDA that the driver runs, as `13.0`.
    pub fn driver(&self) -> Result<String> {
        Ok(version_text(driver_version().map_err(failed("asking for the driver's version"))?))
    }

    /// How often each kernel was queued or recorded so far.
    pub fn launches(&self) -> BTreeMap<&'static str, u64> {
        self.0.functions.iter().map(|(name, entry)| (*name, entry.launches.load(Ordering::Relaxed))).collect()
    }

    /// Seconds that what `work` queues takes on the GPU; waits for it.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let start = self.mark()?;
        work()?;
        start.until(&self.mark()?)
    }

    /// Marks the time at which the GPU has done all that was queued so far.
    pub fn mark(&self) -> Result<Mark> {
        self.0.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map(Mark).map_err(failed("marking a time"))
    }

    /// Waits until all work of the stream is done; reports what failed in it.
    pub fn synchronize(&self) -> Result<()> {
        self.queue().synchronize().map_err(failed("running kernels"))
    }

    /// Memory of `bytes` bytes that nobody has written.
    pub fn allocate(&self, bytes: usize) -> Result<CudaBuffer> {
        let home = locked(&self.0.workspace).clone();
        let memory = match &home {
            None => self.driver_memory(bytes)?,
            Some(workspace) => match workspace.take(bytes) {
                Some(memory) => memory,
                None if self.is_recording() => {
                    return Err(Error::Cuda {
                        what: format!("asking for {bytes} bytes while recording a graph"),
                        problem: "the rehearsal of the same work did not need them".into(),
                    });
                }
                None => self.driver_memory(Workspace::block(bytes))?,
            },
        };
        Ok(CudaBuffer { memory: Some(memory), bytes, home, device: self.clone(), shadow_wanted: AtomicBool::new(false), shadow: None })
    }

    fn driver_memory(&self, bytes: usize) -> Result<CudaSlice<u8>> {
        // The driver refuses an allocation of nothing.
        // SAFETY: the content is unspecified; whoever asked writes it before anything reads it.
        let memory = unsafe { self.0.stream.alloc::<u8>(bytes.max(1)) }.map_err(|e| self.out_of_memory(bytes, e))?;
        if self.0.aside.load(Ordering::Relaxed) {
            // It is there when the stream has come so far.
            self.0.side.join(&self.0.stream).map_err(failed("waiting for GPU memory"))?;
        }
        Ok(memory)
    }

    /// Memory for `len` f32 that nobody has written.
    pub fn allocate_f32(&self, len: usize) -> Result<CudaBuffer> {
        self.allocate_elements(len, size_of::<f32>())
    }

    /// Memory for the elements of a tensor, of so many bytes each.
    pub fn allocate_elements(&self, len: usize, bytes: usize) -> Result<CudaBuffer> {
        if len > MOST_ELEMENTS {
            return Err(Error::Cuda {
                what: format!("a tensor of {len} elements"),
                problem: format!("kernels index at most {MOST_ELEMENTS}; use a smaller batch"),
            });
        }
        self.allocate(len * bytes)
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
        self.write(&buffer, data)?;
        Ok(buffer)
    }

    /// Overwrites the beginning of `buffer`, after all work queued so far.
    pub fn write<T: Pod>(&self, buffer: &CudaBuffer, data: &[T]) -> Result<()> {
        assert!(size_of_val(data) <= buffer.bytes, "a copy stays inside its buffer");
        if data.is_empty() {
            return Ok(());
        }
        if self.is_recording() {
            // The graph would read the host's memory at every launch.
            return Err(Error::Cuda { what: "copying to the GPU".into(), problem: "not while a graph is recorded".into() });
        }
        self.bind()?;
        // SAFETY: the buffer holds the bytes, by the assertion. The source is ordinary memory, which the driver has read
        // when the call returns.
        unsafe { result::memcpy_htod_async(buffer.pointer(), data, self.queue().cu_stream()) }.map_err(failed("copying to the GPU"))
    }

    /// `count` elements from byte `offset` of `buffer`, after all work queued so far.
    pub fn download<T: Pod>(&self, buffer: &CudaBuffer, offset: usize, count: usize) -> Result<Vec<T>> {
        assert!(offset + count * size_of::<T>() <= buffer.bytes, "a copy stays inside its buffer");
        let mut data = vec![T::zeroed(); count];
        if count > 0 {
            self.bind()?;
            // SAFETY: both sides hold the bytes, by the assertion; `data` is not touched before the stream is done.
            unsafe { result::memcpy_dtoh_async(&mut data, buffer.pointer() + offset as u64, self.queue().cu_stream()) }
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
        *locked(&self.0.last) = Last::Other;
        // SAFETY: passed on to the caller.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.queue().cu_stream()) }.map_err(failed("copying on the GPU"))
    }

    /// Memory of `len` f32, all `value`.
    pub fn filled(&self, len: usize, value: f32) -> Result<CudaBuffer> {
        self.filled_words(self.allocate_f32(len)?, value.to_bits())
    }

    /// Memory of `len` bf16, all `value`, and of one more where that makes whole words.
    pub fn filled_bf16(&self, len: usize, value: bf16) -> Result<CudaBuffer> {
        let (pairs, bits) = (self.allocate_elements(len.next_multiple_of(2), size_of::<bf16>())?, u32::from(value.to_bits()));
        self.filled_words(pairs, bits << 16 | bits)
    }

    /// The same memory with so many bits in each of its words.
    fn filled_words(&self, buffer: CudaBuffer, word: u32) -> Result<CudaBuffer> {
        let words = buffer.bytes / size_of::<u32>();
        if words > 0 {
            self.bind()?;
            *locked(&self.0.last) = Last::Other;
            // SAFETY: the buffer holds the words.
            unsafe { sys::cuMemsetD32Async(buffer.pointer(), word, words, self.queue().cu_stream()) }
                .result()
                .map_err(failed("filling GPU memory"))?;
        }
        Ok(buffer)
    }

    /// The driver works on the device that is current in the calling thread.
    pub(super) fn bind(&self) -> Result<()> {
        self.0.context.bind_to_thread().map_err(failed("selecting the GPU"))
    }

    /// Queues a kernel. A grid without blocks is no work.
    ///
    /// By programmatic dependent launch: the kernel may take its place on the GPU while the kernel before it in the stream
    /// still runs. It waits there for the end of that one, so results are those of a stream without overlap;
    /// kernels/common.cuh (`dependent_launch`) says why. A recording keeps this as programmatic edges of the graph, which may
    /// only lie between kernels: behind a copy or a fill a kernel is recorded without. In a stream one begins when the
    /// kernel before it has ended, and the kernel after it when it has. Behind a wait for another stream a kernel never overlaps.
    /// Code for chips before compute capability 9.0 does not wait, be it for such a GPU or compiled by the driver from older
    /// PTX: a kernel of that kind is launched without.
    ///
    /// # Safety
    /// `arguments` are the parameters of the kernel in its order and of its types; the pointers among them are to
    /// buffers of this device with all elements that the kernel touches on this grid.
    pub unsafe fn launch(&self, kernel: &'static str, grid: Grid, arguments: &[&dyn Argument]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        let entry = self.0.functions.get(kernel).unwrap_or_else(|| panic!("{kernel} is not among KERNELS"));
        entry.launches.fetch_add(1, Ordering::Relaxed);
        self.bind()?;
        if grid.shared > SHARED_UNASKED && !entry.roomy.load(Ordering::Relaxed) {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            entry.function.set_attribute(attribute, grid.shared as i32).map_err(failed(kernel))?;
            entry.roomy.store(true, Ordering::Relaxed);
        }
        let overlaps = entry.overlaps
            && match std::mem::replace(&mut *locked(&self.0.last), Last::Kernel) {
                Last::Kernel => true,
                Last::Other => !self.is_recording(),
                Last::OtherStream => false,
            };
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = grid.blocks;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.queue().cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(overlaps),
        };
        let mut parameters: Vec<*mut c_void> = arguments.iter().map(|&argument| std::ptr::from_ref(argument).cast_mut().cast()).collect();
        // SAFETY: the values of the parameters are what `arguments` refers to, and the driver copies them before it returns;
        // that they suit the kernel is passed on to the caller.
        unsafe { sys::cuLaunchKernelEx(&raw const config, entry.function.cu_function(), parameters.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(failed(kernel))
    }
}

impl CudaDevice {
    pub(super) fn stream(&self) -> &CudaStream {
        &self.0.stream
    }

    /// Where work goes now.
    fn queue(&self) -> &CudaStream {
        if self.0.aside.load(Ordering::Relaxed) { &self.0.side } else { &self.0.stream }
    }

    fn is_recording(&self) -> bool {
        self.0.recording.load(Ordering::Relaxed)
    }

    /// Memory that nothing queued later uses any more.
    fn give_back(&self, home: Option<&Workspace>, memory: CudaSlice<u8>) {
        match home {
            Some(workspace) => workspace.give(memory),
            None if self.is_recording() => locked(&self.0.late).push(memory),
            None => drop(memory),
        }
    }

    /// Runs `work` with its memory from `workspace`.
    pub fn with_workspace<R>(&self, workspace: &Workspace, work: impl FnOnce() -> R) -> R {
        self.with_memory_from(Some(workspace.clone()), work)
    }

    /// Runs `work` with its memory from the driver: for what a rehearsal makes and later work keeps. Taken from the
    /// workspace it would be missing when the work is recorded.
    pub fn without_workspace<R>(&self, work: impl FnOnce() -> R) -> R {
        self.with_memory_from(None, work)
    }

    fn with_memory_from<R>(&self, workspace: Option<Workspace>, work: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a CudaDevice, Option<Workspace>);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *locked(&self.0.0.workspace) = self.1.take();
            }
        }
        let before = std::mem::replace(&mut *locked(&self.0.workspace), workspace);
        let _restore = Restore(self, before);
        work()
    }

    /// Records what `work` queues as a graph, without running it. Its memory comes from `workspace`, in which the same
    /// work must have run before, and which the graph keeps; so do the tensors that `work` returns.
    pub fn record<R>(&self, workspace: &Workspace, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        /// A panic in the work ends the recording, too.
        struct Recording<'a>(&'a Inner);
        impl Drop for Recording<'_> {
            fn drop(&mut self) {
                self.0.recording.store(false, Ordering::Relaxed);
                if std::thread::panicking() {
                    let _ = self.0.stream.end_capture(sys::CUgraphInstantiate_flags(0));
                }
            }
        }
        self.0.stream.begin_capture(mode).map_err(failed("starting to record a graph"))?;
        self.0.recording.store(true, Ordering::Relaxed);
        *locked(&self.0.last) = Last::Other;
        let recording = Recording(&self.0);
        let result = self.with_workspace(workspace, work);
        drop(recording);
        let graph = self.0.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        locked(&self.0.late).clear();
        // What failed in the work says more than the recording that it spoiled.
        let result = result?;
        let graph = graph.map_err(failed("recording a graph"))?.expect("a recording gives a graph");
        graph.upload().map_err(failed("uploading a graph"))?;
        Ok((Graph { graph, _memory: workspace.clone() }, result))
    }
}

/// A point in the GPU's time.
pub struct Mark(CudaEvent);

impl Mark {
    /// Seconds from this mark to a later one; waits for it.
    pub fn until(&self, later: &Mark) -> Result<f64> {
        Ok(self.0.elapsed_ms(&later.0).map_err(failed("running kernels"))? as f64 * 1e-3)
    }
}

/// Memory for work that is recorded and run again. Blocks are handed out by size and come back when their buffer is
/// dropped; none goes back to the driver, so nobody else gets an address that a graph writes to.
#[derive(Clone, Default)]
pub struct Workspace(Arc<Mutex<HashMap<usize, Vec<CudaSlice<u8>>>>>);

impl Workspace {
    /// The size of the block for `bytes`: at most a sixteenth larger, so that blocks serve more than one shape.
    fn block(bytes: usize) -> usize {
        const SMALLEST: usize = 256;
        bytes.max(1).next_multiple_of((bytes.next_power_of_two() / 16).max(SMALLEST))
    }

    fn take(&self, bytes: usize) -> Option<CudaSlice<u8>> {
        locked(&self.0).get_mut(&Self::block(bytes))?.pop()
    }

    fn give(&self, memory: CudaSlice<u8>) {
        locked(&self.0).entry(memory.len()).or_default().push(memory);
    }
}

/// Recorded work of one device, to be queued as a whole.
pub struct Graph {
    graph: CudaGraph,
    _memory: Workspace,
}

// SAFETY: the driver wants calls on one graph one after the other; `launch` takes the graph by exclusive reference.
unsafe impl Send for Graph {}

impl Graph {
    /// Queues the work.
    pub fn launch(&mut self) -> Result<()> {
        self.graph.launch().map_err(failed("running a recorded graph"))
    }
}

/// Sends the host's data to the device while that works: through pinned memory, twice, so that a sender waits only when
/// the copy before the last has not been made yet.
pub struct Mailbox {
    device: CudaDevice,
    slots: [Slot; 2],
}

struct Slot {
    memory: PinnedHostSlice<u8>,
    /// When the last copy out of the memory is done. The slice's own event is not recorded: nothing here is tracked.
    sent: CudaEvent,
}

impl Mailbox {
    /// For messages of up to `bytes` bytes.
    pub fn new(device: &CudaDevice, bytes: usize) -> Result<Mailbox> {
        let slot = || {
            // SAFETY: every message is written before it is sent. Without flags: write-combined memory is slow to fill.
            let memory = unsafe { device.0.context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) }?;
            Ok(Slot { memory, sent: device.0.context.new_event(None)? })
        };
        let pinned = failed("asking for pinned memory");
        let slots = slot().and_then(|first| Ok([first, slot()?])).map_err(pinned)?;
        Ok(Mailbox { device: device.clone(), slots })
    }

    /// Copies `data` to the beginning of `to`, after all work queued so far.
    pub fn send<T: Pod>(&mut self, data: &[T], to: &CudaBuffer) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        assert!(bytes.len() <= to.bytes && bytes.len() <= self.slots[0].memory.len(), "a message fits its slot and its place");
        self.slots.swap(0, 1);
        let (Slot { memory, sent }, stream) = (&mut self.slots[0], &self.device.0.stream);
        sent.synchronize().map_err(failed("waiting for an earlier copy"))?;
        let message = &mut memory.as_mut_slice().map_err(failed("writing pinned memory"))?[..bytes.len()];
        message.copy_from_slice(bytes);
        self.device.bind()?;
        // SAFETY: the place holds the bytes. The message is pinned, and is not written again before `sent`.
        unsafe { result::memcpy_htod_async(to.pointer(), message, stream.cu_stream()) }
            .and_then(|()| sent.record(stream))
            .map_err(failed("copying to the GPU"))
    }
}

impl Drop for Mailbox {
    /// Pinned memory may go when no copy out of it is pending any more.
    fn drop(&mut self) {
        for slot in &self.slots {
            self.device.0.context.record_err(slot.sent.synchronize());
        }
    }
}

/// Whether this machine has the driver's library.
pub fn driver_is_present() -> bool {
    // SAFETY: looks for a library by name and calls nothing in it.
    unsafe { sys::is_culib_present() }
}

/// The GPU, or why there is none.
fn driver_context(ordinal: usize) -> Result<Arc<CudaContext>> {
    if !driver_is_present() {
        return Err(no_cuda("there is no NVIDIA driver (libcuda) on this machine; install one, or use --device cpu"));
    }
    let unusable = |e: DriverError| no_cuda(format!("the NVIDIA driver does not start: {e}; see nvidia-smi, or use --device cpu"));
    let count = CudaContext::device_count().map_err(unusable)?;
    let version = driver_version().map_err(unusable)?;
    if version < OLDEST_DRIVER {
        let (has, needs) = (version_text(version), version_text(OLDEST_DRIVER));
        return Err(no_cuda(format!("the NVIDIA driver is for CUDA {has}, this program needs {needs}; update the driver, or use --device cpu")));
    }
    if ordinal >= count.max(0) as usize {
        return Err(no_cuda(format!("cuda:{ordinal} was asked for and the driver sees {count} GPUs; use another --device")));
    }
    CudaContext::new(ordinal).map_err(unusable)
}

fn driver_version() -> std::result::Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(version)
}

fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
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
    /// Something until it is dropped.
    memory: Option<CudaSlice<u8>>,
    bytes: usize,
    home: Option<Workspace>,
    device: CudaDevice,
    /// Whether somebody would have used a bf16 copy of a part of it.
    shadow_wanted: AtomicBool,
    shadow: Option<Shadow>,
}

/// A bf16 copy of parts of a buffer of f32, written by who writes those.
pub struct Shadow {
    memory: Box<CudaBuffer>,
    /// First element and number of elements of each part, and where it begins in the copy.
    parts: HashMap<(usize, usize), usize>,
    /// Whether it is a copy of what the buffer holds now.
    fresh: bool,
}

impl Shadow {
    /// Each part begins at a multiple of so many elements, as TMA wants: 16 bytes.
    const ALIGNED: usize = 8;

    /// For parts of a buffer, given by their first elements and numbers of elements; not written yet.
    pub fn new(device: &CudaDevice, parts: impl Iterator<Item = (usize, usize)>) -> Result<Shadow> {
        let mut len = 0;
        let placed = |part: (usize, usize)| {
            let begin = len;
            len = (begin + part.1).next_multiple_of(Shadow::ALIGNED);
            (part, begin)
        };
        let parts = parts.map(placed).collect();
        Ok(Shadow { memory: Box::new(device.allocate(2 * len)?), parts, fresh: false })
    }

    /// Where the part of so many elements from `first` on begins in the copy, in elements.
    pub fn begin_of(&self, first: usize, len: usize) -> Option<usize> {
        self.parts.get(&(first, len)).copied()
    }

    pub fn pointer(&self) -> u64 {
        self.memory.pointer()
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        let (Some(memory), home) = (self.memory.take(), self.home.take()) else { return };
        match &mut *locked(&self.device.0.kept) {
            Some(kept) => kept.push((home, memory)),
            None => self.device.give_back(home.as_ref(), memory),
        }
    }
}

impl CudaBuffer {
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    /// Whether `shadow_of` was asked in vain.
    pub fn wants_shadow(&self) -> bool {
        self.shadow_wanted.load(Ordering::Relaxed) && self.shadow.is_none()
    }

    pub fn set_shadow(&mut self, shadow: Shadow) {
        self.shadow = Some(shadow);
    }

    pub fn shadow(&self) -> Option<&Shadow> {
        self.shadow.as_ref()
    }

    /// Says whether the copy is one of what the buffer will hold after the work queued so far.
    pub fn set_shadow_fresh(&mut self, fresh: bool) {
        if let Some(shadow) = &mut self.shadow {
            shadow.fresh = fresh;
        }
    }

    /// The address of the bf16 copy of `len` f32 from `first` on, where there is a fresh one.
    pub fn shadow_of(&self, first: usize, len: usize) -> Option<u64> {
        self.shadow_wanted.store(true, Ordering::Relaxed);
        let shadow = self.shadow.as_ref().filter(|shadow| shadow.fresh)?;
        Some(shadow.pointer() + 2 * shadow.begin_of(first, len)? as u64)
    }

    /// Its address on the device, aligned for any access.
    pub fn pointer(&self) -> u64 {
        self.memory.as_ref().expect("dropped last").device_ptr(&self.device.0.stream).0
    }
}

impl fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaBuffer({} bytes on cuda:{})", self.bytes, self.device.ordinal())
    }
}

/// What one kernel parameter is made from.
///
/// # Safety
/// The bytes of a value are those of the parameter.
pub unsafe trait Argument {}

/// An address on the device; 0 is null.
// SAFETY: the device's addresses have 64 bits.
unsafe impl Argument for u64 {}

/// A parameter passed by value: a number, or the struct that a kernel file declares, with its size asserted on both
/// sides.
#[repr(transparent)]
pub struct Param<T: Pod>(pub T);

// SAFETY: `Pod` has no padding and no pointers, and the wrapper has the layout of what it wraps.
unsafe impl<T: Pod> Argument for Param<T> {}

/// How TMA reads a dense bf16 tensor, in boxes that it swizzles over 128 bytes and fills with zeros outside the tensor.
#[repr(transparent)]
pub struct TensorMap(sys::CUtensorMap);

// SAFETY: the driver's own type of such a parameter, passed by value.
unsafe impl Argument for TensorMap {}

impl TensorMap {
    /// Of `N` dimensions from the innermost: the tensor's extents, and of each the elements that a box spans, of which
    /// every `steps`-th is loaded. The memory must live as long as kernels that get the map.
    pub fn new<const N: usize>(device: &CudaDevice, address: u64, extents: [usize; N], boxes: [usize; N], steps: [usize; N]) -> Result<TensorMap> {
        const BF16: u64 = 2;
        let (extents, boxes, steps) = (extents.map(|v| v as u64), boxes.map(|v| v as u32), steps.map(|v| v as u32));
        // Bytes from one to the next along each dimension but the innermost.
        let strides: Vec<u64> = extents.iter().scan(BF16, |bytes, extent| Some(std::mem::replace(bytes, *bytes * extent))).skip(1).collect();
        let mut map = std::mem::MaybeUninit::zeroed();
        device.bind()?;
        // SAFETY: the arrays have as many elements as the rank asks for; a map of zeros is a value, and is overwritten.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                N as u32,
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
            .map_err(failed("describing a tensor to TMA"))?;
            Ok(TensorMap(map.assume_init()))
        }
    }
}

/// Blocks of a launch, threads and bytes of dynamic shared memory of each. A kernel's shared memory is always the same.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub blocks: [u32; 3],
    pub threads: u32,
    pub shared: u32,
}

/// Bytes of dynamic shared memory that any kernel may use.
const SHARED_UNASKED: u32 = 48 << 10;

impl Grid {
    /// For a kernel that strides over `count` items by the grid: one thread per item, up to what fills any GPU.
    pub fn strided(count: usize) -> Grid {
        const THREADS: usize = 256;
        const MOST_BLOCKS: usize = 4096;
        Grid { blocks: [count.div_ceil(THREADS).min(MOST_BLOCKS) as u32, 1, 1], threads: THREADS as u32, shared: 0 }
    }
}
