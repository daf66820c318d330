//! The eight-Gaussians experiment: what each stage must do to the points, and that it is reproducible.
//!
//! The defaults were chosen by trying, with points out of 2000: latent 16 gives 11–13 % of points between the modes,
//! latent 2 gives 9 %; a learning rate that falls to zero from 0.02 brings that to 6–7 %, four hidden layers instead of
//! three to 5 %, R1 0.03 instead of 0.1 to 3–5 %; an EMA of 0.999 lags behind stage 1 (half of the adapted points
//! between the modes). With half of the iterations and three layers, over seeds 0 to 4:
//! 9–17 % between the modes before, 62–82 % of the adapted points near the negatives, 89–92 % fewer points there after. Without
//! repulsion the points come out alike: here, training on positives alone forgets the negatives.

use recant::device::Device;
use recant::ops::random::Random;
use recant::tensor::Tensor;
use recant::unlearning::gaussians::{
    Counts, EL2, GaussiansResult, GaussiansSpec, IL2, MODES, Mixture, NEGATIVE_MODES, NL2, centre, is_negative, nearest, run, scatter,
};
use recant::unlearning::schedule::side_by_side;

/// Too short to learn anything: for what must hold in any case.
fn tiny() -> GaussiansSpec {
    let mut spec = GaussiansSpec { pretrain_iterations: 60, models: 2, adapt_iterations: 5, unlearn_iterations: 5, marked: 400, samples: 64, ..GaussiansSpec::default() };
    spec.network.layers = 2;
    spec
}

fn quiet(spec: &GaussiansSpec) -> recant::error::Result<GaussiansResult> {
    run(spec, &mut |_| Ok(()))
}

fn kept(mode: usize) -> bool {
    !NEGATIVE_MODES.contains(&mode)
}

/// Measured with the defaults at seeds 0 and 1: before, each mode has 9.5 to 14 % of the points; of the adapted points
/// 91 to 95 % lie near a negative centre, at most 0.2 % near any other; after, 0.6 and 0.9 % lie near a negative centre
/// (before: 24 and 26 %), 1.3 and 1.6 % are marked negative (before: 25 and 26 %; the rest are points between modes),
/// and each of the other modes has 11 % or more; NL2 and IL2 leave 0.4 to 1 % near a negative centre over seeds 0 to 2.
/// The bounds leave at least twice the distance to what is perfect.
#[test]
fn adapting_keeps_only_the_negative_modes_and_unlearning_drops_only_them() {
    let full = GaussiansSpec::default();
    let specs = [
        GaussiansSpec { seed: 0, ..full.clone() },
        GaussiansSpec { seed: 1, ..full.clone() },
        GaussiansSpec { seed: 0, models: 1, repulsion: Some(NL2), ..full.clone() },
        GaussiansSpec { seed: 0, models: 1, repulsion: Some(IL2), ..full },
    ];
    let results = side_by_side(&[Device::Cpu], specs.len(), |_, i| quiet(&specs[i])).unwrap();
    for (GaussiansSpec { seed, .. }, r) in specs.iter().zip(&results) {
        let before = Counts::of(&r.pretrained);
        assert!(before.smallest_share(|_| true) >= 0.05, "seed {seed}, pre-trained: {before:?}");
        for points in &r.all_adapted {
            let adapted = Counts::of(points);
            assert!(adapted.negative_near_share() >= 0.8, "seed {seed}, adapted: {adapted:?}");
            assert!((0..MODES).filter(|m| kept(*m)).all(|m| adapted.near[m] * 100 <= adapted.total), "seed {seed}, adapted: {adapted:?}");
        }
        let after = Counts::of(&r.unlearned);
        assert!(after.negative_near_share() <= 0.1 * before.negative_near_share(), "seed {seed}, unlearned: {after:?}");
        assert!(after.negative_share() <= 0.13 * before.negative_share(), "seed {seed}, unlearned: {after:?}");
        assert!(after.smallest_share(kept) >= 0.06, "seed {seed}, unlearned: {after:?}");
        let (from, to) = r.distance.expect("the default repels");
        assert!(to > from, "seed {seed}: the distance fell from {from} to {to}");
    }
}

#[test]
fn the_mixture_is_what_its_name_says() {
    assert_eq!(NEGATIVE_MODES.map(centre).map(|c| c.map(|v| (v * 100.0).round() / 100.0)), [[2.0, 0.0], [-1.41, -1.41]]);
    let n = 80_000;
    let points = Mixture { spread: 0.1 }.sample(n, &mut Random::new(1, 0));
    let counts = Counts::of(&points);
    for mode in 0..MODES {
        // Five standard errors of a share of 1/8.
        assert!((counts.near[mode] as f64 / n as f64 - 0.125).abs() < 5.0 * (0.125 * 0.875 / n as f64).sqrt(), "{counts:?}");
    }
    // 0.5 is five standard deviations: e^-12.5 of all points lie beyond.
    assert!(counts.stray_share() < 1e-4);
    let squared: f64 = points.as_slice::<f32>().chunks_exact(2).map(|p| nearest(p).1.powi(2)).sum::<f64>() / n as f64;
    // E ‖offset‖² = 2 · 0.1², with a standard error of that over √n.
    assert!((squared - 0.02).abs() < 5.0 * 0.02 / (n as f64).sqrt(), "{squared}");
}

#[test]
fn points_are_marked_and_counted_by_the_nearest_centre() {
    assert_eq!(nearest(&[1.0, 0.1]).0, 0);
    assert!(is_negative(&[1.0, 0.1]) && is_negative(&[-1.4, -1.5]) && !is_negative(&[0.1, 2.0]));
    let counts = Counts::of(&Tensor::from_vec::<f32>(&[4, 2], vec![2.0, 0.1, 1.2, 0.0, 0.0, 2.4, -1.4, -1.4]));
    assert_eq!(counts.marked, [2, 0, 1, 0, 0, 1, 0, 0]);
    // (1.2, 0) is 0.8 from its centre.
    assert_eq!(counts.near, [1, 0, 1, 0, 0, 1, 0, 0]);
    assert_eq!((counts.negative_share(), counts.negative_near_share(), counts.stray_share()), (0.75, 0.5, 0.25));
    assert_eq!(counts.smallest_share(|m| m == 0 || m == 2), 0.25);
    assert_eq!(counts.smallest_share(|_| true), 0.0);
}

#[test]
fn a_seed_gives_the_same_points_on_any_number_of_threads() {
    let on = |threads: usize, seed: u64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let r = pool.install(|| quiet(&GaussiansSpec { seed, ..tiny() })).unwrap();
        [&r.pretrained, &r.adapted, &r.unlearned].map(|t| t.to_vec::<f32>()).concat()
    };
    let points = on(1, 5);
    assert_eq!(points, on(3, 5));
    assert_ne!(points, on(1, 6));
}

#[test]
fn every_repulsion_and_the_ablation_run() {
    let mut clouds = Vec::new();
    for kind in [Some(EL2), Some(NL2), Some(IL2), None] {
        let r = quiet(&GaussiansSpec { repulsion: kind, ..tiny() }).unwrap();
        match r.distance {
            Some((before, after)) => assert!(kind.is_some() && before > 0.0 && after != before),
            None => assert!(kind.is_none()),
        }
        assert_eq!(r.all_adapted.len(), 2);
        clouds.push(r.unlearned.to_vec::<f32>());
    }
    for (i, cloud) in clouds.iter().enumerate() {
        assert!(!clouds[..i].contains(cloud), "two repulsions gave the same points");
    }
}

#[test]
fn unusable_numbers_are_refused_in_one_line() {
    let refused = |spec: GaussiansSpec| quiet(&spec).expect_err("refused").to_string();
    for message in [
        refused(GaussiansSpec { models: 0, ..tiny() }),
        refused(GaussiansSpec { lr: -1.0, ..tiny() }),
        refused(GaussiansSpec { repulsion: Some(recant::unlearning::repulsion::Kind::Nl2 { gamma: -1.0 }), ..tiny() }),
        refused(GaussiansSpec { lr: f64::INFINITY, ..tiny() }),
    ] {
        assert!(!message.contains('\n') && message.len() > 10, "{message}");
    }
}

#[test]
fn the_figure_shows_three_clouds_and_the_negative_centres() {
    let r = quiet(&tiny()).unwrap();
    let svg = scatter(&r);
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    for title in ["Pre-trained", "Adapted to the negatives", "Unlearned"] {
        assert!(svg.contains(title), "{title}");
    }
    let inside = |t: &Tensor| t.as_slice::<f32>().chunks_exact(2).filter(|p| p[0].abs() <= 3.2 && p[1].abs() <= 3.2).count();
    assert_eq!(svg.matches("<circle").count(), inside(&r.pretrained) + inside(&r.adapted) + inside(&r.unlearned));
    // A cross is two lines; two negative centres in each of three panels, in red.
    assert_eq!(svg.matches("stroke=\"#FF0000\"").count(), 3 * 2 * 2);
}
