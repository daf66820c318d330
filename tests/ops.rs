//! Every op against its plain reference, its adjoint, finite differences, and itself on other numbers of threads.

mod cases;

use cases::{Case, Tolerance, assert_close, families, normal};
use recant::autograd::gradcheck::op_gradient_errors;
use recant::ops::conv2d::{Conv2d, conv2d, conv2d_weight_grad};
use recant::tensor::{DType, Tensor};

fn each(check: impl Fn(&Case)) {
    for (_, cases) in families() {
        for case in &cases {
            check(case);
        }
    }
}

fn run(case: &Case, inputs: &[Tensor]) -> Tensor {
    (case.run)(inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name))
}

#[test]
fn values_match_the_plain_reference() {
    each(|case| {
        let want = (case.reference)(&case.inputs);
        assert_close(&format!("{} in f32", case.name), &run(case, &case.inputs_as(DType::F32)).to_f64_vec(), &want, case.cpu_tolerance);
        let rounding = Tolerance { abs: 1e-11, rel: 1e-11, reason: "f64 sums of at most some thousand terms" };
        assert_close(&format!("{} in f64", case.name), &run(case, &case.inputs).to_f64_vec(), &want, rounding);
    });
}

#[test]
fn linear_ops_have_their_adjoint() {
    let dot = |a: &Tensor, b: &Tensor| -> f64 { a.to_f64_vec().iter().zip(b.to_f64_vec()).map(|(a, b)| a * b).sum() };
    each(|case| {
        let Some(adjoint) = &case.adjoint else { return };
        let forward = run(case, &case.inputs);
        let y = normal(99, forward.shape());
        let mut inputs = case.inputs.clone();
        inputs[0] = y.clone();
        let back = adjoint(&inputs).unwrap_or_else(|e| panic!("adjoint of {}: {e}", case.name));
        assert_eq!(back.shape(), case.inputs[0].shape(), "adjoint of {}", case.name);
        let (left, right) = (dot(&forward, &y), dot(&case.inputs[0], &back));
        let size = (dot(&forward, &forward) * dot(&y, &y)).sqrt();
        assert!((left - right).abs() <= 1e-12 * size, "{}: <Ax, y> = {left}, <x, A*y> = {right}", case.name);
    });
}

#[test]
fn gradients_match_finite_differences() {
    // Central differences with step 1e-5 lose half the digits of f64; what is left of curvature is below that.
    const WORST: f64 = 1e-6;
    each(|case| {
        let Some(f) = case.on_vars.as_ref().filter(|_| case.gradcheck) else { return };
        let (first, second) = op_gradient_errors(f, &case.inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert!(first < WORST && second < WORST, "{}: first order off by {first:e}, second by {second:e}", case.name);
    });
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let bits = |threads: usize| -> Vec<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        let mut all = Vec::new();
        pool.install(|| {
            for (_, cases) in families() {
                for case in &cases {
                    all.push(run(case, &case.inputs_as(DType::F32)).as_slice::<f32>().iter().map(|v| v.to_bits()).collect());
                }
            }
        });
        all
    };
    let (one, two, five) = (bits(1), bits(2), bits(5));
    let names: Vec<String> = families().into_iter().flat_map(|(_, cases)| cases).map(|c| c.name).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(one[i] == two[i] && two[i] == five[i], "{name}: other bits with other threads");
    }
}

/// More tiles than the weight gradient transforms at a time.
#[test]
fn weight_gradients_add_up_over_a_batch() {
    let (n, channels, spec) = (10, 128, Conv2d::square(1, 1));
    let [x, g] = [0, 1].map(|stream| normal(stream, &[n, 32, 32, channels]).to_dtype(DType::F32));
    let grad = |images: std::ops::Range<usize>| -> Vec<f64> {
        let [x, g] = [&x, &g].map(|t| t.rows(images.start, images.len()).expect("images"));
        conv2d_weight_grad(&x, &g, None, None, spec, [3, 3]).expect("a gradient").to_f64_vec()
    };
    let sum: Vec<f64> = grad(0..4).iter().zip(grad(4..n)).map(|(a, b)| a + b).collect();
    let direct = Tolerance::sum_of(n * 32 * 32);
    assert_close("the batch", &grad(0..n), &sum, Tolerance { abs: 8.0 * direct.abs, reason: "as the cases of this size", ..direct });
}

#[test]
fn an_image_has_the_same_bits_in_every_batch() {
    let spec = Conv2d::square(1, 1);
    // 20 px of many channels: the tiles of the last image are not multiplied together with those of the others.
    for (size, channels) in [(4, [16, 32]), (9, [24, 40]), (32, [32, 16]), (8, [160, 112]), (4, [160, 112]), (20, [128, 136]), (16, [3, 16])] {
        let x = normal(0, &[7, size, size, channels[0]]).to_dtype(DType::F32);
        let w = normal(1, &[channels[1], 3, 3, channels[0]]).to_dtype(DType::F32);
        let all = conv2d(&x, &w, None, None, spec).expect("images");
        for image in [4, 6] {
            let alone = conv2d(&x.rows(image, 1).expect("an image"), &w, None, None, spec).expect("an image");
            assert_eq!(all.rows(image, 1).expect("an image").to_f64_vec(), alone.to_f64_vec(), "{size} px, {channels:?}, image {image}");
        }
    }
}

/// A NaN in an image is not hidden on its way through a judge.
#[test]
fn nan_stays() {
    let x = Tensor::from_vec(&[1, 2, 4, 1], vec![0.0_f32, f32::NAN, 1.0, 2.0, 5.0, 6.0, 7.0, 8.0]);
    let seen = recant::ops::elementwise::saturate(&x, 1.0, 0.0).unwrap().to_f64_vec();
    assert!(seen[1].is_nan() && seen[2..] == [1.0; 6], "{seen:?}");
    let pooled = recant::ops::pool2d::max_pool2d(&x, recant::ops::pool2d::Window::square(2, 2, 0)).unwrap().to_f64_vec();
    assert!(pooled[0].is_nan() && pooled[1] == 8.0, "{pooled:?}");
}
