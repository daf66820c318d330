//! Elementwise family: `add`, `sub`, `mul` of equal shapes; `map`, `saturate` and `cast` of one tensor; `channel_scale`.

mod cpu;
mod cuda;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::{on_device, parameters_of, same_kind};
use crate::tensor::{DType, Tensor};

/// Functions of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Map {
    /// `scale · x + shift`
    Affine { scale: f64, shift: f64 },
    Power(Power),
    Exp,
    Log,
    Sigmoid,
    Tanh,
    /// `log(1 + e^x)`, stable at both ends.
    Softplus,
}

/// `gain · (x + shift)^exponent`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Power {
    pub gain: f64,
    pub shift: f64,
    pub exponent: f64,
}

impl Power {
    /// `x^exponent`
    pub const fn of(exponent: f64) -> Power {
        Power { gain: 1.0, shift: 0.0, exponent }
    }
}

/// Functions of two values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Zip {
    Add,
    Sub,
    Mul,
}

/// `x` as f32 or, rounded to nearest, bf16; what is of that type already is shared, everywhere.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    match (x.device(), x.dtype(), dtype) {
        (_, from, to) if from == to => Ok(x.clone()),
        (Device::Cuda(device), DType::F32 | DType::Bf16, DType::F32 | DType::Bf16) => cuda::cast(&device, x, dtype),
        (Device::Cpu, DType::F32 | DType::Bf16, DType::F32 | DType::Bf16) => Ok(x.to_dtype(dtype)),
        (device, from, to) => Err(Error::Unsupported { op: "cast", problem: format!("{from:?} to {to:?} on {device}; it goes between f32 and bf16") }),
    }
}

/// `f(x)`, elementwise; any shape.
pub fn map(x: &Tensor, f: Map) -> Result<Tensor> {
    on_device!("map", &[x], T => cpu::map::<T>(x, f), d or bf16 => cuda::map(&d, x, f))
}

/// `scale · x + shift` cut to [0, 1], elementwise; any shape. NaN stays. For pixels on their way into a network: it has no
/// rule of differentiation.
pub fn saturate(x: &Tensor, scale: f64, shift: f64) -> Result<Tensor> {
    on_device!("saturate", &[x], T => cpu::saturate::<T>(x, scale, shift), d => cuda::saturate(&d, x, scale, shift))
}

/// `f(a, b)`, elementwise; equal shapes.
pub fn zip(a: &Tensor, b: &Tensor, f: Zip) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::shape("elementwise", format!("{f:?} of {:?} and {:?}: shapes must be equal", a.shape(), b.shape())));
    }
    same_kind("elementwise", &[a, b])?;
    on_device!("zip", &[a, b], T => cpu::zip::<T>(a, b, f), d or bf16 => cuda::zip(&d, a, b, f))
}

/// `x[n, …, c] · s[n, c]`: per-sample, per-channel scale. `x` is `[N, …, C]`, `s` is `[N, C]`.
pub fn channel_scale(x: &Tensor, s: &Tensor) -> Result<Tensor> {
    if x.rank() < 2 || s.rank() != 2 || s.dim(0) != x.dim(0) || s.dim(1) != x.dim(x.rank() - 1) {
        return Err(Error::shape("channel_scale", format!("scales {:?} do not fit {:?}", s.shape(), x.shape())));
    }
    parameters_of("channel_scale", x, &[s])?;
    on_device!("channel_scale", &[x, s], T => cpu::channel_scale::<T>(x, s), d or bf16 => cuda::channel_scale(&d, x, s))
}
