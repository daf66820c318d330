//! kernels/pool2d.cu against plain loops. Sums are of whole numbers and shares are rounded as the CPU rounds them, so
//! results must be equal.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{DeviceRepr, PushKernelArg};
use support::{Gpu, grid, numbers};

mod support;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Pool2dParams {
    count: i32,
    input: [i32; 2],
    output: [i32; 2],
    channels: i32,
    kernel: [i32; 2],
    stride: [i32; 2],
    padding: [i32; 2],
    divide_by_inside: i32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/pool2d.cu.
unsafe impl DeviceRepr for Pool2dParams {}

#[derive(Clone, Copy, Debug)]
struct Geometry {
    n: usize,
    size: [usize; 2],
    channels: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
}

const fn square(
    n: usize,
    size: usize,
    channels: usize,
    [kernel, stride, padding]: [usize; 3],
) -> Geometry {
    Geometry {
        n,
        size: [size; 2],
        channels,
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
    }
}

const GEOMETRIES: &[Geometry] = &[
    square(2, 7, 4, [3, 2, 1]),
    square(2, 6, 3, [2, 2, 0]),
    square(1, 8, 8, [3, 1, 1]),
    square(3, 5, 5, [5, 1, 0]),
    square(1, 7, 2, [2, 3, 0]),
    square(0, 5, 4, [3, 1, 1]),
    Geometry {
        n: 1,
        size: [5, 9],
        channels: 4,
        kernel: [2, 3],
        stride: [1, 2],
        padding: [1, 0],
    },
];

impl Geometry {
    fn output(&self) -> [usize; 2] {
        [0, 1].map(|d| (self.size[d] + 2 * self.padding[d] - self.kernel[d]) / self.stride[d] + 1)
    }
    fn inputs(&self) -> usize {
        self.n * self.size[0] * self.size[1] * self.channels
    }
    fn outputs(&self) -> usize {
        self.n * self.output()[0] * self.output()[1] * self.channels
    }
    fn params(&self, count: usize, divide_by_inside: bool) -> Pool2dParams {
        let pair = |v: [usize; 2]| v.map(|v| v as i32);
        Pool2dParams {
            count: count as i32,
            input: pair(self.size),
            output: pair(self.output()),
            channels: self.channels as i32,
            kernel: pair(self.kernel),
            stride: pair(self.stride),
            padding: pair(self.padding),
            divide_by_inside: i32::from(divide_by_inside),
        }
    }
    /// For every output element the elements of its window inside the image with their taps.
    fn windows(&self) -> Vec<Vec<(usize, usize)>> {
        let ([oh, ow], [h, w], [kh, kw], c) =
            (self.output(), self.size, self.kernel, self.channels);
        let mut windows = Vec::new();
        for at in 0..self.outputs() {
            let (channel, x, y, n) = (at % c, at / c % ow, at / c / ow % oh, at / c / ow / oh);
            let mut window = Vec::new();
            for t in 0..kh * kw {
                let qy = (y * self.stride[0] + t / kw).wrapping_sub(self.padding[0]);
                let qx = (x * self.stride[1] + t % kw).wrapping_sub(self.padding[1]);
                if qy < h && qx < w {
                    window.push((((n * h + qy) * w + qx) * c + channel, t));
                }
            }
            windows.push(window);
        }
        windows
    }
}

/// Runs a kernel of some inputs, one result and the parameters, in every order, on operands that start at a multiple of
/// 16 bytes and on such that do not.
fn run(kernel: &str, inputs: &[&[f32]], params: Pool2dParams) -> Vec<f32> {
    let gpu = Gpu::with_kernels("pool2d");
    let count = params.count as usize;
    let one = |skipped: usize| {
        let memory: Vec<_> = inputs
            .iter()
            .map(|v| gpu.upload(&[&vec![f32::NAN; skipped], *v, &[f32::NAN]].concat()))
            .collect();
        let addresses: Vec<u64> = memory
            .iter()
            .map(|m| gpu.address(m) + 4 * skipped as u64)
            .collect();
        let result = gpu.uninitialised::<f32>(skipped + count + 1);
        let to = gpu.address(&result) + 4 * skipped as u64;
        gpu.launch(&gpu.function(kernel), grid(2, 32), |args| {
            for address in &addresses {
                args.arg(address);
            }
            args.arg(&to).arg(&params);
        })
        .unwrap_or_else(|_| panic!("{kernel}: {}", cuda_on_cpu::last_error()));
        let mut values = gpu.download(&result);
        assert!(
            values.pop().expect("the guard").is_nan(),
            "written behind the result"
        );
        values.split_off(skipped)
    };
    let mut results = [0, 1]
        .into_iter()
        .flat_map(|skipped| orders().iter().map(move |&order| (order, skipped)));
    let mut results = results
        .by_ref()
        .map(|(order, skipped)| with_order(order, || one(skipped)));
    let first = results.next().expect("an order");
    for other in results {
        assert!(
            first
                .iter()
                .zip(&other)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "{kernel}: {first:?} and {other:?}"
        );
    }
    first
}

fn whole_numbers(count: usize, seed: u64) -> Vec<f32> {
    numbers(count, seed)
        .iter()
        .map(|x| (x * 4.0).round())
        .collect()
}

#[test]
fn the_largest_of_each_window_and_where_it_is() {
    for geometry in GEOMETRIES {
        // Ties on purpose.
        let x = whole_numbers(geometry.inputs(), 1);
        let windows = geometry.windows();
        let largest = |window: &Vec<(usize, usize)>| {
            window
                .iter()
                .copied()
                .reduce(|best, next| if x[next.0] > x[best.0] { next } else { best })
                .expect("an element inside")
        };
        let params = geometry.params(geometry.outputs(), false);
        let expected: Vec<f32> = windows.iter().map(|w| x[largest(w).0]).collect();
        assert_eq!(
            run("max_pool2d_f32", &[&x], params),
            expected,
            "{geometry:?}"
        );
        let taps: Vec<f32> = windows.iter().map(|w| largest(w).1 as f32).collect();
        assert_eq!(
            run("max_pool2d_taps_f32", &[&x], params),
            taps,
            "{geometry:?}"
        );

        let other = whole_numbers(geometry.inputs(), 2);
        let expected: Vec<f32> = windows.iter().map(|w| other[largest(w).0]).collect();
        assert_eq!(
            run("gather_taps_f32", &[&other, &taps], params),
            expected,
            "{geometry:?}"
        );

        let g = numbers(geometry.outputs(), 3);
        let mut expected = vec![0.0f32; geometry.inputs()];
        for (window, g) in windows.iter().zip(&g) {
            expected[largest(window).0] += g;
        }
        let params = geometry.params(geometry.inputs(), false);
        assert_eq!(
            run("scatter_taps_f32", &[&g, &taps], params),
            expected,
            "{geometry:?}"
        );
    }
}

#[test]
fn a_nan_wins() {
    let geometry = square(1, 3, 1, [3, 1, 0]);
    let mut x = vec![1.0; 9];
    x[4] = f32::NAN;
    x[7] = 5.0;
    let params = geometry.params(1, false);
    assert!(run("max_pool2d_f32", &[&x], params)[0].is_nan());
    assert_eq!(run("max_pool2d_taps_f32", &[&x], params), [4.0]);
    assert_eq!(
        run("max_pool2d_f32", &[&[f32::NEG_INFINITY; 9]], params),
        [f32::NEG_INFINITY]
    );
}

#[test]
fn averages_and_their_transpose() {
    for geometry in GEOMETRIES {
        let (x, g) = (
            numbers(geometry.inputs(), 4),
            numbers(geometry.outputs(), 5),
        );
        for inside in [false, true] {
            let share = |window: &Vec<(usize, usize)>| {
                let taps = if inside {
                    window.len()
                } else {
                    geometry.kernel[0] * geometry.kernel[1]
                };
                1.0 / taps as f32
            };
            let windows = geometry.windows();
            let expected: Vec<f32> = windows
                .iter()
                .map(|w| w.iter().fold(0.0, |sum, (at, _)| sum + x[*at]) * share(w))
                .collect();
            assert_eq!(
                run(
                    "avg_pool2d_f32",
                    &[&x],
                    geometry.params(expected.len(), inside)
                ),
                expected,
                "{geometry:?}"
            );
            let mut expected = vec![0.0f32; geometry.inputs()];
            for (window, g) in windows.iter().zip(&g) {
                for (at, _) in window {
                    expected[*at] += g * share(window);
                }
            }
            let got = run(
                "avg_pool2d_transpose_f32",
                &[&g],
                geometry.params(expected.len(), inside),
            );
            assert_eq!(got, expected, "{geometry:?}");
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
