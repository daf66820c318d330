//! StyleGAN2 against PyTorch's numbers: forward values, first-order gradients, R1, path length, whole iterations.
//!
//! Errors are relative in the L2 norm, per tensor. Bound 1e-4 unless a line says otherwise: f32 sums in another order
//! differ by about 1e-6 per layer.

mod common;

use std::collections::BTreeMap;

use common::{Arrays, assert_near, nhwc, npz, safetensors};
use recant::autograd::{Order, Var, grad_or_zero, mul, sum};
use recant::losses::{discriminator_loss, path_length, r1_penalty};
use recant::models::stylegan2::{Discriminator, Generator, StyleGan2Config, Styles};
use recant::nn::{AdamState, ParamSlab, Params};
use recant::ops::random::Random;
use recant::tensor::Tensor;
use recant::training::{GanState, Hyper, Inputs, NoRegulariser, PathInputs, Trainer};

const DIR: &str = "stylegan2_tiny";
const BOUND: f64 = 1e-4;

fn weights(name: &str) -> Arrays {
    safetensors(&format!("{DIR}/{name}.safetensors"))
}

fn arrays(name: &str) -> Arrays {
    npz(&format!("{DIR}/{name}.npz"))
}

fn generator() -> (Generator, ParamSlab) {
    let tensors = weights("generator");
    let g = Generator::new(StyleGan2Config::infer(&tensors).unwrap());
    let slab = ParamSlab::from_torch(g.layout(), &tensors, "generator").unwrap();
    (g, slab)
}

fn discriminator(config: &StyleGan2Config) -> (Discriminator, ParamSlab) {
    let d = Discriminator::new(config.clone());
    let slab = ParamSlab::from_torch(d.layout(), &weights("discriminator"), "discriminator").unwrap();
    (d, slab)
}

fn noise(data: &Arrays, prefix: &str, suffix: &str) -> Vec<Tensor> {
    (0..7).map(|k| nhwc(&data[&format!("{prefix}{k}{suffix}")])).collect()
}

fn index(t: &Tensor, i: usize) -> usize {
    t.as_slice::<f32>()[i.min(t.len() - 1)] as usize
}

/// Compares the gradients of `loss` by all parameters with a reference state dict; `skip` names what it does not hold.
fn assert_gradients(what: &str, grads: &[Var], slab: &ParamSlab, want: &Arrays, bound: f64) {
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

fn gradients(loss: &Var, p: &Params) -> Vec<Var> {
    grad_or_zero(&[loss], &p.all(), Order::Last).unwrap()
}

#[test]
fn architecture_is_read_off_the_file() {
    let (g, _) = generator();
    let want = StyleGan2Config::with_channels(32, 16, 8, "4:24,8:24,16:16,32:8").unwrap();
    assert_eq!(g.config(), &want);
}

#[test]
fn full_width_tables_have_the_papers_sizes() {
    let count = |c: &StyleGan2Config| {
        let (g, d) = (Generator::new(c.clone()), Discriminator::new(c.clone()));
        [g.layout().len(), g.layout().segments().len(), d.layout().len(), d.layout().segments().len()]
    };
    assert_eq!(count(&StyleGan2Config::mnist()), [17_391_635, 68, 21_507_073, 23]);
    assert_eq!(count(&StyleGan2Config::config_f_256()), [30_034_338, 110, 28_864_129, 38]);
}

#[test]
fn generator_forward() {
    let (g, slab) = generator();
    let data = arrays("generator_forward");
    let p = slab.constants();
    let maps = noise(&data, "noise_", "");
    let z1 = data["z1"].clone();
    let w = g.mapping(&p, &Var::constant(z1.clone())).unwrap();
    assert_near("w", w.value(), &data["w"], BOUND);
    let one = Styles::One(z1.clone());
    let image = g.forward(&p, &one, &maps).unwrap();
    assert_near("image", image.value(), &nhwc(&data["image"]), BOUND);
    let crossover = index(&data["inject_index"], 0);
    let mixed = Styles::Mixed { z1: z1.clone(), z2: data["z2"].clone(), crossover };
    assert_near("mixing", g.forward(&p, &mixed, &maps).unwrap().value(), &nhwc(&data["image_mixing"]), BOUND);
    let ws = Generator::truncate(&g.styles(&p, &one).unwrap(), &data["truncation_latent"].reshape(&[1, 16]).unwrap(), 0.7).unwrap();
    assert_near("truncation", g.synthesis(&p, &ws, &maps).unwrap().value(), &nhwc(&data["image_truncation07"]), BOUND);
    let buffers = weights("generator");
    let fixed: Vec<Tensor> = (0..7).map(|k| nhwc(&buffers[&format!("noises.noise_{k}")])).collect();
    assert_near("buffers", g.forward(&p, &one, &fixed).unwrap().value(), &nhwc(&data["image_fixed_noise_buffers"]), BOUND);
}

#[test]
fn generator_gradient() {
    let (g, slab) = generator();
    let data = arrays("generator_forward");
    let p = slab.leaves();
    let image = g.forward(&p, &Styles::One(data["z1"].clone()), &noise(&data, "noise_", "")).unwrap();
    let loss = sum(&mul(&image, &Var::constant(nhwc(&data["cotangent"]))).unwrap()).unwrap();
    assert_gradients("image · cotangent", &gradients(&loss, &p), &slab, &weights("generator_grad_of_image_dot_cotangent"), BOUND);
}

#[test]
fn path_length_penalty_and_gradient() {
    let (g, slab) = generator();
    let data = arrays("path_length");
    let p = slab.leaves();
    let styles = Styles::Mixed { z1: data["z1"].clone(), z2: data["z2"].clone(), crossover: index(&data["inject_index"], 0) };
    let ws = g.styles(&p, &styles).unwrap();
    let image = g.synthesis(&p, &ws, &noise(&data, "noise_", "")).unwrap();
    let path = path_length(&image, &ws, &nhwc(&data["y"]), data["mean_path_length_before"].item().unwrap()).unwrap();
    let after = data["mean_path_length_after"].item().unwrap();
    assert!((path.running_mean - after).abs() <= BOUND * after, "running mean {} against {after}", path.running_mean);
    assert_near("penalty", path.penalty.value(), &data["penalty"], BOUND);
    assert_gradients("path length", &gradients(&path.penalty, &p), &slab, &weights("path_length_grad"), BOUND);
}

#[test]
fn discriminator_loss_r1_and_gradients() {
    let (_, gs) = generator();
    let (d, slab) = discriminator(&StyleGan2Config::infer(&gs.to_torch()).unwrap());
    let data = arrays("discriminator");
    let p = slab.leaves();
    let (real, fake) = (nhwc(&data["real"]), nhwc(&data["fake"]));
    let both = recant::ops::layout::concat(&[&real, &fake], 0).unwrap();
    let logits = d.forward(&p, &Var::constant(both), 2).unwrap();
    let n = real.dim(0);
    assert_near("real logits", &logits.value().rows(0, n).unwrap(), &data["real_logits"], BOUND);
    assert_near("fake logits", &logits.value().rows(n, n).unwrap(), &data["fake_logits"], BOUND);
    let loss = discriminator_loss(&logits).unwrap();
    assert_near("loss", loss.value(), &data["d_loss"], BOUND);
    assert_gradients("D loss", &gradients(&loss, &p), &slab, &weights("d_loss_grad"), BOUND);

    let image = Var::leaf(real);
    let logits = d.forward(&p, &image, 1).unwrap();
    let r1 = r1_penalty(&logits, &image).unwrap();
    assert_near("R1", r1.value(), &data["r1"], BOUND);
    let inner = grad_or_zero(&[&logits], &[&image], Order::Last).unwrap();
    assert_near("image gradient", inner[0].value(), &nhwc(&data["r1_image_grad"]), BOUND);
    assert_gradients("R1", &gradients(&r1, &p), &slab, &weights("r1_grad"), BOUND);
}

/// Three whole iterations with every random input given.
#[test]
fn three_training_iterations() {
    three_iterations(None);
}

/// The same in parts of a group each: the graphs are half as large, the numbers those of the whole batch.
#[test]
fn three_training_iterations_in_parts() {
    three_iterations(Some(4));
    three_iterations(Some(2));
}

fn three_iterations(at_once: Option<usize>) {
    let (g, g_slab) = generator();
    let config = g.config().clone();
    let (d, d_slab) = discriminator(&config);
    let hyper = Hyper { batch: 8, at_once, ..Hyper::default() };
    let mut state = GanState {
        config: config.clone(),
        g_ema: g_slab.deep_clone(),
        g: g_slab,
        d: d_slab,
        g_optim: AdamState::new(g.layout(), hyper.generator_adam()),
        d_optim: AdamState::new(d.layout(), hyper.discriminator_adam()),
        iteration: 0,
        mean_path_length: 0.0,
        rng: Random::new(0, 0),
    };
    let trainer = Trainer::new(&config, hyper);
    let data = arrays("train_steps");
    let mixed = |kind: &str, i: usize| Styles::Mixed {
        z1: data[&format!("{kind}_z1_{i}")].clone(),
        z2: data[&format!("{kind}_z2_{i}")].clone(),
        crossover: index(&data[&format!("{kind}_inject_index")], i),
    };
    for i in 0..3 {
        let inputs = Inputs {
            real: nhwc(&data[&format!("real_{i}")]),
            given_fakes: None,
            d_styles: mixed("d", i),
            d_noise: noise(&data, "d_noise", &format!("_{i}")),
            g_styles: Styles::One(data[&format!("g_z1_{i}")].clone()),
            g_noise: noise(&data, "g_noise", &format!("_{i}")),
            r1: i == 0,
            path: (i == 0).then(|| PathInputs {
                styles: mixed("path", i),
                noise: noise(&data, "path_noise", &format!("_{i}")),
                y: nhwc(&data[&format!("path_y_{i}")]),
            }),
        };
        let losses = trainer.iteration(&mut state, &inputs, &mut NoRegulariser).unwrap();
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
}

fn assert_state(what: &str, slab: &ParamSlab, want: &BTreeMap<String, Tensor>) {
    for (name, got) in slab.to_torch() {
        assert_near(&format!("{what}: {name}"), &got, &want[&name], BOUND);
    }
}
