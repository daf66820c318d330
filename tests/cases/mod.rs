//! The case lists: every op on the shapes and options that its specs allow, as data. One file per family, with the
//! family's stem. Whoever includes this file decides what to do with a case: compare with the plain reference, check
//! adjoints and gradients, compare devices, or time it.
#![allow(dead_code)]

pub mod bias_act;
pub mod conv2d;
pub mod elementwise;
pub mod layout;
pub mod matmul;
pub mod pool2d;
pub mod reduce;
pub mod resize;
pub mod upfirdn2d;

use recant::autograd::Var;
use recant::error::Result;
use recant::ops::random::Random;
use recant::tensor::{DType, Tensor};

pub type OnTensors = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;
pub type OnVars = Box<dyn Fn(&[Var]) -> Result<Var> + Send + Sync>;
/// Plain loops over the inputs' values; what is returned is row-major.
pub type Reference = Box<dyn Fn(&[Tensor]) -> Vec<f64> + Send + Sync>;

/// One op call.
pub struct Case {
    pub name: String,
    /// In f64; a test of another dtype or device converts them.
    pub inputs: Vec<Tensor>,
    pub run: OnTensors,
    pub reference: Reference,
    /// For an op that is linear in its first input: the transposed map, given the inputs with the first one replaced
    /// by something of the output's shape.
    pub adjoint: Option<OnTensors>,
    /// The same call with history, if the op is differentiable.
    pub on_vars: Option<OnVars>,
    /// Whether the inputs are few enough for finite differences of all of them.
    pub gradcheck: bool,
    /// How far f32 may be from the reference.
    pub tolerance: Tolerance,
    /// How far on the CPU, which may compute by a form that rounds more.
    pub cpu_tolerance: Tolerance,
    /// How the op takes bf16 on a GPU, if it does.
    pub bf16: Option<InBf16>,
}

/// An op with activations of bf16.
#[derive(Clone, Copy, Debug)]
pub struct InBf16 {
    /// How many of the inputs, from the first, are activations; the others are parameters and stay f32.
    pub activations: usize,
    pub output: DType,
    /// How far from the reference of inputs that bf16 holds.
    pub tolerance: Tolerance,
}

/// Half a unit in the last of bf16's eight places, relative.
const BF16_ROUNDING: f64 = 1.0 / 256.0;

impl Case {
    /// A case without derivative checks; the other parts are set by name.
    pub fn new(
        name: impl Into<String>,
        inputs: Vec<Tensor>,
        run: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
        reference: impl Fn(&[Tensor]) -> Vec<f64> + Send + Sync + 'static,
        tolerance: Tolerance,
    ) -> Case {
        let (run, reference) = (Box::new(run), Box::new(reference));
        Case { name: name.into(), inputs, run, reference, adjoint: None, on_vars: None, gradcheck: false, tolerance, cpu_tolerance: tolerance, bf16: None }
    }

    pub fn adjoint(mut self, f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static) -> Case {
        self.adjoint = Some(Box::new(f));
        self
    }

    /// The op with history; gradients are checked when the inputs are small.
    pub fn on_vars(mut self, f: impl Fn(&[Var]) -> Result<Var> + Send + Sync + 'static) -> Case {
        self.on_vars = Some(Box::new(f));
        self.gradcheck = self.inputs.iter().map(Tensor::len).sum::<usize>() <= GRADCHECK_VALUES;
        self
    }

    pub fn cpu_tolerance(mut self, tolerance: Tolerance) -> Case {
        self.cpu_tolerance = tolerance;
        self
    }

    /// The op takes so many activations as bf16 and gives such a result, rounded once where that is bf16.
    pub fn in_bf16(mut self, activations: usize, output: DType) -> Case {
        let rounding = if output == DType::Bf16 { BF16_ROUNDING } else { 0.0 };
        let tolerance = Tolerance { rel: self.tolerance.rel + rounding, ..self.tolerance };
        self.bf16 = Some(InBf16 { activations, output, tolerance });
        self
    }

    /// The same where `terms` products of standard normal values are rounded once more each before they are added: such
    /// errors are up to 2^-8 of a term, 2^-9.8 in the mean square, and add up like a random walk; the largest of many
    /// outputs is several standard deviations out.
    pub fn in_bf16_with_rounded_terms(self, activations: usize, output: DType, terms: usize) -> Case {
        let mut case = self.in_bf16(activations, output);
        let rounded = case.bf16.as_mut().expect("it has just been set");
        rounded.tolerance = Tolerance { abs: rounded.tolerance.abs + 4.0 * BF16_ROUNDING * (terms as f64).sqrt(), ..rounded.tolerance };
        case
    }

    /// Leaves gradients of this case to others: they hold, but finite differences cannot tell.
    pub fn without_gradcheck(mut self) -> Case {
        self.gradcheck = false;
        self
    }

    /// The inputs in another dtype.
    pub fn inputs_as(&self, dtype: DType) -> Vec<Tensor> {
        self.inputs.iter().map(|t| t.to_dtype(dtype)).collect()
    }
}

/// Finite differences run the op and its gradient four times per input value.
const GRADCHECK_VALUES: usize = 400;

/// Allowed distance from a reference value `v`: `abs + rel · |v|`, and why.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
    pub reason: &'static str,
}

impl Tolerance {
    /// One rounding or none.
    pub const EXACT: Tolerance = Tolerance { abs: 1e-30, rel: 1.2e-7, reason: "at most one rounding of the same operation" };

    /// A sum of `terms` products of standard normal values in another order: each of the `terms` roundings is half an
    /// ulp (6e-8) of a partial sum near `√terms`, they add up like a random walk, and the largest of many outputs is
    /// several standard deviations out.
    pub fn sum_of(terms: usize) -> Tolerance {
        Tolerance { abs: 1e-6 * (terms.max(1) as f64).sqrt().max(1.0) * 2.0, rel: 1e-6, reason: "sum of products in another order" }
    }
}

/// Panics with the worst element when `got` is not within `tolerance` of `want`.
pub fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: Tolerance) {
    assert_eq!(got.len(), want.len(), "{what}: number of elements");
    let excess = |i: usize| match (got[i] - want[i]).abs() {
        0.0 => 0.0,
        distance => distance / (tolerance.abs + tolerance.rel * want[i].abs()),
    };
    let worst = (0..got.len()).map(|i| (i, excess(i))).fold((0, 0.0), |w, v| if v.1 > w.1 || v.1.is_nan() { v } else { w });
    assert!(worst.1 <= 1.0, "{what}: element {} is {}, expected {} ({:.2} times {tolerance:?})", worst.0, got[worst.0], want[worst.0], worst.1);
}

/// Standard normal values rounded to f32, so that f32 and f64 runs start from the same numbers.
pub fn normal(stream: u64, shape: &[usize]) -> Tensor {
    Random::new(3, stream).normal(shape).to_dtype(DType::F64)
}

/// Values in about (0.5, 1.5), for scales and arguments of logarithms and powers.
pub fn positive(stream: u64, shape: &[usize]) -> Tensor {
    let values = normal(stream, shape).to_vec::<f64>().iter().map(|v| (1.0 + 0.5 * v.tanh()) as f32 as f64).collect();
    Tensor::from_vec(shape, values)
}

/// Every family's cases.
pub fn families() -> Vec<(&'static str, Vec<Case>)> {
    vec![
        ("bias_act", bias_act::cases()),
        ("conv2d", conv2d::cases()),
        ("elementwise", elementwise::cases()),
        ("layout", layout::cases()),
        ("matmul", matmul::cases()),
        ("pool2d", pool2d::cases()),
        ("reduce", reduce::cases()),
        ("resize", resize::cases()),
        ("upfirdn2d", upfirdn2d::cases()),
    ]
}
