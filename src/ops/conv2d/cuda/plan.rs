//! Which kernel makes a product, in which tiles, its sums in how many parts: by the product's sizes, the activations' type,
//! the device's precision and its kind of chip alone, as the order of sums must be. Activations of bf16 are multiplied as
//! bf16 whatever the precision, by the kernel of bf16 with `_stored` in its name. The first line that fits:
//!
//! | products | sizes | kernel | tile |
//! |---|---|---|---|
//! | bf16 | Hopper; 64 channels or more on both sides, multiples of 8; stride 1 or 2; tiles for half of the chip | conv2d_sm90.cu | 128 × 256 or 128 × 128, by `Share` |
//! | any | up to 32 columns of outputs (not in weight gradients) | `_narrow_f32`, `_narrow_stored_bf16` | 128 × 16 |
//! | f32 | | `_f32` | 64 × 64 |
//! | TF32, 3×TF32, bf16 | half of `ENOUGH_BLOCKS` tiles or more | `_tf32`, `_tf32x3`, `_bf16` | 128 × 128 |
//! | TF32, 3×TF32, bf16 | | `_small_…` | 64 × 64 |
//!
//! Sums of what is left with few tiles are cut into parts, on Hopper those of weight gradients alone; sums of squares are
//! never cut.

use crate::device::cuda::Grid;
use crate::device::{CudaDevice, Precision};
use crate::ops::conv2d::{Conv2d, Extent};
use crate::ops::matmul::cuda::{ENOUGH_BLOCKS, parts_of};
use crate::tensor::DType;

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
    // kSharedBytes in kernels/mma_tile.cuh: four stages of 64 and 16 bytes for each row of both operands.
    Tile { size: [side; 2], threads, shared: (4 * 2 * side * (64 + 16)) as u32 }
}

/// The kernels of one direction; the narrow ones for activations of f32 and of bf16, those of tensor cores for TF32, 3xTF32,
/// bf16, and stored bf16.
struct Kernels {
    wide: &'static str,
    narrow: Option<[&'static str; 2]>,
    large: Option<[&'static str; 4]>,
    small: [&'static str; 4],
}

macro_rules! kernels {
    ($stem:literal, $narrow:expr) => {
        Kernels {
            wide: concat!($stem, "_f32"),
            narrow: $narrow,
            large: Some([concat!($stem, "_tf32"), concat!($stem, "_tf32x3"), concat!($stem, "_bf16"), concat!($stem, "_stored_bf16")]),
            small: [concat!($stem, "_small_tf32"), concat!($stem, "_small_tf32x3"), concat!($stem, "_small_bf16"), concat!($stem, "_small_stored_bf16")],
        }
    };
}

const FORWARD: Kernels = kernels!("conv2d", Some(["conv2d_narrow_f32", "conv2d_narrow_stored_bf16"]));
const FORWARD_ACT: Kernels = kernels!("conv2d_act", Some(["conv2d_act_narrow_f32", "conv2d_act_narrow_stored_bf16"]));
const TRANSPOSE: Kernels = kernels!("conv2d_transpose", Some(["conv2d_transpose_narrow_f32", "conv2d_transpose_narrow_stored_bf16"]));
const WEIGHT_GRAD: Kernels = kernels!("conv2d_weight_grad", None);
const WEIGHT_GRAD_SQUARED: Kernels = Kernels {
    wide: "conv2d_weight_grad_squared_f32",
    narrow: None,
    large: None,
    small: [
        "conv2d_weight_grad_squared_tf32",
        "conv2d_weight_grad_squared_tf32x3",
        "conv2d_weight_grad_squared_bf16",
        "conv2d_weight_grad_squared_stored_bf16",
    ],
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

/// How one product is made.
#[derive(Clone, Copy, Debug)]
pub enum Plan {
    Tiled(Tiled),
    Hopper(Hopper),
}

impl Plan {
    /// For activations of that type.
    pub fn new(device: &CudaDevice, dtype: DType, direction: Direction, spec: Conv2d, e: Extent) -> Plan {
        Hopper::new(device, dtype, direction, spec, e).map_or_else(|| Plan::Tiled(Tiled::new(device.precision(), dtype, direction, spec, e)), Plan::Hopper)
    }
}

/// A launch of kernels/conv2d.cu: layers of blocks, times the parts of the sums.
#[derive(Clone, Copy, Debug)]
pub struct Tiled {
    pub kernel: &'static str,
    pub grid: Grid,
    /// Terms of a part; 0: all of them.
    pub part: usize,
    pub parts: usize,
    /// Whether the kernel reads weights as bf16.
    pub rounds_weights: bool,
}

impl Tiled {
    pub fn new(precision: Precision, dtype: DType, direction: Direction, spec: Conv2d, e: Extent) -> Tiled {
        let (outputs, depth, layers) = direction.product(spec, e);
        let (kernel, tile) = choose(direction.kernels(), precision, dtype, outputs);
        let [rows, columns] = tile.blocks(outputs);
        let (part, parts) = match direction {
            Direction::WeightGradSquared => (depth, 1),
            _ => parts_of(rows * columns * layers, depth),
        };
        let grid = Grid { blocks: [rows as u32, columns as u32, (layers * parts) as u32], threads: tile.threads, shared: tile.shared };
        let rounds_weights = dtype == DType::Bf16 && tile.size != NARROW.size;
        Tiled { kernel, grid, part: if parts == 1 { 0 } else { part }, parts, rounds_weights }
    }
}

/// The kernel for that many outputs. Few columns (images, a toy's channels) take the narrow tile whatever the precision:
/// a tensor core's would be mostly empty.
fn choose(kernels: &Kernels, precision: Precision, dtype: DType, outputs: [usize; 2]) -> (&'static str, Tile) {
    let stored = dtype == DType::Bf16;
    if let Some(narrow) = kernels.narrow.filter(|_| outputs[1] <= 2 * NARROW.size[1]) {
        return (narrow[usize::from(stored)], NARROW);
    }
    let math = match precision {
        _ if stored => 3,
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

/// A launch of kernels/conv2d_sm90.cu: persistent blocks that share the tiles.
#[derive(Clone, Copy, Debug)]
pub struct Hopper {
    pub kernel: &'static str,
    pub grid: Grid,
    /// Channels of a tile.
    pub columns: usize,
    /// Width, height and samples of a box of pixels.
    pub boxes: [usize; 3],
    /// Boxes of a part, in the weight gradient; 0: all of them.
    pub part: usize,
    pub parts: usize,
}

impl Hopper {
    /// Channels of a step of the sums, and the fewest on either side that fill a tile well enough.
    pub const DEPTH: usize = 64;
    /// TMA moves rows of 16 bytes.
    const ALIGNED: usize = 8;
    /// A box spans at most 256 elements along a dimension: 128 pixels of a stride of 2.
    const LARGEST_STRIDE: usize = 2;
    /// Rows of a tile, which are the pixels of its box but in the weight gradient, where boxes are along the sum.
    const ROWS: usize = 128;

    /// For bf16 on Hopper, whole rows of channels, and tiles for half of the chip at least.
    fn new(device: &CudaDevice, dtype: DType, direction: Direction, spec: Conv2d, e: Extent) -> Option<Hopper> {
        let ([h, w, ci], [oh, ow, co], [kh, kw], [sy, sx]) = (e.x, e.g, e.k, spec.stride);
        let aligned = [ci, co].iter().all(|c| *c >= Hopper::DEPTH && c.is_multiple_of(Hopper::ALIGNED));
        let stored = dtype == DType::Bf16;
        let multiplies_bf16 = stored || device.precision() == Precision::Bf16;
        if !(multiplies_bf16 && device.has_hopper_code() && aligned && sy.max(sx) <= Hopper::LARGEST_STRIDE) {
            return None;
        }
        let chip = device.chip();
        // Channels of the columns, size of the map that boxes cover and their pixels, and tiles per column of tiles and box
        // (weight gradient: per column of tiles).
        let (channels, map, pixels, layers) = match direction {
            Direction::Forward | Direction::ForwardAct => (co, [ow, oh], Hopper::ROWS, 1),
            Direction::Transpose => (ci, [w.div_ceil(sx), h.div_ceil(sy)], Hopper::ROWS, sy * sx),
            Direction::WeightGrad => (ci, [ow, oh], Hopper::DEPTH, kh * kw * co.div_ceil(Hopper::ROWS)),
            Direction::WeightGradSquared => return None,
        };
        let (boxes, count) = boxes([map[0], map[1], e.n], pixels);
        // TMA has no maps of nothing.
        if count == 0 {
            return None;
        }
        let widths = if channels > 128 { &[256, 128][..] } else { &[128] };
        let shares = widths.iter().flat_map(|&columns| {
            let tiles = layers * channels.div_ceil(columns);
            match direction {
                Direction::WeightGrad => Share::cuts(tiles, columns, count),
                _ => vec![Share { tiles: tiles * count, columns, steps: direction.product(spec, e).1.div_ceil(Hopper::DEPTH), parts: 1 }],
            }
        });
        let Share { tiles, columns, steps, parts } = shares.min_by_key(|s| s.time(chip)).expect("one width at least");
        let (wide, part) = (columns == 256, if parts == 1 { 0 } else { steps });
        // sizeof(Stages) in kernels/conv2d_sm90.cu: four stages, and the barriers up to the alignment of 1024 bytes.
        let shared = 4 * (Hopper::ROWS + columns) * Hopper::DEPTH * 2 + 1024;
        let grid = Grid { blocks: [tiles.min(chip) as u32, 1, 1], threads: 384, shared: shared as u32 };
        (2 * tiles >= chip).then_some(Hopper { kernel: Hopper::kernel(direction, wide, stored), grid, columns, boxes, part, parts })
    }

    /// By the columns of its tiles, 256 or 128, and by what it stores, f32 or bf16 (weight gradients: always f32).
    fn kernel(direction: Direction, wide: bool, stored: bool) -> &'static str {
        match (direction, wide, stored) {
            (Direction::Transpose, true, false) => "conv2d_transpose_sm90_bf16",
            (Direction::Transpose, false, false) => "conv2d_transpose_sm90_narrow_bf16",
            (Direction::Transpose, true, true) => "conv2d_transpose_sm90_stored_bf16",
            (Direction::Transpose, false, true) => "conv2d_transpose_sm90_narrow_stored_bf16",
            (Direction::WeightGrad | Direction::WeightGradSquared, true, _) => "conv2d_weight_grad_sm90_bf16",
            (Direction::WeightGrad | Direction::WeightGradSquared, false, _) => "conv2d_weight_grad_sm90_narrow_bf16",
            (Direction::Forward | Direction::ForwardAct, true, false) => "conv2d_sm90_bf16",
            (Direction::Forward | Direction::ForwardAct, false, false) => "conv2d_sm90_narrow_bf16",
            (Direction::Forward | Direction::ForwardAct, true, true) => "conv2d_sm90_stored_bf16",
            (Direction::Forward | Direction::ForwardAct, false, true) => "conv2d_sm90_narrow_stored_bf16",
        }
    }
}

/// Work as equal tiles, each a number of steps of the sums of so many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    tiles: usize,
    columns: usize,
    steps: usize,
    /// Parts that the sums are cut into, counted in `tiles`.
    parts: usize,
}

impl Share {
    /// What a tile costs beside its steps, in steps: 128 rows of f32 leave for memory in the time of about six, and the
    /// first operands of the next tile are waited for.
    const REST: usize = 8;
    /// A part has at least so many steps: what its addition costs is little then.
    const SHORTEST_PART: usize = 16;

    /// `tiles` whose sums of so many steps may be cut.
    fn cuts(tiles: usize, columns: usize, steps: usize) -> Vec<Share> {
        let most = (steps / Share::SHORTEST_PART).max(1);
        let cut = |parts: usize| {
            let steps_of_part = steps.div_ceil(parts).max(1);
            let parts = steps.div_ceil(steps_of_part).max(1);
            Share { tiles: tiles * parts, columns, steps: steps_of_part, parts }
        };
        (1..=most).map(cut).collect()
    }

    /// Time by waves of one tile on each of a chip's multiprocessors, in hundredths of a column's step. Tiles of 128
    /// columns read a fifth more shared memory per product, and are taken to be a tenth slower. Of equal times `min_by_key`
    /// takes the first: the wide tile, and the fewest parts.
    fn time(&self, chip: usize) -> usize {
        let pace = if self.columns < 256 { 110 } else { 100 };
        self.tiles.div_ceil(chip.max(1)) * (self.steps + Share::REST) * self.columns * pace
    }
}

/// The box of so many pixels, a power of two, of which the fewest cover a map of that width, height and number, and how
/// many do.
fn boxes(map: [usize; 3], pixels: usize) -> ([usize; 3], usize) {
    let powers = |most: usize| (0..).map(|i| 1 << i).take_while(move |v| *v <= most);
    let all = powers(pixels).flat_map(|w| powers(pixels / w).map(move |h| [w, h, pixels / w / h]));
    let count = |b: &[usize; 3]| (0..3).map(|d| map[d].div_ceil(b[d])).product::<usize>();
    // Of equally few, the widest and then the highest: its rows are neighbours in memory, and windows overlap most.
    let best = all.min_by_key(|b| (count(b), std::cmp::Reverse([b[0], b[1]]))).expect("one pixel is a box");
    (best, count(&best))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The share of an H200's 132 multiprocessors.
    fn chosen(tiles_of_256: usize, steps: usize, cut: bool) -> (usize, usize) {
        let of = |tiles, columns| if cut { Share::cuts(tiles, columns, steps) } else { vec![Share { tiles, columns, steps, parts: 1 }] };
        let best = [of(tiles_of_256, 256), of(2 * tiles_of_256, 128)].concat().into_iter().min_by_key(|s| s.time(132)).unwrap();
        (best.columns, best.parts)
    }

    #[test]
    fn waves_decide() {
        // Many tiles: the wide ones. A wave that is nearly full: wide as well. Half a wave, or one and a bit: narrow.
        for (tiles, columns) in [(5000, 256), (132, 256), (120, 256), (66, 128), (140, 128), (198, 128), (264, 256)] {
            assert_eq!(chosen(tiles, 72, false).0, columns, "{tiles} tiles");
        }
        // Long sums of few tiles are cut until the chip is full, short ones are not cut at all.
        assert_eq!(chosen(18, 256, true), (256, 7));
        assert_eq!(chosen(18, 16, true), (128, 1));
        for parts in Share::cuts(5, 128, 1000) {
            assert!(parts.steps >= Share::SHORTEST_PART && parts.steps * parts.parts >= 1000 && parts.steps * (parts.parts - 1) < 1000, "{parts:?}");
        }
        assert_eq!(Share::cuts(5, 128, 0), [Share { tiles: 5, columns: 128, steps: 1, parts: 1 }]);
    }

    #[test]
    fn boxes_waste_little() {
        for (map, pixels, box_, count) in [
            ([32, 32, 16], 128, [32, 4, 1], 128),
            ([4, 4, 16], 128, [4, 4, 8], 2),
            ([33, 33, 2], 128, [8, 8, 2], 25),
            ([5, 3, 1], 64, [16, 4, 1], 1),
            ([7, 7, 0], 128, [128, 1, 1], 0),
        ] {
            assert_eq!(boxes(map, pixels), (box_, count), "{map:?}");
        }
    }
}
