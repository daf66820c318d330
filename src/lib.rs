//! recant makes a pre-trained StyleGAN2 stop generating what its user marks as undesired, without its training data:
//! Adapt-then-Unlearn (arXiv 2309.14054), as a kernel engine in Rust.
//!
//! # The map
//!
//! A module imports only from layers below its own; `tests/layering.rs` fails otherwise.
//!
//! | layer | module | holds |
//! |---|---|---|
//! | L0 | [`error`] | one error type; every message is a line that names the remedy |
//! | L1 | [`device`] | where numbers live: element types, host buffers that are used again, instruction sets; a GPU's memory, launches and graphs; NCCL; the profile of the CPU's ops |
//! | L2 | [`tensor`] | contiguous arrays without history |
//! | L3 | [`ops`] | functions on tensors, one directory per family: `mod.rs` (spec, checks, dispatch), `cpu.rs`, `cuda.rs` |
//! | L3' | [`io`] | safetensors, PyTorch files, npz; pictures, read ahead; atomic writes; where processes meet |
//! | L4 | [`autograd`] | `Var`, `grad` of any order, one rule file per op family |
//! | L5 | [`nn`] | parameter slabs, layers, optimiser state |
//! | L6 | [`models`], [`data`] | StyleGAN2, classifiers, Inception; data sets and batches |
//! | L7 | [`losses`], [`training`] | logistic losses, R1, path length; one iteration as a function, whole, in parts or by several ranks; checkpoints |
//! | L8 | [`unlearning`] | Fisher, EWC, both stages, repulsion, extrapolation, feedback |
//! | L9 | [`metrics`] | PUL, feature statistics, Fréchet distance, FID |
//! | L10 | [`cli`] | one file per command |
//!
//! The way down from a command: `cli/unlearn.rs` → `unlearning/unlearn.rs` → `training/mod.rs` (one iteration) →
//! `losses/` → `models/stylegan2/generator.rs` → `autograd/grad.rs` → `ops/conv2d/mod.rs` → `ops/conv2d/cpu.rs` →
//! `ops/conv2d/cpu/winograd.rs` (3×3) and `tile.rs` (the register tiles of all) over `device/cpu/lanes.rs`.
//!
//! # What holds everywhere
//!
//! - Activations are channels-last `[N, H, W, C]`, convolution weights `[C_out, k_h, k_w, C_in]`. PyTorch's layouts
//!   exist only at the border: `nn::params::Layout` knows both for every parameter.
//! - The op set is closed under differentiation: a rule returns `Var`s made by other ops, so R1 and path length are
//!   calls of `grad` on results of `grad`. A gradient that nobody asked for is not computed.
//! - With `Precision::Bf16` StyleGAN2's activations are bf16 (`models::stylegan2` casts them, and back). An op that
//!   takes bf16 computes in f32 and rounds what it stores; parameters, their gradients and sums stay f32.
//! - `ops` knows nothing of gradients, nothing below `cli` prints, training does not know metrics.
//! - A network's parameters are one slab; Adam, EMA, EWC and repulsion are one pass over it (`ops::optimizer`).
//! - Randomness is Philox addressed by (seed, stream, counter). Results do not depend on the number of threads: how work
//!   is cut depends on shapes alone.
//! - Files are written beside their target and renamed.
//!
//! # Adding an op
//!
//! `src/ops/<family>/{mod,cpu,cuda}.rs`, `src/autograd/rules/<family>.rs`, `tests/cases/<family>.rs`, `kernels/<family>.cu`,
//! and a `mod` line in each list. The cases feed the comparison with a plain loop, the adjoint identity, first- and
//! second-order gradient checks, and the check that threads change no bit.
//!
//! # CUDA
//!
//! `kernels/*.cu` are compiled by `build.rs` when it finds nvcc, looked up when a [`device::CudaDevice`] opens, and launched
//! by `ops/<family>/cuda.rs`: an op runs where its tensors live. Nothing falls back: an op without a kernel says so.
//! `training::run` queues each kind of iteration once op by op, records it as a graph, and from then on queues the graph;
//! what differs between iterations is in the GPU's memory before, so the host waits only for losses that somebody reads.
//! Work that the next does not need goes beside it (`device::cuda::beside`): the pass of D's optimiser beside G's forward pass.
//!
//! `tests/cuda_on_cpu` models the CUDA execution model and the driver on the CPU, so the kernels and all of this host code
//! run under `cargo test` on any machine. `recant doctor` and `recant bench` are for a real GPU (`cli::probes` lists what
//! they run).

pub mod autograd;
pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod io;
pub mod losses;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod ops;
pub mod tensor;
pub mod training;
pub mod unlearning;
