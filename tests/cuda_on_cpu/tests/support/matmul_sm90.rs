//! The Hopper test product with its host side: tensor maps, dynamic shared memory.

use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, PushKernelArg, sys};

use super::{Geometry, Gpu, bf16_bits};

const TILE: u32 = 64;
const STAGES: u32 = 3;

/// sizeof(Stages) in kernels/hopper.cu: the tiles, and the barriers up to the alignment of 1024 bytes.
fn dynamic_shared(tile_columns: u32) -> u32 {
    STAGES * (TILE + tile_columns) * TILE * 2 + 1024
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct TensorMap(sys::CUtensorMap);
// SAFETY: the driver's own type for a kernel parameter of this kind, passed by value.
unsafe impl DeviceRepr for TensorMap {}

fn tensor_map(
    gpu: &Gpu,
    matrix: &CudaSlice<u16>,
    [rows, columns]: [u64; 2],
    tile_rows: u32,
) -> TensorMap {
    let (pointer, _guard) = matrix.device_ptr(&gpu.stream);
    let mut map = std::mem::MaybeUninit::zeroed();
    let (extent, strides, tile, steps) =
        ([columns, rows], [columns * 2], [TILE, tile_rows], [1u32, 1]);
    // SAFETY: the arrays have as many elements as the rank asks for, and the map is written before it is read.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map.as_mut_ptr(),
            sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            pointer as *mut _,
            extent.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
        .expect("a tensor map");
        TensorMap(map.assume_init())
    }
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
    let map_a = tensor_map(&gpu, &device_a, [m as u64, k as u64], TILE);
    let map_b = tensor_map(&gpu, &device_b, [n as u64, k as u64], tile_columns);
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
