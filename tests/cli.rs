//! The program itself, in a temporary folder: what it writes, how it resumes, and how it refuses bad input. Bad input
//! is one line on standard error that says what to do, and exit code 2.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use recant::io::npz::{self, Array, Arrays, Values};

/// A folder of its own, removed when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let path = std::env::temp_dir().join(format!("recant-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        command(&self.0, args).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Asserts exit code 2 and one line that contains every one of `parts`.
    #[track_caller]
    fn refused(&self, args: &[&str], parts: &[&str]) {
        assert_refused(&self.run(args), args, parts);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recant"));
    command.args(args).current_dir(folder).stdin(Stdio::null());
    command
}

#[track_caller]
fn assert_refused(out: &Output, args: &[&str], parts: &[&str]) {
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{args:?}: {text}");
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("warning:")).collect();
    assert_eq!(lines.len(), 1, "{args:?}: not one line: {text}");
    for part in parts {
        assert!(lines[0].contains(part), "{args:?}: {part:?} is missing in: {}", lines[0]);
    }
}

/// The options of a network that trains in milliseconds; odd widths, which no vector register divides.
const SMALL: [&str; 8] = ["--size", "8", "--latent", "8", "--mapping-layers", "2", "--channels", "4:7,8:5"];

fn with<'a>(first: &[&'a str], second: &[&'a str]) -> Vec<&'a str> {
    [first, second].concat()
}

/// 64 images of 8×8 in two classes, bright and dark, as `images.npz`.
fn write_images(folder: &Folder) {
    let images: Vec<u8> = (0..64 * 64).map(|i| if i / 64 % 2 == 0 { 200 + (i % 50) as u8 } else { (i % 50) as u8 }).collect();
    let labels = (0..64).map(|i| i % 2).collect();
    let arrays = Arrays::from([
        ("images".to_string(), Array::new(&[64, 8, 8], Values::U8(images))),
        ("labels".to_string(), Array::new(&[64], Values::I64(labels))),
    ]);
    npz::write(folder.path("images.npz"), &arrays).unwrap();
}

fn train_args<'a>(out: &'a str, iterations: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = ["train", "--data", "npz:images.npz", "--batch", "4", "--out", out, "--iterations", iterations];
    with(&with(&common, &SMALL), more)
}

/// A folder with data and a trained model `run/model.safetensors`.
fn trained() -> Folder {
    let folder = Folder::new();
    write_images(&folder);
    folder.ok(&train_args("run", "4", &[]));
    folder
}

fn marks(folder: &Folder, indices: impl Iterator<Item = usize>) {
    let text: Vec<String> = indices.map(|i| i.to_string()).collect();
    std::fs::write(folder.path("marks.txt"), text.join("\n")).unwrap();
}

const FEEDBACK: [&str; 9] = ["feedback", "--model", "run/model.safetensors", "--marks", "marks.txt", "--n", "40", "--out", "feedback.npz"];
const ADAPT: [&str; 11] = [
    "adapt", "--model", "run/model.safetensors", "--feedback", "feedback.npz", "--out", "adapted", "--batch", "4", "--iterations", "3",
];
const UNLEARN: [&str; 13] = [
    "unlearn", "--model", "run/model.safetensors", "--feedback", "feedback.npz", "--adapted", "adapted", "--out", "unlearned", "--batch", "4", "--iterations", "3",
];

/// The same with feedback and two adapted models.
fn adapted() -> Folder {
    let folder = trained();
    marks(&folder, 0..10);
    folder.ok(&FEEDBACK);
    folder.ok(&with(&ADAPT, &["--models", "2", "--fisher-samples", "4"]));
    folder
}

#[test]
fn the_method_from_images_to_an_unlearned_model() {
    let folder = adapted();
    let last = |text: String| serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap();
    let summary = last(folder.ok(&with(&UNLEARN, &["--json"])));
    assert_eq!(summary["iterations"], 3);
    assert!(folder.path("unlearned/unlearned.safetensors").exists());
    assert!(folder.path("unlearned/config.json").exists());
    let metrics = std::fs::read_to_string(folder.path("unlearned/metrics.jsonl")).unwrap();
    assert!(metrics.lines().count() >= 1 && metrics.contains("\"regulariser\""), "{metrics}");
    for repulsion in ["nl2", "il2", "none"] {
        let args = UNLEARN.map(|a| if a == "unlearned" { repulsion } else { a });
        folder.ok(&with(&args, &["--repulsion", repulsion]));
    }
    // A loss by its pull says so, and writes the numbers that it comes to.
    for loss in ["el2", "nl2", "il2"] {
        let run = format!("pull-{loss}");
        let args = UNLEARN.map(|a| if a == "unlearned" { run.as_str() } else { a });
        let said = folder.ok(&with(&args, &["--repulsion", loss, "--pull", "1e-3"]));
        assert!(said.contains("pulls by 1.00e-3"), "{said}");
    }
    for method in ["ewc", "l1", "cf-k", "eu-k"] {
        let args = UNLEARN.map(|a| if a == "unlearned" { method } else { a });
        folder.ok(&with(&args, &["--method", method]));
    }
    // What CF-k froze has not moved, what it trained has; EU-k starts the latter anew.
    let tensors = |run: &str| recant::io::safetensors::read(folder.path(run).join("model.safetensors")).unwrap().tensors;
    let (original, cfk, euk) = (tensors("run"), tensors("cf-k"), tensors("eu-k"));
    // Stages start from the EMA.
    let moved = |to: &std::collections::BTreeMap<String, recant::tensor::Tensor>, name: &str| {
        let (a, b) = (original[&format!("g_ema.{name}")].to_f64_vec(), to[&format!("g.{name}")].to_f64_vec());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    for frozen in ["style.1.weight", "input.input", "conv1.conv.weight", "convs.0.conv.weight", "to_rgb1.bias"] {
        assert_eq!((moved(&cfk, frozen), moved(&euk, frozen)), (0.0, 0.0), "{frozen}");
    }
    assert!(moved(&cfk, "convs.1.conv.weight") > 0.0 && moved(&cfk, "to_rgbs.0.bias") > 0.0);
    // The largest difference of hundreds of pairs from N(0, 1).
    let (few, many) = (moved(&cfk, "convs.1.conv.weight"), moved(&euk, "convs.1.conv.weight"));
    assert!(many > 2.0 && many > 2.0 * few, "new initial values are far away: {few} and {many}");
    folder.refused(&with(&UNLEARN.map(|a| if a == "unlearned" { "x" } else { a }), &["--method", "cf-k", "--trained", "layers:9"]), &["--trained", "1 to 3"]);
    folder.refused(&with(&UNLEARN.map(|a| if a == "unlearned" { "x" } else { a }), &["--method", "l1", "--l1", "-1"]), &["--l1"]);
    folder.ok(&["extrapolate", "--model", "run/model.safetensors", "--adapted", "adapted", "--out", "extrapolated", "--gamma", "0,1"]);
    assert!(folder.path("extrapolated/extrapolated.png").exists());
    folder.ok(&["sample", "--model", "unlearned/unlearned.safetensors", "--n", "5", "--out", "samples.png"]);
}

/// The stem of an Inception with random weights, as `stem.safetensors`: enough for block 64.
fn write_stem(folder: &Folder) {
    let mut r = recant::ops::random::Random::new(6, 0);
    let mut tensors = std::collections::BTreeMap::new();
    for (name, shape) in [("Conv2d_1a_3x3", [32, 3, 3, 3]), ("Conv2d_2a_3x3", [32, 32, 3, 3]), ("Conv2d_2b_3x3", [64, 32, 3, 3])] {
        let scale = (2.0 / (shape[1] * 9) as f32).sqrt();
        let weight: Vec<f32> = r.normal(&shape).as_slice::<f32>().iter().map(|v| v * scale).collect();
        tensors.insert(format!("{name}.conv.weight"), recant::tensor::Tensor::from_vec(&shape, weight));
        tensors.insert(format!("{name}.conv.bias"), r.normal(&shape[..1]));
    }
    recant::io::safetensors::write(folder.path("stem.safetensors"), &tensors, &Default::default()).unwrap();
}

fn json(text: String) -> serde_json::Value {
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

const STEM: [&str; 2] = ["--inception", "stem.safetensors"];

/// The same images as npz, folder and IDX file are one set; statistics are kept beside them and used while they fit.
#[test]
fn fid_of_every_kind_of_set() {
    let folder = trained();
    write_stem(&folder);
    let images = npz::read(folder.path("images.npz")).unwrap().remove("images").unwrap();
    let Values::U8(pixels) = images.values else { panic!("bytes") };
    std::fs::create_dir(folder.path("pictures")).unwrap();
    for (i, image) in pixels.chunks_exact(64).take(6).enumerate() {
        let rgb = image.iter().flat_map(|v| [*v; 3]).collect();
        let picture = recant::io::image::Picture { height: 8, width: 8, pixels: rgb };
        recant::io::image::write_png(folder.path(&format!("pictures/{i}.png")), &picture).unwrap();
    }
    let idx = [&[0, 0, 8, 3, 0, 0, 0, 64, 0, 0, 0, 8, 0, 0, 0, 8][..], &pixels].concat();
    std::fs::write(folder.path("digits-idx3-ubyte"), idx).unwrap();

    let fid = |a: &str, b: &str, more: &[&str]| folder.ok(&with(&with(&["fid", a, b, "--first", "6", "--n", "6", "--json"], &STEM), more));
    for other in ["pictures", "digits-idx3-ubyte", "folder:pictures"] {
        let found = json(fid("images.npz", other, &[]));
        assert!(found["distance"].as_f64().unwrap() < 1e-6, "{other}: {found}");
        assert_eq!((&found["name"], &found["images"]), (&serde_json::json!("FID-64"), &serde_json::json!([6, 6])));
    }
    let line = fid("images.npz", "run/model.safetensors", &[]);
    assert!(line.starts_with("FID-64 ") && line.contains("(images of 8 px, pytorch-fid, bilinear without antialiasing to 299 px, input v/127.5 - 1, block 64, images 6 and 6)"), "{line}");
    assert!(json(line)["distance"].as_f64().unwrap() > 1e-3);
    let clean = json(fid("images.npz", "pictures", &["--preparation", "clean-fid"]));
    assert!(clean["protocol"].as_str().unwrap().contains("clean-fid"));

    // One file for each protocol, and a changed set is taken again.
    let kept = |place: &str| std::fs::read_dir(folder.path(place)).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("recant-fid")).count();
    assert_eq!((kept("pictures"), kept(".")), (2, 4));
    let said = |args: &[&str]| String::from_utf8(folder.run(args).stderr).unwrap();
    let again = with(&["fid", "images.npz", "pictures", "--first", "6"], &STEM);
    assert!(said(&again).contains("as kept in"), "{}", said(&again));
    std::fs::remove_file(folder.path("pictures/5.png")).unwrap();
    assert!(said(&again).contains("pictures has changed since"));
    let fresh = with(&again, &["--no-cache"]);
    assert!(!said(&fresh).contains("kept"), "{}", said(&fresh));

    // Statistics as pytorch-fid has them, both ways.
    folder.ok(&with(&["fid", "pictures", "--save", "stats.npz"], &STEM));
    assert!(json(fid("stats.npz", "pictures", &[]))["distance"].as_f64().unwrap() < 1e-6);
    let mut arrays = npz::read(folder.path("stats.npz")).unwrap();
    assert_eq!((&arrays["mu"].shape[..], &arrays["sigma"].shape[..]), (&[64][..], &[64, 64][..]));
    arrays.retain(|name, _| name == "mu" || name == "sigma");
    npz::write(folder.path("plain.npz"), &arrays).unwrap();
    let line = folder.ok(&["fid", "plain.npz", "plain.npz"]);
    assert!(line.contains("FID-64 0.0000 (prepared as the files of statistics do not say, block 64, images unknown and unknown)"), "{line}");
}

#[test]
fn fid_refuses_what_cannot_be_compared() {
    let folder = trained();
    write_stem(&folder);
    let fid = |args: &[&str], parts: &[&str]| folder.refused(&with(&["fid"], args), parts);
    fid(&["images.npz"], &["--save"]);
    fid(&["images.npz", "images.npz"], &["--inception", "pt_inception"]);
    fid(&["images.npz", "nothing.npz"], &["nothing.npz", "does not exist"]);
    fid(&["images.npz", "images.npz", "--first", "1"], &["--first", "at least 2"]);
    fid(&with(&["images.npz", "images.npz", "--dims", "2048"], &STEM), &["--dims", "ends at block 64"]);
    fid(&with(&["images.npz", "images.npz", "--dims", "100"], &STEM), &["--dims", "64, 192, 768, 2048"]);
    fid(&["images.npz", "images.npz", "--inception", "images.npz"], &["images.npz"]);
    std::fs::write(folder.path("text.txt"), "text").unwrap();
    fid(&with(&["images.npz", "text.txt"], &STEM), &["text.txt", "none of"]);
    folder.ok(&with(&["fid", "images.npz", "--first", "4", "--save", "a.npz"], &STEM));
    folder.ok(&with(&["fid", "images.npz", "--first", "4", "--save", "b.npz", "--preparation", "clean-fid"], &STEM));
    fid(&["a.npz", "b.npz"], &["different protocols"]);
    fid(&with(&["images.npz", "images.npz", "--without", "5"], &STEM), &["\"5\"", "0, 1"]);
}

/// `train --without` makes the reference, `evaluate` measures against it, and says what else changed.
#[test]
fn evaluation_with_fid_ret_fid_and_drift() {
    let folder = trained();
    write_stem(&folder);
    folder.ok(&train_args("retrained", "4", &["--without", "1"]));
    // A LeNet of two classes that has not learned anything sees both classes in noise, or one of them only.
    let classifier = ["classifier", "train", "--data", "npz:images.npz", "--epochs", "1", "--batch", "8", "--out", "lenet.safetensors"];
    folder.ok(&classifier);
    let common = ["evaluate", "--model", "run/model.safetensors", "--unlearned", "retrained/model.safetensors", "--classifier", "lenet.safetensors", "--n", "20", "--json"];
    let names = ["0", "1"];
    let made = |class: &str| folder.run(&with(&common, &["--class", class])).status.success();
    let class = names.into_iter().find(|c| made(c)).expect("the model makes images of one class at least");
    let full = ["--class", class, "--real", "npz:images.npz", "--retrained", "retrained/model.safetensors", "--inception", "stem.safetensors"];
    let text = folder.ok(&with(&common, &full));
    assert!(text.contains("Ret: unlearned to the retrained model: FID-64 0.0000 (images of 8 px"), "{text}");
    let found = json(text);
    assert_eq!(found["fid"]["after"]["images"], serde_json::json!([20, 32]));
    assert!(found["fid"]["before"]["distance"].as_f64().unwrap() > 0.0);
    let drift = found["drift"].as_array().unwrap();
    let total = |key: &str| drift.iter().map(|d| d[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((drift.len(), total("before"), total("after"), total("retrained")), (2, 20, 20, 20));
    folder.refused(&with(&common, &["--class", class, "--retrained", "run/model.safetensors"]), &["--inception"]);
    folder.refused(&with(&common, &["--class", class, "--real", "images.npz"]), &["images.npz", "npz:"]);
}

/// A table of the paper on the embedded model, as short as it can be: every row, the paper's figures beside, figures,
/// and a second call that takes everything from the folder.
#[test]
fn a_table_of_the_paper_and_its_resumption() {
    let folder = Folder::new();
    let short = ["--feedback", "60", "--models", "1", "--adapt-iterations", "2", "--iterations", "2", "--samples", "60", "--fid-images", "4", "--runs", "2", "--json"];
    let common = with(&["reproduce", "mnist", "--classes", "1", "--out", "table"], &short);
    let first = json(folder.ok(&common));
    let outcomes = first["outcomes"].as_array().unwrap();
    // The original and ten methods, twice; no reference was given for the eleventh.
    assert_eq!(outcomes.len(), 22);
    assert!(outcomes.iter().all(|o| o["pul"].is_number() && o["frechet"].is_number() && o["fid"].is_null()));
    let table = std::fs::read_to_string(folder.path("table/table.md")).unwrap();
    for part in ["| AtU EL2 | ", " 99.32 ± 0.43 |", "| Retraining | - | 98.80 ± 0.09 |", "| CF-k |", "| CDC | not run here | 90.70 ± 0.16 |", "few-shot adaptation to the positives", "official code", "this call", "| 9 |"] {
        assert!(table.contains(part), "{part:?} is missing in {table}");
    }
    for file in ["1/run_0/methods.png", "1/run_0/gamma.png", "1/run_1/el2.safetensors", "1/run_1/el2.json", "config.json", "metrics.jsonl"] {
        assert!(folder.path("table").join(file).exists(), "{file}");
    }
    folder.refused(&common, &["table", "--resume"]);
    let trained = std::fs::metadata(folder.path("table/1/run_1/el2.safetensors")).unwrap().modified().unwrap();
    std::fs::remove_file(folder.path("table/1/run_1/el2.json")).unwrap();
    let second = json(folder.ok(&with(&common, &["--resume"])));
    assert_eq!(second["outcomes"], first["outcomes"]);
    assert_eq!(std::fs::metadata(folder.path("table/1/run_1/el2.safetensors")).unwrap().modified().unwrap(), trained, "not trained again");

    // A reference and Inception's weights that come later complete what is there, in the first run.
    write_stem(&folder);
    let later = ["--resume", "--methods", "el2", "--retrained", "1=table/1/run_1/el2.safetensors"];
    let third = json(folder.ok(&with(&with(&common, &later), &STEM)));
    for outcome in third["outcomes"].as_array().unwrap() {
        let before = outcomes.iter().find(|o| ["run", "method"].iter().all(|key| o[key] == outcome[key])).unwrap();
        assert_eq!((&outcome["pul"], &outcome["histogram"]), (&before["pul"], &before["histogram"]));
        assert_eq!(outcome["ret_fid"].is_number(), outcome["run"] == 0 && !outcome["method"].is_null(), "{outcome}");
    }

    folder.refused(&["reproduce", "afhq", "--out", "x"], &["--classifier"]);
    assert!(!folder.path("x").exists(), "nothing is begun without a judge");
    folder.refused(&["reproduce", "mnist", "--scale", "paper", "--out", "w"], &["--data", "pre-train"]);
    folder.refused(&["reproduce", "mnist", "--classes", "12", "--out", "y"], &["12", "0, 1, 2"]);
    folder.refused(&["reproduce", "mnist", "--runs", "0", "--out", "z"], &["--runs"]);
    folder.refused(&["reproduce", "mnist", "--retrained", "1=absent.safetensors", "--out", "z"], &["absent.safetensors"]);
    folder.refused(&["reproduce", "mnist", "--retrained", "eleven=table/1/run_1/el2.safetensors", "--out", "z"], &["eleven"]);
    folder.refused(&["reproduce", "mnist", "--retrained", "table/1/run_1/el2.safetensors", "--out", "z"], &["CLASS=FILE"]);
    let reference = "1=table/1/run_1/el2.safetensors";
    folder.refused(&["reproduce", "mnist", "--retrained", reference, "--retrained", reference, "--out", "z"], &["--retrained", "two files for 1"]);
    folder.refused(&["reproduce", "mnist", "--real-images", "1", "--out", "z"], &["--real-images"]);
    folder.refused(&["reproduce", "mnist", "--r1", "-1", "--out", "z"], &["--r1"]);
    folder.refused(&["reproduce", "mnist", "--data", "nothing", "--out", "z"], &["nothing", "mnist:DIR"]);
    assert!(!folder.path("z").exists());
}

/// Retraining alone needs neither feedback nor adapted models, and is trained here.
#[test]
fn a_retrained_reference() {
    let folder = Folder::new();
    write_images(&folder);
    let table = ["reproduce", "mnist", "--data", "npz:images.npz", "--classes", "1", "--methods", "retraining", "--out", "table", "--json"];
    let found = json(folder.ok(&with(&table, &["--retrain-iterations", "2", "--samples", "60", "--runs", "1"])));
    let methods: Vec<&serde_json::Value> = found["outcomes"].as_array().unwrap().iter().map(|o| &o["method"]).collect();
    assert_eq!(methods, [&serde_json::Value::Null, &"retraining".into()]);
    assert!(folder.path("table/retrained_1.safetensors").exists() && !folder.path("table/1/run_0/adapted_0.safetensors").exists());
    folder.refused(&["reproduce", "mnist", "--classes", "1,1", "--out", "x"], &["--classes", "twice"]);
}

#[test]
fn a_sweep_over_strengths_and_its_choice() {
    let folder = Folder::new();
    let sweep = ["reproduce", "sweep", "--class", "1", "--pulls", "1e-4,1e-2", "--alphas", "1", "--out", "sweep", "--json"];
    let short = ["--feedback", "60", "--adapt-iterations", "2", "--iterations", "3", "--samples", "60"];
    let found = json(folder.ok(&with(&sweep, &short)));
    let trials = found["trials"].as_array().unwrap();
    let of = |loss: &str| trials.iter().filter(|t| t["loss"] == loss).count();
    assert_eq!((of("none"), of("NL2")), (1, 2), "{found}");
    let svg = std::fs::read_to_string(folder.path("sweep/sweep.svg")).unwrap();
    assert!(svg.contains("EL2, α 1/D₀") && svg.contains("IL2"));
    assert!(std::fs::read_to_string(folder.path("sweep/sweep.txt")).unwrap().contains("positives only"));
    // Another pull takes what is there from the folder.
    let model = folder.path("sweep/el2_1e-4_1.safetensors");
    let written = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let before = written(&model);
    let more = sweep.map(|a| if a == "1e-4,1e-2" { "1e-4,1e-2,1e-3" } else { a });
    let found = json(folder.ok(&with(&with(&more, &short), &["--resume"])));
    assert_eq!(found["trials"].as_array().unwrap().iter().filter(|t| t["loss"] == "IL2").count(), 3, "{found}");
    assert_eq!(written(&model), before);
    folder.refused(&["reproduce", "sweep", "--pulls", "1e-4,-1", "--out", "x"], &["--pulls", "positive"]);
}

/// Classifiers by every way in: trained with a tenth held out, on attributes, declared of a PyTorch file.
#[test]
fn classifiers_train_on_classes_and_attributes() {
    let folder = Folder::new();
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    for i in 0..20 {
        let (kind, value) = if i % 2 == 0 { ("dark", 30) } else { ("light", 200) };
        let pixels = (0..40 * 40 * 3).map(|p| value + ((p * 7 + i * 13) % 40) as u8).collect();
        let picture = recant::io::image::Picture { height: 40, width: 40, pixels };
        std::fs::create_dir_all(folder.path(&format!("classes/{kind}"))).unwrap();
        std::fs::create_dir_all(folder.path("faces")).unwrap();
        recant::io::image::write_png(folder.path(&format!("classes/{kind}/{i:02}.png")), &picture).unwrap();
        recant::io::image::write_png(folder.path(&format!("faces/{i:02}.png")), &picture).unwrap();
        let values: Vec<&str> = (0..40).map(|a| if a == 0 && i % 2 == 1 { "1" } else { "-1" }).collect();
        rows.push(format!("{i:02}.png {}", values.join(" ")));
    }
    (0..40).for_each(|a| names.push(format!("A{a}")));
    std::fs::write(folder.path("faces/list_attr_celeba.txt"), format!("20\n{}\n{}\n", names.join(" "), rows.join("\n"))).unwrap();

    let train = |data: &str, out: &str, more: &[&str]| {
        let common = ["classifier", "train", "--data", data, "--out", out, "--size", "32", "--batch", "6", "--json"];
        json(folder.ok(&with(&common, more)))
    };
    let found = train("folder:classes", "net.safetensors", &["--network", "resnet18", "--epochs", "12", "--hold-out", "--flip", "--shift", "2"]);
    assert_eq!((&found["images"], &found["accuracy"]), (&serde_json::json!(18), &serde_json::json!(1.0)));
    let eval = |classifier: &str, data: &str, more: &[&str]| folder.ok(&with(&["classifier", "eval", "--classifier", classifier, "--data", data, "--json"], more));
    let held = json(eval("net.safetensors", "folder:classes", &["--part", "held-out"]));
    assert_eq!((&held["images"], &held["balanced_accuracy"]), (&serde_json::json!(2), &serde_json::json!(1.0)));

    train("folder:classes", "lenet.safetensors", &["--network", "lenet", "--epochs", "30", "--optimizer", "adam", "--schedule", "constant"]);
    assert_eq!(json(eval("lenet.safetensors", "folder:classes", &[]))["accuracy"], 1.0);
    train("celeba:faces", "faces.safetensors", &["--network", "resnet18", "--epochs", "12"]);
    let faces = json(eval("faces.safetensors", "celeba:faces", &[]));
    assert_eq!(faces["balanced"][0], 1.0, "{faces}");
    assert_eq!(faces["balanced"].as_array().unwrap().len(), 40);

    // Trained further: at another size, and without its head on other classes.
    let further = |data: &str, more: &[&str]| {
        let common = ["classifier", "train", "--from", "net.safetensors", "--data", data, "--out", "further.safetensors", "--batch", "6", "--json"];
        json(folder.ok(&with(&common, more)))
    };
    let found = further("folder:classes", &["--epochs", "1", "--size", "40", "--lr", "1e-5", "--weight-decay", "0.01", "--hold-out"]);
    assert_eq!((&found["images"], &found["accuracy"]), (&serde_json::json!(18), &serde_json::json!(1.0)));
    further("celeba:faces", &["--epochs", "1"]);
    assert_eq!(json(eval("further.safetensors", "celeba:faces", &[]))["balanced"].as_array().unwrap().len(), 40);
    let refused = |more: &[&str], words: &[&str]| {
        folder.refused(&with(&["classifier", "train", "--data", "folder:classes", "--from", "net.safetensors", "--out", "x"], more), words)
    };
    refused(&["--network", "lenet"], &["--from", "--network"]);
    refused(&["--weight-decay", "-1"], &["--weight-decay"]);
    refused(&["--ema-decay", "1"], &["--ema-decay"]);

    // The same network, its declaration lost and given back.
    let content = recant::io::safetensors::read(folder.path("net.safetensors")).unwrap();
    recant::io::safetensors::write(folder.path("bare.safetensors"), &content.tensors, &Default::default()).unwrap();
    folder.refused(&["classifier", "eval", "--classifier", "bare.safetensors", "--data", "folder:classes"], &["bare.safetensors", "classifier declare"]);
    let declare = ["classifier", "declare", "bare.safetensors", "--network", "resnet18", "--size", "32", "--out", "declared.safetensors", "--pixels", "imagenet"];
    folder.ok(&with(&declare, &["--classes", "dark,light"]));
    assert_eq!(json(eval("declared.safetensors", "folder:classes", &[]))["accuracy"], 1.0);
    folder.refused(&with(&declare, &["--classes", "a,b,c"]), &["bare.safetensors", "fc.weight"]);
    // Or its body alone, under a head of its own.
    let over = ["classifier", "train", "--data", "folder:classes", "--from", "bare.safetensors", "--size", "32", "--epochs", "1", "--out", "over.safetensors"];
    folder.refused(&over, &["--from", "--network"]);
    folder.refused(&with(&over, &["--network", "resnet50"]), &["--from", "layer1.0.conv3.weight"]);
    assert!(folder.ok(&with(&over, &["--network", "resnet18", "--lr", "1e-9"])).contains("the head starts anew"));
    let kept = recant::io::safetensors::read(folder.path("over.safetensors")).unwrap().tensors;
    let apart = |name: &str| kept[name].to_f64_vec().iter().zip(content.tensors[name].to_f64_vec()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart("conv1.weight") < 1e-6 && apart("fc.weight") > 1e-3);

    folder.refused(&["classifier", "train", "--data", "folder:faces", "--out", "x"], &["--data", "no labels"]);
    folder.refused(&["classifier", "train", "--data", "folder:classes", "--network", "vgg", "--out", "x"], &["--network", "resnext50_32x4d"]);
    folder.refused(&["classifier", "train", "--data", "folder:classes", "--network", "resnet18", "--size", "16", "--out", "x"], &["at least 32 px"]);
    folder.refused(&["classifier", "train", "--data", "folder:classes", "--network", "resnet18", "--size", "0x4", "--out", "x"], &["--size"]);
    folder.refused(&["classifier", "train", "--data", "folder:classes", "--lr", "-1", "--out", "x"], &["--lr"]);
    folder.refused(&["classifier", "eval", "--classifier", "net.safetensors", "--data", "celeba:classes"], &["classes", "list_attr_celeba.txt"]);
}

#[test]
fn samples_are_reproducible_and_files_go_both_ways() {
    let folder = trained();
    let sample = |model: &str, out: &str| folder.ok(&["sample", "--model", model, "--n", "3", "--noise", "buffers", "--truncation", "0.7", "--out", out]);
    sample("run/model.safetensors", "a.npz");
    folder.ok(&["convert", "run/model.safetensors", "model.pt"]);
    folder.ok(&["convert", "model.pt", "again.safetensors"]);
    sample("model.pt", "b.npz");
    sample("again.safetensors", "c.npz");
    let images = |name: &str| npz::read(folder.path(name)).unwrap()["images"].clone();
    assert_eq!(images("a.npz").shape, [3, 3, 8, 8]);
    assert_eq!(images("a.npz"), images("b.npz"));
    assert_eq!(images("a.npz"), images("c.npz"));
}

/// Continuing gives the same bits as not stopping, and so does any number of threads.
#[test]
fn resuming_and_threads_change_no_bit() {
    let folder = Folder::new();
    write_images(&folder);
    folder.ok(&train_args("whole", "20", &["--threads", "3"]));
    folder.ok(&train_args("parts", "9", &["--threads", "1"]));
    folder.ok(&train_args("parts", "20", &["--resume", "--threads", "2"]));
    let bytes = |run: &str| std::fs::read(folder.path(run).join("model.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("parts"), "the resumed run differs");
}

/// Two processes, as torchrun starts them: the first one writes, and the run is that of one alone up to rounding.
#[test]
fn two_processes_train_one_model() {
    let folder = Folder::new();
    write_images(&folder);
    let args = |out| train_args(out, "3", &["--device", "cpu"]).into_iter().map(|a| if a == "4" { "8" } else { a }).collect::<Vec<_>>();
    let address = recant::io::meeting::free_address();
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let of_rank = |args: &[&str], rank: usize, port: u16| {
        let mut command = command(&folder.0, args);
        command.envs([("WORLD_SIZE", "2"), ("RANK", ["0", "1"][rank]), ("MASTER_ADDR", "127.0.0.1")]).env("MASTER_PORT", (port - 1).to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [1, 0].map(|rank| of_rank(&args("both"), rank, port));
    for child in both {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    folder.ok(&args("alone"));
    let last = |run: &str| -> serde_json::Value { serde_json::from_str(std::fs::read_to_string(folder.path(run).join("metrics.jsonl")).unwrap().lines().last().unwrap()).unwrap() };
    let (alone, both) = (last("alone"), last("both"));
    for loss in ["d", "g"] {
        let [a, b] = [&alone, &both].map(|l| l[loss].as_f64().unwrap_or_else(|| panic!("{l}")));
        assert!((a - b).abs() < 1e-3, "{loss}: {a} alone, {b} together");
    }
    let torn = train_args("torn", "3", &["--device", "cpu"]);
    let child = [1, 0].map(|rank| of_rank(&torn, rank, port));
    for child in child {
        assert_refused(&child.wait_with_output().unwrap(), &torn, &["--batch", "multiple of 8"]);
    }
    let mut lost = command(&folder.0, &torn);
    assert_refused(&lost.env("WORLD_SIZE", "2").output().unwrap(), &torn, &["RANK", "torchrun"]);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_a_state_to_continue() {
    let folder = Folder::new();
    write_images(&folder);
    let args = train_args("run", "1000000", &[]);
    let child = command(&folder.0, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first line on standard output comes when training starts; a metrics line, when an iteration is done.
    while !std::fs::read_to_string(folder.path("run/metrics.jsonl")).is_ok_and(|t| t.lines().count() > 1) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_refused(&child.wait_with_output().unwrap(), &args, &["interrupted", "--resume", "model.safetensors"]);
    folder.ok(&["sample", "--model", "run/model.safetensors", "--n", "1", "--out", "a.png"]);
}

#[test]
fn a_run_is_not_overwritten() {
    let folder = trained();
    folder.refused(&train_args("run", "8", &[]), &["run", "--resume"]);
    folder.refused(&train_args("other", "8", &["--resume"]), &["other", "no run to resume"]);
    folder.refused(&train_args("run", "8", &["--resume", "--lr", "0.1"]), &["--resume", "hyper.lr = 0.002, now it is 0.1"]);
    folder.refused(&train_args("run", "8", &["--resume", "--device", "cpu", "--precision", "bf16"]), &["--resume", "precision = \"f32\", now it is \"bf16\""]);
    // Older programs did not say the precision: such a run goes on in f32.
    let config = folder.path("run/config.json");
    let mut older: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    assert!(older.as_object_mut().unwrap().remove("precision").is_some());
    std::fs::write(&config, older.to_string()).unwrap();
    folder.refused(&train_args("run", "8", &["--resume", "--device", "cpu", "--precision", "bf16"]), &["--resume", "precision"]);
    folder.ok(&train_args("run", "5", &["--resume"]));
    // Nor are models that no run has left here.
    std::fs::create_dir(folder.path("models")).unwrap();
    std::fs::copy(folder.path("run/model.safetensors"), folder.path("models/model.safetensors")).unwrap();
    folder.refused(&train_args("models", "8", &[]), &["models", "another --out"]);
    // A run that was refused leaves a folder that can be used.
    marks(&folder, 0..10);
    folder.ok(&FEEDBACK);
    folder.refused(&with(&ADAPT, &["--models", "1", "--fisher-samples", "5"]), &["--fisher-samples"]);
    folder.ok(&with(&ADAPT, &["--models", "1", "--fisher-samples", "4"]));
    // A result never replaces what the same call reads.
    folder.refused(&["convert", "run/model.safetensors", "run/model.safetensors"], &["another file"]);
}

#[test]
fn wrong_files() {
    let folder = trained();
    std::fs::write(folder.path("text.pt"), "not a model").unwrap();
    folder.refused(&["sample", "--model", "text.pt", "--out", "a.png"], &["text.pt"]);
    folder.refused(&["sample", "--model", "nothing.safetensors", "--out", "a.png"], &["nothing.safetensors", "does not exist"]);
    std::fs::write(folder.path("train-images-idx3-ubyte"), [0, 0, 9, 9, 0, 0, 0, 1]).unwrap();
    std::fs::write(folder.path("train-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 0]).unwrap();
    folder.refused(&with(&["train", "--data", "mnist:.", "--out", "x"], &SMALL), &["train-images-idx3-ubyte"]);
    let bytes = std::fs::read(folder.path("run/model.safetensors")).unwrap();
    std::fs::write(folder.path("short.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    folder.refused(&["sample", "--model", "short.safetensors", "--out", "a.png"], &["short.safetensors", "cut short"]);
}

#[test]
fn wrong_shapes_and_sizes() {
    let folder = adapted();
    npz::write_npy(folder.path("z.npy"), &Array::new(&[2, 3], Values::F32(vec![0.0; 6]))).unwrap();
    folder.refused(&["sample", "--model", "run/model.safetensors", "--latents", "z.npy", "--out", "a.png"], &["z.npy", "[n, 8]"]);
    folder.ok(&with(&["train", "--data", "npz:images.npz", "--batch", "4", "--out", "wide", "--iterations", "1"], &["--size", "8", "--latent", "8", "--mapping-layers", "2", "--channels", "4:8,8:8"]));
    let other = ["unlearn", "--model", "wide/model.safetensors", "--feedback", "feedback.npz", "--adapted", "adapted", "--out", "x", "--batch", "4"];
    folder.refused(&other, &["adapted_0.safetensors", "parameters"]);
    folder.refused(&["train", "--data", "npz:images.npz", "--size", "12", "--out", "x"], &["--size", "power of two"]);
    folder.refused(&["train", "--data", "npz:images.npz", "--size", "8", "--channels", "4:8", "--out", "x"], &["--channels"]);
    folder.refused(&train_args("x", "1", &[]).iter().map(|a| if *a == "4" { "6" } else { a }).collect::<Vec<_>>(), &["--batch", "multiple of 4"]);
}

#[test]
fn classes_folders_and_marks() {
    let folder = trained();
    folder.refused(&["demo", "--class", "cat"], &["--class", "cat", "0, 1, 2"]);
    folder.refused(&train_args("x", "1", &["--without", "7"]), &["7"]);
    std::fs::create_dir(folder.path("empty")).unwrap();
    folder.refused(&with(&["train", "--data", "folder:empty", "--out", "x"], &SMALL), &["empty"]);
    folder.refused(&with(&["train", "--data", "images.npz", "--out", "x"], &SMALL), &["images.npz", "npz:"]);
    marks(&folder, std::iter::empty());
    folder.refused(&FEEDBACK, &["none of 40", "--n"]);
    marks(&folder, 0..40);
    folder.refused(&FEEDBACK, &["all 40"]);
    marks(&folder, 39..41);
    folder.refused(&FEEDBACK, &["marks.txt", "line 2", "40"]);
    assert!(!folder.path("feedback.npz").exists(), "refused feedback is not written");
}

/// Samples are shown, a person copies some of them, and those are the negatives.
#[test]
fn marks_by_hand() {
    let folder = trained();
    let common = ["feedback", "--model", "run/model.safetensors", "--n", "6", "--seed", "3"];
    folder.ok(&with(&common, &["--show", "samples"]));
    std::fs::create_dir(folder.path("undesired")).unwrap();
    for name in ["00001.png", "00004.png"] {
        std::fs::copy(folder.path("samples").join(name), folder.path("undesired").join(name)).unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.path("samples")).unwrap().count(), 6);
    let marks = with(&common, &["--marks", "undesired", "--out", "feedback.npz"]);
    folder.ok(&marks);
    let feedback = npz::read(folder.path("feedback.npz")).unwrap();
    assert_eq!(feedback["negative"].to_tensor().to_f64_vec(), [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]);
    // What was shown is what is marked.
    let shown = recant::io::image::read(folder.path("samples/00004.png")).unwrap();
    let image: Vec<f64> = feedback["images"].to_tensor().to_f64_vec()[4 * 3 * 64..][..64].to_vec();
    let bytes: Vec<u8> = image.iter().map(|v| recant::io::image::to_byte(*v as f32)).collect();
    assert_eq!(shown.pixels.iter().step_by(3).copied().collect::<Vec<_>>(), bytes);
    std::fs::write(folder.path("undesired/notes.txt"), "").unwrap();
    folder.refused(&marks, &["undesired", "'notes'", "0 to 5"]);
    folder.refused(&common, &["--classifier", "--out"]);
    let out = with(&common, &["--marks", "undesired", "--out"]);
    folder.refused(&with(&out, &["feedback.txt"]), &["--out", ".npz"]);
    folder.refused(&with(&out, &["nowhere/feedback.npz"]), &["nowhere", "create it first"]);
}

/// Moments that are to be restored must be there.
#[test]
fn an_optimiser_is_not_made_up() {
    let folder = trained();
    marks(&folder, 0..10);
    folder.ok(&FEEDBACK);
    let mut bare = recant::io::safetensors::read(folder.path("run/model.safetensors")).unwrap();
    bare.metadata.remove("recant.training");
    recant::io::safetensors::write(&folder.path("bare.safetensors"), &bare.tensors, &bare.metadata).unwrap();
    let adapt = ADAPT.map(|a| if a == "run/model.safetensors" { "bare.safetensors" } else { a });
    let adapt = with(&adapt, &["--models", "1", "--fisher-samples", "4"]);
    folder.refused(&adapt, &["bare.safetensors", "--optimiser fresh"]);
    folder.ok(&with(&adapt, &["--optimiser", "fresh"]));
}

/// An adaptation that was interrupted is no adapted model.
#[cfg(unix)]
#[test]
fn unfinished_models_are_not_adapted_ones() {
    let folder = trained();
    marks(&folder, 0..10);
    folder.ok(&FEEDBACK);
    let args = ADAPT.map(|a| if a == "3" { "1000000" } else { a });
    let args = with(&args, &["--models", "3", "--fisher-samples", "4", "--threads", "1"]);
    let child = command(&folder.0, &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !std::fs::read_to_string(folder.path("adapted/metrics.jsonl")).is_ok_and(|t| t.lines().count() > 1) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_refused(&child.wait_with_output().unwrap(), &args, &["interrupted", "--resume", "unfinished_0.safetensors"]);
    // The others were not begun.
    let mut models: Vec<String> = std::fs::read_dir(folder.path("adapted")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    models.retain(|name| name.ends_with(".safetensors"));
    assert_eq!(models, ["unfinished_0.safetensors"]);
    folder.refused(&UNLEARN, &["adapted", "no adapted_*.safetensors"]);
}

#[test]
fn wrong_numbers() {
    let folder = adapted();
    for gamma in ["0", "-1", "nan"] {
        folder.refused(&with(&UNLEARN, &["--gamma", gamma]), &["--gamma", "positive"]);
        folder.refused(&["demo", "--gamma", gamma], &["--gamma", "positive"]);
    }
    folder.refused(&with(&UNLEARN, &["--alpha", "-0.5"]), &["--alpha"]);
    folder.refused(&with(&UNLEARN, &["--pull", "-1"]), &["--pull", "positive"]);
    folder.refused(&with(&UNLEARN, &["--pull", "1", "--gamma", "1"]), &["--pull", "--gamma"]);
    let adapt = ADAPT.map(|a| if a == "adapted" { "x" } else { a });
    folder.refused(&with(&adapt, &["--models", "0"]), &["--models", "k ≥ 1"]);
    folder.refused(&adapt.map(|a| if a == "3" { "0" } else { a }), &["--iterations", "at least 1"]);
    folder.refused(&with(&UNLEARN, &["--distance", "mean"]), &["--pull", "--gamma"]);
    folder.refused(&with(&UNLEARN, &["--alpha", "0"]), &["--alpha", "positive"]);
    folder.refused(&with(&adapt, &["--device", "cpu", "--gpus", "2"]), &["--gpus", "CPU"]);
    folder.refused(&["demo", "--models", "0"], &["--models", "k ≥ 1"]);
    folder.refused(&["demo", "--device", "cpu", "--streams", "2"], &["--streams", "CPU"]);
    folder.refused(&UNLEARN[..5].iter().copied().chain(["--out", "x"]).collect::<Vec<_>>(), &["--adapted", "--repulsion none"]);
    folder.refused(&with(&adapt, &["--lambda", "nan"]), &["--lambda"]);
    folder.refused(&["sample", "--model", "run/model.safetensors", "--out", "a.jpg"], &["--out", ".png"]);
    folder.refused(&["sample", "--model", "run/model.safetensors", "--out", "a.png", "--threads", "0"], &["--threads"]);
    folder.refused(&["sample", "--model", "run/model.safetensors", "--out", "a.png", "--device", "tpu"], &["--device", "tpu"]);
}

/// The two programs to run first on a new machine.
#[test]
fn doctor_and_bench_describe_the_machine() {
    let folder = Folder::new();
    let last = |text: String| serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap();
    let doctor = last(folder.ok(&["doctor", "--device", "cpu", "--json"]));
    assert!(doctor["machine"]["cpu"].is_string() && doctor["machine"]["threads"].as_u64() > Some(0), "{doctor}");
    assert_eq!((&doctor["device"], doctor["results"].as_array().map(Vec::len)), (&"cpu".into(), Some(0)));
    assert!(folder.ok(&["doctor", "--device", "cpu"]).contains("conv2d 3x3"), "what would run");
    let bench = ["bench", "--device", "cpu", "--what", "iterations,pipeline", "--widths", "demo", "--batch", "1", "--repeats", "1", "--json"];
    let results = last(folder.ok(&bench))["results"].clone();
    for number in results.as_array().unwrap() {
        assert!(number["name"].is_string() && number["value"].as_f64() > Some(0.0) && number["unit"].is_string(), "{number}");
    }
    // Five of the iteration, seven of the method's parts.
    assert_eq!(results.as_array().unwrap().len(), 5 + 7);
    folder.refused(&["bench", "--batch", "6"], &["--batch", "multiple of 4"]);
    let profile = json(folder.ok(&["bench", "--device", "cpu", "--profile", "--batch", "4", "--json"]));
    let ops = profile["profiles"][0]["ops"].as_array().unwrap();
    let convolution = ops.iter().find(|o| o["name"] == "conv2d_transpose").unwrap();
    assert!(convolution["gflops_per_second"].as_f64().unwrap() > 0.0 && convolution["share"].as_f64().unwrap() > 0.05, "{convolution}");
    folder.refused(&["bench", "--profile", "--what", "kernels"], &["--profile", "--what"]);
}

#[test]
fn a_gpu_that_is_not_there() {
    if Path::new("/dev/nvidiactl").exists() {
        eprintln!("a_gpu_that_is_not_there: not run, this machine has one");
        return;
    }
    let folder = trained();
    let on_gpu: [&[&str]; 4] = [
        &["sample", "--model", "run/model.safetensors", "--out", "a.png", "--device", "cuda"],
        &["demo", "--device", "cuda:0"],
        &with(&train_args("other", "1", &[]), &["--device", "cuda"]),
        &with(&FEEDBACK, &["--device", "cuda:7"]),
    ];
    for args in on_gpu {
        // Built with nvcc or without: the remedy differs, both name the other device.
        folder.refused(args, &["no CUDA device", "--device cpu"]);
    }
    folder.refused(&["reproduce", "gaussians", "--out", "toy", "--device", "cuda"], &["gaussians", "--device cpu"]);
    // `auto` finds the CPU.
    folder.ok(&["sample", "--model", "run/model.safetensors", "--n", "1", "--out", "a.png", "--device", "auto"]);
}

/// Runs commands on the emulated GPU, the program being as it is built and the stand-in driver in the place of libcuda.so,
/// and gives their summaries; none where the program holds no kernels.
#[cfg(target_os = "linux")]
fn on_gpu<'a>(folder: &'a Folder, test: &str) -> Option<impl Fn(&[&str]) -> serde_json::Value + 'a> {
    if recant::device::cuda::embedded::FATBINS.is_empty() {
        eprintln!("{test}: not run, this program was built without nvcc and holds no kernels");
        return None;
    }
    Some(|args: &[&str]| {
        let mut command = command(&folder.0, &with(args, &["--device", "cuda", "--json"]));
        if cuda_on_cpu::is_emulated() {
            command.env("LD_PRELOAD", cuda_on_cpu::driver_library());
        }
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&out.stderr));
        let summary: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(summary["device"], "cuda:0", "{args:?}");
        summary
    })
}

/// The method's own commands.
#[cfg(target_os = "linux")]
#[test]
fn the_method_on_a_gpu() {
    let folder = trained();
    let Some(on_gpu) = on_gpu(&folder, "the_method_on_a_gpu") else { return };
    marks(&folder, 0..10);
    on_gpu(&FEEDBACK);
    on_gpu(&with(&ADAPT, &["--models", "2", "--fisher-samples", "4"]));
    // Side by side on one GPU, the models are the same.
    let together = ADAPT.map(|a| if a == "adapted" { "together" } else { a });
    on_gpu(&with(&together, &["--models", "2", "--fisher-samples", "4", "--streams", "2"]));
    for model in ["adapted_0.safetensors", "adapted_1.safetensors"] {
        let bytes = |run: &str| std::fs::read(folder.path(run).join(model)).unwrap();
        assert!(bytes("adapted") == bytes("together"), "{model} is another one beside others");
    }
    on_gpu(&UNLEARN);
    on_gpu(&train_args("on_gpu", "5", &[]));
    on_gpu(&train_args("on_gpu", "9", &["--resume"]));
    // The same latents and noise: the same images, up to rounding.
    let sample = ["sample", "--model", "unlearned/unlearned.safetensors", "--n", "2", "--truncation", "0.7", "--out"];
    on_gpu(&with(&sample, &["gpu.npz"]));
    folder.ok(&with(&sample, &["cpu.npz"]));
    let images = |name: &str| npz::read(folder.path(name)).unwrap()["images"].to_tensor().to_f64_vec();
    for (here, there) in images("cpu.npz").iter().zip(&images("gpu.npz")) {
        assert!((here - there).abs() <= 1e-4, "{there} on the GPU, {here} on the CPU");
    }
    let checks = on_gpu(&["doctor", "--check-only"])["results"].clone();
    assert!(checks.as_array().unwrap().len() > 20);
}

/// Commands that judge, on the same emulated GPU: they say there what they say on the CPU.
#[cfg(target_os = "linux")]
#[test]
fn the_evidence_on_a_gpu() {
    let folder = trained();
    let Some(on_gpu) = on_gpu(&folder, "the_evidence_on_a_gpu") else { return };
    write_stem(&folder);
    let near = |args: &[&str], key: &str, tolerance: f64| {
        let of = |found: serde_json::Value| found.pointer(key).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("{key} is missing in {found}"));
        let (there, here) = (of(on_gpu(args)), of(json(folder.ok(&with(args, &["--device", "cpu", "--json"])))));
        assert!((there - here).abs() <= tolerance * here.abs(), "{args:?}: {there} on the GPU, {here} on the CPU");
    };
    // One statistic of a set, one of a model; sums of f32 in another order.
    near(&with(&["fid", "images.npz", "run/model.safetensors", "--first", "2", "--n", "2", "--no-cache"], &STEM), "/distance", 1e-4);
    let train = ["classifier", "train", "--data", "npz:images.npz", "--epochs", "2", "--batch", "8", "--out", "lenet.safetensors"];
    on_gpu(&train);
    near(&["classifier", "eval", "--classifier", "lenet.safetensors", "--data", "npz:images.npz"], "/accuracy", 0.0);
    on_gpu(&["classifier", "stats", "--classifier", "lenet.safetensors", "--data", "npz:images.npz", "--out", "stats.safetensors"]);
    let evaluate = ["evaluate", "--model", "run/model.safetensors", "--unlearned", "run/model.safetensors", "--classifier", "lenet.safetensors", "--n", "4"];
    let made = |class: &&str| folder.run(&with(&evaluate, &["--class", class])).status.success();
    let class = ["0", "1"].into_iter().find(made).expect("the model makes images of one class at least");
    let distances = ["--class", class, "--real", "npz:images.npz", "--retrained", "run/model.safetensors", "--fid-batch", "4"];
    near(&with(&with(&evaluate, &distances), &STEM), "/fid/before/distance", 1e-4);
    // Every row of a table, of the model that was trained before; its classifier has learned too little to give feedback.
    marks(&folder, 0..10);
    folder.ok(&FEEDBACK);
    let run = folder.path(&format!("table/{class}/run_0"));
    std::fs::create_dir_all(&run).unwrap();
    std::fs::copy(folder.path("feedback.npz"), run.join("feedback.npz")).unwrap();
    let table = ["reproduce", "mnist", "--model", "run/model.safetensors", "--classifier", "lenet.safetensors", "--classes", class, "--out", "table", "--retrained"];
    let retrained = format!("{class}=run/model.safetensors");
    let short = ["--streams", "2", "--runs", "1", "--models", "1", "--adapt-iterations", "1", "--iterations", "1", "--samples", "10"];
    let found = on_gpu(&with(&with(&table, &[&retrained]), &short));
    assert_eq!(found["outcomes"].as_array().map(Vec::len), Some(12), "{found}");
}

/// A group of one, which needs NCCL as any other.
#[cfg(target_os = "linux")]
#[test]
fn a_group_on_a_gpu() {
    let folder = Folder::new();
    write_images(&folder);
    if on_gpu(&folder, "a_group_on_a_gpu").is_none() {
        return;
    }
    let run = |out: &str, preloaded: &[&Path]| {
        let args = with(&train_args(out, "2", &[]), &["--device", "cuda"]);
        let mut command = command(&folder.0, &args);
        let address = recant::io::meeting::free_address();
        let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
        command.envs([("WORLD_SIZE", "1"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1")]).env("MASTER_PORT", (port - 1).to_string());
        if cuda_on_cpu::is_emulated() {
            let list: Vec<_> = preloaded.iter().map(|p| p.to_str().unwrap()).collect();
            command.env("LD_PRELOAD", list.join(":"));
        }
        command.output().unwrap()
    };
    let driver = cuda_on_cpu::driver_library();
    if !recant::device::nccl::is_present() {
        assert_refused(&run("without", &[driver]), &["train"], &["NCCL", "libnccl.so", "LD_LIBRARY_PATH"]);
    }
    let out = run("with", &[driver, cuda_on_cpu::nccl_library()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(folder.path("with/model.safetensors").exists());
}

#[test]
fn runaway_and_poles_stop_with_the_last_good_model() {
    let folder = adapted();
    folder.refused(&with(&UNLEARN, &["--repulsion", "nl2", "--gamma", "1000", "--lr", "10"]), &["runs away", "--gamma"]);
    let original = ["unlearn", "--model", "run/model.safetensors", "--feedback", "feedback.npz", "--adapted", "run/model.safetensors", "--out", "pole", "--batch", "4"];
    folder.refused(&with(&original, &["--repulsion", "il2", "--gamma", "1"]), &["il2", "pole"]);
    folder.refused(&original, &["--adapted", "nothing can be repelled"]);
}

#[test]
fn losses_that_are_not_numbers_keep_the_last_good_model() {
    let folder = trained();
    let good = std::fs::read(folder.path("run/model.safetensors")).unwrap();
    marks(&folder, 0..10);
    folder.ok(&FEEDBACK);
    let wild = with(&UNLEARN[..5], &["--repulsion", "none", "--batch", "4", "--lr", "1e30", "--out", "wild", "--iterations", "200"]);
    folder.refused(&wild, &["not a finite number", "--lr"]);
    assert_eq!(std::fs::read(folder.path("run/model.safetensors")).unwrap(), good);
    // What a run saved before it diverged can still be read.
    if folder.path("wild/model.safetensors").exists() {
        folder.ok(&["sample", "--model", "wild/model.safetensors", "--n", "1", "--out", "a.png"]);
    }
}

#[test]
fn places_that_cannot_be_written() {
    let folder = trained();
    std::fs::write(folder.path("file"), "").unwrap();
    folder.refused(&train_args("file/run", "1", &[]), &["file"]);
    folder.refused(&["sample", "--model", "run/model.safetensors", "--out", "file/a.png"], &["file"]);
}

/// A limit on file sizes stands in for a full disk: the write fails in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_keeps_what_was_there() {
    let folder = trained();
    folder.ok(&["sample", "--model", "run/model.safetensors", "--n", "600", "--out", "a.npz"]);
    let before = std::fs::read(folder.path("a.npz")).unwrap();
    let script = format!("trap '' XFSZ; ulimit -f 16; exec '{}' sample --model run/model.safetensors --n 600 --seed 9 --out a.npz", env!("CARGO_BIN_EXE_recant"));
    let out = Command::new("sh").args(["-c", &script]).current_dir(&folder.0).output().unwrap();
    assert_refused(&out, &["full disk"], &["a.npz"]);
    assert_eq!(std::fs::read(folder.path("a.npz")).unwrap(), before, "the earlier file is untouched");
    let left: Vec<_> = std::fs::read_dir(&folder.0).unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok()).filter(|n| n.contains("tmp")).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
