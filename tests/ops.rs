//! Every op against its plain reference, its adjoint, finite differences, and itself on other numbers of threads.

mod cases;

use cases::{Case, Tolerance, assert_close, families, normal};
use recant::autograd::gradcheck::op_gradient_errors;
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
        assert_close(&format!("{} in f32", case.name), &run(case, &case.inputs_as(DType::F32)).to_f64_vec(), &want, case.tolerance);
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
