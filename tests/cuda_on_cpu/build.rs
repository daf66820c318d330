//! Compiles the project's kernels, this package's own test kernels and the emulator into one shared library that
//! answers to the name libcuda.so.

use std::{env, path::PathBuf};

// The sanitized builds are made at test time, by the library.
#[allow(dead_code)]
#[path = "src/compile.rs"]
mod compile;

fn main() {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in [
        "emulator",
        "kernels",
        "../../kernels",
        "build.rs",
        "src/compile.rs",
    ] {
        println!("cargo::rerun-if-changed={watched}");
    }
    let compiler = cc::Build::new()
        .cpp(true)
        .cargo_metadata(false)
        .get_compiler();
    let compiler = compiler.path().to_path_buf();
    let libraries = compile::library(compile::Instrument::Nothing, &compiler, &package, &out)
        .and_then(|driver| Ok((compile::nccl_library(&compiler, &driver)?, driver)));
    match libraries {
        Ok((nccl, driver)) => {
            println!("cargo::rustc-env=CUDA_ON_CPU_LIBRARY={}", driver.display());
            println!("cargo::rustc-env=CUDA_ON_CPU_NCCL={}", nccl.display());
            println!(
                "cargo::rustc-env=CUDA_ON_CPU_COMPILER={}",
                compiler.display()
            );
        }
        Err(text) => {
            // The compiler's own words, whole: a kernel author needs every line.
            eprintln!("{text}");
            println!(
                "cargo::error=a kernel or the emulator does not compile for the CPU; the compiler's output follows"
            );
            std::process::exit(1);
        }
    }
}
