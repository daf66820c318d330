//! Fisher, EWC and repulsion against PyTorch's numbers, and the guards of stage 2. Relative L2 errors, bound 1e-4
//! (f32 sums in another order; see tests/stylegan2.rs). On the CPU and on the emulated GPU.

mod common;

use common::{Arrays, assert_near, gpu, nhwc, npz, safetensors};
use recant::autograd::Var;
use recant::device::Device;
use recant::error::Error;
use recant::losses::discriminator_loss;
use recant::models::stylegan2::{Generator, StyleGan2Config, Styles};
use recant::nn::ParamSlab;
use recant::ops::layout::concat;
use recant::ops::optimizer::{Pull, ewc};
use recant::tensor::{Tensor, all_on};
use recant::training::{BatchInputs, Batches, GanState, Hyper, NoRegulariser, Regulariser, Trainer};
use recant::unlearning::extrapolate::extrapolate;
use recant::unlearning::feedback::Feedback;
use recant::unlearning::fisher::{Coverage, Estimator, FisherSpec, Grouping, fisher_of};
use recant::unlearning::repulsion::{Distance, Kind, Repulsion};
use recant::unlearning::unlearn::MarkedBatches;

const DIR: &str = "stylegan2_tiny";
const BOUND: f64 = 1e-4;

fn weights(name: &str) -> Arrays {
    safetensors(&format!("{DIR}/{name}.safetensors"))
}

fn generator_slab(name: &str) -> ParamSlab {
    let tensors = weights(name);
    let g = Generator::new(config());
    ParamSlab::from_torch(g.layout(), &tensors, name).unwrap()
}

fn config() -> StyleGan2Config {
    StyleGan2Config::infer(&weights("generator")).unwrap()
}

fn adapted() -> Vec<ParamSlab> {
    (0..3).map(|j| generator_slab(&format!("adapted_{j}"))).collect()
}

/// Compares a slab with a reference that may hold only some of its parameters; the others must be zero.
fn assert_slab(what: &str, got: &ParamSlab, want: &Arrays) {
    for (name, got) in got.to_torch() {
        match want.get(&name) {
            Some(want) => assert_near(&format!("{what}: {name}"), &got, want, BOUND),
            None => assert!(got.as_slice::<f32>().iter().all(|v| *v == 0.0), "{what}: {name} is not in the reference and not zero"),
        }
    }
}

#[test]
fn fisher_diagonals() {
    let nets = Trainer::new(&config(), Hyper::default());
    let data = npz(&format!("{DIR}/fisher_inputs.npz"));
    let d = ParamSlab::from_torch(nets.discriminator.layout(), &weights("discriminator"), "d").unwrap();
    let g = generator_slab("generator");
    let styles = Styles::Mixed {
        z1: data["z1"].clone(),
        z2: data["z2"].clone(),
        crossover: data["inject_index"].as_slice::<f32>()[0] as usize,
    };
    let noise: Vec<Tensor> = (0..7).map(|k| nhwc(&data[&format!("noise_{k}")])).collect();
    for (file, estimator, coverage) in [
        ("fisher_convs_logit", Estimator::Logit, Coverage::Convs),
        ("fisher_convs_bce", Estimator::Bce, Coverage::Convs),
        ("fisher_all_bce", Estimator::Bce, Coverage::All),
    ] {
        let spec = FisherSpec { estimator, coverage, grouping: Grouping::Batch, samples: data["z1"].dim(0) };
        for device in [Device::Cpu, gpu::device()] {
            let on = |slab: &ParamSlab| slab.to_device(&device).unwrap();
            let (styles, noise) = (styles.to_device(&device).unwrap(), all_on(&device, &noise).unwrap());
            assert_slab(file, &fisher_of(&nets, &on(&g), &on(&d), spec, &styles, &noise).unwrap(), &weights(file));
        }
    }
}

#[test]
fn a_sample_alone_is_a_group_of_one() {
    let nets = Trainer::new(&config(), Hyper::default());
    let d = ParamSlab::from_torch(nets.discriminator.layout(), &weights("discriminator"), "d").unwrap();
    let g = generator_slab("generator");
    let mut rng = recant::ops::random::Random::new(3, 0);
    let styles = Styles::One(rng.normal(&[1, 16]));
    let noise = nets.generator.draw_noise(1, &mut rng);
    let of = |grouping| {
        let spec = FisherSpec { estimator: Estimator::Bce, coverage: Coverage::All, grouping, samples: 1 };
        fisher_of(&nets, &g, &d, spec, &styles, &noise).unwrap().as_slice().to_vec()
    };
    assert_eq!(of(Grouping::Alone), of(Grouping::Batch));
}

#[test]
fn ewc_penalty_and_gradient() {
    let numbers = npz(&format!("{DIR}/repulsion.npz"));
    let lambda = numbers["lambda_"].as_slice::<f32>()[0] as f64;
    let (theta, anchor) = (generator_slab("perturbed"), generator_slab("generator"));
    let mut fisher = ParamSlab::zeros(anchor.layout());
    let reference = weights("fisher_convs_logit");
    let full = fisher
        .to_torch()
        .into_iter()
        .map(|(name, zeros)| (name.clone(), reference.get(&name).cloned().unwrap_or(zeros)))
        .collect();
    fisher = ParamSlab::from_torch(anchor.layout(), &full, "fisher").unwrap();
    let want = numbers["ewc_loss"].as_slice::<f32>()[0] as f64;
    for device in [Device::Cpu, gpu::device()] {
        let on = |slab: &ParamSlab| slab.values().to_device(&device).unwrap();
        let (penalty, grad) = ewc(&on(&theta), &on(&anchor), &on(&fisher), lambda).unwrap();
        assert!((penalty - want).abs() <= BOUND * want, "{penalty} against {want} on {device}");
        assert_slab("ewc", &ParamSlab::from_values(anchor.layout(), grad.to_vec()).unwrap(), &weights("ewc_grad"));
    }
}

/// `R'(D) · 2 w_p (θ − θ̄)` of a regulariser's pull.
fn gradient_of(repulsion: &Repulsion, theta: &ParamSlab) -> ParamSlab {
    let Pull::Centroid { centroid, weights, loss, distance, gradient: true, .. } = repulsion.pull() else { panic!("repulsion pulls at a centroid") };
    let c = centroid.to_vec::<f32>();
    let mut values = Vec::new();
    for (s, w) in theta.layout().segments().iter().zip(weights) {
        values.extend((s.offset..s.offset + s.len()).map(|i| (loss.slope(distance) * 2.0 * w * (theta.as_slice()[i] as f64 - c[i] as f64)) as f32));
    }
    ParamSlab::from_values(theta.layout(), values).unwrap()
}

/// What keeping the centroid in f32 may cost: half a unit in the last place of θ̄, relative to θ − θ̄. It is above
/// 1e-4 only for the mapping network's weights, which are stored a hundred times larger than they are used.
fn centroid_rounding(repulsion: &Repulsion, theta: &ParamSlab, name: &str) -> f64 {
    let Pull::Centroid { centroid, .. } = repulsion.pull() else { panic!("repulsion pulls at a centroid") };
    let s = theta.layout().segment(name).unwrap();
    let (c, t) = (&centroid.to_vec::<f32>()[s.offset..][..s.len()], &theta.as_slice()[s.offset..][..s.len()]);
    let rounding: f64 = c.iter().map(|c| (0.5 * (c.abs() * f32::EPSILON) as f64).powi(2)).sum();
    let difference: f64 = c.iter().zip(t).map(|(c, t)| ((t - c) as f64).powi(2)).sum();
    (rounding / difference).sqrt()
}

#[test]
fn repulsion_losses_and_gradients() {
    for device in [Device::Cpu, gpu::device()] {
        assert_repulsion(&device);
    }
}

fn assert_repulsion(device: &Device) {
    let numbers = npz(&format!("{DIR}/repulsion.npz"));
    let number = |name: &str| numbers[name].as_slice::<f32>()[0] as f64;
    let theta = generator_slab("perturbed");
    let new = |kind, distance| Repulsion::new(kind, distance, &adapted(), &theta.to_device(device).unwrap(), f64::INFINITY).unwrap();
    let near = |what: &str, got: f64, want: f64| assert!((got - want).abs() <= BOUND * want.abs(), "{what}: {got} against {want}");
    let nl2 = Kind::Nl2 { gamma: 1.0 };
    near("mean squared distance", new(nl2, Distance::L2).distance(), number("mean_squared_distance"));
    let per_parameter = number("mean_squared_distance") / theta.layout().len() as f64;
    near("mean over parameters", new(nl2, Distance::Mean).distance(), per_parameter);
    near("official distance", new(nl2, Distance::Official).distance(), number("official_code_distance"));
    let alpha = number("alpha");
    for (file, kind) in [
        ("il2", Kind::Il2 { gamma: 1.0 }),
        ("nl2", nl2),
        ("el2", Kind::El2 { gamma: 1.0, alpha }),
    ] {
        let repulsion = new(kind, Distance::L2);
        near(file, repulsion.loss(), number(&format!("loss_{file}")));
        let (got, want) = (gradient_of(&repulsion, &theta).to_torch(), weights(&format!("repulsion_grad_{file}")));
        for (name, got) in got {
            assert_near(&format!("{file}: {name}"), &got, &want[&name], BOUND + centroid_rounding(&repulsion, &theta, &name));
        }
    }
}

#[test]
fn the_number_of_copies_of_an_adapted_model_does_not_matter() {
    let theta = generator_slab("perturbed");
    let one = vec![generator_slab("adapted_0")];
    let four = vec![one[0].clone(), one[0].clone(), one[0].clone(), one[0].clone()];
    let of = |models: &[ParamSlab]| Repulsion::new(Kind::Nl2 { gamma: 1.0 }, Distance::L2, models, &theta, 10.0).unwrap().distance();
    assert!((of(&one) - of(&four)).abs() <= 1e-6 * of(&one));
}

#[test]
fn guards() {
    let theta = generator_slab("perturbed");
    let adapted = adapted();
    let refused = |kind, models: &[ParamSlab], start: &ParamSlab| match Repulsion::new(kind, Distance::L2, models, start, 10.0) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("{kind:?} was accepted"),
    };
    for gamma in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        assert!(refused(Kind::Nl2 { gamma }, &adapted, &theta).starts_with("--gamma"));
    }
    assert!(refused(Kind::El2 { gamma: 1.0, alpha: -1.0 }, &adapted, &theta).starts_with("--alpha"));
    assert!(refused(Kind::Nl2 { gamma: 1.0 }, &[], &theta).contains("k ≥ 1"));
    let pole = refused(Kind::Il2 { gamma: 1.0 }, std::slice::from_ref(&theta), &theta);
    assert!(pole.contains("pole"), "{pole}");

    let mut repulsion = Repulsion::new(Kind::Nl2 { gamma: 1.0 }, Distance::L2, &adapted, &theta, 10.0).unwrap();
    let start = repulsion.distance();
    assert!(repulsion.observe(start, 1).is_ok());
    // Beyond a root mean square displacement of 10 per parameter.
    assert!(repulsion.observe(99.0 * theta.layout().len() as f64, 2).is_ok());
    assert!(matches!(repulsion.observe(101.0 * theta.layout().len() as f64, 3), Err(Error::Diverged { .. })));
    assert!(matches!(repulsion.observe(f64::NAN, 4), Err(Error::Diverged { .. })));
}

#[test]
fn extrapolation_passes_through_the_original() {
    let g = generator_slab("generator");
    let adapted = adapted();
    assert_eq!(extrapolate(&g, &adapted, 0.0).unwrap().as_slice(), g.as_slice());
    let minus_one = extrapolate(&g, &adapted, -1.0).unwrap();
    let mean = recant::unlearning::repulsion::centroid(&adapted).unwrap();
    assert!(common::relative_error(minus_one.as_slice(), mean.as_slice()) < 1e-6, "γ = −1 is the adapted models' mean");
}

/// The marked negatives take the last places among D's fakes: the first iteration's D loss is the one computed from its
/// parts, and the generator makes only the other images.
#[test]
fn negatives_as_fakes() {
    let hyper = Hyper { batch: 4, given_fakes: 1, ..Hyper::default() }.checked().unwrap();
    let trainer = Trainer::new(&config(), hyper.clone());
    let mut state = GanState::init(&config(), &hyper, 5);
    let size = config().size;
    let images = recant::ops::random::Random::new(9, 0).normal(&[6, size, size, 3]);
    let latents = recant::ops::random::Random::new(9, 1).normal(&[6, config().latent]);
    let feedback = Feedback { images, latents, negative: vec![false, true, false, false, true, false] };
    let batch = MarkedBatches::new(&feedback, &hyper, 3, 0).unwrap().next().unwrap();
    assert_eq!(batch.dim(0), 5);
    let rows = |t: &Tensor, i: usize| t.rows(i, 1).unwrap().to_vec();
    let is_one_of = |row: Vec<f32>, of: &[usize]| of.iter().any(|&i| rows(&feedback.images, i) == row);
    assert!((0..4).all(|i| is_one_of(rows(&batch, i), &feedback.positives())) && is_one_of(rows(&batch, 4), &feedback.negatives()));

    let inputs = trainer.draw_inputs(&mut state, &batch).unwrap();
    let latents = inputs.d.as_ref().unwrap();
    let generated = trainer.generator.forward(&state.g.constants(), &latents.styles, &latents.noise).unwrap();
    assert_eq!(generated.dim(0), 3);
    let judged = concat(&[&batch.rows(0, 4).unwrap(), generated.value(), &batch.rows(4, 1).unwrap()], 0).unwrap();
    let logits = trainer.discriminator.forward(&state.d.constants(), &Var::constant(judged), 2).unwrap();
    let want = discriminator_loss(&logits).unwrap().item().unwrap();
    assert_eq!(trainer.iteration(&mut state, &inputs, &mut NoRegulariser).unwrap().d, want);

    let refused = Hyper { batch: 4, given_fakes: 4, ..Hyper::default() }.checked().unwrap_err().to_string();
    assert!(refused.contains("--negatives-as-fakes"), "{refused}");
}

/// G's fakes for both steps are the iteration with D's drawn as the first of G's, in two parts at the same time, in one and in two
/// one after the other.
#[test]
fn same_fakes() {
    let size = config().size;
    let batch = recant::ops::random::Random::new(9, 0).normal(&[9, size, size, 3]);
    for at_once in [None, Some(8), Some(4)] {
        let hyper = Hyper { batch: 8, given_fakes: 1, same_fakes: true, at_once, ..Hyper::default() }.checked().unwrap();
        let trainer = Trainer::new(&config(), hyper.clone());
        let after = |apart: bool| {
            let mut state = GanState::init(&config(), &hyper, 5);
            let mut inputs = trainer.draw_inputs(&mut state, &batch).unwrap();
            assert!(inputs.d.is_none());
            if apart {
                let styles = inputs.g.styles.rows(&[0, 1, 2, 3, 4, 5, 6]).unwrap();
                inputs.d = Some(BatchInputs { styles, noise: inputs.g.noise.iter().map(|map| map.rows(0, 7).unwrap()).collect() });
            }
            let losses = trainer.iteration(&mut state, &inputs, &mut NoRegulariser).unwrap();
            ([losses.d, losses.g], [state.g, state.g_ema, state.d].map(|slab| slab.values().to_vec::<f32>()))
        };
        assert!(after(false) == after(true), "at once {at_once:?}");
    }
}
