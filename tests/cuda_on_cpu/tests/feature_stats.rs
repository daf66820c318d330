//! kernels/feature_stats.cu against loops in double precision.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{DeviceRepr, PushKernelArg};
use support::{Geometry, Gpu, grid, numbers};

mod support;

const TILE: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct FeatureParams {
    count: i32,
    dims: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/feature_stats.cu.
unsafe impl DeviceRepr for FeatureParams {}

fn params(count: usize, dims: usize) -> FeatureParams {
    FeatureParams {
        count: count as i32,
        dims: dims as i32,
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Statistics {
    mu: Vec<f64>,
    sigma: Vec<f64>,
}

/// Whether products are made in double precision or as sums of two f32.
#[derive(Clone, Copy, Debug)]
struct Variant {
    kernel: &'static str,
    threads: u32,
    /// Relative to the sum of absolute products.
    tolerance: f64,
}

const VARIANTS: [Variant; 2] = [
    // Double-precision sums of a few hundred terms.
    Variant {
        kernel: "feature_products_f64",
        threads: 128,
        tolerance: 1e-13,
    },
    // Two f32 hold 48 bits; three products of them leave out the fourth, 2^-48, and sums of lower parts round at 2^-24 of
    // 2^-24.
    Variant {
        kernel: "feature_products_f32x2",
        threads: 256,
        tolerance: 1e-12,
    },
];

/// The statistics of `images`, whole rows of `dims` features, in batches of the given sizes.
fn statistics(
    variant: Variant,
    images: &[f32],
    dims: usize,
    batches: &[usize],
    skipped: usize,
) -> Statistics {
    let gpu = Gpu::with_kernels("feature_stats");
    let (mut sums, mut products) = (gpu.zeros::<f64>(dims), gpu.zeros::<f64>(dims * dims));
    let mut shift = gpu.uninitialised::<f32>(dims);
    let tiles = dims.div_ceil(TILE) as u32;
    let mut rest = images;
    for (i, &n) in batches.iter().enumerate() {
        let (batch, others) = rest.split_at(n * dims);
        rest = others;
        let memory = gpu.upload(&[&vec![f32::NAN; skipped], batch, &[f32::NAN]].concat());
        let (x, p) = (gpu.address(&memory) + 4 * skipped as u64, params(n, dims));
        if i == 0 {
            gpu.launch(&gpu.function("feature_shift_f32"), grid(1, 96), |args| {
                args.arg(&x).arg(&mut shift).arg(&p);
            })
            .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
        }
        let geometry = Geometry {
            blocks: [tiles * (tiles + 1) / 2, 1, 1],
            threads: variant.threads,
            dynamic_shared: 0,
        };
        gpu.launch(&gpu.function(variant.kernel), geometry, |args| {
            args.arg(&x)
                .arg(&shift)
                .arg(&mut sums)
                .arg(&mut products)
                .arg(&p);
        })
        .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    }
    assert!(rest.is_empty(), "batches hold all images");
    let (mut mu, mut sigma) = (
        gpu.uninitialised::<f64>(dims),
        gpu.uninitialised::<f64>(dims * dims),
    );
    let p = params(images.len() / dims, dims);
    gpu.launch(
        &gpu.function("feature_covariance_f64"),
        grid(2, 64),
        |args| {
            args.arg(&shift)
                .arg(&sums)
                .arg(&products)
                .arg(&mut mu)
                .arg(&mut sigma)
                .arg(&p);
        },
    )
    .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    Statistics {
        mu: gpu.download(&mu),
        sigma: gpu.download(&sigma),
    }
}

fn expected(images: &[f32], dims: usize) -> Statistics {
    let count = (images.len() / dims) as f64;
    let mut mu = vec![0.0; dims];
    for row in images.chunks_exact(dims) {
        mu.iter_mut()
            .zip(row)
            .for_each(|(m, &v)| *m += f64::from(v) / count);
    }
    let mut sigma = vec![0.0; dims * dims];
    for row in images.chunks_exact(dims) {
        let centred: Vec<f64> = row
            .iter()
            .zip(&mu)
            .map(|(&v, m)| f64::from(v) - m)
            .collect();
        for i in 0..dims {
            for j in 0..dims {
                sigma[i * dims + j] += centred[i] * centred[j] / (count - 1.0);
            }
        }
    }
    Statistics { mu, sigma }
}

fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance,
            "{what}[{i}]: {got:e}, expected {expected:e}"
        );
    }
}

/// Features far from zero, whose variance a sum of squares would lose.
fn features(count: usize, dims: usize) -> Vec<f32> {
    numbers(count * dims, 7)
        .iter()
        .enumerate()
        .map(|(i, v)| v + (i % dims) as f32 * 10.0)
        .collect()
}

#[test]
fn statistics_are_those_of_all_batches() {
    for variant in VARIANTS {
        // Inside a tile, across tiles, whole tiles; one image more than a slice, and shorter batches after it.
        for (dims, batches, skipped) in [
            (20, vec![17, 4, 1], 0),
            (70, vec![33, 5], 0),
            (128, vec![16, 3], 0),
            (67, vec![9, 2], 1),
        ] {
            let images = features(batches.iter().sum(), dims);
            let want = expected(&images, dims);
            let mut results = orders().iter().map(|&order| {
                with_order(order, || {
                    statistics(variant, &images, dims, &batches, skipped)
                })
            });
            let got = results.next().expect("an order");
            assert!(
                results.all(|other| other == got),
                "{variant:?}: depends on the order of threads"
            );
            // The mean is that of f32 numbers of up to 700; centred products are below 4.
            assert_close("mu", &got.mu, &want.mu, variant.tolerance * 700.0);
            assert_close(
                "sigma",
                &got.sigma,
                &want.sigma,
                variant.tolerance * 4.0 + 1e-15,
            );
        }
    }
}

/// In double precision the sums do not see where batches of a multiple of four end.
#[test]
fn batches_may_be_cut_anywhere_by_fours() {
    let images = features(36, 20);
    let whole = statistics(VARIANTS[0], &images, 20, &[20, 16], 0);
    assert_eq!(statistics(VARIANTS[0], &images, 20, &[20, 4, 12], 0), whole);
}

#[test]
fn address_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Addresses);
}

#[test]
fn thread_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Races);
}
