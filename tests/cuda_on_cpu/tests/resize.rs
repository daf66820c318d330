//! kernels/resize.cu against plain loops, in single precision in the same order, which must be equal, and in double.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{DeviceRepr, PushKernelArg};
use support::{Gpu, grid, numbers};

mod support;

#[repr(C)]
#[derive(Clone, Copy)]
struct ResizeTaps {
    start: i32,
    first: i32,
    count: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/resize.cu.
unsafe impl DeviceRepr for ResizeTaps {}

#[repr(C)]
#[derive(Clone, Copy)]
struct ResizeParams {
    count: i32,
    input: i32,
    output: i32,
    inner: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/resize.cu.
unsafe impl DeviceRepr for ResizeParams {}

/// One to four neighbours of `input` for each of `output` positions, with any weights.
fn axis(input: usize, output: usize) -> (Vec<ResizeTaps>, Vec<f32>) {
    let (mut taps, mut first) = (Vec::new(), 0);
    for j in 0..output {
        let start = j * input / output;
        let count = (1 + j % 4).min(input - start);
        taps.push(ResizeTaps {
            start: start as i32,
            first: first as i32,
            count: count as i32,
        });
        first += count;
    }
    (taps, numbers(first, 9))
}

fn run(x: &[f32], [outer, input, output, inner]: [usize; 4], skipped: usize) -> Vec<f32> {
    let gpu = Gpu::with_kernels("resize");
    let (taps, weights) = axis(input, output);
    let memory = gpu.upload(&[&vec![f32::NAN; skipped], x, &[f32::NAN]].concat());
    let from = gpu.address(&memory) + 4 * skipped as u64;
    let (taps, weights) = (gpu.upload(&taps), gpu.upload(&weights));
    let count = outer * output * inner;
    let mut y = gpu.uninitialised::<f32>(count);
    let params = ResizeParams {
        count: count as i32,
        input: input as i32,
        output: output as i32,
        inner: inner as i32,
    };
    gpu.launch(&gpu.function("resize_axis_f32"), grid(2, 64), |args| {
        args.arg(&from)
            .arg(&taps)
            .arg(&weights)
            .arg(&mut y)
            .arg(&params);
    })
    .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    gpu.download(&y)
}

#[test]
fn an_axis_is_filtered() {
    for (sizes @ [outer, input, output, inner], skipped) in [
        ([2, 5, 8, 4], 0),
        ([3, 9, 4, 3], 0),
        ([1, 7, 7, 20], 1),
        ([2, 1, 3, 8], 0),
        ([1, 16, 5, 1], 0),
    ] {
        let x = numbers(outer * input * inner, 3);
        let (taps, weights) = axis(input, output);
        let element = |at: usize| {
            let (i, j, o) = (at % inner, at / inner % output, at / inner / output);
            let tap = taps[j];
            let (mut single, mut double) = (0.0f32, 0.0f64);
            for k in 0..tap.count as usize {
                let (v, w) = (
                    x[(o * input + tap.start as usize + k) * inner + i],
                    weights[tap.first as usize + k],
                );
                single += v * w;
                double += f64::from(v) * f64::from(w);
            }
            // Four products below one, each rounded once more in its sum.
            assert!((f64::from(single) - double).abs() < 1e-6);
            single
        };
        let expected: Vec<f32> = (0..outer * output * inner).map(element).collect();
        for &order in orders() {
            assert_eq!(
                with_order(order, || run(&x, sizes, skipped)),
                expected,
                "{sizes:?} {order:?}"
            );
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
