//! Which kernel of kernels/conv2d.cu makes a product, in which tiles, its sums in how many parts: by the product's sizes
//! and the device's precision alone, as the order of sums must be.

use crate::device::cuda::Grid;
use crate::device::{CudaDevice, Precision};
use crate::ops::conv2d::{Conv2d, Extent};
use crate::ops::matmul::cuda::{ENOUGH_BLOCKS, parts_of};

/// Which product of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    /// With what follows it.
    ForwardAct,
    Transpose,
    WeightGrad,
    /// Squared by groups: its sums are never cut.
    WeightGradSquared,
}

/// A kernel's tile of outputs, threads per block, and bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
struct Tile {
    size: [usize; 2],
    threads: u32,
    shared: u32,
}

impl Tile {
    /// Blocks along rows and columns that cover all outputs.
    fn blocks(&self, outputs: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|d| outputs[d].div_ceil(self.size[d]))
    }
}

/// WideTile and NarrowTile in kernels/gemm_tile.cuh.
const WIDE: Tile = Tile { size: [64, 64], threads: 256, shared: 0 };
const NARROW: Tile = Tile { size: [128, 16], threads: 256, shared: 0 };
/// LargeMmaTile and SmallMmaTile in kernels/mma_tile.cuh.
const LARGE: Tile = tensor_core(128, 256);
const SMALL: Tile = tensor_core(64, 128);

const fn tensor_core(side: usize, threads: u32) -> Tile {
    // kSharedBytes in kernels/mma_tile.cuh: four stages of sixteen and four floats for each row of both operands.
    Tile { size: [side; 2], threads, shared: (4 * 2 * side * 20 * 4) as u32 }
}

/// The kernels of one direction; those of tensor cores for TF32, 3xTF32, bf16.
struct Kernels {
    wide: &'static str,
    narrow: Option<&'static str>,
    large: Option<[&'static str; 3]>,
    small: [&'static str; 3],
}

macro_rules! kernels {
    ($stem:literal, $narrow:expr) => {
        Kernels {
            wide: concat!($stem, "_f32"),
            narrow: $narrow,
            large: Some([concat!($stem, "_tf32"), concat!($stem, "_tf32x3"), concat!($stem, "_bf16")]),
            small: [concat!($stem, "_small_tf32"), concat!($stem, "_small_tf32x3"), concat!($stem, "_small_bf16")],
        }
    };
}

const FORWARD: Kernels = kernels!("conv2d", Some("conv2d_narrow_f32"));
const FORWARD_ACT: Kernels = kernels!("conv2d_act", Some("conv2d_act_narrow_f32"));
const TRANSPOSE: Kernels = kernels!("conv2d_transpose", Some("conv2d_transpose_narrow_f32"));
const WEIGHT_GRAD: Kernels = kernels!("conv2d_weight_grad", None);
const WEIGHT_GRAD_SQUARED: Kernels = Kernels {
    wide: "conv2d_weight_grad_squared_f32",
    narrow: None,
    large: None,
    small: ["conv2d_weight_grad_squared_tf32", "conv2d_weight_grad_squared_tf32x3", "conv2d_weight_grad_squared_bf16"],
};

impl Direction {
    fn kernels(self) -> &'static Kernels {
        match self {
            Direction::Forward => &FORWARD,
            Direction::ForwardAct => &FORWARD_ACT,
            Direction::Transpose => &TRANSPOSE,
            Direction::WeightGrad => &WEIGHT_GRAD,
            Direction::WeightGradSquared => &WEIGHT_GRAD_SQUARED,
        }
    }

    /// Rows and columns of outputs, terms of each one's sum, and layers of blocks.
    fn product(self, spec: Conv2d, e: Extent) -> ([usize; 2], usize, usize) {
        let ([h, w, ci], [oh, ow, co], [kh, kw], [sy, sx]) = (e.x, e.g, e.k, spec.stride);
        match self {
            Direction::Forward | Direction::ForwardAct => ([e.n * oh * ow, co], kh * kw * ci, 1),
            // One layer per residue class of the stride; the first class is the largest, in pixels and in taps.
            Direction::Transpose => ([e.n * h.div_ceil(sy) * w.div_ceil(sx), ci], kh.div_ceil(sy) * kw.div_ceil(sx) * co, sy * sx),
            Direction::WeightGrad | Direction::WeightGradSquared => ([co, kh * kw * ci], e.n * oh * ow, 1),
        }
    }
}

/// How one product is launched: layers of blocks, times the parts of its sums.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub kernel: &'static str,
    pub grid: Grid,
    /// Terms of a part; 0: all of them.
    pub part: usize,
    pub parts: usize,
}

impl Plan {
    pub fn new(device: &CudaDevice, direction: Direction, spec: Conv2d, e: Extent) -> Plan {
        let (outputs, depth, layers) = direction.product(spec, e);
        let (kernel, tile) = choose(direction.kernels(), device.precision(), outputs);
        let [rows, columns] = tile.blocks(outputs);
        let (part, parts) = match direction {
            Direction::WeightGradSquared => (depth, 1),
            _ => parts_of(rows * columns * layers, depth),
        };
        let grid = Grid { blocks: [rows as u32, columns as u32, (layers * parts) as u32], threads: tile.threads, shared: tile.shared };
        Plan { kernel, grid, part: if parts == 1 { 0 } else { part }, parts }
    }
}

/// The kernel for that many outputs. Few columns (images, a toy's channels) take the narrow tile whatever the precision:
/// a tensor core's would be mostly empty.
fn choose(kernels: &Kernels, precision: Precision, outputs: [usize; 2]) -> (&'static str, Tile) {
    if let Some(narrow) = kernels.narrow.filter(|_| outputs[1] <= 2 * NARROW.size[1]) {
        return (narrow, NARROW);
    }
    let math = match precision {
        Precision::F32 => return (kernels.wide, WIDE),
        Precision::Tf32 => 0,
        Precision::Tf32x3 => 1,
        Precision::Bf16 => 2,
    };
    let [rows, columns] = LARGE.blocks(outputs);
    match kernels.large {
        Some(large) if 2 * rows * columns >= ENOUGH_BLOCKS => (large[math], LARGE),
        _ => (kernels.small[math], SMALL),
    }
}
