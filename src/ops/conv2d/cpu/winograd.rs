//! Winograd's F(4×4, 3×3) for 3×3 windows one pixel apart: 36 products per 16 outputs and channel pair instead of 144.
//!
//! Windows of 6×6 become 36 planes (`tile::Winograd::Input`), each plane is one matrix product (`tile::gather`, or
//! `tile::outer` for the weight gradient), and the products become 4×4 outputs. In f32 the result is off by 9e-7 in the
//! L2 norm at 32 channels and 2.7e-6 at 512, where the direct sum is off by 3e-7 and 1.2e-6 (standard normal values,
//! one sum per output; sums here are cut, which makes them better).

use rayon::prelude::*;

use super::tile::{self, Columns, Gather, Outer, Pixels, Rows, Run, Tiles, Transform, Winograd, line_width, outer_rows, panel_width, transform, transform_slack};
use super::{Extent, Map, Part, SERIAL_MACS, Window, parts};
use crate::device::cpu::{Isa, recycle, stale_vec};
use crate::tensor::Scalar;

/// Outputs per axis of a tile, inputs that they read, and planes.
const TILE: usize = 4;
const WINDOW: usize = 6;
const PLANES: usize = WINDOW * WINDOW;
/// Channels from which the transforms cost less than they save.
const CHANNELS: usize = 16;
/// Pairs of channels from which 36 transformed weights no longer stay in the L2 cache.
const MANY_WEIGHTS: usize = 128 * 128;
/// Values of all planes of one task: they stay in the L2 cache.
const TASK_VALUES: usize = 64 << 10;
/// Tiles of one task at least, so that weights are not read again and again.
const TASK_TILES: usize = 24;
/// Channels of one pass over a panel: its part stays in the L1 cache, and shorter sums round less.
const PASS_CHANNELS: usize = 192;
/// Weight gradient: values of all planes that exist at a time, tiles of them at least, and tiles whose part of a plane
/// stays in the L1 cache.
const BLOCK_VALUES: usize = 4 << 20;
const BLOCK_TILES: usize = 512;
const PASS_TILES: usize = 64;
/// Weight gradient: output channels of one task.
const GROUP_CHANNELS: usize = 96;

/// Whether a 3×3 convolution to images of `[height, width]` gains. It looks at one image only, so that an image's bits
/// do not depend on the size of its batch.
pub fn gains(size: [usize; 2], c_in: usize, c_out: usize) -> bool {
    let tiles = size.map(|n| n.div_ceil(TILE)).iter().product::<usize>();
    let saved = size.iter().product::<usize>() * 9 * 3 > tiles * PLANES * 4;
    let few_tiles = tiles < 4 && c_in * c_out > MANY_WEIGHTS;
    saved && !few_tiles && c_in >= CHANNELS && c_out >= CHANNELS
}

/// Distance between planes of `len` values: an odd number of cache lines, so that the 36 lines that one transform
/// touches lie in different sets of the cache.
fn pitch<T>(len: usize) -> usize {
    const LINE_BYTES: usize = 64;
    let line = LINE_BYTES / size_of::<T>();
    (len.div_ceil(line) | 1) * line
}

/// Rows and columns of one tile's planes.
fn planes(pitch: usize) -> [usize; 2] {
    [WINDOW * pitch, pitch]
}

/// `[tap, input channel, width]` of each panel to `[plane, input channel, width]`, planes `pitch` apart.
fn transform_weights<T: Scalar + Tiles>(isa: Isa, panels: &[T], c_in: usize, c_out: usize) -> Vec<T> {
    let full = c_in * panel_width::<T>();
    let mut out = stale_vec::<T>(PLANES * pitch::<T>(full) * c_out.div_ceil(panel_width::<T>()));
    // The last panel may be narrow. Parts of a panel are cut so that a task's planes stay in the L1 cache.
    let one = |(from, to): (&[T], &mut [T])| {
        let len = from.len() / 9;
        const PART: usize = 128;
        for at in (0..len).step_by(PART) {
            let channels = PART.min(len - at);
            let job = Transform { of: Winograd::Weight, from: &from[at..], from_pitch: [3 * len, len], to_pitch: planes(pitch::<T>(len)), channels, keep: [WINDOW; 2], scale: None };
            transform(isa, &job, &mut to[at..]);
        }
    };
    let all = panels.chunks(9 * full).zip(out.chunks_exact_mut(PLANES * pitch::<T>(full)));
    if c_in * c_out * PLANES < SERIAL_MACS {
        all.for_each(one);
    } else {
        all.collect::<Vec<_>>().into_par_iter().for_each(one);
    }
    out
}

/// Runs a map of one phase, 3×3 taps and stride 1, whose packed weights are `panels`.
pub fn run_map<T: Scalar + Tiles>(map: &Map, x: &[T], scale_in: Option<&[T]>, panels: &[T], scale_out: Option<&[T]>) -> Vec<T> {
    let ([h_out, w_out, c_out], c_in) = (map.output, map.input[2]);
    let source = Source { of: Winograd::Input, values: x, size: map.input, scale: scale_in, start: map.phases[0].start };
    let mut out = stale_vec::<T>(map.n * h_out * w_out * c_out);
    if out.is_empty() {
        return out;
    }
    let isa = Isa::detect();
    let weights = transform_weights(isa, panels, c_in, c_out);
    let grid = [h_out.div_ceil(TILE), w_out.div_ceil(TILE)];
    let macs = map.n * grid[0] * grid[1] * PLANES * c_in * c_out;
    let least = if c_in * c_out > MANY_WEIGHTS { 2 * TASK_TILES } else { TASK_TILES };
    let tiles = (TASK_VALUES / (PLANES * (c_in + c_out))).max(least).min((map.n * grid[0] * grid[1]).div_ceil(4));
    let parts = parts(map.n, grid[0], tiles.div_ceil(grid[1]));
    let mut rest = &mut out[..];
    let mut tasks = Vec::with_capacity(parts.len());
    for part in &parts {
        let lines = (part.rows.end * TILE).min(h_out) - part.rows.start * TILE;
        let (mine, others) = rest.split_at_mut(part.images.len() * lines * w_out * c_out);
        rest = others;
        tasks.push((part, mine));
    }
    let one = |rows: &mut Rows, (part, out): (&Part, &mut [T])| {
        let tiles = part.images.len() * part.rows.len() * grid[1];
        let (input_pitch, pitch_out) = (pitch::<T>(tiles * c_in), pitch::<T>(tiles * c_out + transform_slack::<T>(c_out)));
        let mut input = stale_vec::<T>(PLANES * input_pitch);
        source.planes(isa, part, grid[1], &mut input);
        let mut products = stale_vec::<T>(PLANES * pitch_out);
        rows.clear();
        rows.push_line(tiles, [0, c_in], [0, 1], 0);
        let passes = c_in.div_ceil(PASS_CHANNELS);
        let passes: Vec<[Run; 1]> = (0..passes)
            .map(|i| {
                let offset = i * c_in / passes;
                [Run { offset, len: (i + 1) * c_in / passes - offset }]
            })
            .collect();
        for (plane, products) in products.chunks_exact_mut(pitch_out).enumerate() {
            let input = &input[plane * input_pitch..][..tiles * c_in];
            for mut columns in Columns::split(&mut products[..tiles * c_out], c_out, c_out) {
                for column in (0..c_out).step_by(panel_width::<T>()) {
                    let width = panel_width::<T>().min(c_out - column);
                    let line = line_width::<T>(width);
                    let first = column / panel_width::<T>() * PLANES * pitch::<T>(c_in * panel_width::<T>()) + plane * pitch::<T>(c_in * line);
                    for runs in &passes {
                        let panel = &weights[first + runs[0].offset * line..];
                        let job = Gather { input, rows, runs, panel, accumulate: runs[0].offset > 0, scale: None };
                        tile::gather(isa, &job, &mut columns, column, width);
                    }
                }
            }
        }
        let lines = out.len() / (part.images.len() * w_out * c_out);
        for (tile, (i, y, x)) in places(part, grid[1]).enumerate() {
            let top = (y - part.rows.start) * TILE;
            let job = Transform {
                of: Winograd::Output,
                from: &products[tile * c_out..],
                from_pitch: planes(pitch_out),
                to_pitch: [w_out * c_out, c_out],
                channels: c_out,
                keep: [TILE.min(lines - top), TILE.min(w_out - x * TILE)],
                scale: scale_out.map(|s| &s[i * c_out..][..c_out]),
            };
            transform(isa, &job, &mut out[(((i - part.images.start) * lines + top) * w_out + x * TILE) * c_out..]);
        }
        recycle(input);
        recycle(products);
    };
    if macs < SERIAL_MACS {
        let mut rows = Rows::default();
        tasks.into_iter().for_each(|t| one(&mut rows, t));
    } else {
        tasks.into_par_iter().for_each_init(Rows::default, one);
    }
    recycle(weights);
    out
}

/// Tiles of a part, as (image, tile row, tile column).
fn places(part: &Part, columns: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let rows = part.rows.clone();
    part.images.clone().flat_map(move |i| rows.clone().flat_map(move |y| (0..columns).map(move |x| (i, y, x))))
}

/// Images `[N, h, w, c]` whose tiles are transformed: the first one's window starts at `start`, the others every 4 pixels
/// after it. What lies outside of the image is zero.
struct Source<'a, T> {
    of: Winograd,
    values: &'a [T],
    size: [usize; 3],
    /// `[N, c]`
    scale: Option<&'a [T]>,
    start: [isize; 2],
}

impl<T: Scalar + Tiles> Source<'_, T> {
    /// Planes of a part's tiles, `columns` per tile row, to `[plane, tile, channel]`.
    fn planes(&self, isa: Isa, part: &Part, columns: usize, to: &mut [T]) {
        let c = self.size[2];
        let reach = if self.of == Winograd::Grad { TILE } else { WINDOW } as isize;
        let at = |axis: usize, tile: usize| self.start[axis] + (tile * TILE) as isize;
        let reads = |axis: usize, tiles: std::ops::Range<usize>| at(axis, tiles.start)..at(axis, tiles.end - 1) + reach;
        let reads = [reads(0, part.rows.clone()), reads(1, 0..columns)];
        let window = Window::new(self.values, self.size, self.scale, &part.images, reads, transform_slack::<T>(c));
        let plane = to.len() / PLANES;
        for (tile, (i, y, x)) in places(part, columns).enumerate() {
            let from = &window.values()[window.at(i - part.images.start, at(0, y), at(1, x), c)..];
            let job = Transform { of: self.of, from, from_pitch: [window.row, c], to_pitch: planes(plane), channels: c, keep: [WINDOW; 2], scale: None };
            transform(isa, &job, &mut to[tile * c..]);
        }
    }
}

/// The weight gradient `[C_out, 3, 3, C_in]` of a 3×3 convolution with stride 1.
pub fn weight_grad<T: Scalar + Tiles>(x: &[T], g: &[T], a: Option<&[T]>, b: Option<&[T]>, padding: [usize; 2], e: &Extent) -> Vec<T> {
    let isa = Isa::detect();
    let (c_in, c_out) = (e.x[2], e.g[2]);
    let grid = [e.g[0].div_ceil(TILE), e.g[1].div_ceil(TILE)];
    let inputs = Source { of: Winograd::Input, values: x, size: e.x, scale: a, start: padding.map(|p| -(p as isize)) };
    let grads = Source { of: Winograd::Grad, values: g, size: e.g, scale: b, start: [0, 0] };
    let per_task = (TASK_VALUES / (PLANES * (c_in + c_out))).max(TASK_TILES).min((e.n * grid[0] * grid[1]).div_ceil(4));
    let parts = parts(e.n, grid[0], per_task.div_ceil(grid[1]));
    let count = |part: &Part| part.images.len() * part.rows.len() * grid[1];
    let values = |part: &Part, c: usize| PLANES * pitch::<T>(count(part) * c);
    let per_block = (BLOCK_VALUES / (PLANES * (c_in + c_out))).max(BLOCK_TILES).div_ceil(count(&parts[0]));
    let sums_pitch = pitch::<T>(c_out * c_in + transform_slack::<T>(c_in));
    let mut sums = stale_vec::<T>(PLANES * sums_pitch);
    for (index, block) in parts.chunks(per_block).enumerate() {
        let total = |c: usize| block.iter().map(|part| values(part, c)).sum::<usize>();
        // Slack: `outer` reads whole panels and whole rows of its tile.
        let mut input = stale_vec::<T>(total(c_in) + panel_width::<T>());
        let mut grad = stale_vec::<T>(total(c_out) + outer_rows(isa));
        let (mut input_rest, mut grad_rest) = (&mut input[..], &mut grad[..]);
        let mut tasks = Vec::with_capacity(2 * block.len());
        for part in block {
            for (source, rest) in [(&inputs, &mut input_rest), (&grads, &mut grad_rest)] {
                let (mine, others) = std::mem::take(rest).split_at_mut(values(part, source.size[2]));
                *rest = others;
                tasks.push((source, part, mine));
            }
        }
        tasks.into_par_iter().for_each(|(source, part, to)| source.planes(isa, part, grid[1], to));
        let one = |pixels: &mut Pixels, (plane, first, sums): (usize, usize, &mut [T])| {
            let (mut start, mut todo) = ([0, 0], block);
            let mut accumulate = index > 0;
            while !todo.is_empty() {
                pixels.clear(c_in, c_out);
                let mut pass = 0;
                while let Some((part, rest)) = todo.split_first().filter(|(part, _)| pass == 0 || pass + count(part) <= PASS_TILES) {
                    let n = count(part);
                    let at = [c_in, c_out].map(|c| plane * pitch::<T>(n * c));
                    pixels.push(start[0] + at[0], start[1] + at[1] + first, n);
                    (start, pass, todo) = ([start[0] + values(part, c_in), start[1] + values(part, c_out)], pass + n, rest);
                }
                let rows = sums.len() / c_in;
                for column in (0..c_in).step_by(panel_width::<T>()) {
                    for row in (0..rows).step_by(outer_rows(isa)) {
                        let job = Outer {
                            input: &input[column..],
                            pixels,
                            grad: &grad[row..],
                            accumulate,
                            pitch: c_in,
                            rows: outer_rows(isa).min(rows - row),
                            width: panel_width::<T>().min(c_in - column),
                        };
                        tile::outer(isa, &job, &mut sums[row * c_in + column..]);
                    }
                }
                accumulate = true;
            }
        };
        let mut tasks = Vec::with_capacity(PLANES * c_out.div_ceil(GROUP_CHANNELS));
        for (plane, sums) in sums.chunks_exact_mut(sums_pitch).enumerate() {
            let groups = sums[..c_out * c_in].chunks_mut(GROUP_CHANNELS * c_in).enumerate();
            tasks.extend(groups.map(|(i, sums)| (plane, i * GROUP_CHANNELS, sums)));
        }
        tasks.into_par_iter().for_each_init(Pixels::default, one);
        recycle(input);
        recycle(grad);
    }
    let mut out = stale_vec::<T>(c_out * 9 * c_in);
    out.par_chunks_exact_mut(9 * c_in).enumerate().for_each(|(o, out)| {
        let (from, from_pitch) = (&sums[o * c_in..], planes(sums_pitch));
        let job = Transform { of: Winograd::WeightGrad, from, from_pitch, to_pitch: [3 * c_in, c_in], channels: c_in, keep: [3; 2], scale: None };
        transform(isa, &job, out);
    });
    recycle(sums);
    out
}
