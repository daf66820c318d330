//! Winograd's minimal filtering for 3×3 windows: F(4×4, 3×3) where they lie one pixel apart, 36 products per 16 outputs
//! and channel pair instead of 144, and where they lie two pixels apart 81 (`tile::Winograd`).
//!
//! The values that the outputs of a tile read become planes (36 or 81), each plane is one matrix product (`tile::gather`, or
//! `tile::outer` for the weight gradient), and the products become outputs. In f32 the result of windows one pixel apart is
//! off by 9e-7 in the L2 norm at 32 channels and 2.8e-6 at 512, that of windows two pixels apart by 6e-7 and 1.8e-6, where the
//! direct sum is off by 3e-7 and 1.2e-6 (standard normal values, one sum per output; sums here are cut, which makes them
//! better).

use std::sync::Arc;

use rayon::prelude::*;

use super::tile::{self, Columns, Gather, Outer, Pixels, Product, Rows, Tiles, Transform, Winograd, line_width, outer_slack, panel_width, transform};
use super::{Direct, Ends, Extent, MANY_WEIGHTS, Map, Part, Phase, SERIAL_MACS, TASK_MACS, Weights, parts, sum_of_parts};
use crate::device::cpu::{Buffer, Isa, pieces, prefetch};
use crate::tensor::{HostBuffer, Scalar};

/// Transformed weights along an axis.
const WEIGHTS: usize = 6;
/// Channels from which the transforms cost less than they save: of windows one pixel apart and of all weight gradients, and of
/// windows two pixels apart, which save less.
const CHANNELS: usize = 16;
const STRIDED_CHANNELS: usize = 128;
/// Values of all planes of one task: with the weights of a small layer they stay in the L2 cache, of which there may be half when
/// a core has two threads.
const TASK_VALUES: usize = 36 << 10;
/// Tiles of one task at least, so that weights are not read again and again. Of many weights a task has more tiles, as long as
/// its planes stay in the L3 cache. A map without tiles enough for that goes plane by plane.
const TASK_TILES: usize = 16;
const MANY_TASK_VALUES: usize = 5 << 20;
const MANY_TASK_TILES: usize = 128;
const LEAST_MANY: usize = 48;
/// Channels of one pass over a panel: its part stays in the L1 cache, and shorter sums round less.
const PASS_CHANNELS: usize = 192;
/// Weight gradient: values of all planes that exist at a time, tiles of them at least, and tiles of one sum, whose inputs of
/// one panel stay in the L1 cache.
const BLOCK_VALUES: usize = 4 << 20;
const BLOCK_TILES: usize = 512;
const PASS_TILES: usize = 128;
/// Weight gradient: values of all planes of one task and its tiles at least: each adds to all sums.
const GRAD_TASK_VALUES: usize = 128 << 10;
const GRAD_TASK_TILES: usize = 24;
/// Weight gradient: output channels of one task.
const GROUP_CHANNELS: usize = 96;
/// Weight gradient: pairs of channels up to which a chunk of tiles has sums of its own, and chunks; there are half as many at least.
const FEW_WEIGHTS: usize = 64 * 64;
const CHUNKS: usize = 8;

/// Tiles ahead of the one that is transformed of which the inputs are asked for.
const AHEAD: usize = 2;

/// How a map is cut into tiles, the same along both axes.
pub struct Scheme {
    input: Winograd,
    weight: Winograd,
    output: Winograd,
    /// Pixels from the window of one tile to that of the next.
    step: usize,
}

/// Windows of 3×3 one pixel apart.
const DENSE: Scheme = Scheme { input: Winograd::Input, weight: Winograd::Weight, output: Winograd::Output, step: 4 };
/// Windows of 3×3 two pixels apart.
const STRIDED: Scheme = Scheme { input: Winograd::StridedInput, weight: Winograd::StridedWeight, output: Winograd::StridedOutput, step: 8 };
/// The transpose of that: the window of an output is 2×2, 2×1, 1×2 or 1×1.
const SPREAD: Scheme = Scheme { input: Winograd::SpreadInput, weight: Winograd::StridedWeight, output: Winograd::SpreadOutput, step: 4 };

impl Scheme {
    /// The one by which the map gains. It looks at one image only, so that an image's bits do not depend on the size of
    /// its batch.
    pub fn of(map: &Map) -> Option<&'static Scheme> {
        let scheme = match map.phases {
            [p] if p.taps == [3, 3] && p.every == [1, 1] && p.first == [0, 0] => match p.stride {
                [1, 1] => &DENSE,
                [2, 2] => &STRIDED,
                _ => return None,
            },
            [p, _, _, last] if p.taps == [2, 2] && last.taps == [1, 1] && p.every == [2, 2] && p.first == [0, 0] => &SPREAD,
            _ => return None,
        };
        let ([h, w, c_out], c_in) = (map.output, map.input[2]);
        let products = map.phases.iter().map(Phase::products).sum();
        let least = if scheme.points() == WEIGHTS { CHANNELS } else { STRIDED_CHANNELS };
        (c_in.min(c_out) >= least && scheme.gains([h, w], products, c_in * c_out)).then_some(scheme)
    }

    /// Whether images of `size` take fewer products. `products`: of an image directly, for each of the `pairs` of channels.
    fn gains(&self, size: [usize; 2], products: usize, pairs: usize) -> bool {
        let tiles = self.grid(size).iter().product::<usize>();
        let saved = products * 3 > tiles * self.planes() * 4;
        let few_tiles = tiles < 4 && pairs > MANY_WEIGHTS;
        tiles > 0 && saved && !few_tiles
    }

    /// Products along an axis.
    fn points(&self) -> usize {
        self.input.sizes()[1]
    }

    fn planes(&self) -> usize {
        self.points() * self.points()
    }

    /// Which of the transformed weights a plane is multiplied by: all points after the fifth have the last one.
    fn weight_of(&self, plane: usize) -> usize {
        let along = |point: usize| point.min(WEIGHTS - 1);
        along(plane / self.points()) * WEIGHTS + along(plane % self.points())
    }

    /// The planes that a transformed weight belongs to.
    fn planes_of(&self, weight: usize) -> impl Iterator<Item = usize> {
        let points = self.points();
        let along = |weight: usize| if weight + 1 < WEIGHTS { weight..weight + 1 } else { weight..points };
        let columns = along(weight % WEIGHTS);
        along(weight / WEIGHTS).flat_map(move |row| columns.clone().map(move |column| row * points + column))
    }

    /// Outputs of a tile along an axis.
    fn outputs(&self) -> usize {
        self.output.sizes()[1]
    }

    /// Tiles for images of `size`. A single row or column beyond them is not worth tiles of its own.
    fn grid(&self, size: [usize; 2]) -> [usize; 2] {
        let spare = if self.outputs() > 4 { 1 } else { 0 };
        size.map(|n| n.saturating_sub(spare).div_ceil(self.outputs()))
    }

    /// What the tiles leave of the phases of outputs of `size`.
    fn border(&self, phases: &[Phase], grid: [usize; 2], size: [usize; 2]) -> Vec<Phase> {
        let [bottom, right] = [0, 1].map(|axis| (grid[axis] * self.outputs()).min(size[axis]));
        let below = phases.iter().map(|p| p.cut(0, bottom..size[0]));
        let beside = phases.iter().map(|p| p.cut(0, 0..bottom).cut(1, right..size[1]));
        below.chain(beside).collect()
    }
}

/// Distance between planes of `len` values: an odd number of cache lines, so that the lines that one transform touches
/// lie in different sets of the cache.
fn pitch<T>(len: usize) -> usize {
    const LINE_BYTES: usize = 64;
    let line = LINE_BYTES / size_of::<T>();
    (len.div_ceil(line) | 1) * line
}

/// Distance between the channels of one tile and those of the next. At a multiple of 512 bytes the tiles' values at one channel
/// would all lie in a few sets of the L1 cache.
fn tile_pitch<T>(channels: usize) -> usize {
    if (channels * size_of::<T>()).is_multiple_of(512) { pitch::<T>(channels) } else { channels }
}

/// Of `all` tiles of so many multiply-adds each, those that a task may have so that there are up to four tasks worth the name: each
/// reads all weights.
fn worth_of_tiles(all: usize, macs: usize) -> usize {
    all.div_ceil((all * macs / TASK_MACS).clamp(1, 4))
}

/// Distance between the transformed weights of a whole panel.
fn weight_pitch<T>(c_in: usize) -> usize {
    pitch::<T>(c_in * panel_width::<T>())
}

/// `[tap, input channel, width]` of each panel to `[transformed weight, input channel, width]`, these `weight_pitch` apart.
pub fn transform_weights<T: Scalar + Tiles>(isa: Isa, of: Winograd, panels: &[T], c_in: usize, c_out: usize) -> Buffer<T> {
    const ALL: usize = WEIGHTS * WEIGHTS;
    let full = c_in * panel_width::<T>();
    let mut out = Buffer::<T>::stale(ALL * weight_pitch::<T>(c_in) * c_out.div_ceil(panel_width::<T>()));
    // The last panel may be narrow. Parts of a panel are cut so that a task's planes stay in the L1 cache.
    let one = |(from, to): (&[T], &mut [T])| {
        let len = from.len() / 9;
        let to_pitch = [WEIGHTS, 1].map(|n| n * weight_pitch::<T>(c_in));
        const PART: usize = 128;
        for at in (0..len).step_by(PART) {
            let channels = PART.min(len - at);
            let job = Transform { of, from, first: at as isize, from_pitch: [3 * len, len], inside: None, to_pitch, channels, keep: [WEIGHTS; 2], scale: None };
            transform(isa, &job, &mut to[at..]);
        }
    };
    let all = panels.chunks(9 * full).zip(out.chunks_exact_mut(ALL * weight_pitch::<T>(c_in)));
    if c_in * c_out * ALL < SERIAL_MACS {
        all.for_each(one);
    } else {
        all.collect::<Vec<_>>().into_par_iter().for_each(one);
    }
    out
}

/// Runs a map by its scheme. `panels` are the packed weights of its phases.
pub fn run_map<T: Scalar + Tiles>(
    scheme: &Scheme,
    map: &Map,
    ends: &Ends<T>,
    weights: &Weights,
    panels: &dyn Fn() -> Vec<Arc<HostBuffer<T>>>,
) -> Buffer<T> {
    let ([h_out, w_out, c_out], c_in) = (map.output, map.input[2]);
    let source = Source { of: scheme.input, step: scheme.step, values: ends.x, size: map.input, scale: ends.scale_in, start: map.phases[0].start };
    let mut out = Buffer::<T>::stale(map.n * h_out * w_out * c_out);
    if out.is_empty() {
        return out;
    }
    let isa = Isa::detect();
    let weights = weights.transformed(isa, scheme.weight);
    let (grid, planes) = (scheme.grid([h_out, w_out]), scheme.planes());
    let border = scheme.border(map.phases, grid, [h_out, w_out]);
    let panels = if border.iter().any(|p| !p.count.contains(&0)) { panels() } else { Vec::new() };
    let border = Direct { map: &Map { phases: &border, ..*map }, ends, panels: &[&panels[..], &panels[..]].concat() };
    let all = map.n * grid[0] * grid[1];
    let many_weights = c_in * c_out > MANY_WEIGHTS;
    let least = match many_weights {
        true => (MANY_TASK_VALUES / (planes * (c_in + c_out))).clamp(LEAST_MANY, MANY_TASK_TILES),
        false => TASK_TILES,
    };
    let tiles = (TASK_VALUES / (planes * (c_in + c_out))).max(least).min(worth_of_tiles(all, planes * c_in * c_out));
    let parts = parts(map.n, grid[0], tiles.div_ceil(grid[1]));
    let run = Run { isa, scheme, map, source, weights: &weights, border, columns: grid[1] };
    let values = parts.iter().map(|part| part.images.len() * run.lines(part).len() * w_out * c_out);
    let tasks: Vec<_> = parts.iter().zip(pieces(&mut out, values)).collect();
    if all * planes * c_in * c_out < SERIAL_MACS {
        let mut rows = Rows::default();
        tasks.into_iter().for_each(|t| run.part(&mut rows, t));
    } else if many_weights && all < 4 * MANY_TASK_TILES {
        run.by_planes(&parts, tasks);
    } else {
        tasks.into_par_iter().for_each_init(Rows::default, |rows, t| run.part(rows, t));
    }
    out
}

/// A map that is run by its scheme.
struct Run<'a, T: Scalar> {
    isa: Isa,
    scheme: &'a Scheme,
    map: &'a Map<'a>,
    source: Source<'a, T>,
    /// Transformed.
    weights: &'a [T],
    /// What the tiles leave.
    border: Direct<'a, T>,
    /// Tiles per tile row.
    columns: usize,
}

impl<T: Scalar + Tiles> Run<'_, T> {
    /// One part by itself: its planes stay in the cache.
    fn part(&self, rows: &mut Rows, (part, out): (&Part, &mut [T])) {
        let (tiles, c_out) = (self.source.tiles(part, self.columns), self.map.output[2]);
        let (input_pitch, pitch_out) = (self.source.plane_pitch(tiles), self.products_pitch(tiles));
        let mut input = Buffer::<T>::stale(self.scheme.planes() * input_pitch);
        self.source.planes(self.isa, part, self.columns, &mut input);
        let mut products = Buffer::<T>::stale(self.scheme.planes() * pitch_out);
        let (depth, weight_pitch) = (self.map.input[2], weight_pitch::<T>(self.map.input[2]));
        for (plane, products) in products.chunks_exact_mut(pitch_out).enumerate() {
            let panels = &self.weights[self.scheme.weight_of(plane) * weight_pitch..];
            let (input, pitch, panel_pitch) = (&input[plane * input_pitch..], self.source.pitch(), WEIGHTS * WEIGHTS * weight_pitch);
            tile::product(self.isa, &Product { input, rows: tiles, depth, pitch, panels, panel_pitch, pass: PASS_CHANNELS, columns: c_out }, products);
        }
        drop(input);
        self.finish(rows, part, (&products, pitch_out), out);
    }

    /// All parts together, plane by plane: few tiles, which meet each of many weights once and not once for every part.
    fn by_planes(&self, parts: &[Part], tasks: Vec<(&Part, &mut [T])>) {
        let c_out = self.map.output[2];
        let tiles: Vec<usize> = parts.iter().map(|part| self.source.tiles(part, self.columns)).collect();
        let values = |tiles: usize| self.scheme.planes() * self.source.plane_pitch(tiles);
        let mut input = Buffer::<T>::stale(tiles.iter().map(|n| values(*n)).sum());
        let transforms: Vec<_> = parts.iter().zip(pieces(&mut input, tiles.iter().map(|n| values(*n)))).collect();
        transforms.into_par_iter().for_each(|(part, to)| self.source.planes(self.isa, part, self.columns, to));
        let pitch_out = self.products_pitch(tiles.iter().sum());
        let mut products = Buffer::<T>::stale(self.scheme.planes() * pitch_out);
        products.par_chunks_exact_mut(pitch_out).enumerate().for_each_init(Rows::default, |rows, (plane, mut products)| {
            let (mut start, mut todo) = (0, &tiles[..]);
            while !todo.is_empty() {
                rows.clear();
                let mut pass = 0;
                while let Some((n, rest)) = todo.split_first().filter(|(n, _)| pass == 0 || pass + *n <= MANY_TASK_TILES) {
                    rows.push_line(*n, [start + plane * self.source.plane_pitch(*n), self.source.pitch()], [pass, 1], 0);
                    (start, pass, todo) = (start + values(*n), pass + n, rest);
                }
                let (mine, others) = products.split_at_mut(pass * c_out);
                self.multiply(plane, &input, rows, mine);
                products = others;
            }
        });
        drop(input);
        let firsts = tiles.iter().scan(0, |first, n| Some(std::mem::replace(first, *first + n)));
        let tasks: Vec<_> = tasks.into_iter().zip(firsts).collect();
        tasks.into_par_iter().for_each_init(Rows::default, |rows, ((part, out), first)| {
            self.finish(rows, part, (&products[first * c_out..], pitch_out), out);
        });
    }

    /// Distance between the products of `tiles` in one plane and in the next.
    fn products_pitch(&self, tiles: usize) -> usize {
        let c_out = self.map.output[2];
        pitch::<T>(tiles * c_out)
    }

    /// Output lines of a part.
    fn lines(&self, part: &Part) -> std::ops::Range<usize> {
        let (h_out, outputs) = (self.map.output[0], self.scheme.outputs());
        let end = part.rows.end * outputs;
        let last = self.scheme.grid([h_out, 0])[0] == part.rows.end;
        part.rows.start * outputs..if last { h_out } else { end }
    }

    /// One plane's products `[tiles, C_out]`. `rows`: where in `input` the values of each tile start.
    fn multiply(&self, plane: usize, input: &[T], rows: &Rows, products: &mut [T]) {
        let (c_in, c_out) = (self.map.input[2], self.map.output[2]);
        let passes = c_in.div_ceil(PASS_CHANNELS);
        for mut columns in Columns::split(products, c_out, c_out) {
            for column in (0..c_out).step_by(panel_width::<T>()) {
                let width = panel_width::<T>().min(c_out - column);
                let line = line_width::<T>(width);
                let first = (column / panel_width::<T>() * WEIGHTS * WEIGHTS + self.scheme.weight_of(plane)) * weight_pitch::<T>(c_in);
                for pass in 0..passes {
                    let [offset, end] = [pass, pass + 1].map(|i| i * c_in / passes);
                    let runs = [tile::Run { offset, len: end - offset }];
                    let job = Gather { input, rows, runs: &runs, panel: &self.weights[first + offset * line..], accumulate: pass > 0, scale: None };
                    tile::gather(self.isa, &job, &mut columns, column, width);
                }
            }
        }
    }

    /// A part's outputs `[images, lines, w, C_out]` of its products in each plane.
    fn finish(&self, rows: &mut Rows, part: &Part, (products, pitch_out): (&[T], usize), out: &mut [T]) {
        let [_, w_out, c_out] = self.map.output;
        let (lines, outputs) = (self.lines(part), self.scheme.outputs());
        for (tile, (i, y, x)) in places(part, self.columns).enumerate() {
            let (top, left) = (y * outputs - lines.start, x * outputs);
            let job = Transform {
                of: self.scheme.output,
                from: products,
                first: (tile * c_out) as isize,
                from_pitch: [self.scheme.points() * pitch_out, pitch_out],
                inside: None,
                to_pitch: [w_out * c_out, c_out],
                channels: c_out,
                keep: [outputs.min(lines.len() - top), outputs.min(w_out - left)],
                scale: self.border.ends.scale_out.map(|s| &s[i * c_out..][..c_out]),
            };
            transform(self.isa, &job, &mut out[(((i - part.images.start) * lines.len() + top) * w_out + left) * c_out..]);
        }
        let at = (part.images.start * self.map.output[0] + lines.start) * w_out * c_out;
        let part = Part { images: part.images.clone(), rows: lines };
        Columns::split(out, c_out, c_out).for_each(|mut columns| self.border.run(self.isa, rows, &part, &mut columns));
        self.border.ends.finish(out, at);
    }
}

/// Tiles of a part, as (image, tile row, tile column).
fn places(part: &Part, columns: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let rows = part.rows.clone();
    part.images.clone().flat_map(move |i| rows.clone().flat_map(move |y| (0..columns).map(move |x| (i, y, x))))
}

/// Images `[N, h, w, c]` whose tiles are transformed: the first one's window starts at `start`, the others every `step`
/// pixels after it. What lies outside of the image is zero.
struct Source<'a, T> {
    of: Winograd,
    step: usize,
    values: &'a [T],
    size: [usize; 3],
    /// `[N, c]`
    scale: Option<&'a [T]>,
    start: [isize; 2],
}

impl<T: Scalar + Tiles> Source<'_, T> {
    /// Distance between a tile's channels and the next one's.
    fn pitch(&self) -> usize {
        tile_pitch::<T>(self.size[2])
    }

    /// Distance between planes of `tiles`.
    fn plane_pitch(&self, tiles: usize) -> usize {
        pitch::<T>(tiles * self.pitch())
    }

    /// Tiles of a part, `columns` per tile row.
    fn tiles(&self, part: &Part, columns: usize) -> usize {
        part.images.len() * part.rows.len() * columns
    }

    /// Planes of a part's tiles, `columns` per tile row, to `[plane, tile, channel]`.
    fn planes(&self, isa: Isa, part: &Part, columns: usize, to: &mut [T]) {
        let ([h, w, c], [reach, points]) = (self.size, self.of.sizes());
        let plane = to.len() / (points * points);
        let to_pitch = [points * plane, plane];
        for (tile, (i, y, x)) in places(part, columns).enumerate() {
            let at = |axis: usize, tile: usize| self.start[axis] + (tile * self.step) as isize;
            let (top, left) = (at(0, y), at(1, x));
            let there = |start: isize, n: usize| {
                let there = (-start).max(0) as usize..(n as isize - start).clamp(0, reach as isize) as usize;
                there.start.min(there.end)..there.end
            };
            let inside = [there(top, h), there(left, w)];
            let inside = (inside != [0..reach, 0..reach]).then_some(inside);
            let first = ((i * h * w) as isize + top * w as isize + left) * c as isize;
            // What the next tiles read and this one does not.
            if inside.is_none() {
                for row in self.values[first as usize..].chunks(w * c).take(reach) {
                    prefetch(row.get(AHEAD * self.step * c..(AHEAD + 1) * self.step * c).unwrap_or_default());
                }
            }
            // A transform is linear, so the scale may come afterwards.
            let scale = self.scale.map(|s| &s[i * c..][..c]);
            let job = Transform { of: self.of, from: self.values, first, from_pitch: [w * c, c], inside, to_pitch, channels: c, keep: [points; 2], scale };
            transform(isa, &job, &mut to[tile * self.pitch()..]);
        }
    }
}

/// The scheme and the transforms of a 3×3 convolution's weight gradient, if it gains.
pub fn of_weight_grad(stride: [usize; 2], e: &Extent) -> Option<(&'static Scheme, [Winograd; 2])> {
    let (scheme, grads) = match (e.k, stride) {
        ([3, 3], [1, 1]) => (&DENSE, [Winograd::Grad, Winograd::WeightGrad]),
        ([3, 3], [2, 2]) => (&STRIDED, [Winograd::StridedGrad, Winograd::StridedWeightGrad]),
        _ => return None,
    };
    let ([h, w, c_out], c_in) = (e.g, e.x[2]);
    (c_in.min(c_out) >= CHANNELS && scheme.gains([h, w], 9 * h * w, c_in * c_out)).then_some((scheme, grads))
}

/// The weight gradient `[C_out, 3, 3, C_in]` by what `of_weight_grad` gave.
pub fn weight_grad<T: Scalar + Tiles>((scheme, [of_grad, of_sums]): (&Scheme, [Winograd; 2]), x: &[T], g: &[T], a: Option<&[T]>, b: Option<&[T]>, padding: [usize; 2], e: &Extent) -> Buffer<T> {
    let (c_in, c_out) = (e.x[2], e.g[2]);
    let grid = scheme.grid([e.g[0], e.g[1]]);
    let inputs = Source { of: scheme.input, step: scheme.step, values: x, size: e.x, scale: a, start: padding.map(|p| -(p as isize)) };
    let grads = Source { of: of_grad, step: scheme.outputs(), values: g, size: e.g, scale: b, start: [0, 0] };
    let products = Products { scheme, isa: Isa::detect(), sources: [inputs, grads], columns: grid[1] };
    let most = worth_of_tiles(e.n * grid[0] * grid[1], scheme.planes() * c_in * c_out);
    let per_task = (GRAD_TASK_VALUES / (scheme.planes() * (c_in + c_out))).max(GRAD_TASK_TILES).min(most);
    let parts = parts(e.n, grid[0], per_task.div_ceil(grid[1]));
    let few_weights = c_in * c_out <= FEW_WEIGHTS && parts.len() >= CHUNKS / 2;
    let sums = if few_weights { products.by_chunks(&parts) } else { products.by_weights(&parts) };
    let (isa, pitch) = (products.isa, products.sums_pitch());
    let mut out = Buffer::<T>::stale(c_out * 9 * c_in);
    out.par_chunks_exact_mut(9 * c_in).enumerate().for_each(|(o, out)| {
        let (first, from_pitch) = ((o * c_in) as isize, [WEIGHTS * pitch, pitch]);
        let job = Transform { of: of_sums, from: &sums, first, from_pitch, inside: None, to_pitch: [3 * c_in, c_in], channels: c_in, keep: [3; 2], scale: None };
        transform(isa, &job, out);
    });
    out
}

/// Sums of the products of a weight gradient: of all tiles, for each of the transformed weights.
struct Products<'a, T> {
    scheme: &'a Scheme,
    isa: Isa,
    /// Inputs and gradients.
    sources: [Source<'a, T>; 2],
    /// Tiles per tile row.
    columns: usize,
}

impl<T: Scalar + Tiles> Products<'_, T> {
    fn channels(&self) -> [usize; 2] {
        [self.sources[0].size[2], self.sources[1].size[2]]
    }

    /// Distance between the sums `[C_out, C_in]` of one weight and those of the next.
    fn sums_pitch(&self) -> usize {
        let [c_in, c_out] = self.channels();
        pitch::<T>(c_out * c_in)
    }

    fn tiles(&self, part: &Part) -> usize {
        self.sources[0].tiles(part, self.columns)
    }

    /// Values of all planes of a part, of inputs and of gradients.
    fn values(&self, part: &Part) -> [usize; 2] {
        self.sources.each_ref().map(|source| self.scheme.planes() * source.plane_pitch(self.tiles(part)))
    }

    /// Memory for the planes of parts.
    fn memory(&self, parts: &[Part]) -> [Buffer<T>; 2] {
        let [c_in, c_out] = self.channels();
        let slack = outer_slack::<T>(self.isa, c_in, c_out);
        [0, 1].map(|i| Buffer::<T>::stale(parts.iter().map(|part| self.values(part)[i]).sum::<usize>() + slack[i]))
    }

    /// Adds one weight's products of the parts, whose planes lie one after the other, for output channels from `first` on.
    #[allow(clippy::too_many_arguments)]
    fn add(&self, pixels: &mut Pixels, parts: &[Part], [input, grad]: [&[T]; 2], weight: usize, first: usize, mut accumulate: bool, sums: &mut [T]) {
        let c_in = self.sources[0].size[2];
        for plane in self.scheme.planes_of(weight) {
            let (mut start, mut todo) = ([0, 0], parts);
            while !todo.is_empty() {
                pixels.clear(self.sources[0].pitch(), self.sources[1].pitch());
                let mut pass = 0;
                while let Some((part, rest)) = todo.split_first().filter(|(part, _)| pass == 0 || pass + self.tiles(part) <= PASS_TILES) {
                    let (n, values) = (self.tiles(part), self.values(part));
                    let at = self.sources.each_ref().map(|source| plane * source.plane_pitch(n));
                    pixels.push(start[0] + at[0], start[1] + at[1] + first, n);
                    (start, pass, todo) = ([start[0] + values[0], start[1] + values[1]], pass + n, rest);
                }
                let job = Outer { input, pixels, grad, accumulate, pitch: c_in, rows: sums.len() / c_in, width: c_in };
                tile::outer(self.isa, &job, sums);
                accumulate = true;
            }
        }
    }

    /// Tasks of some tiles each, with sums of their own: the planes of a part stay in the L2 cache.
    fn by_chunks(&self, parts: &[Part]) -> Buffer<T> {
        let ([c_in, c_out], len) = (self.channels(), WEIGHTS * WEIGHTS * self.sums_pitch());
        let per_chunk = parts.len().div_ceil(CHUNKS);
        let chunks: Vec<&[Part]> = parts.chunks(per_chunk).collect();
        let mut partial = Buffer::<T>::stale(chunks.len() * len);
        let one = |pixels: &mut Pixels, (parts, sums): (&[Part], &mut [T])| {
            for (i, part) in parts.iter().enumerate() {
                let mut planes = self.memory(std::slice::from_ref(part));
                for ((source, to), values) in self.sources.iter().zip(&mut planes).zip(self.values(part)) {
                    source.planes(self.isa, part, self.columns, &mut to[..values]);
                }
                for (weight, sums) in sums.chunks_exact_mut(self.sums_pitch()).enumerate() {
                    self.add(pixels, std::slice::from_ref(part), [&planes[0], &planes[1]], weight, 0, i > 0, &mut sums[..c_out * c_in]);
                }
            }
        };
        chunks.into_par_iter().zip(partial.par_chunks_exact_mut(len)).for_each_init(Pixels::default, one);
        sum_of_parts(partial, len)
    }

    /// Tasks of one weight and some output channels each, on the planes of as many parts as there may be at a time.
    fn by_weights(&self, parts: &[Part]) -> Buffer<T> {
        let [c_in, c_out] = self.channels();
        let per_block = (BLOCK_VALUES / (self.scheme.planes() * (c_in + c_out))).max(BLOCK_TILES).div_ceil(self.tiles(&parts[0]));
        let mut sums = Buffer::<T>::stale(WEIGHTS * WEIGHTS * self.sums_pitch());
        for (index, block) in parts.chunks(per_block).enumerate() {
            let mut planes = self.memory(block);
            let mut tasks = Vec::with_capacity(2 * block.len());
            for (i, (source, planes)) in self.sources.iter().zip(&mut planes).enumerate() {
                let mine = pieces(planes, block.iter().map(|part| self.values(part)[i]));
                tasks.extend(block.iter().zip(mine).map(|(part, mine)| (source, part, mine)));
            }
            tasks.into_par_iter().for_each(|(source, part, to)| source.planes(self.isa, part, self.columns, to));
            let mut tasks = Vec::with_capacity(WEIGHTS * WEIGHTS * c_out.div_ceil(GROUP_CHANNELS));
            for (weight, sums) in sums.chunks_exact_mut(self.sums_pitch()).enumerate() {
                let groups = sums[..c_out * c_in].chunks_mut(GROUP_CHANNELS * c_in).enumerate();
                tasks.extend(groups.map(|(i, sums)| (weight, i * GROUP_CHANNELS, sums)));
            }
            // The last weights belong to most planes: first, so that no thread is left alone with them.
            tasks.reverse();
            let one = |pixels: &mut Pixels, (weight, first, sums): (usize, usize, &mut [T])| {
                self.add(pixels, block, [&planes[0], &planes[1]], weight, first, index > 0, sums);
            };
            tasks.into_par_iter().for_each_init(Pixels::default, one);
        }
        sums
    }
}
