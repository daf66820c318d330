//! kernels/conv2d.cu against loops in double precision.
//!
//! Most tests use small integers and powers of two, which every format here holds and whose sums are exact: results
//! must be equal to the last bit, whatever the order of sums.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use support::{
    Geometry as Launch, Gpu, Stored,
    conv2d::{
        Conv2dParams, DOWN, Data, Extras, GAIN, Geometry, Op, UP, one_or_two, square,
        whole_numbers,
    },
    is_watched, numbers,
};

mod support;

#[repr(C)]
#[derive(Clone, Copy)]
struct Conv2dSquaredParams {
    conv: Conv2dParams,
    groups: i32,
    part: i32,
    weight: f32,
    accumulate: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/conv2d.cu.
unsafe impl DeviceRepr for Conv2dSquaredParams {}

/// What a kernel name ends in, and the launch that goes with it.
#[derive(Clone, Copy, Debug)]
struct Variant {
    suffix: &'static str,
    tile: [usize; 2],
    threads: u32,
    dynamic_shared: u32,
}

const fn variant(suffix: &'static str, tile: [usize; 2], threads: u32) -> Variant {
    // Four stages of sixteen and four floats of padding per row of either operand: kSharedBytes in mma_tile.cuh.
    let dynamic_shared = 4 * (tile[0] + tile[1]) * 20 * 4;
    Variant {
        suffix,
        tile,
        threads,
        dynamic_shared: dynamic_shared as u32,
    }
}

const fn simt(suffix: &'static str, tile: [usize; 2]) -> Variant {
    Variant {
        suffix,
        tile,
        threads: 256,
        dynamic_shared: 0,
    }
}

const WIDE: Variant = simt("f32", [64, 64]);
const NARROW: Variant = simt("narrow_f32", [128, 16]);
/// For activations of bf16.
const NARROW_STORED: Variant = simt("narrow_stored_bf16", [128, 16]);
const STORED: [Variant; 2] = [
    variant("small_stored_bf16", [64, 64], 128),
    variant("stored_bf16", [128, 128], 256),
];
const TENSOR_CORE: [Variant; 6] = [
    variant("small_tf32", [64, 64], 128),
    variant("tf32", [128, 128], 256),
    variant("small_bf16", [64, 64], 128),
    variant("bf16", [128, 128], 256),
    variant("small_tf32x3", [64, 64], 128),
    variant("tf32x3", [128, 128], 256),
];

impl Variant {
    /// What activations are.
    fn activations(self) -> Stored {
        if self.suffix.ends_with("stored_bf16") {
            Stored::Bf16
        } else {
            Stored::F32
        }
    }

    /// What the weight is.
    fn weight(self) -> Stored {
        if self.tile == NARROW.tile {
            Stored::F32
        } else {
            self.activations()
        }
    }

    /// What an op stores of whole sums.
    fn result(self, op: Op) -> Stored {
        if op == Op::WeightGrad {
            Stored::F32
        } else {
            self.activations()
        }
    }
}

fn variants(op: Op) -> Vec<Variant> {
    if is_watched() {
        return vec![WIDE, TENSOR_CORE[0], TENSOR_CORE[2], STORED[0]];
    }
    let mut all = vec![WIDE];
    if op != Op::WeightGrad {
        all.extend([NARROW, NARROW_STORED]);
    }
    all.extend(TENSOR_CORE);
    all.extend(STORED);
    all
}

const GEOMETRIES: &[Geometry] = &[
    square(
        "3x3 in vectors",
        2,
        5,
        [8, 16],
        [3, 1, 1],
        [true, true],
    ),
    square("3x3 odd channels", 2, 5, [3, 5], [3, 1, 1], [true, true]),
    square("3x3 stride 2", 2, 9, [8, 4], [3, 2, 0], [true, false]),
    square(
        "3x3 stride 2 padded",
        1,
        8,
        [4, 6],
        [3, 2, 1],
        [false, true],
    ),
    square("6x6 stride 2", 1, 10, [4, 4], [6, 2, 2], [true, true]),
    square("7x7 stride 2", 1, 9, [3, 8], [7, 2, 3], [false, false]),
    square(
        "taps of some classes only",
        2,
        7,
        [4, 4],
        [2, 3, 1],
        [true, true],
    ),
    square(
        "1x1, samples inside a tile",
        5,
        6,
        [20, 12],
        [1, 1, 0],
        [true, true],
    ),
    square("whole tiles", 1, 8, [64, 64], [1, 1, 0], [true, true]),
    square("tile edges", 1, 12, [20, 132], [1, 1, 0], [false, true]),
    square("deep", 1, 3, [132, 4], [3, 1, 1], [true, false]),
    square("deep transpose", 1, 3, [4, 132], [3, 1, 1], [true, true]),
    square("empty batch", 0, 4, [4, 4], [3, 1, 1], [true, true]),
    Geometry {
        name: "1x7",
        n: 1,
        size: [3, 9],
        channels: [8, 4],
        kernel: [1, 7],
        stride: [1, 1],
        padding: [0, 3],
        scales: [false, false],
    },
    Geometry {
        name: "7x1, strides apart",
        n: 1,
        size: [11, 7],
        channels: [4, 12],
        kernel: [7, 1],
        stride: [1, 2],
        padding: [3, 0],
        scales: [true, false],
    },
];

fn geometries() -> &'static [Geometry] {
    if is_watched() {
        &GEOMETRIES[..3]
    } else {
        GEOMETRIES
    }
}

/// A launch that covers `rows` by `columns`, with `layers` in the third dimension.
fn launch(variant: Variant, [rows, columns]: [usize; 2], layers: usize) -> Launch {
    Launch {
        blocks: [
            rows.div_ceil(variant.tile[0]) as u32,
            columns.div_ceil(variant.tile[1]) as u32,
            layers as u32,
        ],
        threads: variant.threads,
        dynamic_shared: variant.dynamic_shared,
    }
}

/// A tensor on the device that starts `skipped` elements into its memory.
struct Operand {
    memory: CudaSlice<u8>,
    skipped: usize,
}

impl Operand {
    fn new(gpu: &Gpu, values: &[f32], stored: Stored, skipped: usize) -> Operand {
        let mut padded = vec![f32::NAN; skipped];
        padded.extend(values);
        padded.push(f32::NAN); // no allocation of nothing
        Operand {
            memory: gpu.upload(&stored.encode(&padded)),
            skipped: skipped * stored.size(),
        }
    }
    fn address(&self, gpu: &Gpu) -> u64 {
        gpu.address(&self.memory) + self.skipped as u64
    }
}

/// What a run varies besides geometry and kernel.
#[derive(Clone, Copy, Default)]
struct Run {
    /// Length of a part of k; 0 for the whole.
    part: usize,
    /// Elements that operands are away from an aligned address.
    skipped: usize,
}

/// The parts of an op's result, one behind the other.
fn run(gpu: &Gpu, op: Op, variant: Variant, geometry: &Geometry, d: &Data, run: Run) -> Vec<f32> {
    let ([rows, columns, depth], layers) = geometry.product(op);
    let parts = if run.part == 0 {
        1
    } else {
        depth.div_ceil(run.part)
    };
    let [x_count, w_count, g_count] = geometry.counts();
    let (activations, weight) = (variant.activations(), variant.weight());
    let (u, v, second, count) = match op {
        Op::Forward => (&d.x, &d.w, weight, g_count),
        Op::Transpose => (&d.g, &d.w, weight, x_count),
        Op::WeightGrad => (&d.x, &d.g, activations, w_count),
    };
    let at = |values: &[f32], stored| Operand::new(gpu, values, stored, run.skipped);
    let (u, v) = (at(u, activations), at(v, second));
    let (a, b) = (at(&d.a, Stored::F32), at(&d.b, Stored::F32));
    let stored = if parts == 1 {
        variant.result(op)
    } else {
        Stored::F32
    };
    let a_address = if geometry.scales[0] {
        a.address(gpu)
    } else {
        0
    };
    let b_address = if geometry.scales[1] {
        b.address(gpu)
    } else {
        0
    };
    // The scale of the first operand comes first.
    let scales = if op == Op::Transpose {
        [b_address, a_address]
    } else {
        [a_address, b_address]
    };
    let (u_address, v_address) = (u.address(gpu), v.address(gpu));
    let result = gpu.uninitialised::<u8>((parts * count + run.skipped + 1) * stored.size());
    let result_address = gpu.address(&result) + (stored.size() * run.skipped) as u64;
    let params = geometry.params(run.part);
    let launch = launch(variant, [rows, columns], layers * parts);
    if !launch.blocks.contains(&0) {
        let name = format!("{}_{}", op.name(), variant.suffix);
        gpu.launch(
            &gpu.function_with(&name, variant.dynamic_shared),
            launch,
            |args| {
                args.arg(&u_address)
                    .arg(&v_address)
                    .arg(&scales[0])
                    .arg(&scales[1]);
                args.arg(&result_address).arg(&params);
            },
        )
        .unwrap_or_else(|_| panic!("{name} {}: {}", geometry.name, cuda_on_cpu::last_error()));
    }
    let mut values = stored.decode(&gpu.download(&result));
    assert!(
        values.pop().expect("the guard").is_nan(),
        "written behind the result"
    );
    values.split_off(run.skipped)
}

fn in_every_order(run: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let mut results = orders().iter().map(|&order| with_order(order, &run));
    let first = results.next().expect("an order");
    assert!(
        results.all(|result| result == first),
        "the result depends on the order of threads"
    );
    first
}

fn single(values: &[[f64; 2]]) -> Vec<f32> {
    values.iter().map(|v| v[0] as f32).collect()
}

/// The parts of a result added in their order.
fn added(parts: &[f32], count: usize) -> Vec<f32> {
    let mut sums = vec![0.0; count];
    for part in parts.chunks_exact(count.max(1)) {
        sums.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
    }
    sums
}

fn sums_are_exact(op: Op) {
    let gpu = Gpu::with_kernels("conv2d");
    for geometry in geometries() {
        let d = geometry.exact_data();
        let expected = single(&geometry.expected(op, &d));
        for variant in variants(op) {
            let got = in_every_order(|| run(&gpu, op, variant, geometry, &d, Run::default()));
            let expected = variant.result(op).round(&expected);
            assert_eq!(got, expected, "{op:?} {} {}", variant.suffix, geometry.name);
        }
    }
}

#[test]
fn forward_sums_are_exact() {
    sums_are_exact(Op::Forward);
}

#[test]
fn transpose_sums_are_exact() {
    sums_are_exact(Op::Transpose);
}

#[test]
fn weight_grad_sums_are_exact() {
    sums_are_exact(Op::WeightGrad);
}

#[test]
fn parts_add_up_to_the_whole() {
    let gpu = Gpu::with_kernels("conv2d");
    // Parts in vectors and not, of whole slices and not; the last one is shorter.
    for (geometry, part) in [
        (&GEOMETRIES[0], 16),
        (&GEOMETRIES[0], 12),
        (&GEOMETRIES[2], 7),
        (&GEOMETRIES[1], 10),
    ] {
        let d = geometry.exact_data();
        for op in [Op::Forward, Op::Transpose, Op::WeightGrad] {
            let expected = single(&geometry.expected(op, &d));
            for variant in [TENSOR_CORE[0], TENSOR_CORE[3], STORED[0], WIDE] {
                let parts = in_every_order(|| {
                    run(&gpu, op, variant, geometry, &d, Run { part, skipped: 0 })
                });
                assert!(parts.len() > expected.len(), "one part only");
                assert_eq!(
                    added(&parts, expected.len()),
                    expected,
                    "{op:?} {} {part} {}",
                    variant.suffix,
                    geometry.name
                );
            }
        }
    }
}

#[test]
fn tensors_may_start_at_any_element() {
    let gpu = Gpu::with_kernels("conv2d");
    let geometry = &GEOMETRIES[0];
    let d = geometry.exact_data();
    for op in [Op::Forward, Op::Transpose, Op::WeightGrad] {
        let expected = single(&geometry.expected(op, &d));
        for variant in variants(op) {
            let got = run(
                &gpu,
                op,
                variant,
                geometry,
                &d,
                Run {
                    part: 0,
                    skipped: 1,
                },
            );
            let expected = variant.result(op).round(&expected);
            assert_eq!(got, expected, "{op:?} {}", variant.suffix);
        }
    }
}

/// The error that rounding may make, in units of the sum of the absolute values of `terms` terms.
fn tolerance(variant: Variant, terms: usize) -> f64 {
    let single = |bits: i32| (-f64::from(bits)).exp2();
    // Each operand by half a unit of its last place, twice where a scale is applied first, which is an f32 product; the
    // second-order term of the product of two rounding errors is below the slack of the f32 sum.
    let operands = match variant.suffix {
        name if name.ends_with("tf32x3") => 3.0 * single(22),
        name if name.ends_with("tf32") => 2.0 * single(11) + single(22),
        // Operands, their products with scales, and the result.
        name if name.ends_with("stored_bf16") => 5.0 * single(8) + 16.0 * single(16),
        name if name.ends_with("bf16") => 2.0 * single(8) + single(16),
        _ => 0.0,
    };
    // One f32 rounding per addition, and per product with a scale.
    operands + (terms + 4) as f64 * single(24)
}

#[test]
fn rounding_stays_within_its_bounds() {
    if is_watched() {
        return; // nothing here is accessed that the exact sums do not access
    }
    let gpu = Gpu::with_kernels("conv2d");
    let scale = |count, seed| numbers(count, seed).iter().map(|x| 1.0 + 0.5 * x).collect();
    for geometry in [&GEOMETRIES[0], &GEOMETRIES[7], &GEOMETRIES[10]] {
        let d = geometry.data(numbers, scale);
        for op in [Op::Forward, Op::Transpose, Op::WeightGrad] {
            let expected = geometry.expected(op, &d);
            let ([_, _, depth], _) = geometry.product(op);
            for variant in variants(op) {
                let got = run(&gpu, op, variant, geometry, &d, Run::default());
                let bound = tolerance(variant, depth);
                for (i, (&got, [sum, of_absolutes])) in got.iter().zip(&expected).enumerate() {
                    let error = (f64::from(got) - sum).abs();
                    assert!(
                        error <= bound * of_absolutes,
                        "{op:?} {} {}: element {i} is {got}, not {sum}",
                        variant.suffix,
                        geometry.name
                    );
                }
            }
        }
    }
}

/// Three TF32 products are as good as f32: their error is far below that of one.
#[test]
fn three_products_recover_single_precision() {
    if is_watched() {
        return; // as above
    }
    let gpu = Gpu::with_kernels("conv2d");
    let geometry = &GEOMETRIES[10];
    let d = geometry.data(numbers, numbers);
    let expected = geometry.expected(Op::Forward, &d);
    let worst = |variant| {
        let got = run(&gpu, Op::Forward, variant, geometry, &d, Run::default());
        got.iter()
            .zip(&expected)
            .map(|(&got, [sum, of_absolutes])| (f64::from(got) - sum).abs() / of_absolutes)
            .fold(0.0, f64::max)
    };
    let [f32, tf32, tf32x3] = [WIDE, TENSOR_CORE[1], TENSOR_CORE[5]].map(worst);
    assert!(tf32 > 50.0 * tf32x3, "{tf32:e} {tf32x3:e}");
    assert!(tf32x3 < 4.0 * f32, "{tf32x3:e} {f32:e}");
}

// ---- with bias, noise and activation

#[test]
fn activation_follows_in_the_same_pass() {
    let gpu = Gpu::with_kernels("conv2d");
    let last = if is_watched() { 2 } else { 9 };
    for geometry in [&GEOMETRIES[0], &GEOMETRIES[1], &GEOMETRIES[last]] {
        let (d, [oh, ow], co) = (
            geometry.exact_data(),
            geometry.output(),
            geometry.channels[1],
        );
        let (bias, noise) = (whole_numbers(co, 6), whole_numbers(oh * ow, 7));
        for given in [true, false] {
            let extras = Extras::new(&gpu, &bias, &noise, given);
            let expected: Vec<f32> = single(&geometry.expected(Op::Forward, &d))
                .iter()
                .enumerate()
                .map(|(at, &sum)| {
                    let shift = bias[at % co] + 0.5 * noise[at / co % (oh * ow)];
                    let v = if given { sum + shift } else { sum };
                    v * if v > 0.0 { UP } else { DOWN }
                })
                .collect();
            for variant in variants(Op::Forward) {
                let got = in_every_order(|| activated(&gpu, variant, geometry, &d, &extras));
                let expected = variant.activations().round(&expected);
                assert_eq!(got, expected, "{} {}", variant.suffix, geometry.name);
            }
            let parts = run(
                &gpu,
                Op::Forward,
                TENSOR_CORE[0],
                geometry,
                &d,
                Run {
                    part: 12,
                    skipped: 0,
                },
            );
            for stored in [Stored::F32, Stored::Bf16] {
                let count = expected.len();
                let got =
                    in_every_order(|| activated_parts(&gpu, &parts, stored, count, co, &extras));
                assert_eq!(got, stored.round(&expected), "parts {}", geometry.name);
            }
        }
    }
}

fn activated(
    gpu: &Gpu,
    variant: Variant,
    geometry: &Geometry,
    d: &Data,
    extras: &Extras,
) -> Vec<f32> {
    let ([rows, columns, _], _) = geometry.product(Op::Forward);
    let stored = variant.activations();
    let (x, w, a, b) = (
        gpu.upload(&stored.encode(&d.x)),
        gpu.upload(&variant.weight().encode(&d.w)),
        gpu.upload(&d.a),
        gpu.upload(&d.b),
    );
    let a_address = if geometry.scales[0] {
        gpu.address(&a)
    } else {
        0
    };
    let b_address = if geometry.scales[1] {
        gpu.address(&b)
    } else {
        0
    };
    let mut y = gpu.uninitialised::<u8>(geometry.counts()[2] * stored.size());
    let params = geometry.params(0);
    let name = format!("conv2d_act_{}", variant.suffix);
    gpu.launch(
        &gpu.function_with(&name, variant.dynamic_shared),
        launch(variant, [rows, columns], 1),
        |args| {
            args.arg(&x)
                .arg(&w)
                .arg(&a_address)
                .arg(&b_address)
                .arg(&mut y)
                .arg(&params)
                .arg(&extras.params);
        },
    )
    .unwrap_or_else(|_| panic!("{name}: {}", cuda_on_cpu::last_error()));
    stored.decode(&gpu.download(&y))
}

fn activated_parts(
    gpu: &Gpu,
    parts: &[f32],
    stored: Stored,
    count: usize,
    channels: usize,
    extras: &Extras,
) -> Vec<f32> {
    let (sums, mut y) = (
        gpu.upload(parts),
        gpu.uninitialised::<u8>(count * stored.size()),
    );
    let name = match stored {
        Stored::F32 => "conv2d_add_parts_act_f32",
        Stored::Bf16 => "conv2d_add_parts_act_bf16",
    };
    let [n, c, q] = [count, channels, parts.len() / count].map(|v| v as i32);
    gpu.launch(&gpu.function(name), support::grid(2, 128), |args| {
        args.arg(&sums)
            .arg(&mut y)
            .arg(&n)
            .arg(&c)
            .arg(&q)
            .arg(&extras.params);
    })
    .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    stored.decode(&gpu.download(&y))
}

// ---- squared gradients

/// sum_j weight (the gradient of group j and the rest)^2, group j being the samples j, j + J, ...
fn squared_by_groups(
    geometry: &Geometry,
    d: &Data,
    rest: Option<&[f32]>,
    groups: usize,
    weight: f64,
) -> Vec<f32> {
    let count = geometry.counts()[1];
    let none = vec![0.0; groups * count];
    let mut gradients: Vec<Vec<f64>> = rest
        .unwrap_or(&none)
        .chunks_exact(count)
        .map(|rest| rest.iter().map(|v| f64::from(*v)).collect())
        .collect();
    geometry.visit(|[x, w, g], [n, i, o]| {
        gradients[n % groups][w] +=
            f64::from(GAIN) * f64::from(d.x[x]) * f64::from(d.g[g]) * geometry.scale_of(d, n, i, o);
    });
    (0..count)
        .map(|w| (weight * gradients.iter().map(|v| v[w] * v[w]).sum::<f64>()) as f32)
        .collect()
}

#[test]
fn squared_gradients_are_those_of_groups() {
    let gpu = Gpu::with_kernels("conv2d");
    let weight = 0.25;
    for (geometry, groups, part) in [
        (
            square("samples", 3, 4, [4, 8], [3, 1, 1], [true, true]),
            3,
            0,
        ),
        (
            square("groups", 4, 4, [3, 5], [3, 2, 1], [true, true]),
            2,
            0,
        ),
        (
            square("one group", 2, 3, [8, 72], [1, 1, 0], [false, true]),
            1,
            0,
        ),
        (
            square("parts", 6, 3, [8, 4], [3, 1, 1], [true, false]),
            3,
            2,
        ),
    ] {
        let d = geometry.data(whole_numbers, one_or_two);
        // One case of each kind has a rest: odd numbers of groups.
        let rest = (groups % 2 == 1).then(|| whole_numbers(groups * geometry.counts()[1], 8));
        let rest = rest.as_deref();
        let expected = squared_by_groups(&geometry, &d, rest, groups, weight);
        for variant in [
            WIDE,
            simt("tf32", [64, 64]),
            simt("bf16", [64, 64]),
            simt("tf32x3", [64, 64]),
            simt("stored_bf16", [64, 64]),
        ] {
            let variant = if variant.suffix == "f32" {
                variant
            } else {
                self::variant(variant.suffix, [64, 64], 128)
            };
            let params = Conv2dSquaredParams {
                conv: geometry.params(0),
                groups: groups as i32,
                part,
                weight: weight as f32,
                accumulate: i32::from(part == 0),
            };
            let got = in_every_order(|| squared(&gpu, variant, &geometry, &d, rest, params));
            let before = if part == 0 { 1.0 } else { 0.0 };
            let got: Vec<f32> = added(&got, expected.len())
                .iter()
                .map(|v| v - before)
                .collect();
            assert_eq!(got, expected, "{} {}", variant.suffix, geometry.name);
        }
    }
}

/// The parts of the sum of squares, added to ones where the kernel accumulates.
fn squared(
    gpu: &Gpu,
    variant: Variant,
    geometry: &Geometry,
    d: &Data,
    rest: Option<&[f32]>,
    params: Conv2dSquaredParams,
) -> Vec<f32> {
    let ([rows, columns, _], _) = geometry.product(Op::WeightGrad);
    let parts = if params.part == 0 {
        1
    } else {
        (params.groups as usize).div_ceil(params.part as usize)
    };
    let stored = variant.activations();
    let (x, g, a, b) = (
        gpu.upload(&stored.encode(&d.x)),
        gpu.upload(&stored.encode(&d.g)),
        gpu.upload(&d.a),
        gpu.upload(&d.b),
    );
    let a_address = if geometry.scales[0] {
        gpu.address(&a)
    } else {
        0
    };
    let b_address = if geometry.scales[1] {
        gpu.address(&b)
    } else {
        0
    };
    let rest = rest.map(|rest| gpu.upload(rest));
    let rest_address = rest.as_ref().map_or(0, |rest| gpu.address(rest));
    let count = parts * geometry.counts()[1];
    let mut s = if params.accumulate == 1 {
        gpu.upload(&vec![1.0; count])
    } else {
        gpu.uninitialised(count)
    };
    let name = format!("conv2d_weight_grad_squared_{}", variant.suffix);
    gpu.launch(
        &gpu.function_with(&name, variant.dynamic_shared),
        launch(variant, [rows, columns], parts),
        |args| {
            args.arg(&x)
                .arg(&g)
                .arg(&a_address)
                .arg(&b_address)
                .arg(&rest_address)
                .arg(&mut s)
                .arg(&params);
        },
    )
    .unwrap_or_else(|_| panic!("{name}: {}", cuda_on_cpu::last_error()));
    gpu.download(&s)
}

#[test]
fn address_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Addresses);
}

#[test]
fn thread_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Races);
}
