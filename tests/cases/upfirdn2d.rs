//! Cases of FIR resampling: factors, pads and crops, filter lengths, directions.

use super::{Case, Tolerance, normal, positive};
use recant::autograd;
use recant::ops::bias_act::{Activation, Epilogue};
use recant::ops::upfirdn2d::{RESAMPLE_TAPS, Upfirdn2d, upfirdn2d, upfirdn2d_act};
use recant::tensor::{DType, Tensor};

/// The definition: insert zeros, pad or crop, convolve with the outer product of the taps, keep every `down`-th.
fn reference(x: &Tensor, spec: &Upfirdn2d) -> Vec<f64> {
    let [n, oh, ow, c] = spec.output_shape(x.shape()).expect("a case that fits");
    let (h, w, values, taps) = (x.dim(1), x.dim(2), x.to_f64_vec(), spec.taps());
    // True convolution reads the filter back to front.
    let tap = |t: usize| if spec.flip { taps[t] } else { taps[taps.len() - 1 - t] };
    let source = |at: usize, t: usize, axis: usize, len: usize| {
        let at = (at * spec.down + t) as isize - spec.pad[axis][0];
        (at >= 0 && (at as usize).is_multiple_of(spec.up) && (at as usize / spec.up) < len).then(|| at as usize / spec.up)
    };
    let mut out = Vec::with_capacity(n * oh * ow * c);
    for i in 0..n {
        for oy in 0..oh {
            for ox in 0..ow {
                for k in 0..c {
                    let mut sum = 0.0;
                    for ty in 0..taps.len() {
                        for tx in 0..taps.len() {
                            if let (Some(y), Some(x)) = (source(oy, ty, 0, h), source(ox, tx, 1, w)) {
                                sum += tap(ty) * tap(tx) * values[((i * h + y) * w + x) * c + k];
                            }
                        }
                    }
                    out.push(spec.gain * sum);
                }
            }
        }
    }
    out
}

fn case(name: &str, shape: [usize; 4], spec: Upfirdn2d) -> Case {
    let [_, oh, ow, _] = spec.output_shape(&shape).expect("a case that fits");
    let adjoint = spec.adjoint([shape[1], shape[2]], [oh, ow]);
    Case::new(
        format!("upfirdn2d {name}"),
        vec![normal(0, &shape)],
        move |t| upfirdn2d(&t[0], &spec),
        move |t| reference(&t[0], &spec),
        Tolerance { abs: 4e-6, rel: 1e-6, reason: "weighted sum of at most 64 values, taps rounded to f32" },
    )
    .adjoint(move |t| upfirdn2d(&t[0], &adjoint))
    .on_vars(move |v| autograd::upfirdn2d(&v[0], &spec))
    .in_bf16(1, DType::Bf16)
}

/// The filter, then noise, bias and activation, as the generator's layers that double the size have it.
fn act_case(name: &str, shape: [usize; 4], spec: Upfirdn2d, has_bias: bool, noise_images: Option<usize>, act: Activation) -> Case {
    let [_, oh, ow, c] = spec.output_shape(&shape).expect("a case that fits");
    let mut inputs = vec![normal(0, &shape)];
    if has_bias {
        inputs.push(normal(1, &[c]));
    }
    if let Some(images) = noise_images {
        inputs.extend([normal(2, &[images, oh, ow, 1]), positive(3, &[1])]);
    }
    let noise_at = 1 + has_bias as usize;
    fn then<T>(t: &[T], has_bias: bool, noise_at: usize, act: Activation) -> Epilogue<'_, T> {
        Epilogue { bias: has_bias.then(|| &t[1]), noise: t.get(noise_at).map(|n| (n, &t[noise_at + 1])), act }
    }
    Case::new(
        format!("upfirdn2d_act {name}"),
        inputs,
        move |t| upfirdn2d_act(&t[0], &spec, then(t, has_bias, noise_at, act)),
        move |t| {
            let terms: Vec<Vec<f64>> = t.iter().map(Tensor::to_f64_vec).collect();
            let value = |(i, x): (usize, f64)| {
                let noise = terms.get(noise_at).map_or(0.0, |n| terms[noise_at + 1][0] * n[i / c % n.len()]);
                let v = x + noise + if has_bias { terms[1][i % c] } else { 0.0 };
                v * act.gain * if v > 0.0 { 1.0 } else { act.slope }
            };
            reference(&t[0], &spec).into_iter().enumerate().map(value).collect()
        },
        Tolerance { abs: 8e-6, rel: 1e-6, reason: "weighted sum of at most 16 values, three roundings; both branches meet at zero" },
    )
    .on_vars(move |v| autograd::upfirdn2d_act(&v[0], &spec, then(v, has_bias, noise_at, act)))
    .in_bf16(1, DType::Bf16)
}

pub fn cases() -> Vec<Case> {
    let (leaky, blur) = (Activation::LEAKY_RELU, Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [1, 1], 4.0));
    // No symmetry: a filter read in the wrong direction shows.
    let ramp = [0.1, 0.2, 0.3, 0.4, 0.5];
    let flipped = |mut spec: Upfirdn2d| {
        spec.flip = true;
        spec
    };
    let mut pads_apart = Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [0, 0], 1.0);
    pads_apart.pad = [[2, 1], [0, 3]];
    let up = |pad: [isize; 2]| Upfirdn2d::new(&RESAMPLE_TAPS, 2, 1, pad, 4.0);
    let down = |pad: [isize; 2]| Upfirdn2d::new(&RESAMPLE_TAPS, 1, 2, pad, 1.0);
    vec![
        case("identity", [2, 3, 4, 2], Upfirdn2d::new(&[1.0], 1, 1, [0, 0], 1.0)),
        case("blur", [2, 4, 3, 2], Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [2, 1], 1.0)),
        case("up", [1, 3, 4, 2], up([2, 1])),
        case("down", [1, 6, 5, 2], down([1, 1])),
        case("down no pad", [1, 7, 9, 3], down([0, 0])),
        case("crop", [1, 8, 7, 2], Upfirdn2d::new(&ramp[..3], 1, 1, [-2, -1], 1.0)),
        case("crop after up", [1, 5, 4, 2], Upfirdn2d::new(&ramp[..4], 2, 1, [-3, 2], 1.0)),
        case("odd filter", [1, 5, 6, 2], Upfirdn2d::new(&ramp, 1, 1, [3, 1], 0.7)),
        case("odd filter flipped", [1, 5, 6, 2], flipped(Upfirdn2d::new(&ramp, 1, 1, [3, 1], 0.7))),
        case("up 3 down 2", [1, 4, 5, 2], Upfirdn2d::new(&ramp, 3, 2, [2, 2], 1.0)),
        case("up 2 down 3 flipped", [1, 6, 5, 2], flipped(Upfirdn2d::new(&ramp[..2], 2, 3, [1, 2], 1.0))),
        case("longest filter", [1, 6, 6, 1], Upfirdn2d::new(&[0.3, 0.1, -0.2, 0.4, 0.2, 0.1, 0.5, -0.1], 1, 1, [4, 3], 1.0)),
        case("gaps", [1, 5, 5, 2], Upfirdn2d::new(&ramp[..2], 4, 1, [1, 0], 1.0)),
        case("eights", [2, 5, 4, 16], up([2, 1])),
        case("empty batch", [0, 4, 4, 3], up([2, 1])),
        case("pads apart", [1, 4, 5, 2], pads_apart),
        case("parallel", [4, 17, 15, 24], Upfirdn2d::new(&RESAMPLE_TAPS, 1, 1, [1, 1], 4.0)),
        case("parallel up to image", [4, 32, 32, 3], up([2, 1])),
        act_case("all", [2, 4, 5, 3], blur, true, Some(2), leaky),
        act_case("one noise", [2, 4, 3, 2], up([2, 1]), false, Some(1), leaky),
        act_case("bias", [2, 5, 4, 3], blur, true, None, Activation::RELU),
        act_case("activation", [1, 4, 4, 2], down([1, 1]), false, None, leaky),
        act_case("eights", [2, 5, 4, 16], blur, true, Some(1), leaky),
        act_case("empty batch", [0, 5, 4, 3], blur, true, Some(1), leaky),
        act_case("parallel", [4, 17, 15, 24], blur, true, Some(4), leaky),
        act_case("parallel bias", [4, 17, 15, 20], blur, true, None, leaky),
    ]
}
