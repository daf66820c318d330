//! Cases of pooling: each window as maximum, as selection and its transpose, and as both averages and their transposes.

use super::{Case, Tolerance, normal};
use recant::autograd::{self, Var};
use recant::ops::pool2d::{self as ops, Divisor, Window};
use recant::tensor::Tensor;

const fn uneven(kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Window {
    Window { kernel, stride, padding }
}

/// Windows that tile, overlap, leave gaps, reach into the padding, are not square, leave a rest, or cover the image;
/// with the image's size and channels.
const WINDOWS: [(&str, Window, [usize; 2], usize); 9] = [
    ("tiles", Window::square(2, 2, 0), [6, 4], 3),
    ("overlap", Window::square(3, 2, 1), [7, 6], 2),
    ("same size", Window::square(3, 1, 1), [5, 4], 3),
    ("gaps", Window::square(2, 3, 0), [9, 8], 2),
    ("uneven", uneven([3, 2], [1, 2], [1, 0]), [4, 7], 3),
    ("wide with large padding", uneven([1, 4], [2, 1], [0, 2]), [3, 5], 3),
    ("a rest", Window::square(3, 2, 0), [6, 8], 17),
    ("whole image", Window::whole([5, 3]), [5, 3], 7),
    ("one pixel", Window::square(1, 1, 0), [1, 1], 1),
];

/// For each output element the elements of its window, by the definition, as (tap, index in `x`), taps rising.
fn windows([n, h, w, c]: [usize; 4], v: Window) -> Vec<Vec<(usize, usize)>> {
    let out = |axis: usize, len: usize| (len + 2 * v.padding[axis] - v.kernel[axis]) / v.stride[axis] + 1;
    let [oh, ow] = [out(0, h), out(1, w)];
    (0..n * oh * ow * c)
        .map(|o| {
            let (sample, y, x, channel) = (o / c / ow / oh, o / c / ow % oh, o / c % ow, o % c);
            (0..v.kernel[0] * v.kernel[1])
                .filter_map(|tap| {
                    let qy = (y * v.stride[0] + tap / v.kernel[1]).checked_sub(v.padding[0]).filter(|q| *q < h)?;
                    let qx = (x * v.stride[1] + tap % v.kernel[1]).checked_sub(v.padding[1]).filter(|q| *q < w)?;
                    Some((tap, ((sample * h + qy) * w + qx) * c + channel))
                })
                .collect()
        })
        .collect()
}

/// Index in `x` and tap of the first largest element of a window.
fn largest(window: &[(usize, usize)], x: &[f64]) -> (usize, usize) {
    window.iter().copied().reduce(|a, b| if x[b.1] > x[a.1] { b } else { a }).expect("every window holds an element")
}

fn averages(x: &[f64], windows: &[Vec<(usize, usize)>], divide_by: Option<usize>) -> Vec<f64> {
    windows.iter().map(|w| w.iter().map(|e| x[e.1]).sum::<f64>() / divide_by.unwrap_or(w.len()) as f64).collect()
}

/// The transpose: each of `g` spread over its window.
fn spread(g: &[f64], windows: &[Vec<(usize, usize)>], divide_by: Option<usize>, len: usize) -> Vec<f64> {
    let mut x = vec![0.0; len];
    for (g, w) in g.iter().zip(windows) {
        w.iter().for_each(|e| x[e.1] += g / divide_by.unwrap_or(w.len()) as f64);
    }
    x
}

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (stream, (name, v, size, c)) in WINDOWS.into_iter().enumerate() {
        let shape = [2, size[0], size[1], c];
        let x = normal(800 + stream as u64, &shape);
        let taps = ops::max_pool2d_taps(&x, v).expect("the windows fit");
        let g = normal(900 + stream as u64, taps.shape());
        let (len, positions) = (x.len(), windows(shape, v));

        let p = positions.clone();
        let maximum = move |t: &[Tensor]| {
            let x = t[0].to_f64_vec();
            p.iter().map(|w| x[largest(w, &x).1]).collect()
        };
        all.push(
            Case::new(format!("max_pool2d {name}"), vec![x.clone()], move |t| ops::max_pool2d(&t[0], v), maximum.clone(), Tolerance::EXACT)
                .on_vars(move |t: &[Var]| autograd::max_pool2d(&t[0], v)),
        );
        let p = positions.clone();
        let which = move |t: &[Tensor]| {
            let x = t[0].to_f64_vec();
            p.iter().map(|w| largest(w, &x).0 as f64).collect()
        };
        all.push(Case::new(format!("max_pool2d_taps {name}"), vec![x.clone()], move |t| ops::max_pool2d_taps(&t[0], v), which, Tolerance::EXACT));

        let [a, b, c, d] = [(); 4].map(|_| taps.clone());
        all.push(
            Case::new(format!("gather_taps {name}"), vec![x.clone()], move |t| ops::gather_taps(&t[0], &a.to_device(&t[0].device())?, v), maximum, Tolerance::EXACT)
                .adjoint(move |t| ops::scatter_taps(&t[0], &b, v, size))
                .on_vars(move |t: &[Var]| autograd::gather_taps(&t[0], &c, v)),
        );
        let (p, x0) = (positions.clone(), x.to_f64_vec());
        let scattered = move |t: &[Tensor]| {
            let mut out = vec![0.0; len];
            p.iter().zip(t[0].to_f64_vec()).for_each(|(w, g)| out[largest(w, &x0).1] += g);
            out
        };
        let [a, b] = [(); 2].map(|_| taps.clone());
        let sums = Tolerance::sum_of(v.kernel[0] * v.kernel[1]);
        all.push(
            Case::new(format!("scatter_taps {name}"), vec![g.clone()], move |t| ops::scatter_taps(&t[0], &d.to_device(&t[0].device())?, v, size), scattered, sums)
                .adjoint(move |t| ops::gather_taps(&t[0], &a, v))
                .on_vars(move |t: &[Var]| autograd::scatter_taps(&t[0], &b, v, size)),
        );

        for divisor in [Divisor::Kernel, Divisor::Inside] {
            let by = (divisor == Divisor::Kernel).then_some(v.kernel[0] * v.kernel[1]);
            let (p, q) = (positions.clone(), positions.clone());
            all.push(
                Case::new(
                    format!("avg_pool2d {name} {divisor:?}"),
                    vec![x.clone()],
                    move |t| ops::avg_pool2d(&t[0], v, divisor),
                    move |t| averages(&t[0].to_f64_vec(), &p, by),
                    sums,
                )
                .adjoint(move |t| ops::avg_pool2d_transpose(&t[0], v, divisor, size))
                .on_vars(move |t: &[Var]| autograd::avg_pool2d(&t[0], v, divisor)),
            );
            all.push(
                Case::new(
                    format!("avg_pool2d_transpose {name} {divisor:?}"),
                    vec![g.clone()],
                    move |t| ops::avg_pool2d_transpose(&t[0], v, divisor, size),
                    move |t| spread(&t[0].to_f64_vec(), &q, by, len),
                    sums,
                )
                .adjoint(move |t| ops::avg_pool2d(&t[0], v, divisor))
                .on_vars(move |t: &[Var]| autograd::avg_pool2d_transpose(&t[0], v, divisor, size)),
            );
        }
    }
    all
}
