//! The scaled convolution family for tests: geometries, the terms of the form, what they add up to.

use cudarc::driver::{CudaSlice, DeviceRepr};

use super::{Gpu, numbers};

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Conv2dParams {
    pub n: i32,
    pub x: [i32; 3],
    pub g: [i32; 3],
    pub k: [i32; 2],
    pub stride: [i32; 2],
    pub padding: [i32; 2],
    pub part: i32,
    pub gain: f32,
}
// SAFETY: plain numbers, in the layout of the struct in kernels/conv2d.cu.
unsafe impl DeviceRepr for Conv2dParams {}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Conv2dActParams {
    pub bias: u64,
    pub noise: u64,
    pub strength: u64,
    pub noise_count: i32,
    pub up: f32,
    pub down: f32,
    pub padding: i32,
}
// SAFETY: plain numbers and device addresses, in the layout of the struct in kernels/conv2d.cu.
unsafe impl DeviceRepr for Conv2dActParams {}

/// Of the whole form: a power of two, so that whole sums stay exact.
pub const GAIN: f32 = 0.5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Forward,
    Transpose,
    WeightGrad,
}

impl Op {
    pub fn name(self) -> &'static str {
        match self {
            Op::Forward => "conv2d",
            Op::Transpose => "conv2d_transpose",
            Op::WeightGrad => "conv2d_weight_grad",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub name: &'static str,
    pub n: usize,
    pub size: [usize; 2],
    pub channels: [usize; 2],
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub padding: [usize; 2],
    pub scales: [bool; 2],
}

pub const fn square(
    name: &'static str,
    n: usize,
    size: usize,
    channels: [usize; 2],
    [kernel, stride, padding]: [usize; 3],
    scales: [bool; 2],
) -> Geometry {
    Geometry {
        name,
        n,
        size: [size; 2],
        channels,
        kernel: [kernel; 2],
        stride: [stride; 2],
        padding: [padding; 2],
        scales,
    }
}

/// The operands of the trilinear form.
pub struct Data {
    pub x: Vec<f32>,
    pub w: Vec<f32>,
    pub g: Vec<f32>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
}

pub fn whole_numbers(count: usize, seed: u64) -> Vec<f32> {
    numbers(count, seed)
        .iter()
        .map(|x| (x * 3.5).round())
        .collect()
}

pub fn powers_of_two(count: usize, seed: u64) -> Vec<f32> {
    numbers(count, seed)
        .iter()
        .map(|x| (x * 1.5).round().exp2())
        .collect()
}

/// Scales that leave squares of sums whole.
pub fn one_or_two(count: usize, seed: u64) -> Vec<f32> {
    numbers(count, seed)
        .iter()
        .map(|x| if *x < 0.0 { 1.0 } else { 2.0 })
        .collect()
}

impl Geometry {
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|d| (self.size[d] + 2 * self.padding[d] - self.kernel[d]) / self.stride[d] + 1)
    }
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
    pub fn counts(&self) -> [usize; 3] {
        let ([h, w], [oh, ow], [ci, co]) = (self.size, self.output(), self.channels);
        [
            self.n * h * w * ci,
            co * self.taps() * ci,
            self.n * oh * ow * co,
        ]
    }

    pub fn data(
        &self,
        operand: fn(usize, u64) -> Vec<f32>,
        scale: fn(usize, u64) -> Vec<f32>,
    ) -> Data {
        let [x, w, g] = self.counts();
        Data {
            x: operand(x, 1),
            w: operand(w, 2),
            g: operand(g, 3),
            a: scale(self.n * self.channels[0], 4),
            b: scale(self.n * self.channels[1], 5),
        }
    }

    pub fn exact_data(&self) -> Data {
        self.data(whole_numbers, powers_of_two)
    }

    /// Calls `f(x, w, g, n, i, o)` with the element of each tensor, for every term of the form.
    pub fn visit(&self, mut f: impl FnMut([usize; 3], [usize; 3])) {
        let ([oh, ow], [kh, kw], [ci, co], [h, w]) =
            (self.output(), self.kernel, self.channels, self.size);
        for n in 0..self.n {
            for p in 0..oh * ow {
                for t in 0..kh * kw {
                    let y = (p / ow * self.stride[0] + t / kw).wrapping_sub(self.padding[0]);
                    let x = (p % ow * self.stride[1] + t % kw).wrapping_sub(self.padding[1]);
                    if y >= h || x >= w {
                        continue;
                    }
                    for o in 0..co {
                        for i in 0..ci {
                            let at = [
                                ((n * h + y) * w + x) * ci + i,
                                (o * kh * kw + t) * ci + i,
                                (n * oh * ow + p) * co + o,
                            ];
                            f(at, [n, i, o]);
                        }
                    }
                }
            }
        }
    }

    /// The result of an op with its gain, and the sum of the absolute values of its terms.
    pub fn expected(&self, op: Op, d: &Data) -> Vec<[f64; 2]> {
        let [x_count, w_count, g_count] = self.counts();
        let mut sums = vec![
            [0.0; 2];
            match op {
                Op::Forward => g_count,
                Op::Transpose => x_count,
                Op::WeightGrad => w_count,
            }
        ];
        self.visit(|[x, w, g], [n, i, o]| {
            let (u, v, to) = match op {
                Op::Forward => (d.x[x], d.w[w], g),
                Op::Transpose => (d.g[g], d.w[w], x),
                Op::WeightGrad => (d.x[x], d.g[g], w),
            };
            let term = f64::from(GAIN) * f64::from(u) * f64::from(v) * self.scale_of(d, n, i, o);
            sums[to][0] += term;
            sums[to][1] += term.abs();
        });
        sums
    }

    pub fn scale_of(&self, d: &Data, n: usize, i: usize, o: usize) -> f64 {
        let a = if self.scales[0] {
            d.a[n * self.channels[0] + i]
        } else {
            1.0
        };
        let b = if self.scales[1] {
            d.b[n * self.channels[1] + o]
        } else {
            1.0
        };
        f64::from(a) * f64::from(b)
    }

    pub fn params(&self, part: usize) -> Conv2dParams {
        let [oh, ow] = self.output().map(|v| v as i32);
        let [ci, co] = self.channels.map(|v| v as i32);
        let pair = |v: [usize; 2]| v.map(|v| v as i32);
        Conv2dParams {
            n: self.n as i32,
            x: [self.size[0] as i32, self.size[1] as i32, ci],
            g: [oh, ow, co],
            k: pair(self.kernel),
            stride: pair(self.stride),
            padding: pair(self.padding),
            part: part as i32,
            gain: GAIN,
        }
    }

    /// Rows, columns and depth of an op's matrix product, and layers of blocks without parts.
    pub fn product(&self, op: Op) -> ([usize; 3], usize) {
        let ([oh, ow], [ci, co], taps) = (self.output(), self.channels, self.taps());
        match op {
            Op::Forward => ([self.n * oh * ow, co, taps * ci], 1),
            Op::Transpose => {
                let [sy, sx] = self.stride;
                let rows = self.n * self.size[0].div_ceil(sy) * self.size[1].div_ceil(sx);
                let depth = self.kernel[0].div_ceil(sy) * self.kernel[1].div_ceil(sx) * co;
                ([rows, ci, depth], sy * sx)
            }
            Op::WeightGrad => ([co, taps * ci, self.n * oh * ow], 1),
        }
    }
}

/// Factors of the activation.
pub const UP: f32 = 2.0;
pub const DOWN: f32 = 0.5;

/// Bias per channel and noise per pixel of one image, with its strength; null where left out.
pub struct Extras {
    pub params: Conv2dActParams,
    /// What the addresses point to.
    pub _memory: [CudaSlice<f32>; 3],
}

impl Extras {
    pub fn new(gpu: &Gpu, bias: &[f32], noise: &[f32], given: bool) -> Extras {
        let (bias, noise, strength) = (gpu.upload(bias), gpu.upload(noise), gpu.upload(&[0.5f32]));
        let address = |memory: &CudaSlice<f32>| if given { gpu.address(memory) } else { 0 };
        let params = Conv2dActParams {
            bias: address(&bias),
            noise: address(&noise),
            strength: address(&strength),
            noise_count: noise.len() as i32,
            up: UP,
            down: DOWN,
            padding: 0,
        };
        Extras {
            params,
            _memory: [bias, noise, strength],
        }
    }
}
