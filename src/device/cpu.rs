//! What the CPU implementations of the ops share: the element types, buffers that are used again, thread helpers.

mod buffer;
pub(crate) mod lanes;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytemuck::Pod;
use rayon::prelude::*;

pub use buffer::Buffer;

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
    /// Free memory of such elements.
    #[doc(hidden)]
    fn pool() -> &'static Mutex<buffer::Pool<Self>>;
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
            fn pool() -> &'static Mutex<buffer::Pool<$t>> {
                static POOL: Mutex<buffer::Pool<$t>> = Mutex::new(buffer::Pool::new());
                &POOL
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
}
