//! The CUDA execution model on a CPU.
