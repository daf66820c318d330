//! What ptxas made of the kernels, by the machine code in the fatbins that build.rs wrote.
//!
//! The hot ones hold the instructions for which they were written, tensor cores' products and accesses of 16 bytes. A
//! condition that ptxas cannot prove, or an alignment that it does not know, turns one access of 16 bytes into four,
//! silently. And all of them wait for the kernels before them ahead of the first access to global memory, wherever the
//! compilers have moved that.
//!
//! cuobjdump lists the machine code; without nvcc there is none, and without cuobjdump no list: the tests say so, or with
//! `RECANT_CUDA=require` fail.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use recant::device::cuda::KERNELS;

/// What the kernels of one file must hold.
struct Rule {
    stem: &'static str,
    /// Each of its kernels whose name contains one of these.
    named: &'static [&'static str],
    /// And none of these.
    but: &'static [&'static str],
    /// For one target alone; else for all.
    target: Option<&'static str>,
    /// An instruction and the modifiers that it has among others.
    holds: &'static [&'static [&'static str]],
}

const LOAD: &[&str] = &["LDG", "128"];
const STORE: &[&str] = &["STG", "128"];
/// cp.async.
const COPY: &[&str] = &["LDGSTS", "128"];

/// ldmatrix, transposed.
const TRANSPOSED: &[&str] = &["LDSM", "MT88"];

const RULES: &[Rule] = &[
    // Operands by cp.async, their scales by loads.
    Rule { stem: "conv2d", named: &["_tf32", "_bf16"], but: &["_narrow_", "_add_parts_"], target: None, holds: &[&["HMMA"], COPY, LOAD] },
    // What is bf16 in shared memory is never taken apart.
    Rule { stem: "conv2d", named: &["_stored_bf16"], but: &["_narrow_"], target: None, holds: &[&["LDSM"]] },
    Rule { stem: "conv2d", named: &["transpose_stored_", "transpose_small_stored_", "weight_grad_stored_", "weight_grad_small_stored_"], but: &[], target: None, holds: &[TRANSPOSED] },
    Rule { stem: "conv2d_sm90", named: &["_sm90_"], but: &[], target: Some("sm_90a"), holds: &[&["HGMMA"], &["UTMALDG"]] },
    Rule { stem: "optimizer", named: &["adam_", "accumulate_squares_"], but: &[], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "ewc", named: &["ewc_penalty_grad_"], but: &[], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "repulsion", named: &["repulsion_norm_"], but: &[], target: None, holds: &[LOAD] },
    Rule { stem: "bias_act", named: &["bias_act_", "epilogue_grad_f32x4", "epilogue_grad_bf16x8"], but: &[], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "elementwise", named: &["cast_", "map_", "zip_", "channel_scale_"], but: &[], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "upfirdn2d", named: &["upfirdn2d_"], but: &[], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "layout", named: &["_f32x4"], but: &[], target: None, holds: &[LOAD, STORE] },
    Rule { stem: "reduce", named: &["_bf16x8"], but: &[], target: None, holds: &[LOAD] },
    Rule { stem: "feature_stats", named: &["feature_products_f64"], but: &[], target: None, holds: &[&["DMMA"], COPY] },
    Rule { stem: "feature_stats", named: &["feature_products_f32x2"], but: &[], target: None, holds: &[COPY] },
    Rule { stem: "peak", named: &["mma_peak_"], but: &[], target: None, holds: &[&["HMMA"]] },
];

/// The target for which kernels overlap (`dependent_launch` in kernels/common.cuh).
const OVERLAPPING: &str = "sm_90a";

/// Accesses to global memory: loads, stores, atomics, asynchronous and bulk copies. UTMACCTL, which reads a tensor map
/// among the parameters ahead of time, is none.
const GLOBAL: &[&str] =
    &["LD", "LDG", "LDGSTS", "ST", "STG", "RED", "REDG", "ATOM", "ATOMG", "UTMALDG", "UTMASTG", "UTMAREDG", "UTMAPF", "UBLKCP", "UBLKRED", "UBLKPF"];

/// One instruction, `@!P0 LDG.E.128 R1, [R2]`.
struct Instruction {
    address: u64,
    predicate: Option<String>,
    /// With its modifiers.
    name: String,
    operands: String,
}

impl Instruction {
    fn parse(address: &str, code: &str) -> Option<Instruction> {
        let code = code.split_once(';').map_or(code, |(code, _)| code).trim();
        let (predicate, code) = match code.split_once(' ') {
            Some((predicate, rest)) if predicate.starts_with('@') => (Some(predicate.to_string()), rest.trim()),
            _ => (None, code),
        };
        let (name, operands) = code.split_once(' ').unwrap_or((code, ""));
        let address = u64::from_str_radix(address, 16).ok()?;
        // The second half of an instruction's encoding has a line of its own.
        (!name.is_empty() && !name.starts_with("/*")).then(|| Instruction { address, predicate, name: name.into(), operands: operands.trim().into() })
    }

    /// Without modifiers.
    fn operation(&self) -> &str {
        self.name.split('.').next().expect("something")
    }

    fn is(&self, words: &[&str]) -> bool {
        self.operation() == words[0] && words[1..].iter().all(|word| self.name.split('.').any(|part| part == *word))
    }

    /// Where a jump goes that names its target; nothing of others.
    fn target(&self) -> Option<u64> {
        self.operands.split(|c: char| c.is_whitespace() || c == ',').rev().find_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
    }
}

/// The machine code of one kernel for one target.
struct Function {
    target: String,
    name: String,
    instructions: Vec<Instruction>,
}

impl Function {
    fn holds(&self, words: &[&str]) -> bool {
        self.instructions.iter().any(|instruction| instruction.is(words))
    }

    /// What is wrong with its way up to the wait for the kernels before it; nothing where all is well. Code in front of the
    /// wait must lead there: it neither ends nor jumps past it, so all that lies behind comes after it.
    fn hurry(&self) -> Option<String> {
        let Some(wait) = self.instructions.iter().position(|i| i.is(&["ACQBULK"])) else { return Some("has no ACQBULK".into()) };
        let (before, wait) = (&self.instructions[..wait], &self.instructions[wait]);
        if wait.predicate.is_some() {
            return Some("waits under a condition".into());
        }
        if !before.iter().any(|i| i.is(&["PREEXIT"]) && i.predicate.is_none()) {
            return Some("has no PREEXIT before ACQBULK".into());
        }
        let leads_there = |i: &Instruction| match i.operation() {
            "EXIT" | "RET" | "CALL" | "BRX" | "BRXU" | "JMP" | "JMX" | "JMXU" => false,
            "BRA" => i.target().is_some_and(|target| target <= wait.address),
            operation => !GLOBAL.contains(&operation),
        };
        let wrong = before.iter().find(|i| !leads_there(i)).map(|i| format!("{} {} before ACQBULK", i.name, i.operands));
        wrong.or_else(|| self.instructions.iter().find(|i| i.is(&["LDG", "CONSTANT"])).map(|i| format!("{}: the read-only path", i.name)))
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
            found.push(Function { target: target.clone(), name: name.to_string(), instructions: Vec::new() });
        } else if let Some((address, code)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/"))
            && let (Some(function), Some(instruction)) = (found.last_mut(), Instruction::parse(address, code))
        {
            function.instructions.push(instruction);
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

/// The machine code of the kernels of one file.
fn disassemble(cuobjdump: &Path, stem: &str) -> Vec<Function> {
    let fatbin = &Path::new(env!("RECANT_KERNEL_BUILD")).join(stem).with_extension("fatbin");
    // It calls nvdisasm, which lies beside it.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(cuobjdump.parent().map(Path::to_path_buf).into_iter().chain(env::split_paths(&path))).expect("folders of PATH");
    let run = Command::new(cuobjdump).arg("-sass").arg(fatbin).env("PATH", path).output().expect("it has told its version");
    assert!(run.status.success(), "{}: {}", fatbin.display(), String::from_utf8_lossy(&run.stderr));
    functions(&String::from_utf8_lossy(&run.stdout))
}

/// The machine code of every kernel file, listed once for all tests: that takes long. Says so where a test cannot run.
fn listings() -> Option<&'static BTreeMap<&'static str, Vec<Function>>> {
    static LISTED: OnceLock<BTreeMap<&'static str, Vec<Function>>> = OnceLock::new();
    if env!("RECANT_KERNEL_REPORTS").is_empty() {
        eprintln!("not run: this build had no nvcc, so there is no machine code");
        return None;
    }
    let Some(cuobjdump) = cuobjdump() else {
        let remedy = "no cuobjdump beside nvcc or in PATH; kernels/nvcc-requirements.txt names it";
        assert!(env::var("RECANT_CUDA").as_deref() != Ok("require"), "RECANT_CUDA=require: {remedy}");
        eprintln!("not run: {remedy}");
        return None;
    };
    Some(LISTED.get_or_init(|| KERNELS.iter().map(|(stem, _)| (*stem, disassemble(&cuobjdump, stem))).collect()))
}

#[test]
fn hot_kernels_hold_the_instructions_they_were_written_for() {
    let Some(listings) = listings() else { return };
    let stems: BTreeSet<&str> = RULES.iter().map(|rule| rule.stem).collect();
    for stem in stems {
        let functions = &listings[stem];
        let targets: BTreeSet<&str> = functions.iter().map(|f| f.target.as_str()).collect();
        for rule in RULES.iter().filter(|rule| rule.stem == stem) {
            if rule.target.is_some_and(|target| !targets.contains(target)) {
                eprintln!("not run for {stem}.cu: the kernels were built for {targets:?}, without {:?}", rule.target);
                continue;
            }
            let ruled: Vec<_> = functions
                .iter()
                .filter(|f| rule.named.iter().any(|part| f.name.contains(part)) && !rule.but.iter().any(|part| f.name.contains(part)) && rule.target.is_none_or(|target| target == f.target))
                .collect();
            assert!(!ruled.is_empty(), "no kernel of {stem}.cu is named {:?}", rule.named);
            for (function, words) in ruled.iter().flat_map(|f| rule.holds.iter().map(move |words| (f, words))) {
                assert!(function.holds(words), "{} for {} holds no {}", function.name, function.target, words.join(" with "));
            }
        }
    }
}

#[test]
fn kernels_wait_for_those_before_them_ahead_of_every_access() {
    let Some(listings) = listings() else { return };
    for (stem, entries) in KERNELS {
        let functions = &listings[stem];
        if !functions.iter().any(|f| f.target == OVERLAPPING) {
            eprintln!("not run for {stem}.cu: the kernels were built without {OVERLAPPING}");
            continue;
        }
        for entry in *entries {
            let function = functions.iter().find(|f| f.target == OVERLAPPING && f.name == *entry);
            let function = function.unwrap_or_else(|| panic!("{entry} of {stem}.cu is not among the functions for {OVERLAPPING}"));
            assert_eq!(function.hurry(), None, "{entry} of {stem}.cu");
        }
    }
}

#[test]
fn kernels_in_a_hurry_are_found() {
    let hurry = |code: &[&str]| {
        let lines: String = code.iter().zip(0..).map(|(code, i)| format!("/*{:04x}*/ {code} ; /* 0x0 */\n", 16 * i)).collect();
        functions(&format!("code for sm_90a\nFunction : f\n{lines}")).remove(0).hurry()
    };
    let good = ["LDC.64 R2, c[0x0][0x210]", "@P1 BRA 0x30", "SYNCS.EXCH.64 URZ, [UR8+0x30000], UR4", "PREEXIT", "ACQBULK", "LDG.E R4, desc[UR4][R2.64]", "EXIT"];
    assert_eq!(hurry(&good), None);
    let with = |at: usize, instruction: &'static str| {
        let mut code = good;
        code[at] = instruction;
        hurry(&code).unwrap_or_else(|| panic!("{instruction} was not found"))
    };
    assert!(with(4, "NOP").contains("no ACQBULK"));
    assert!(with(4, "@P0 ACQBULK").contains("under a condition"));
    assert!(with(3, "NOP").contains("no PREEXIT"));
    assert!(with(2, "@!P0 EXIT").contains("EXIT"));
    assert!(with(2, "LDG.E.CONSTANT R4, desc[UR4][R2.64]").contains("LDG.E.CONSTANT R4"));
    assert!(with(2, "UTMALDG.4D [UR8], [UR6], desc[UR10]").contains("UTMALDG"));
    assert!(with(1, "@P1 BRA 0x50").contains("BRA"));
    assert!(with(1, "@P1 BRA `(.L_x_1)").contains("BRA"));
    assert!(with(5, "LDG.E.CONSTANT R4, desc[UR4][R2.64]").contains("read-only"));
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
    let seen: Vec<_> = f.instructions.iter().map(|i| (i.address, i.predicate.as_deref(), i.name.as_str(), i.operands.as_str())).collect();
    assert_eq!(seen, [(0, None, "LDG.E.128.CONSTANT", "R1, [R2]"), (0x10, Some("@!P0"), "STG.E", "R1, [R2]"), (0x20, None, "EXIT", "")]);
    assert!(f.holds(LOAD) && !f.holds(STORE) && f.holds(&["STG"]) && !f.holds(&["ST"]));
}
