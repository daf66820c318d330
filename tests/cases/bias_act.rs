//! Cases of bias, noise and activation: every optional input, every branch.

use super::{Case, Tolerance, normal, positive};
use recant::autograd;
use recant::ops::bias_act::{Activation, Epilogue, bias_act, bias_act_grad, epilogue_grad};
use recant::ops::layout::concat;
use recant::tensor::{DType, Tensor};

fn split<T>(t: &[T], has_bias: bool, has_noise: bool) -> (Option<&T>, Option<(&T, &T)>) {
    let at = 1 + has_bias as usize;
    (has_bias.then(|| &t[1]), has_noise.then(|| (&t[at], &t[at + 1])))
}

fn branch(act: Activation, v: f64) -> f64 {
    act.gain * if v > 0.0 { 1.0 } else { act.slope }
}

fn case(name: &str, shape: &[usize], act: Activation, has_bias: bool, noise_images: Option<usize>) -> Case {
    let c = *shape.last().expect("channels");
    let mut inputs = vec![normal(0, shape)];
    if has_bias {
        inputs.push(normal(1, &[c]));
    }
    if let Some(images) = noise_images {
        inputs.push(normal(2, &[images, shape[1], shape[2], 1]));
        inputs.push(positive(3, &[1]));
    }
    let has_noise = noise_images.is_some();
    Case::new(
        format!("bias_act {name}"),
        inputs,
        move |t| {
            let (bias, noise) = split(t, has_bias, has_noise);
            bias_act(&t[0], bias, noise, act)
        },
        move |t| {
            let (bias, noise) = split(t, has_bias, has_noise);
            let (bias, noise) = (bias.map(Tensor::to_f64_vec), noise.map(|(n, s)| (n.to_f64_vec(), s.to_f64_vec()[0])));
            let value = |(i, x): (usize, f64)| {
                let v = x + bias.as_ref().map_or(0.0, |b| b[i % c]) + noise.as_ref().map_or(0.0, |(n, s)| s * n[i / c % n.len()]);
                v * branch(act, v)
            };
            t[0].to_f64_vec().into_iter().enumerate().map(value).collect()
        },
        Tolerance { abs: 2e-6, rel: 1e-6, reason: "three roundings of values up to about 5; both branches meet at zero" },
    )
    .on_vars(move |v| {
        let (bias, noise) = split(v, has_bias, has_noise);
        autograd::bias_act(&v[0], bias, noise, act)
    })
    .in_bf16(1, DType::Bf16)
}

fn grad_case(name: &str, shape: &[usize], act: Activation) -> Case {
    Case::new(
        format!("bias_act_grad {name}"),
        vec![normal(4, shape), normal(5, shape)],
        move |t| bias_act_grad(&t[0], &t[1], act),
        move |t| t[0].to_f64_vec().iter().zip(t[1].to_f64_vec()).map(|(g, y)| g * branch(act, y)).collect(),
        Tolerance { abs: 0.0, rel: 2.5e-7, reason: "one product with a rounded constant" },
    )
    .adjoint(move |t| bias_act_grad(&t[0], &t[1], act))
    .on_vars(move |v| autograd::bias_act_grad(&v[0], &v[1], act))
    .in_bf16(2, DType::Bf16)
}

/// The way back: `h` in one case, the three sums behind one another in a second.
fn back_cases(name: &str, shape: &[usize], act: Activation, has_bias: bool, noise_images: Option<usize>, has_scale: bool) -> [Case; 2] {
    let (n, c) = (shape[0], *shape.last().expect("channels"));
    let mut inputs = vec![normal(6, shape), normal(7, shape)];
    let mut place = |present: bool, input: Tensor| {
        present.then(|| {
            inputs.push(input);
            inputs.len() - 1
        })
    };
    let scale = place(has_scale, positive(8, &[n, c]));
    let bias = place(has_bias, normal(9, &[c]));
    let has_noise = noise_images.is_some();
    let noise = place(has_noise, if has_noise { normal(10, &[noise_images.unwrap_or(1), shape[1], shape[2], 1]) } else { normal(10, &[1]) });
    let strength = place(has_noise, positive(11, &[1]));
    let call = move |t: &[Tensor]| {
        let at = |place: Option<usize>| place.map(|i| &t[i]);
        epilogue_grad(&t[0], &t[1], Epilogue { bias: at(bias), noise: at(noise).zip(at(strength)), act }, at(scale))
    };
    let slope = move |y: f64| branch(act, y);
    let sums = move |t: &[Tensor]| {
        let found = call(t)?;
        let scale = found.scale.map(|s| s.reshape(&[s.len()])).transpose()?;
        concat(&[Some(&found.bias), found.strength.as_ref(), scale.as_ref()].into_iter().flatten().collect::<Vec<_>>(), 0)
    };
    let reference = move |t: &[Tensor]| {
        let values = |place: Option<usize>| place.map(|i| t[i].to_f64_vec());
        let (g, y, scale, bias, noise) = (t[0].to_f64_vec(), t[1].to_f64_vec(), values(scale), values(bias), values(noise));
        let by = values(strength).map_or(0.0, |s| s[0]);
        let pixels = g.len() / (n * c).max(1);
        let (mut of_bias, mut of_strength, mut of_scale) = (vec![0.0; c], 0.0, vec![0.0; n * c]);
        for (i, (g, y)) in g.iter().zip(&y).enumerate() {
            let (channel, pixel) = (i % c, i / c);
            let (h, noise) = (g * slope(*y), noise.as_ref().map_or(0.0, |map| map[pixel % map.len()]));
            // Where ReLU has cut a value off, its gradient is zero whatever it was.
            let added = if *y == 0.0 { 0.0 } else { y / slope(*y) } - by * noise - bias.as_ref().map_or(0.0, |b| b[channel]);
            of_bias[channel] += h;
            of_strength += h * noise;
            let at = pixel / pixels * c + channel;
            of_scale[at] += if h == 0.0 { 0.0 } else { h * added / scale.as_ref().map_or(1.0, |s| s[at]) };
        }
        of_bias.into_iter().chain(has_noise.then_some(of_strength)).chain(of_scale.into_iter().take(if has_scale { n * c } else { 0 })).collect()
    };
    let terms = shape.iter().product::<usize>();
    let one = Tolerance::sum_of(if has_noise { terms } else { terms / c.max(1) });
    let tolerance = Tolerance { abs: 16.0 * one.abs, rel: 1e-6, reason: "three sums, times a bias and a strength of up to 3 and 1.5 and a gain of 1.5, over a scale of 0.5" };
    [
        Case::new(
            format!("epilogue_grad between {name}"),
            inputs.clone(),
            move |t| Ok(call(t)?.between),
            move |t| t[0].to_f64_vec().iter().zip(t[1].to_f64_vec()).map(|(g, y)| g * slope(y)).collect(),
            Tolerance { abs: 0.0, rel: 2.5e-7, reason: "one product with a rounded constant" },
        )
        .in_bf16(2, DType::Bf16),
        Case::new(format!("epilogue_grad sums {name}"), inputs, sums, reference, tolerance).in_bf16(2, DType::F32),
    ]
}

pub fn cases() -> Vec<Case> {
    let leaky = Activation::LEAKY_RELU;
    let backs = [
        back_cases("bias", &[2, 3, 2, 3], leaky, true, None, false),
        back_cases("vectors", &[9, 40], leaky, true, None, false),
        back_cases("shared noise", &[2, 3, 2, 3], leaky, true, Some(1), false),
        back_cases("scale alone", &[3, 3, 5, 20], leaky, false, None, true),
        back_cases("all, one channel", &[2, 4, 4, 1], leaky, true, Some(1), true),
        back_cases("all, eights", &[2, 3, 5, 16], leaky, true, Some(2), true),
        back_cases("all, odd", &[3, 15, 17, 31], leaky, true, Some(1), true),
        back_cases("all, parts", &[2, 40, 40, 8], leaky, true, Some(2), true),
        back_cases("many samples", &[21, 2, 2, 24], leaky, true, Some(21), true),
        back_cases("parts, no scale", &[3, 40, 40, 8], leaky, true, Some(3), false),
        back_cases("relu", &[2, 3, 2, 3], Activation::RELU, true, Some(2), false),
        back_cases("empty", &[0, 4, 4, 3], leaky, true, Some(1), false),
    ];
    let mut cases = vec![
        case("plain", &[2, 3, 3, 2], leaky, false, None),
        case("bias", &[2, 3, 2, 3], leaky, true, None),
        case("noise per sample", &[2, 3, 2, 3], leaky, false, Some(2)),
        case("bias and shared noise", &[2, 3, 2, 3], leaky, true, Some(1)),
        case("relu", &[2, 3, 2, 3], Activation::RELU, true, None),
        case("linear", &[2, 3, 2, 3], Activation::LINEAR, true, Some(2)),
        case("linear with gain", &[5, 7], Activation { slope: 1.0, gain: 0.5 }, true, None),
        case("vectors", &[4, 5], leaky, true, None),
        case("one channel", &[2, 4, 4, 1], leaky, true, Some(1)),
        case("eights", &[2, 3, 5, 16], leaky, true, Some(2)),
        case("empty", &[0, 4, 4, 3], leaky, true, None),
        case("parallel", &[5, 16, 16, 24], leaky, true, Some(1)),
        case("parallel per sample", &[3, 15, 17, 31], leaky, true, Some(3)),
        grad_case("leaky", &[2, 3, 2, 3], leaky),
        grad_case("relu", &[2, 3, 2, 3], Activation::RELU),
        grad_case("eights", &[2, 3, 5, 16], leaky),
        grad_case("parallel", &[3, 15, 17, 31], leaky),
    ];
    cases.extend(backs.into_iter().flatten());
    cases
}
