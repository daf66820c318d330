//! Cases of moves: every axis, rests, and sizes that are shared by threads. Copies are exact.

use super::{Case, Tolerance, normal};
use recant::autograd;
use recant::ops::layout::{concat, pad, permute, slice};
use recant::tensor::{DType, Tensor};

const COPY: Tolerance = Tolerance { abs: 0.0, rel: 0.0, reason: "a copy" };

/// Calls `f(index, position)` for every element in row-major order.
fn positions(shape: &[usize], mut f: impl FnMut(&[usize])) {
    let len: usize = shape.iter().product();
    let mut index = vec![0; shape.len()];
    for i in 0..len {
        let mut rest = i;
        for d in (0..shape.len()).rev() {
            index[d] = rest % shape[d];
            rest /= shape[d];
        }
        f(&index);
    }
}

fn at(shape: &[usize], index: &[usize]) -> usize {
    shape.iter().zip(index).fold(0, |at, (size, i)| at * size + i)
}

fn permute_case(shape: &'static [usize], order: &'static [usize]) -> Case {
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
    Case::new(
        format!("permute {shape:?} by {order:?}"),
        vec![normal(0, shape)],
        |t| permute(&t[0], order),
        |t| {
            let x = t[0].to_f64_vec();
            let to: Vec<usize> = order.iter().map(|d| shape[*d]).collect();
            let mut out = Vec::new();
            positions(&to, |index| {
                let mut from = vec![0; index.len()];
                order.iter().zip(index).for_each(|(d, i)| from[*d] = *i);
                out.push(x[at(shape, &from)]);
            });
            out
        },
        COPY,
    )
    .adjoint(move |t| permute(&t[0], &inverse))
    .on_vars(|v| autograd::permute(&v[0], order))
    .in_bf16(1, DType::Bf16)
}

/// A slice and the pad that is its transpose.
fn slice_cases(shape: &'static [usize], axis: usize, start: usize, len: usize) -> [Case; 2] {
    let size = shape[axis];
    let mut part = shape.to_vec();
    part[axis] = len;
    [
        Case::new(
            format!("slice {shape:?} axis {axis} from {start} len {len}"),
            vec![normal(0, shape)],
            move |t| slice(&t[0], axis, start, len),
            move |t| {
                let x = t[0].to_f64_vec();
                let mut out = Vec::new();
                positions(shape, |index| {
                    if (start..start + len).contains(&index[axis]) {
                        out.push(x[at(shape, index)]);
                    }
                });
                out
            },
            COPY,
        )
        .adjoint(move |t| pad(&t[0], axis, start, size))
        .on_vars(move |v| autograd::slice(&v[0], axis, start, len))
        .in_bf16(1, DType::Bf16),
        Case::new(
            format!("pad to {shape:?} axis {axis} at {start}"),
            vec![normal(1, &part)],
            move |t| pad(&t[0], axis, start, size),
            move |t| {
                let mut values = t[0].to_f64_vec().into_iter();
                let mut out = Vec::new();
                positions(shape, |index| {
                    let inside = (start..start + len).contains(&index[axis]);
                    out.push(if inside { values.next().expect("one per position") } else { 0.0 });
                });
                out
            },
            COPY,
        )
        .adjoint(move |t| slice(&t[0], axis, start, len))
        .on_vars(move |v| autograd::pad(&v[0], axis, start, size))
        .in_bf16(1, DType::Bf16),
    ]
}

fn concat_case(shapes: &'static [&'static [usize]], axis: usize) -> Case {
    let inputs = shapes.iter().enumerate().map(|(i, s)| normal(i as u64, s)).collect();
    Case::new(
        format!("concat {shapes:?} along {axis}"),
        inputs,
        move |t| concat(&t.iter().collect::<Vec<_>>(), axis),
        move |t| {
            let parts: Vec<Vec<f64>> = t.iter().map(Tensor::to_f64_vec).collect();
            let mut shape = shapes[0].to_vec();
            shape[axis] = shapes.iter().map(|s| s[axis]).sum();
            let mut out = Vec::new();
            positions(&shape, |index| {
                let mut index = index.to_vec();
                let mut part = 0;
                while index[axis] >= shapes[part][axis] {
                    index[axis] -= shapes[part][axis];
                    part += 1;
                }
                out.push(parts[part][at(shapes[part], &index)]);
            });
            out
        },
        COPY,
    )
    .on_vars(move |v| autograd::concat(&v.iter().collect::<Vec<_>>(), axis))
    .in_bf16(shapes.len(), DType::Bf16)
}

fn reshape_case() -> Case {
    Case::new("reshape", vec![normal(0, &[2, 6])], |t| t[0].reshape(&[3, 4]), |t| t[0].to_f64_vec(), COPY)
        .adjoint(|t| t[0].reshape(&[2, 6]))
        .on_vars(|v| autograd::reshape(&v[0], &[3, 4]))
        .in_bf16(1, DType::Bf16)
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        permute_case(&[2, 3], &[1, 0]),
        permute_case(&[2, 3, 4], &[2, 0, 1]),
        permute_case(&[2, 3, 4], &[0, 1, 2]),
        permute_case(&[2, 3, 2, 2], &[0, 3, 1, 2]),
        permute_case(&[3, 31, 17, 13], &[0, 2, 3, 1]),
        permute_case(&[2, 0, 3], &[2, 1, 0]),
        reshape_case(),
        concat_case(&[&[2, 3], &[1, 3]], 0),
        concat_case(&[&[2, 1, 3], &[2, 2, 3], &[2, 1, 3]], 1),
        concat_case(&[&[2, 2, 3], &[2, 2, 1]], 2),
        concat_case(&[&[5]], 0),
        concat_case(&[&[3, 16], &[3, 8]], 1),
    ];
    cases.extend([(0, 1, 1), (1, 0, 2), (1, 2, 1), (2, 1, 3), (2, 0, 4), (1, 1, 0)].into_iter().flat_map(|(axis, start, len)| slice_cases(&[2, 3, 4], axis, start, len)));
    cases
}
