//! What the CPU implementations of the ops share: the element types, recycled buffers, thread helpers.

pub(crate) mod lanes;

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use rayon::prelude::*;

/// Element types of the engine: `f32` is what runs, `f64` is what gradient checks use.
pub trait Element:
    Pod
    + Send
    + Sync
    + Default
    + PartialOrd
    + std::fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    fn from_f64(v: f64) -> Self;
    fn to_f64(self) -> f64;
    fn mul_add(self, a: Self, b: Self) -> Self;
    fn powf(self, p: Self) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn tanh(self) -> Self;
    fn abs(self) -> Self;
}

macro_rules! element {
    ($t:ty) => {
        impl Element for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn from_f64(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                <$t>::mul_add(self, a, b)
            }
            #[inline(always)]
            fn powf(self, p: Self) -> Self {
                <$t>::powf(self, p)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                <$t>::exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                <$t>::ln(self)
            }
            #[inline(always)]
            fn ln_1p(self) -> Self {
                <$t>::ln_1p(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                <$t>::tanh(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
        }
    };
}
element!(f32);
element!(f64);

/// Instruction sets that hot loops are compiled for; chosen at run time, so one binary uses what the machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every machine of the target has.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 foundation.
    Avx512,
}

impl Isa {
    /// The widest set of this machine. The answer is cached by the standard library.
    pub fn detect() -> Isa {
        [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.is_present()).unwrap_or(Isa::Portable)
    }

    pub fn is_present(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Isa::Avx2.is_present() && is_x86_feature_detected!("avx512f"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// Defines a function whose loops are compiled for AVX2 as well as for the target's baseline, chosen at run time. The
/// results are the same: only explicit fused products round differently, and loops here use none.
macro_rules! simd_dispatch {
    ($(#[$doc:meta])* fn $name:ident $(<$($g:ident: $bound:path),+>)? ($($arg:ident: $of:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        fn $name $(<$($g: $bound),+>)? ($($arg: $of),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($g: $bound),+>)? ($($arg: $of),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$($g: $bound),+>)? ($($arg: $of),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if $crate::device::cpu::Isa::Avx2.is_present() {
                    // SAFETY: the machine has the instruction set.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use simd_dispatch;

/// Whether the CPU rounds to bf16 where a GPU of `Precision::Bf16` does.
static ROUNDS: AtomicBool = AtomicBool::new(false);

/// From now on the convolutions of this process round what they multiply, and StyleGAN2 its activations, to bf16, as a GPU of
/// `Precision::Bf16` does: to see what that does to a result where there is no GPU. It saves nothing.
pub fn round_to_bf16(on: bool) {
    ROUNDS.store(on, Relaxed);
}

pub fn rounds_to_bf16() -> bool {
    ROUNDS.load(Relaxed)
}

simd_dispatch! {
    /// Rounds to the nearest numbers of bf16, to even ones between two; NaN stays.
    fn round_slice(values: &mut [f32]) {
        for v in values {
            let bits = v.to_bits();
            let rounded = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
            *v = if v.is_nan() { *v } else { rounded };
        }
    }
}

/// Rounds values to bf16's.
pub fn round(values: &mut [f32]) {
    for_chunks(values, PARALLEL_ELEMENTS / 2, |_, chunk| round_slice(chunk));
}

/// Asks for the cache lines of what will be read soon. The machine's own prefetching begins anew in every page of 4 KiB, which a
/// pass over rows of that size feels: it waits for the first lines of each.
#[inline(always)]
pub(crate) fn prefetch<T>(soon: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in soon.chunks((64 / size_of::<T>()).max(1)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the baseline has the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = soon;
}

/// Freed buffers by (element type, size class). A fresh allocation of an activation costs a page fault per 4 KiB, which
/// is more than most elementwise passes over it; training asks for the same lengths in every iteration.
static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Default::default);

#[derive(Default)]
struct Pool {
    shelves: BTreeMap<(TypeId, usize), Shelf>,
    bytes: usize,
}

/// Buffers of one type and class.
#[derive(Default)]
struct Shelf {
    free: Vec<Box<dyn std::any::Any + Send>>,
    /// How many were ever wanted at once. Vectors that callers made themselves come back here too; without this bound
    /// they would fill the pool with sizes that nobody asks for.
    wanted: usize,
}

/// Buffers under this many bytes go to the allocator directly.
const POOLED_BYTES: usize = 1 << 12;
/// The pool never holds more than this; beyond it buffers are freed.
const POOL_LIMIT: usize = 2 << 30;

/// Classes are 8 to an octave, so that a buffer serves lengths that differ a little, as those of planes and of windows do.
const CLASS_BITS: u32 = 3;

/// A free buffer of up to so many times the class serves, too, before a new one is made: maps of different layers and the planes
/// of their convolutions take turns. At full width that saves 0.9 of 2.9 GB and costs no time.
const LARGEST: usize = 2;

/// Distance between the classes around `n`.
fn class_step(n: usize) -> usize {
    1 << n.max(1).ilog2().saturating_sub(CLASS_BITS)
}

/// A vector of `n` elements whose content is unspecified (initialised, but stale); callers write every element.
pub fn stale_vec<T: Element>(n: usize) -> Vec<T> {
    if n * size_of::<T>() < POOLED_BYTES {
        return vec![T::ZERO; n];
    }
    let class = n.next_multiple_of(class_step(n));
    let mut pool = POOL.lock().expect("the buffer pool is never left half-written");
    let of = TypeId::of::<T>();
    let free = pool.shelves.range_mut((of, class)..=(of, LARGEST * class)).find_map(|((_, class), shelf)| Some((*class, shelf.free.pop()?)));
    match &free {
        Some((class, _)) => pool.bytes -= class * size_of::<T>(),
        None => pool.shelves.entry((of, class)).or_default().wanted += 1,
    }
    drop(pool);
    let mut v = match free {
        Some((_, found)) => *found.downcast::<Vec<T>>().expect("keyed by element type"),
        None => vec![T::ZERO; class],
    };
    // What a shorter use before left off is written again here.
    v.resize(n, T::ZERO);
    v
}

/// A vector of `n` zeros.
pub fn zero_vec<T: Element>(n: usize) -> Vec<T> {
    if n * size_of::<T>() < POOLED_BYTES {
        return vec![T::ZERO; n];
    }
    let mut v = stale_vec(n);
    v.fill(T::ZERO);
    v
}

/// Gives a buffer back for reuse.
pub fn recycle<T: Element>(v: Vec<T>) {
    let class = v.capacity() / class_step(v.capacity()) * class_step(v.capacity());
    let bytes = class * size_of::<T>();
    if bytes < POOLED_BYTES {
        return;
    }
    let mut pool = POOL.lock().expect("the buffer pool is never left half-written");
    let room = pool.bytes + bytes <= POOL_LIMIT;
    if let Some(shelf) = pool.shelves.get_mut(&(TypeId::of::<T>(), class)).filter(|s| room && s.free.len() < s.wanted) {
        shelf.free.push(Box::new(v));
        pool.bytes += bytes;
    }
}

/// Pieces of `whole` of these lengths, one after the other.
pub fn pieces<T>(mut whole: &mut [T], lengths: impl Iterator<Item = usize>) -> impl Iterator<Item = &mut [T]> {
    lengths.map(move |n| whole.split_off_mut(..n).expect("the whole has room for every piece"))
}

/// How long a thread without work looks for some before it sleeps.
const AWAKE: Duration = Duration::from_micros(500);

thread_local! {
    /// Threads that this one keeps awake, or is about to.
    static KEPT_AWAKE: Arc<AtomicUsize> = Arc::default();
}

/// Keeps the pool's other threads looking for work for a while, when called on one of them before each op. The pool by
/// itself lets them sleep after some ten microseconds, and to wake one takes up to 200 on a virtual machine, which is
/// what half an op takes: two threads then gain a factor of 1.3 where 1.9 is possible.
pub fn keep_awake() {
    let Some(me) = rayon::current_thread_index() else { return };
    let others = rayon::current_num_threads() - 1;
    KEPT_AWAKE.with(|kept| {
        for _ in kept.load(Relaxed)..others {
            kept.fetch_add(1, Relaxed);
            let kept = kept.clone();
            rayon::spawn(move || {
                let mut since = Instant::now();
                // Not on the thread that asked: it may run this itself while it waits for the others.
                while rayon::current_thread_index() != Some(me) && since.elapsed() < AWAKE {
                    match rayon::yield_now() {
                        Some(rayon::Yield::Executed) => since = Instant::now(),
                        _ => std::hint::spin_loop(),
                    }
                }
                kept.fetch_sub(1, Relaxed);
            });
        }
    });
}

/// Work below this many elements is not worth waking a second thread for.
pub const PARALLEL_ELEMENTS: usize = 1 << 14;

/// Calls `f(first_index, chunk)` over `out` in fixed chunks, in parallel when it is worth it. Chunk bounds depend on
/// the length alone, so results do not depend on the number of threads.
pub fn for_chunks<T: Element>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    let chunk = chunk.max(1);
    if out.len() < PARALLEL_ELEMENTS {
        out.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i * chunk, c));
    } else {
        out.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i * chunk, c));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_kept_awake_once_and_not_for_ever() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            let kept = || KEPT_AWAKE.with(|k| k.load(Relaxed));
            for _ in 0..100 {
                keep_awake();
                assert!(kept() <= 2, "{} of 2 other threads", kept());
                // They work for others meanwhile.
                let sum: usize = (0..1000_usize).into_par_iter().sum();
                assert_eq!(sum, 499_500);
            }
            // One that this thread holds itself ends when this thread looks for work.
            while kept() > 0 {
                rayon::yield_now();
            }
        });
        // Outside of a pool there is nobody to keep awake.
        keep_awake();
    }

    /// Buffers of a size that only this test uses.
    #[test]
    fn the_pool_keeps_what_is_asked_for_again_and_nothing_else() {
        // A class, and a length that it serves.
        const N: usize = 15 << 20;
        const LESS: usize = N - 12_345;
        let on_shelf = || {
            let pool = POOL.lock().unwrap();
            pool.shelves.get(&(TypeId::of::<f32>(), N)).map_or(0, |s| s.free.len())
        };
        // Made elsewhere: nobody has asked for this size.
        recycle(vec![1.0_f32; N]);
        assert_eq!(on_shelf(), 0);
        let (a, b) = (stale_vec::<f32>(N), stale_vec::<f32>(LESS));
        assert_eq!((a.len(), b.len()), (N, LESS));
        for v in [a, b, vec![1.0_f32; N]] {
            recycle(v);
        }
        assert_eq!(on_shelf(), 2);
        let again = stale_vec::<f32>(LESS);
        assert_eq!((again.len(), on_shelf()), (LESS, 1));
        recycle(again);
        // Half as long or longer: the same memory, which comes back to its shelf.
        let half = stale_vec::<f32>(N / LARGEST);
        assert_eq!((half.len(), on_shelf()), (N / LARGEST, 1));
        let shorter = stale_vec::<f32>(N / LARGEST / 2);
        assert_eq!(on_shelf(), 1);
        recycle(half);
        recycle(shorter);
        assert_eq!(on_shelf(), 2);
        assert_eq!(stale_vec::<f32>(N).len(), N);
        assert!(zero_vec::<f32>(N).iter().all(|v| *v == 0.0));
    }
}
