//! Cases of the matrix product: both readings of both operands, sizes on both sides of each cut.

use super::{Case, Tolerance, normal};
use recant::autograd;
use recant::ops::matmul::{Read, matmul, matmul_scaled};

fn case([m, n, k]: [usize; 3], ra: Read, rb: Read) -> Case {
    let shape = |r: Read, rows: usize, cols: usize| if r == Read::Plain { [rows, cols] } else { [cols, rows] };
    Case::new(
        format!("matmul {m}x{k}x{n} {ra:?} {rb:?}"),
        vec![normal(0, &shape(ra, m, k)), normal(1, &shape(rb, k, n))],
        move |t| matmul(&t[0], ra, &t[1], rb),
        move |t| {
            let (a, b) = (t[0].to_f64_vec(), t[1].to_f64_vec());
            let at = |r: Read, i: usize, j: usize, rows: usize, cols: usize| if r == Read::Plain { i * cols + j } else { j * rows + i };
            let element = |i: usize, j: usize| (0..k).map(|l| a[at(ra, i, l, m, k)] * b[at(rb, l, j, k, n)]).sum();
            (0..m * n).map(|p| element(p / n, p % n)).collect()
        },
        Tolerance::sum_of(k),
    )
    .adjoint(move |t| match ra {
        Read::Plain => matmul(&t[0], Read::Plain, &t[1], rb.flipped()),
        Read::Transposed => matmul(&t[1], rb, &t[0], Read::Transposed),
    })
    .on_vars(move |v| autograd::matmul(&v[0], ra, &v[1], rb))
}

/// The same with a factor.
fn scaled_case([m, n, k]: [usize; 3], ra: Read, rb: Read) -> Case {
    const ALPHA: f64 = -0.3;
    let Case { inputs, reference, .. } = case([m, n, k], ra, rb);
    Case::new(
        format!("matmul {m}x{k}x{n} {ra:?} {rb:?}, scaled"),
        inputs,
        move |t| matmul_scaled(ALPHA, &t[0], ra, &t[1], rb),
        move |t| reference(t).into_iter().map(|v| ALPHA * v).collect(),
        Tolerance::sum_of(k),
    )
    .on_vars(move |v| autograd::matmul_scaled(ALPHA, &v[0], ra, &v[1], rb))
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for ra in [Read::Plain, Read::Transposed] {
        for rb in [Read::Plain, Read::Transposed] {
            cases.extend([[1, 1, 1], [3, 5, 4], [0, 3, 2], [17, 33, 65], [300, 64, 40], [64, 300, 130], [9000, 1, 3]].map(|s| case(s, ra, rb)));
            cases.extend([[3, 5, 4], [17, 33, 65], [300, 64, 40], [9000, 1, 3]].map(|s| scaled_case(s, ra, rb)));
        }
    }
    cases
}
