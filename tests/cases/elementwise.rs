//! Cases of the elementwise family: every function, below and above the size where threads share the work.

use super::{Case, Tolerance, normal, positive};
use recant::autograd::{self, Var};
use recant::error::Result;
use recant::ops::elementwise::{Map, Power, Zip, channel_scale, map, saturate, zip};
use recant::tensor::DType;

const SMALL: &[usize] = &[3, 2, 5];
const LARGE: &[usize] = &[9, 50, 41];

const LIBRARY: Tolerance = Tolerance { abs: 1e-6, rel: 2e-6, reason: "a few roundings and the library's f32 function" };
const ROUNDED: Tolerance = Tolerance { abs: 1e-6, rel: 2.5e-7, reason: "two roundings of values up to about 5" };

type VarMap = fn(&Var) -> Result<Var>;

type VarZip = fn(&Var, &Var) -> Result<Var>;
/// Name, the op's function, the same by the library, on variables, and how near they are.
type MapCase = (&'static str, Map, fn(f64) -> f64, VarMap, Tolerance);
type ZipCase = (Zip, fn(f64, f64) -> f64, VarZip);

fn maps() -> Vec<MapCase> {
    vec![
        ("scale", Map::Affine { scale: -1.7, shift: 0.0 }, |x| -1.7 * x, |v| autograd::scale(v, -1.7), ROUNDED),
        ("shift", Map::Affine { scale: 1.0, shift: 0.3 }, |x| x + 0.3, |v| autograd::power(v, Power { gain: 1.0, shift: 0.3, exponent: 1.0 }), ROUNDED),
        ("square", Map::Power(Power::of(2.0)), |x| x * x, |v| autograd::power(v, Power::of(2.0)), LIBRARY),
        ("power 1", Map::Power(Power::of(1.0)), |x| x, |v| autograd::power(v, Power::of(1.0)), Tolerance::EXACT),
        ("square root", Map::Power(Power::of(0.5)), f64::sqrt, |v| autograd::power(v, Power::of(0.5)), LIBRARY),
        ("inverse square root", Map::Power(Power::of(-0.5)), |x| 1.0 / x.sqrt(), |v| autograd::power(v, Power::of(-0.5)), LIBRARY),
        ("inverse", Map::Power(Power::of(-1.0)), |x| 1.0 / x, |v| autograd::power(v, Power::of(-1.0)), LIBRARY),
        ("power 2.3", Map::Power(Power::of(2.3)), |x| x.powf(2.3), |v| autograd::power(v, Power::of(2.3)), LIBRARY),
        (
            "power 2 of a sum, scaled",
            Map::Power(Power { gain: -1.5, shift: 0.4, exponent: 2.0 }),
            |x| -1.5 * (x + 0.4).powi(2),
            |v| autograd::power(v, Power { gain: -1.5, shift: 0.4, exponent: 2.0 }),
            LIBRARY,
        ),
        (
            "inverse square root of a sum, scaled",
            Map::Power(Power { gain: 0.7, shift: 0.2, exponent: -0.5 }),
            |x| 0.7 / (x + 0.2).sqrt(),
            |v| autograd::power(v, Power { gain: 0.7, shift: 0.2, exponent: -0.5 }),
            LIBRARY,
        ),
        (
            "power 0.3 of a sum, scaled",
            Map::Power(Power { gain: 2.0, shift: 0.2, exponent: 0.3 }),
            |x| 2.0 * (x + 0.2).powf(0.3),
            |v| autograd::power(v, Power { gain: 2.0, shift: 0.2, exponent: 0.3 }),
            LIBRARY,
        ),
        ("exp", Map::Exp, f64::exp, autograd::exp, LIBRARY),
        ("log", Map::Log, f64::ln, autograd::log, LIBRARY),
        ("sigmoid", Map::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), autograd::sigmoid, LIBRARY),
        ("tanh", Map::Tanh, f64::tanh, autograd::tanh, LIBRARY),
        ("softplus", Map::Softplus, |x| x.exp().ln_1p(), autograd::softplus, LIBRARY),
    ]
}

/// Functions that are linear are their own adjoint here.
fn linear(f: Map) -> bool {
    matches!(f, Map::Affine { shift: 0.0, .. }) || f == Map::Power(Power::of(1.0))
}

fn zips() -> Vec<ZipCase> {
    vec![(Zip::Add, |a, b| a + b, autograd::add), (Zip::Sub, |a, b| a - b, autograd::sub), (Zip::Mul, |a, b| a * b, autograd::mul)]
}

fn scale_case(shape: &[usize]) -> Case {
    let (n, c) = (shape[0], *shape.last().expect("channels"));
    Case::new(
        format!("channel_scale {shape:?}"),
        vec![normal(0, shape), normal(1, &[n, c])],
        |t| channel_scale(&t[0], &t[1]),
        move |t| {
            let (x, s) = (t[0].to_f64_vec(), t[1].to_f64_vec());
            let per_sample = x.len() / n.max(1);
            (0..x.len()).map(|i| x[i] * s[i / per_sample * c + i % c]).collect()
        },
        Tolerance::EXACT,
    )
    .adjoint(|t| channel_scale(&t[0], &t[1]))
    .on_vars(|v| autograd::channel_scale(&v[0], &v[1]))
    .in_bf16(1, DType::Bf16)
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, f, reference, on_vars, tolerance) in maps() {
        for shape in [SMALL, LARGE, &[0, 2]] {
            // Positive, so that powers and logarithms exist; both signs for the rest.
            let x = if matches!(f, Map::Power(_) | Map::Log) { positive(0, shape) } else { normal(0, shape) };
            let case = Case::new(
                format!("map {name} {shape:?}"),
                vec![x],
                move |t| map(&t[0], f),
                move |t| t[0].to_f64_vec().into_iter().map(reference).collect(),
                tolerance,
            )
            .on_vars(move |v| on_vars(&v[0]))
            .in_bf16(1, DType::Bf16);
            cases.push(if linear(f) { case.adjoint(move |t| map(&t[0], f)) } else { case });
        }
    }
    for shape in [SMALL, LARGE, &[0, 2]] {
        cases.push(Case::new(
            format!("saturate {shape:?}"),
            vec![normal(0, shape)],
            |t| saturate(&t[0], 0.7, 0.4),
            |t| t[0].to_f64_vec().into_iter().map(|x| (0.7 * x + 0.4).clamp(0.0, 1.0)).collect(),
            ROUNDED,
        ));
    }
    for (f, reference, on_vars) in zips() {
        for shape in [SMALL, LARGE] {
            let case = Case::new(
                format!("zip {f:?} {shape:?}"),
                vec![normal(0, shape), normal(1, shape)],
                move |t| zip(&t[0], &t[1], f),
                move |t| t[0].to_f64_vec().iter().zip(t[1].to_f64_vec()).map(|(a, b)| reference(*a, b)).collect(),
                Tolerance::EXACT,
            )
            .on_vars(move |v| on_vars(&v[0], &v[1]))
            .in_bf16(2, DType::Bf16);
            cases.push(if f == Zip::Mul { case.adjoint(move |t| zip(&t[0], &t[1], f)) } else { case });
        }
    }
    // Chunks that end inside a sample, samples smaller than a chunk, one large sample.
    cases.extend([&[2, 3, 2, 3][..], &[4, 5], &[7, 19, 23, 5], &[40, 3, 3, 48], &[1, 64, 64, 16], &[0, 3, 3, 2]].map(scale_case));
    cases
}
