//! Correct kernels give correct results, in every order of threads. Every test here runs on a real device too.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{PushKernelArg, sys};
use support::{Geometry, Gpu, OVERLAPS, bf16_bits, bf16_value, grid, matmul_sm90, numbers};

mod support;

/// Runs a kernel of `x` and `y` in every order and gives y, which must be the same each time.
fn map(stem: &str, kernel: &str, geometry: Geometry, x: &[f32], y_count: usize) -> Vec<f32> {
    let mut results = orders().iter().map(|&order| {
        with_order(order, || {
            let gpu = Gpu::with_kernels(stem);
            let (input, mut output) = (gpu.upload(x), gpu.uninitialised::<f32>(y_count));
            gpu.launch(&gpu.function(kernel), geometry, |args| {
                args.arg(&input).arg(&mut output);
            })
            .unwrap_or_else(|_| panic!("{kernel}: {}", cuda_on_cpu::last_error()));
            gpu.download(&output)
        })
    });
    let first = results.next().expect("an order");
    assert!(
        results.all(|result| result == first),
        "{kernel}: the result depends on the order of threads"
    );
    first
}

/// The same for the products of one warp, d[rows][columns] = a b.
fn product<T>(kernel: &str, a: &[T], b: &[T], d_count: usize) -> Vec<T>
where
    T: cudarc::driver::DeviceRepr + Clone + Default,
{
    let gpu = Gpu::with_kernels("tensor_core");
    let (a, b, mut d) = (
        gpu.upload(a),
        gpu.upload(b),
        gpu.uninitialised::<T>(d_count),
    );
    gpu.launch(&gpu.function(kernel), grid(1, 32), |args| {
        args.arg(&a).arg(&b).arg(&mut d);
    })
    .unwrap_or_else(|_| panic!("{kernel}: {}", cuda_on_cpu::last_error()));
    gpu.download(&d)
}

fn plain_product(a: &[f32], b: &[f32], depth: usize, columns: usize) -> Vec<f32> {
    let rows = a.len() / depth;
    (0..rows * columns)
        .map(|i| {
            (0..depth)
                .map(|k| a[i / columns * depth + k] * b[k * columns + i % columns])
                .sum()
        })
        .collect()
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance,
            "element {i}: {got}, expected {expected}"
        );
    }
}

#[test]
fn barriers_order_shared_memory() {
    let x = numbers(192, 1);
    let expected: Vec<f32> = (0..192).map(|i| x[i / 64 * 64 + 63 - i % 64]).collect();
    assert_eq!(
        map("collectives", "test_reverse", grid(3, 64), &x, 192),
        expected
    );
}

#[test]
fn block_sums_are_sums() {
    let x: Vec<f32> = (0..512).map(|i| (i % 9) as f32).collect();
    let y = map("collectives", "test_block_sum", grid(2, 256), &x, 512);
    for block in 0..2 {
        let sum: f32 = x[block * 256..][..256].iter().sum();
        assert!(y[block * 256..][..256].iter().all(|&v| v == sum));
    }
}

#[test]
fn warp_collectives_follow_the_manual() {
    let x: Vec<i32> = (0..32).map(|i| (i * 7 + 3) % 32).collect();
    for &order in orders() {
        let y = with_order(order, || {
            let gpu = Gpu::with_kernels("collectives");
            let (input, mut output) = (gpu.upload(&x), gpu.uninitialised::<i32>(288));
            gpu.launch(
                &gpu.function("test_warp_collectives"),
                grid(1, 32),
                |args| {
                    args.arg(&input).arg(&mut output);
                },
            )
            .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
            gpu.download(&output)
        });
        let ballot = (0..32)
            .filter(|&i| x[i] % 3 == 0)
            .fold(0u32, |bits, i| bits | 1 << i) as i32;
        for lane in 0..32 {
            assert_eq!(y[lane], x[5]);
            assert_eq!(y[32 + lane], x[lane ^ 3]);
            assert_eq!(
                y[64 + lane],
                if lane % 16 + 4 < 16 {
                    x[lane + 4]
                } else {
                    x[lane]
                }
            );
            assert_eq!(y[96 + lane], if lane >= 2 { x[lane - 2] } else { x[lane] });
            assert_eq!(y[128 + lane], ballot);
            assert_eq!(y[160 + lane], 3);
            assert_eq!(y[192 + lane], x.iter().sum::<i32>());
            assert_eq!(
                y[224 + lane],
                x.iter().filter(|&&v| v % 2 != 0).count() as i32
            );
            assert_eq!(
                y[256 + lane],
                *x[lane / 16 * 16..][..16].iter().max().expect("16 values")
            );
        }
    }
}

#[test]
fn async_copies_land_at_the_wait_and_fill_with_zeros() {
    let x = numbers(128, 2);
    let mut expected = x.clone();
    expected[124..].fill(0.0); // the copy that was marked invalid
    assert_eq!(
        map("collectives", "test_copy_async", grid(1, 32), &x, 128),
        expected
    );
}

#[test]
fn tensor_core_products_are_products() {
    // Values that the operand format holds exactly, so that only the order of the f32 sum may differ.
    let bf16 = |n, seed| -> Vec<f32> {
        numbers(n, seed)
            .iter()
            .map(|&x| bf16_value(bf16_bits(x)))
            .collect()
    };
    let (a, b) = (bf16(256, 3), bf16(128, 4));
    let expected = plain_product(&a, &b, 16, 8);
    assert_close(&product("test_mma_bf16", &a, &b, 128), &expected, 1e-5);
    assert_close(&product("test_ldmatrix_bf16", &a, &b, 128), &expected, 1e-5);

    let expected = plain_product(&a[..128], &b[..64], 8, 8);
    assert_close(
        &product("test_mma_tf32", &a[..128], &b[..64], 128),
        &expected,
        1e-5,
    );

    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let d = product("test_mma_f64", &wide(&a[..32]), &wide(&b[..32]), 64);
    let expected = plain_product(&a[..32], &b[..32], 4, 8);
    assert_close(
        &d.iter().map(|&x| x as f32).collect::<Vec<_>>(),
        &expected,
        1e-6,
    );
}

#[test]
fn tf32_drops_thirteen_bits_of_each_operand() {
    let mut a = vec![0.0; 128];
    let mut b = vec![0.0; 64];
    a[0] = 1.0 + 2f32.powi(-10) + 2f32.powi(-12); // rounds down to 1 + 2^-10
    b[0] = 1.0 + 2f32.powi(-11); // a tie, away from zero: 1 + 2^-10
    let expected = (1.0 + 2f32.powi(-10)) * (1.0 + 2f32.powi(-10));
    assert_eq!(product("test_mma_tf32", &a, &b, 128)[0], expected);
}

#[test]
fn tma_and_wgmma_multiply_ragged_matrices() {
    for (kernel, tile_columns) in [
        ("test_matmul_sm90_64", 64),
        ("test_matmul_sm90_128", 128),
        ("test_matmul_sm90_256", 256),
    ] {
        for shape in [[64, 256, 64], [100, 72, 200], [1, 8, 264]] {
            for &order in orders() {
                let (got, expected) =
                    with_order(order, || matmul_sm90::run(kernel, tile_columns, shape))
                        .expect("a product");
                assert_eq!(got, expected, "{kernel} {shape:?} {order:?}");
            }
        }
    }
}

#[test]
fn wgmma_takes_operands_whose_rows_are_contiguous() {
    for &order in orders() {
        let (got, expected) =
            with_order(order, || matmul_sm90::run_of_columns("test_matmul_of_columns"))
                .expect("a product");
        assert_eq!(got, expected, "{order:?}");
    }
}

#[test]
fn tma_steps_over_elements_and_fills_with_zeros() {
    for (first, step) in [(0, 1), (3, 2), (-4, 2), (-1, 3)] {
        let (got, expected) = matmul_sm90::run_box(first, step, 8 * 64 * 2).expect("a box");
        assert_eq!(got, expected, "every {step} from {first}");
    }
}

#[test]
fn captured_launches_are_replayed_with_their_parameters() {
    let gpu = Gpu::with_kernels("collectives");
    let x = numbers(64, 5);
    let reversed: Vec<f32> = x.iter().rev().copied().collect();
    let (first, mut second, mut third) =
        (gpu.upload(&x), gpu.zeros::<f32>(64), gpu.zeros::<f32>(64));
    let function = gpu.function("test_reverse");
    gpu.stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .expect("a capture");
    gpu.launch(&function, grid(1, 64), |args| {
        args.arg(&first).arg(&mut second);
    })
    .expect("a captured launch");
    gpu.launch(&function, grid(1, 64), |args| {
        args.arg(&second).arg(&mut third);
    })
    .expect("a captured launch");
    let graph = gpu
        .stream
        .end_capture(sys::CUgraphInstantiate_flags(0))
        .expect("a graph")
        .expect("not empty");
    assert_eq!(
        gpu.download(&second),
        vec![0.0; 64],
        "a captured launch has run"
    );
    graph.launch().expect("a replay");
    assert_eq!((gpu.download(&second), gpu.download(&third)), (reversed, x));
}

#[test]
fn grids_that_overlap_see_what_earlier_ones_wrote() {
    const ROUNDS: usize = 50;
    for &order in orders() {
        let sum = with_order(order, || {
            let gpu = Gpu::with_kernels("grids");
            let pair = [gpu.zeros::<f32>(96), gpu.zeros::<f32>(96)];
            let [a, b] = [0, 1].map(|i| gpu.address(&pair[i]));
            let function = gpu.function("test_overlap");
            let round = || {
                for addresses in [[a, b], [b, a]] {
                    gpu.launch_with(OVERLAPS, &function, grid(3, 32), &addresses)
                        .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
                }
            };
            gpu.stream
                .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
                .expect("a capture");
            (0..ROUNDS).for_each(|_| round());
            let graph = gpu
                .stream
                .end_capture(sys::CUgraphInstantiate_flags(0))
                .expect("a graph")
                .expect("not empty");
            round();
            graph.launch().expect("a replay");
            round();
            gpu.download(&pair[0])
        });
        assert_eq!(sum, vec![2.0 * (ROUNDS + 2) as f32; 96], "{order:?}");
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
