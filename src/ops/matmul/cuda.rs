//! Launches of kernels/matmul.cu.

use bytemuck::{Pod, Zeroable};

use super::Read;
use crate::device::CudaDevice;
use crate::device::cuda::{Grid, Param};
use crate::error::Result;
use crate::ops::reduce::cuda::add_parts;
use crate::tensor::Tensor;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MatmulParams {
    m: i32,
    n: i32,
    k: i32,
    part: i32,
    alpha: f32,
}
const _: () = assert!(size_of::<MatmulParams>() == 20, "keep in step with kernels/matmul.cu");

/// Rows and columns of outputs per block, threads per block: WideTile in kernels/gemm_tile.cuh.
const WIDE: [usize; 2] = [64, 64];
const THREADS: u32 = 256;

/// Blocks that keep a GPU busy.
pub(crate) const ENOUGH_BLOCKS: usize = 256;

/// How a sum over `k` is cut where `blocks` blocks have whole sums: length of a part, number of parts. By the shape alone,
/// as the order of sums must be.
pub(crate) fn parts_of(blocks: usize, k: usize) -> (usize, usize) {
    /// A part shorter than this costs more in its sum than it saves.
    const SHORTEST: usize = 128;
    /// Parts begin where a kernel's slices of the sum and its vectors do.
    const SLICE: usize = 16;
    let wanted = (ENOUGH_BLOCKS / blocks.max(1)).min(k / SHORTEST).max(1);
    let part = k.div_ceil(wanted).next_multiple_of(SLICE).max(SLICE);
    (part, k.div_ceil(part).max(1))
}

pub fn matmul(device: &CudaDevice, alpha: f64, a: &Tensor, ra: Read, b: &Tensor, rb: Read, [m, n, k]: [usize; 3]) -> Result<Tensor> {
    let (part, parts) = parts_of(m.div_ceil(WIDE[0]) * n.div_ceil(WIDE[1]), k);
    let c = Tensor::uninitialised_cuda(&[parts, m, n], device)?;
    let params = Param(MatmulParams { m: m as i32, n: n as i32, k: k as i32, part: part as i32, alpha: alpha as f32 });
    let kernel = match (ra, rb) {
        (Read::Plain, Read::Plain) => "matmul_nn_f32",
        (Read::Plain, Read::Transposed) => "matmul_nt_f32",
        (Read::Transposed, Read::Plain) => "matmul_tn_f32",
        (Read::Transposed, Read::Transposed) => "matmul_tt_f32",
    };
    let grid = Grid { blocks: [m.div_ceil(WIDE[0]) as u32, n.div_ceil(WIDE[1]) as u32, parts as u32], threads: THREADS, shared: 0 };
    // SAFETY: the parameters of the entries in kernels/matmul.cu; a holds m·k, b k·n and c parts·m·n elements.
    unsafe { device.launch(kernel, grid, &[&a.cuda_pointer(), &b.cuda_pointer(), &c.cuda_pointer(), &params])? };
    if parts == 1 { c.reshape(&[m, n]) } else { add_parts(device, &c, parts, m * n)?.reshape(&[m, n]) }
}
