//! Vector registers: the compiler keeps arrays of these in registers where it would spill arrays of numbers.

use super::Element;

/// A register of several elements.
///
/// # Safety
/// Every function may only run where the register's instruction set is present; `load` and `store` touch `COUNT`
/// elements at any alignment, `load_some` the first `n` of them (`n <= COUNT`), `store_some`, too (`0 < n < COUNT`).
pub unsafe trait Lanes: Copy {
    type Item: Element;
    const COUNT: usize;
    unsafe fn splat(v: Self::Item) -> Self;
    unsafe fn load(from: *const Self::Item) -> Self;
    unsafe fn store(self, to: *mut Self::Item);
    /// The others are zero.
    unsafe fn load_some(from: *const Self::Item, n: usize) -> Self;
    unsafe fn store_some(self, to: *mut Self::Item, n: usize);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// `self · a + b`
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
}

/// A register whose elements can be summed in f64, lane by lane.
///
/// # Safety
/// As `Lanes`.
pub unsafe trait Summed: Lanes<Item = f32> {
    /// A sum per lane.
    type Sums: Copy;
    unsafe fn no_sums() -> Self::Sums;
    unsafe fn add_to(self, sums: Self::Sums) -> Self::Sums;
    unsafe fn total(sums: Self::Sums) -> f64;
}

/// Defines a function over registers `L` of f32, compiled for AVX2 as well as for the target's baseline and chosen at run
/// time. Its body is an unsafe function: the instruction set of `L` is present.
macro_rules! lanes_dispatch {
    ($(#[$doc:meta])* fn $name:ident<$l:ident>($($arg:ident: $of:ty),* $(,)?) -> $ret:ty $body:block) => {
        $(#[$doc])*
        fn $name($($arg: $of),*) -> $ret {
            #[inline(always)]
            unsafe fn body<$l: $crate::device::cpu::lanes::Summed>($($arg: $of),*) -> $ret $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $of),*) -> $ret {
                    // SAFETY: the function has the instruction set.
                    unsafe { body::<$crate::device::cpu::lanes::F32x8>($($arg),*) }
                }
                if $crate::device::cpu::Isa::Avx2.is_present() {
                    // SAFETY: the machine has the instruction set.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // SAFETY: every machine has this one.
            unsafe { body::<$crate::device::cpu::lanes::Plain<f32, 8>>($($arg),*) }
        }
    };
}
pub(crate) use lanes_dispatch;

/// What every machine has: small arrays, vectorised by the compiler as far as its baseline goes.
#[derive(Clone, Copy)]
pub struct Plain<T, const N: usize>([T; N]);

// SAFETY: needs no instruction set; `load` and `store` touch N elements.
unsafe impl<T: Element, const N: usize> Lanes for Plain<T, N> {
    type Item = T;
    const COUNT: usize = N;
    #[inline(always)]
    unsafe fn splat(v: T) -> Self {
        Plain([v; N])
    }
    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller's contract.
        Plain(unsafe { from.cast::<[T; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: the caller's contract.
        unsafe { to.cast::<[T; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_some(from: *const T, n: usize) -> Self {
        // SAFETY: the caller's contract.
        Plain(if n == N { unsafe { from.cast::<[T; N]>().read_unaligned() } } else { std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { T::ZERO }) })
    }
    #[inline(always)]
    unsafe fn store_some(self, to: *mut T, n: usize) {
        for (i, v) in self.0.into_iter().enumerate().take(n) {
            // SAFETY: the caller's contract.
            unsafe { *to.add(i) = v }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i] / other.0[i]))
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Plain(self.0.map(T::sqrt))
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // Where the baseline has no fused product it would be a library call per element.
        if cfg!(target_arch = "aarch64") {
            Plain(std::array::from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
        } else {
            Plain(std::array::from_fn(|i| self.0[i] * a.0[i] + b.0[i]))
        }
    }
}

// SAFETY: needs no instruction set.
unsafe impl<const N: usize> Summed for Plain<f32, N> {
    type Sums = [f64; N];
    #[inline(always)]
    unsafe fn no_sums() -> [f64; N] {
        [0.0; N]
    }
    #[inline(always)]
    unsafe fn add_to(self, sums: [f64; N]) -> [f64; N] {
        std::array::from_fn(|i| sums[i] + self.0[i] as f64)
    }
    #[inline(always)]
    unsafe fn total(sums: [f64; N]) -> f64 {
        sums.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::*;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, Summed};
    use std::arch::x86_64::*;

    /// A mask of the first `n` of the lanes of 256 bits, which have `BYTES` bytes each.
    #[inline(always)]
    unsafe fn first<const BYTES: usize>(n: usize) -> __m256i {
        const EDGE: [i8; 64] = {
            let mut edge = [0; 64];
            let mut i = 0;
            while i < 32 {
                edge[i] = -1;
                i += 1;
            }
            edge
        };
        debug_assert!(n * BYTES <= 32);
        // SAFETY: 32 bytes from one of the first 33.
        unsafe { _mm256_loadu_si256(EDGE.as_ptr().add(32 - n * BYTES).cast()) }
    }

    /// Loads and stores of the first `n` lanes. Functions and no closures: these must be inlined.
    macro_rules! some {
        ($of:ty, $item:ty, |$n:ident| $mask:expr, $load_some:ident: |$from:ident, $m:ident| $load:expr, $store_some:ident: $store:ident) => {
            #[inline(always)]
            unsafe fn $load_some($from: *const $item, $n: usize) -> $of {
                // SAFETY: the contract of `Lanes`, here and below.
                unsafe {
                    let $m = $mask;
                    $load
                }
            }
            #[inline(always)]
            unsafe fn $store_some(to: *mut $item, $n: usize, v: $of) {
                // SAFETY: as above.
                unsafe { $store(to, $mask, v) }
            }
        };
    }
    some!(__m256, f32, |n| first::<4>(n), load_ps: |from, m| _mm256_maskload_ps(from, m), store_ps: _mm256_maskstore_ps);
    some!(__m256d, f64, |n| first::<8>(n), load_pd: |from, m| _mm256_maskload_pd(from, m), store_pd: _mm256_maskstore_pd);
    some!(__m512, f32, |n| ((1_u32 << n) - 1) as u16, load_ps512: |from, m| _mm512_maskz_loadu_ps(m, from), store_ps512: _mm512_mask_storeu_ps);
    some!(__m512d, f64, |n| ((1_u32 << n) - 1) as u8, load_pd512: |from, m| _mm512_maskz_loadu_pd(m, from), store_pd512: _mm512_mask_storeu_pd);

    macro_rules! register {
        ($name:ident, $of:ty, $item:ty, $count:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident, $sqrt:ident, $fma:ident, $load_some:ident, $store_some:ident) => {
            #[derive(Clone, Copy)]
            pub struct $name($of);

            // SAFETY: thin names for instructions that touch the whole register.
            unsafe impl Lanes for $name {
                type Item = $item;
                const COUNT: usize = $count;
                #[inline(always)]
                unsafe fn splat(v: $item) -> Self {
                    // SAFETY: the caller's contract, here and below.
                    $name(unsafe { $splat(v) })
                }
                #[inline(always)]
                unsafe fn load(from: *const $item) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $load(from) })
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut $item) {
                    // SAFETY: as above.
                    unsafe { $store(to, self.0) }
                }
                #[inline(always)]
                unsafe fn load_some(from: *const $item, n: usize) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $load_some(from, n) })
                }
                #[inline(always)]
                unsafe fn store_some(self, to: *mut $item, n: usize) {
                    // SAFETY: as above.
                    unsafe { $store_some(to, n, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $add(self.0, other.0) })
                }
                #[inline(always)]
                unsafe fn sub(self, other: Self) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $sub(self.0, other.0) })
                }
                #[inline(always)]
                unsafe fn div(self, other: Self) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $div(self.0, other.0) })
                }
                #[inline(always)]
                unsafe fn sqrt(self) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $sqrt(self.0) })
                }
                #[inline(always)]
                unsafe fn mul(self, other: Self) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $mul(self.0, other.0) })
                }
                #[inline(always)]
                unsafe fn mul_add(self, a: Self, b: Self) -> Self {
                    // SAFETY: as above.
                    $name(unsafe { $fma(self.0, a.0, b.0) })
                }
            }
        };
    }
    register!(F32x8, __m256, f32, 8, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_sqrt_ps, _mm256_fmadd_ps, load_ps, store_ps);
    register!(F64x4, __m256d, f64, 4, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd, _mm256_sub_pd, _mm256_mul_pd, _mm256_div_pd, _mm256_sqrt_pd, _mm256_fmadd_pd, load_pd, store_pd);
    register!(F32x16, __m512, f32, 16, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_sqrt_ps, _mm512_fmadd_ps, load_ps512, store_ps512);
    register!(F64x8, __m512d, f64, 8, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd, _mm512_sub_pd, _mm512_mul_pd, _mm512_div_pd, _mm512_sqrt_pd, _mm512_fmadd_pd, load_pd512, store_pd512);

    // SAFETY: thin names for instructions.
    unsafe impl Summed for F32x8 {
        type Sums = [__m256d; 2];
        #[inline(always)]
        unsafe fn no_sums() -> [__m256d; 2] {
            // SAFETY: the caller's contract, here and below.
            unsafe { [_mm256_setzero_pd(); 2] }
        }
        #[inline(always)]
        unsafe fn add_to(self, [low, high]: [__m256d; 2]) -> [__m256d; 2] {
            // SAFETY: as above.
            unsafe {
                [
                    _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(self.0))),
                    _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(self.0, 1))),
                ]
            }
        }
        #[inline(always)]
        unsafe fn total([low, high]: [__m256d; 2]) -> f64 {
            let mut lanes = [0.0; 8];
            // SAFETY: as above; both halves have four.
            unsafe {
                _mm256_storeu_pd(lanes.as_mut_ptr(), low);
                _mm256_storeu_pd(lanes.as_mut_ptr().add(4), high);
            }
            lanes.iter().sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every function of a register against plain numbers.
    ///
    /// # Safety
    /// Its instruction set is present.
    unsafe fn check<L: Lanes>() {
        let n = L::COUNT;
        let numbers = |from: f64| -> Vec<L::Item> { (0..n + 3).map(|i| L::Item::from_f64(from + 0.5 * i as f64)).collect() };
        let (a, b) = (numbers(1.0), numbers(2.25));
        // SAFETY: the slices hold more than a register; the caller's contract.
        unsafe {
            let [x, y] = [&a, &b].map(|v| L::load(v.as_ptr()));
            let seen = |v: L| {
                let mut out = vec![L::Item::ZERO; n];
                v.store(out.as_mut_ptr());
                out
            };
            let want = |f: &dyn Fn(L::Item, L::Item) -> L::Item| -> Vec<L::Item> { (0..n).map(|i| f(a[i], b[i])).collect() };
            assert_eq!(seen(x.add(y)), want(&|a, b| a + b));
            assert_eq!(seen(x.sub(y)), want(&|a, b| a - b));
            assert_eq!(seen(x.mul(y)), want(&|a, b| a * b));
            assert_eq!(seen(x.div(y)), want(&|a, b| a / b));
            assert_eq!(seen(x.sqrt()), want(&|a, _| a.sqrt()));
            // Halves and quarters: exact, fused or not.
            assert_eq!(seen(x.mul_add(y, x)), want(&|a, b| a * b + a));
            assert_eq!(seen(L::splat(b[2])), vec![b[2]; n]);
            for some in 1..n {
                let part = seen(L::load_some(a.as_ptr(), some));
                assert_eq!(part[..some], a[..some]);
                assert!(part[some..].iter().all(|v| *v == L::Item::ZERO));
                let mut out = b.clone();
                x.store_some(out.as_mut_ptr(), some);
                assert_eq!((&out[..some], &out[some..]), (&a[..some], &b[some..]));
            }
        }
    }

    /// # Safety
    /// As `check`.
    unsafe fn check_sums<L: Summed>() {
        // Near 2^24, where f32 no longer holds halves: the sum is in f64.
        let values: Vec<f32> = (0..L::COUNT).map(|i| 16_777_216.0 + 2.0 * i as f32).collect();
        // SAFETY: the slice holds a register; the caller's contract.
        let total = unsafe {
            let one = L::load(values.as_ptr());
            let half = L::splat(0.5);
            L::total(half.add_to(one.add_to(L::no_sums())))
        };
        assert_eq!(total, values.iter().map(|v| *v as f64 + 0.5).sum::<f64>());
    }

    #[test]
    fn registers_do_what_numbers_do() {
        // SAFETY: every machine has these; the others where they are found.
        unsafe {
            check::<Plain<f32, 4>>();
            check::<Plain<f64, 2>>();
            check_sums::<Plain<f32, 8>>();
            #[cfg(target_arch = "x86_64")]
            {
                use crate::device::cpu::Isa;
                if Isa::Avx2.is_present() {
                    check::<F32x8>();
                    check::<F64x4>();
                    check_sums::<F32x8>();
                }
                if Isa::Avx512.is_present() {
                    check::<F32x16>();
                    check::<F64x8>();
                }
            }
        }
    }
}
