//! Training iterations of StyleGAN2 at both measured widths, and the passes over a parameter slab beside a plain copy.
//!
//! `cargo bench -p recant-benches --bench train_step -- demo` measures the demo's width alone; the full width takes
//! minutes. Nothing is asserted.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use recant::device::peak::copy_on_host;
use recant::training::Hyper;
use recant_benches::{Iteration, Pass, SlabPass, WIDTHS, config};

fn iterations(c: &mut Criterion) {
    let mut group = c.benchmark_group("iteration");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for width in WIDTHS {
        let hyper = Hyper::default();
        group.throughput(Throughput::Elements(hyper.batch as u64));
        for (name, r1, path) in [("plain", false, false), ("with_r1", true, false), ("with_path", false, true), ("with_both", true, true)] {
            group.bench_function(BenchmarkId::new(width, name), |b| {
                // Made here, so that a filtered run does not pay for the other width.
                let mut run = Iteration::new(config(width), hyper.clone());
                b.iter(|| run.step(r1, path));
            });
        }
    }
    group.finish();
}

fn slab_passes(c: &mut Criterion) {
    let mut group = c.benchmark_group("slab_pass");
    for width in WIDTHS {
        for pass in Pass::ALL {
            let mut slab = SlabPass::new(config(width));
            group.throughput(Throughput::Bytes((pass.bytes() * slab.parameters()) as u64));
            group.bench_function(BenchmarkId::new(width, pass.name()), |b| b.iter(|| black_box(slab.step(pass))));
        }
        let n = SlabPass::new(config(width)).parameters();
        let (from, mut to) = (vec![1.0_f32; n], vec![0.0_f32; n]);
        group.throughput(Throughput::Bytes(8 * n as u64));
        group.bench_function(BenchmarkId::new(width, "copy"), |b| b.iter(|| copy_on_host(black_box(&from), black_box(&mut to))));
    }
    group.finish();
}

criterion_group!(benches, iterations, slab_passes);
criterion_main!(benches);
