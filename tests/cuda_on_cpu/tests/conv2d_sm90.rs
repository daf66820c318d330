//! kernels/conv2d_sm90.cu against loops in double precision, on numbers whose sums are exact in every format.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use support::{
    Geometry as Launch, Gpu, Stored, TensorMap, bf16_bits,
    conv2d::{DOWN, Data, Extras, Geometry, Op, UP, square, whole_numbers},
    is_watched, tensor_map,
};

mod support;

#[repr(C)]
#[derive(Clone, Copy)]
struct Conv2dBoxParams {
    w: i32,
    h: i32,
    n: i32,
    part: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/conv2d_sm90.cu.
unsafe impl DeviceRepr for Conv2dBoxParams {}

/// Channels of a step and of one TMA box.
const DEPTH: u32 = 64;

/// Entries by the columns of their tiles, and what they store.
#[derive(Clone, Copy, Debug)]
struct Variant {
    suffix: &'static str,
    columns: u32,
    result: Stored,
}

const NARROW: Variant = Variant {
    suffix: "sm90_narrow_bf16",
    columns: 128,
    result: Stored::F32,
};
const NARROW_STORED: Variant = Variant {
    suffix: "sm90_narrow_stored_bf16",
    result: Stored::Bf16,
    ..NARROW
};
const WIDE: Variant = Variant {
    suffix: "sm90_bf16",
    columns: 256,
    result: Stored::F32,
};
const WIDE_STORED: Variant = Variant {
    suffix: "sm90_stored_bf16",
    result: Stored::Bf16,
    ..WIDE
};

impl Variant {
    /// sizeof(Stages) in kernels/conv2d_sm90.cu: four stages, and the barriers up to the alignment of 1024 bytes.
    fn dynamic_shared(self) -> u32 {
        4 * (128 + self.columns) * DEPTH * 2 + 1024
    }
}

/// An operand in bf16, multiplied by its scale.
fn packed(
    gpu: &Gpu,
    values: &[f32],
    scale: Option<&[f32]>,
    [image, channels]: [usize; 2],
) -> CudaSlice<u16> {
    let scale_of = |i: usize| scale.map_or(1.0, |s| s[i / image * channels + i % channels]);
    let rounded: Vec<u16> = (0..values.len())
        .map(|i| bf16_bits(values[i] * scale_of(i)))
        .collect();
    gpu.upload(&rounded)
}

/// The two packed operands of an op with their scales, whose memory the maps point into.
struct Operands {
    _memory: [CudaSlice<u16>; 2],
    maps: [TensorMap; 2],
}

fn operands(
    gpu: &Gpu,
    op: Op,
    geometry: &Geometry,
    d: &Data,
    columns: u32,
    [bw, bh, bn]: [u32; 3],
) -> Operands {
    let ([h, w], [oh, ow], [ci, co]) = (geometry.size, geometry.output(), geometry.channels);
    let [sy, sx] = geometry.stride.map(|s| s as u32);
    let (n, taps) = (geometry.n as u64, geometry.taps());
    let a = geometry.scales[0].then_some(&d.a[..]);
    let b = geometry.scales[1].then_some(&d.b[..]);
    let x = |scale| packed(gpu, &d.x, scale, [h * w * ci, ci]);
    let g = |scale| packed(gpu, &d.g, scale, [oh * ow * co, co]);
    let map_of_x = |memory: &CudaSlice<u16>| {
        let (extents, boxes) = (
            [ci as u64, w as u64, h as u64, n],
            [DEPTH, bw * sx, bh * sy, bn],
        );
        tensor_map(gpu.address(memory), &extents, &boxes, &[1, sx, sy, 1])
    };
    let map_of_g = |memory: &CudaSlice<u16>| {
        let (extents, boxes) = ([co as u64, ow as u64, oh as u64, n], [DEPTH, bw, bh, bn]);
        tensor_map(gpu.address(memory), &extents, &boxes, &[1; 4])
    };
    let weights = || packed(gpu, &d.w, None, [d.w.len(), ci]);
    match op {
        Op::Forward => {
            let (x, w) = (x(a), weights());
            let map_of_w = tensor_map(
                gpu.address(&w),
                &[(taps * ci) as u64, co as u64],
                &[DEPTH, columns],
                &[1, 1],
            );
            Operands {
                maps: [map_of_x(&x), map_of_w],
                _memory: [x, w],
            }
        }
        Op::Transpose => {
            let (g, w) = (g(b), weights());
            let extents = [ci as u64, taps as u64, co as u64];
            let map_of_w = tensor_map(gpu.address(&w), &extents, &[64, 1, DEPTH], &[1; 3]);
            Operands {
                maps: [map_of_g(&g), map_of_w],
                _memory: [g, w],
            }
        }
        Op::WeightGrad => {
            let (g, x) = (g(b), x(a));
            Operands {
                maps: [map_of_g(&g), map_of_x(&x)],
                _memory: [g, x],
            }
        }
    }
}

/// An op on `blocks` blocks; the forward op with what follows it, the weight gradient in parts of `part` boxes.
#[derive(Clone, Copy)]
struct Run {
    blocks: u32,
    boxes: [u32; 3],
    part: usize,
}

fn run(
    gpu: &Gpu,
    op: Op,
    variant: Variant,
    geometry: &Geometry,
    d: &Data,
    extras: &Extras,
    run: Run,
) -> Vec<f32> {
    let operands = operands(gpu, op, geometry, d, variant.columns, run.boxes);
    let (a, b) = (gpu.upload(&d.a), gpu.upload(&d.b));
    let a = if geometry.scales[0] {
        gpu.address(&a)
    } else {
        0
    };
    let b = if geometry.scales[1] {
        gpu.address(&b)
    } else {
        0
    };
    let [x_count, w_count, g_count] = geometry.counts();
    let [bw, bh, bn] = run.boxes.map(|v| v as usize);
    let [oh, ow] = geometry.output();
    let boxes = ow.div_ceil(bw) * oh.div_ceil(bh) * geometry.n.div_ceil(bn);
    let count = match op {
        Op::Forward => g_count,
        Op::Transpose => x_count,
        Op::WeightGrad => {
            w_count
                * if run.part == 0 {
                    1
                } else {
                    boxes.div_ceil(run.part)
                }
        }
    };
    let mut result = gpu.uninitialised::<u8>((count + 1) * variant.result.size());
    let params = geometry.params(0);
    let box_params = Conv2dBoxParams {
        w: bw as i32,
        h: bh as i32,
        n: bn as i32,
        part: run.part as i32,
    };
    let launch = Launch {
        blocks: [run.blocks, 1, 1],
        threads: 384,
        dynamic_shared: variant.dynamic_shared(),
    };
    let name = format!("{}_{}", op.name(), variant.suffix);
    gpu.launch(
        &gpu.function_with(&name, launch.dynamic_shared),
        launch,
        |args| {
            args.arg(&operands.maps[0]).arg(&operands.maps[1]);
            match op {
                Op::Forward => args.arg(&b),
                Op::Transpose => args.arg(&a),
                Op::WeightGrad => &mut *args,
            };
            args.arg(&mut result).arg(&params);
            if op == Op::Forward {
                args.arg(&extras.params);
            }
            args.arg(&box_params);
        },
    )
    .unwrap_or_else(|_| panic!("{name} {}: {}", geometry.name, cuda_on_cpu::last_error()));
    let mut values = variant.result.decode(&gpu.download(&result));
    assert!(
        values.pop().expect("the guard").is_nan(),
        "written behind the result"
    );
    values
}

/// The op on every order of threads, compared with `expected`.
fn assert_equal(op: Op, variant: Variant, geometry: &Geometry, settings: Run) {
    let gpu = Gpu::with_kernels("conv2d_sm90");
    let d = geometry.exact_data();
    let [co, pixels] = [geometry.channels[1], geometry.output().iter().product()];
    let (bias, noise) = (whole_numbers(co, 6), whole_numbers(pixels, 7));
    let extras = Extras::new(&gpu, &bias, &noise, true);
    let expected: Vec<f32> = geometry
        .expected(op, &d)
        .iter()
        .enumerate()
        .map(|(at, &[sum, _])| {
            if op != Op::Forward {
                return sum as f32;
            }
            let v = sum as f32 + bias[at % co] + 0.5 * noise[at / co % pixels];
            v * if v > 0.0 { UP } else { DOWN }
        })
        .collect();
    let expected = variant.result.round(&expected);
    for &order in orders() {
        let parts = with_order(order, || {
            run(&gpu, op, variant, geometry, &d, &extras, settings)
        });
        let mut got = vec![0.0; expected.len()];
        for part in parts.chunks_exact(expected.len()) {
            got.iter_mut().zip(part).for_each(|(sum, v)| *sum += v);
        }
        assert_eq!(
            got, expected,
            "{op:?} {} {} {order:?}",
            variant.suffix, geometry.name
        );
    }
}

/// A geometry on so many blocks, in boxes of w x h x n pixels, in parts of so many boxes.
type Case = (Variant, Geometry, u32, [u32; 3], usize);

fn check(op: Op, cases: &[Case]) {
    let count = if is_watched() { 1 } else { cases.len() };
    for &(variant, geometry, blocks, boxes, part) in &cases[..count] {
        let run = Run {
            blocks,
            boxes,
            part,
        };
        assert_equal(op, variant, &geometry, run);
    }
}

// Ragged pixels, samples, channels in and out; fewer blocks than tiles.

#[test]
fn forward_sums_are_exact() {
    let ragged = square("ragged", 3, 9, [72, 24], [3, 1, 1], [true, true]);
    let strided = square("stride 2", 1, 17, [8, 136], [3, 2, 0], [true, false]);
    let wide = square("1x1", 1, 4, [16, 264], [1, 1, 0], [false, false]);
    let cases = [
        (NARROW, ragged, 3, [8, 8, 2], 0),
        (NARROW, strided, 2, [16, 8, 1], 0),
        (WIDE, wide, 1, [4, 4, 8], 0),
        (NARROW_STORED, ragged, 3, [8, 8, 2], 0),
        (WIDE_STORED, wide, 1, [4, 4, 8], 0),
    ];
    check(Op::Forward, &cases);
}

#[test]
fn transpose_sums_are_exact() {
    let ragged = square("ragged", 3, 6, [24, 72], [3, 1, 1], [true, true]);
    let strided = square("stride 2", 1, 9, [136, 8], [3, 2, 0], [true, false]);
    let classes = square("some taps only", 1, 5, [8, 8], [2, 3, 1], [false, true]);
    let wide = square("1x1", 1, 4, [264, 16], [1, 1, 0], [true, true]);
    let cases = [
        (NARROW, ragged, 3, [8, 8, 2], 0),
        (NARROW, strided, 5, [8, 16, 1], 0),
        (NARROW, classes, 2, [8, 8, 2], 0),
        (WIDE, wide, 1, [4, 4, 8], 0),
        (NARROW_STORED, strided, 5, [8, 16, 1], 0),
        (WIDE_STORED, wide, 1, [4, 4, 8], 0),
    ];
    check(Op::Transpose, &cases);
}

#[test]
fn weight_grad_sums_are_exact() {
    let ragged = square("ragged", 3, 9, [24, 40], [3, 1, 1], [true, true]);
    let strided = square("stride 2", 2, 9, [136, 8], [3, 2, 0], [true, false]);
    let wide = square("1x1", 1, 8, [264, 136], [1, 1, 0], [false, true]);
    let cases = [
        (NARROW, ragged, 4, [8, 4, 2], 5),
        (NARROW, ragged, 4, [8, 4, 2], 0),
        (NARROW, strided, 3, [4, 4, 4], 0),
        (WIDE, wide, 1, [8, 8, 1], 0),
    ];
    check(Op::WeightGrad, &cases);
}

#[test]
fn address_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Addresses);
}

#[test]
fn thread_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Races);
}
