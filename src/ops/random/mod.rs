//! Philox4x32-10 (Salmon et al., SC 2011), addressed by (seed, stream, counter): any block of any stream can be made
//! alone, on any device, in any order.

mod cuda;

pub use cuda::Places;

use rayon::prelude::*;

use crate::device::Device;
use crate::device::cpu::Buffer;
use crate::device::profile::{self, Work};
use crate::error::Result;
use crate::tensor::Tensor;

/// Numbers that one task makes; a multiple of a block's four.
const CHUNK: usize = 1 << 10;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of four 32-bit words.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let p0 = MULTIPLIERS[0] as u64 * c[0] as u64;
        let p1 = MULTIPLIERS[1] as u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
    }
    c
}

/// A position in a stream of random numbers; drawing moves `counter` (in blocks of four words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Random {
    pub seed: u64,
    pub stream: u64,
    pub counter: u64,
}

/// A word as a number in (0, 1]: the midpoint of one of 2^24 cells, rounded to f32 (the last one to 1), so its logarithm
/// is finite.
fn unit(word: u32) -> f32 {
    ((word >> 8) as f32 + 0.5) * (1.0 / 16_777_216.0)
}

impl Random {
    pub fn new(seed: u64, stream: u64) -> Random {
        Random { seed, stream, counter: 0 }
    }

    fn block(&self, index: u64) -> [u32; 4] {
        let at = self.counter + index;
        philox4x32(
            [at as u32, (at >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32],
            [self.seed as u32, (self.seed >> 32) as u32],
        )
    }

    /// Passes over `len` numbers of `normal` or `uniform`; what is returned draws them.
    pub fn skip(&mut self, len: usize) -> Random {
        let here = *self;
        self.counter += len.div_ceil(4) as u64;
        here
    }

    fn fill(&mut self, out: &mut [f32], make: impl Fn([u32; 4]) -> [f32; 4] + Sync + Send) {
        let (this, len) = (*self, out.len());
        let blocks = |at: usize, chunk: &mut [f32]| {
            for (i, quad) in chunk.chunks_mut(4).enumerate() {
                let values = make(this.block((at / 4 + i) as u64));
                quad.copy_from_slice(&values[..quad.len()]);
            }
        };
        // Some 20 ns a number: a chunk is worth a thread long before one of a plain pass is.
        let all = || match len {
            0..=CHUNK => blocks(0, out),
            _ => out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| blocks(i * CHUNK, chunk)),
        };
        profile::op("random", all, |()| Work { operands: format!("[{len}]"), flops: 0.0, bytes: 4.0 * len as f64 });
        self.counter += len.div_ceil(4) as u64;
    }

    /// Standard normal numbers (Box–Muller, two pairs per block), f32.
    pub fn normal(&mut self, shape: &[usize]) -> Tensor {
        let mut out = Buffer::<f32>::stale(shape.iter().product());
        self.fill(&mut out, |w| {
            let pair = |a: u32, b: u32| {
                let radius = (-2.0 * unit(a).ln()).sqrt();
                let (sin, cos) = (std::f32::consts::TAU * unit(b)).sin_cos();
                (radius * cos, radius * sin)
            };
            let ((a, b), (c, d)) = (pair(w[0], w[1]), pair(w[2], w[3]));
            [a, b, c, d]
        });
        Tensor::from_buffer(shape, out)
    }

    /// As `normal`, made where they are used: the same words, numbers equal to the CPU's to rounding.
    pub fn normal_on(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        match device {
            Device::Cpu => Ok(self.normal(shape)),
            Device::Cuda(d) => {
                let here = self.skip(shape.iter().product());
                cuda::normal(d, &here, shape)
            }
        }
    }

    /// As `uniform`, made where they are used: the same numbers.
    pub fn uniform_on(&mut self, shape: &[usize], device: &Device) -> Result<Tensor> {
        match device {
            Device::Cpu => Ok(self.uniform(shape)),
            Device::Cuda(d) => {
                let here = self.skip(shape.iter().product());
                cuda::uniform(d, &here, shape)
            }
        }
    }

    /// Uniform numbers in (0, 1], f32.
    pub fn uniform(&mut self, shape: &[usize]) -> Tensor {
        let mut out = Buffer::<f32>::stale(shape.iter().product());
        self.fill(&mut out, |w| w.map(unit));
        Tensor::from_buffer(shape, out)
    }

    /// One number in (0, 1].
    pub fn unit(&mut self) -> f32 {
        let w = self.block(0);
        self.counter += 1;
        unit(w[0])
    }

    /// One integer in `0..n` (`n > 0`), by multiplication: the bias is below n / 2^64.
    pub fn below(&mut self, n: usize) -> usize {
        let w = self.block(0);
        self.counter += 1;
        let word = (w[0] as u64) << 32 | w[1] as u64;
        ((word as u128 * n as u128) >> 64) as usize
    }

    /// The numbers `0..n` in random order (Fisher–Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_moments_and_addressing() {
        let mut r = Random::new(7, 1);
        let x = r.normal(&[1 << 16]).to_f64_vec();
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        // Four standard errors of each estimate.
        assert!(mean.abs() < 4.0 / n.sqrt(), "mean {mean}");
        assert!((var - 1.0).abs() < 4.0 * (2.0 / n).sqrt(), "variance {var}");
        let mut again = Random { seed: 7, stream: 1, counter: 2 };
        assert_eq!(again.normal(&[4]).to_f64_vec(), x[8..12]);
    }
}
