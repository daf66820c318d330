//! What ptxas made of the hot kernels: the machine code in the fatbins that build.rs wrote holds the instructions for
//! which the kernels were written, tensor cores' products and accesses of 16 bytes.
//!
//! A condition that ptxas cannot prove, or an alignment that it does not know, turns one access of 16 bytes into four,
//! silently. cuobjdump lists the machine code; without nvcc there is none, and without cuobjdump no list: the test says
//! so, or with `RECANT_CUDA=require` fails.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernels of one file must hold.
struct Rule {
    stem: &'static str,
    /// Each of its kernels whose name contains one of these.
    named: &'static [&'static str],
    /// For one target alone; else for all.
    target: Option<&'static str>,
    /// An instruction and the modifiers that it has among others.
    holds: &'static [&'static [&'static str]],
}

const LOAD: &[&str] = &["LDG", "128"];
const STORE: &[&str] = &["STG", "128"];
/// cp.async.
const COPY: &[&str] = &["LDGSTS", "128"];

const RULES: &[Rule] = &[
    // Operands by cp.async, their scales by loads.
    Rule { stem: "conv2d", named: &["_tf32", "_bf16"], target: None, holds: &[&["HMMA"], COPY, LOAD] },
    Rule { stem: "conv2d_sm90", named: &["_sm90_"], target: Some("sm_90a"), holds: &[&["HGMMA"], &["UTMALDG"]] },
    Rule { stem: "conv2d_sm90", named: &["conv2d_pack_"], target: None, holds: &[LOAD] },
    Rule { stem: "optimizer", named: &["adam_", "accumulate_squares_"], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "ewc", named: &["ewc_penalty_grad_"], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "repulsion", named: &["repulsion_norm_"], target: None, holds: &[LOAD] },
    Rule { stem: "bias_act", named: &["bias_act_"], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "feature_stats", named: &["feature_products_f64"], target: None, holds: &[&["DMMA"], COPY] },
    Rule { stem: "feature_stats", named: &["feature_products_f32x2"], target: None, holds: &[COPY] },
    Rule { stem: "peak", named: &["mma_peak_"], target: None, holds: &[&["HMMA"]] },
];

/// The machine code of one kernel for one target: the instructions that occur in it, `LDG.E.128.CONSTANT`.
struct Function {
    target: String,
    name: String,
    instructions: BTreeSet<String>,
}

impl Function {
    fn holds(&self, words: &[&str]) -> bool {
        self.instructions.iter().any(|instruction| {
            let mut parts = instruction.split('.');
            parts.next() == Some(words[0]) && words[1..].iter().all(|word| instruction.split('.').any(|part| part == *word))
        })
    }
}

/// What `cuobjdump -sass` has written.
fn functions(listing: &str) -> Vec<Function> {
    let mut found: Vec<Function> = Vec::new();
    let mut target = String::new();
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("code for ") {
            target = name.to_string();
        } else if let Some(name) = line.strip_prefix("Function : ") {
            found.push(Function { target: target.clone(), name: name.to_string(), instructions: BTreeSet::new() });
        } else if let Some((_, code)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) {
            // A predicate, @P0 or @!UP1, comes before the instruction.
            let instruction = code.split_whitespace().find(|word| !word.starts_with('@'));
            if let (Some(function), Some(instruction)) = (found.last_mut(), instruction.filter(|word| !word.starts_with("/*"))) {
                function.instructions.insert(instruction.trim_end_matches(';').to_string());
            }
        }
    }
    found
}

/// The one beside the nvcc that made the kernels, or the first in PATH.
fn cuobjdump() -> Option<PathBuf> {
    let beside = Path::new(env!("RECANT_KERNEL_NVCC")).with_file_name("cuobjdump");
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|directory| directory.join("cuobjdump"));
    std::iter::once(beside).chain(in_path).find(|place| Command::new(place).arg("--version").output().is_ok_and(|run| run.status.success()))
}

fn disassemble(cuobjdump: &Path, fatbin: &Path) -> Vec<Function> {
    // It calls nvdisasm, which lies beside it.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(cuobjdump.parent().map(Path::to_path_buf).into_iter().chain(env::split_paths(&path))).expect("folders of PATH");
    let run = Command::new(cuobjdump).arg("-sass").arg(fatbin).env("PATH", path).output().expect("it has told its version");
    assert!(run.status.success(), "{}: {}", fatbin.display(), String::from_utf8_lossy(&run.stderr));
    functions(&String::from_utf8_lossy(&run.stdout))
}

#[test]
fn hot_kernels_hold_the_instructions_they_were_written_for() {
    if env!("RECANT_KERNEL_REPORTS").is_empty() {
        eprintln!("not run: this build had no nvcc, so there is no machine code");
        return;
    }
    let Some(cuobjdump) = cuobjdump() else {
        let remedy = "no cuobjdump beside nvcc or in PATH; kernels/nvcc-requirements.txt names it";
        assert!(env::var("RECANT_CUDA").as_deref() != Ok("require"), "RECANT_CUDA=require: {remedy}");
        eprintln!("not run: {remedy}");
        return;
    };
    let stems: BTreeSet<&str> = RULES.iter().map(|rule| rule.stem).collect();
    for stem in stems {
        let functions = disassemble(&cuobjdump, &Path::new(env!("RECANT_KERNEL_BUILD")).join(stem).with_extension("fatbin"));
        let targets: BTreeSet<&str> = functions.iter().map(|f| f.target.as_str()).collect();
        for rule in RULES.iter().filter(|rule| rule.stem == stem) {
            if rule.target.is_some_and(|target| !targets.contains(target)) {
                eprintln!("not run for {stem}.cu: the kernels were built for {targets:?}, without {:?}", rule.target);
                continue;
            }
            let ruled: Vec<_> = functions
                .iter()
                .filter(|f| rule.named.iter().any(|part| f.name.contains(part)) && rule.target.is_none_or(|target| target == f.target))
                .collect();
            assert!(!ruled.is_empty(), "no kernel of {stem}.cu is named {:?}", rule.named);
            for (function, words) in ruled.iter().flat_map(|f| rule.holds.iter().map(move |words| (f, words))) {
                assert!(function.holds(words), "{} for {} holds no {}", function.name, function.target, words.join(" with "));
            }
        }
    }
}

#[test]
fn listings_are_understood() {
    let listing = "\tcode for sm_90a\n\t\tFunction : a_f32\n\t.headerflags\t@\"EF_CUDA_SM90\"\n\
                   /*0000*/                   LDG.E.128.CONSTANT R1, [R2] ;     /* 0x00000a00ff017624 */\n\
                   \t\t\t\t                                                     /* 0x000fe400078e00ff */\n\
                   /*0010*/               @!P0 STG.E R1, [R2] ;                 /* 0x00000a00ff017624 */\n\
                   /*0020*/                   EXIT ;                            /* 0x00000a00ff017624 */\n";
    let functions = functions(listing);
    assert_eq!(functions.len(), 1);
    let f = &functions[0];
    assert_eq!((f.target.as_str(), f.name.as_str()), ("sm_90a", "a_f32"));
    assert_eq!(f.instructions, ["LDG.E.128.CONSTANT", "STG.E", "EXIT"].map(String::from).into());
    assert!(f.holds(LOAD) && !f.holds(STORE) && f.holds(&["STG"]) && !f.holds(&["ST"]));
}
