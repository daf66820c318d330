//! Times the single passes regulariser + Adam + EMA over a generator's parameters, and beside them a plain copy, and
//! prints one line of JSON, as `peer/optimizer_peer.py` does for separate ops.
//!
//! `cargo run --release -p recant-benches --bin slab_pass -- --width full --threads 2`

use recant::device::peak::copy_on_host;
use recant_benches::{Options, Pass, SlabPass, config, peak_bytes, seconds, show};

fn main() {
    let options = Options::parse(&[("width", "full"), ("threads", "2"), ("repeats", "15")]);
    options.on_threads(|| measure(&options));
}

fn measure(options: &Options) {
    let repeats = options.number("repeats");
    let mut slab = SlabPass::new(config(options.text("width")));
    let n = slab.parameters();
    let [ewc, repulsion] = Pass::ALL.map(|pass| {
        seconds(repeats, || {
            slab.step(pass);
        })
    });
    let (from, mut to) = (vec![1.0_f32; n], vec![0.0_f32; n]);
    let copied = seconds(repeats, || copy_on_host(&from, &mut to));
    let rate = |bytes: usize, s: f64| (bytes * n) as f64 / s / 1e9;
    show(
        options.number("threads"),
        &format!(
            r#""benchmark": "slab_pass", "width": "{}", "parameters": {n}, "ewc_s": {ewc}, "repulsion_s": {repulsion}, "ewc_gb_per_s": {}, "repulsion_gb_per_s": {}, "copy_gb_per_s": {}, "peak_bytes": {}"#,
            options.text("width"),
            rate(Pass::Ewc.bytes(), ewc),
            rate(Pass::Repulsion.bytes(), repulsion),
            rate(8, copied),
            peak_bytes(),
        ),
    );
}
