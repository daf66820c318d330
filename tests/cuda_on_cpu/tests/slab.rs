//! kernels/ewc.cu, repulsion.cu and optimizer.cu against loops in double precision.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, PushKernelArg};
use support::{Geometry, Gpu, bf16_bits, grid, numbers};

mod support;

const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SlabChunk {
    begin: i64,
    count: i32,
    weight: f32,
    tensor: i32,
    first: i32,
    shadow: i64,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/slab.cuh.
unsafe impl DeviceRepr for SlabChunk {}

#[repr(C)]
#[derive(Clone, Copy)]
struct RepulsionParams {
    models: f64,
    spread: f64,
    gamma: f32,
    alpha: f32,
    kind: i32,
    padding: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/repulsion.cuh.
unsafe impl DeviceRepr for RepulsionParams {}

#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
struct RepulsionState {
    distance: f64,
    loss: f64,
    gradient_scale: f32,
    padding: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/repulsion.cuh.
unsafe impl DeviceRepr for RepulsionState {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AdamParams {
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    regularise: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/optimizer.cu.
unsafe impl DeviceRepr for AdamParams {}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct AdamState {
    beta1_power: f64,
    beta2_power: f64,
    learning_rate: f32,
    ema_decay: f32,
    correction1: f32,
    sqrt_correction2: f32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/optimizer.cu.
unsafe impl DeviceRepr for AdamState {}

/// Tensors of these sizes one behind the other: shorter than a vector, across its borders, longer than a block's step.
const TENSORS: [usize; 9] = [1, 3, 5, 4, 1030, 2, 4096, 7, 2500];

struct Layout {
    chunks: Vec<SlabChunk>,
    /// The weight of each element's tensor.
    weights: Vec<f64>,
    /// Elements of the low-precision copy, in which two tensors of three begin at multiples of eight.
    copied: usize,
}

fn layout() -> Layout {
    const CHUNK: usize = 2048;
    let (mut chunks, mut weights, mut begin, mut copied) = (Vec::new(), Vec::new(), 0, 0);
    for (tensor, &size) in TENSORS.iter().enumerate() {
        let weight = 1.0 / (1.0 + tensor as f32);
        let shadow = (tensor % 3 != 1).then_some(copied);
        for start in (0..size).step_by(CHUNK) {
            let count = CHUNK.min(size - start) as i32;
            chunks.push(SlabChunk {
                begin: (begin + start) as i64,
                count,
                weight,
                tensor: tensor as i32,
                first: start as i32,
                shadow: shadow.map_or(-1, |shadow| (shadow + start) as i64),
            });
        }
        weights.extend(std::iter::repeat_n(f64::from(weight), size));
        begin += size;
        if shadow.is_some() {
            copied = (copied + size).next_multiple_of(8);
        }
    }
    Layout {
        chunks,
        weights,
        copied,
    }
}

/// A slab longer than its tensors: what lies behind them must not be touched.
const GUARD: usize = 8;
const GUARD_VALUE: f32 = -77.0;

fn slab(values: &[f32]) -> Vec<f32> {
    values
        .iter()
        .copied()
        .chain(std::iter::repeat_n(GUARD_VALUE, GUARD))
        .collect()
}

fn without_guard(mut slab: Vec<f32>) -> Vec<f32> {
    let guard = slab.split_off(slab.len() - GUARD);
    assert_eq!(
        guard, [GUARD_VALUE; GUARD],
        "written behind the last tensor"
    );
    slab
}

/// What every pass over chunks takes besides its slabs.
struct Pass {
    gpu: Gpu,
    chunks: CudaSlice<SlabChunk>,
    partials: CudaSlice<f64>,
    arrivals: CudaSlice<u32>,
    geometry: Geometry,
}

impl Pass {
    fn new(stem: &str, layout: &Layout) -> Pass {
        let gpu = Gpu::with_kernels(stem);
        let (chunks, partials) = (
            gpu.upload(&layout.chunks),
            gpu.uninitialised(layout.chunks.len()),
        );
        let arrivals = gpu.zeros(1);
        Pass {
            chunks,
            partials,
            arrivals,
            geometry: grid(layout.chunks.len() as u32, THREADS),
            gpu,
        }
    }

    /// Uploads a slab with its guard behind it.
    fn slab(&self, values: &[f32]) -> CudaSlice<f32> {
        self.gpu.upload(&slab(values))
    }

    fn values(&self, slab: &CudaSlice<f32>) -> Vec<f32> {
        without_guard(self.gpu.download(slab))
    }
}

const MOST_TENSORS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
struct Gradients {
    of: [u64; MOST_TENSORS],
}
// SAFETY: plain numbers, in the layout of the struct in kernels/slab.cuh.
unsafe impl DeviceRepr for Gradients {}

/// Each tensor's part of `values` by itself, at a multiple of 16 bytes: in step with the slab for some tensors, out of
/// step for others.
fn gradients(gpu: &Gpu, values: &[f32]) -> (CudaSlice<f32>, Gradients) {
    let (mut packed, mut begin, mut starts) = (Vec::new(), 0, Vec::new());
    for size in TENSORS {
        starts.push(packed.len());
        packed.extend_from_slice(&values[begin..begin + size]);
        packed.resize(packed.len().next_multiple_of(4), GUARD_VALUE);
        begin += size;
    }
    let buffer = gpu.upload(&packed);
    let address = buffer.device_ptr(&gpu.stream).0;
    let mut of = [0; MOST_TENSORS];
    for (to, start) in of.iter_mut().zip(starts) {
        *to = address + (start * size_of::<f32>()) as u64;
    }
    (buffer, Gradients { of })
}

fn in_every_order<R: PartialEq + std::fmt::Debug>(run: impl Fn() -> R) -> R {
    let mut results = orders()
        .iter()
        .map(|&order| (order, with_order(order, &run)));
    let (_, first) = results.next().expect("an order");
    for (order, result) in results {
        assert_eq!(result, first, "{order:?}");
    }
    first
}

fn assert_close(what: &str, got: &[f32], expected: &[f64], relative: f64) {
    assert_eq!(got.len(), expected.len());
    let scale = expected
        .iter()
        .fold(0f64, |largest, x| largest.max(x.abs()));
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        assert!(
            error <= relative * scale,
            "{what}[{i}]: {got}, expected {expected}"
        );
    }
}

fn assert_near(what: &str, got: f64, expected: f64, relative: f64) {
    assert!(
        (got - expected).abs() <= relative * expected.abs(),
        "{what}: {got}, expected {expected}"
    );
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Non-negative, as a Fisher diagonal or a second moment.
fn squares(count: usize, seed: u64) -> Vec<f32> {
    numbers(count, seed).iter().map(|x| x * x).collect()
}

// Sums of at most ten thousand f32 terms, eight of them per thread added in f32.
const SUM_TOLERANCE: f64 = 1e-6;
// A handful of f32 operations per element.
const ELEMENT_TOLERANCE: f64 = 1e-6;

// ---- ewc.cu

#[test]
fn ewc_penalty_and_gradient() {
    let layout = layout();
    let n = layout.weights.len();
    let (theta, anchor, fisher, grad) =
        (numbers(n, 1), numbers(n, 2), squares(n, 3), numbers(n, 4));
    let lambda = 3.5f32;
    let (penalty, alone, new_grad) = in_every_order(|| {
        let mut pass = Pass::new("ewc", &layout);
        let (t, a, f) = (pass.slab(&theta), pass.slab(&anchor), pass.slab(&fisher));
        let (mut g, mut penalty, mut alone) = (
            pass.slab(&grad),
            pass.gpu.zeros::<f64>(1),
            pass.gpu.zeros::<f64>(1),
        );
        let Pass {
            gpu,
            chunks,
            partials,
            arrivals,
            geometry,
        } = &mut pass;
        gpu.launch(&gpu.function("ewc_penalty_grad_f32"), *geometry, |args| {
            args.arg(&t).arg(&a).arg(&f).arg(&mut g).arg(&*chunks);
            args.arg(&mut *partials)
                .arg(&mut *arrivals)
                .arg(&mut penalty)
                .arg(&lambda);
        })
        .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
        // The same counter of arrivals again: the first launch has left it at zero.
        gpu.launch(&gpu.function("ewc_penalty_f32"), *geometry, |args| {
            args.arg(&t).arg(&a).arg(&f).arg(&*chunks);
            args.arg(&mut *partials)
                .arg(&mut *arrivals)
                .arg(&mut alone)
                .arg(&lambda);
        })
        .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
        (
            pass.gpu.download(&penalty)[0],
            pass.gpu.download(&alone)[0],
            pass.values(&g),
        )
    });
    let (theta, anchor, fisher, grad) = (wide(&theta), wide(&anchor), wide(&fisher), wide(&grad));
    let distance = |i: usize| theta[i] - anchor[i];
    let expected: f64 = (0..n)
        .map(|i| fisher[i] * distance(i) * distance(i))
        .sum::<f64>()
        * 0.5
        * f64::from(lambda);
    assert_near("penalty", penalty, expected, SUM_TOLERANCE);
    assert_eq!(penalty, alone);
    let expected: Vec<f64> = (0..n)
        .map(|i| grad[i] + f64::from(lambda) * fisher[i] * distance(i))
        .collect();
    assert_close("gradient", &new_grad, &expected, ELEMENT_TOLERANCE);
}

// ---- repulsion.cu

const NONE: i32 = 0;
const EXPONENTIAL: i32 = 1;
const NEGATIVE: i32 = 2;
const INVERSE: i32 = 3;

/// sum_t w_t |a_t - b_t|^2.
fn weighted_distance(layout: &Layout, a: &[f64], b: &[f64]) -> f64 {
    (0..a.len())
        .map(|i| layout.weights[i] * (a[i] - b[i]).powi(2))
        .sum()
}

/// R(V) and R'(V).
fn repulsion_loss(kind: i32, gamma: f64, alpha: f64, v: f64) -> (f64, f64) {
    match kind {
        EXPONENTIAL => (
            gamma * (-alpha * v).exp(),
            -alpha * gamma * (-alpha * v).exp(),
        ),
        NEGATIVE => (-gamma * v, -gamma),
        INVERSE => (gamma / v, -gamma / (v * v)),
        _ => (0.0, 0.0),
    }
}

/// Runs repulsion_norm_f32, then repulsion_grad_f32 on a gradient of zeros.
fn repulsion(
    layout: &Layout,
    theta: &[f32],
    centroid: &[f32],
    params: RepulsionParams,
) -> (RepulsionState, Vec<f32>) {
    let mut pass = Pass::new("repulsion", layout);
    let (t, c, mut g) = (
        pass.slab(theta),
        pass.slab(centroid),
        pass.slab(&vec![0.0; theta.len()]),
    );
    let mut state = pass.gpu.uninitialised::<RepulsionState>(1);
    let Pass {
        gpu,
        chunks,
        partials,
        arrivals,
        geometry,
    } = &mut pass;
    gpu.launch(&gpu.function("repulsion_norm_f32"), *geometry, |args| {
        args.arg(&t)
            .arg(&c)
            .arg(&*chunks)
            .arg(&mut *partials)
            .arg(&mut *arrivals)
            .arg(&mut state)
            .arg(&params);
    })
    .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    gpu.launch(&gpu.function("repulsion_grad_f32"), *geometry, |args| {
        args.arg(&t).arg(&c).arg(&mut g).arg(&*chunks).arg(&state);
    })
    .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    (pass.gpu.download(&state)[0], pass.values(&g))
}

#[test]
fn repulsion_from_models_through_their_centroid() {
    let layout = layout();
    let n = layout.weights.len();
    let theta = numbers(n, 5);
    let models: Vec<Vec<f32>> = (0..3).map(|j| numbers(n, 10 + j)).collect();
    let centroid: Vec<f32> = (0..n)
        .map(|i| models.iter().map(|m| m[i]).sum::<f32>() / 3.0)
        .collect();
    let raw = RepulsionParams {
        models: 1.0,
        spread: 0.0,
        gamma: 0.0,
        alpha: 0.0,
        kind: NONE,
        padding: 0,
    };
    let spread: f64 = models
        .iter()
        .map(|model| repulsion(&layout, model, &centroid, raw).0.distance)
        .sum();

    let wide_theta = wide(&theta);
    let distance: f64 = models
        .iter()
        .map(|model| weighted_distance(&layout, &wide_theta, &wide(model)))
        .sum();
    for (kind, gamma, alpha) in [
        (EXPONENTIAL, 100.0, 0.003),
        (NEGATIVE, 0.7, 0.0),
        (INVERSE, 10.0, 0.0),
    ] {
        let params = RepulsionParams {
            models: 3.0,
            spread,
            gamma,
            alpha,
            kind,
            padding: 0,
        };
        let (state, grad) = in_every_order(|| {
            let (state, grad) = repulsion(&layout, &theta, &centroid, params);
            ((state.distance, state.loss, state.gradient_scale), grad)
        });
        let (loss, slope) = repulsion_loss(kind, f64::from(gamma), f64::from(alpha), distance);
        assert_near("distance", state.0, distance, SUM_TOLERANCE);
        // An error of the distance is multiplied by alpha V in the exponential loss.
        assert_near("loss", state.1, loss, SUM_TOLERANCE * 100.0);
        // dR/dtheta = R'(V) sum_j 2 w (theta - theta_j), written out over the models.
        let expected: Vec<f64> = (0..n)
            .map(|i| {
                let pull: f64 = models.iter().map(|m| wide_theta[i] - f64::from(m[i])).sum();
                slope * 2.0 * layout.weights[i] * pull
            })
            .collect();
        assert_close("gradient", &grad, &expected, ELEMENT_TOLERANCE * 100.0);
    }
}

#[test]
fn inverse_repulsion_is_finite_at_its_pole() {
    let layout = layout();
    let theta = numbers(layout.weights.len(), 6);
    let params = RepulsionParams {
        models: 1.0,
        spread: 0.0,
        gamma: 1.0,
        alpha: 0.0,
        kind: INVERSE,
        padding: 0,
    };
    let (state, grad) = repulsion(&layout, &theta, &theta, params);
    assert_eq!((state.distance, state.loss), (0.0, 1e12));
    assert!(state.gradient_scale.is_finite());
    assert!(grad.iter().all(|&g| g == 0.0));
}

// ---- optimizer.cu

#[derive(Clone, Copy, PartialEq, Debug)]
enum Regulariser {
    None,
    Ewc,
    Repulsion,
}

#[derive(Clone, Copy, Debug)]
struct AdamCase {
    beta1: f32,
    ema: bool,
    shadow: bool,
    regulariser: Regulariser,
    regularise: bool,
}

const STEPS: usize = 2;
const BETA2: f32 = 0.99;
const EPSILON: f32 = 1e-8;
const LEARNING_RATE: f32 = 0.002;
const EMA_DECAY: f32 = 0.95;
const LAMBDA: f32 = 2.0;
const MODELS: f64 = 4.0;
const SPREAD: f64 = 5.0;

fn away(kind: i32) -> RepulsionParams {
    RepulsionParams {
        models: MODELS,
        spread: SPREAD,
        gamma: 0.4,
        alpha: 0.001,
        kind,
        padding: 0,
    }
}

#[derive(Debug, PartialEq)]
struct AdamResult {
    theta: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
    ema: Vec<f32>,
    shadow: Vec<u16>,
    /// The penalty before the last step, or the distance after it.
    value: f64,
}

fn run_adam(layout: &Layout, case: AdamCase) -> AdamResult {
    let n = layout.weights.len();
    let mut pass = Pass::new("optimizer", layout);
    let start = numbers(n, 20);
    let mut theta = pass.slab(&start);
    let (_kept, grad) = gradients(&pass.gpu, &numbers(n, 21));
    let (mut m, mut v, mut ema) = (
        pass.slab(&vec![0.0; n]),
        pass.slab(&squares(n, 22)),
        pass.slab(&start),
    );
    let mut shadow = pass.gpu.upload(&vec![0u16; layout.copied]);
    let (anchor, fisher) = (pass.slab(&numbers(n, 23)), pass.slab(&squares(n, 24)));
    let mut state = pass.gpu.upload(&[AdamState {
        beta1_power: f64::from(case.beta1),
        beta2_power: f64::from(BETA2),
        learning_rate: LEARNING_RATE,
        ema_decay: EMA_DECAY,
        correction1: (1.0 / (1.0 - f64::from(case.beta1))) as f32,
        sqrt_correction2: (1.0 / (1.0 - f64::from(BETA2)).sqrt()) as f32,
    }]);
    let params = AdamParams {
        beta1: case.beta1,
        beta2: BETA2,
        epsilon: EPSILON,
        regularise: i32::from(case.regularise),
    };
    let (mut penalty, null) = (pass.gpu.zeros::<f64>(1), 0u64);
    let distance =
        weighted_distance(layout, &wide(&start), &wide(&numbers(n, 23))) * MODELS + SPREAD;
    let slope = repulsion_loss(EXPONENTIAL, 0.4f32.into(), 0.001f32.into(), distance).1;
    let mut repulsion = pass.gpu.upload(&[RepulsionState {
        distance,
        gradient_scale: (2.0 * MODELS * slope) as f32,
        ..RepulsionState::default()
    }]);
    let Pass {
        gpu,
        chunks,
        partials,
        arrivals,
        geometry,
    } = &mut pass;
    let kernel = match case.regulariser {
        Regulariser::None => "adam_f32",
        Regulariser::Ewc => "adam_ewc_f32",
        Regulariser::Repulsion => "adam_repulsion_f32",
    };
    let repulsion_params = away(EXPONENTIAL);
    for _ in 0..STEPS {
        gpu.launch(&gpu.function(kernel), *geometry, |args| {
            args.arg(&mut theta).arg(&grad);
            if case.beta1 == 0.0 {
                args.arg(&null)
            } else {
                args.arg(&mut m)
            };
            args.arg(&mut v);
            if case.ema {
                args.arg(&mut ema)
            } else {
                args.arg(&null)
            };
            if case.shadow {
                args.arg(&mut shadow)
            } else {
                args.arg(&null)
            };
            args.arg(&*chunks)
                .arg(&mut *arrivals)
                .arg(&mut state)
                .arg(&params);
            match case.regulariser {
                Regulariser::None => args,
                Regulariser::Ewc => args
                    .arg(&anchor)
                    .arg(&fisher)
                    .arg(&mut *partials)
                    .arg(&mut penalty)
                    .arg(&LAMBDA),
                Regulariser::Repulsion => args
                    .arg(&anchor)
                    .arg(&mut *partials)
                    .arg(&mut repulsion)
                    .arg(&repulsion_params),
            };
        })
        .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    }
    let value = match case.regulariser {
        Regulariser::Repulsion => pass.gpu.download(&repulsion)[0].distance,
        _ => pass.gpu.download(&penalty)[0],
    };
    AdamResult {
        theta: pass.values(&theta),
        m: pass.values(&m),
        v: pass.values(&v),
        ema: pass.values(&ema),
        shadow: pass.gpu.download(&shadow),
        value,
    }
}

struct Expected {
    theta: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    ema: Vec<f64>,
    value: f64,
}

/// The formulas of the kernel's header, in f64.
fn expected_adam(layout: &Layout, case: AdamCase) -> Expected {
    let n = layout.weights.len();
    let mut theta = wide(&numbers(n, 20));
    let (grad, anchor, fisher) = (
        wide(&numbers(n, 21)),
        wide(&numbers(n, 23)),
        wide(&squares(n, 24)),
    );
    let (mut m, mut v, mut ema) = (vec![0.0; n], wide(&squares(n, 22)), theta.clone());
    let (beta1, beta2, decay) = (
        f64::from(case.beta1),
        f64::from(BETA2),
        f64::from(EMA_DECAY),
    );
    let value = |theta: &[f64]| match case.regulariser {
        Regulariser::None => 0.0,
        Regulariser::Ewc => {
            f64::from(LAMBDA) / 2.0
                * (0..n)
                    .map(|i| fisher[i] * (theta[i] - anchor[i]).powi(2))
                    .sum::<f64>()
        }
        Regulariser::Repulsion => MODELS * weighted_distance(layout, theta, &anchor) + SPREAD,
    };
    let mut before = 0.0;
    for t in 1..=STEPS as i32 {
        before = value(&theta);
        let slope = repulsion_loss(EXPONENTIAL, 0.4f32.into(), 0.001f32.into(), before).1;
        for i in 0..n {
            let mut g = grad[i];
            if case.regularise {
                g += match case.regulariser {
                    Regulariser::None => 0.0,
                    Regulariser::Ewc => f64::from(LAMBDA) * fisher[i] * (theta[i] - anchor[i]),
                    Regulariser::Repulsion => {
                        slope * 2.0 * MODELS * layout.weights[i] * (theta[i] - anchor[i])
                    }
                };
            }
            m[i] = beta1 * m[i] + (1.0 - beta1) * g;
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
            let corrected = (v[i] / (1.0 - beta2.powi(t))).sqrt() + f64::from(EPSILON);
            theta[i] -= f64::from(LEARNING_RATE) / (1.0 - beta1.powi(t)) * m[i] / corrected;
            ema[i] = decay * ema[i] + (1.0 - decay) * theta[i];
        }
    }
    Expected {
        value: match case.regulariser {
            Regulariser::Ewc => before,
            _ => value(&theta),
        },
        theta,
        m,
        v,
        ema,
    }
}

#[test]
fn adam_in_all_its_variants() {
    let layout = layout();
    let zeros = vec![0.0; layout.weights.len()];
    for regulariser in [Regulariser::None, Regulariser::Ewc, Regulariser::Repulsion] {
        for (beta1, ema, shadow, regularise) in [
            (0.0, true, true, true),
            (0.9, false, false, true),
            (0.0, false, true, false),
            (0.5, true, false, false),
        ] {
            let case = AdamCase {
                beta1,
                ema,
                shadow,
                regulariser,
                regularise,
            };
            let got = in_every_order(|| run_adam(&layout, case));
            let expected = expected_adam(&layout, case);
            assert_close("theta", &got.theta, &expected.theta, ELEMENT_TOLERANCE);
            assert_close("v", &got.v, &expected.v, ELEMENT_TOLERANCE);
            assert_close(
                "m",
                &got.m,
                if beta1 == 0.0 { &zeros } else { &expected.m },
                ELEMENT_TOLERANCE,
            );
            let start = wide(&numbers(layout.weights.len(), 20));
            assert_close(
                "ema",
                &got.ema,
                if ema { &expected.ema } else { &start },
                ELEMENT_TOLERANCE,
            );
            let mut copy = vec![0; layout.copied];
            for chunk in layout.chunks.iter().filter(|c| shadow && c.shadow >= 0) {
                let (to, from) = (chunk.shadow as usize, chunk.begin as usize);
                for i in 0..chunk.count as usize {
                    copy[to + i] = bf16_bits(got.theta[from + i]);
                }
            }
            assert_eq!(got.shadow, copy, "{case:?}");
            assert_near("value", got.value, expected.value, SUM_TOLERANCE);
        }
    }
}

#[test]
fn address_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Addresses);
}

#[test]
fn thread_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Races);
}
