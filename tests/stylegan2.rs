//! StyleGAN2 against PyTorch's numbers: forward values, first-order gradients, R1, path length, whole iterations.
//!
//! Errors are relative in the L2 norm, per tensor. Bound 1e-4 unless a line says otherwise: f32 sums in another order
//! differ by about 1e-6 per layer.

mod common;

use common::stylegan2::*;
use common::{assert_near, nhwc};
use recant::autograd::{Order, Var, grad_or_zero, mul, sum};
use recant::device::Device;
use recant::io::meeting::free_address;
use recant::losses::{discriminator_loss, path_length, r1_penalty};
use recant::models::stylegan2::{Discriminator, Generator, StyleGan2Config, Styles};
use recant::tensor::Tensor;
use recant::training::ranks::{Place, Ranks};
use recant::training::{Hyper, NoRegulariser, Trainer};

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
    let path = path_length(&image, &ws, &nhwc(&data["y"]), &data["mean_path_length_before"].reshape(&[1]).unwrap()).unwrap();
    let after = data["mean_path_length_after"].item().unwrap();
    let mean = path.running_mean.item().unwrap();
    assert!((mean - after).abs() <= BOUND * after, "running mean {mean} against {after}");
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

/// Three whole iterations with every random input given, each batch as one.
#[test]
fn three_training_iterations() {
    three_iterations(Some(hyper().batch));
}

/// The same as networks of this size train on the CPU: with both halves of a batch at the same time, on one thread or two.
#[test]
fn three_training_iterations_of_halves() {
    let with_threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(|| three_iterations(None));
    assert!(with_threads(1) == with_threads(2), "the number of threads changes bits");
}

/// The same in parts of a group each: the graphs are half as large, the numbers those of the whole batch.
#[test]
fn three_training_iterations_in_parts() {
    three_iterations(Some(4));
    three_iterations(Some(2));
}

/// The same by two processes (threads here), each with half of every batch.
#[test]
fn three_training_iterations_by_two_ranks() {
    let address = free_address();
    let rank = |rank| {
        let place = Place { rank, world: 2, local: 0, address: address.clone() };
        let ranks = Ranks::join(&place, &Device::Cpu).unwrap();
        iterations(Trainer::new(&training_start().config, hyper()).with_ranks(ranks).unwrap())
    };
    let both = std::thread::scope(|s| [0, 1].map(|r| s.spawn(move || rank(r))).map(|t| t.join().unwrap()));
    assert!(both[0] == both[1], "ranks have other bits");
}

fn three_iterations(at_once: Option<usize>) -> Vec<f32> {
    iterations(Trainer::new(&training_start().config, Hyper { at_once, ..hyper() }))
}

/// Compares each of them with the reference; returns the parameters that they end with.
fn iterations(trainer: Trainer) -> Vec<f32> {
    let (mut state, data) = (training_start(), arrays("train_steps"));
    for i in 0..3 {
        let losses = trainer.iteration(&mut state, &training_inputs(&data, i), &mut NoRegulariser).unwrap();
        assert_iteration(&data, i, &losses, &state);
    }
    [&state.g, &state.d, &state.g_ema].map(|s| s.as_slice().to_vec()).concat()
}
