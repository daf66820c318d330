//! The order of modules and the house's file names, read from the sources.

mod cases;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module imports from lines above it only; modules of one line do not know each other.
const LAYERS: &[&[&str]] = &[
    &["error"],
    &["device"],
    &["tensor"],
    // Files and numbers: `io` knows tensors, not ops.
    &["ops", "io"],
    &["autograd"],
    &["nn"],
    &["models", "data"],
    &["losses"],
    &["training"],
    &["unlearning"],
    &["metrics"],
    &["cli"],
];

/// Macros at the crate's root, by the module that defines them.
const ROOT_MACROS: &[(&str, &str)] = &[("on_dtype", "tensor")];

/// Families without a derivative.
const FORWARD_ONLY: &[&str] = &["optimizer", "random", "resize"];

/// Families that are no functions of tensors to a tensor; their tests are elsewhere.
const WITHOUT_CASES: &[&str] = &["optimizer", "random"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn rust_files(under: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(under).expect("a folder of the repository") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// Names of what lies in a folder: folders, or Rust files without `mod.rs`.
fn stems(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .expect("a folder of the repository")
        .map(|e| e.expect("a readable entry").path())
        .filter(|p| p.is_dir() || p.extension().is_some_and(|e| e == "rs"))
        .map(|p| p.file_stem().expect("a name").to_string_lossy().into_owned())
        .filter(|s| s != "mod")
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    let module = ROOT_MACROS.iter().find(|(name, _)| *name == module).map_or(module, |(_, home)| home);
    LAYERS.iter().position(|line| line.contains(&module))
}

/// First names of all paths that start at the crate's root, comments aside.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        for part in code.split("crate::").skip(1) {
            let names = match part.strip_prefix('{') {
                // `use crate::{a::x, b}`: every name that starts an item of the list.
                Some(list) => list.split(',').map(first_name).collect(),
                None => vec![first_name(part)],
            };
            found.extend(names.into_iter().filter(|n| !n.is_empty()).map(|n| (number + 1, n)));
        }
    }
    found
}

fn first_name(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn modules_import_from_lower_layers_only() {
    let mut problems = Vec::new();
    for file in rust_files(&source()) {
        let relative = file.strip_prefix(source()).expect("a file of src").to_path_buf();
        let module = relative.components().next().expect("a name").as_os_str().to_string_lossy().replace(".rs", "");
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let Some(own) = layer(&module) else {
            problems.push(format!("src/{module} has no layer in this test's list"));
            continue;
        };
        for (line, import) in imports(&fs::read_to_string(&file).expect("a readable source")) {
            match layer(&import) {
                _ if import == module => {}
                Some(other) if other < own => {}
                Some(_) => problems.push(format!("{}:{line} imports {import}, which is not below {module}", relative.display())),
                None => problems.push(format!("{}:{line} imports {import}, which has no layer", relative.display())),
            }
        }
    }
    problems.sort();
    problems.dedup();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn imports_are_found() {
    let text = "use crate::ops::a; // crate::cli\nlet x = crate::nn::f($crate::tensor::y);\nuse crate::{data::b, io};\n";
    let names: Vec<String> = imports(text).into_iter().map(|(_, n)| n).collect();
    assert_eq!(names, ["ops", "nn", "tensor", "data", "io"]);
}

#[test]
fn a_family_has_one_stem_everywhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ops: BTreeSet<String> = fs::read_dir(source().join("ops"))
        .expect("src/ops")
        .map(|e| e.expect("a readable entry").path())
        .filter(|p| p.is_dir())
        .map(|p| p.file_name().expect("a name").to_string_lossy().into_owned())
        .collect();
    let without = |names: &[&str]| -> BTreeSet<String> { ops.iter().filter(|f| !names.contains(&f.as_str())).cloned().collect() };
    let with_cases = without(WITHOUT_CASES);
    assert_eq!(stems(&root.join("src/autograd/rules")), without(FORWARD_ONLY), "rules (left) and differentiable families in src/ops (right)");
    assert_eq!(stems(&root.join("tests/cases")), with_cases, "case files (left) and families in src/ops (right)");
    for family in &ops {
        let folder = source().join("ops").join(family);
        assert!(folder.join("mod.rs").exists(), "{family} has no spec");
        assert!(family == "random" || folder.join("cpu.rs").exists(), "{family} has no host implementation");
    }
    let listed: Vec<(&str, Vec<cases::Case>)> = cases::families();
    assert_eq!(listed.iter().map(|f| f.0.to_string()).collect::<BTreeSet<_>>(), with_cases, "families that `cases::families` lists");
    let mut names = BTreeSet::new();
    for (family, cases) in listed {
        assert!(!cases.is_empty(), "{family} has no case");
        for case in cases {
            assert!(names.insert(case.name.clone()), "two cases are called {:?}", case.name);
        }
    }
}
