//! Times one training iteration of StyleGAN2 and prints one line of JSON, as `peer/stylegan2_peer.py` does.
//!
//! `cargo run --release -p recant-benches --bin iteration -- --width demo --threads 2`

use recant::training::Hyper;
use recant_benches::{Iteration, Options, config, peak_bytes, seconds, show};

fn main() {
    let options = Options::parse(&[("width", "demo"), ("threads", "2"), ("batch", "16"), ("repeats", "5")]);
    options.on_threads(|| measure(&options));
}

fn measure(options: &Options) {
    let hyper = Hyper { batch: options.number("batch"), ..Hyper::default() };
    let (r1_every, path_every) = (hyper.r1_every as f64, hyper.path_every as f64);
    let mut run = Iteration::new(config(options.text("width")), hyper.clone());
    let repeats = options.number("repeats");
    let [plain, with_r1, with_path] = [(false, false), (true, false), (false, true)].map(|(r1, path)| seconds(repeats, || run.step(r1, path)));
    let (r1, path) = (with_r1 - plain, with_path - plain);
    let parameters = run.parameters();
    show(
        options.number("threads"),
        &format!(
            r#""benchmark": "iteration", "width": "{}", "batch": {}, "parameters": {parameters:?}, "plain_s": {plain}, "r1_s": {r1}, "path_s": {path}, "amortised_s": {}, "peak_bytes": {}"#,
            options.text("width"),
            hyper.batch,
            plain + r1 / r1_every + path / path_every,
            peak_bytes(),
        ),
    );
}
