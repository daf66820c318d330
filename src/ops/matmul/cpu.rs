//! Host implementation: the `gemm` crate (run-time dispatch to AVX2/AVX-512/NEON), one call per block of rows. Blocks
//! depend on the shape alone, so the result does not depend on the number of threads.

use rayon::prelude::*;

use super::Read;
use crate::device::cpu::{Buffer, for_chunks, simd_dispatch};
use crate::tensor::{Scalar, Tensor};

/// Products under this many multiply-adds stay on one thread.
const PARALLEL_MACS: usize = 1 << 18;
const ROWS_PER_BLOCK: usize = 128;

/// `c[m, n] = alpha · a · b` for row-major `c`; strides in elements.
fn gemm_strided<T: Scalar>(c: &mut [T], alpha: T, a: &[T], a_strides: [usize; 2], b: &[T], b_strides: [usize; 2], [m, n, k]: [usize; 3]) {
    assert_eq!(c.len(), m * n);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let last = |rows: usize, cols: usize, s: [usize; 2]| (rows - 1) * s[0] + (cols - 1) * s[1];
    assert!(a.len() > last(m, k, a_strides) && b.len() > last(k, n, b_strides), "gemm reads inside its operands");
    let block = |row: usize, c: &mut [T]| {
        let rows = c.len() / n;
        // SAFETY: `c` holds rows × n elements; the asserts above bound every read of `a` and `b`; strides are positive.
        unsafe {
            gemm::gemm(
                rows,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr().add(row * a_strides[0]),
                a_strides[1] as isize,
                a_strides[0] as isize,
                b.as_ptr(),
                b_strides[1] as isize,
                b_strides[0] as isize,
                T::ZERO,
                alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    };
    if m * n * k < PARALLEL_MACS {
        block(0, c);
    } else {
        let rows = if m >= 2 * ROWS_PER_BLOCK { ROWS_PER_BLOCK } else { m.div_ceil(4).max(8) };
        c.par_chunks_mut(rows * n).enumerate().for_each(|(i, c)| block(i * rows, c));
    }
}

simd_dispatch! {
    /// `c[i] = alpha · Σ_j a[i, j] · b[j]`
    fn dots_of_three<T: Scalar>(c: &mut [T], alpha: T, a: &[[T; 3]], b: [T; 3]) {
        for (c, row) in c.iter_mut().zip(a) {
            *c = alpha * (row[0] * b[0] + row[1] * b[1] + row[2] * b[2]);
        }
    }
}

pub fn matmul<T: Scalar>(alpha: f64, a: &Tensor, ra: Read, b: &Tensor, rb: Read, [m, n, k]: [usize; 3]) -> Tensor {
    let alpha = T::from_f64(alpha);
    let mut c = Buffer::<T>::zeros(m * n);
    // Colours to grey: a matrix product spends most of its time on packing.
    if let (1, Read::Plain, Ok(b)) = (n, ra, <&[T; 3]>::try_from(b.as_slice::<T>())) {
        let rows = a.as_slice::<T>().as_chunks::<3>().0;
        for_chunks(&mut c, 1 << 12, |at, c| dots_of_three(c, alpha, &rows[at..], *b));
        return Tensor::from_buffer(&[m, n], c);
    }
    let strides = |r: Read, rows: usize, cols: usize| if r == Read::Plain { [cols, 1] } else { [1, rows] };
    gemm_strided(&mut c, alpha, a.as_slice::<T>(), strides(ra, m, k), b.as_slice::<T>(), strides(rb, k, n), [m, n, k]);
    Tensor::from_buffer(&[m, n], c)
}
