//! The CPU rounding to bf16 where a GPU does (`--precision bf16 --device cpu`). In a program of its own, because it is the whole
//! process that rounds.

mod common;

use common::stylegan2::{arrays, hyper, training_inputs, training_start};
use common::{gpu, relative_error};
use recant::device::cpu::{round_to_bf16, rounds_to_bf16};
use recant::device::{Choice, Device, Precision};
use recant::error::Result;
use recant::ops::conv2d::{Conv2d, conv2d, conv2d_transpose, conv2d_weight_grad};
use recant::ops::elementwise::cast;
use recant::ops::random::Random;
use recant::tensor::{DType, Tensor, all_on};
use recant::training::{NoRegulariser, Trainer};

type Run = fn(&[Tensor]) -> Result<Tensor>;

const SPEC: Conv2d = Conv2d::square(1, 1);

/// The three convolutions of layers that are wide enough for tensor cores: input, gradient of the output, weight, scales of both.
const CONVOLUTIONS: [(&str, Run); 3] = [
    ("conv2d", |t| conv2d(&t[0], &t[2], Some(&t[3]), Some(&t[4]), SPEC)),
    ("conv2d_transpose", |t| conv2d_transpose(&t[1], &t[2], Some(&t[4]), Some(&t[3]), SPEC, [8, 8])),
    ("conv2d_weight_grad", |t| conv2d_weight_grad(&t[0], &t[1], Some(&t[3]), Some(&t[4]), SPEC, [3, 3])),
];

fn values(t: &Tensor) -> Vec<f32> {
    t.to_device(&Device::Cpu).unwrap().to_vec()
}

/// Where a GPU multiplies on tensor cores, the CPU multiplies the same rounded numbers: what is left are the orders of the sums,
/// a tenth of what rounding changes. That an iteration rounds everywhere is seen by how far it goes from the exact one.
#[test]
fn the_cpu_rounds_as_a_gpu_does() {
    let (gpu, mut random) = (Device::Cuda(gpu::cuda_with(Precision::Bf16)), Random::new(3, 0));
    let inputs = [&[2, 8, 8, 64][..], &[2, 8, 8, 72], &[72, 3, 3, 64], &[2, 64], &[2, 72]].map(|shape| random.normal(shape));
    let exact = CONVOLUTIONS.map(|(_, run)| values(&run(&inputs).unwrap()));
    let iteration = || {
        let mut state = training_start();
        let inputs = training_inputs(&arrays("train_steps"), 0);
        Trainer::new(&state.config, hyper()).iteration(&mut state, &inputs, &mut NoRegulariser).unwrap();
        [&state.g_optim, &state.d_optim].map(|optim| values(optim.second_moment.values()))
    };
    let trained = iteration();

    let (device, problem) = Choice::Cpu.open(Precision::Bf16).unwrap();
    assert!(device == Device::Cpu && problem.is_none() && rounds_to_bf16());
    for ((name, run), exact) in CONVOLUTIONS.iter().zip(&exact) {
        for stored in [DType::F32, DType::Bf16] {
            let in_bf16 = |device: &Device| {
                let mut there = all_on(device, &inputs).unwrap();
                there[..2].iter_mut().for_each(|t| *t = cast(t, stored).unwrap());
                values(&run(&there).unwrap_or_else(|e| panic!("{name}: {e} {}", cuda_on_cpu::last_error())))
            };
            let (here, there) = (in_bf16(&device), in_bf16(&gpu));
            let (near, far) = (relative_error(&here, &there), relative_error(&here, exact));
            assert!(near < 0.1 * far && (1e-3..1e-2).contains(&far), "{name} of {stored:?}: {near} from the GPU's, {far} from the exact one");
        }
    }
    for (which, (rounded, exact)) in ["generator", "discriminator"].iter().zip(iteration().iter().zip(&trained)) {
        let far = relative_error(rounded, exact);
        assert!((1e-3..0.1).contains(&far), "{which}: squared gradients are {far} from the exact ones");
    }
    round_to_bf16(false);
    assert_eq!(values(&CONVOLUTIONS[0].1(&inputs).unwrap()), exact[0]);
}
