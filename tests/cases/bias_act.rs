//! Cases of bias, noise and activation: every optional input, every branch.

use super::{Case, Tolerance, normal, positive};
use recant::autograd;
use recant::ops::bias_act::{Activation, bias_act, bias_act_grad};
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

pub fn cases() -> Vec<Case> {
    let leaky = Activation::LEAKY_RELU;
    vec![
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
    ]
}
