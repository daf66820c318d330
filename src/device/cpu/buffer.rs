//! Memory of the host that is used again. A fresh allocation of an activation costs a page fault per 4 KiB, which is more than most
//! elementwise passes over it; training asks for the same lengths in every iteration.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::Element;

/// Buffers under this many bytes go to the allocator directly.
const POOLED_BYTES: usize = 1 << 12;
/// The pool of a type never holds more than this; beyond it memory is freed.
const POOL_LIMIT: usize = 2 << 30;

/// Where buffers begin: a register of 64 bytes that crosses the border of a cache line takes two accesses. Memory from the
/// allocator begins 16 bytes behind one, maps have whole lines of channels, and so would every register.
const ALIGNMENT: usize = 64;

/// Classes are 8 to an octave, so that a buffer serves lengths that differ a little, as those of planes and of windows do.
const CLASS_BITS: u32 = 3;

/// Free memory of up to so many times the class serves, too, before new one is made: maps of different layers and the planes
/// of their convolutions take turns. At full width that saves 0.9 of 2.9 GB and costs no time.
const LARGEST: usize = 2;

/// Free memory of one element type, by size class.
#[derive(Default)]
pub struct Pool<T> {
    shelves: BTreeMap<usize, Shelf<T>>,
    bytes: usize,
}

/// Memory of one class.
struct Shelf<T> {
    free: Vec<Vec<T>>,
    /// How many were ever wanted at once. Vectors that callers made themselves come here too; without this bound they would
    /// fill the pool with sizes that nobody asks for.
    wanted: usize,
}

impl<T> Pool<T> {
    pub(super) const fn new() -> Pool<T> {
        Pool { shelves: BTreeMap::new(), bytes: 0 }
    }

    /// Memory of at least `class` elements. Where there is none, one more is wanted from now on.
    fn take(&mut self, class: usize) -> Option<Vec<T>> {
        let found = self.shelves.range_mut(class..=LARGEST * class).find_map(|(class, shelf)| Some((*class, shelf.free.pop()?)));
        match found {
            Some((class, memory)) => {
                self.bytes -= class * size_of::<T>();
                Some(memory)
            }
            None => {
                self.shelves.entry(class).or_insert(Shelf { free: Vec::new(), wanted: 0 }).wanted += 1;
                None
            }
        }
    }

    /// Keeps memory of `class` if there is room and it may be asked for; otherwise gives it back, to be freed.
    fn put(&mut self, class: usize, memory: Vec<T>) -> Option<Vec<T>> {
        let bytes = class * size_of::<T>();
        let room = self.bytes + bytes <= POOL_LIMIT;
        let Some(shelf) = self.shelves.get_mut(&class).filter(|s| room && s.free.len() < s.wanted) else { return Some(memory) };
        shelf.free.push(memory);
        self.bytes += bytes;
        None
    }
}

/// Distance between the classes around `n`.
fn class_step(n: usize) -> usize {
    1 << n.max(1).ilog2().saturating_sub(CLASS_BITS)
}

/// Elements that memory has beyond those of its class, to begin where it should.
const fn slack<T>() -> usize {
    ALIGNMENT / size_of::<T>() - 1
}

/// Elements in memory that returns to the pool when they are dropped.
#[derive(Debug, Default)]
pub struct Buffer<T: Element> {
    /// All of it initialised: of a whole class and the slack, or what a caller made.
    memory: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Element> Buffer<T> {
    /// `len` elements whose values are unspecified (initialised, but stale); callers write every one.
    pub fn stale(len: usize) -> Buffer<T> {
        let small = len * size_of::<T>() < POOLED_BYTES;
        let class = if small { len } else { len.next_multiple_of(class_step(len)) };
        let free = if small { None } else { T::pool().lock().expect("the pool is never left half-written").take(class) };
        let memory = free.unwrap_or_else(|| vec![T::ZERO; class + slack::<T>()]);
        Buffer { start: memory.as_ptr().align_offset(ALIGNMENT), memory, len }
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer<T> {
        let mut buffer = Buffer::stale(len);
        // Small ones are made of zeros.
        if len * size_of::<T>() >= POOLED_BYTES {
            buffer.fill(T::ZERO);
        }
        buffer
    }
}

impl<T: Element> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Buffer<T> {
        Buffer { start: 0, len: values.len(), memory: values }
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let serves = self.memory.len().saturating_sub(slack::<T>());
        let step = class_step(serves);
        let class = serves / step * step;
        if class * size_of::<T>() >= POOLED_BYTES {
            let memory = std::mem::take(&mut self.memory);
            // Freed, if it is, when nobody waits for the pool any more.
            let _rest = T::pool().lock().expect("the pool is never left half-written").put(class, memory);
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory[self.start..][..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_on_a_cache_line() {
        for len in [0, 1, 7, 1000, 1024, 1025, 100_003] {
            // New ones and such as were used before.
            for _ in 0..2 {
                assert!(Buffer::<f32>::stale(len).as_ptr().addr().is_multiple_of(ALIGNMENT), "{len}");
                assert!(Buffer::<f64>::zeros(len).as_ptr().addr().is_multiple_of(ALIGNMENT), "{len}");
            }
        }
    }

    /// Buffers of a size that only this test uses.
    #[test]
    fn the_pool_keeps_what_is_asked_for_again_and_nothing_else() {
        // A class, and a length that it serves.
        const N: usize = 15 << 20;
        const LESS: usize = N - 12_345;
        let on_shelf = || f32::pool().lock().unwrap().shelves.get(&N).map_or(0, |s| s.free.len());
        let made_elsewhere = || Buffer::from(vec![1.0_f32; N + slack::<f32>()]);
        // Nobody has asked for this size.
        drop(made_elsewhere());
        assert_eq!(on_shelf(), 0);
        let (a, b) = (Buffer::<f32>::stale(N), Buffer::<f32>::stale(LESS));
        assert_eq!((a.len(), b.len()), (N, LESS));
        drop((a, b, made_elsewhere()));
        assert_eq!(on_shelf(), 2);
        let again = Buffer::<f32>::stale(LESS);
        assert_eq!((again.len(), on_shelf()), (LESS, 1));
        drop(again);
        // Half as long: the same memory, which comes back to its shelf; less than half as long: none of it.
        let half = Buffer::<f32>::stale(N / LARGEST);
        assert_eq!((half.len(), on_shelf()), (N / LARGEST, 1));
        let shorter = Buffer::<f32>::stale(N / LARGEST / 2);
        assert_eq!(on_shelf(), 1);
        drop((half, shorter));
        assert_eq!(on_shelf(), 2);
        assert_eq!(Buffer::<f32>::stale(N).len(), N);
        assert!(Buffer::<f32>::zeros(N).iter().all(|v| *v == 0.0));
    }
}
