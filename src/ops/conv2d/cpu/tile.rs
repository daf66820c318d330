//! Register tiles of the convolution family: the only unsafe code of the host implementation.
//!
//! Both kernels are written once over registers (`lanes`), compiled per instruction set and chosen at run time, so one
//! binary uses what the machine has. Bounds are asserted by the safe functions at the end of this file.

use std::marker::PhantomData;

use super::lanes::{Lanes, Plain};
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
    pub fn push(&mut self, input: usize, output: usize, scale: usize) {
        self.rows.push(Row { input, output, scale });
        self.input_end = self.input_end.max(input + 1);
        self.output_end = self.output_end.max(output + 1);
        self.scale_end = self.scale_end.max(scale + 1);
    }
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
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

/// Finished sums of a tile on their way out.
type Lines<T, const MR: usize> = [[T; MAX_PANEL]; MR];

/// # Safety
/// The bounds that `gather` asserts hold, and the instruction set of `L` is present.
#[inline(always)]
unsafe fn gather_body<L: Lanes, const MR: usize, const NV: usize>(job: &Gather<L::Item>, out: &mut Columns<L::Item>, column: usize, width: usize) {
    for tile in job.rows.rows.chunks(MR) {
        // SAFETY: every window start plus every run end is inside `input`, the panel holds one line per value; the
        // pixels and channels written are inside the exclusive `Columns`, and `scale` covers the same channels.
        unsafe {
            let mut sum = [[L::splat(L::Item::ZERO); NV]; MR];
            let mut line = [L::splat(L::Item::ZERO); NV];
            let mut windows = [job.input.as_ptr(); MR];
            let mut panel = job.panel.as_ptr();
            for run in job.runs {
                // A short tile repeats its last row; the repeats are computed and dropped.
                unroll!(MR, R => { windows[R] = job.input.as_ptr().add(tile[R.min(tile.len() - 1)].input + run.offset); });
                for k in 0..run.len {
                    unroll!(NV, J => { line[J] = L::load(panel.add(J * L::COUNT)); });
                    unroll!(MR, R => {
                        let v = L::splat(*windows[R].add(k));
                        unroll!(NV, J => { sum[R][J] = v.mul_add(line[J], sum[R][J]); });
                    });
                    panel = panel.add(NV * L::COUNT);
                }
            }
            let mut lines: Lines<L::Item, MR> = [[L::Item::ZERO; MAX_PANEL]; MR];
            unroll!(MR, R => { unroll!(NV, J => { sum[R][J].store(lines[R].as_mut_ptr().add(J * L::COUNT)); }); });
            for (row, line) in tile.iter().zip(&lines) {
                let to = out.start.add(row.output * out.channels + out.first + column);
                let scale = job.scale.map(|s| s.as_ptr().add(row.scale + out.first + column));
                finish::<L, NV>(line, to, width, job.accumulate, scale);
            }
        }
    }
}

/// Writes `width` sums, after adding what is there and scaling.
///
/// # Safety
/// `width` elements are valid at `to` and `scale`; the instruction set of `L` is present.
#[inline(always)]
unsafe fn finish<L: Lanes, const NV: usize>(sum: &[L::Item; MAX_PANEL], to: *mut L::Item, width: usize, accumulate: bool, scale: Option<*const L::Item>) {
    // SAFETY: whole registers only when all their elements are valid, single elements otherwise.
    unsafe {
        if width == NV * L::COUNT {
            for j in 0..NV {
                let at = j * L::COUNT;
                let mut v = L::load(sum.as_ptr().add(at));
                if accumulate {
                    v = v.add(L::load(to.add(at)));
                }
                if let Some(s) = scale {
                    v = v.mul(L::load(s.add(at)));
                }
                v.store(to.add(at));
            }
        } else {
            for (j, v) in sum[..width].iter().enumerate() {
                let v = if accumulate { *v + *to.add(j) } else { *v };
                *to.add(j) = scale.map_or(v, |s| v * *s.add(j));
            }
        }
    }
}

/// Windows of the pixels that `outer` sums over: runs of `len` windows, the first at `offset`, each `step` values
/// after the one before.
#[derive(Debug, Default)]
pub struct Pixels {
    runs: Vec<Run>,
    step: usize,
    count: usize,
    /// After the start of the last window.
    end: usize,
}

impl Pixels {
    pub fn clear(&mut self, step: usize) {
        self.runs.clear();
        *self = Pixels { runs: std::mem::take(&mut self.runs), step, count: 0, end: 0 };
    }
    pub fn push(&mut self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        self.count += len;
        self.end = self.end.max(offset + (len - 1) * self.step + 1);
        match self.runs.last_mut() {
            Some(last) if last.offset + last.len * self.step == offset => last.len += len,
            _ => self.runs.push(Run { offset, len }),
        }
    }
}

/// What `outer` computes: `out[r, j] (+)= Σ_pixels grad[pixel, r] · input[window of pixel, j]`.
pub struct Outer<'a, T> {
    pub input: &'a [T],
    pub pixels: &'a Pixels,
    /// `[pixels, outer_rows]`
    pub grad: &'a [T],
    /// Adds to what `out` holds.
    pub accumulate: bool,
    /// Distance between rows of `out`.
    pub pitch: usize,
    /// Valid rows and columns of this tile.
    pub rows: usize,
    pub width: usize,
}

/// # Safety
/// The bounds that `outer` asserts hold, and the instruction set of `L` is present.
#[inline(always)]
unsafe fn outer_body<L: Lanes, const MR: usize, const NV: usize>(job: &Outer<L::Item>, out: &mut [L::Item]) {
    // SAFETY: the last window of every run ends inside `input`, `grad` holds MR values per pixel, and `out` the rows
    // and columns that are written.
    unsafe {
        let mut sum = [[L::splat(L::Item::ZERO); NV]; MR];
        let mut line = [L::splat(L::Item::ZERO); NV];
        let mut grad = job.grad.as_ptr();
        for run in &job.pixels.runs {
            let mut window = job.input.as_ptr().add(run.offset);
            for _ in 0..run.len {
                unroll!(NV, J => { line[J] = L::load(window.add(J * L::COUNT)); });
                unroll!(MR, R => {
                    let v = L::splat(*grad.add(R));
                    unroll!(NV, J => { sum[R][J] = v.mul_add(line[J], sum[R][J]); });
                });
                // Wrapping: after the last pixel the pointer may leave the slice; it is not read there.
                window = window.wrapping_add(job.pixels.step);
                grad = grad.add(MR);
            }
        }
        let mut lines: Lines<L::Item, MR> = [[L::Item::ZERO; MAX_PANEL]; MR];
        unroll!(MR, R => { unroll!(NV, J => { sum[R][J].store(lines[R].as_mut_ptr().add(J * L::COUNT)); }); });
        for (r, line) in lines.iter().enumerate().take(job.rows) {
            finish::<L, NV>(line, out.as_mut_ptr().add(r * job.pitch), job.width, job.accumulate, None);
        }
    }
}

/// One compiled version of both kernels, for one element type: panels of `$nv` registers with `$mr` rows, and for
/// panels that are at most half full `$narrow_nv` registers with `$narrow_mr` rows.
macro_rules! version {
    ($gather:ident, $outer:ident, $wide:ty, $mr:literal, $nv:literal, $narrow:ty, $narrow_mr:literal, $narrow_nv:literal $(, $feature:literal)?) => {
        /// # Safety
        /// As `gather_body`.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $gather(job: &Gather<<$wide as Lanes>::Item>, out: &mut Columns<<$wide as Lanes>::Item>, column: usize, width: usize) {
            // SAFETY: the caller's contract.
            unsafe {
                if width > panel_width::<<$wide as Lanes>::Item>() / 2 {
                    gather_body::<$wide, $mr, $nv>(job, out, column, width)
                } else {
                    gather_body::<$narrow, $narrow_mr, $narrow_nv>(job, out, column, width)
                }
            }
        }
        /// # Safety
        /// As `outer_body`.
        $(#[target_feature(enable = $feature)])?
        pub(super) unsafe fn $outer(job: &Outer<<$wide as Lanes>::Item>, out: &mut [<$wide as Lanes>::Item]) {
            // SAFETY: the caller's contract.
            unsafe { outer_body::<$wide, $mr, $nv>(job, out) }
        }
    };
}
version!(gather_f32, outer_f32, Plain<f32, 4>, 2, 4, Plain<f32, 4>, 4, 2);
version!(gather_f64, outer_f64, Plain<f64, 2>, 2, 4, Plain<f64, 2>, 4, 2);
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::lanes::{F32x8, F32x16, F64x4, F64x8};
    use super::*;
    // 16 registers: 12 sums, a panel line of two, one broadcast value.
    version!(gather_f32_avx2, outer_f32_avx2, F32x8, 6, 2, F32x8, 12, 1, "avx2,fma");
    version!(gather_f64_avx2, outer_f64_avx2, F64x4, 6, 2, F64x4, 12, 1, "avx2,fma");
    // 32 registers of twice the size, and products that broadcast from memory by themselves.
    version!(gather_f32_avx512, outer_f32_avx512, F32x16, 12, 1, F32x8, 12, 1, "avx512f,avx2,fma");
    version!(gather_f64_avx512, outer_f64_avx512, F64x8, 12, 1, F64x4, 12, 1, "avx512f,avx2,fma");
}

/// Elements that kernels are compiled for.
pub trait Tiles: Element {
    /// # Safety
    /// As `gather_body`; `isa` is present.
    unsafe fn gather_with(isa: Isa, job: &Gather<Self>, out: &mut Columns<Self>, column: usize, width: usize);
    /// # Safety
    /// As `outer_body`; `isa` is present.
    unsafe fn outer_with(isa: Isa, job: &Outer<Self>, out: &mut [Self]);
}

macro_rules! tiles {
    ($t:ty, $gather:ident, $outer:ident, $gather_avx2:ident, $outer_avx2:ident, $gather_avx512:ident, $outer_avx512:ident) => {
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
        }
    };
}
tiles!(f32, gather_f32, outer_f32, gather_f32_avx2, outer_f32_avx2, gather_f32_avx512, outer_f32_avx512);
tiles!(f64, gather_f64, outer_f64, gather_f64_avx2, outer_f64_avx2, gather_f64_avx512, outer_f64_avx512);

/// Rows of the outer-product tile of `version`: how `Outer::grad` is packed.
pub fn outer_rows(isa: Isa) -> usize {
    match isa {
        Isa::Portable => 2,
        Isa::Avx2 => 6,
        Isa::Avx512 => 12,
    }
}

/// Elements of the widest panel.
const MAX_PANEL: usize = 16;

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

/// Computes one tile at the start of `out`.
pub fn outer<T: Tiles>(isa: Isa, job: &Outer<T>, out: &mut [T]) {
    assert!(job.pixels.count == 0 || job.pixels.end + panel_width::<T>() <= job.input.len() + 1, "windows lie inside the input");
    assert!(job.pixels.count * outer_rows(isa) <= job.grad.len(), "a gradient row per pixel");
    assert!(job.rows <= outer_rows(isa) && job.width <= panel_width::<T>(), "a tile holds its rows and columns");
    assert!(isa.is_present());
    let end = job.rows.saturating_sub(1) * job.pitch + job.width;
    assert!(end <= out.len(), "rows lie inside the output");
    // SAFETY: asserted above.
    unsafe { T::outer_with(isa, job, out) }
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
                (0..count).for_each(|p| rows.push(p * 6, count - 1 - p, p % 2 * channels));
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
    fn outer_on_every_instruction_set() {
        let (pitch, step) = (50, 3);
        let input = numbers(0, 120);
        for isa in present() {
            let mr = outer_rows(isa);
            for (rows, width, accumulate) in [(mr, 16, false), (mr, 16, true), (1, 7, true), (mr - 1, 1, false)] {
                let mut pixels = Pixels::default();
                pixels.clear(step);
                for (offset, len) in [(0, 5), (15, 4), (70, 6)] {
                    pixels.push(offset, len);
                }
                let grad = numbers(1, 15 * mr);
                let before = numbers(2, mr * pitch);
                let mut out = before.clone();
                outer(isa, &Outer { input: &input, pixels: &pixels, grad: &grad, accumulate, pitch, rows, width }, &mut out);
                for (at, (got, before)) in out.iter().zip(&before).enumerate() {
                    let (r, j) = (at / pitch, at % pitch);
                    let expected = if r < rows && j < width {
                        let starts = (0..9).map(|p| p * step).chain((0..6).map(|p| 70 + p * step));
                        let sum: f32 = starts.zip(grad.chunks(mr)).map(|(from, g)| g[r] * input[from + j]).sum();
                        sum + if accumulate { *before } else { 0.0 }
                    } else {
                        *before
                    };
                    assert!((got - expected).abs() < 2e-5, "{isa:?}, {rows} by {width}: {got} and {expected}");
                }
            }
        }
    }
}
