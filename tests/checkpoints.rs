//! Model files: PyTorch's checkpoints in both formats, and what official files carry besides the networks.

mod common;

use std::path::Path;

use common::{Arrays, golden, safetensors};
use recant::io::safetensors::Content;
use recant::io::torch_file::TorchFile;
use recant::tensor::{DType, Tensor};
use recant::training::Hyper;
use recant::training::checkpoint::{Checkpoint, save_state};

fn assert_equal(what: &str, slab: &recant::nn::ParamSlab, want: &Arrays) {
    for (name, t) in slab.to_torch() {
        assert_eq!(t.to_vec::<f32>(), want[&name].to_vec::<f32>(), "{what}: {name}");
    }
}

#[test]
fn rosinality_checkpoints_of_both_formats() {
    for file in ["stylegan2_tiny/rosinality_checkpoint.pt", "stylegan2_tiny/rosinality_checkpoint_legacy.pt"] {
        let c = Checkpoint::open(golden(file)).unwrap();
        for (what, slab) in [("generator", c.g.as_ref().unwrap()), ("gema", &c.g_ema), ("discriminator", c.d.as_ref().unwrap())] {
            assert_equal(file, slab, &safetensors(&format!("stylegan2_tiny/train_{what}_after3.safetensors")));
        }
    }
}

/// Adam's moments land at the parameters that PyTorch numbered them by.
#[test]
fn optimiser_state() {
    let path = golden("stylegan2_tiny/rosinality_checkpoint.pt");
    let tensors = TorchFile::open(&path).unwrap().tensors().unwrap();
    let c = Checkpoint::open(&path).unwrap();
    for (name, state) in [("g_optim", c.g_optim.as_ref().unwrap()), ("d_optim", c.d_optim.as_ref().unwrap())] {
        let moments = state.second_moment.to_torch();
        for (i, s) in state.second_moment.layout().segments().iter().enumerate() {
            let want = &tensors[&format!("{name}.state.{i}.exp_avg_sq")];
            assert_eq!(moments[&s.name].to_vec::<f32>(), want.to_vec::<f32>(), "{name} {}", s.name);
        }
        assert!(state.step > 0 && state.adam.lr > 0.0 && state.adam.beta1 == 0.0, "{name}: {:?} at step {}", state.adam, state.step);
    }
}

/// What stage 1 of the official code and DataParallel leave in files is tolerated; filters that the engine does not
/// have are not.
#[test]
fn extras_prefixes_and_foreign_filters() {
    let plain = safetensors("stylegan2_tiny/generator.safetensors");
    let mut extras: Arrays = plain.iter().map(|(k, t)| (format!("g_ema.module.{k}"), t.clone())).collect();
    extras.insert("g_ema.module.conv__weight__1_mean".into(), Tensor::from_vec(&[1], vec![1.0_f32]));
    extras.insert("g_ema.module.conv__weight__1_fisher".into(), Tensor::from_vec(&[1], vec![1.0_f32]));
    let read = |tensors: Arrays| Checkpoint::from_safetensors(Content { tensors, metadata: Default::default() });
    assert_equal("extras", &read(extras).unwrap().g_ema, &plain);
    let mut foreign = plain.clone();
    foreign.insert("convs.0.conv.blur.kernel".into(), Tensor::from_vec(&[4, 4], vec![1.0_f32 / 16.0; 16]));
    let problem = read(foreign).err().unwrap();
    assert!(problem.contains("convs.0.conv.blur.kernel") && problem.contains("[1, 3, 3, 1]"), "{problem}");
    let mut missing = plain.clone();
    missing.remove("conv1.conv.weight");
    let problem = read(missing).err().unwrap();
    assert!(problem.contains("conv1.conv.weight"), "{problem}");
}

/// A state that was written and read has the same bits, its metadata included.
#[test]
fn a_state_comes_back_whole() {
    let path = golden("stylegan2_tiny/rosinality_checkpoint.pt");
    let c = Checkpoint::open(&path).unwrap();
    let noise = c.noise.clone();
    let mut state = c.into_state(&path, &Hyper::default(), 7).unwrap();
    (state.iteration, state.mean_path_length) = (12, Tensor::full(&[1], 0.1 + 0.2, DType::F32));
    state.rng.counter = u64::MAX - 3;
    let file = std::env::temp_dir().join(format!("recant-state-{}.safetensors", std::process::id()));
    save_state(&file, &state, &noise, &Default::default()).unwrap();
    let back = Checkpoint::open(&file).unwrap().into_state(Path::new("file"), &Hyper::default(), 0).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!((back.iteration, back.mean_path_length.item().unwrap(), back.rng), (state.iteration, state.mean_path_length.item().unwrap(), state.rng));
    assert_eq!((back.g_optim.step, back.d_optim.adam), (state.g_optim.step, state.d_optim.adam));
    for (a, b) in [(&back.g, &state.g), (&back.g_ema, &state.g_ema), (&back.d, &state.d), (&back.d_optim.second_moment, &state.d_optim.second_moment)] {
        assert_eq!(a.as_slice(), b.as_slice());
    }
}
