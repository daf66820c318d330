//! What ptxas said about the kernels when build.rs compiled them: no spills, no stack frames.
//!
//! A spilled register or a local array turns arithmetic into memory traffic, silently. The build keeps ptxas' report
//! beside each fatbin; without nvcc there is none, and the test says so.

use std::{fs, path::Path};

/// Kernel entries that may keep data in local memory, each with its reason.
const EXEMPT: &[(&str, &str)] = &[];

/// One line `... 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads` and the entry it is about.
struct Usage {
    entry: String,
    target: String,
    line: String,
}

fn usages(report: &str) -> Vec<Usage> {
    let mut found = Vec::new();
    let mut current = None;
    for line in report.lines() {
        if let Some((_, tail)) = line.split_once("Compiling entry function '") {
            let mut quoted = tail.split('\'');
            let entry = quoted.next().unwrap_or_default().to_string();
            let target = quoted.nth(1).unwrap_or_default().to_string();
            current = Some((entry, target));
        } else if line.contains("bytes stack frame") {
            let (entry, target) = current.clone().expect("ptxas names the entry first");
            found.push(Usage {
                entry,
                target,
                line: line.trim().to_string(),
            });
        }
    }
    found
}

#[test]
fn kernels_keep_their_data_in_registers() {
    let folder = Path::new(env!("RECANT_KERNEL_BUILD"));
    let stems = env!("RECANT_KERNEL_REPORTS")
        .split(',')
        .filter(|stem| !stem.is_empty());
    let reports: Vec<_> = stems
        .map(|stem| folder.join(stem).with_extension("ptxas"))
        .collect();
    if reports.is_empty() {
        eprintln!("not run: this build had no nvcc, so ptxas has said nothing about the kernels");
        return;
    }
    for report in reports {
        let usages = usages(&fs::read_to_string(&report).expect("a report"));
        assert!(!usages.is_empty(), "{} names no kernel", report.display());
        for usage in usages {
            let clean =
                usage.line == "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
            let exempt = EXEMPT.iter().any(|(entry, _)| *entry == usage.entry);
            assert!(
                clean || exempt,
                "{} for {}: {}",
                usage.entry,
                usage.target,
                usage.line
            );
        }
    }
}

#[test]
fn reports_are_understood() {
    let report = "ptxas info    : Compiling entry function 'a_f32' for 'sm_80'\n\
                  ptxas info    : Function properties for a_f32\n    \
                  16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n";
    let usages = usages(report);
    assert_eq!(usages.len(), 1);
    assert_eq!(
        (usages[0].entry.as_str(), usages[0].target.as_str()),
        ("a_f32", "sm_80")
    );
    assert!(usages[0].line.starts_with("16 bytes stack frame"));
}
