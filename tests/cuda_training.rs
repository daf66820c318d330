//! Training on a GPU: recorded iterations against those that are queued op by op and against the CPU, memory over many
//! iterations, and that the host does not wait. On the emulator of tests/cuda_on_cpu, or with
//! `RECANT_TEST_DEVICE=driver` on the machine's GPU.

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use common::gpu;
use recant::device::cuda::Workspace;
use recant::device::{CudaDevice, Device, Precision};
use recant::error::{Error, Result};
use recant::io::meeting::free_address;
use recant::models::stylegan2::StyleGan2Config;
use recant::nn::ParamSlab;
use recant::ops::elementwise::{Zip, zip};
use recant::ops::random::Random;
use recant::tensor::{DType, Inbox, Tensor};
use recant::training::ranks::{Place, Ranks};
use recant::training::{GanState, Hyper, NoRegulariser, Regulariser, TensorBatches, Trainer, run};
use recant::unlearning::adapt::Ewc;
use recant::unlearning::feedback::Feedback;
use recant::unlearning::repulsion::{Distance, Kind, Repulsion};
use recant::unlearning::unlearn::MarkedBatches;

/// Counters of memory and of waits are the whole process's, so the tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config() -> StyleGan2Config {
    StyleGan2Config::with_channels(8, 6, 1, "4:4,8:3").unwrap()
}

/// All four kinds of iterations within ten, each at least twice: both at 0 and 6, R1 alone at 2, 4 and 8, path length
/// alone at 3 and 9.
fn hyper() -> Hyper {
    Hyper { batch: 2, given_fakes: 1, r1_every: 2, path_every: 3, path_shrink: 1, mixing: 0.5, ..Hyper::default() }
}

const ITERATIONS: u64 = 10;

/// Images to train on, one of them marked.
fn marked() -> Feedback {
    let images = Random::new(9, 0).normal(&[6, 8, 8, 3]);
    Feedback { images, latents: Random::new(9, 1).normal(&[6, 6]), negative: (0..6).map(|i| i == 4).collect() }
}

/// How an iteration of a run is regularised.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Plain,
    /// Plain, and G's step judges D's fakes.
    SameFakes,
    Adapt,
    Unlearn,
}

fn regulariser(stage: Stage, start: &ParamSlab) -> Box<dyn Regulariser> {
    let device = start.values().device();
    let slab = |stream: u64, f: fn(f32) -> f32| {
        let values = Random::new(5, stream).normal(&[start.layout().len()]).to_vec::<f32>().into_iter().map(f).collect();
        ParamSlab::from_values(start.layout(), values).unwrap().to_device(&device).unwrap()
    };
    match stage {
        Stage::Plain | Stage::SameFakes => Box::new(NoRegulariser),
        Stage::Adapt => Box::new(Ewc { anchor: start.deep_clone().unwrap(), fisher: slab(1, f32::abs), lambda: 0.5 }),
        Stage::Unlearn => {
            let kind = Kind::El2 { gamma: 1.0, alpha: 1e-3 };
            Box::new(Repulsion::new(kind, Distance::L2, &[slab(2, |v| v), slab(3, |v| v)], start, 100.0).unwrap())
        }
    }
}

/// What a run leaves, as bits, and the losses that were asked for.
#[derive(Debug, PartialEq)]
struct Outcome {
    networks: [Vec<u32>; 5],
    mean_path_length: u64,
    steps: [u64; 2],
    counter: u64,
    losses: Vec<[u64; 3]>,
}

fn train(device: &Device, stage: Stage, record: bool) -> Outcome {
    train_in_parts(device, stage, record, &[ITERATIONS])
}

/// Trains until each of `stops`; between two of them the state is all that is kept, as in a file.
fn train_in_parts(device: &Device, stage: Stage, record: bool, stops: &[u64]) -> Outcome {
    let (hyper, marked) = (Hyper { same_fakes: matches!(stage, Stage::SameFakes), ..hyper() }, marked());
    let mut state = GanState::init(&config(), &hyper, 3);
    let mut trainer = Trainer::new(&config(), hyper.clone());
    trainer.record = record;
    let mut losses = Vec::new();
    for &until in stops {
        state = state.to_device(device).unwrap();
        let mut batches = MarkedBatches::new(&marked, &hyper, 1, state.iteration).unwrap();
        let mut regulariser = regulariser(stage, &state.g);
        run(&trainer, &mut state, &mut batches, &mut *regulariser, until, &mut |p| {
            let l = p.losses()?;
            losses.push([l.d, l.g, l.regulariser.unwrap_or(0.0)].map(f64::to_bits));
            Ok(())
        })
        .unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()));
        state = state.to_device(&Device::Cpu).unwrap();
    }
    let bits = |slab: &ParamSlab| slab.as_slice().iter().map(|v| v.to_bits()).collect();
    Outcome {
        networks: [bits(&state.g), bits(&state.g_ema), bits(&state.d), bits(&state.g_optim.second_moment), bits(&state.d_optim.second_moment)],
        mean_path_length: state.mean_path_length.item().unwrap().to_bits(),
        steps: [state.g_optim.step, state.d_optim.step],
        counter: state.rng.counter,
        losses,
    }
}

#[test]
fn a_resumed_run_continues_with_the_same_bits() {
    let _turn = turn();
    let device = gpu::device();
    // The adaptation's anchor is the parameters at its start, which a resumed run reads from the original model.
    for stage in [Stage::Plain, Stage::Unlearn] {
        let (whole, parts) = (train(&device, stage, true), train_in_parts(&device, stage, true, &[4, ITERATIONS]));
        assert!(whole == parts, "{stage:?}:\n{:?}\n{:?}", whole.losses, parts.losses);
    }
}

#[test]
fn recorded_iterations_equal_queued_ones_bit_for_bit() {
    let _turn = turn();
    let (device, bf16) = (gpu::device(), Device::Cuda(gpu::cuda_with(Precision::Bf16)));
    for (device, stage) in [(&device, Stage::Plain), (&device, Stage::SameFakes), (&device, Stage::Adapt), (&device, Stage::Unlearn), (&bf16, Stage::Unlearn)] {
        let (queued, recorded) = (train(device, stage, false), train(device, stage, true));
        assert!(queued == recorded, "{stage:?}:\n{:?}\n{:?}", queued.losses, recorded.losses);
        assert_eq!(recorded.steps, [ITERATIONS + 4, ITERATIONS + 5], "{stage:?}: path length at 0, 3, 6 and 9, R1 at 0, 2, 4, 6 and 8");
    }
}

/// What ranks with a GPU each end with, all iterations recorded.
fn train_ranks(world: usize) -> Vec<Vec<Vec<f32>>> {
    cuda_on_cpu::install_nccl();
    let address = free_address();
    let hyper = Hyper { batch: 8, given_fakes: 0, ..hyper() };
    let images = Random::new(9, 0).normal(&[12, 8, 8, 3]);
    let rank = |rank: usize| {
        let device = gpu::device();
        let ranks = Ranks::join(&Place { rank, world, local: 0, address: address.clone() }, &device).unwrap();
        let trainer = Trainer::new(&config(), hyper.clone()).with_ranks(ranks).unwrap();
        let mut state = GanState::init(&config(), &hyper, 3).to_device(&device).unwrap();
        let mut batches = TensorBatches::new(&images, (0..12).collect(), hyper.batch, 1, 0).unwrap();
        run(&trainer, &mut state, &mut batches, &mut NoRegulariser, 7, &mut |_| Ok(())).unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()));
        [&state.g, &state.g_ema, &state.d].map(|slab| slab.values().to_vec::<f32>()).to_vec()
    };
    std::thread::scope(|s| (0..world).map(|r| s.spawn(move || rank(r))).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect())
}

/// Ranks of one group keep the same bits, through recorded sums too, and end near where one alone does: Adam makes steps
/// of full size of gradients that are rounding, so single parameters may be off by a few of them.
#[test]
fn ranks_train_as_one() {
    let _turn = turn();
    let alone = train_ranks(1).remove(0);
    // On a real driver the ranks would need a GPU each.
    if !cuda_on_cpu::is_emulated() {
        return;
    }
    let both = train_ranks(2);
    assert!(both[0] == both[1], "ranks have other bits");
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| (v as f64).powi(2)).sum::<f64>().sqrt();
    for (one, two) in alone.iter().zip(&both[0]) {
        let apart = norm(&mut one.iter().zip(two).map(|(a, b)| a - b)) / norm(&mut one.iter().copied());
        assert!(apart < 1e-3, "{apart}");
    }
}

/// Layers wide enough for Hopper's own kernels, whose weights the optimiser leaves in bf16: what was recorded after the
/// first steps reads those of each later one.
#[test]
fn recorded_iterations_equal_queued_ones_on_hopper() {
    let _turn = turn();
    let config = StyleGan2Config::with_channels(8, 6, 1, "4:8,8:64").unwrap();
    let hyper = Hyper { batch: 4, given_fakes: 0, r1_every: 100, path_every: 100, path_shrink: 2, ..hyper() };
    let images = Random::new(9, 0).normal(&[6, 8, 8, 3]);
    let train = |record: bool| {
        let gpu = gpu::cuda_with(Precision::Bf16);
        let mut state = GanState::init(&config, &hyper, 3).to_device(&Device::Cuda(gpu.clone())).unwrap();
        // Without R1 and path length, which fall on the first.
        state.iteration = 1;
        let mut batches = TensorBatches::new(&images, (0..6).collect(), hyper.batch, 1, 0).unwrap();
        let mut trainer = Trainer::new(&config, hyper.clone());
        trainer.record = record;
        run(&trainer, &mut state, &mut batches, &mut NoRegulariser, 4, &mut |_| Ok(())).unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()));
        let hopper: u64 = gpu.launches().into_iter().filter(|(name, _)| name.contains("_sm90_")).map(|(_, n)| n).sum();
        assert_eq!(hopper > 0, gpu.compute_capability() == (9, 0));
        [&state.g, &state.g_ema, &state.d].map(|slab| slab.values().to_vec::<f32>())
    };
    let (queued, recorded) = (train(false), train(true));
    assert!(queued.iter().flatten().all(|v| v.is_finite()));
    assert!(queued == recorded);
}

/// On a driver that runs nothing before it must, as on one that runs everything at once.
#[test]
fn it_does_not_matter_when_queued_work_runs() {
    let _turn = turn();
    let device = gpu::device();
    for stage in [Stage::Plain, Stage::Unlearn] {
        let lazy = cuda_on_cpu::with_lazy_streams(|| train(&device, stage, true));
        assert!(lazy == train(&device, stage, true), "{stage:?}");
    }
}

/// Messages that are sent while the copies of earlier ones have not been made.
#[test]
fn messages_do_not_overtake_each_other() {
    let _turn = turn();
    let gpu = gpu::cuda();
    let received = cuda_on_cpu::with_lazy_streams(|| {
        let mut inbox = Inbox::new(&[3], &gpu).unwrap();
        let copies: Vec<Tensor> = (0..5)
            .map(|i| {
                inbox.fill(&Tensor::full(&[3], i as f64, DType::F32)).unwrap();
                inbox.tensor().deep_clone().unwrap()
            })
            .collect();
        copies.iter().map(|t| t.to_vec::<f32>()).collect::<Vec<_>>()
    });
    assert_eq!(received, (0..5).map(|i| vec![i as f32; 3]).collect::<Vec<_>>());
}

/// The random inputs are the CPU's, so the losses are, up to what rounding becomes in ten iterations.
#[test]
fn a_gpu_trains_as_the_cpu_does() {
    let _turn = turn();
    for stage in [Stage::Plain, Stage::Adapt, Stage::Unlearn] {
        let (here, there) = (train(&Device::Cpu, stage, true), train(&gpu::device(), stage, true));
        assert_eq!((here.steps, here.counter), (there.steps, there.counter));
        for (i, (here, there)) in here.losses.iter().zip(&there.losses).enumerate() {
            for (here, there) in here.iter().zip(there).map(|(a, b)| (f64::from_bits(*a), f64::from_bits(*b))) {
                // Rounding errors of 1e-7 grow by Adam's normalisation: a gradient near zero decides the sign of a step.
                assert!((here - there).abs() <= 2e-3 * here.abs().max(1.0), "{stage:?} at {i}: {there} where the CPU has {here}");
            }
        }
    }
}

#[test]
fn the_host_does_not_wait_and_memory_does_not_grow() {
    let _turn = turn();
    if cuda_on_cpu::skip_on_driver("the_host_does_not_wait_and_memory_does_not_grow") {
        return;
    }
    const MANY: u64 = 1000;
    let hyper = Hyper { r1_every: 7, path_every: 5, ..hyper() };
    let mut state = GanState::init(&config(), &hyper, 3).to_device(&gpu::device()).unwrap();
    let marked = marked();
    let mut batches = MarkedBatches::new(&marked, &hyper, 1, 0).unwrap();
    let trainer = Trainer::new(&config(), hyper);
    let mut seen = Vec::new();
    run(&trainer, &mut state, &mut batches, &mut NoRegulariser, MANY, &mut |p| {
        let (in_use, peak) = cuda_on_cpu::device_memory();
        seen.push((p.state.iteration, in_use, peak, cuda_on_cpu::synchronisations()));
        Ok(())
    })
    .unwrap_or_else(|e| panic!("{e} {}", cuda_on_cpu::last_error()));
    // By 50 every kind of iteration was recorded (both fall together every 35).
    let settled = seen[49];
    for later in &seen[50..] {
        assert_eq!((later.1, later.2), (settled.1, settled.2), "device memory in use and at most, at iteration {}", later.0);
    }
    // The loop itself reads the losses every 50 iterations; between two of those nothing waits.
    for pair in seen[50..].windows(2).filter(|pair| pair[1].0 % 50 != 0) {
        assert_eq!(pair[1].3, pair[0].3, "the host waited in iteration {}", pair[1].0);
    }
}

#[test]
fn too_much_memory_is_refused_in_one_line() {
    let _turn = turn();
    let device = gpu::cuda();
    let (_, total) = device.memory().unwrap();
    let refused = device.allocate(total + (1 << 30)).unwrap_err();
    assert!(matches!(refused, Error::Cuda { .. }), "{refused:?}");
    let (text, asked) = (refused.to_string(), (total >> 20) + 1024);
    assert!(text.contains(&format!("asking for {asked} MiB")), "{text}");
    assert!(text.contains(&format!("MiB are free of {} MiB", total >> 20)) && text.contains("--batch") && !text.contains('\n'), "{text}");
}

#[test]
fn unusable_drivers_are_refused_in_one_line() {
    let _turn = turn();
    if cuda_on_cpu::skip_on_driver("unusable_drivers_are_refused_in_one_line") {
        return;
    }
    cuda_on_cpu::install();
    let open = |ordinal: usize| CudaDevice::with_images(ordinal, Precision::F32, &|stem| Some(cuda_on_cpu::image(stem))).unwrap_err();
    let old = cuda_on_cpu::with_driver_version(12_040, || open(0));
    assert!(matches!(old, Error::NoCuda { .. }), "{old:?}");
    let text = old.to_string();
    assert!(text.contains("CUDA 12.4") && text.contains("13.0") && text.contains("update the driver") && !text.contains('\n'), "{text}");
    let absent = open(3).to_string();
    assert!(absent.contains("cuda:3") && absent.contains("1 GPU"), "{absent}");
    // An image that no driver takes.
    let spoilt = CudaDevice::with_images(0, Precision::F32, &|_| Some(b"no image".to_vec())).unwrap_err().to_string();
    assert!(spoilt.contains("kernels/") && spoilt.contains("RECANT_CUDA_ARCHS") && !spoilt.contains('\n'), "{spoilt}");
}

/// A recording that asks for what its rehearsal did not is refused, and the device goes on.
#[test]
fn a_recording_needs_its_rehearsal() {
    let _turn = turn();
    let device = gpu::cuda();
    let workspace = Workspace::default();
    let work = |len: usize| -> Result<Tensor> { Tensor::full_on(&[len], 2.0, DType::F32, &Device::Cuda(device.clone())) };
    let text = |e: Result<_>| e.err().map(|e: Error| e.to_string()).unwrap_or_default();
    let unrehearsed = text(device.record(&workspace, || work(1000)).map(|_| ()));
    assert!(unrehearsed.contains("rehearsal"), "{unrehearsed}");
    drop(device.with_workspace(&workspace, || work(1000)).unwrap());
    let read = text(device.record(&workspace, || work(1000)?.to_device(&Device::Cpu)).map(|_| ()));
    assert!(!read.is_empty(), "a recording cannot read");
    let (mut graph, filled) = device.record(&workspace, || work(1000)).unwrap();
    graph.launch().unwrap();
    assert_eq!(filled.to_vec::<f32>(), vec![2.0; 1000]);
}

/// What is queued beside other work reads and writes what it would in its place in the stream, whether it runs as early as it
/// can or as late, and memory that it reads is not used again before.
#[test]
fn work_beside_other_work() {
    let _turn = turn();
    let device = gpu::cuda();
    let workspace = Workspace::default();
    let of = |value: f64| Tensor::full_on(&[1000], value, DType::F32, &Device::Cuda(device.clone()));
    let work = || -> Result<[Tensor; 2]> {
        let twos = of(2.0)?;
        let (beside, fours) = device.beside(|| zip(&twos, &twos, Zip::Add))?;
        drop(twos);
        let sevens = of(7.0)?;
        let second = device.beside(|| Ok(()));
        assert!(second.is_err_and(|e| e.to_string().contains("has not been waited for")));
        beside.join()?;
        Ok([fours, sevens])
    };
    let check = |made: [Tensor; 2]| assert_eq!(made.map(|t| t.to_vec::<f32>()), [vec![4.0; 1000], vec![7.0; 1000]]);
    for _ in 0..2 {
        device.with_workspace(&workspace, || check(work().unwrap()));
        cuda_on_cpu::with_lazy_streams(|| device.with_workspace(&workspace, || check(work().unwrap())));
    }
    let (mut graph, made) = device.record(&workspace, work).unwrap();
    graph.launch().unwrap();
    check(made);
    // What fails there is joined, too: a recording can end, and the next work begin.
    let failing = || device.beside(|| of(1.0).and(Err::<(), _>(Error::config("--test", "fails"))));
    assert!(device.record(&workspace, || failing().map(|_| ())).err().unwrap().to_string().contains("fails"));
    device.with_workspace(&workspace, || check(work().unwrap()));
}
