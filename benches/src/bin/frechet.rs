//! Time of feature statistics and of the Fréchet distance: `cargo run --release -p recant-benches --bin frechet -- 2048`.
//!
//! The features are normal with deviations that fall as those of real ones do, and 5000 of them unless a second number
//! says otherwise.

use std::time::Instant;

use recant::error::Result;
use recant::metrics::{FeatureStats, Statistics, frechet_distance};
use recant::ops::random::Random;
use recant::tensor::Tensor;

const BATCH: usize = 500;

/// Statistics of `n` made-up features of `d` numbers, and the seconds that the sums took.
fn statistics(d: usize, n: usize, seed: u64) -> Result<(Statistics, f64)> {
    let (mut stats, mut random, mut seconds) = (FeatureStats::new(d), Random::new(seed, 0), 0.0);
    for start in (0..n).step_by(BATCH) {
        let rows = BATCH.min(n - start);
        let values = random.normal(&[rows, d]).to_vec::<f32>().iter().enumerate().map(|(i, v)| 1.0 + v / (1.0 + (i % d) as f32 / 20.0)).collect::<Vec<f32>>();
        let features = Tensor::from_vec(&[rows, d], values);
        let begin = Instant::now();
        stats.add(&features)?;
        seconds += begin.elapsed().as_secs_f64();
    }
    Ok((stats.finish()?, seconds))
}

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<usize>().expect("numbers: dimensions, images"));
    let (d, n) = (numbers.next().unwrap_or(2048), numbers.next().unwrap_or(5000));
    let ((a, seconds), (b, _)) = (statistics(d, n, 0)?, statistics(d, n, 1)?);
    let operations = n as f64 * (d * d) as f64;
    println!("statistics of {n} x {d}: {seconds:.2} s, {:.1} GFLOP/s of the lower triangle", operations / seconds / 1e9);
    let begin = Instant::now();
    let distance = frechet_distance(&a, &b)?;
    println!("distance in {d} dimensions: {:.2} s (value {distance:.6}, {} threads)", begin.elapsed().as_secs_f64(), rayon::current_num_threads());
    Ok(())
}
