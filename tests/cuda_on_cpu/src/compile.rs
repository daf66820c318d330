//! Kernel sources and emulator into a shared library. Used by the build script, and at test time for the builds that
//! a sanitizer watches.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// What the compiler adds to the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instrument {
    Nothing,
    /// AddressSanitizer: out-of-bounds accesses and uses after free.
    Addresses,
    /// ThreadSanitizer: data races.
    Races,
}

impl Instrument {
    pub fn name(self) -> &'static str {
        match self {
            Instrument::Nothing => "plain",
            Instrument::Addresses => "address",
            Instrument::Races => "thread",
        }
    }

    fn sanitizer_flag(self) -> Option<&'static str> {
        match self {
            Instrument::Nothing => None,
            Instrument::Addresses => Some("-fsanitize=address"),
            Instrument::Races => Some("-fsanitize=thread"),
        }
    }
}

/// One source file on its way to an object file.
struct Unit {
    source: PathBuf,
    object: PathBuf,
    /// Names what the object was made from; the object is kept while this stays the same.
    key: u64,
    flags: Vec<String>,
}

/// Compiles what has changed and links. The error is the text of the compiler.
pub fn library(
    instrument: Instrument,
    compiler: &Path,
    package: &Path,
    out: &Path,
) -> Result<PathBuf, String> {
    let build = out.join(instrument.name());
    fs::create_dir_all(&build).map_err(|e| format!("{}: {e}", build.display()))?;
    let units = units(instrument, compiler, package, &build)?;
    compile_stale(compiler, &units)?;
    link(
        instrument,
        compiler,
        &units,
        &build.join("libcuda_on_cpu.so"),
    )
}

/// Links a library that answers to the name libnccl.so; what it is asked for is in `driver`. For the build script.
#[allow(dead_code)]
pub fn nccl_library(compiler: &Path, driver: &Path) -> Result<PathBuf, String> {
    let library = driver.with_file_name("libnccl_on_cpu.so");
    run(Command::new(compiler)
        .args(["-shared", "-Wl,-soname,libnccl.so", "-Wl,--no-as-needed"])
        .arg("-o")
        .arg(&library)
        .arg(driver))?;
    Ok(library)
}

/// Whether a kernel source compiles; makes nothing. The error is the text of the compiler.
pub fn check(compiler: &Path, package: &Path, source: &Path) -> Result<(), String> {
    let flags = common_flags(
        Instrument::Nothing,
        &package.join("emulator"),
        &package.join("../../kernels"),
    );
    run(Command::new(compiler)
        .args(flags)
        .args(["-fsyntax-only", "-xc++"])
        .arg(source))
}

fn units(
    instrument: Instrument,
    compiler: &Path,
    package: &Path,
    build: &Path,
) -> Result<Vec<Unit>, String> {
    let emulator = package.join("emulator");
    let project_kernels = package.join("../../kernels");
    let flags = common_flags(instrument, &emulator, &project_kernels);
    let version = Command::new(compiler)
        .arg("--version")
        .output()
        .map_err(|e| format!("{}: {e}", compiler.display()))?;

    let mut emulator_headers = files(&emulator, "h")?;
    emulator_headers.extend(files(&emulator.join("shim"), "h")?);
    let emulator_context = digest(&version.stdout, &flags, &emulator_headers)?;
    let mut kernel_headers = emulator_headers;
    kernel_headers.extend(files(&project_kernels, "cuh")?);
    let kernel_context = digest(&version.stdout, &flags, &kernel_headers)?;

    let mut units = Vec::new();
    for source in files(&emulator, "cpp")? {
        let mut flags = flags.clone();
        // Races are looked for in kernels alone; the runtime tells the sanitizer what CUDA orders.
        match instrument {
            Instrument::Races => flags.push("-DCUDA_ON_CPU_TSAN".into()),
            _ => flags.extend(instrument.sanitizer_flag().map(String::from)),
        }
        let key = digest(
            &emulator_context.to_le_bytes(),
            &flags,
            std::slice::from_ref(&source),
        )?;
        units.push(unit(source, build, key, flags));
    }
    for kernel in files(&project_kernels, "cu")?
        .into_iter()
        .chain(files(&package.join("kernels"), "cu")?)
    {
        let mut flags = flags.clone();
        flags.extend(instrument.sanitizer_flag().map(String::from));
        let wrapper = write_registration(&kernel, build)?;
        let key = digest(
            &kernel_context.to_le_bytes(),
            &flags,
            &[kernel, wrapper.clone()],
        )?;
        units.push(unit(wrapper, build, key, flags));
    }
    Ok(units)
}

fn unit(source: PathBuf, build: &Path, key: u64, flags: Vec<String>) -> Unit {
    let name = source
        .file_name()
        .expect("a file")
        .to_string_lossy()
        .into_owned();
    Unit {
        object: build.join(name + ".o"),
        source,
        key,
        flags,
    }
}

fn common_flags(instrument: Instrument, emulator: &Path, kernels: &Path) -> Vec<String> {
    let optimise = if instrument == Instrument::Nothing {
        "-O3"
    } else {
        "-O1"
    };
    let mut flags: Vec<String> = [
        "-std=c++20",
        optimise,
        "-g1",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]
    .map(String::from)
    .into();
    // Kernels read float arrays as float4: nvcc allows that, C++ does not.
    flags.push("-fno-strict-aliasing".into());
    // `#pragma unroll` is nvcc's; the vector ABI note is about calls between libraries, of which there are none.
    flags.extend(["-Wno-unknown-pragmas", "-Wno-psabi"].map(String::from));
    // Helpers that a kernel file does not use, and parameters that only device code uses.
    flags.extend(["-Wno-unused-function", "-Wno-unused-parameter"].map(String::from));
    flags.push(format!("-I{}", emulator.join("shim").display()));
    flags.push(format!("-I{}", emulator.display()));
    flags.push(format!("-I{}", kernels.display()));
    #[cfg(target_arch = "x86_64")]
    {
        // The cheap TLS calls; see emulator/execution.h.
        flags.push("-mtls-dialect=gnu2".into());
        // Without FMA in the target, every fmaf is a library call: 7 times slower. The library is for this machine.
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            flags.push("-march=x86-64-v3".into());
        }
    }
    flags
}

/// Writes the source that includes the kernel file and names its entries to the emulator.
fn write_registration(kernel: &Path, build: &Path) -> Result<PathBuf, String> {
    let source = fs::read_to_string(kernel).map_err(|e| format!("{}: {e}", kernel.display()))?;
    let stem = kernel
        .file_stem()
        .expect("a file")
        .to_string_lossy()
        .into_owned();
    let kernel = kernel
        .canonicalize()
        .map_err(|e| format!("{}: {e}", kernel.display()))?;
    let mut text = format!("#include \"{}\"\n", kernel.display());
    for entry in entries(&source).map_err(|e| format!("{}: {e}", kernel.display()))? {
        text += &format!(
            "CUDA_ON_CPU_ENTRY(\"{stem}\", {}, {})\n",
            entry.name, entry.launch_bounds
        );
    }
    let wrapper = build.join(format!("{stem}.cu.cpp"));
    if fs::read_to_string(&wrapper).ok().as_deref() != Some(&text) {
        fs::write(&wrapper, text).map_err(|e| format!("{}: {e}", wrapper.display()))?;
    }
    Ok(wrapper)
}

/// An `extern "C" __global__ void [__launch_bounds__(...)] name(...)`.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// As written, empty without.
    pub launch_bounds: String,
}

/// The entries of a kernel source, in order.
pub fn entries(source: &str) -> Result<Vec<Entry>, String> {
    const GLOBAL: &str = "__global__";
    let code = without_comments(source);
    let mut found = Vec::new();
    let mut rest = code.as_str();
    while let Some(at) = rest.find(GLOBAL) {
        let before = rest[..at].trim_end();
        let after = rest[at + GLOBAL.len()..].trim_start();
        if !before.ends_with("extern \"C\"") {
            return Err("a __global__ function without `extern \"C\"` in front: entries have C names, written out".into());
        }
        let after = after
            .strip_prefix("void")
            .ok_or("a __global__ function that is not `void`")?
            .trim_start();
        let (launch_bounds, after) = match after.strip_prefix("__launch_bounds__") {
            Some(tail) => {
                let tail = tail.trim_start();
                let end = matching_parenthesis(tail).ok_or("unbalanced __launch_bounds__")?;
                (tail[1..end].to_string(), tail[end + 1..].trim_start())
            }
            None => (String::new(), after),
        };
        let length = after
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        if length == 0 || !after[length..].trim_start().starts_with('(') {
            return Err("a __global__ function whose name is not written out".into());
        }
        found.push(Entry {
            name: after[..length].to_string(),
            launch_bounds,
        });
        rest = after;
    }
    Ok(found)
}

fn matching_parenthesis(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return (at > 0).then_some(at);
        }
    }
    None
}

/// Line comments and block comments blanked. String literals with comment marks in them do not occur in kernels.
fn without_comments(source: &str) -> String {
    let mut code = String::new();
    let mut rest = source;
    while let Some(at) = rest.find('/') {
        code += &rest[..at];
        rest = &rest[at..];
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            code.push('/');
            rest = &rest[1..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code + rest
}

/// Sorted, so that the build does not depend on the order of the directory. No such directory: no files.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let Ok(listing) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<PathBuf> = listing
        .map(|entry| {
            entry
                .map(|e| e.path())
                .map_err(|e| format!("{}: {e}", directory.display()))
        })
        .collect::<Result<_, _>>()?;
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found.sort();
    Ok(found)
}

fn digest(context: &[u8], flags: &[String], paths: &[PathBuf]) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    context.hash(&mut hasher);
    flags.hash(&mut hasher);
    for path in paths {
        fs::read(path)
            .map_err(|e| format!("{}: {e}", path.display()))?
            .hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn compile_stale(compiler: &Path, units: &[Unit]) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(String::new());
    let workers = thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(units.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(text) = compile_if_stale(compiler, unit) {
                        *failures.lock().expect("no panic") += &text;
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures)
    }
}

fn compile_if_stale(compiler: &Path, unit: &Unit) -> Result<(), String> {
    let key_file = unit.object.with_extension("o.key");
    let key = format!("{:016x}", unit.key);
    if unit.object.exists() && fs::read_to_string(&key_file).ok().as_deref() == Some(&key) {
        return Ok(());
    }
    let fresh = unit
        .object
        .with_extension(format!("o.{}", std::process::id()));
    run(Command::new(compiler)
        .args(&unit.flags)
        .arg("-c")
        .arg(&unit.source)
        .arg("-o")
        .arg(&fresh))?;
    fs::rename(&fresh, &unit.object).map_err(|e| format!("{}: {e}", unit.object.display()))?;
    fs::write(&key_file, key).map_err(|e| format!("{}: {e}", key_file.display()))
}

fn link(
    instrument: Instrument,
    compiler: &Path,
    units: &[Unit],
    library: &Path,
) -> Result<PathBuf, String> {
    let mut key = DefaultHasher::new();
    units
        .iter()
        .for_each(|unit| (&unit.object, unit.key).hash(&mut key));
    let (key, key_file) = (
        format!("{:016x}", key.finish()),
        library.with_extension("so.key"),
    );
    if library.exists() && fs::read_to_string(&key_file).ok().as_deref() == Some(&key) {
        return Ok(library.to_path_buf());
    }
    let fresh = library.with_extension(format!("so.{}", std::process::id()));
    let mut command = Command::new(compiler);
    // The name under which cudarc's dlopen finds the library once it is loaded.
    command
        .args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,-Bsymbolic"])
        .arg("-o")
        .arg(&fresh);
    command
        .args(units.iter().map(|unit| &unit.object))
        .arg("-lpthread");
    command.args(instrument.sanitizer_flag());
    run(&mut command)?;
    fs::rename(&fresh, library).map_err(|e| format!("{}: {e}", library.display()))?;
    fs::write(&key_file, key).map_err(|e| format!("{}: {e}", key_file.display()))?;
    Ok(library.to_path_buf())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}
