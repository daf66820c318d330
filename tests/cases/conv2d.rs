//! Cases of the scaled convolution family: each geometry as convolution, as its transpose and as its weight gradient;
//! some with what follows a convolution.

use super::{Case, Tolerance, normal, positive};
use recant::autograd::{self, Scales, Var};
use recant::ops::bias_act::{Activation, Epilogue};
use recant::ops::conv2d::{Conv2d, conv2d, conv2d_act, conv2d_transpose, conv2d_weight_grad};
use recant::tensor::{DType, Tensor};

/// Sizes of one geometry.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    pub name: &'static str,
    pub n: usize,
    /// Height and width of the `x` side.
    pub size: [usize; 2],
    /// Channels in, channels out.
    pub channels: [usize; 2],
    pub kernel: [usize; 2],
    pub spec: Conv2d,
    /// Whether samples have input and output scales.
    pub scales: [bool; 2],
}

const fn square(name: &'static str, n: usize, size: usize, channels: [usize; 2], kernel: usize, stride: usize, padding: usize) -> Geometry {
    Geometry { name, n, size: [size; 2], channels, kernel: [kernel; 2], spec: Conv2d::square(stride, padding), scales: [false; 2] }
}

const fn uneven(name: &'static str, n: usize, size: [usize; 2], channels: [usize; 2], kernel: [usize; 2], stride: [usize; 2], padding: [usize; 2]) -> Geometry {
    Geometry { name, n, size, channels, kernel, spec: Conv2d { stride, padding, gain: 1.0 }, scales: [false; 2] }
}

const fn scaled(g: Geometry, scales: [bool; 2]) -> Geometry {
    Geometry { scales, ..g }
}

const fn with_gain(g: Geometry) -> Geometry {
    Geometry { spec: Conv2d { gain: 0.75, ..g.spec }, ..g }
}

/// One row per branch of the implementation: panel widths, ragged tiles, copies, phases, passes, cuts.
pub const GEOMETRIES: &[Geometry] = &[
    square("tiny 3x3", 2, 4, [2, 3], 3, 1, 1),
    scaled(square("tiny 3x3 scaled", 2, 3, [2, 2], 3, 1, 1), [true, true]),
    scaled(square("tiny stride 2 input scale", 2, 5, [2, 2], 3, 2, 1), [true, false]),
    scaled(square("tiny stride 2 no padding output scale", 1, 5, [2, 2], 3, 2, 0), [false, true]),
    scaled(uneven("tiny uneven", 1, [3, 6], [2, 2], [1, 3], [1, 2], [0, 2]), [true, true]),
    square("1x1 of 1", 1, 1, [1, 1], 1, 1, 0),
    square("1x1", 3, 7, [3, 16], 1, 1, 0),
    square("1x1 to few", 3, 7, [16, 3], 1, 1, 0),
    square("1x1 stride 3", 2, 8, [5, 9], 1, 3, 0),
    square("kernel larger than stride classes", 2, 7, [4, 4], 2, 3, 1),
    square("kernel larger than the image", 2, 3, [5, 17], 7, 1, 3),
    square("5x5", 1, 9, [7, 11], 5, 1, 2),
    square("6x6 stride 2", 2, 11, [8, 8], 6, 2, 2),
    square("7x7 stride 4", 1, 19, [3, 24], 7, 4, 3),
    uneven("1x7", 2, [6, 9], [16, 16], [1, 7], [1, 1], [0, 3]),
    uneven("7x1", 2, [9, 6], [17, 33], [7, 1], [1, 1], [3, 0]),
    uneven("strides apart", 2, [9, 12], [6, 10], [3, 4], [2, 3], [1, 0]),
    uneven("one row", 2, [1, 40], [8, 16], [1, 3], [1, 1], [0, 1]),
    square("large padding", 1, 4, [4, 4], 3, 1, 5),
    square("empty batch", 0, 6, [4, 4], 3, 1, 1),
    scaled(square("odd channels", 2, 5, [13, 25], 3, 1, 1), [true, true]),
    scaled(square("half panel", 2, 6, [24, 40], 3, 1, 1), [true, true]),
    scaled(square("several passes", 2, 5, [513, 33], 3, 1, 1), [true, true]),
    scaled(square("several passes out", 2, 4, [33, 513], 3, 1, 1), [true, true]),
    scaled(square("parallel", 4, 16, [32, 32], 3, 1, 1), [true, true]),
    scaled(square("parallel up", 4, 17, [24, 32], 3, 2, 0), [true, true]),
    square("parallel rows", 1, 48, [16, 16], 3, 1, 1),
    uneven("transposed in parts of one row, every other without a tap", 1, [4, 130], [2, 384], [1, 1], [2, 2], [0, 0]),
    uneven("transposed in parts of one row, with two taps or one", 1, [5, 131], [2, 384], [3, 3], [2, 2], [0, 0]),
    square("parallel channels", 2, 4, [128, 192], 3, 1, 1),
    scaled(square("tiles cut at the edge", 3, 9, [20, 37], 3, 1, 1), [true, true]),
    square("tiles without padding", 2, 10, [16, 48], 3, 1, 0),
    uneven("tiles with uneven padding", 2, [7, 12], [24, 16], [3, 3], [1, 1], [2, 0]),
    square("tiles of many channels", 1, 8, [128, 192], 3, 1, 1),
    square("many tiles", 5, 32, [16, 16], 3, 1, 1),
    scaled(square("strided tiles", 3, 9, [20, 37], 3, 2, 0), [true, true]),
    square("strided tiles cut at the edge", 2, 21, [16, 48], 3, 2, 1),
    uneven("strided tiles with uneven padding", 2, [12, 23], [24, 16], [3, 3], [2, 2], [2, 0]),
    scaled(square("strided tiles of many channels", 1, 17, [128, 140], 3, 2, 0), [true, true]),
    square("strided tiles of many channels cut at the edge", 2, 20, [129, 128], 3, 2, 1),
    square("many strided tiles", 5, 33, [16, 16], 3, 2, 0),
    with_gain(scaled(square("tiny with a gain", 2, 3, [2, 2], 3, 1, 1), [true, true])),
    with_gain(scaled(square("tiny stride 2 with a gain", 2, 5, [2, 2], 3, 2, 0), [false, true])),
    with_gain(square("parallel with a gain", 4, 17, [24, 32], 3, 2, 0)),
    with_gain(scaled(square("tiles with a gain", 2, 9, [20, 37], 3, 1, 1), [true, true])),
    with_gain(square("strided tiles with a gain", 2, 17, [128, 130], 3, 2, 0)),
];

impl Geometry {
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|d| (self.size[d] + 2 * self.spec.padding[d] - self.kernel[d]) / self.spec.stride[d] + 1)
    }
    pub fn x_shape(&self) -> [usize; 4] {
        [self.n, self.size[0], self.size[1], self.channels[0]]
    }
    pub fn g_shape(&self) -> [usize; 4] {
        [self.n, self.output()[0], self.output()[1], self.channels[1]]
    }
    pub fn w_shape(&self) -> [usize; 4] {
        [self.channels[1], self.kernel[0], self.kernel[1], self.channels[0]]
    }

    /// Fewest channels with which the CPU may compute a map of this geometry in Winograd's tiles.
    fn fewest_in_tiles(&self) -> usize {
        if self.spec.stride == [1, 1] { 16 } else { 128 }
    }

    /// Of sums of so many terms.
    fn tolerance(&self, terms: usize) -> Tolerance {
        // Scales multiply terms by up to 1.5 each.
        Tolerance { reason: "sum of products in another order, scaled by up to 1.5²", ..Tolerance::sum_of(3 * terms) }
    }

    /// Roundings in a sum of so many terms whose operands are scaled, or not: once for each that is, of terms of up to 1.5².
    fn rounded_terms(operands: &[bool], terms: usize) -> usize {
        3 * terms * operands.iter().filter(|scaled| **scaled).count()
    }

    /// The same on the CPU, which computes in Winograd's tiles from so many channels on.
    fn cpu_tolerance(&self, fewest: usize, direct: Tolerance) -> Tolerance {
        let in_tiles = self.kernel == [3, 3] && [[1, 1], [2, 2]].contains(&self.spec.stride) && self.channels.iter().all(|c| *c >= fewest);
        match in_tiles {
            false => direct,
            true => Tolerance {
                abs: 8.0 * direct.abs,
                reason: "Winograd's tiles: about three times the direct sum's rounding, and its worst of 8,000 outputs is 5 times the direct bound",
                ..direct
            },
        }
    }

    /// Visits every (x, w, g) index triple of the trilinear form, with sample, input and output channel.
    fn visit(&self, mut f: impl FnMut(usize, usize, usize, [usize; 3])) {
        let ([n, gh, gw, co], [_, kh, kw, ci], [h, w]) = (self.g_shape(), self.w_shape(), self.size);
        for n in 0..n {
            for py in 0..gh {
                for px in 0..gw {
                    for ty in 0..kh {
                        for tx in 0..kw {
                            let qy = (py * self.spec.stride[0] + ty).wrapping_sub(self.spec.padding[0]);
                            let qx = (px * self.spec.stride[1] + tx).wrapping_sub(self.spec.padding[1]);
                            if qy >= h || qx >= w {
                                continue;
                            }
                            for o in 0..co {
                                for i in 0..ci {
                                    let x = ((n * h + qy) * w + qx) * ci + i;
                                    let v = ((o * kh + ty) * kw + tx) * ci + i;
                                    let g = ((n * gh + py) * gw + px) * co + o;
                                    f(x, v, g, [n, i, o]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The scales among a case's inputs, which are two operands and then the scales.
    fn scales<'a, T>(&self, inputs: &'a [T]) -> (Option<&'a T>, Option<&'a T>) {
        (self.scales[0].then(|| &inputs[2]), self.scales[1].then(|| &inputs[2 + self.scales[0] as usize]))
    }

    /// Plain loops: `out[index(x, w, g)] += gain · u · v · a · b`.
    fn reference(&self, inputs: &[Tensor], len: usize, index: impl Fn(usize, usize, usize) -> [usize; 3]) -> Vec<f64> {
        let (u, v) = (inputs[0].to_f64_vec(), inputs[1].to_f64_vec());
        let (a, b) = self.scales(inputs);
        let (a, b) = (a.map(Tensor::to_f64_vec), b.map(Tensor::to_f64_vec));
        let mut out = vec![0.0; len];
        self.visit(|x, w, g, [n, i, o]| {
            let [to, from_u, from_v] = index(x, w, g);
            let a = a.as_ref().map_or(1.0, |a| a[n * self.channels[0] + i]);
            let b = b.as_ref().map_or(1.0, |b| b[n * self.channels[1] + o]);
            out[to] += self.spec.gain * u[from_u] * v[from_v] * a * b;
        });
        out
    }

    fn inputs(&self, operands: [&[usize]; 2]) -> Vec<Tensor> {
        let mut inputs = vec![normal(0, operands[0]), normal(1, operands[1])];
        if self.scales[0] {
            inputs.push(positive(2, &[self.n, self.channels[0]]));
        }
        if self.scales[1] {
            inputs.push(positive(3, &[self.n, self.channels[1]]));
        }
        inputs
    }

    /// `conv2d`, `conv2d_transpose` and `conv2d_weight_grad` of this geometry.
    pub fn cases(self) -> [Case; 3] {
        let (x, w, g) = (self.x_shape(), self.w_shape(), self.g_shape());
        let len = |s: &[usize]| s.iter().product::<usize>();
        let on_vars = move |v: &[Var]| -> (Var, Var, Option<Var>, Option<Var>) {
            let (a, b) = self.scales(v);
            (v[0].clone(), v[1].clone(), a.cloned(), b.cloned())
        };
        let with = move |t: &[Tensor]| {
            let (a, b) = self.scales(t);
            (a.cloned(), b.cloned())
        };
        let forward = move |t: &[Tensor]| {
            let (a, b) = with(t);
            conv2d(&t[0], &t[1], a.as_ref(), b.as_ref(), self.spec)
        };
        let transpose = move |t: &[Tensor]| {
            let (a, b) = with(t);
            conv2d_transpose(&t[0], &t[1], b.as_ref(), a.as_ref(), self.spec, self.size)
        };
        [
            Case::new(
                format!("conv2d {}", self.name),
                self.inputs([&x, &w]),
                forward,
                move |t| self.reference(t, len(&g), |x, w, g| [g, x, w]),
                self.tolerance(self.kernel[0] * self.kernel[1] * self.channels[0]),
            )
            .cpu_tolerance(self.cpu_tolerance(self.fewest_in_tiles(), self.tolerance(self.kernel[0] * self.kernel[1] * self.channels[0])))
            .adjoint(transpose)
            .on_vars(move |v| {
                let (x, w, a, b) = on_vars(v);
                autograd::conv2d(&x, &w, Scales { input: a.as_ref(), output: b.as_ref() }, self.spec)
            })
            .in_bf16_with_rounded_terms(1, DType::Bf16, Geometry::rounded_terms(&self.scales[..1], self.kernel[0] * self.kernel[1] * self.channels[0])),
            Case::new(
                format!("conv2d_transpose {}", self.name),
                self.inputs([&g, &w]),
                transpose,
                move |t| self.reference(t, len(&x), |x, w, g| [x, g, w]),
                self.tolerance(self.kernel[0] * self.kernel[1] * self.channels[1]),
            )
            .cpu_tolerance(self.cpu_tolerance(self.fewest_in_tiles(), self.tolerance(self.kernel[0] * self.kernel[1] * self.channels[1])))
            .adjoint(forward)
            .on_vars(move |v| {
                let (g, w, a, b) = on_vars(v);
                autograd::conv2d_transpose(&g, &w, Scales { input: a.as_ref(), output: b.as_ref() }, self.spec, self.size)
            })
            .in_bf16_with_rounded_terms(1, DType::Bf16, Geometry::rounded_terms(&self.scales[1..], self.kernel[0] * self.kernel[1] * self.channels[1])),
            Case::new(
                format!("conv2d_weight_grad {}", self.name),
                self.inputs([&x, &g]),
                move |t| {
                    let (a, b) = with(t);
                    conv2d_weight_grad(&t[0], &t[1], a.as_ref(), b.as_ref(), self.spec, self.kernel)
                },
                move |t| self.reference(t, len(&w), |x, w, g| [w, x, g]),
                self.tolerance(self.n * self.output()[0] * self.output()[1]),
            )
            .cpu_tolerance(self.cpu_tolerance(16, self.tolerance(self.n * self.output()[0] * self.output()[1])))
            // In `x`: the inner product of weights with the result is that of `x` with the transpose of `g`.
            .adjoint(move |t| {
                let (a, b) = with(t);
                conv2d_transpose(&t[1], &t[0], b.as_ref(), a.as_ref(), self.spec, self.size)
            })
            .on_vars(move |v| {
                let (x, g, a, b) = on_vars(v);
                autograd::conv2d_weight_grad(&x, &g, Scales { input: a.as_ref(), output: b.as_ref() }, self.spec, self.kernel)
            })
            .in_bf16_with_rounded_terms(2, DType::F32, Geometry::rounded_terms(&self.scales, self.n * self.output()[0] * self.output()[1])),
        ]
    }
}

/// Geometries with what follows a convolution: an activation, a bias, noise of so many images.
const FOLLOWED: &[(Geometry, Activation, bool, Option<usize>)] = &[
    (square("tiny 3x3", 2, 3, [2, 2], 3, 1, 1), Activation::LEAKY_RELU, true, Some(2)),
    (scaled(square("tiny input scale", 2, 4, [2, 2], 3, 2, 1), [true, false]), Activation::LEAKY_RELU, true, None),
    (scaled(square("tiny scaled", 2, 3, [2, 2], 3, 1, 1), [true, true]), Activation::LEAKY_RELU, true, Some(1)),
    (with_gain(scaled(square("tiny with a gain", 2, 3, [2, 2], 3, 1, 1), [true, true])), Activation::LEAKY_RELU, true, Some(1)),
    (with_gain(scaled(square("several passes with a gain", 2, 5, [513, 33], 3, 1, 1), [true, true])), Activation::LEAKY_RELU, true, Some(1)),
    (square("1x1 to few", 3, 7, [16, 3], 1, 1, 0), Activation::LINEAR, true, None),
    (square("empty batch", 0, 6, [4, 4], 3, 1, 1), Activation::RELU, false, Some(1)),
    (scaled(square("odd channels", 2, 5, [13, 35], 3, 1, 1), [true, true]), Activation::LEAKY_RELU, false, Some(2)),
    (scaled(square("several passes", 2, 5, [513, 33], 3, 1, 1), [true, true]), Activation::LEAKY_RELU, true, Some(1)),
    (square("several passes to few", 2, 3, [300, 9], 3, 1, 1), Activation::RELU, true, None),
];

impl Geometry {
    /// `conv2d_act` of this geometry; the bias, the noise and its strength come last among the inputs.
    fn followed(self, act: Activation, has_bias: bool, noise_images: Option<usize>) -> Case {
        let [_, oh, ow, co] = self.g_shape();
        let mut inputs = self.inputs([&self.x_shape(), &self.w_shape()]);
        let at = inputs.len();
        if has_bias {
            inputs.push(normal(4, &[co]));
        }
        if let Some(images) = noise_images {
            inputs.extend([normal(5, &[images, oh, ow, 1]), positive(6, &[1])]);
        }
        // The gain is at most 1.5.
        let after = |sums: Tolerance| Tolerance { abs: 1.5 * sums.abs, ..sums };
        let sums = self.tolerance(self.kernel[0] * self.kernel[1] * self.channels[0]);
        Case::new(
            format!("conv2d_act {}", self.name),
            inputs,
            move |t| {
                let (a, b) = self.scales(t);
                conv2d_act(&t[0], &t[1], a, b, self.spec, epilogue(&t[at..], act, has_bias))
            },
            move |t| {
                let then = epilogue(&t[at..], act, has_bias);
                let bias = then.bias.map_or(vec![0.0; co], Tensor::to_f64_vec);
                let noise = then.noise.map_or(vec![0.0], |(map, s)| map.to_f64_vec().iter().map(|v| v * s.to_f64_vec()[0]).collect());
                let mut y = self.reference(t, self.g_shape().iter().product(), |x, w, g| [g, x, w]);
                for (i, y) in y.iter_mut().enumerate() {
                    *y += bias[i % co] + noise[i / co % noise.len()];
                    *y *= act.gain * if *y > 0.0 { 1.0 } else { act.slope };
                }
                y
            },
            after(sums),
        )
        .cpu_tolerance(after(self.cpu_tolerance(self.fewest_in_tiles(), sums)))
        .on_vars(move |v| {
            let (a, b) = self.scales(v);
            autograd::conv2d_act(&v[0], &v[1], Scales { input: a, output: b }, self.spec, epilogue(&v[at..], act, has_bias))
        })
        .in_bf16_with_rounded_terms(1, DType::Bf16, Geometry::rounded_terms(&self.scales[..1], self.kernel[0] * self.kernel[1] * self.channels[0]))
    }
}

fn epilogue<T>(inputs: &[T], act: Activation, has_bias: bool) -> Epilogue<'_, T> {
    let (bias, noise) = inputs.split_at(has_bias as usize);
    let noise = match noise {
        [map, strength] => Some((map, strength)),
        _ => None,
    };
    Epilogue { bias: bias.first(), noise, act }
}

pub fn cases() -> Vec<Case> {
    let followed = FOLLOWED.iter().map(|(g, act, has_bias, noise)| g.followed(*act, *has_bias, *noise));
    GEOMETRIES.iter().flat_map(|g| g.cases()).chain(followed).collect()
}
