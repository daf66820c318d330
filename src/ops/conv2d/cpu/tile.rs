//! Register tiles of the convolution family.
//!
//! The kernels are written once over registers (`device::cpu::lanes`), compiled per instruction set and chosen at run time, so one
//! binary uses what the machine has. Bounds are asserted by the safe functions at the end of this file.

use std::hint::black_box;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use crate::device::cpu::lanes::{Lanes, Plain};
use crate::device::cpu::{Element, Isa};

/// Width of a weight panel: two AVX2 registers.
pub const fn panel_width<T>() -> usize {
    64 / size_of::<T>()
}

/// One output pixel: where its window starts in the input, its index in the output, where its sample's scales start.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    input: usize,
    output: usize,
    scale: usize,
}

/// The output pixels of one task, with the bounds of what they address.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<Row>,
    input_end: usize,
    output_end: usize,
    scale_end: usize,
}

impl Rows {
    /// `n` pixels of one sample: the first one's place and the distance to the next.
    pub fn push_line(&mut self, n: usize, [input, input_step]: [usize; 2], [output, output_step]: [usize; 2], scale: usize) {
        let Some(last) = n.checked_sub(1) else { return };
        self.rows.extend((0..n).map(|i| Row { input: input + i * input_step, output: output + i * output_step, scale }));
        self.input_end = self.input_end.max(input + last * input_step + 1);
        self.output_end = self.output_end.max(output + last * output_step + 1);
        self.scale_end = self.scale_end.max(scale + 1);
    }
    pub fn clear(&mut self) {
        *self = Rows { rows: std::mem::take(&mut self.rows), ..Rows::default() };
        self.rows.clear();
    }
}

/// `len` adjacent input values from `offset` after the start of a pixel's window.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub offset: usize,
    pub len: usize,
}

/// A range of channels of a channels-last output: exclusive, though its values do not lie together.
pub struct Columns<'a, T> {
    start: *mut T,
    pixels: usize,
    channels: usize,
    first: usize,
    count: usize,
    memory: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Columns` is the only way to its elements while it lives: `split` hands out disjoint ranges of channels
// of memory that it borrows exclusively.
unsafe impl<T: Send> Send for Columns<'_, T> {}

impl<'a, T: Element> Columns<'a, T> {
    /// Cuts `out` (`[pixels, channels]`) into ranges of `per_part` channels.
    pub fn split(out: &'a mut [T], channels: usize, per_part: usize) -> impl Iterator<Item = Columns<'a, T>> {
        let (start, pixels) = (out.as_mut_ptr(), out.len() / channels);
        (0..channels).step_by(per_part).map(move |first| Columns { start, pixels, channels, first, count: per_part.min(channels - first), memory: PhantomData })
    }
    pub fn first(&self) -> usize {
        self.first
    }
    pub fn count(&self) -> usize {
        self.count
    }
    /// The elements, if the range is all channels.
    pub fn whole_pixels(&mut self) -> Option<&mut [T]> {
        // SAFETY: all channels of the pixels are the slice that `split` took, to which nothing else has a way.
        (self.count == self.channels).then(|| unsafe { std::slice::from_raw_parts_mut(self.start, self.pixels * self.channels) })
    }
}

/// What `gather` computes: `out[row, j] (+)= Σ_k input[row's window, k] · panel[k, j]`, times `scale` when finished.
pub struct Gather<'a, T> {
    pub input: &'a [T],
    pub rows: &'a Rows,
    pub runs: &'a [Run],
    /// `[Σ run lengths, panel_width]`
    pub panel: &'a [T],
    /// Adds to what `out` holds.
    pub accumulate: bool,
    /// `[samples, channels]`
    pub scale: Option<&'a [T]>,
}

/// Repeats `$body` with the constant `$i` from 0 up to `$limit` (at most 12). Sums indexed by anything but constants
/// would be kept in memory, whenever the compiler prefers a loop.
macro_rules! unroll {
    ($limit:expr, $i:ident => $body:block) => {
        unroll!(@ $limit, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@ $limit:expr, $i:ident, $body:block, $($n:literal)*) => {
        $(if $n < $limit {
            const $i: usize = $n;
            $body
        })*
    };
}

/// Adds one run's products to the sums of a tile.
///
/// # Safety
/// `run` after each window is inside the input, the panel has a line per value; the instruction set of `L` is present.
#[inline(always)]
unsafe fn multiply<L: Lanes, const MR: usize, const NV: usize>(windows: &[*const L::Item; MR], run: &Run, panel: *const L::Item, mut sum: [[L; NV]; MR]) -> [[L; NV]; MR] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut line = [L::splat(L::Item::ZERO); NV];
        let mut panel = panel;
        for k in run.offset..run.offset + run.len {
            unroll!(NV, J => { line[J] = L::load(panel.add(J * L::COUNT)); });
            unroll!(MR, R => {
                let v = L::splat(*windows[R].add(k));
                unroll!(NV, J => { sum[R][J] = v.mul_add(line[J], sum[R][J]); });
            });
            panel = panel.add(NV * L::COUNT);
        }
        sum
    }
}

/// How `n` rows are cut into tiles: how many have `mr` rows, before those that have `tail`.
#[inline(always)]
const fn whole_tiles(n: usize, mr: usize, tail: usize) -> usize {
    let (whole, left) = (n / mr, n % mr);
    match left {
        0 => whole,
        // Two short tiles instead of a whole one and a part of one.
        _ if left + mr <= 2 * tail && whole > 0 => whole - 1,
        _ if left <= tail => whole,
        _ => whole + 1,
    }
}

/// # Safety
/// The bounds that `gather` asserts hold, and the instruction set of `L` is present.
#[inline(always)]
unsafe fn gather_body<L: Lanes, const MR: usize, const TAIL: usize, const NV: usize>(job: &Gather<L::Item>, out: &mut Columns<L::Item>, column: usize, width: usize) {
    let rows = &job.rows.rows[..];
    let (whole, tail) = rows.split_at((whole_tiles(rows.len(), MR, TAIL) * MR).min(rows.len()));
    for tile in whole.chunks(MR) {
        // SAFETY: the caller's contract.
        unsafe { gather_tile::<L, MR, NV>(job, tile, out, column, width) }
    }
    for tile in tail.chunks(TAIL) {
        // SAFETY: as above.
        unsafe { gather_tile::<L, TAIL, NV>(job, tile, out, column, width) }
    }
}

/// # Safety
/// As `gather_body`; `tile` are up to `MR` of the job's rows.
#[inline(always)]
unsafe fn gather_tile<L: Lanes, const MR: usize, const NV: usize>(job: &Gather<L::Item>, tile: &[Row], out: &mut Columns<L::Item>, column: usize, width: usize) {
    // SAFETY: every window start plus every run end is inside `input`, the panel holds one line per value; the
    // pixels and channels written are inside the exclusive `Columns`, and `scale` covers the same channels.
    unsafe {
        let mut sum = [[L::splat(L::Item::ZERO); NV]; MR];
        let mut windows = [job.input.as_ptr(); MR];
        // A short tile repeats its last row; the repeats are computed and dropped.
        unroll!(MR, R => { windows[R] = job.input.as_ptr().add(tile[R.min(tile.len() - 1)].input); });
        if let [run] = job.runs {
            // Apart, because sums of several runs are kept in memory between them.
            sum = multiply(&windows, run, job.panel.as_ptr(), sum);
        } else {
            let mut panel = job.panel.as_ptr();
            for run in job.runs {
                sum = multiply(&windows, run, panel, sum);
                panel = panel.add(run.len * NV * L::COUNT);
            }
        }
        if width == NV * L::COUNT {
            unroll!(MR, R => {
                if let Some(row) = tile.get(R) {
                    let to = out.start.add(row.output * out.channels + out.first + column);
                    let scale = job.scale.map(|s| s.as_ptr().add(row.scale + out.first + column));
                    unroll!(NV, J => { finish(sum[R][J], to.add(J * L::COUNT), job.accumulate, scale.map(|s| s.add(J * L::COUNT))); });
                }
            });
            return;
        }
        unroll!(MR, R => {
            if let Some(row) = tile.get(R) {
                let to = out.start.add(row.output * out.channels + out.first + column);
                let scale = job.scale.map(|s| s.as_ptr().add(row.scale + out.first + column));
                unroll!(NV, J => {
                    if J * L::COUNT < width {
                        finish_some(sum[R][J], to.add(J * L::COUNT), width - J * L::COUNT, job.accumulate, scale.map(|s| s.add(J * L::COUNT)));
                    }
                });
            }
        });
    }
}

/// What `product` computes: `out[row, j] = Σ_k input[row, k] · panels[k, j]`, in passes of up to `pass` summands.
pub struct Product<'a, T> {
    /// Rows of `depth` values, `pitch` apart.
    pub input: &'a [T],
    pub rows: usize,
    pub depth: usize,
    pub pitch: usize,
    /// For each `panel_width` columns `[depth, width]`, so many values apart.
    pub panels: &'a [T],
    pub panel_pitch: usize,
    pub pass: usize,
    /// Of `out`, whose rows lie one after the other.
    pub columns: usize,
}

/// One panel of a product.
///
/// # Safety
/// The bounds that `product` asserts hold, `width` columns from `column` on are of its last panel or `NV` registers, and the
/// instruction set of `L` is present.
#[inline(always)]
unsafe fn product_panel<L: Lanes, const MR: usize, const TAIL: usize, const NV: usize>(job: &Product<L::Item>, out: *mut L::Item, column: usize, width: usize) {
    let whole = whole_tiles(job.rows, MR, TAIL) * MR;
    let passes = job.depth.div_ceil(job.pass);
    for pass in 0..passes {
        let [offset, end] = [pass, pass + 1].map(|i| i * job.depth / passes);
        let run = Run { offset, len: end - offset };
        // SAFETY: the caller's contract: a panel has a line per value, and rows lie inside of the input and the output.
        unsafe {
            let panel = job.panels.as_ptr().add(column / panel_width::<L::Item>() * job.panel_pitch + offset * NV * L::COUNT);
            for row in (0..whole).step_by(MR) {
                product_tile::<L, MR, NV>(job, &run, panel, out.add(column), row, width);
            }
            for row in (whole..job.rows).step_by(TAIL) {
                product_tile::<L, TAIL, NV>(job, &run, panel, out.add(column), row, width);
            }
        }
    }
}

/// # Safety
/// As `product_panel`; `panel` has the lines of `run`, and `out` is where row 0 of its columns lies.
#[inline(always)]
unsafe fn product_tile<L: Lanes, const MR: usize, const NV: usize>(job: &Product<L::Item>, run: &Run, panel: *const L::Item, out: *mut L::Item, row: usize, width: usize) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut windows = [job.input.as_ptr(); MR];
        // A short tile repeats its last row; the repeats are computed and dropped.
        unroll!(MR, R => { windows[R] = job.input.as_ptr().add((row + R).min(job.rows - 1) * job.pitch); });
        let sum = multiply(&windows, run, panel, [[L::splat(L::Item::ZERO); NV]; MR]);
        let to = out.add(row * job.columns);
        if row + MR <= job.rows && width == NV * L::COUNT && run.offset == 0 {
            unroll!(MR, R => {
                unroll!(NV, J => { sum[R][J].store(to.add(R * job.columns + J * L::COUNT)); });
            });
            return;
        }
        unroll!(MR, R => {
            if row + R < job.rows {
                unroll!(NV, J => {
                    if J * L::COUNT < width {
                        finish_some(sum[R][J], to.add(R * job.columns + J * L::COUNT), width - J * L::COUNT, run.offset > 0, None);
                    }
                });
            }
        });
    }
}

/// Writes a register of sums, after adding what is there and scaling.
///
/// # Safety
/// `L::COUNT` elements are valid at `to` and `scale`; the instruction set of `L` is present.
#[inline(always)]
unsafe fn finish<L: Lanes>(sum: L, to: *mut L::Item, accumulate: bool, scale: Option<*const L::Item>) {
    // SAFETY: the caller's contract.
    unsafe {
        let sum = if accumulate { sum.add(L::load(to)) } else { sum };
        let sum = scale.map_or(sum, |s| sum.mul(L::load(s)));
        sum.store(to);
    }
}

/// A register, or what is left of one.
///
/// # Safety
/// `left` elements, or `L::COUNT` where these are fewer, are valid at `from`; `left` is not 0; the instruction set of `L` is
/// present.
#[inline(always)]
unsafe fn load_up_to<L: Lanes>(from: *const L::Item, left: usize) -> L {
    // SAFETY: the caller's contract.
    unsafe { if left >= L::COUNT { L::load(from) } else { L::load_some(from, left) } }
}

/// `finish` where perhaps less than a register is left.
///
/// # Safety
/// `left` elements, or `L::COUNT` where these are fewer, are valid at `to` and `scale`; `left` is not 0; the instruction set
/// of `L` is present.
#[inline(always)]
unsafe fn finish_some<L: Lanes>(sum: L, to: *mut L::Item, left: usize, accumulate: bool, scale: Option<*const L::Item>) {
    // SAFETY: the caller's contract.
    unsafe {
        if left >= L::COUNT {
            return finish(sum, to, accumulate, scale);
        }
        let sum = if accumulate { sum.add(L::load_some(to, left)) } else { sum };
        let sum = scale.map_or(sum, |s| sum.mul(L::load_some(s, left)));
        sum.store_some(to, left);
    }
}

/// `len` neighbouring pixels: where the first one's window and its gradients start.
#[derive(Clone, Copy, Debug)]
struct PixelRun {
    input: usize,
    grad: usize,
    len: usize,
}

/// The pixels that `outer` sums over, in runs: windows lie `input_step` values apart, gradients `grad_step`.
#[derive(Debug, Default)]
pub struct Pixels {
    runs: Vec<PixelRun>,
    input_step: usize,
    grad_step: usize,
    /// After the start of the last window, and of the last gradients.
    input_end: usize,
    grad_end: usize,
}

impl Pixels {
    pub fn clear(&mut self, input_step: usize, grad_step: usize) {
        self.runs.clear();
        *self = Pixels { runs: std::mem::take(&mut self.runs), input_step, grad_step, ..Pixels::default() };
    }
    pub fn push(&mut self, input: usize, grad: usize, len: usize) {
        if len == 0 {
            return;
        }
        self.input_end = self.input_end.max(input + (len - 1) * self.input_step + 1);
        self.grad_end = self.grad_end.max(grad + (len - 1) * self.grad_step + 1);
        match self.runs.last_mut() {
            Some(last) if last.input + last.len * self.input_step == input && last.grad + last.len * self.grad_step == grad => last.len += len,
            _ => self.runs.push(PixelRun { input, grad, len }),
        }
    }
}

/// What `outer` computes: `out[r, j] (+)= Σ_pixels grad[pixel, r] · input[window of pixel, j]`.
pub struct Outer<'a, T> {
    pub input: &'a [T],
    pub pixels: &'a Pixels,
    /// A multiple of `outer_rows` values is read per pixel, whatever `rows` is; so are whole panels of `input`.
    pub grad: &'a [T],
    /// Adds to what `out` holds.
    pub accumulate: bool,
    /// Distance between rows of `out`.
    pub pitch: usize,
    pub rows: usize,
    pub width: usize,
}

/// # Safety
/// The bounds that `outer` asserts hold, and the instruction set of `L` is present.
#[inline(always)]
unsafe fn outer_body<L: Lanes, const MR: usize, const TAIL: usize, const NV: usize>(job: &Outer<L::Item>, out: &mut [L::Item]) {
    let whole = whole_tiles(job.rows, MR, TAIL) * MR;
    for column in (0..job.width).step_by(NV * L::COUNT) {
        for row in (0..whole).step_by(MR) {
            // SAFETY: the caller's contract; the tile begins inside of `out`.
            unsafe { outer_tile::<L, MR, NV>(job, row, column, out.as_mut_ptr().add(row * job.pitch + column)) }
        }
        for row in (whole..job.rows).step_by(TAIL) {
            // SAFETY: as above.
            unsafe { outer_tile::<L, TAIL, NV>(job, row, column, out.as_mut_ptr().add(row * job.pitch + column)) }
        }
    }
}

/// # Safety
/// As `outer_body`; `row` and `column` are of the job's, and `to` is where they lie.
#[inline(always)]
unsafe fn outer_tile<L: Lanes, const MR: usize, const NV: usize>(job: &Outer<L::Item>, row: usize, column: usize, to: *mut L::Item) {
    let (rows, width) = (job.rows - row, job.width - column);
    // SAFETY: the last window of every run ends inside `input`, `grad` holds whole tiles of rows for each pixel, and `out`
    // the rows and columns that are written.
    unsafe {
        let mut sum = [[L::splat(L::Item::ZERO); NV]; MR];
        let mut line = [L::splat(L::Item::ZERO); NV];
        for run in &job.pixels.runs {
            let mut window = job.input.as_ptr().add(run.input + column);
            let mut grad = job.grad.as_ptr().add(run.grad + row);
            for _ in 0..run.len {
                unroll!(NV, J => { line[J] = L::load(window.add(J * L::COUNT)); });
                unroll!(MR, R => {
                    let v = L::splat(*grad.add(R));
                    unroll!(NV, J => { sum[R][J] = v.mul_add(line[J], sum[R][J]); });
                });
                // Wrapping: after the last pixel the pointers may leave their slices; they are not read there.
                window = window.wrapping_add(job.pixels.input_step);
                grad = grad.wrapping_add(job.pixels.grad_step);
            }
        }
        if width >= NV * L::COUNT {
            unroll!(MR, R => {
                if R < rows {
                    unroll!(NV, J => { finish(sum[R][J], to.add(R * job.pitch + J * L::COUNT), job.accumulate, None); });
                }
            });
            return;
        }
        unroll!(MR, R => {
            if R < rows {
                unroll!(NV, J => {
                    if J * L::COUNT < width {
                        finish_some(sum[R][J], to.add(R * job.pitch + J * L::COUNT), width - J * L::COUNT, job.accumulate, None);
                    }
                });
            }
        });
    }
}

/// The transforms of Winograd's minimal filtering (Lavin & Gray 2016, §4.3): `y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ d B)] A` for the
/// window `d` and the outputs `y` of one tile, and what its derivative by `w` adds, `Gᵀ [(A g Aᵀ) ⊙ (Bᵀ d B)] G`.
///
/// Windows one pixel apart: F(4×4, 3×3). The points are 0, 1, −1, 1/2, −2 and ∞, whose rounding error is half of that of
/// 0, ±1, ±2 and ∞ (Barabasz et al. 2020 search for such points).
///
/// Windows two pixels apart (`Strided`): of each axis, taps 0 and 2 meet every other input, which is F(4, 2) with the
/// points 0, 1, −1, 1/2 and ∞; tap 1 meets those between, one product for each output. Of the 9 products the last 4 have
/// the same weight, so there are 6 transformed weights. `Spread` is the transposed map: even outputs see taps 0 and 2,
/// odd ones tap 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winograd {
    /// `G w Gᵀ`, 3×3 to 6×6.
    Weight,
    /// `Bᵀ d B`, 6×6 to 6×6.
    Input,
    /// `Aᵀ m A`, 6×6 to 4×4.
    Output,
    /// `A g Aᵀ`, 4×4 to 6×6.
    Grad,
    /// `Gᵀ p G`, 6×6 to 3×3.
    WeightGrad,
    /// 3×3 to 6×6.
    StridedWeight,
    /// 9×9 to 9×9.
    StridedInput,
    /// 9×9 to 4×4.
    StridedOutput,
    /// 4×4 to 9×9.
    StridedGrad,
    /// 6×6 to 3×3.
    StridedWeightGrad,
    /// 5×5 to 9×9.
    SpreadInput,
    /// 9×9 to 8×8.
    SpreadOutput,
}

impl Winograd {
    /// Values per axis, before and after.
    pub const fn sizes(self) -> [usize; 2] {
        match self {
            Winograd::Weight | Winograd::StridedWeight => [3, 6],
            Winograd::Input => [6, 6],
            Winograd::Output => [6, 4],
            Winograd::Grad => [4, 6],
            Winograd::WeightGrad | Winograd::StridedWeightGrad => [6, 3],
            Winograd::StridedInput => [9, 9],
            Winograd::StridedOutput => [9, 4],
            Winograd::StridedGrad => [4, 9],
            Winograd::SpreadInput => [5, 9],
            Winograd::SpreadOutput => [9, 8],
        }
    }
}

/// One tile's transform: channel vectors at `y · pitch[0] + x · pitch[1]`.
pub struct Transform<'a, T> {
    pub of: Winograd,
    pub from: &'a [T],
    /// Where in `from` the vector of `y = x = 0` lies, or would lie.
    pub first: isize,
    pub from_pitch: [usize; 2],
    /// The rows and columns that are there, if not all; the others are zero.
    pub inside: Option<[Range<usize>; 2]>,
    pub to_pitch: [usize; 2],
    pub channels: usize,
    /// Rows and columns of the result that are written.
    pub keep: [usize; 2],
    /// `[channels]`, multiplies the result.
    pub scale: Option<&'a [T]>,
}

/// A transform along one axis. A trait, because closures would not be compiled for the instruction set.
trait Axis<const P: usize, const Q: usize> {
    /// # Safety
    /// The instruction set of `L` is present.
    unsafe fn apply<L: Lanes>(values: [L; P]) -> [L; Q];
}

/// Applies `A` to the columns and then to the rows.
///
/// # Safety
/// The bounds that `transform` asserts hold, and the instruction set of `L` is present.
#[inline(always)]
unsafe fn separable<L: Lanes, A: Axis<P, Q>, const P: usize, const Q: usize>(job: &Transform<L::Item>, to: &mut [L::Item]) {
    let whole = if job.keep[1] == Q { job.channels / L::COUNT * L::COUNT } else { 0 };
    // SAFETY: the caller's contract.
    unsafe {
        if job.inside.is_none() {
            for c in (0..whole).step_by(L::COUNT) {
                separable_at::<L, A, P, Q, true, true>(job, to, c);
            }
        } else {
            for c in (0..whole).step_by(L::COUNT) {
                separable_at::<L, A, P, Q, false, true>(job, to, c);
            }
        }
        for c in (whole..job.channels).step_by(L::COUNT) {
            separable_at::<L, A, P, Q, false, false>(job, to, c);
        }
    }
}

/// A register of channels from `c` on. `INSIDE`: all of the window is there. `WHOLE`: so are all channels, and all columns of the
/// result are written.
///
/// # Safety
/// As `separable`.
#[inline(always)]
unsafe fn separable_at<L: Lanes, A: Axis<P, Q>, const P: usize, const Q: usize, const INSIDE: bool, const WHOLE: bool>(job: &Transform<L::Item>, to: &mut [L::Item], c: usize) {
    let left = if WHOLE { L::COUNT } else { job.channels - c };
    // What lies between both passes, `[Q, P]`. Loops of a length that the compiler does not know: unrolled, they would be one block
    // with more values than there are registers, half of whose instructions move them about.
    let mut middle = [[const { MaybeUninit::<L>::uninit() }; P]; Q];
    let all = black_box(P);
    let [ys, xs] = job.inside.clone().filter(|_| !INSIDE).unwrap_or([0..P, 0..all]);
    let [down, right] = job.from_pitch;
    // SAFETY: whole registers are valid at every place of `from` that is inside, and in `to` and `scale`, unless it is the last
    // one.
    unsafe {
        // Wrapping: what is not inside is not read.
        let mut from = job.from.as_ptr().wrapping_offset(job.first).wrapping_add(c + xs.start * right);
        // Of rows that are not there nothing is loaded, without a branch that would change from tile to tile.
        let mut there = [0; P];
        if !INSIDE {
            unroll!(P, Y => { there[Y] = if ys.contains(&Y) { left.min(L::COUNT) } else { 0 }; });
            for x in (0..xs.start).chain(xs.end..P) {
                unroll!(Q, Y => { middle[Y][x].write(L::splat(L::Item::ZERO)); });
            }
        }
        for x in xs {
            let mut column = [L::splat(L::Item::ZERO); P];
            unroll!(P, Y => {
                let from = from.wrapping_add(Y * down);
                column[Y] = if INSIDE { load_up_to(from, left) } else { L::load_some(from, there[Y]) };
            });
            let column = A::apply(column);
            unroll!(Q, Y => { middle[Y].get_unchecked_mut(x).write(column[Y]); });
            from = from.wrapping_add(right);
        }
        let scale = job.scale.map(|s| load_up_to::<L>(s.as_ptr().add(c), left));
        let mut to = to.as_mut_ptr().wrapping_add(c);
        for middle in &middle[..job.keep[0]] {
            let mut row = [L::splat(L::Item::ZERO); P];
            unroll!(P, X => { row[X] = middle[X].assume_init(); });
            let mut row = A::apply(row);
            if let Some(scale) = scale {
                unroll!(Q, X => { row[X] = row[X].mul(scale); });
            }
            if WHOLE {
                unroll!(Q, X => { row[X].store(to.add(X * job.to_pitch[1])); });
            } else {
                for (x, sum) in row.into_iter().enumerate().take(job.keep[1]) {
                    finish_some(sum, to.add(x * job.to_pitch[1]), left, false, None);
                }
            }
            to = to.wrapping_add(job.to_pitch[0]);
        }
    }
}

#[inline(always)]
unsafe fn constant<L: Lanes>(v: f64) -> L {
    // SAFETY: the caller's contract.
    unsafe { L::splat(L::Item::from_f64(v)) }
}

/// One-dimensional transforms, named as the paper's matrices.
macro_rules! axes {
    ($($name:ident, $p:literal to $q:literal: |$v:ident, $k:ident| $body:expr;)*) => {
        $(struct $name;
        impl Axis<$p, $q> for $name {
            #[inline(always)]
            unsafe fn apply<L: Lanes>($v: [L; $p]) -> [L; $q] {
                // SAFETY: the caller's contract.
                unsafe {
                    let $k = constant::<L>;
                    $body
                }
            }
        })*
    };
}
axes! {
    G, 3 to 6: |w, k| {
        let outer = w[0].add(w[2]).mul(k(1.0 / 3.0));
        [
            w[0],
            w[1].mul_add(k(1.0 / 3.0), outer),
            w[1].mul_add(k(1.0 / 3.0), outer.mul(k(-1.0))),
            w[2].mul_add(k(-4.0 / 15.0), w[1].mul_add(k(-8.0 / 15.0), w[0].mul(k(-16.0 / 15.0)))),
            w[2].mul_add(k(4.0 / 15.0), w[1].mul_add(k(-2.0 / 15.0), w[0].mul(k(1.0 / 15.0)))),
            w[2],
        ]
    };
    Bt, 6 to 6: |d, k| {
        // The polynomial (x − 1/2)(x + 2) of the last two finite points, shifted.
        let (even, odd) = (d[4].sub(d[2]), d[3].sub(d[1]));
        let [q0, q1] = [d[1].mul_add(k(1.5), d[2].sub(d[0])), d[2].mul_add(k(1.5), odd)];
        let [q2, q3] = [d[3].mul_add(k(1.5), even), d[4].mul_add(k(1.5), d[5].sub(d[3]))];
        [q2.sub(q0), q2.add(q1), q2.sub(q1), odd.mul_add(k(2.0), even), odd.mul_add(k(-0.5), even), q3.sub(q1)]
    };
    At, 6 to 4: |m, k| {
        let (sum, difference) = (m[1].add(m[2]), m[1].sub(m[2]));
        [
            m[0].add(sum).add(m[3].add(m[4])),
            m[3].mul_add(k(0.5), m[4].mul_add(k(-2.0), difference)),
            m[3].mul_add(k(0.25), m[4].mul_add(k(4.0), sum)),
            m[3].mul_add(k(0.125), m[4].mul_add(k(-8.0), difference)).add(m[5]),
        ]
    };
    A, 4 to 6: |g, k| {
        let (even, odd) = (g[0].add(g[2]), g[1].add(g[3]));
        let half = g[1].mul_add(k(0.5), g[2].mul_add(k(0.25), g[3].mul_add(k(0.125), g[0])));
        let minus_two = g[1].mul_add(k(-2.0), g[2].mul_add(k(4.0), g[3].mul_add(k(-8.0), g[0])));
        [g[0], even.add(odd), even.sub(odd), half, minus_two, g[3]]
    };
    Gt, 6 to 3: |p, k| {
        let (sum, difference) = (p[1].add(p[2]), p[1].sub(p[2]));
        [
            p[4].mul_add(k(1.0 / 15.0), p[3].mul_add(k(-16.0 / 15.0), difference.mul_add(k(1.0 / 3.0), p[0]))),
            p[4].mul_add(k(-2.0 / 15.0), p[3].mul_add(k(-8.0 / 15.0), sum.mul(k(1.0 / 3.0)))),
            p[4].mul_add(k(4.0 / 15.0), p[3].mul_add(k(-4.0 / 15.0), difference.mul_add(k(1.0 / 3.0), p[5]))),
        ]
    };
    StridedG, 3 to 6: |w, k| {
        [
            w[0].add(w[0]),
            w[0].add(w[2]),
            w[2].sub(w[0]).mul(k(1.0 / 3.0)),
            w[2].mul_add(k(-4.0 / 3.0), w[0].mul(k(-8.0 / 3.0))),
            w[2],
            w[1],
        ]
    };
    StridedBt, 9 to 9: |d, k| {
        let [e0, e1, e2, e3, e4] = two_taps([d[0], d[2], d[4], d[6], d[8]], k(0.5));
        [e0, e1, e2, e3, e4, d[1], d[3], d[5], d[7]]
    };
    StridedAt, 9 to 4: |m, k| {
        let [y0, y1, y2, y3] = four_outputs([m[0], m[1], m[2], m[3], m[4]], k(0.5));
        [y0.add(m[5]), y1.add(m[6]), y2.add(m[7]), y3.add(m[8])]
    };
    StridedA, 4 to 9: |g, k| {
        let (even, odd) = (g[0].add(g[2]), g[1].add(g[3]));
        let half = g[1].mul_add(k(0.5), g[2].mul_add(k(0.25), g[3].mul_add(k(0.125), g[0])));
        [g[0], even.add(odd), even.sub(odd), half, g[3], g[0], g[1], g[2], g[3]]
    };
    StridedGt, 6 to 3: |p, k| {
        [
            p[0].add(p[0]).add(p[3].mul_add(k(-8.0 / 3.0), p[2].mul_add(k(-1.0 / 3.0), p[1]))),
            p[5],
            p[3].mul_add(k(-4.0 / 3.0), p[2].mul_add(k(1.0 / 3.0), p[1])).add(p[4]),
        ]
    };
    SpreadBt, 5 to 9: |d, k| {
        let [e0, e1, e2, e3, e4] = two_taps(d, k(0.5));
        [e0, e1, e2, e3, e4, d[1], d[2], d[3], d[4]]
    };
    SpreadAt, 9 to 8: |m, k| {
        let [y0, y1, y2, y3] = four_outputs([m[0], m[1], m[2], m[3], m[4]], k(0.5));
        [y0, m[5], y1, m[6], y2, m[7], y3, m[8]]
    };
}

/// `Bᵀ d` of F(4, 2).
///
/// # Safety
/// The instruction set of `L` is present.
#[inline(always)]
unsafe fn two_taps<L: Lanes>(d: [L; 5], half: L) -> [L; 5] {
    // SAFETY: the caller's contract.
    unsafe {
        let odd = d[3].sub(d[1]);
        let two = d[2].mul(half);
        let low = d[1].mul_add(half, d[3]);
        [
            d[0].mul_add(half, odd).sub(two),
            d[3].add(two).sub(d[1].mul(half)),
            low.sub(d[2].add(two)),
            odd,
            d[4].sub(d[2]).sub(odd.mul(half)),
        ]
    }
}

/// `Aᵀ m` of F(4, 2).
///
/// # Safety
/// The instruction set of `L` is present.
#[inline(always)]
unsafe fn four_outputs<L: Lanes>(m: [L; 5], half: L) -> [L; 4] {
    // SAFETY: the caller's contract.
    unsafe {
        let (sum, difference) = (m[1].add(m[2]), m[1].sub(m[2]));
        let quarter = m[3].mul(half.mul(half));
        [m[0].add(sum).add(m[3]), m[3].mul_add(half, difference), sum.add(quarter), quarter.mul_add(half, difference).add(m[4])]
    }
}

/// # Safety
/// As `separable`.
#[inline(always)]
unsafe fn transform_body<L: Lanes>(job: &Transform<L::Item>, to: &mut [L::Item]) {
    // SAFETY: the caller's contract.
    unsafe {
        match job.of {
            Winograd::Weight => separable::<L, G, 3, 6>(job, to),
            Winograd::Input => separable::<L, Bt, 6, 6>(job, to),
            Winograd::Output => separable::<L, At, 6, 4>(job, to),
            Winograd::Grad => separable::<L, A, 4, 6>(job, to),
            Winograd::WeightGrad => separable::<L, Gt, 6, 3>(job, to),
            Winograd::StridedWeight => separable::<L, StridedG, 3, 6>(job, to),
            Winograd::StridedInput => separable::<L, StridedBt, 9, 9>(job, to),
            Winograd::StridedOutput => separable::<L, StridedAt, 9, 4>(job, to),
            Winograd::StridedGrad => separable::<L, StridedA, 4, 9>(job, to),
            Winograd::StridedWeightGrad => separable::<L, StridedGt, 6, 3>(job, to),
            Winograd::SpreadInput => separable::<L, SpreadBt, 5, 9>(job, to),
            Winograd::SpreadOutput => separable::<L, SpreadAt, 9, 8>(job, to),
        }
    }
}

/// One compiled version of the kernels, for one element type: panels of `$nv` registers with `$mr` rows, or `$tail` of the last
/// ones, and for panels that are at most half full `$narrow_nv` registers with `$narrow_mr` or `$narrow_tail` rows. Transforms take
/// the panels' registers.
macro_rules! version {
    ($gather:ident, $product:ident, $outer:ident, $transform:ident, $wide:ty, $mr:literal, $tail:literal, $nv:literal, $narrow:ty, $narrow_mr:literal, $narrow_tail:literal, $narrow_nv:literal $(, $feature:literal)?) => {
        /// # Safety
        /// As `gather_body`.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $gather(job: &Gather<<$wide as Lanes>::Item>, out: &mut Columns<<$wide as Lanes>::Item>, column: usize, width: usize) {
            // SAFETY: the caller's contract.
            unsafe {
                if width > panel_width::<<$wide as Lanes>::Item>() / 2 {
                    gather_body::<$wide, $mr, $tail, $nv>(job, out, column, width)
                } else {
                    gather_body::<$narrow, $narrow_mr, $narrow_tail, $narrow_nv>(job, out, column, width)
                }
            }
        }
        /// # Safety
        /// The bounds that `product` asserts hold.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $product(job: &Product<<$wide as Lanes>::Item>, out: &mut [<$wide as Lanes>::Item]) {
            let whole = panel_width::<<$wide as Lanes>::Item>();
            for column in (0..job.columns).step_by(whole) {
                let (out, width) = (out.as_mut_ptr(), whole.min(job.columns - column));
                // SAFETY: the caller's contract.
                unsafe {
                    if width > whole / 2 {
                        product_panel::<$wide, $mr, $tail, $nv>(job, out, column, width)
                    } else {
                        product_panel::<$narrow, $narrow_mr, $narrow_tail, $narrow_nv>(job, out, column, width)
                    }
                }
            }
        }
        /// # Safety
        /// As `outer_body`.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $outer(job: &Outer<<$wide as Lanes>::Item>, out: &mut [<$wide as Lanes>::Item]) {
            // SAFETY: the caller's contract.
            unsafe { outer_body::<$wide, $mr, $tail, $nv>(job, out) }
        }
        /// # Safety
        /// As `transform_body`.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $transform(job: &Transform<<$wide as Lanes>::Item>, to: &mut [<$wide as Lanes>::Item]) {
            // SAFETY: the caller's contract.
            unsafe { transform_body::<$wide>(job, to) }
        }
    };
}
version!(gather_f32, product_f32, outer_f32, transform_f32, Plain<f32, 4>, 2, 2, 4, Plain<f32, 4>, 4, 2, 2);
version!(gather_f64, product_f64, outer_f64, transform_f64, Plain<f64, 2>, 2, 2, 4, Plain<f64, 2>, 4, 2, 2);
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::device::cpu::lanes::{F32x8, F32x16, F64x4, F64x8};
    // 16 registers: 12 sums, a panel line of two, one broadcast value.
    version!(gather_f32_avx2, product_f32_avx2, outer_f32_avx2, transform_f32_avx2, F32x8, 6, 4, 2, F32x8, 12, 8, 1, "avx2,fma");
    version!(gather_f64_avx2, product_f64_avx2, outer_f64_avx2, transform_f64_avx2, F64x4, 6, 4, 2, F64x4, 12, 8, 1, "avx2,fma");
    // 32 registers of twice the size, and products that broadcast from memory by themselves.
    version!(gather_f32_avx512, product_f32_avx512, outer_f32_avx512, transform_f32_avx512, F32x16, 12, 8, 1, F32x8, 12, 8, 1, "avx512f,avx2,fma");
    version!(gather_f64_avx512, product_f64_avx512, outer_f64_avx512, transform_f64_avx512, F64x8, 12, 8, 1, F64x4, 12, 8, 1, "avx512f,avx2,fma");
}

/// Elements that kernels are compiled for.
pub trait Tiles: Element {
    /// # Safety
    /// As `gather_body`; `isa` is present.
    unsafe fn gather_with(isa: Isa, job: &Gather<Self>, out: &mut Columns<Self>, column: usize, width: usize);
    /// # Safety
    /// The bounds that `product` asserts hold; `isa` is present.
    unsafe fn product_with(isa: Isa, job: &Product<Self>, out: &mut [Self]);
    /// # Safety
    /// As `outer_body`; `isa` is present.
    unsafe fn outer_with(isa: Isa, job: &Outer<Self>, out: &mut [Self]);
    /// # Safety
    /// As `transform_body`; `isa` is present.
    unsafe fn transform_with(isa: Isa, job: &Transform<Self>, to: &mut [Self]);
}

macro_rules! tiles {
    ($t:ty, [$gather:ident, $product:ident, $outer:ident, $transform:ident],
     [$gather_avx2:ident, $product_avx2:ident, $outer_avx2:ident, $transform_avx2:ident],
     [$gather_avx512:ident, $product_avx512:ident, $outer_avx512:ident, $transform_avx512:ident]) => {
        impl Tiles for $t {
            unsafe fn gather_with(isa: Isa, job: &Gather<$t>, out: &mut Columns<$t>, column: usize, width: usize) {
                // SAFETY: the caller's contract.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => x86::$gather_avx2(job, out, column, width),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => x86::$gather_avx512(job, out, column, width),
                        _ => $gather(job, out, column, width),
                    }
                }
            }
            unsafe fn product_with(isa: Isa, job: &Product<$t>, out: &mut [$t]) {
                // SAFETY: the caller's contract.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => x86::$product_avx2(job, out),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => x86::$product_avx512(job, out),
                        _ => $product(job, out),
                    }
                }
            }
            unsafe fn outer_with(isa: Isa, job: &Outer<$t>, out: &mut [$t]) {
                // SAFETY: the caller's contract.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => x86::$outer_avx2(job, out),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => x86::$outer_avx512(job, out),
                        _ => $outer(job, out),
                    }
                }
            }
            unsafe fn transform_with(isa: Isa, job: &Transform<$t>, to: &mut [$t]) {
                // SAFETY: the caller's contract.
                unsafe {
                    match isa {
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx2 => x86::$transform_avx2(job, to),
                        #[cfg(target_arch = "x86_64")]
                        Isa::Avx512 => x86::$transform_avx512(job, to),
                        _ => $transform(job, to),
                    }
                }
            }
        }
    };
}
tiles!(
    f32,
    [gather_f32, product_f32, outer_f32, transform_f32],
    [gather_f32_avx2, product_f32_avx2, outer_f32_avx2, transform_f32_avx2],
    [gather_f32_avx512, product_f32_avx512, outer_f32_avx512, transform_f32_avx512]
);
tiles!(
    f64,
    [gather_f64, product_f64, outer_f64, transform_f64],
    [gather_f64_avx2, product_f64_avx2, outer_f64_avx2, transform_f64_avx2],
    [gather_f64_avx512, product_f64_avx512, outer_f64_avx512, transform_f64_avx512]
);

/// Rows of the outer-product tile of `version`: how `Outer::grad` is packed.
pub fn outer_rows(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 2,
        Isa::Avx2 => 6,
        Isa::Avx512 => 12,
    }
}

/// Width of the panel that holds the last `width` columns.
pub const fn line_width<T>(width: usize) -> usize {
    if width <= panel_width::<T>() / 2 { panel_width::<T>() / 2 } else { panel_width::<T>() }
}

/// Computes `width` channels from `column` of `out`.
pub fn gather<T: Tiles>(isa: Isa, job: &Gather<T>, out: &mut Columns<T>, column: usize, width: usize) {
    let values: usize = job.runs.iter().map(|r| r.len).sum();
    let reach = job.runs.iter().map(|r| r.offset + r.len).max().unwrap_or(0);
    assert!(job.rows.input_end + reach <= job.input.len() + 1, "windows lie inside the input");
    assert!(job.rows.output_end <= out.pixels && column + width <= out.count, "tiles lie inside the output");
    assert!(width <= panel_width::<T>() && values * line_width::<T>(width) <= job.panel.len(), "a panel line per value");
    assert!(job.scale.is_none_or(|s| job.rows.scale_end + out.first + column + width <= s.len() + 1), "a scale per channel");
    assert!(isa.is_present());
    // SAFETY: asserted above.
    unsafe { T::gather_with(isa, job, out, column, width) }
}

/// Writes the start of `out`.
pub fn product<T: Tiles>(isa: Isa, job: &Product<T>, out: &mut [T]) {
    if job.rows == 0 || job.columns == 0 {
        return;
    }
    let (panels, last) = ((job.columns - 1) / panel_width::<T>(), (job.columns - 1) % panel_width::<T>() + 1);
    assert!((job.rows - 1) * job.pitch + job.depth <= job.input.len(), "rows lie inside the input");
    assert!(job.rows * job.columns <= out.len(), "rows lie inside the output");
    assert!(panels * job.panel_pitch + job.depth * line_width::<T>(last) <= job.panels.len(), "a panel line per value");
    assert!(job.depth > 0 && job.pass > 0 && (panels == 0 || job.depth * panel_width::<T>() <= job.panel_pitch));
    assert!(isa.is_present());
    // SAFETY: asserted above.
    unsafe { T::product_with(isa, job, out) }
}

/// Values of `input` and of `grad` that `outer` may read after those of the last pixel's columns and rows.
pub fn outer_slack<T>(isa: Isa, width: usize, rows: usize) -> [usize; 2] {
    [width.next_multiple_of(panel_width::<T>()) - width, rows.next_multiple_of(outer_rows(isa)) - rows]
}

/// Adds up to the start of `out`.
pub fn outer<T: Tiles>(isa: Isa, job: &Outer<T>, out: &mut [T]) {
    let some = !job.pixels.runs.is_empty();
    let [after_input, after_grad] = outer_slack::<T>(isa, job.width, job.rows);
    assert!(!some || job.pixels.input_end + job.width + after_input <= job.input.len() + 1, "windows lie inside the input");
    assert!(!some || job.pixels.grad_end + job.rows + after_grad <= job.grad.len() + 1, "a gradient row per pixel");
    assert!(isa.is_present());
    let end = job.rows.saturating_sub(1) * job.pitch + job.width;
    assert!(end <= out.len() && job.rows * job.width > 0, "rows lie inside the output");
    // SAFETY: asserted above.
    unsafe { T::outer_with(isa, job, out) }
}

/// Transforms one tile; the result goes to the start of `to`.
pub fn transform<T: Tiles>(isa: Isa, job: &Transform<T>, to: &mut [T]) {
    let [p, q] = job.of.sizes();
    let last = |pitch: [usize; 2], n: [usize; 2]| n[0].saturating_sub(1) * pitch[0] + n[1].saturating_sub(1) * pitch[1] + job.channels;
    let [ys, xs] = job.inside.clone().unwrap_or([0..p, 0..p]);
    assert!(ys.end <= p && xs.end <= p);
    if !ys.is_empty() && !xs.is_empty() {
        let start = job.first + (ys.start * job.from_pitch[0] + xs.start * job.from_pitch[1]) as isize;
        let end = job.first + last(job.from_pitch, [ys.end, xs.end]) as isize;
        assert!(start >= 0 && end as usize <= job.from.len(), "tiles lie inside the input");
    }
    assert!(job.keep[0] <= q && job.keep[1] <= q && last(job.to_pitch, job.keep) <= to.len(), "tiles lie inside the output");
    assert!(job.scale.is_none_or(|s| job.channels <= s.len()), "a scale per channel");
    assert!(isa.is_present());
    // SAFETY: asserted above.
    unsafe { T::transform_with(isa, job, to) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::random::Random;

    fn numbers(stream: u64, n: usize) -> Vec<f32> {
        Random::new(4, stream).normal(&[n]).to_vec()
    }

    /// The sets of this machine: the op tests see only the widest.
    fn present() -> impl Iterator<Item = Isa> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_present())
    }

    #[test]
    fn gather_on_every_instruction_set() {
        let (channels, values) = (40, 23);
        let runs = [Run { offset: 0, len: 9 }, Run { offset: 20, len: 14 }];
        let input = numbers(0, 200);
        let scale = numbers(1, 2 * channels);
        for isa in present() {
            for (count, width) in [(1, 16), (7, 16), (13, 5), (25, 8), (12, 11), (6, 1)] {
                let mut rows = Rows::default();
                (0..count).for_each(|p| rows.push_line(1, [p * 6, 0], [count - 1 - p, 0], p % 2 * channels));
                let line = line_width::<f32>(width);
                let panel = numbers(2, values * line);
                let before = numbers(3, count * channels);
                let mut out = before.clone();
                let mut columns: Vec<_> = Columns::split(&mut out, channels, 24).collect();
                let job = Gather { input: &input, rows: &rows, runs: &runs, panel: &panel, accumulate: true, scale: Some(&scale) };
                gather(isa, &job, &mut columns[1], 0, width);
                for p in 0..count {
                    for c in 0..channels {
                        let at = (count - 1 - p) * channels + c;
                        let expected = if (24..24 + width).contains(&c) {
                            let window = (0..9).chain(20..34).map(|k| input[p * 6 + k]);
                            let sum: f32 = window.zip(panel.chunks(line)).map(|(v, line)| v * line[c - 24]).sum();
                            (before[at] + sum) * scale[p % 2 * channels + c]
                        } else {
                            before[at]
                        };
                        // 24 roundings of values near 5.
                        assert!((out[at] - expected).abs() < 3e-5, "{isa:?}, {count} pixels of {width}: {} and {expected}", out[at]);
                    }
                }
            }
        }
    }

    #[test]
    fn product_on_every_instruction_set() {
        for isa in present() {
            for (rows, depth, columns, pass) in [(1, 3, 1usize, 8), (6, 8, 16, 8), (7, 23, 40, 9), (13, 5, 21, 5), (25, 9, 37, 4), (4, 16, 24, 16)] {
                let (pitch, panel_pitch) = (depth + 3, depth * 16 + 5);
                let input = numbers(0, (rows - 1) * pitch + depth);
                let panels = numbers(1, columns.div_ceil(16) * panel_pitch);
                let mut out = vec![f32::NAN; rows * columns + 1];
                product(isa, &Product { input: &input, rows, depth, pitch, panels: &panels, panel_pitch, pass, columns }, &mut out);
                assert!(out.pop().unwrap().is_nan(), "written behind the result");
                for (at, got) in out.iter().enumerate() {
                    let (r, j) = (at / columns, at % columns);
                    let line = line_width::<f32>((columns - j / 16 * 16).min(16));
                    let sum: f32 = (0..depth).map(|k| input[r * pitch + k] * panels[j / 16 * panel_pitch + k * line + j % 16]).sum();
                    // 23 roundings of values near 5.
                    assert!((got - sum).abs() < 3e-5, "{isa:?}, {rows} by {depth} by {columns}: {got} and {sum}");
                }
            }
        }
    }

    #[test]
    fn outer_on_every_instruction_set() {
        let (pitch, step) = (50, 3);
        let input = numbers(0, 140);
        for isa in present() {
            let mr = outer_rows(isa);
            for (rows, width, accumulate) in [(mr, 16, false), (mr, 16, true), (1, 7, true), (mr - 1, 1, false), (2 * mr + 1, 37, true)] {
                let step_g = rows.next_multiple_of(mr);
                let mut pixels = Pixels::default();
                pixels.clear(step, step_g);
                for (input, pixel, len) in [(0, 0, 5), (15, 5, 4), (70, 9, 6)] {
                    pixels.push(input, pixel * step_g, len);
                }
                let grad = numbers(1, 15 * step_g);
                let before = numbers(2, rows * pitch);
                let mut out = before.clone();
                outer(isa, &Outer { input: &input, pixels: &pixels, grad: &grad, accumulate, pitch, rows, width }, &mut out);
                for (at, (got, before)) in out.iter().zip(&before).enumerate() {
                    let (r, j) = (at / pitch, at % pitch);
                    let expected = if r < rows && j < width {
                        let starts = (0..9).map(|p| p * step).chain((0..6).map(|p| 70 + p * step));
                        let sum: f32 = starts.zip(grad.chunks(step_g)).map(|(from, g)| g[r] * input[from + j]).sum();
                        sum + if accumulate { *before } else { 0.0 }
                    } else {
                        *before
                    };
                    assert!((got - expected).abs() < 2e-5, "{isa:?}, {rows} by {width}: {got} and {expected}");
                }
            }
        }
    }

    type Matrix = Vec<Vec<f64>>;

    fn transposed(m: &Matrix) -> Matrix {
        (0..m[0].len()).map(|j| m.iter().map(|row| row[j]).collect()).collect()
    }

    /// `A`, `G` and `Bᵀ` of F(outputs, taps) by the points' definition, row by row: powers of each point (`G`'s over the
    /// product of the distances to all others), and the coefficients of the polynomial that is zero at all others.
    fn minimal(points: &[f64], outputs: usize, taps: usize) -> [Matrix; 3] {
        let finite = points.len();
        let powers = |n: usize| -> Matrix {
            let infinity = (0..n).map(|j| if j + 1 == n { 1.0 } else { 0.0 }).collect();
            points.iter().map(|p| (0..n as i32).map(|j| p.powi(j)).collect()).chain([infinity]).collect()
        };
        let others = |i: usize| (0..finite).filter(move |j| *j != i);
        let mut g = powers(taps);
        for (i, row) in g.iter_mut().enumerate().take(finite) {
            let distances: f64 = others(i).map(|j| points[i] - points[j]).product();
            row.iter_mut().for_each(|v| *v /= distances);
        }
        let bt: Matrix = (0..=finite)
            .map(|i| {
                let one: Vec<f64> = (0..=finite).map(|k| if k == 0 { 1.0 } else { 0.0 }).collect();
                others(i).fold(one, |polynomial, j| {
                    (0..=finite).map(|k| if k > 0 { polynomial[k - 1] } else { 0.0 } - points[j] * polynomial[k]).collect()
                })
            })
            .collect();
        [powers(outputs), g, bt]
    }

    fn matrix(of: Winograd) -> Matrix {
        let [a, g, bt] = minimal(&[0.0, 1.0, -1.0, 0.5, -2.0], 4, 3);
        let [a2, g2, bt2] = minimal(&[0.0, 1.0, -1.0, 0.5], 4, 2);
        // Rows with one 1 each, and rows whose columns move.
        let unit = |n: usize, at: &[usize]| -> Matrix { at.iter().map(|at| (0..n).map(|j| if j == *at { 1.0 } else { 0.0 }).collect()).collect() };
        let moved = |m: &Matrix, n: usize, at: &[usize]| -> Matrix {
            let to = |row: &Vec<f64>| (0..n).map(|j| at.iter().position(|a| *a == j).map_or(0.0, |k| row[k])).collect();
            m.iter().map(to).collect()
        };
        let stacked = |m: Matrix, below: Matrix| -> Matrix { m.into_iter().chain(below).collect() };
        let strided_g = || stacked(moved(&g2, 3, &[0, 2]), unit(3, &[1]));
        let strided_a = || stacked(a2.clone(), unit(4, &[0, 1, 2, 3]));
        match of {
            Winograd::Weight => g,
            Winograd::Input => bt,
            Winograd::Output => transposed(&a),
            Winograd::Grad => a,
            Winograd::WeightGrad => transposed(&g),
            Winograd::StridedWeight => strided_g(),
            Winograd::StridedInput => stacked(moved(&bt2, 9, &[0, 2, 4, 6, 8]), unit(9, &[1, 3, 5, 7])),
            Winograd::StridedOutput => transposed(&strided_a()),
            Winograd::StridedGrad => strided_a(),
            Winograd::StridedWeightGrad => transposed(&strided_g()),
            Winograd::SpreadInput => stacked(bt2, unit(5, &[1, 2, 3, 4])),
            Winograd::SpreadOutput => {
                let (even, odd) = (moved(&transposed(&a2), 9, &[0, 1, 2, 3, 4]), unit(9, &[5, 6, 7, 8]));
                even.into_iter().zip(odd).flat_map(|(even, odd)| [even, odd]).collect()
            }
        }
    }

    #[test]
    fn transform_on_every_instruction_set() {
        for isa in present() {
            use Winograd::*;
            for of in
                [Weight, Input, Output, Grad, WeightGrad, StridedWeight, StridedInput, StridedOutput, StridedGrad, StridedWeightGrad, SpreadInput, SpreadOutput]
            {
                let (m, [p, q]) = (matrix(of), of.sizes());
                let whole = || [0..p, 0..p];
                let cases = [
                    (16, [q, q], false, None),
                    (21, [q, q - 1], true, None),
                    (3, [1, q], false, None),
                    (16, [q, q], true, Some([1..p, 0..p - 1])),
                    (19, [q, q], false, Some([0..2, 1..2])),
                    (8, [q, q], false, Some([2..2, 0..p])),
                ];
                for (channels, keep, scaled, inside) in cases {
                    let (from_pitch, to_pitch) = ([p * 40 + 3, 40], [q * 24 + 1, 24]);
                    // Only what is read is there.
                    let [ys, xs] = inside.clone().unwrap_or_else(whole);
                    let first = ys.start * from_pitch[0] + xs.start * from_pitch[1];
                    let len = (ys.len().max(1) - 1) * from_pitch[0] + (xs.len() - 1) * from_pitch[1] + channels;
                    let from = numbers(0, len);
                    let scale = numbers(1, channels);
                    let before = numbers(2, q * to_pitch[0]);
                    let mut to = before.clone();
                    let job = Transform { of, from: &from, first: -(first as isize), from_pitch, inside: inside.clone(), to_pitch, channels, keep, scale: scaled.then_some(&scale) };
                    transform(isa, &job, &mut to);
                    let mut want: Vec<f64> = before.iter().map(|v| *v as f64).collect();
                    for y in 0..keep[0] {
                        for x in 0..keep[1] {
                            for c in 0..channels {
                                let value = |i: usize, j: usize| match ys.contains(&i) && xs.contains(&j) {
                                    true => from[i * from_pitch[0] + j * from_pitch[1] + c - first] as f64,
                                    false => 0.0,
                                };
                                let sum: f64 = (0..p).flat_map(|i| (0..p).map(move |j| (i, j))).map(|(i, j)| m[y][i] * value(i, j) * m[x][j]).sum();
                                want[y * to_pitch[0] + x * to_pitch[1] + c] = sum * if scaled { scale[c] as f64 } else { 1.0 };
                            }
                        }
                    }
                    for (at, (got, want)) in to.iter().zip(&want).enumerate() {
                        // Roundings of sums near 100.
                        assert!((*got as f64 - want).abs() < 1e-4, "{isa:?}, {of:?}, {channels} channels, {at}: {got} and {want}");
                    }
                }
            }
        }
    }
}
