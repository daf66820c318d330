//! The Hopper test product with its host side: tensor maps, dynamic shared memory.

use cudarc::driver::PushKernelArg;

use super::{Geometry, Gpu, bf16_bits, tensor_map};

const TILE: u32 = 64;
const ONE_STEP: [u32; 2] = [1, 1];
const STAGES: u32 = 3;

/// sizeof(Stages) in kernels/hopper.cu: the tiles, and the barriers up to the alignment of 1024 bytes.
fn dynamic_shared(tile_columns: u32) -> u32 {
    STAGES * (TILE + tile_columns) * TILE * 2 + 1024
}

/// c[m][n] and what it should be, computed in tiles of 64 rows and `tile_columns`, for small integers, which bf16 and f32 sums hold exactly.
pub fn run(
    kernel: &str,
    tile_columns: u32,
    [m, n, k]: [usize; 3],
) -> Result<(Vec<f32>, Vec<f32>), String> {
    let gpu = Gpu::with_kernels("hopper");
    let function = gpu.function_with(kernel, dynamic_shared(tile_columns));
    let element = |i: usize, period: usize| (i % period) as f32 - 2.0;
    let a: Vec<f32> = (0..m * k).map(|i| element(i, 5)).collect();
    let b: Vec<f32> = (0..n * k).map(|i| element(i, 7)).collect();
    let on_device = |x: &[f32]| gpu.upload(&x.iter().map(|&x| bf16_bits(x)).collect::<Vec<_>>());
    let (device_a, device_b) = (on_device(&a), on_device(&b));
    let map = |matrix, rows: usize, tile_rows| {
        tensor_map(
            gpu.address(matrix),
            &[k as u64, rows as u64],
            &[TILE, tile_rows],
            &ONE_STEP,
        )
    };
    let (map_a, map_b) = (map(&device_a, m, TILE), map(&device_b, n, tile_columns));
    let mut c = gpu.uninitialised::<f32>(m * n);
    let (rows, columns, depth) = (m as i32, n as i32, k as i32);
    let blocks = [
        (n as u32).div_ceil(tile_columns),
        (m as u32).div_ceil(TILE),
        1,
    ];
    gpu.launch(
        &function,
        Geometry {
            blocks,
            threads: 256,
            dynamic_shared: dynamic_shared(tile_columns),
        },
        |args| {
            args.arg(&map_a)
                .arg(&map_b)
                .arg(&mut c)
                .arg(&rows)
                .arg(&columns)
                .arg(&depth);
        },
    )
    .map_err(|_| cuda_on_cpu::last_error())?;
    let expected = (0..m * n)
        .map(|i| (0..k).map(|t| a[i / n * k + t] * b[i % n * k + t]).sum())
        .collect();
    Ok((gpu.download(&c), expected))
}

/// c[64][128] = a^T b of a [64][64] and b [64][128], and what it should be.
pub fn run_of_columns(kernel: &str) -> Result<(Vec<f32>, Vec<f32>), String> {
    // The tiles, the barrier up to the alignment, and room for what a mutant reads behind them.
    const SHARED: u32 = 3 * TILE * TILE * 2 + 1024 + (8 << 10);
    let gpu = Gpu::with_kernels("hopper");
    let (t, n) = (TILE as usize, 2 * TILE as usize);
    let element = |i: usize, period: usize| (i % period) as f32 - 2.0;
    let a: Vec<f32> = (0..t * t).map(|i| element(i, 5)).collect();
    let b: Vec<f32> = (0..t * n).map(|i| element(i, 7)).collect();
    let on_device = |x: &[f32]| gpu.upload(&x.iter().map(|&x| bf16_bits(x)).collect::<Vec<_>>());
    let (device_a, device_b) = (on_device(&a), on_device(&b));
    let map = |matrix, columns: usize| {
        tensor_map(
            gpu.address(matrix),
            &[columns as u64, t as u64],
            &[TILE, TILE],
            &ONE_STEP,
        )
    };
    let (map_a, map_b) = (map(&device_a, t), map(&device_b, n));
    let mut c = gpu.uninitialised::<f32>(t * n);
    let geometry = Geometry {
        blocks: [1, 1, 1],
        threads: 128,
        dynamic_shared: SHARED,
    };
    gpu.launch(&gpu.function_with(kernel, SHARED), geometry, |args| {
        args.arg(&map_a).arg(&map_b).arg(&mut c);
    })
    .map_err(|_| cuda_on_cpu::last_error())?;
    let expected = (0..t * n)
        .map(|i| (0..t).map(|k| a[k * t + i / n] * b[k * n + i % n]).sum())
        .collect();
    Ok((gpu.download(&c), expected))
}

/// Every `step`-th row from `first`, eight of a matrix of 20 rows, waiting for so many bytes; and what they should be.
pub fn run_box(first: i32, step: u32, bytes: i32) -> Result<(Vec<f32>, Vec<f32>), String> {
    const ROWS: usize = 20;
    let gpu = Gpu::with_kernels("hopper");
    let value = |row: usize, column: usize| (row * 8 + column % 8) as f32;
    let matrix: Vec<u16> = (0..ROWS * 64)
        .map(|i| bf16_bits(value(i / 64, i % 64)))
        .collect();
    let matrix = gpu.upload(&matrix);
    let map = tensor_map(
        gpu.address(&matrix),
        &[64, ROWS as u64],
        &[64, 8 * step],
        &[1, step],
    );
    let (mut y, rows) = (gpu.uninitialised::<f32>(8 * 64), 8i32);
    let geometry = Geometry {
        blocks: [1, 1, 1],
        threads: 32,
        dynamic_shared: 2048,
    };
    gpu.launch(&gpu.function_with("test_tma_box", 2048), geometry, |args| {
        args.arg(&map)
            .arg(&mut y)
            .arg(&first)
            .arg(&rows)
            .arg(&bytes);
    })
    .map_err(|_| cuda_on_cpu::last_error())?;
    let row = |r: usize| {
        usize::try_from(first + (r as u32 * step) as i32)
            .ok()
            .filter(|&row| row < ROWS)
    };
    let expected = (0..8 * 64)
        .map(|i| row(i / 64).map_or(0.0, |row| value(row, i % 64)))
        .collect();
    Ok((gpu.download(&y), expected))
}
