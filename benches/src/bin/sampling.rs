//! Times sampling and judging of images and prints one line of JSON, as `peer/sampling_peer.py` does. Weights are
//! random: speed does not depend on them.
//!
//! `cargo run --release -p recant-benches --bin sampling -- --width demo --n 512 --threads 2`

use recant::models::classifier::{Classifier, ClassifierConfig};
use recant::models::stylegan2::Generator;
use recant::nn::ParamSlab;
use recant::ops::random::Random;
use recant::tensor::Tensor;
use recant::unlearning::feedback::{draw_latents, generate};
use recant_benches::{Options, config, peak_bytes, seconds, show};

fn main() {
    let options = Options::parse(&[("width", "demo"), ("n", "512"), ("threads", "2"), ("repeats", "3")]);
    options.on_threads(|| measure(&options));
}

fn measure(options: &Options) {
    let n = options.number("n");
    let g = Generator::new(config(options.text("width")));
    let params = ParamSlab::init(g.layout(), &mut Random::new(0, 0));
    let classifier = Classifier::init(ClassifierConfig::mnist(), &mut Random::new(0, 1)).expect("LeNet");
    let latents = draw_latents(&g, n, 0, 2);
    let mut batches: Vec<Tensor> = Vec::new();
    let sample = seconds(options.number("repeats"), || {
        batches.clear();
        generate(&g, &params, &latents, &mut Random::new(0, 3), &mut |_, images, _| {
            batches.push(images.clone());
            Ok(())
        })
        .expect("images");
    });
    let classify = seconds(options.number("repeats"), || {
        for images in &batches {
            classifier.judge(images).expect("a judgement");
        }
    });
    show(
        options.number("threads"),
        &format!(
            r#""benchmark": "sampling", "width": "{}", "n": {n}, "sample_s": {sample}, "classify_s": {classify}, "feedback_s": {}, "peak_bytes": {}"#,
            options.text("width"),
            sample + classify,
            peak_bytes(),
        ),
    );
}
