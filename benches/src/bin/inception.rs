//! Times features of 32 px digits at block 768 with their statistics, and prints one line of JSON, as
//! `peer/inception_peer.py` does. With `--profile 1` it says on standard error which ops took how long.
//!
//! `cargo run --release -p recant-benches --bin inception -- --weights inception.safetensors --digits t10k-images-idx3-ubyte --n 512`

use recant::data::mnist::{Mnist, read_idx};
use recant::device::profile;
use recant::metrics::{Extractor, FidProtocol, Preparation};
use recant::models::inception::{Block, Inception};
use recant_benches::{Options, peak_bytes, show};

fn main() {
    let options = Options::parse(&[("weights", ""), ("digits", ""), ("n", "512"), ("batch", "16"), ("dims", "768"), ("threads", "2"), ("profile", "0")]);
    options.on_threads(|| measure(&options));
}

fn measure(options: &Options) {
    let (n, batch) = (options.number("n"), options.number("batch"));
    let fail = |e: recant::error::Error| -> ! {
        eprintln!("{e}");
        std::process::exit(2)
    };
    let (sizes, images) = read_idx(options.text("digits").as_ref(), 3).unwrap_or_else(|e| fail(e));
    let digits = Mnist { images, height: sizes[1], width: sizes[2], labels: vec![0; sizes[0]] };
    let data = recant::data::Dataset::from(digits.resized(32)).subset(&(0..n).collect::<Vec<_>>());
    let net = Inception::read(options.text("weights")).unwrap_or_else(|e| fail(e));
    let block = Block::from_dims(options.number("dims")).unwrap_or_else(|e| fail(e));
    let protocol = FidProtocol { preparation: Preparation::PytorchFid, block, size: Some(32) };
    let extractor = Extractor::new(net, protocol).unwrap_or_else(|e| fail(e));
    let warm = data.subset(&(0..batch.min(n)).collect::<Vec<_>>());
    extractor.dataset(&warm, batch, &mut |_| Ok(())).unwrap_or_else(|e| fail(e));
    let profiled = options.number("profile") > 0;
    if profiled {
        profile::start();
    }
    let start = std::time::Instant::now();
    let statistics = extractor.dataset(&data, batch, &mut |_| Ok(())).unwrap_or_else(|e| fail(e));
    let seconds = start.elapsed().as_secs_f64();
    for line in if profiled { profile::stop() } else { Vec::new() } {
        let (share, rate) = (100.0 * line.seconds / seconds, 1e-9 * line.flops / line.seconds);
        eprintln!("{share:5.1} %  {rate:6.1} GFLOP/s  {} {}", line.op, line.operands);
    }
    let trace: f64 = (0..statistics.dims()).map(|i| statistics.sigma[i * statistics.dims() + i]).sum();
    show(
        options.number("threads"),
        &format!(
            r#""benchmark": "inception", "n": {n}, "batch": {batch}, "dims": {block}, "seconds": {seconds}, "images_per_s": {}, "trace": {trace}, "peak_bytes": {}"#,
            n as f64 / seconds,
            peak_bytes(),
        ),
    );
}
