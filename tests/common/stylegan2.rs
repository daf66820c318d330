//! The tiny StyleGAN2 of tests/golden/stylegan2_tiny: its networks, its data, and comparisons with PyTorch's numbers.
//!
//! Errors are relative in the L2 norm, per tensor. Bound 1e-4: f32 sums in another order differ by about 1e-6 per layer.

use std::collections::BTreeMap;

use super::{Arrays, assert_near, nhwc, npz, safetensors};
use recant::autograd::{Order, Var, grad_or_zero};
use recant::models::stylegan2::{Discriminator, Generator, StyleGan2Config, Styles};
use recant::nn::{AdamState, ParamSlab, Params};
use recant::ops::random::Random;
use recant::tensor::{DType, Tensor};
use recant::training::{BatchInputs, GanState, Hyper, Inputs, Losses, PathInputs};

pub const DIR: &str = "stylegan2_tiny";
pub const BOUND: f64 = 1e-4;

pub fn weights(name: &str) -> Arrays {
    safetensors(&format!("{DIR}/{name}.safetensors"))
}

pub fn arrays(name: &str) -> Arrays {
    npz(&format!("{DIR}/{name}.npz"))
}

pub fn generator() -> (Generator, ParamSlab) {
    let tensors = weights("generator");
    let g = Generator::new(StyleGan2Config::infer(&tensors).unwrap());
    let slab = ParamSlab::from_torch(g.layout(), &tensors, "generator").unwrap();
    (g, slab)
}

pub fn discriminator(config: &StyleGan2Config) -> (Discriminator, ParamSlab) {
    let d = Discriminator::new(config.clone());
    let slab = ParamSlab::from_torch(d.layout(), &weights("discriminator"), "discriminator").unwrap();
    (d, slab)
}

pub fn noise(data: &Arrays, prefix: &str, suffix: &str) -> Vec<Tensor> {
    (0..7).map(|k| nhwc(&data[&format!("{prefix}{k}{suffix}")])).collect()
}

pub fn index(t: &Tensor, i: usize) -> usize {
    t.as_slice::<f32>()[i.min(t.len() - 1)] as usize
}

/// Compares the gradients of `loss` by all parameters with a reference state dict; `skip` names what it does not hold.
pub fn assert_gradients(what: &str, grads: &[Var], slab: &ParamSlab, want: &Arrays, bound: f64) {
    let values: Vec<f32> = grads.iter().flat_map(|g| g.value().to_vec::<f32>()).collect();
    let got = ParamSlab::from_values(slab.layout(), values).unwrap().to_torch();
    let scale = want.values().flat_map(|t| t.as_slice::<f32>()).fold(0.0_f32, |m, v| m.max(v.abs()));
    for (name, g) in &got {
        let Some(w) = want.get(name) else { panic!("{what}: the reference lacks {name}") };
        let largest = w.as_slice::<f32>().iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        if largest <= scale * 1e-7 {
            // Zero up to rounding in the reference: compare absolutely with the gradient's overall size.
            let ours = g.as_slice::<f32>().iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            assert!(ours <= scale * 1e-6, "{what}: {name} should be zero, is {ours}");
        } else {
            assert_near(&format!("{what}: {name}"), g, w, bound);
        }
    }
}

pub fn gradients(loss: &Var, p: &Params) -> Vec<Var> {
    grad_or_zero(&[loss], &p.all(), Order::Last).unwrap()
}

pub fn hyper() -> Hyper {
    Hyper { batch: 8, ..Hyper::default() }
}

/// The state from which the reference's iterations start.
pub fn training_start() -> GanState {
    let (g, g_slab) = generator();
    let config = g.config().clone();
    let (d, d_slab) = discriminator(&config);
    GanState {
        config,
        g_ema: g_slab.deep_clone().unwrap(),
        g: g_slab,
        d: d_slab,
        g_optim: AdamState::new(g.layout(), hyper().generator_adam()),
        d_optim: AdamState::new(d.layout(), hyper().discriminator_adam()),
        iteration: 0,
        mean_path_length: Tensor::zeros(&[1], DType::F32),
        rng: Random::new(0, 0),
    }
}

/// Every random input of iteration `i`; the first has R1 and path length.
pub fn training_inputs(data: &Arrays, i: usize) -> Inputs {
    let mixed = |kind: &str| Styles::Mixed {
        z1: data[&format!("{kind}_z1_{i}")].clone(),
        z2: data[&format!("{kind}_z2_{i}")].clone(),
        crossover: index(&data[&format!("{kind}_inject_index")], i),
    };
    Inputs {
        real: nhwc(&data[&format!("real_{i}")]),
        given_fakes: None,
        d: Some(BatchInputs { styles: mixed("d"), noise: noise(data, "d_noise", &format!("_{i}")) }),
        g: BatchInputs { styles: Styles::One(data[&format!("g_z1_{i}")].clone()), noise: noise(data, "g_noise", &format!("_{i}")) },
        r1: i == 0,
        path: (i == 0).then(|| PathInputs {
            batch: BatchInputs { styles: mixed("path"), noise: noise(data, "path_noise", &format!("_{i}")) },
            y: nhwc(&data[&format!("path_y_{i}")]),
        }),
    }
}

/// Losses of iteration `i`, and the networks after it where the reference has them.
pub fn assert_iteration(data: &Arrays, i: usize, losses: &Losses, state: &GanState) {
    let near = |what: &str, got: f64| {
        let want = data[&format!("{what}_{i}")].item().unwrap();
        assert!((got - want).abs() <= BOUND * want.abs().max(1e-3), "{what} at {i}: {got} against {want}");
    };
    near("d_loss", losses.d);
    near("g_loss", losses.g);
    if i == 0 {
        near("r1", losses.r1.unwrap());
        near("path", losses.path.unwrap());
        near("mean_path_length", losses.mean_path_length);
    }
    if i != 1 {
        for (what, slab) in [("generator", &state.g), ("discriminator", &state.d), ("gema", &state.g_ema)] {
            assert_state(&format!("{what} after {}", i + 1), slab, &weights(&format!("train_{what}_after{}", i + 1)));
        }
    }
}

fn assert_state(what: &str, slab: &ParamSlab, want: &BTreeMap<String, Tensor>) {
    for (name, got) in slab.to_torch() {
        assert_near(&format!("{what}: {name}"), &got, &want[&name], BOUND);
    }
}
