//! CUDA against the CPU: every op that has a kernel, the random numbers, the slab passes, and the tiny StyleGAN2 of
//! tests/golden. The kernels run on the emulator of tests/cuda_on_cpu, in three orders of threads and blocks, with
//! memory that nobody has written poisoned; `RECANT_TEST_DEVICE=driver` runs the same on the machine's GPU.

mod cases;
mod common;

use std::collections::BTreeSet;

use cases::{InBf16, Tolerance, assert_close, families, normal, positive};
use common::gpu;
use common::stylegan2::{self as tiny, BOUND, arrays, weights};
use common::{assert_near, nhwc};
use cuda_on_cpu::{orders, with_order};
use half::bf16;
use recant::autograd::{Var, mul, sum};
use recant::device::cuda::{KERNELS, Workspace};
use recant::device::{CudaDevice, Device, Precision};
use recant::error::{Error, Result};
use recant::losses::{path_length, r1_penalty};
use recant::models::stylegan2::Styles;
use recant::nn::Params;
use recant::ops::bias_act::{Activation, Epilogue, bias_act, bias_act_grad};
use recant::ops::conv2d::{Conv2d, WeightGrad, conv2d, conv2d_act, conv2d_transpose, conv2d_weight_grad, conv2d_weight_grad_squared};
use recant::ops::elementwise::{Map, Power, Zip, cast, channel_scale, map, saturate, zip};
use recant::ops::layout::{concat, pad, permute, slice};
use recant::ops::matmul::{Read, matmul, matmul_scaled};
use recant::ops::optimizer::{Adam, Pull, RepulsionLoss, Resident, Slabs, accumulate_squares, adam_step, ewc, weighted_squared_distance};
use recant::ops::random::Random;
use recant::ops::reduce::{broadcast_to, channel_dot, sum_to};
use recant::ops::upfirdn2d::{RESAMPLE_TAPS, Upfirdn2d, upfirdn2d, upfirdn2d_act};
use recant::tensor::{DType, Tensor};
use recant::training::{NoRegulariser, Trainer};

fn all_on(device: &Device, tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| t.to_device(device).unwrap()).collect()
}

/// Runs an op in f64 on the CPU and in f32 on `device`, in every order of threads: close to it, and the same bits in all
/// orders. The inputs are f32 numbers.
fn compare(device: &Device, name: &str, inputs: &[Tensor], tolerance: Tolerance, run: &dyn Fn(&[Tensor]) -> Result<Tensor>) {
    compare_stored(device, name, inputs, InBf16 { activations: 0, output: DType::F32, tolerance }, run);
}

/// The same with some of the inputs as bf16 on `device`. The inputs are numbers that the types hold.
fn compare_stored(device: &Device, name: &str, inputs: &[Tensor], of: InBf16, run: &dyn Fn(&[Tensor]) -> Result<Tensor>) {
    let exact: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(DType::F64)).collect();
    let want = run(&exact).unwrap_or_else(|e| panic!("{name} on the CPU: {e}"));
    let mut first: Option<Vec<u32>> = None;
    for &order in orders() {
        let got = with_order(order, || {
            let mut there = all_on(device, &inputs.iter().map(|t| t.to_dtype(DType::F32)).collect::<Vec<_>>());
            there[..of.activations].iter_mut().for_each(|t| *t = cast(t, DType::Bf16).unwrap());
            let got = run(&there).unwrap_or_else(|e| panic!("{name}: {e} {}", cuda_on_cpu::last_error()));
            assert_eq!((got.device(), got.dtype()), (device.clone(), of.output), "{name}");
            got.to_device(&Device::Cpu).unwrap_or_else(|e| panic!("{name}: {e}"))
        });
        assert_eq!(got.shape(), want.shape(), "{name}");
        assert_close(&format!("{name} in {order:?} order"), &got.to_f64_vec(), &want.to_f64_vec(), of.tolerance);
        let bits: Vec<u32> = got.as_slice::<f32>().iter().map(|v| v.to_bits()).collect();
        assert!(*first.get_or_insert_with(|| bits.clone()) == bits, "{name}: other bits in {order:?} order");
    }
}

/// The nearest numbers that bf16 holds.
fn rounded(x: &Tensor) -> Tensor {
    Tensor::from_vec(x.shape(), x.to_f64_vec().into_iter().map(|v| bf16::from_f64(v).to_f64()).collect::<Vec<_>>())
}

const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0, reason: "elements are moved, not computed" };
const ROUNDING: Tolerance = Tolerance { abs: 3e-7, rel: 3e-7, reason: "two or three roundings, fused or not" };
const FUNCTION: Tolerance = Tolerance { abs: 1e-6, rel: 1e-6, reason: "maths functions of two libraries: a few units in the last place" };

/// `count` values that start one element behind an aligned address.
fn unaligned(x: &Tensor) -> Tensor {
    let rest = x.len() - 1;
    x.reshape(&[x.len()]).unwrap().segment(1, &[rest]).unwrap()
}

#[test]
fn the_kernel_list_is_what_the_sources_hold() {
    for (stem, entries) in KERNELS {
        let path = format!("{}/kernels/{stem}.cu", env!("CARGO_MANIFEST_DIR"));
        let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let defined: BTreeSet<String> = cuda_on_cpu::entries(&source).unwrap().into_iter().map(|e| e.name).collect();
        for entry in *entries {
            assert!(defined.contains(*entry), "{entry} is not in {path}");
        }
    }
}

/// The emulator runs what the GPU would, so every other test here has launches that may overlap.
#[test]
fn launches_overlap_where_the_code_waits() {
    if cuda_on_cpu::skip_on_driver("launches_overlap_where_the_code_waits") {
        return;
    }
    for (capability, overlaps) in [((9, 0), true), ((10, 0), true), ((8, 6), false)] {
        let device = Device::Cuda(gpu::cuda_of(capability, Precision::F32));
        let x = normal(1, &[4]).to_dtype(DType::F32).to_device(&device).unwrap();
        let before = cuda_on_cpu::overlapping_launches();
        map(&x, Map::Exp).unwrap();
        assert_eq!(cuda_on_cpu::overlapping_launches() - before, usize::from(overlaps), "{capability:?}");
    }
}

#[test]
fn elementwise() {
    let device = gpu::device();
    let (x, p) = (normal(1, &[3, 5, 7]), positive(2, &[3, 5, 7]));
    let maps = [Map::Affine { scale: -1.5, shift: 0.25 }, Map::Power(Power::of(2.0)), Map::Power(Power::of(1.0)), Map::Exp, Map::Sigmoid, Map::Tanh, Map::Softplus];
    for f in maps {
        compare(&device, &format!("{f:?}"), std::slice::from_ref(&x), FUNCTION, &|t| map(&t[0], f));
    }
    for f in [Map::Power(Power::of(0.5)), Map::Power(Power::of(-0.5)), Map::Power(Power::of(-1.0)), Map::Power(Power::of(1.7)), Map::Power(Power { gain: -2.0, shift: 0.3, exponent: -0.5 }), Map::Power(Power { gain: 0.5, shift: 0.3, exponent: 1.7 }), Map::Log] {
        compare(&device, &format!("{f:?}"), std::slice::from_ref(&p), FUNCTION, &|t| map(&t[0], f));
    }
    compare(&device, "saturate", std::slice::from_ref(&x), FUNCTION, &|t| saturate(&t[0], 0.5, 0.5));
    let nan = Tensor::from_vec(&[3], vec![f32::NAN, -7.0, 7.0]).to_device(&device).unwrap();
    let seen = saturate(&nan, 0.5, 0.5).unwrap().to_device(&Device::Cpu).unwrap().to_f64_vec();
    assert!(seen[0].is_nan() && seen[1..] == [0.0, 1.0], "{seen:?}");
    let long = normal(4, &[2, 3001]);
    compare(&device, "map, not aligned", std::slice::from_ref(&long), FUNCTION, &|t| map(&unaligned(&t[0]), Map::Exp));
    compare(&device, "map of nothing", &[normal(5, &[0, 3])], EXACT, &|t| map(&t[0], Map::Exp));
    for f in [Zip::Add, Zip::Sub, Zip::Mul] {
        compare(&device, &format!("{f:?}"), &[x.clone(), p.clone()], ROUNDING, &|t| zip(&t[0], &t[1], f));
    }
    compare(&device, "zip of rows", &[long], ROUNDING, &|t| zip(&t[0].rows(0, 1)?, &t[0].rows(1, 1)?, Zip::Add));
    for shape in [[2, 3, 4, 5], [2, 3, 4, 8], [1, 1, 1, 1], [3, 17, 9, 12]] {
        let scales = normal(7, &[shape[0], shape[3]]);
        compare(&device, &format!("channel_scale {shape:?}"), &[normal(6, &shape), scales], ROUNDING, &|t| channel_scale(&t[0], &t[1]));
    }
}

#[test]
fn reduce() {
    let device = gpu::device();
    // Rows, columns, both, a middle, one long sum in parts, few channels, more columns than a block has.
    let sums: [(&[usize], &[usize]); 10] = [
        (&[4, 5, 6], &[4, 5, 1]),
        (&[4, 5, 6], &[1, 5, 6]),
        (&[4, 5, 6], &[1, 1, 1]),
        (&[4, 5, 6], &[4, 1, 6]),
        (&[3, 4, 5, 6], &[3, 1, 5, 1]),
        (&[3, 4, 5, 6], &[1, 4, 1, 6]),
        (&[9000, 3], &[1, 3]),
        (&[1, 20_011], &[1, 1]),
        (&[700, 40], &[1, 40]),
        (&[300, 2], &[300, 1]),
    ];
    for (from, to) in sums {
        let terms = from.iter().product::<usize>() / to.iter().product::<usize>();
        compare(&device, &format!("sum_to {from:?} {to:?}"), &[normal(1, from)], Tolerance::sum_of(terms), &|t| sum_to(&t[0], to));
        compare(&device, &format!("broadcast_to {to:?} {from:?}"), &[normal(2, to)], EXACT, &|t| broadcast_to(&t[0], from));
    }
    compare(&device, "sum_to of nothing", &[normal(3, &[0, 4])], EXACT, &|t| sum_to(&t[0], &[1, 4]));
    for shape in [[2, 3, 4, 5], [3, 9, 7, 33], [1, 50, 60, 2], [2, 1, 1, 8]] {
        let terms = shape[1] * shape[2];
        let inputs = [normal(4, &shape), normal(5, &shape)];
        compare(&device, &format!("channel_dot {shape:?}"), &inputs, Tolerance::sum_of(terms), &|t| channel_dot(&t[0], &t[1]));
    }
}

#[test]
fn layout() {
    let device = gpu::device();
    let x = normal(1, &[3, 4, 5, 8]);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 1, 2], [1, 0, 2, 3], [0, 2, 1, 3]] {
        compare(&device, &format!("permute {order:?}"), std::slice::from_ref(&x), EXACT, &|t| permute(&t[0], &order));
    }
    for (axis, start, len) in [(0, 1, 2), (1, 1, 3), (2, 0, 1), (3, 4, 4), (3, 1, 5), (2, 2, 0)] {
        compare(&device, &format!("slice {axis} {start} {len}"), std::slice::from_ref(&x), EXACT, &|t| slice(&t[0], axis, start, len));
        compare(&device, &format!("pad {axis} {start}"), std::slice::from_ref(&x), EXACT, &|t| pad(&t[0], axis, start, start + 9));
    }
    for axis in 0..4 {
        let mut other = [3, 4, 5, 8];
        other[axis] = 3;
        compare(&device, &format!("concat {axis}"), &[x.clone(), normal(2, &other)], EXACT, &|t| concat(&[&t[0], &t[1], &t[0]], axis));
    }
    compare(&device, "rows are not aligned", &[normal(3, &[5, 3])], EXACT, &|t| permute(&t[0].rows(1, 3)?, &[1, 0]));
}

#[test]
fn bias_act_and_its_gradient() {
    let device = gpu::device();
    for shape in [[2, 3, 4, 8], [3, 2, 5, 3]] {
        let (x, bias) = (normal(1, &shape), normal(2, &[shape[3]]));
        let (noise, one, strength) = (normal(3, &[shape[0], shape[1], shape[2], 1]), normal(4, &[1, shape[1], shape[2], 1]), normal(5, &[1]));
        let inputs = [x, bias, noise, one, strength];
        for act in [Activation::LEAKY_RELU, Activation::RELU, Activation::LINEAR] {
            let name = |what: &str| format!("bias_act {shape:?} {act:?} {what}");
            compare(&device, &name("alone"), &inputs, ROUNDING, &|t| bias_act(&t[0], None, None, act));
            compare(&device, &name("bias"), &inputs, ROUNDING, &|t| bias_act(&t[0], Some(&t[1]), None, act));
            compare(&device, &name("noise"), &inputs, ROUNDING, &|t| bias_act(&t[0], Some(&t[1]), Some((&t[2], &t[4])), act));
            compare(&device, &name("one noise"), &inputs, ROUNDING, &|t| bias_act(&t[0], None, Some((&t[3], &t[4])), act));
            compare(&device, &name("gradient"), &[normal(6, &shape), normal(7, &shape)], ROUNDING, &|t| bias_act_grad(&t[0], &t[1], act));
        }
    }
}

#[test]
fn resampling() {
    let device = gpu::device();
    let odd = [0.5, -0.25, 1.0, 0.75, 0.125];
    let specs = [
        Upfirdn2d::new(&RESAMPLE_TAPS, 2, 1, [2, 1], 4.0),
        Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [1, 1], 4.0),
        Upfirdn2d::new(&RESAMPLE_TAPS, 1, 2, [1, 1], 1.0),
        Upfirdn2d::new(&odd, 3, 2, [4, -1], 1.5),
        Upfirdn2d::new(&odd, 2, 3, [-2, 6], 1.0),
    ];
    for (spec, channels) in specs.into_iter().flat_map(|s| [(s, 3), (s, 8)]) {
        let x = normal(1, &[2, 7, 6, channels]);
        // Products of at most 25 taps with a gain of 4.
        let tolerance = Tolerance { abs: 4e-6, rel: 1e-6, reason: "rows before columns or columns before rows" };
        compare(&device, &format!("{spec:?}"), std::slice::from_ref(&x), tolerance, &|t| upfirdn2d(&t[0], &spec));
        let [_, oh, ow, _] = spec.output_shape(x.shape()).unwrap();
        let inputs = [x, normal(3, &[channels]), normal(4, &[1, oh, ow, 1]), normal(5, &[1])];
        compare(&device, &format!("{spec:?} and what follows"), &inputs, tolerance, &|t| {
            upfirdn2d_act(&t[0], &spec, Epilogue { bias: Some(&t[1]), noise: Some((&t[2], &t[3])), act: Activation::LEAKY_RELU })
        });
        let adjoint = spec.adjoint([7, 6], [oh, ow]);
        compare(&device, &format!("{adjoint:?}"), &[normal(2, &[2, oh, ow, channels])], tolerance, &|t| upfirdn2d(&t[0], &adjoint));
    }
}

#[test]
fn matrices() {
    let device = gpu::device();
    for [m, n, k] in [[1, 1, 1], [5, 7, 3], [64, 64, 16], [65, 63, 17], [16, 40, 700], [3, 130, 20]] {
        for (ra, rb) in [(Read::Plain, Read::Plain), (Read::Plain, Read::Transposed), (Read::Transposed, Read::Plain), (Read::Transposed, Read::Transposed)] {
            let shape = |r: Read, rows: usize, columns: usize| if r == Read::Plain { [rows, columns] } else { [columns, rows] };
            let inputs = [normal(1, &shape(ra, m, k)), normal(2, &shape(rb, k, n))];
            compare(&device, &format!("matmul {m} {n} {k} {ra:?} {rb:?}"), &inputs, Tolerance::sum_of(k), &|t| matmul(&t[0], ra, &t[1], rb));
        }
    }
    let inputs = [normal(1, &[3, 600]), normal(2, &[5, 600])];
    compare(&device, "matmul, scaled", &inputs, Tolerance::sum_of(600), &|t| matmul_scaled(-0.3, &t[0], Read::Plain, &t[1], Read::Transposed));
    compare(&device, "matmul without terms", &[normal(1, &[4, 0]), normal(2, &[0, 3])], EXACT, &|t| matmul(&t[0], Read::Plain, &t[1], Read::Plain));
}

#[test]
fn case_lists() {
    /// The emulator does about this many multiply-adds in a second; larger cases test the CPU's tiles, not ours.
    const LARGEST: usize = 60_000;
    let device = gpu::device();
    let mut run = 0;
    for (_, cases) in families() {
        for case in cases.iter().filter(|c| c.inputs.iter().map(Tensor::len).sum::<usize>() <= LARGEST) {
            compare(&device, &case.name, &case.inputs, case.tolerance, &*case.run);
            run += 1;
        }
    }
    assert!(run > 50, "{run} cases were small enough");
}

/// Every op that takes activations of bf16 is the f32 op, rounded once; every other one says that it does not take them. On the
/// CPU as on a GPU.
#[test]
fn case_lists_in_bf16() {
    [gpu::device(), Device::Cpu].iter().for_each(lists_in_bf16);
}

fn lists_in_bf16(device: &Device) {
    const LARGEST: usize = 30_000;
    let (mut run, mut refused) = (0, 0);
    for (family, cases) in families() {
        for case in cases.iter().filter(|c| c.inputs.iter().map(Tensor::len).sum::<usize>() <= LARGEST) {
            let name = format!("{} in bf16", case.name);
            let inputs: Vec<Tensor> = case.inputs.iter().map(rounded).collect();
            if let Some(of) = case.bf16 {
                compare_stored(device, &name, &inputs, of, &*case.run);
                run += 1;
                continue;
            }
            let mut there = all_on(device, &case.inputs_as(DType::F32));
            there.iter_mut().for_each(|t| *t = cast(t, DType::Bf16).unwrap());
            let refusal = (case.run)(&there).map(|_| ()).unwrap_err();
            assert!(matches!(refusal, Error::Unsupported { .. }) && refusal.to_string().contains("bf16"), "{family}, {name}: {refusal}");
            refused += 1;
        }
    }
    assert!(run > 50 && refused > 10, "{run} cases were run, {refused} refused");
}

/// Rounding to nearest, ties to even, as the `half` crate has it.
#[test]
fn casts() {
    [gpu::device(), Device::Cpu].iter().for_each(casts_on);
}

fn casts_on(device: &Device) {
    let bits = |t: &Tensor| t.to_vec::<f32>().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let special = [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.4e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-45, 2.0_f32.powi(-134), f32::NAN];
    let values: Vec<f32> = special.into_iter().chain(normal(1, &[1000]).to_f64_vec().into_iter().map(|v| v as f32)).collect();
    let there = Tensor::from_slice(&[values.len()], &values).to_device(device).unwrap();
    for first in [0, 1] {
        let part = there.segment(first, &[values.len() - first]).unwrap();
        let got = cast(&part, DType::Bf16).unwrap();
        assert_eq!((got.dtype(), got.device(), got.dtype().size()), (DType::Bf16, device.clone(), 2));
        for (got, v) in got.to_vec::<f32>().into_iter().zip(&values[first..]) {
            assert!(got.to_bits() == bf16::from_f32(*v).to_f32().to_bits() || (got.is_nan() && v.is_nan()), "{v} became {got}");
        }
        // Views begin at any element, and every value of bf16 is one of f32.
        let view = got.segment(3, &[7, 5]).unwrap().rows(1, 6).unwrap();
        let wide = cast(&view, DType::F32).unwrap();
        assert_eq!((wide.dtype(), bits(&wide)), (DType::F32, bits(&view)));
        let mut copy = view.deep_clone().unwrap();
        assert_eq!((copy.dtype(), bits(&copy)), (DType::Bf16, bits(&view)));
        copy.assign(&cast(&wide, DType::Bf16).unwrap()).unwrap();
        assert_eq!(bits(&copy), bits(&view));
        assert!(copy.assign(&wide).is_err());
    }
    let threes = Tensor::full_on(&[3, 1], 3.0, DType::Bf16, device).unwrap();
    assert_eq!((threes.dtype(), threes.to_vec::<f32>()), (DType::Bf16, vec![3.0; 3]));
    // Not of f64, and not beside f32.
    let here = Tensor::zeros(&[3, 1], DType::F32);
    let refused = cast(&here.to_device(device).unwrap(), DType::F64);
    assert!(matches!(&refused, Err(e @ Error::Unsupported { .. }) if !e.to_string().contains('\n')), "{refused:?}");
    if *device != Device::Cpu {
        assert!(matches!(Tensor::full_on(&[1], 0.0, DType::F64, device), Err(Error::Unsupported { .. })));
    }
    let mixed = zip(&threes, &here.to_device(device).unwrap(), Zip::Add).unwrap_err().to_string();
    assert!(mixed.contains("Bf16 and F32"), "{mixed}");
}

#[test]
fn tensors_of_two_places_do_not_mix() {
    let device = gpu::device();
    let x = normal(1, &[1, 4, 4, 2]).to_dtype(DType::F32).to_device(&device).unwrap();
    let w = normal(2, &[3, 3, 3, 2]).to_dtype(DType::F32);
    let mixed = conv2d(&x, &w, None, None, Conv2d::square(1, 1)).unwrap_err().to_string();
    assert!(mixed.contains("cuda:0 and cpu"), "{mixed}");
    assert!(matches!(normal(3, &[2]).to_device(&device), Err(Error::Unsupported { .. })));
}

/// An iteration with rounded products: the losses move by no more than the rounding does, relative to losses of size one.
#[test]
fn tiny_training_iteration_in_low_precision() {
    let data = arrays("train_steps");
    for (precision, bound) in [(Precision::Tf32x3, BOUND), (Precision::Tf32, 5e-3), (Precision::Bf16, 4e-2)] {
        let device = Device::Cuda(gpu::cuda_with(precision));
        let mut state = tiny::training_start().to_device(&device).unwrap();
        let inputs = tiny::training_inputs(&data, 0).to_device(&device).unwrap();
        let trainer = Trainer::new(&state.config, tiny::hyper());
        let losses = trainer.iteration(&mut state, &inputs, &mut NoRegulariser).unwrap();
        for (what, got) in [("d_loss", losses.d), ("g_loss", losses.g)] {
            let want = data[&format!("{what}_0")].item().unwrap();
            assert!((got - want).abs() <= bound * want.abs().max(1.0), "{what} in {precision:?}: {got}, in f32 {want}");
        }
    }
}

#[test]
fn tensors_move_between_devices() {
    let device = gpu::device();
    let x = normal(1, &[5, 3]).to_dtype(DType::F32);
    let there = x.to_device(&device).unwrap();
    assert_eq!((there.device(), there.shape(), there.dtype()), (device.clone(), x.shape(), DType::F32));
    assert_eq!(there.to_vec::<f32>(), x.to_vec::<f32>());
    let rows = there.rows(1, 2).unwrap();
    assert_eq!(rows.to_vec::<f32>(), x.rows(1, 2).unwrap().to_vec::<f32>());
    assert_eq!(rows.deep_clone().unwrap().to_vec::<f32>(), rows.to_vec::<f32>());
    let empty = Tensor::zeros(&[0, 3], DType::F32).to_device(&device).unwrap();
    assert!(empty.to_vec::<f32>().is_empty());
    assert_eq!(Tensor::full_on(&[1], 2.5, DType::F32, &device).unwrap().item().unwrap(), 2.5);
}

#[test]
fn random_numbers() {
    let device = gpu::device();
    for count in [1, 3, 4, 1001] {
        let (mut here, mut there) = (Random::new(11, 5), Random::new(11, 5));
        for _ in 0..2 {
            let (want, got) = (here.uniform(&[count]), there.uniform_on(&[count], &device).unwrap());
            assert_eq!(got.to_vec::<f32>(), want.to_vec::<f32>());
            // The radius is up to 6 and its angle has an error of a unit in the last place of 2 pi.
            let tolerance = Tolerance { abs: 4e-6, rel: 1e-6, reason: "logarithm, sine and cosine of two libraries" };
            let (want, got) = (here.normal(&[count]), there.normal_on(&[count], &device).unwrap());
            assert_close("normal", &got.to_f64_vec(), &want.to_f64_vec(), tolerance);
        }
        assert_eq!(here, there);
    }
}

/// Segments shorter than a vector, across its borders, and longer than a chunk.
const SEGMENTS: [usize; 7] = [1, 5, 2, 1030, 7, 17_000, 4];

#[test]
fn slab_passes() {
    let device = gpu::device();
    let total: usize = SEGMENTS.iter().sum();
    let offsets: Vec<usize> = SEGMENTS.iter().scan(0, |at, n| Some(std::mem::replace(at, *at + n))).collect();
    let value = |stream: u64| normal(stream, &[total]).to_dtype(DType::F32);
    let positive = |stream: u64| positive(stream, &[total]).to_dtype(DType::F32);
    let grads: Vec<Tensor> = SEGMENTS.iter().enumerate().map(|(i, n)| normal(50 + i as u64, &[*n]).to_dtype(DType::F32)).collect();
    let weights: Vec<f64> = (0..SEGMENTS.len()).map(|i| 1.0 / (1 + i) as f64).collect();
    let [anchor, fisher] = [value(2), positive(3)];
    // Three steps, so that what a step leaves is read by the next.
    let run = |device: &Device, adam: Adam, which: usize| -> (Vec<Tensor>, Vec<f64>) {
        let on = |t: &Tensor| t.to_device(device).unwrap().deep_clone().unwrap();
        let (mut params, mut m, mut v, mut ema) = (on(&value(1)), on(&value(4)), on(&positive(5)), on(&value(6)));
        let (anchor, fisher, grads) = (on(&anchor), on(&fisher), all_on(device, &grads));
        let (mut sums, mut resident) = (Vec::new(), Resident::default());
        let mut distance = 3.0 + weighted_squared_distance(&params, &anchor, &offsets, &weights).unwrap();
        for step in 1..=3 {
            let pull = match which {
                0 => Pull::None,
                1 => Pull::L1 { strength: 0.3 },
                2 => Pull::Ewc { anchor: &anchor, fisher: &fisher, lambda: 0.7 },
                _ => Pull::Centroid {
                    centroid: &anchor,
                    weights: &weights,
                    loss: RepulsionLoss::El2 { gamma: 50.0, alpha: 1e-4 },
                    spread: 3.0,
                    distance,
                    gradient: which == 3,
                },
            };
            let slabs = Slabs {
                params: &mut params,
                first_moment: (adam.beta1 > 0.0).then_some(&mut m),
                second_moment: &mut v,
                ema: (which != 1).then_some((&mut ema, 0.9)),
            };
            if let Some(sum) = adam_step(slabs, &grads, &offsets, pull, adam, step, &mut resident).unwrap() {
                sums.push(sum.read().unwrap());
                distance = sums[sums.len() - 1];
            }
        }
        (vec![params, m, v, ema], sums)
    };
    let tolerance = Tolerance { abs: 2e-6, rel: 2e-6, reason: "a handful of f32 operations, three times" };
    for beta1 in [0.0, 0.9] {
        let adam = Adam { lr: 0.01, beta1, beta2: 0.99, eps: 1e-8 };
        for which in 0..5 {
            let ((here, sums), (there, cuda_sums)) = (run(&Device::Cpu, adam, which), run(&device, adam, which));
            for (name, (want, got)) in ["params", "m", "v", "ema"].iter().zip(here.iter().zip(&there)) {
                assert_close(&format!("{name} of {which}"), &got.to_f64_vec(), &want.to_f64_vec(), tolerance);
            }
            assert_close(&format!("sums of {which}"), &cuda_sums, &sums, Tolerance { abs: 1e-9, rel: 1e-5, reason: "f32 sums of 64 terms" });
        }
    }
    let sums = Tolerance { abs: 1e-9, rel: 1e-5, reason: "f32 sums of 64 terms, then f64" };
    let (params, fisher_there, anchor_there) = (value(1).to_device(&device).unwrap(), fisher.to_device(&device).unwrap(), anchor.to_device(&device).unwrap());
    let distance = weighted_squared_distance(&params, &anchor_there, &offsets, &weights).unwrap();
    assert_close("distance", &[distance], &[weighted_squared_distance(&value(1), &anchor, &offsets, &weights).unwrap()], sums);
    let ((penalty, grad), (want_penalty, want_grad)) = (ewc(&params, &anchor_there, &fisher_there, 0.7).unwrap(), ewc(&value(1), &anchor, &fisher, 0.7).unwrap());
    assert_close("penalty", &[penalty], &[want_penalty], sums);
    assert_close("its gradient", &grad.to_f64_vec(), &want_grad.to_f64_vec(), ROUNDING);
    let (mut here, mut there) = (value(8), value(8).to_device(&device).unwrap());
    accumulate_squares(&mut here, &grads, &offsets, 0.25).unwrap();
    accumulate_squares(&mut there, &all_on(&device, &grads), &offsets, 0.25).unwrap();
    assert_close("squares", &there.to_f64_vec(), &here.to_f64_vec(), Tolerance { abs: 1e-6, rel: 1e-6, reason: "three roundings of values up to ten" });
}

const WHOLE: Tolerance = Tolerance { abs: 1e-6, rel: 0.0, reason: "multiples of 2^-12 or more; the CPU's f64 sums of 3x3 windows go through Winograd's fractions" };

/// Values of which bf16 holds every bit and whose sums are exact in f32: only one result is right.
fn whole(stream: u64, shape: &[usize], f: fn(f64) -> f64) -> Tensor {
    Tensor::from_vec(shape, normal(stream, shape).to_f64_vec().into_iter().map(f).collect::<Vec<_>>())
}

/// The four products of a convolution of `x` `[n, h, w, ci]` by `co` kernels.
struct Layer {
    n: usize,
    size: [usize; 2],
    channels: [usize; 2],
    kernel: usize,
    spec: Conv2d,
}

impl Layer {
    /// `x`, `w`, `g`, the scales `a` and `b`, bias, noise and strength.
    fn inputs(&self) -> Vec<Tensor> {
        let ([h, w], [ci, co], k) = (self.size, self.channels, self.kernel);
        let [oh, ow] = [0, 1].map(|d| (self.size[d] + 2 * self.spec.padding[d] - k) / self.spec.stride[d] + 1);
        let number = |stream: u64, shape: &[usize]| whole(stream, shape, |v| (1.5 * v).round());
        let power = |stream: u64, shape: &[usize]| whole(stream, shape, |v| v.round().exp2());
        vec![
            number(1, &[self.n, h, w, ci]),
            number(2, &[co, k, k, ci]),
            number(3, &[self.n, oh, ow, co]),
            power(4, &[self.n, ci]),
            power(5, &[self.n, co]),
            number(6, &[co]),
            number(7, &[1, oh, ow, 1]),
            power(8, &[1]),
        ]
    }

    /// All results behind each other.
    fn run(&self, t: &[Tensor]) -> Result<Tensor> {
        self.run_stored(t, DType::F32)
    }

    /// The same with activations of that type on a GPU.
    fn run_stored(&self, t: &[Tensor], activations: DType) -> Result<Tensor> {
        let stored = |t: &Tensor| if t.device() == Device::Cpu { Ok(t.clone()) } else { cast(t, activations) };
        let (x, w, g, a, b) = (&stored(&t[0])?, &t[1], &stored(&t[2])?, Some(&t[3]), Some(&t[4]));
        let then = Epilogue { bias: Some(&t[5]), noise: Some((&t[6], &t[7])), act: Activation { slope: 0.25, gain: 2.0 } };
        let all = [
            conv2d(x, w, a, None, self.spec)?,
            conv2d_act(x, w, a, b, self.spec, then)?,
            conv2d_transpose(g, w, b, a, self.spec, self.size)?,
            conv2d_weight_grad(x, g, a, b, self.spec, [self.kernel; 2])?,
        ];
        let flat = all.iter().map(|t| cast(t, t.dtype().accumulator())?.reshape(&[t.len()])).collect::<Result<Vec<_>>>()?;
        concat(&flat.iter().collect::<Vec<_>>(), 0)
    }
}

/// Large layers in bf16 take Hopper's own instructions on Hopper, and no other chip does; recorded they give the same bits.
#[test]
fn convolutions_on_hopper() {
    let layer = |n, size, channels, kernel, stride, padding| Layer { n, size, channels, kernel, spec: Conv2d { gain: 0.5, ..Conv2d::square(stride, padding) } };
    // Wide and narrow tiles in each direction, ragged all, on a chip of four multiprocessors.
    let layers = [layer(3, [9, 7], [72, 80], 3, 1, 1), layer(7, [13, 13], [64, 248], 1, 2, 0), layer(3, [16, 17], [248, 72], 2, 2, 0)];
    let hopper = gpu::cuda_with(Precision::Bf16);
    let device = Device::Cuda(hopper.clone());
    let once = Tolerance { rel: 1.0 / 256.0, reason: "whole sums, rounded once to eight bits", ..WHOLE };
    for layer in &layers {
        compare(&device, &format!("{:?} channels on Hopper", layer.channels), &layer.inputs(), WHOLE, &|t| layer.run(t));
        compare(&device, &format!("{:?} channels in bf16 on Hopper", layer.channels), &layer.inputs(), once, &|t| layer.run_stored(t, DType::Bf16));
    }
    let inputs = all_on(&device, &layers[0].inputs().iter().map(|t| t.to_dtype(DType::F32)).collect::<Vec<_>>());
    let (workspace, work) = (Workspace::default(), || layers[0].run(&inputs));
    let queued = hopper.with_workspace(&workspace, || work().unwrap().to_vec::<f32>());
    let (mut graph, recorded) = hopper.record(&workspace, work).unwrap();
    graph.launch().unwrap();
    assert_eq!(recorded.to_vec::<f32>(), queued);
    let ampere = gpu::cuda_of((8, 0), Precision::Bf16);
    compare(&Device::Cuda(ampere.clone()), "on Ampere", &layers[0].inputs(), WHOLE, &|t| layers[0].run(t));
    compare(&Device::Cuda(ampere.clone()), "in bf16 on Ampere", &layers[0].inputs(), once, &|t| layers[0].run_stored(t, DType::Bf16));
    // A real GPU is what it is, whatever it was opened as.
    let launched = |gpu: &CudaDevice| gpu.launches().into_iter().filter(|(name, n)| name.contains("sm90") && *n > 0).count();
    let is_hopper = |gpu: &CudaDevice| gpu.compute_capability() == (9, 0);
    assert_eq!(launched(&hopper), if is_hopper(&hopper) { 10 } else { 0 });
    assert!(is_hopper(&ampere) || launched(&ampere) == 0);
}

/// TMA reads bf16 where it lies, but not at any element.
#[test]
fn bf16_at_any_element_on_hopper() {
    let device = Device::Cuda(gpu::cuda_with(Precision::Bf16));
    let layer = Layer { n: 4, size: [8, 8], channels: [64, 72], kernel: 3, spec: Conv2d::square(1, 1) };
    let on: Vec<Tensor> = all_on(&device, &layer.inputs().iter().map(|t| t.to_dtype(DType::F32)).collect::<Vec<_>>());
    let of = |x: &Tensor| conv2d(x, &on[1], None, None, layer.spec).unwrap().to_vec::<f32>();
    let x = cast(&on[0], DType::Bf16).unwrap();
    let behind_three = concat(&[&x.reshape(&[x.len()]).unwrap().segment(0, &[3]).unwrap(), &x.reshape(&[x.len()]).unwrap()], 0).unwrap();
    assert!(of(&behind_three.segment(3, x.shape()).unwrap()) == of(&x));
}

/// A weight that convolutions on Hopper have read once comes with every optimiser step in bf16, from where its slab's
/// other writers do not go: the same bits as rounding it in every call.
#[test]
fn the_optimiser_leaves_weights_in_bf16() {
    let gpu = gpu::cuda_with(Precision::Bf16);
    let device = Device::Cuda(gpu.clone());
    let on = |t: Tensor| t.to_dtype(DType::F32).to_device(&device).unwrap();
    // The weight lies at an odd element of its slab, behind another one.
    let shapes: [&[usize]; 4] = [&[5], &[16, 1, 1, 8], &[72, 3, 3, 64], &[3]];
    let offsets: Vec<usize> = shapes.iter().scan(0, |at, s| Some(std::mem::replace(at, *at + s.iter().product::<usize>()))).collect();
    let total = offsets[3] + 3;
    let grads: Vec<Tensor> = shapes.iter().zip(0..).map(|(s, i)| on(normal(10 + i, s))).collect();
    let (mut params, mut v) = (on(normal(1, &[total])), on(positive(2, &[total])));
    let [x, g] = [normal(3, &[4, 8, 8, 64]), normal(4, &[4, 8, 8, 72])].map(|t| cast(&on(t), DType::Bf16).unwrap());
    let spec = Conv2d::square(1, 1);
    let products = |w: &Tensor| {
        let (y, z) = (conv2d(&x, w, None, None, spec).unwrap(), conv2d_transpose(&g, w, None, None, spec, [8, 8]).unwrap());
        [y, z].map(|t| t.to_vec::<f32>())
    };
    let casts = || gpu.launches()["cast_bf16"];
    let (adam, mut resident) = (Adam { lr: 0.01, beta1: 0.0, beta2: 0.99, eps: 1e-8 }, Resident::default());
    // Copies of weights that this round must make: none after a step, since the first round has asked for them.
    let round = |params: &Tensor, copies: u64| {
        let w = params.segment(offsets[2], shapes[2]).unwrap();
        let before = casts();
        let got = products(&w);
        assert_eq!(casts() - before, copies, "activations of bf16 are read where they lie");
        assert!(got == products(&w.deep_clone().unwrap()), "other bits with {copies} copies of weights");
    };
    round(&params, 2);
    for step in 1..=2 {
        let slabs = Slabs { params: &mut params, first_moment: None, second_moment: &mut v, ema: None };
        adam_step(slabs, &grads, &offsets, Pull::None, adam, step, &mut resident).unwrap();
        round(&params, 0);
    }
    params.assign(&on(normal(5, &[total]))).unwrap();
    round(&params, 2);
}

/// On ragged tiles, in groups, with scales, in the middle of a slab, added to what is there.
#[test]
fn squared_weight_gradients() {
    let scale = |stream: u64, shape: &[usize]| Some(positive(stream, shape).to_dtype(DType::F32));
    for (groups, rest, stored) in [(1, true, DType::F32), (2, false, DType::F32), (4, true, DType::F32), (2, true, DType::Bf16)] {
        let [x, g] = [normal(1, &[4, 6, 5, 7]), normal(2, &[4, 3, 3, 66])].map(|t| rounded(&t));
        // Of bf16 without scales: their products would be rounded.
        let scale = |stream: u64, shape: &[usize]| scale(stream, shape).filter(|_| stored == DType::F32);
        let of = WeightGrad { x, g, a: scale(3, &[4, 7]), b: scale(4, &[4, 66]), spec: Conv2d { gain: 0.75, ..Conv2d::square(2, 1) }, kernel: [3, 3] };
        let len = 66 * 9 * 7;
        let run = |device: &Device| {
            let on = |t: &Tensor| t.to_dtype(DType::F32).to_device(device).unwrap();
            let activation = |t: &Tensor| if *device == Device::Cpu { on(t) } else { cast(&on(t), stored).unwrap() };
            let of = WeightGrad { x: activation(&of.x), g: activation(&of.g), a: of.a.as_ref().map(on), b: of.b.as_ref().map(on), ..of.clone() };
            let rest = rest.then(|| on(&normal(5, &[groups, len])));
            let mut slab = on(&normal(6, &[len + 8])).deep_clone().unwrap();
            conv2d_weight_grad_squared(&of, groups, rest.as_ref(), 0.25, &mut slab, 5).unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()));
            slab.to_f64_vec()
        };
        // A sum of up to 36 products of about one, with an error of 1e-5, is squared: values up to 400.
        let tolerance = Tolerance { abs: 2e-4, rel: 1e-5, reason: "squares of sums in another order" };
        assert_close(&format!("{groups} groups of {stored:?}"), &run(&gpu::device()), &run(&Device::Cpu), tolerance);
    }
}

#[test]
fn tiny_generator() {
    let device = gpu::device();
    let (g, slab) = tiny::generator();
    let data = arrays("generator_forward");
    let p = slab.to_device(&device).unwrap().leaves();
    let maps = all_on(&device, &tiny::noise(&data, "noise_", ""));
    let image = g.forward(&p, &Styles::One(data["z1"].clone()).to_device(&device).unwrap(), &maps).unwrap();
    assert_near("image", &image.value().to_device(&Device::Cpu).unwrap(), &nhwc(&data["image"]), BOUND);
    // Without a graph, what follows a convolution is in its kernel: four layers keep their size, four make RGB.
    let Device::Cuda(gpu) = &device else { unreachable!() };
    let fused = || gpu.launches().into_iter().filter(|(name, _)| name.starts_with("conv2d_act") || *name == "conv2d_add_parts_act_f32").map(|(_, n)| n).sum::<u64>();
    let before = fused();
    let same = g.forward(&slab.to_device(&device).unwrap().constants(), &Styles::One(data["z1"].clone()).to_device(&device).unwrap(), &maps).unwrap();
    assert_eq!(fused() - before, 4 + 4);
    assert_near("image without a graph", &same.value().to_device(&Device::Cpu).unwrap(), &nhwc(&data["image"]), BOUND);
    let cotangent = Var::constant(nhwc(&data["cotangent"]).to_device(&device).unwrap());
    let loss = sum(&mul(&image, &cotangent).unwrap()).unwrap();
    tiny::assert_gradients("image · cotangent", &tiny::gradients(&loss, &p), &slab, &weights("generator_grad_of_image_dot_cotangent"), BOUND);
}

#[test]
fn tiny_path_length() {
    let device = gpu::device();
    let (g, slab) = tiny::generator();
    let data = arrays("path_length");
    let p = slab.to_device(&device).unwrap().leaves();
    let styles = Styles::Mixed { z1: data["z1"].clone(), z2: data["z2"].clone(), crossover: tiny::index(&data["inject_index"], 0) };
    let ws = g.styles(&p, &styles.to_device(&device).unwrap()).unwrap();
    let image = g.synthesis(&p, &ws, &all_on(&device, &tiny::noise(&data, "noise_", ""))).unwrap();
    let y = nhwc(&data["y"]).to_device(&device).unwrap();
    let path = path_length(&image, &ws, &y, &data["mean_path_length_before"].reshape(&[1]).unwrap().to_device(&device).unwrap()).unwrap();
    assert_near("penalty", &path.penalty.value().to_device(&Device::Cpu).unwrap(), &data["penalty"], BOUND);
    tiny::assert_gradients("path length", &tiny::gradients(&path.penalty, &p), &slab, &weights("path_length_grad"), BOUND);
}

/// What the networks give on a device: values, and losses with their gradients by all parameters.
fn tiny_results(device: &Device) -> Vec<(&'static str, Vec<f64>)> {
    let (g, g_slab) = tiny::generator();
    let (d, d_slab) = tiny::discriminator(g.config());
    let [p, q] = [&g_slab, &d_slab].map(|slab| slab.to_device(device).unwrap().leaves());
    let gradients = |loss: &Var, p: &Params| {
        let all = tiny::gradients(loss, p);
        assert!(all.iter().all(|g| g.dtype() == DType::F32), "gradients of parameters are sums");
        all.iter().flat_map(|g| g.value().to_f64_vec()).chain([loss.item().unwrap()]).collect::<Vec<f64>>()
    };
    let data = arrays("generator_forward");
    let maps = all_on(device, &tiny::noise(&data, "noise_", ""));
    let image = g.forward(&p, &Styles::One(data["z1"].clone()).to_device(device).unwrap(), &maps).unwrap();
    let cotangent = Var::constant(nhwc(&data["cotangent"]).to_device(device).unwrap());
    let data = arrays("path_length");
    let styles = Styles::Mixed { z1: data["z1"].clone(), z2: data["z2"].clone(), crossover: tiny::index(&data["inject_index"], 0) };
    let ws = g.styles(&p, &styles.to_device(device).unwrap()).unwrap();
    let varied = g.synthesis(&p, &ws, &all_on(device, &tiny::noise(&data, "noise_", ""))).unwrap();
    let mean = data["mean_path_length_before"].reshape(&[1]).unwrap().to_device(device).unwrap();
    let path = path_length(&varied, &ws, &nhwc(&data["y"]).to_device(device).unwrap(), &mean).unwrap();
    let real = Var::leaf(nhwc(&arrays("discriminator")["real"]).to_device(device).unwrap());
    let logits = d.forward(&q, &real, 1).unwrap();
    assert_eq!((image.dtype(), logits.dtype()), (DType::F32, DType::F32));
    vec![
        ("images", image.value().to_f64_vec()),
        ("logits", logits.value().to_f64_vec()),
        ("gradients of images", gradients(&sum(&mul(&image, &cotangent).unwrap()).unwrap(), &p)),
        ("gradients of the path length", gradients(&path.penalty, &p)),
        ("gradients of logits", gradients(&sum(&logits).unwrap(), &q)),
        ("gradients of R1", gradients(&r1_penalty(&logits, &real).unwrap(), &q)),
    ]
}

/// Activations of bf16 against those of f32, in the L2 norm; all products of these few channels are f32 in both. A stored
/// value is off by up to 2^-8, by 2^-9 in the mean, and of some dozen in a row errors add up like a random walk: to 1e-2.
/// Gradients depend on the signs of activations besides: of those near zero about a share as large as the error is turned
/// around, which changes the slope from 1 to 0.2 or back, and the error of the norm is near the root of that share: 1e-1.
#[test]
fn tiny_networks_in_bf16() {
    let exact = tiny_results(&gpu::device());
    let of_bf16 = tiny_results(&Device::Cuda(gpu::cuda_with(Precision::Bf16)));
    // Seen: 2.8e-3, 7.6e-3; 4.7e-2, 4.0e-2, 2.7e-3, 5.6e-3.
    for ((name, want), (_, got)) in exact.iter().zip(&of_bf16) {
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
        let apart = norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
        let bound = if name.starts_with("gradients") { 1e-1 } else { 1e-2 };
        assert!(apart > 0.0 && apart <= bound, "{name}: {apart:e}");
    }
}

#[test]
fn tiny_gradient_penalty() {
    let device = gpu::device();
    let (g, _) = tiny::generator();
    let (d, slab) = tiny::discriminator(g.config());
    let data = arrays("discriminator");
    let p = slab.to_device(&device).unwrap().leaves();
    let image = Var::leaf(nhwc(&data["real"]).to_device(&device).unwrap());
    let r1 = r1_penalty(&d.forward(&p, &image, 1).unwrap(), &image).unwrap();
    assert_near("R1", &r1.value().to_device(&Device::Cpu).unwrap(), &data["r1"], BOUND);
    tiny::assert_gradients("R1", &tiny::gradients(&r1, &p), &slab, &weights("r1_grad"), BOUND);
}

/// Three whole iterations, the first with R1 and path length, against PyTorch's.
#[test]
fn tiny_training_iterations() {
    let device = gpu::device();
    let data = arrays("train_steps");
    let mut state = tiny::training_start().to_device(&device).unwrap();
    let trainer = Trainer::new(&state.config, tiny::hyper());
    for i in 0..3 {
        let inputs = tiny::training_inputs(&data, i).to_device(&device).unwrap();
        let losses = trainer.iteration(&mut state, &inputs, &mut NoRegulariser).unwrap();
        tiny::assert_iteration(&data, i, &losses, &state);
    }
}

/// The ops again on instrumented kernels. The networks are left out: they launch the same kernels, for minutes.
fn assert_clean(instrument: cuda_on_cpu::Instrument) {
    if cuda_on_cpu::skip_on_driver("sanitizer") {
        return;
    }
    let run = cuda_on_cpu::rerun(instrument, &["--skip", "sanitizer", "--skip", "tiny"]);
    assert!(run.success && !run.output.contains("running 0 tests"), "{instrument:?}:\n{}", run.output);
}

#[test]
fn address_sanitizer_finds_nothing() {
    assert_clean(cuda_on_cpu::Instrument::Addresses);
}

#[test]
fn thread_sanitizer_finds_nothing() {
    assert_clean(cuda_on_cpu::Instrument::Races);
}
