//! Host implementation. `conv2d` and `conv2d_transpose` are sums of windows of the input times panels of weights
//! (`tile::gather`); a transposed convolution with stride `s` is `s²` of them, one per residue of the output
//! coordinate. `conv2d_weight_grad` is a sum of outer products over pixels (`tile::outer`). No operand is unfolded:
//! in channels-last order the taps of one kernel row lie together in the input.
//!
//! How work is cut depends on shapes alone and partial sums are added in order, so results do not depend on the
//! number of threads.

mod tile;
mod winograd;

use std::sync::Arc;

use rayon::prelude::*;

use super::{Conv2d, Extent};
use crate::device::cpu::{Buffer, Isa, PARALLEL_ELEMENTS, for_chunks, pieces};
use crate::ops::bias_act::Epilogue;
use crate::ops::bias_act::cpu::Finish;
use crate::tensor::{HostBuffer, Scalar, Tensor};
use tile::{Columns, Gather, Outer, Pixels, Rows, Run, Tiles, Winograd, line_width, outer_rows, panel_width};
use winograd::Scheme;

/// Multiply-adds below which a call stays on its thread.
const SERIAL_MACS: usize = 1 << 18;
/// Multiply-adds that one task should have at least: about a hundred microseconds, beside which its windows' borders and lists of
/// pixels are little.
const TASK_MACS: usize = 1 << 22;
/// Tasks that a call is cut into when it has the work for it.
const TASKS: usize = 32;
/// Pairs of channels from which transformed weights no longer stay in the L2 cache.
const MANY_WEIGHTS: usize = 128 * 128;
/// Summands of one pass over a panel: the panel's part stays in the L1 cache.
const PASS_VALUES: usize = 384;
/// Input values that one task walks in a pass: they stay in the L2 cache.
const TASK_INPUT_VALUES: usize = 48 << 10;

/// Weight gradient: pixels whose input is copied together, and that one pass over the tiles takes.
const PART_PIXELS: usize = 1024;
const BLOCK_PIXELS: usize = 256;
/// Pixels that one partial sum should have at least, and values of all partial sums together.
const CHUNK_PIXELS: usize = 64;
const PARTIAL_VALUES: usize = 1 << 20;
/// Output channels of one task where channels are cut; a multiple of every tile's rows after division by 4.
const GROUP_CHANNELS: usize = 48;

/// Outputs of one residue class of a map between two images, and what each of them reads.
#[derive(Clone, Copy)]
struct Phase {
    /// First output of the class and distance between its outputs, `[y, x]`.
    first: [usize; 2],
    every: [usize; 2],
    /// How many outputs it has.
    count: [usize; 2],
    /// Input coordinate of the first tap of the first output, and distance between neighbouring outputs' taps.
    start: [isize; 2],
    stride: [usize; 2],
    taps: [usize; 2],
}

impl Phase {
    /// Input coordinates read along `axis` by the outputs `from..to` of the class.
    fn reads(&self, axis: usize, from: usize, to: usize) -> std::ops::Range<isize> {
        if from >= to || self.taps[axis] == 0 {
            return 0..0;
        }
        let at = |i: usize| self.start[axis] + (i * self.stride[axis]) as isize;
        at(from)..at(to - 1) + self.taps[axis] as isize
    }

    /// Products of an image for each pair of channels.
    fn products(&self) -> usize {
        self.count[0] * self.count[1] * self.taps[0] * self.taps[1]
    }

    /// The outputs in `range` of `axis` alone.
    fn cut(&self, axis: usize, range: std::ops::Range<usize>) -> Phase {
        let within = self.within(axis, &range);
        let mut cut = *self;
        cut.first[axis] += within.start * self.every[axis];
        cut.start[axis] += (within.start * self.stride[axis]) as isize;
        cut.count[axis] = within.len();
        cut
    }

    /// Indices in the class of the outputs in `range` of `axis`.
    fn within(&self, axis: usize, range: &std::ops::Range<usize>) -> std::ops::Range<usize> {
        let index = |at: usize| at.saturating_sub(self.first[axis]).div_ceil(self.every[axis]).min(self.count[axis]);
        index(range.start)..index(range.end)
    }
}

/// A part of the batch: whole images, or rows of one image.
#[derive(Clone, Debug)]
struct Part {
    images: std::ops::Range<usize>,
    rows: std::ops::Range<usize>,
}

/// Cuts `n` images of `height` rows into parts of about `rows` rows, evenly.
fn parts(n: usize, height: usize, rows: usize) -> Vec<Part> {
    let even = |total: usize, size: usize| total.div_ceil(total.div_ceil(size.max(1)).max(1)).max(1);
    let cut = |total: usize, step: usize| (0..total).step_by(step).map(move |from| from..(from + step).min(total));
    if rows >= height {
        cut(n, even(n, rows / height.max(1))).map(|images| Part { images, rows: 0..height }).collect()
    } else {
        let step = even(height, rows);
        (0..n).flat_map(|i| cut(height, step).map(move |rows| Part { images: i..i + 1, rows })).collect()
    }
}

/// Smallest range that holds both; an empty range holds nothing.
fn hull(a: std::ops::Range<isize>, b: std::ops::Range<isize>) -> std::ops::Range<isize> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b,
        (_, true) => a,
        _ => a.start.min(b.start)..a.end.max(b.end),
    }
}

/// Copies what `reads` covers of an image `[h, w, c]`, with zeros outside of it, times `scale` `[c]`.
fn fill_window<T: Scalar>(to: &mut [T], image: &[T], [h, w, c]: [usize; 3], [ys, xs]: [std::ops::Range<isize>; 2], scale: Option<&[T]>) {
    // Columns of the input that are read, and where they lie in a row of the copy.
    let from = xs.start.clamp(0, w as isize);
    let end = xs.end.clamp(from, w as isize);
    let (left, width) = ((from - xs.start) as usize * c, (end - from) as usize * c);
    for (y, to) in ys.zip(to.chunks_exact_mut((xs.len() * c).max(1))) {
        if y < 0 || y >= h as isize || width == 0 {
            to.fill(T::ZERO);
            continue;
        }
        let source = &image[(y as usize * w + from as usize) * c..][..width];
        to[..left].fill(T::ZERO);
        to[left + width..].fill(T::ZERO);
        match scale {
            None => to[left..left + width].copy_from_slice(source),
            Some(s) => {
                for (to, from) in to[left..left + width].chunks_exact_mut(c).zip(source.chunks_exact(c)) {
                    for ((to, from), s) in to.iter_mut().zip(from).zip(s) {
                        *to = *from * *s;
                    }
                }
            }
        }
    }
}

/// What a part reads of the input: either the input itself, or a copy with zeros around it and the scale applied.
struct Window<'a, T: Scalar> {
    copy: Buffer<T>,
    whole: &'a [T],
    /// Values per image and per row.
    image: usize,
    row: usize,
    /// Coordinates of the first value.
    origin: [isize; 2],
}

impl<'a, T: Scalar> Window<'a, T> {
    /// `input` is `[N, h, w, c]`; `reads` is what is read of each image, `slack` how many values after the end.
    fn new(input: &'a [T], [h, w, c]: [usize; 3], scale: Option<&[T]>, images: &std::ops::Range<usize>, reads: [std::ops::Range<isize>; 2], slack: usize) -> Self {
        let [ys, xs] = reads;
        let whole = &input[images.start * h * w * c..images.end * h * w * c];
        let inside = ys.start >= 0 && ys.end <= h as isize && xs.start >= 0 && xs.end <= w as isize;
        if inside && scale.is_none() && slack == 0 {
            return Window { copy: Buffer::default(), whole, image: h * w * c, row: w * c, origin: [0, 0] };
        }
        let (rows, row) = (ys.len(), xs.len() * c);
        let mut copy = Buffer::<T>::stale(images.len() * rows * row + slack);
        let used = copy.len() - slack;
        copy[used..].fill(T::ZERO);
        for (i, to) in copy[..used].chunks_exact_mut((rows * row).max(1)).enumerate() {
            let scale = scale.map(|s| &s[(images.start + i) * c..][..c]);
            fill_window(to, &whole[i * h * w * c..][..h * w * c], [h, w, c], [ys.clone(), xs.clone()], scale);
        }
        Window { copy, whole: &[], image: rows * row, row, origin: [ys.start, xs.start] }
    }

    fn values(&self) -> &[T] {
        if self.copy.is_empty() { self.whole } else { &self.copy }
    }

    /// Where the value of image `i` at `[y, x]`, channel 0 of `c`, lies.
    fn at(&self, i: usize, y: isize, x: isize, c: usize) -> usize {
        i * self.image + (y - self.origin[0]) as usize * self.row + (x - self.origin[1]) as usize * c
    }
}

/// A map `[N, input] -> [N, output]` that is a dense gather in each of its phases.
struct Map<'a> {
    n: usize,
    input: [usize; 3],
    output: [usize; 3],
    phases: &'a [Phase],
}

/// Panels of one phase: for each 16 (f64: 8) output channels, `[tap, input channel, output channel]`.
/// `fill(to, width, tap, output channels)` writes one tap of one panel: `width` values per input channel.
fn pack_panels<T: Scalar>(taps: usize, c_in: usize, c_out: usize, fill: impl Fn(&mut [T], usize, usize, std::ops::Range<usize>) + Sync) -> Buffer<T> {
    let values = taps * c_in;
    let full = c_out / panel_width::<T>() * panel_width::<T>();
    let last = if full < c_out { line_width::<T>(c_out - full) } else { 0 };
    let mut panels = Buffer::<T>::stale(values * (full + last));
    let one = |panel: usize, to: &mut [T]| {
        let channels = panel * panel_width::<T>()..((panel + 1) * panel_width::<T>()).min(c_out);
        let width = to.len() / values;
        if channels.len() < width {
            to.fill(T::ZERO);
        }
        for (tap, to) in to.chunks_exact_mut(c_in * width).enumerate() {
            fill(to, width, tap, channels.clone());
        }
    };
    if values > 0 {
        let size = values * panel_width::<T>();
        if panels.len() < PARALLEL_ELEMENTS {
            panels.chunks_mut(size).enumerate().for_each(|(i, to)| one(i, to));
        } else {
            panels.par_chunks_mut(size).enumerate().for_each(|(i, to)| one(i, to));
        }
    }
    panels
}

/// Writes `gain · column(j)`, `j < columns`, into the columns of `to`, whose rows have `width` values.
fn transpose_into<'a, T: Scalar>(to: &mut [T], width: usize, columns: usize, gain: T, column: impl Fn(usize) -> &'a [T]) {
    // Rows that are written for all columns before the next ones: they stay in the L1 cache.
    const ROWS: usize = 64;
    for (block, to) in to.chunks_mut(ROWS * width).enumerate() {
        for j in 0..columns {
            for (to, v) in to[j..].iter_mut().step_by(width).zip(&column(j)[block * ROWS..]) {
                *to = *v * gain;
            }
        }
    }
}

/// Cuts the summands of a window (`rows` kernel rows of `len` values, `pitch` apart) into passes.
fn passes(rows: usize, len: usize, pitch: usize) -> Vec<(usize, Vec<Run>)> {
    let total = rows * len;
    let n = total.div_ceil(PASS_VALUES).max(1);
    (0..n)
        .map(|i| {
            let (from, to) = (i * total / n, (i + 1) * total / n);
            let mut runs = Vec::new();
            let mut k = from;
            while k < to {
                let end = ((k / len + 1) * len).min(to);
                runs.push(Run { offset: k / len * pitch + k % len, len: end - k });
                k = end;
            }
            (from, runs)
        })
        .collect()
}

/// What a map reads beside weights, and what becomes of its sums.
struct Ends<'a, T> {
    x: &'a [T],
    /// `[N, C]` of the inputs, and of the outputs.
    scale_in: Option<&'a [T]>,
    scale_out: Option<&'a [T]>,
    then: Option<Finish<'a, T>>,
}

impl<T: Scalar> Ends<'_, T> {
    /// What follows the sums of whole pixels, while these are in the cache. `at`: the first element's place in the result.
    fn finish(&self, out: &mut [T], at: usize) {
        if let Some(finish) = &self.then {
            finish.in_place(out, at);
        }
    }
}

/// Sums over the windows of a map. `panels`: packed weights, one per phase.
struct Direct<'a, T: Scalar> {
    map: &'a Map<'a>,
    ends: &'a Ends<'a, T>,
    panels: &'a [Arc<HostBuffer<T>>],
}

impl<T: Scalar + Tiles> Direct<'_, T> {
    /// Writes the outputs of the map's phases that lie in `part`, whose pixels `out` holds.
    fn run(&self, isa: Isa, rows: &mut Rows, part: &Part, out: &mut Columns<T>) {
        let (w_out, c_out, c_in) = (self.map.output[1], self.map.output[2], self.map.input[2]);
        let mine = |p: &Phase| p.within(0, &part.rows);
        let phases = || self.map.phases.iter().zip(self.panels).filter(|(p, _)| p.count[1] > 0 && !mine(p).is_empty());
        let reads = phases().fold([0..0, 0..0], |[ys, xs], (p, _)| {
            let lines = mine(p);
            [hull(ys, p.reads(0, lines.start, lines.end)), hull(xs, p.reads(1, 0, p.count[1]))]
        });
        let window = Window::new(self.ends.x, self.map.input, self.ends.scale_in, &part.images, reads, 0);
        for (phase, panels) in phases() {
            rows.clear();
            for (i, sample) in part.images.clone().enumerate() {
                for my in mine(phase) {
                    let to = (i * part.rows.len() + phase.first[0] + my * phase.every[0] - part.rows.start) * w_out + phase.first[1];
                    let y = phase.start[0] + (my * phase.stride[0]) as isize;
                    // A phase without taps reads nothing, and a part may have no other.
                    let from = match phase.taps.contains(&0) {
                        true => [0, 0],
                        false => [window.at(i, y, phase.start[1], c_in), phase.stride[1] * c_in],
                    };
                    rows.push_line(phase.count[1], from, [to, phase.every[1]], sample * c_out);
                }
            }
            let values = phase.taps[0] * phase.taps[1] * c_in;
            let passes = passes(phase.taps[0], phase.taps[1] * c_in, window.row);
            for (i, (from, runs)) in passes.iter().enumerate() {
                for column in (0..out.count()).step_by(panel_width::<T>()) {
                    let width = panel_width::<T>().min(out.count() - column);
                    let panel = &panels[values * (out.first() + column) + from * line_width::<T>(width)..];
                    let scale = self.ends.scale_out.filter(|_| i + 1 == passes.len());
                    tile::gather(isa, &Gather { input: window.values(), rows, runs, panel, accumulate: i > 0, scale }, out, column, width);
                }
            }
        }
    }
}

/// Runs a map whose packed weights are `panels`, one per phase.
fn run_map<T: Scalar + Tiles>(map: &Map, ends: &Ends<T>, panels: &[Arc<HostBuffer<T>>]) -> Buffer<T> {
    let [h_out, w_out, c_out] = map.output;
    let c_in = map.input[2];
    let mut out = Buffer::<T>::stale(map.n * h_out * w_out * c_out);
    if out.is_empty() {
        return out;
    }
    let isa = Isa::detect();
    let image_macs = map.phases.iter().map(Phase::products).sum::<usize>() * c_in * c_out;
    let macs = map.n * image_macs;
    let row_macs = image_macs.div_ceil(h_out).max(1);
    let by_work = (macs / TASKS).max(TASK_MACS).div_ceil(row_macs);
    let by_cache = TASK_INPUT_VALUES.div_ceil(w_out * c_in.clamp(1, PASS_VALUES));
    let parts = parts(map.n, h_out, by_work.min(by_cache));
    // When pixels alone make too few tasks, channels are cut as well.
    let groups = if macs < SERIAL_MACS { 1 } else { (TASKS / 2 / parts.len()).clamp(1, (macs / parts.len() / TASK_MACS).max(1)) };
    let per_group = c_out.div_ceil(panel_width::<T>()).div_ceil(groups) * panel_width::<T>();
    let values = parts.iter().map(|part| part.images.len() * part.rows.len() * w_out * c_out);
    let tasks = parts.iter().zip(pieces(&mut out, values)).flat_map(|(part, mine)| Columns::split(mine, c_out, per_group).map(move |columns| (part, columns)));
    let tasks: Vec<_> = tasks.collect();
    let direct = Direct { map, ends, panels };
    let one = |rows: &mut Rows, (part, mut out): (&Part, Columns<T>)| {
        direct.run(isa, rows, part, &mut out);
        if let Some(pixels) = out.whole_pixels() {
            ends.finish(pixels, (part.images.start * h_out + part.rows.start) * w_out * c_out);
        }
    };
    if macs < SERIAL_MACS {
        let mut rows = Rows::default();
        tasks.into_iter().for_each(|t| one(&mut rows, t));
    } else {
        tasks.into_par_iter().for_each_init(Rows::default, one);
    }
    if let Some(finish) = ends.then.as_ref().filter(|_| per_group < c_out) {
        finish.all_in_place(&mut out);
    }
    out
}

fn slice_of<T: Scalar>(t: Option<&Tensor>) -> Option<&[T]> {
    t.map(Tensor::as_slice::<T>)
}

/// Taps of the residue `r` modulo `stride`.
fn taps_of([kh, kw]: [usize; 2], stride: [usize; 2], r: [usize; 2]) -> [usize; 2] {
    [(kh, 0), (kw, 1)].map(|(k, axis)| k.saturating_sub(r[axis]).div_ceil(stride[axis]))
}

/// A weight `[C_out, k_h, k_w, C_in]` as the loops read it: times the gain, in panels, transformed.
struct Weights<'a> {
    w: &'a Tensor,
    gain: f64,
    /// Seen from its outputs: sums run over `C_out`, and taps are turned around.
    turned: bool,
}

impl Weights<'_> {
    /// What `make` makes. Of few weights it is kept with them: to pack and transform those of a small layer takes as long as its
    /// products, and each is asked for by every part of a batch, by G's step and by D's. Of many it would be most of the memory.
    fn kept<T: Scalar>(&self, what: &'static str, of: [usize; 4], make: impl FnOnce() -> Buffer<T>) -> Arc<HostBuffer<T>> {
        if self.w.dim(0) * self.w.dim(3) > MANY_WEIGHTS {
            return Arc::new(HostBuffer::new(make()));
        }
        self.w.derived(what, &[&of[..], &[self.turned as usize, self.gain.to_bits() as usize]].concat(), make)
    }

    /// Panels of the taps of the residue `r` modulo `stride`, descending where the weight is turned.
    fn panels<T: Scalar>(&self, stride: [usize; 2], r: [usize; 2]) -> Arc<HostBuffer<T>> {
        self.kept("panels", [stride[0], stride[1], r[0], r[1]], || self.pack(stride, r))
    }

    fn pack<T: Scalar>(&self, stride: [usize; 2], r: [usize; 2]) -> Buffer<T> {
        let (ws, gain) = (self.w.as_slice::<T>(), T::from_f64(self.gain));
        let &[co, kh, kw, ci] = self.w.shape() else { unreachable!("the op has checked the rank") };
        let [ty, tx] = taps_of([kh, kw], stride, r);
        if self.turned {
            return pack_panels::<T>(ty * tx, co, ci, |to, width, tap, inputs| {
                let t = [(ty - 1 - tap / tx) * stride[0] + r[0], (tx - 1 - tap % tx) * stride[1] + r[1]];
                for (o, to) in to.chunks_exact_mut(width).enumerate() {
                    for (to, v) in to.iter_mut().zip(&ws[((o * kh + t[0]) * kw + t[1]) * ci..][inputs.clone()]) {
                        *to = *v * gain;
                    }
                }
            });
        }
        pack_panels::<T>(ty * tx, ci, co, |to, width, tap, outputs| {
            transpose_into(to, width, outputs.len(), gain, |j| &ws[((outputs.start + j) * ty * tx + tap) * ci..][..ci]);
        })
    }

    /// The 3×3 taps transformed for Winograd's products.
    fn transformed<T: Scalar + Tiles>(&self, isa: Isa, of: Winograd) -> Arc<HostBuffer<T>> {
        let (sums, results) = if self.turned { (self.w.dim(0), self.w.dim(3)) } else { (self.w.dim(3), self.w.dim(0)) };
        self.kept("transformed", [of as usize, 0, 0, 0], || {
            let panels = self.pack([1, 1], [0, 0]);
            let transformed = winograd::transform_weights(isa, of, &panels, sums, results);
            transformed
        })
    }
}

/// Runs a map by the weights of its phases, which are residues modulo a stride.
fn run<T: Scalar + Tiles>(map: &Map, residues: &[([usize; 2], [usize; 2])], ends: &Ends<T>, weights: &Weights) -> Buffer<T> {
    let panels = || -> Vec<_> { residues.iter().map(|(stride, r)| weights.panels::<T>(*stride, *r)).collect() };
    match Scheme::of(map) {
        Some(scheme) => winograd::run_map(scheme, map, ends, weights, &panels),
        None => run_map(map, ends, &panels()),
    }
}

pub fn conv2d<T: Scalar + Tiles>(x: &Tensor, w: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent, then: Epilogue<Tensor>) -> Tensor {
    let phase = Phase { first: [0, 0], every: [1, 1], count: [e.g[0], e.g[1]], start: spec.padding.map(|p| -(p as isize)), stride: spec.stride, taps: e.k };
    let map = Map { n: e.n, input: e.x, output: e.g, phases: &[phase] };
    let weights = Weights { w, gain: spec.gain, turned: false };
    let then = then.is_some().then(|| Finish::new(e.g[2], then));
    let ends = Ends { x: x.as_slice::<T>(), scale_in: slice_of(a), scale_out: slice_of(b), then };
    Tensor::from_buffer(&[e.n, e.g[0], e.g[1], e.g[2]], run(&map, &[([1, 1], [0, 0])], &ends, &weights))
}

pub fn conv2d_transpose<T: Scalar + Tiles>(g: &Tensor, w: &Tensor, b: Option<&Tensor>, a: Option<&Tensor>, spec: Conv2d, e: Extent) -> Tensor {
    let mut phases = Vec::with_capacity(spec.stride[0] * spec.stride[1]);
    let mut residues = Vec::with_capacity(phases.capacity());
    for ry in 0..spec.stride[0] {
        for rx in 0..spec.stride[1] {
            // Outputs q with (q + padding) mod stride = residue: with q + padding = stride · m + residue they read
            // g[m − u] for the taps t = stride · u + residue, so ascending addresses are descending taps.
            let r = [ry, rx];
            let taps = taps_of(e.k, spec.stride, r);
            let per_axis = |axis: usize| {
                let (s, p) = (spec.stride[axis], spec.padding[axis]);
                let first = (r[axis] + s - p % s) % s;
                let m = ((first + p) / s) as isize;
                (first, e.x[axis].saturating_sub(first).div_ceil(s), m - taps[axis] as isize + 1)
            };
            let ((fy, ny, sy), (fx, nx, sx)) = (per_axis(0), per_axis(1));
            residues.push((spec.stride, r));
            phases.push(Phase { first: [fy, fx], every: spec.stride, count: [ny, nx], start: [sy, sx], stride: [1, 1], taps });
        }
    }
    let map = Map { n: e.n, input: e.g, output: e.x, phases: &phases };
    let weights = Weights { w, gain: spec.gain, turned: true };
    let ends = Ends { x: g.as_slice::<T>(), scale_in: slice_of(b), scale_out: slice_of(a), then: None };
    Tensor::from_buffer(&[e.n, e.x[0], e.x[1], e.x[2]], run(&map, &residues, &ends, &weights))
}

/// Copies channels `first..first + count` of image rows (`[sample, row]`) of `g` into panels of `MR` channels,
/// `[panel, pixel, MR]`, scaled by `scale` `[N, C_out]`. Channels beyond `count` are zero.
fn pack_grad<T: Scalar, const MR: usize>(to: &mut [T], g: &[T], rows: &[(usize, usize)], e: &Extent, first: usize, count: usize, scale: Option<&[T]>) {
    let [h_out, w_out, c_out] = e.g;
    for (panel, to) in to.chunks_exact_mut(rows.len() * w_out * MR).enumerate() {
        let from = first + panel * MR;
        let used = MR.min(count - panel * MR);
        for (&(sample, y), to) in rows.iter().zip(to.chunks_exact_mut(w_out * MR)) {
            let mut scales = [T::ONE; MR];
            if let Some(s) = scale {
                scales[..used].copy_from_slice(&s[sample * c_out + from..][..used]);
            }
            let row = &g[(sample * h_out + y) * w_out * c_out..][..w_out * c_out];
            for (to, pixel) in to.as_chunks_mut::<MR>().0.iter_mut().zip(row.chunks_exact(c_out)) {
                if let Some(values) = pixel[from..].first_chunk::<MR>().filter(|_| used == MR) {
                    *to = std::array::from_fn(|r| values[r] * scales[r]);
                } else {
                    *to = [T::ZERO; MR];
                    for r in 0..used {
                        to[r] = pixel[from + r] * scales[r];
                    }
                }
            }
        }
    }
}

/// The sum of partial results of `len` values each, which lie one after the other.
fn sum_of_parts<T: Scalar>(partial: Buffer<T>, len: usize) -> Buffer<T> {
    let mut sum = Buffer::<T>::stale(len);
    for_chunks(&mut sum, 1 << 12, |at, sum| {
        sum.copy_from_slice(&partial[at..][..sum.len()]);
        for later in partial.chunks_exact(len).skip(1) {
            for (s, v) in sum.iter_mut().zip(&later[at..]) {
                *s += *v;
            }
        }
    });
    sum
}

pub fn conv2d_weight_grad<T: Scalar + Tiles>(x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Tensor {
    let (mut sums, gain) = (weight_grad_sums::<T>(x, g, a, b, spec, e), T::from_f64(spec.gain));
    if gain != T::ONE {
        for_chunks(&mut sums, PARALLEL_ELEMENTS / 2, |_, sums: &mut [T]| sums.iter_mut().for_each(|v| *v *= gain));
    }
    Tensor::from_buffer(&[e.g[2], e.k[0], e.k[1], e.x[2]], sums)
}

/// The weight gradient without its gain.
fn weight_grad_sums<T: Scalar + Tiles>(x: &Tensor, g: &Tensor, a: Option<&Tensor>, b: Option<&Tensor>, spec: Conv2d, e: Extent) -> Buffer<T> {
    let isa = Isa::detect();
    let (xs, gs, a, b) = (x.as_slice::<T>(), g.as_slice::<T>(), slice_of::<T>(a), slice_of::<T>(b));
    let ([h_out, w_out, c_out], c_in) = (e.g, e.x[2]);
    let line = e.k[1] * c_in;
    let values = e.k[0] * line;
    let (size, pixels) = (c_out * values, e.n * h_out * w_out);
    if size == 0 || pixels == 0 {
        return Buffer::<T>::zeros(size);
    }
    if let Some(scheme) = winograd::of_weight_grad(spec.stride, &e) {
        return winograd::weight_grad(scheme, xs, gs, a, b, spec.padding, &e);
    }
    let macs = pixels * size;
    // Few weights: pixels are cut and partial sums added. Many weights: output channels are cut instead, because
    // adding partial sums of many weights would cost more than it spreads.
    let chunks = if macs < SERIAL_MACS { 1 } else { (PARTIAL_VALUES / size).min(pixels / CHUNK_PIXELS).clamp(1, TASKS) };
    let groups = if macs < SERIAL_MACS { 1 } else { c_out.div_ceil(GROUP_CHANNELS).min((TASKS / chunks).max(1)) };
    let group = c_out.div_ceil(groups).next_multiple_of(GROUP_CHANNELS / 4);
    let parts = parts(e.n, h_out, PART_PIXELS.min(pixels.div_ceil(chunks)).div_ceil(w_out));
    let per_chunk = parts.len().div_ceil(chunks);
    let chunks = parts.len().div_ceil(per_chunk);
    let mut partial = Buffer::<T>::stale(chunks * size);
    let mr = outer_rows(isa);
    let slack = if line.is_multiple_of(panel_width::<T>()) { 0 } else { panel_width::<T>() };

    let one = |runs: &mut Pixels, parts: &[Part], first: usize, out: &mut [T]| {
        let count = out.len() / values;
        let mut accumulate = false;
        for part in parts {
            let reads = |axis: usize, from: usize, to: usize| {
                let at = |i: usize| (i * spec.stride[axis]) as isize - spec.padding[axis] as isize;
                at(from)..at(to - 1) + e.k[axis] as isize
            };
            let window = Window::new(xs, e.x, a, &part.images, [reads(0, part.rows.start, part.rows.end), reads(1, 0, w_out)], slack);
            // Pixels are walked in blocks whose input stays in the L1 cache while all tiles of a kernel row pass.
            let rows_per_block = (BLOCK_PIXELS / w_out).max(1);
            let all: Vec<(usize, usize)> = part.images.clone().flat_map(|i| part.rows.clone().map(move |y| (i, y))).collect();
            for block in all.chunks(rows_per_block) {
                runs.clear(spec.stride[1] * c_in, mr);
                let mut grad = Buffer::<T>::stale(count.div_ceil(mr) * mr * block.len() * w_out);
                match mr {
                    2 => pack_grad::<T, 2>(&mut grad, gs, block, &e, first, count, b),
                    6 => pack_grad::<T, 6>(&mut grad, gs, block, &e, first, count, b),
                    _ => pack_grad::<T, 12>(&mut grad, gs, block, &e, first, count, b),
                }
                for (row, &(i, y)) in block.iter().enumerate() {
                    let top = (y * spec.stride[0]) as isize - spec.padding[0] as isize;
                    runs.push(window.at(i - part.images.start, top, -(spec.padding[1] as isize), c_in), row * w_out * mr, w_out);
                }
                for ty in 0..e.k[0] {
                    for j in (0..line).step_by(panel_width::<T>()) {
                        let width = panel_width::<T>().min(line - j);
                        for (tile, grad) in grad.chunks_exact(mr * block.len() * w_out).enumerate() {
                            let rows = mr.min(count - tile * mr);
                            let job = Outer { input: &window.values()[ty * window.row + j..], pixels: runs, grad, accumulate, pitch: values, rows, width };
                            tile::outer(isa, &job, &mut out[tile * mr * values + ty * line + j..]);
                        }
                    }
                }
                accumulate = true;
            }
        }
    };
    let mut tasks = Vec::with_capacity(chunks * groups);
    for (parts, partial) in parts.chunks(per_chunk).zip(partial.chunks_exact_mut(size)) {
        for (i, out) in partial.chunks_mut(group * values).enumerate() {
            tasks.push((parts, i * group, out));
        }
    }
    if macs < SERIAL_MACS {
        let mut runs = Pixels::default();
        tasks.into_iter().for_each(|(parts, first, out)| one(&mut runs, parts, first, out));
    } else {
        tasks.into_par_iter().for_each_init(Pixels::default, |runs, (parts, first, out)| one(runs, parts, first, out));
    }
    if chunks == 1 { partial } else { sum_of_parts(partial, size) }
}
