//! Cases of sums and broadcasts: each pattern of kept and summed dimensions, and sizes whose sums are cut.

use super::{Case, Tolerance, normal};
use recant::autograd;
use recant::ops::reduce::{broadcast_to, channel_dot, sum_to};
use recant::tensor::DType;

/// Index into `small` of each element of `large`, where dimensions of size 1 repeat.
fn repeated(large: &[usize], small: &[usize]) -> Vec<usize> {
    let len: usize = large.iter().product();
    let at = |mut i: usize| {
        let (mut index, mut stride) = (0, 1);
        for (l, s) in large.iter().zip(small).rev() {
            index += i % l % s * stride;
            (i, stride) = (i / l, stride * s);
        }
        index
    };
    (0..len).map(at).collect()
}

fn pair(large: &'static [usize], small: &'static [usize]) -> [Case; 2] {
    let summed = large.iter().product::<usize>() / small.iter().product::<usize>().max(1);
    [
        Case::new(
            format!("sum_to {large:?} to {small:?}"),
            vec![normal(0, large)],
            |t| sum_to(&t[0], small),
            |t| {
                let mut out = vec![0.0; small.iter().product()];
                for (v, to) in t[0].to_f64_vec().iter().zip(repeated(large, small)) {
                    out[to] += v;
                }
                out
            },
            Tolerance::sum_of(summed),
        )
        .adjoint(|t| broadcast_to(&t[0], large))
        .on_vars(|v| autograd::sum_to(&v[0], small))
        .in_bf16(1, DType::F32),
        Case::new(
            format!("broadcast_to {small:?} to {large:?}"),
            vec![normal(1, small)],
            |t| broadcast_to(&t[0], large),
            |t| {
                let x = t[0].to_f64_vec();
                repeated(large, small).into_iter().map(|from| x[from]).collect()
            },
            Tolerance { abs: 0.0, rel: 0.0, reason: "a copy" },
        )
        .adjoint(|t| sum_to(&t[0], small))
        .on_vars(|v| autograd::broadcast_to(&v[0], large))
        .in_bf16(1, DType::Bf16),
    ]
}

fn dot_case(shape: &'static [usize]) -> Case {
    let (n, c) = (shape[0], shape[shape.len() - 1]);
    let pixels: usize = shape[1..shape.len() - 1].iter().product();
    Case::new(
        format!("channel_dot {shape:?}"),
        vec![normal(0, shape), normal(1, shape)],
        |t| channel_dot(&t[0], &t[1]),
        move |t| {
            let (u, v) = (t[0].to_f64_vec(), t[1].to_f64_vec());
            let at = |i: usize, p: usize| (i / c * pixels + p) * c + i % c;
            (0..n * c).map(|i| (0..pixels).map(|p| u[at(i, p)] * v[at(i, p)]).sum()).collect()
        },
        Tolerance::sum_of(pixels),
    )
    .adjoint(|t| recant::ops::elementwise::channel_scale(&t[1], &t[0]))
    .on_vars(|v| autograd::channel_dot(&v[0], &v[1]))
    .in_bf16(2, DType::F32)
}

pub fn cases() -> Vec<Case> {
    let pairs: [(&[usize], &[usize]); 17] = [
        (&[2, 3, 4], &[2, 3, 4]),
        (&[2, 3, 4], &[1, 1, 1]),
        (&[2, 3, 4], &[1, 3, 4]),
        (&[2, 3, 4], &[2, 1, 4]),
        (&[2, 3, 4], &[2, 3, 1]),
        (&[2, 3, 4], &[1, 3, 1]),
        (&[2, 3, 1, 4], &[2, 1, 1, 1]),
        (&[0, 3], &[1, 3]),
        (&[3, 5, 7, 40], &[1, 5, 1, 40]),
        (&[4000, 24], &[1, 24]),
        (&[3, 70, 40], &[3, 1, 40]),
        (&[3, 70, 40], &[3, 70, 1]),
        (&[2, 9000], &[2, 1]),
        (&[2, 9000, 3], &[2, 1, 3]),
        (&[100_000], &[1]),
        (&[16, 17, 17, 12], &[16, 1, 1, 12]),
        (&[16, 17, 17, 12], &[16, 17, 17, 1]),
    ];
    let mut cases: Vec<Case> = pairs.into_iter().flat_map(|(large, small)| pair(large, small)).collect();
    // One sample that is cut, many that are not, a rest in the last part.
    cases.extend([&[2, 3, 2, 3][..], &[3, 4], &[1, 70, 70, 24], &[20, 9, 9, 48], &[3, 40, 41, 17], &[0, 2, 2, 3]].map(dot_case));
    cases
}
