//! kernels/random.cu: the published test vectors, the mapping from counters to elements, the distributions.

use cuda_on_cpu::{orders, with_order};
use cudarc::driver::{CudaSlice, DeviceRepr, PushKernelArg};
use support::{Gpu, grid};

mod support;

/// RandomParams of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RandomParams {
    seed: u64,
    stream: u64,
    counter: u64,
    count: i64,
}
// SAFETY: plain numbers, in the layout of the kernel's struct.
unsafe impl DeviceRepr for RandomParams {}

/// Philox4x32-10 as the paper writes it.
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let (p0, p1) = (
            0xD251_1F53u64 * u64::from(c0),
            0xCD9E_8D57u64 * u64::from(c2),
        );
        (c0, c1, c2, c3) = (
            (p1 >> 32) as u32 ^ c1 ^ k0,
            p1 as u32,
            (p0 >> 32) as u32 ^ c3 ^ k1,
            p0 as u32,
        );
        (k0, k1) = (k0.wrapping_add(0x9E37_79B9), k1.wrapping_add(0xBB67_AE85));
    }
    [c0, c1, c2, c3]
}

fn word(p: &RandomParams, i: usize) -> u32 {
    let block = p.counter.wrapping_add(i as u64 / 4);
    let counter = [
        block as u32,
        (block >> 32) as u32,
        p.stream as u32,
        (p.stream >> 32) as u32,
    ];
    philox(counter, [p.seed as u32, (p.seed >> 32) as u32])[i % 4]
}

fn uniform(word: u32) -> f64 {
    f64::from(((word >> 8) as f32 + 0.5) * 2f32.powi(-24))
}

fn generate<T>(kernel: &str, p: RandomParams, position: Option<u64>) -> Vec<T>
where
    T: DeviceRepr + Clone + Default,
{
    let gpu = Gpu::with_kernels("random");
    let mut out = gpu.uninitialised::<T>(p.count as usize);
    let position: Option<CudaSlice<u64>> = position.map(|blocks| gpu.upload(&[blocks]));
    let null = 0u64;
    // Fewer threads than blocks of four, so that the loop over the grid is taken.
    gpu.launch(&gpu.function(kernel), grid(2, 32), |args| {
        args.arg(&mut out);
        match &position {
            Some(position) => args.arg(position),
            None => args.arg(&null),
        };
        args.arg(&p);
    })
    .unwrap_or_else(|_| panic!("{}", cuda_on_cpu::last_error()));
    gpu.download(&out)
}

#[test]
fn known_answers_of_random123() {
    let ones = u64::MAX;
    let pi = [
        0x85a3_08d3_243f_6a88,
        0x0370_7344_1319_8a2e,
        0x299f_31d0_a409_3822,
    ];
    for ([counter, stream, seed], expected) in [
        (
            [0, 0, 0],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        ),
        (
            [ones, ones, ones],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
    ] {
        let params = RandomParams {
            seed,
            stream,
            counter,
            count: 4,
        };
        assert_eq!(generate::<u32>("random_bits_u32", params, None), expected);
    }
}

#[test]
fn elements_are_addressed_by_counter() {
    for count in [1, 2, 3, 4, 5, 255, 256, 257, 1027] {
        let params = RandomParams {
            seed: 7,
            stream: 1 << 40,
            counter: u64::from(u32::MAX) - 3,
            count,
        };
        let expected: Vec<u32> = (0..count as usize).map(|i| word(&params, i)).collect();
        for &order in orders() {
            let got = with_order(order, || generate::<u32>("random_bits_u32", params, None));
            assert_eq!(got, expected, "{count} {order:?}");
        }
        // The same numbers, found through a position in device memory.
        let moved = RandomParams {
            counter: params.counter - 1000,
            ..params
        };
        assert_eq!(
            generate::<u32>("random_bits_u32", moved, Some(1000)),
            expected
        );
    }
}

#[test]
fn uniforms_are_the_top_24_bits_and_a_half() {
    let params = RandomParams {
        seed: 3,
        stream: 5,
        counter: 0,
        count: 1001,
    };
    let got = generate::<f32>("random_uniform_f32", params, None);
    for (i, &x) in got.iter().enumerate() {
        assert_eq!(f64::from(x), uniform(word(&params, i)));
    }
    assert!(uniform(0) > 0.0 && uniform(u32::MAX) == 1.0);
}

#[test]
fn normals_are_box_muller_pairs() {
    let params = RandomParams {
        seed: 11,
        stream: 2,
        counter: 9,
        count: 10_002,
    };
    let got = generate::<f32>("random_normal_f32", params, None);
    for (i, &x) in got.iter().enumerate() {
        let pair = i / 2 * 2;
        let radius = (-2.0 * uniform(word(&params, pair)).ln()).sqrt();
        let angle = std::f64::consts::TAU * uniform(word(&params, pair + 1));
        let expected = radius * if i % 2 == 0 { angle.cos() } else { angle.sin() };
        assert!(
            (f64::from(x) - expected).abs() <= 2e-6 * expected.abs().max(1.0),
            "{i}: {x}, expected {expected}"
        );
    }
    // Three standard errors of the mean and of the variance of so many samples.
    let n = got.len() as f64;
    let mean = got.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = got
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / n;
    assert!(mean.abs() < 3.0 / n.sqrt(), "{mean}");
    assert!(
        (variance - 1.0).abs() < 3.0 * (2.0 / n).sqrt(),
        "{variance}"
    );
}

#[test]
fn the_position_moves_on() {
    let gpu = Gpu::with_kernels("random");
    let (mut position, blocks) = (gpu.upload(&[40u64]), 2u64);
    gpu.launch(&gpu.function("random_advance"), grid(1, 1), |args| {
        args.arg(&mut position).arg(&blocks);
    })
    .expect("a launch");
    assert_eq!(gpu.download(&position), [42]);
}

#[test]
fn address_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Addresses);
}

#[test]
fn thread_sanitizer_finds_nothing() {
    cuda_on_cpu::assert_clean(cuda_on_cpu::Instrument::Races);
}
