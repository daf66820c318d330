//! The CUDA execution model on a CPU, for tests: the project's kernel sources, compiled as C++, behind a stand-in for
//! the driver library. README.md says what is modelled and what is not.
//!
//! A test calls [`install`] and then uses cudarc as if there were a GPU. With `RECANT_TEST_DEVICE=driver` in the
//! environment [`install`] does nothing, so the same test runs on the machine's own driver.

use std::{
    env,
    ffi::{c_char, c_int},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use libloading::{Library, Symbol};

mod compile;

pub use compile::{Entry, Instrument, entries};

/// Set to `driver`: tests use the machine's own CUDA driver.
pub const DEVICE_VARIABLE: &str = "RECANT_TEST_DEVICE";
/// The library to load instead of the plain one; set for the processes that [`rerun`] starts.
const LIBRARY_VARIABLE: &str = "RECANT_CUDA_ON_CPU_LIBRARY";

/// Whether launches go to the emulator (and not to a real driver).
pub fn is_emulated() -> bool {
    env::var_os(DEVICE_VARIABLE).is_none_or(|device| device != "driver")
}

/// Loads the stand-in driver library, unless a real driver was asked for. Any number of calls.
///
/// The library is loaded under the name libcuda.so, so that cudarc, which asks for that name later, gets it.
pub fn install() {
    if is_emulated() {
        library();
    }
}

/// Loads the stand-in for NCCL, unless a real driver was asked for: under the name libnccl.so, for cudarc. Its ranks are
/// threads of this process.
pub fn install_nccl() {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        is_emulated().then(|| {
            library();
            // SAFETY: an empty library; what it depends on is loaded.
            unsafe { Library::new(nccl_library()) }.expect("the library that the build script linked")
        })
    });
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = env::var_os(LIBRARY_VARIABLE)
            .map_or_else(|| PathBuf::from(env!("CUDA_ON_CPU_LIBRARY")), PathBuf::from);
        // SAFETY: the library is built by this package; its initialisers fill a table and do nothing else.
        unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    })
}

/// The order in which the threads of a block take turns, and the blocks of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
    /// A different order for every seed and block.
    Shuffled(u64),
}

/// One order of each kind: results must not depend on the order. Under a sanitizer, which is slow and looks at every
/// access of any one order, a single one.
pub fn orders() -> &'static [Order] {
    let all = &[Order::Ascending, Order::Descending, Order::Shuffled(1)];
    if env::var_os(LIBRARY_VARIABLE).is_some() {
        &all[2..]
    } else {
        all
    }
}

/// Runs `work` with the launches of this OS thread in the given order. Without effect on a real driver.
pub fn with_order<R>(order: Order, work: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            set_order(Order::Ascending);
        }
    }
    let _restore = Restore;
    set_order(order);
    work()
}

fn set_order(order: Order) {
    if !is_emulated() {
        return;
    }
    let (kind, seed) = match order {
        Order::Ascending => (0, 0),
        Order::Descending => (1, 0),
        Order::Shuffled(seed) => (2, seed),
    };
    // SAFETY: the signature is that of cuda_on_cpu_set_schedule in emulator/driver.cpp; it writes a thread-local.
    unsafe { symbol::<unsafe extern "C" fn(c_int, u64)>(b"cuda_on_cpu_set_schedule")(kind, seed) }
}

/// What the emulator said about the last driver call that failed on this OS thread. Nothing on a real driver.
pub fn last_error() -> String {
    if !is_emulated() {
        return String::new();
    }
    let mut text = vec![0u8; 2048];
    // SAFETY: the signature is that of cuda_on_cpu_last_error in emulator/driver.cpp, which writes at most the size.
    unsafe {
        symbol::<unsafe extern "C" fn(*mut c_char, usize)>(b"cuda_on_cpu_last_error")(
            text.as_mut_ptr().cast(),
            text.len(),
        )
    }
    let end = text
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).into_owned()
}

/// Device memory of this process in bytes: in use now, and at most so far.
pub fn device_memory() -> (usize, usize) {
    let (mut in_use, mut peak) = (0, 0);
    // SAFETY: the signature is that of cuda_on_cpu_memory in emulator/driver.cpp, which writes both numbers.
    unsafe {
        symbol::<unsafe extern "C" fn(*mut usize, *mut usize)>(b"cuda_on_cpu_memory")(
            &mut in_use,
            &mut peak,
        )
    }
    (in_use, peak)
}

/// Where the stand-in driver library is, for programs that a test starts: preloaded, it is their `libcuda.so`.
pub fn driver_library() -> &'static Path {
    Path::new(env!("CUDA_ON_CPU_LIBRARY"))
}

/// The same of the stand-in for NCCL, their `libnccl.so`; it is to be preloaded behind the driver.
pub fn nccl_library() -> &'static Path {
    Path::new(env!("CUDA_ON_CPU_NCCL"))
}

/// Runs `work` while the stand-in driver says that it is of that version, as `cuDriverGetVersion` counts. For the whole
/// process.
pub fn with_driver_version<R>(version: c_int, work: impl FnOnce() -> R) -> R {
    const USUAL: c_int = 13_000;
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            set_driver_version(USUAL);
        }
    }
    let _restore = Restore;
    set_driver_version(version);
    work()
}

fn set_driver_version(version: c_int) {
    // SAFETY: the signature is that of cuda_on_cpu_set_driver_version in emulator/driver.cpp.
    unsafe { symbol::<unsafe extern "C" fn(c_int)>(b"cuda_on_cpu_set_driver_version")(version) }
}

/// Runs `work` while the stand-in driver's device says that it is of that compute capability, 9.0 otherwise. What it can
/// run does not change. For the whole process.
pub fn with_compute_capability<R>((major, minor): (c_int, c_int), work: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            set_compute_capability(90);
        }
    }
    let _restore = Restore;
    set_compute_capability(10 * major + minor);
    work()
}

fn set_compute_capability(capability: c_int) {
    if is_emulated() {
        // SAFETY: the signature is that of cuda_on_cpu_set_compute_capability in emulator/driver.cpp.
        unsafe {
            symbol::<unsafe extern "C" fn(c_int)>(b"cuda_on_cpu_set_compute_capability")(capability)
        }
    }
}

/// Runs `work` with the streams of this OS thread as late as a driver may be: nothing in them runs before the host waits
/// for it. Host memory that is written again, or dropped, before a copy out of it was waited for then shows.
pub fn with_lazy_streams<R>(work: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            set_lazy(false);
        }
    }
    let _restore = Restore;
    set_lazy(true);
    work()
}

fn set_lazy(on: bool) {
    if is_emulated() {
        // SAFETY: the signature is that of cuda_on_cpu_set_lazy in emulator/driver.cpp; it writes a thread-local.
        unsafe { symbol::<unsafe extern "C" fn(c_int)>(b"cuda_on_cpu_set_lazy")(c_int::from(on)) }
    }
}

/// How many launches of this OS thread were allowed to overlap the grids before them.
pub fn overlapping_launches() -> usize {
    // SAFETY: the signature is that of cuda_on_cpu_overlapping_launches in emulator/driver.cpp.
    unsafe { symbol::<unsafe extern "C" fn() -> usize>(b"cuda_on_cpu_overlapping_launches")() }
}

/// How often the host has waited for a stream or the whole device in this process, on whatever thread.
pub fn synchronisations() -> usize {
    // SAFETY: the signature is that of cuda_on_cpu_synchronisations in emulator/driver.cpp.
    unsafe { symbol::<unsafe extern "C" fn() -> usize>(b"cuda_on_cpu_synchronisations")() }
}

/// # Safety
/// `F` must be the type of the function of that name.
unsafe fn symbol<F: Copy>(name: &[u8]) -> F {
    // SAFETY: passed on to the caller.
    let symbol: Symbol<F> =
        unsafe { library().get(name) }.expect("the emulator exports its own functions");
    *symbol
}

/// Whether a test that asks about the emulator itself has to stop here, because a real driver was asked for. Says so.
pub fn skip_on_driver(test: &str) -> bool {
    if !is_emulated() {
        eprintln!(
            "{test}: not run, it asks about the emulator and {DEVICE_VARIABLE} asks for the driver"
        );
    }
    !is_emulated()
}

/// A module image that the stand-in driver takes for the kernels of `kernels/<stem>.cu`. No real driver takes it.
pub fn image(stem: &str) -> Vec<u8> {
    format!("stem:{stem}\0").into_bytes()
}

/// How a process under a sanitizer ended.
#[derive(Debug)]
pub struct Rerun {
    pub success: bool,
    pub output: String,
}

/// Runs tests of the calling test binary again in a process of their own, on kernels built with a sanitizer.
/// `arguments` are those of a test binary: names, `--exact`, `--ignored`.
pub fn rerun(instrument: Instrument, arguments: &[&str]) -> Rerun {
    assert!(
        is_emulated(),
        "sanitizers watch emulated kernels; {DEVICE_VARIABLE}=driver asks for a real device"
    );
    let mut command = Command::new(env::current_exe().expect("a running test has a path"));
    command
        .args(arguments)
        .args(["--test-threads=1", "--nocapture"]);
    command.env(LIBRARY_VARIABLE, instrumented_library(instrument));
    // A sanitizer's runtime must be in the process before anything else is.
    if let Some(runtime) = sanitizer_runtime(instrument) {
        command.env("LD_PRELOAD", runtime);
    }
    // What the Rust runtime keeps until exit is not a leak of a kernel.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    // Code that was not instrumented (Rust, the C library) synchronises in ways the sanitizer does not see.
    command.env(
        "TSAN_OPTIONS",
        "ignore_noninstrumented_modules=1:exitcode=66:report_signal_unsafe=0",
    );
    let output = command.output().expect("the test binary can be started");
    Rerun {
        success: output.status.success(),
        output: String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr),
    }
}

/// Runs the tests of the calling binary again under a sanitizer, all but those whose name contains `sanitizer`, and
/// fails with the process's output where it finds something. One such test per sanitizer makes a test file watched.
pub fn assert_clean(instrument: Instrument) {
    if skip_on_driver("sanitizer") {
        return;
    }
    let run = rerun(instrument, &["--skip", "sanitizer"]);
    assert!(run.success, "{instrument:?}:\n{}", run.output);
    // A filter that leaves nothing over would be clean as well.
    assert!(
        !run.output.contains("running 0 tests"),
        "no test was run again:\n{}",
        run.output
    );
}

/// What the compiler says about a kernel source, or nothing when it is content. For tests that some source must not
/// compile.
pub fn compiler_complaint(source: &Path) -> Option<String> {
    let compiler = Path::new(env!("CUDA_ON_CPU_COMPILER"));
    compile::check(compiler, Path::new(env!("CARGO_MANIFEST_DIR")), source).err()
}

/// Built on first use, kept beside the plain library, one per kind.
fn instrumented_library(instrument: Instrument) -> PathBuf {
    static BUILT: [OnceLock<PathBuf>; 3] = [const { OnceLock::new() }; 3];
    BUILT[instrument as usize]
        .get_or_init(|| {
            let compiler = Path::new(env!("CUDA_ON_CPU_COMPILER"));
            compile::library(
                instrument,
                compiler,
                Path::new(env!("CARGO_MANIFEST_DIR")),
                Path::new(env!("OUT_DIR")),
            )
            .unwrap_or_else(|text| panic!("the {} build failed:\n{text}", instrument.name()))
        })
        .clone()
}

fn sanitizer_runtime(instrument: Instrument) -> Option<PathBuf> {
    let file = match instrument {
        Instrument::Nothing => return None,
        Instrument::Addresses => "libasan.so",
        Instrument::Races => "libtsan.so",
    };
    let compiler = env!("CUDA_ON_CPU_COMPILER");
    let output = Command::new(compiler)
        .arg(format!("-print-file-name={file}"))
        .output()
        .expect("the compiler runs");
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    assert!(
        path.is_absolute(),
        "{compiler} has no {file}: install its sanitizer runtimes"
    );
    Some(path)
}
