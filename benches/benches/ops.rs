//! Single ops at the shapes that StyleGAN2 gives them, at both measured widths.
//!
//! `cargo bench -p recant-benches --bench ops -- conv2d/demo` filters. Convolutions and products report FLOP/s (a
//! multiplication and an addition are two), the other ops bytes/s of what they must read and write once. Nothing is
//! asserted.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use recant::ops::bias_act::{Activation, bias_act, bias_act_grad};
use recant::ops::conv2d::{Conv2d, conv2d, conv2d_transpose, conv2d_weight_grad};
use recant::ops::elementwise::{Zip, channel_scale, zip};
use recant::ops::matmul::{Read, matmul};
use recant::ops::random::Random;
use recant::ops::reduce::{channel_dot, sum_to};
use recant::ops::upfirdn2d::{RESAMPLE_TAPS, Upfirdn2d, upfirdn2d};
use recant::tensor::Tensor;

const BATCH: usize = 16;

/// Height = width and channels of the 3×3 layers: the demo's widths, and 512 channels.
const LAYERS: [(&str, usize, usize); 8] =
    [("demo", 4, 64), ("demo", 8, 64), ("demo", 16, 48), ("demo", 32, 32), ("full", 4, 512), ("full", 8, 512), ("full", 16, 512), ("full", 32, 512)];

fn normal(shape: &[usize]) -> Tensor {
    Random::new(1, 0).normal(shape)
}

/// One measured op: its name, what it moves or computes, and the call.
type Op<'a> = (&'a str, Throughput, Box<dyn Fn() -> Tensor + 'a>);

fn measure(c: &mut Criterion, family: &str, ops: fn(usize, usize, &mut dyn FnMut(Op))) {
    let mut group = c.benchmark_group(family);
    group.sample_size(10).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    for (width, size, channels) in LAYERS {
        ops(size, channels, &mut |(name, throughput, run)| {
            group.throughput(throughput);
            group.bench_function(BenchmarkId::new(width, format!("{name}/{size}px_{channels}ch")), |b| b.iter(|| black_box(run())));
        });
    }
    group.finish();
}

fn bytes(tensors: &[&Tensor]) -> Throughput {
    Throughput::Bytes(tensors.iter().map(|t| 4 * t.len() as u64).sum())
}

/// The modulated convolution, its input gradient and its weight gradient, with both scales; and the strided pair that
/// StyleGAN2 uses to change resolution.
fn convolutions(size: usize, channels: usize, each: &mut dyn FnMut(Op)) {
    let x = normal(&[BATCH, size, size, channels]);
    let w = normal(&[channels, 3, 3, channels]);
    let (a, b) = (normal(&[BATCH, channels]), normal(&[BATCH, channels]));
    let spec = Conv2d::square(1, 1);
    let flops = Throughput::Elements((2 * 9 * x.len() * channels) as u64);
    let ok = "shapes that fit";
    each(("forward", flops.clone(), Box::new(|| conv2d(&x, &w, Some(&a), Some(&b), spec).expect(ok))));
    each(("input_grad", flops.clone(), Box::new(|| conv2d_transpose(&x, &w, Some(&b), Some(&a), spec, [size; 2]).expect(ok))));
    each(("weight_grad", flops.clone(), Box::new(|| conv2d_weight_grad(&x, &x, Some(&a), Some(&b), spec, [3; 2]).expect(ok))));
    let up = [2 * size + 1; 2];
    each(("up", flops, Box::new(|| conv2d_transpose(&x, &w, Some(&b), Some(&a), Conv2d::square(2, 0), up).expect(ok))));
}

fn products(size: usize, channels: usize, each: &mut dyn FnMut(Op)) {
    if size == 4 {
        let (x, w) = (normal(&[BATCH, 16 * channels]), normal(&[channels, 16 * channels]));
        let flops = Throughput::Elements((2 * x.len() * channels) as u64);
        each(("linear", flops, Box::new(|| matmul(&x, Read::Plain, &w, Read::Transposed).expect("shapes that fit"))));
    }
}

fn passes(size: usize, channels: usize, each: &mut dyn FnMut(Op)) {
    let x = normal(&[BATCH, size, size, channels]);
    let (bias, scales) = (normal(&[channels]), normal(&[BATCH, channels]));
    let ok = "shapes that fit";
    each(("bias_act", bytes(&[&x, &x]), Box::new(|| bias_act(&x, Some(&bias), None, Activation::LEAKY_RELU).expect(ok))));
    each(("bias_act_grad", bytes(&[&x, &x, &x]), Box::new(|| bias_act_grad(&x, &x, Activation::LEAKY_RELU).expect(ok))));
    each(("add", bytes(&[&x, &x, &x]), Box::new(|| zip(&x, &x, Zip::Add).expect(ok))));
    each(("channel_scale", bytes(&[&x, &x]), Box::new(|| channel_scale(&x, &scales).expect(ok))));
    each(("channel_dot", bytes(&[&x, &x]), Box::new(|| channel_dot(&x, &x).expect(ok))));
    each(("sum_to_channels", bytes(&[&x]), Box::new(|| sum_to(&x, &[channels]).expect(ok))));
    let up = Upfirdn2d::new(&RESAMPLE_TAPS, 2, 1, [2, 1], 4.0);
    let larger = upfirdn2d(&x, &up).expect(ok);
    each(("upsample", bytes(&[&x, &larger]), Box::new(|| upfirdn2d(&x, &up).expect(ok))));
}

fn benches(c: &mut Criterion) {
    measure(c, "conv2d", convolutions);
    measure(c, "matmul", products);
    measure(c, "pass", passes);
}

criterion_group!(ops, benches);
criterion_main!(ops);
