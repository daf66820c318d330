//! Feature statistics and the Fréchet distance against reference numbers and closed forms.

mod common;

use recant::device::{Device, Precision};
use recant::metrics::{FeatureStats, Statistics, frechet_distance};
use recant::ops::random::Random;
use recant::tensor::{DType, Tensor};

fn reference(which: &str) -> (Statistics, Statistics, f64) {
    let file = common::npz_f64("nets/frechet.npz");
    let get = |name: String| file[&name].clone();
    let side = |k: usize| Statistics { count: None, mu: get(format!("mu{k}_{which}")), sigma: get(format!("sigma{k}_{which}")) };
    (side(1), side(2), get(format!("fid_{which}"))[0])
}

fn diagonal(mu: &[f64], sigma: &[f64]) -> Statistics {
    let d = mu.len();
    let sigma = (0..d * d).map(|i| if i / d == i % d { sigma[i / d] } else { 0.0 }).collect();
    Statistics { count: None, mu: mu.to_vec(), sigma }
}

/// scipy's matrix square root gave these, with fewer samples than dimensions in the last.
#[test]
fn frechet_equals_the_reference() {
    for which in ["16", "64", "singular"] {
        let (a, b, want) = reference(which);
        for (a, b) in [(&a, &b), (&b, &a)] {
            let got = frechet_distance(a, b).unwrap();
            assert!((got - want).abs() <= 1e-6 * want, "{which}: {got} where {want} is right");
        }
    }
}

/// Commuting covariances: `Σ (√σ₁ − √σ₂)² + ‖Δμ‖²`.
#[test]
fn frechet_of_diagonal_covariances() {
    let (a, b) = (diagonal(&[1.0, -2.0, 0.5], &[4.0, 0.25, 0.0]), diagonal(&[0.0, -2.0, 2.5], &[1.0, 2.25, 9.0]));
    let want = 5.0 + 1.0 + 1.0 + 9.0;
    assert!((frechet_distance(&a, &b).unwrap() - want).abs() < 1e-12);
    assert!((frechet_distance(&b, &a).unwrap() - want).abs() < 1e-12);
    assert_eq!(frechet_distance(&diagonal(&[3.0], &[0.0]), &diagonal(&[1.0], &[0.0])).unwrap(), 4.0);
}

/// The distance of a set to itself is rounding, also when its covariance is singular.
#[test]
fn frechet_to_itself_is_zero() {
    for n in [20, 400] {
        let mut stats = FeatureStats::new(96);
        stats.add(&Random::new(1, n as u64).normal(&[n, 96])).unwrap();
        let s = stats.finish().unwrap();
        let d = frechet_distance(&s, &s).unwrap();
        assert!(d < 1e-6 * 96.0, "{n} samples: {d:e}");
    }
}

/// Fails where any number differs by more than `bound` of the largest covariance.
fn near(dims: usize, got: &Statistics, want: &Statistics, bound: f64) {
    let scale = want.sigma.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (g, w) in got.mu.iter().zip(&want.mu).chain(got.sigma.iter().zip(&want.sigma)) {
        assert!((g - w).abs() < bound * scale, "{dims}: {g} where {w} is right");
    }
}

/// The definition: means first, then products of centred features.
fn two_passes(features: &Tensor) -> Statistics {
    let (n, d, x) = (features.dim(0), features.dim(1), features.to_f64_vec());
    let mu: Vec<f64> = (0..d).map(|j| x.iter().skip(j).step_by(d).sum::<f64>() / n as f64).collect();
    let mut sigma = vec![0.0; d * d];
    for row in x.chunks_exact(d) {
        for (k, s) in sigma.iter_mut().enumerate() {
            *s += (row[k / d] - mu[k / d]) * (row[k % d] - mu[k % d]) / (n as f64 - 1.0);
        }
    }
    Statistics { count: None, mu, sigma }
}

#[test]
fn statistics_equal_numpy() {
    for dims in [16, 64] {
        let features = &common::npz("nets/frechet.npz")[&format!("features1_{dims}")];
        let (want, _, _) = reference(&dims.to_string());
        let mut stats = FeatureStats::new(dims);
        // Batches that do not divide the block.
        for start in (0..2000).step_by(70) {
            stats.add(&features.rows(start, 70.min(2000 - start)).unwrap()).unwrap();
        }
        let got = stats.finish().unwrap();
        assert_eq!(got.count, Some(2000));
        // The file keeps the features in f32 but its statistics are those of the f64 features: rounding of 6e-8 per
        // value, averaged over 2000 of them, with room for sums of two such errors.
        near(dims, &got, &want, 1e-8);
        near(dims, &got, &two_passes(features), 1e-12);
    }
}

/// The sums do not depend on how images come in batches; a large mean does not swallow a small variance.
#[test]
fn statistics_do_not_depend_on_batches() {
    let noise = Random::new(4, 0).normal(&[1300, 5]).to_f64_vec();
    let x = Tensor::from_vec(&[1300, 5], noise.iter().map(|v| 1e6 + v * 1e-3).collect::<Vec<f64>>());
    let run = |batch: usize| {
        let mut s = FeatureStats::new(5);
        (0..1300).step_by(batch).for_each(|i| s.add(&x.rows(i, batch.min(1300 - i)).unwrap()).unwrap());
        s.finish().unwrap()
    };
    let whole = run(1300);
    for batch in [1, 37, 512, 513] {
        assert_eq!(run(batch), whole, "batches of {batch}");
    }
    for i in 0..5 {
        assert!((whole.sigma[i * 6] / 1e-6 - 1.0).abs() < 0.2, "variance {}", whole.sigma[i * 6]);
    }
}

/// On a GPU with fast double precision, and on one with pairs of f32: the host's numbers, whatever the batches, also of
/// features with a large mean.
#[test]
fn a_gpu_has_the_same_statistics() {
    let (n, dims) = (1100, 67);
    let noise = Random::new(5, 0).normal(&[n, dims]);
    let offset = noise.as_slice::<f32>().iter().enumerate().map(|(i, v)| v * 0.25 + (i % dims) as f32).collect::<Vec<f32>>();
    let x = Tensor::from_vec(&[n, dims], offset);
    let run = |device: &Device, batch: usize| {
        let x = x.to_device(device).unwrap();
        let mut stats = FeatureStats::new(dims);
        for at in (0..n).step_by(batch) {
            stats.add(&x.rows(at, batch.min(n - at)).unwrap()).unwrap();
            assert_eq!(stats.count(), n.min(at + batch));
        }
        stats.finish().unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()))
    };
    let want = run(&Device::Cpu, n);
    for capability in [(9, 0), (8, 6)] {
        let gpu = common::gpu::cuda_of(capability, Precision::F32);
        let device = Device::Cuda(gpu.clone());
        let got = run(&device, n);
        assert_eq!(got.count, want.count);
        // Sums of 1100 products to 2^-45 of their absolute values, and a shift that is rounded to f32.
        near(dims, &got, &want, 1e-11);
        for batch in [1, 37, 600] {
            assert_eq!(run(&device, batch), got, "batches of {batch} on {capability:?}");
        }
        let mut mixed = FeatureStats::new(dims);
        mixed.add(&x.to_device(&device).unwrap()).unwrap();
        assert!(mixed.add(&x).unwrap_err().to_string().contains("on cpu"));
        let mut broken = FeatureStats::new(2);
        broken.add(&Tensor::from_vec(&[2, 2], vec![0.0_f32, 1.0, f32::NAN, 0.0]).to_device(&device).unwrap()).unwrap();
        assert!(broken.finish().unwrap_err().to_string().contains("feature 0"));
        if cuda_on_cpu::is_emulated() {
            let kernel = if capability == (9, 0) { "feature_products_f64" } else { "feature_products_f32x2" };
            assert!(gpu.launches()[kernel] > 0, "{capability:?}");
        }
    }
}

#[test]
fn unusable_statistics_are_refused() {
    let mut one = FeatureStats::new(3);
    one.add(&Tensor::zeros(&[1, 3], DType::F32)).unwrap();
    assert!(one.finish().unwrap_err().to_string().contains("at least 2"));
    let mut bad = FeatureStats::new(2);
    assert!(bad.add(&Tensor::zeros(&[4, 3], DType::F32)).is_err());
    let nan = bad.add(&Tensor::from_vec(&[2, 2], vec![0.0_f32, 1.0, f32::NAN, 0.0])).unwrap_err().to_string();
    assert!(nan.contains("iteration 1") && nan.contains("NaN"), "{nan}");
    assert!(frechet_distance(&diagonal(&[0.0], &[1.0]), &diagonal(&[0.0; 2], &[1.0; 2])).is_err());
    assert!(frechet_distance(&diagonal(&[f64::NAN], &[1.0]), &diagonal(&[0.0], &[1.0])).is_err());
}
