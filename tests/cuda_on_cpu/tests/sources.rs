//! Rules about kernel sources that no compiler checks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .expect("a folder of this project")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|e| extensions.iter().any(|&wanted| e == wanted))
        })
        .map(|path| (path.clone(), fs::read_to_string(path).expect("a text file")))
        .collect();
    found.sort();
    found
}

fn project_kernels() -> PathBuf {
    package().join("../../kernels")
}

#[test]
fn inline_assembly_is_in_ptx_cuh_alone() {
    for (path, text) in sources(&project_kernels(), &["cu", "cuh"]) {
        let is_home = path.file_name().is_some_and(|name| name == "ptx.cuh");
        assert_eq!(text.contains("asm"), is_home, "{}", path.display());
    }
}

/// The names of the functions in `namespace ptx` of a text: an identifier before `(`, at the left of a definition.
fn wrappers(text: &str, marks: &[&str]) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| {
            marks
                .iter()
                .find_map(|mark| line.trim_start().strip_prefix(mark))
        })
        .filter_map(|line| line.split_once('('))
        .filter_map(|(head, _)| head.split_whitespace().last())
        .map(|name| name.split('<').next().unwrap_or(name).to_string())
        .collect()
}

#[test]
fn every_ptx_wrapper_is_emulated() {
    let text = fs::read_to_string(project_kernels().join("ptx.cuh")).expect("the wrappers");
    let wrapped = wrappers(&text, &["__device__ __forceinline__"]);
    assert!(wrapped.len() > 20, "{wrapped:?}");
    let emulated: BTreeSet<String> = sources(&package().join("emulator"), &["h"])
        .iter()
        .filter_map(|(_, text)| text.split_once("namespace ptx {"))
        .flat_map(|(_, text)| wrappers(text, &["inline ", "void "]))
        .collect();
    let missing: Vec<_> = wrapped.difference(&emulated).collect();
    assert!(missing.is_empty(), "no emulation of {missing:?}");
}

#[test]
fn every_kernel_file_says_what_it_computes_and_costs() {
    for (path, text) in sources(&project_kernels(), &["cu"]) {
        let header: String = text
            .lines()
            .take_while(|line| line.starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        for part in ["Threads:", "Cost", "Numerics:", "Launched by "] {
            assert!(
                header.contains(part),
                "{}: the header has no {part:?}",
                path.display()
            );
        }
    }
}

#[test]
fn every_kernel_file_has_entries_with_names_of_their_own() {
    let mut seen = BTreeSet::new();
    for (path, text) in sources(&project_kernels(), &["cu"]) {
        let entries =
            cuda_on_cpu::entries(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(!entries.is_empty(), "{} has no entry", path.display());
        for entry in entries {
            assert!(
                seen.insert(entry.name.clone()),
                "two kernels are named {}",
                entry.name
            );
        }
    }
}
