//! Compiles `kernels/*.cu` with nvcc, one fatbin each, and writes the table that embeds them: `OUT_DIR/kernels.rs`.
//!
//! | variable | meaning |
//! |---|---|
//! | `RECANT_CUDA` | `auto` (the default): use nvcc where there is one; `require`: no nvcc is an error; `off`: do not look |
//! | `RECANT_CUDA_ARCHS` | what to compile for, default `80,90a,ptx80`: machine code for sm_80 and sm_90a, PTX for newer chips |
//! | `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH` | where nvcc is, besides the virtual environment `.cuda` in this folder |
//!
//! A kernel is compiled again when its source, a header, the compiler or the targets have changed, and not otherwise.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    fmt::Write as _,
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

const DEFAULT_ARCHS: &str = "80,90a,ptx80";
const REMEDY: &str = "set NVCC or CUDA_HOME, or install nvcc into ./.cuda (README.md, \"CUDA\")";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    for variable in [
        "RECANT_CUDA",
        "RECANT_CUDA_ARCHS",
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "PATH",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // A path that does not exist would make cargo run this script every time.
    if Path::new(".cuda/pyvenv.cfg").exists() {
        println!("cargo::rerun-if-changed=.cuda/pyvenv.cfg");
    }
    match build() {
        Ok(()) => {}
        // cargo shows this line alone, as long as the script itself ends well.
        Err(Failure::Setting(message)) => println!("cargo::error={message}"),
        Err(Failure::Kernels(message, output)) => {
            println!("cargo::error={message}");
            eprintln!("{output}");
            std::process::exit(1);
        }
    }
}

enum Failure {
    /// Something to change in the environment, in one line.
    Setting(String),
    /// What nvcc said about the kernels, whole.
    Kernels(String, String),
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Setting(message)
    }
}

fn build() -> Result<(), Failure> {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let sources = files("kernels", "cu")?;
    let archs = env::var("RECANT_CUDA_ARCHS").unwrap_or_else(|_| DEFAULT_ARCHS.into());
    let compiler = compiler()?;
    if let Some(nvcc) = &compiler {
        nvcc.compile(&sources, &targets(&archs)?, &out)?;
    }
    // Where tests find what ptxas says about each kernel's registers and spills, <stem>.ptxas, and of which kernels: the
    // folder may hold reports of earlier builds.
    let reports: Vec<String> = sources
        .iter()
        .filter(|_| compiler.is_some())
        .map(|source| stem(source))
        .collect();
    println!("cargo::rustc-env=RECANT_KERNEL_BUILD={}", out.display());
    // Other tools of the same toolkit lie beside nvcc.
    let nvcc = compiler.as_ref().map_or(Path::new(""), |nvcc| &nvcc.path);
    println!("cargo::rustc-env=RECANT_KERNEL_NVCC={}", nvcc.display());
    println!(
        "cargo::rustc-env=RECANT_KERNEL_REPORTS={}",
        reports.join(",")
    );
    let table = table(&sources, compiler.as_ref(), &archs, &out);
    fs::write(out.join("kernels.rs"), table).map_err(|e| format!("{}: {e}", out.display()).into())
}

/// The nvcc to use, or none where that is allowed. Says so in one line when there is none to be found.
fn compiler() -> Result<Option<Nvcc>, String> {
    let wish = env::var("RECANT_CUDA").unwrap_or_else(|_| "auto".into());
    match wish.as_str() {
        "off" => return Ok(None),
        "auto" | "require" => {}
        _ => return Err(format!("RECANT_CUDA={wish}: use auto, require or off")),
    }
    if let Some(nvcc) = Nvcc::find()? {
        return Ok(Some(nvcc));
    }
    if wish == "require" {
        return Err(format!(
            "RECANT_CUDA=require, and there is no nvcc: {REMEDY}"
        ));
    }
    println!(
        "cargo::warning=no nvcc found: built without CUDA kernels, --device cuda will not work; {REMEDY}"
    );
    Ok(None)
}

/// `-gencode` arguments of a list such as `80,90a,ptx80`.
fn targets(archs: &str) -> Result<Vec<String>, String> {
    let mut arguments = Vec::new();
    for arch in archs
        .split(',')
        .map(str::trim)
        .filter(|arch| !arch.is_empty())
    {
        let (virtual_only, number) = match arch.strip_prefix("ptx") {
            Some(number) => (true, number),
            None => (false, arch),
        };
        let digits = number.strip_suffix(['a', 'f']).unwrap_or(number);
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
            return Err(format!(
                "RECANT_CUDA_ARCHS: {arch:?} is neither like 90a nor like ptx80"
            ));
        }
        let code = if virtual_only { "compute" } else { "sm" };
        arguments.push("-gencode".into());
        arguments.push(format!("arch=compute_{number},code={code}_{number}"));
    }
    if arguments.is_empty() {
        return Err("RECANT_CUDA_ARCHS names no target".into());
    }
    Ok(arguments)
}

struct Nvcc {
    path: PathBuf,
    version: String,
}

impl Nvcc {
    fn find() -> Result<Option<Nvcc>, String> {
        // What was named outright must work; the rest is a search.
        if let Some(path) = env::var_os("NVCC") {
            let path = PathBuf::from(path);
            return match version(&path) {
                Some(version) => Ok(Some(Nvcc { path, version })),
                None => Err(format!("NVCC={}: it does not run", path.display())),
            };
        }
        let found = candidates()
            .into_iter()
            .find_map(|path| version(&path).map(|version| Nvcc { path, version }));
        Ok(found)
    }

    fn compile(&self, sources: &[PathBuf], targets: &[String], out: &Path) -> Result<(), Failure> {
        let mut flags: Vec<String> = ["--fatbin", "-std=c++20", "-O3", "-Werror", "all-warnings"]
            .map(String::from)
            .into();
        flags.push("--resource-usage".into());
        flags.extend_from_slice(targets);
        let mut context = DefaultHasher::new();
        (&self.version, &flags).hash(&mut context);
        for header in files("kernels", "cuh")? {
            read(&header)?.hash(&mut context);
        }
        let context = context.finish();

        let next = AtomicUsize::new(0);
        let failed = Mutex::new(Vec::new());
        let jobs = env::var("NUM_JOBS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1usize)
            .clamp(1, sources.len().max(1));
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(text) = self.compile_if_stale(source, &flags, context, out) {
                            failed
                                .lock()
                                .expect("no panic")
                                .push((source.display().to_string(), text));
                        }
                    }
                });
            }
        });
        let mut failed = failed.into_inner().expect("no panic");
        failed.sort();
        if failed.is_empty() {
            return Ok(());
        }
        let (names, texts): (Vec<String>, Vec<String>) = failed.into_iter().unzip();
        let message = format!("nvcc refuses {}; its output follows", names.join(", "));
        Err(Failure::Kernels(message, texts.concat()))
    }

    fn compile_if_stale(
        &self,
        source: &Path,
        flags: &[String],
        context: u64,
        out: &Path,
    ) -> Result<(), String> {
        let mut key = DefaultHasher::new();
        (context, read(source)?).hash(&mut key);
        let key = format!("{:016x}", key.finish());
        let name = |extension: &str| out.join(stem(source)).with_extension(extension);
        let (fatbin, report, key_file) = (name("fatbin"), name("ptxas"), name("key"));
        if fatbin.exists()
            && report.exists()
            && fs::read_to_string(&key_file).ok().as_ref() == Some(&key)
        {
            return Ok(());
        }
        let fresh = name("fatbin.tmp");
        let mut command = Command::new(&self.path);
        command.args(flags).arg(source).arg("-o").arg(&fresh);
        let output = command
            .output()
            .map_err(|e| format!("{}: {e}", self.path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{command:?}\n{text}"));
        }
        let write = || {
            fs::write(&report, text)?;
            fs::rename(&fresh, &fatbin)?;
            fs::write(&key_file, key)
        };
        write().map_err(|e| format!("{}: {e}", fatbin.display()))
    }
}

/// Places to look for nvcc, the nearest to this project first.
fn candidates() -> Vec<PathBuf> {
    let mut places = Vec::new();
    for python in directories(Path::new(".cuda/lib")) {
        for toolkit in directories(&python.join("site-packages/nvidia")) {
            places.push(toolkit.join("bin/nvcc"));
        }
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        places.extend(env::var_os(variable).map(|home| PathBuf::from(home).join("bin/nvcc")));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    places.extend(env::split_paths(&path).map(|directory| directory.join("nvcc")));
    places.push("/usr/local/cuda/bin/nvcc".into());
    places.retain(|place| place.exists());
    places
}

fn version(nvcc: &Path) -> Option<String> {
    let output = Command::new(nvcc).arg("--version").output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The Rust source of the table.
fn table(sources: &[PathBuf], compiler: Option<&Nvcc>, archs: &str, out: &Path) -> String {
    let mut text = String::from(
        "/// The kernel files of this project, without `.cu`, sorted.\npub static STEMS: &[&str] = &[",
    );
    for source in sources {
        write!(text, "{:?}, ", stem(source)).expect("a string takes any text");
    }
    text += "];\n/// Kernel file and its fatbin, sorted. Empty when the build had no nvcc.\n";
    text += "pub static FATBINS: &[(&str, &[u8])] = &[\n";
    for source in sources.iter().filter(|_| compiler.is_some()) {
        let fatbin = out.join(stem(source)).with_extension("fatbin");
        writeln!(
            text,
            "    ({:?}, include_bytes!({:?})),",
            stem(source),
            fatbin
        )
        .expect("a string takes any text");
    }
    let version =
        compiler.and_then(|nvcc| nvcc.version.lines().find(|line| line.contains("release")));
    text += "];\n/// What `nvcc --version` says of the nvcc that made them.\n";
    writeln!(text, "pub const COMPILER: Option<&str> = {version:?};")
        .expect("a string takes any text");
    text += "/// What they were compiled for, as in RECANT_CUDA_ARCHS.\n";
    writeln!(text, "pub const ARCHITECTURES: &str = {archs:?};").expect("a string takes any text");
    text
}

fn stem(source: &Path) -> String {
    source
        .file_stem()
        .expect("a file")
        .to_string_lossy()
        .into_owned()
}

/// Sorted, so that the table does not depend on the order of the directory. No such directory: no files.
fn files(directory: &str, extension: &str) -> Result<Vec<PathBuf>, String> {
    let Ok(listing) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut found: Vec<PathBuf> = listing
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{directory}: {e}"))?;
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found.sort();
    Ok(found)
}

fn directories(parent: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.retain(|path| path.is_dir());
    found.sort();
    found
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}
