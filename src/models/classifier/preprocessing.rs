//! What a classifier was trained to look at, declared as data: it is stored with the classifier and printed.

use std::fmt;

use crate::error::{Error, Result};
use crate::ops::bias_act::{Activation, bias_act};
use crate::ops::elementwise;
use crate::ops::layout::concat;
use crate::ops::matmul::{Read, matmul};
use crate::ops::reduce::broadcast_to;
use crate::ops::resize::{Resize, resize};
use crate::tensor::Tensor;

/// Luma of an RGB image, the weights of the official feedback classifier's grey conversion
/// (image_generator_util: 0.2989 R + 0.587 G + 0.114 B).
const LUMA: [f32; 3] = [0.2989, 0.587, 0.114];

/// Colours that a network sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Colours {
    /// One channel: RGB by `0.2989 R + 0.587 G + 0.114 B`.
    Grey,
    Rgb,
}

impl Colours {
    pub fn channels(self) -> usize {
        match self {
            Colours::Grey => 1,
            Colours::Rgb => 3,
        }
    }
}

/// From images in [−1, 1] to a network's input: clamped as a viewer's screen does, mapped to [0, 1], converted to
/// its colours, resized, and normalised per channel.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Preprocessing {
    /// Height and width.
    pub size: [usize; 2],
    pub resize: Resize,
    pub colours: Colours,
    /// Subtracted from the [0, 1] pixels, per channel.
    pub mean: Vec<f64>,
    /// Divides what is left, per channel.
    pub std: Vec<f64>,
}

impl Preprocessing {
    /// Grey pixels in [0, 1].
    pub fn grey(size: usize) -> Preprocessing {
        Preprocessing { size: [size; 2], resize: Resize::Bilinear, colours: Colours::Grey, mean: vec![0.0], std: vec![1.0] }
    }

    /// RGB pixels in [0, 1].
    pub fn rgb(size: [usize; 2]) -> Preprocessing {
        Preprocessing { size, resize: Resize::Bilinear, colours: Colours::Rgb, mean: vec![0.0; 3], std: vec![1.0; 3] }
    }

    /// RGB pixels in [−1, 1].
    pub fn symmetric(size: [usize; 2]) -> Preprocessing {
        Preprocessing { mean: vec![0.5; 3], std: vec![0.5; 3], ..Preprocessing::rgb(size) }
    }

    /// RGB pixels with the mean and standard deviation of ImageNet, which torchvision's pretrained networks expect.
    pub fn imagenet(size: usize) -> Preprocessing {
        Preprocessing { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225], ..Preprocessing::rgb([size; 2]) }
    }

    /// A declaration read from a file must be usable.
    pub fn check(&self) -> Result<()> {
        let c = self.colours.channels();
        let finite = self.mean.iter().chain(&self.std).all(|v| v.is_finite());
        if self.size.contains(&0) || self.mean.len() != c || self.std.len() != c || !finite || self.std.iter().any(|s| *s <= 0.0) {
            return Err(Error::config("classifier preprocessing", format!("{self} needs a size, and one mean and one positive std per channel")));
        }
        Ok(())
    }

    /// `images` `[N, H, W, 3 or 1]` in [−1, 1] -> `[N, size, channels]`, what the network takes.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let shape: [usize; 4] = images.shape().try_into().ok().filter(|s: &[usize; 4]| s[3] == 3 || s[3] == 1).ok_or_else(|| {
            Error::shape("classifier input", format!("{:?} where [N, H, W, 3] or [N, H, W, 1] is needed", images.shape()))
        })?;
        let [n, h, w, c] = shape;
        let x = elementwise::saturate(images, 0.5, 0.5)?;
        let x = match (c, self.colours) {
            (3, Colours::Grey) => {
                let luma = Tensor::from_slice(&[3, 1], &LUMA).to_dtype(x.dtype()).to_device(&x.device())?;
                matmul(&x.reshape(&[n * h * w, 3])?, Read::Plain, &luma, Read::Plain)?.reshape(&[n, h, w, 1])?
            }
            (1, Colours::Rgb) => concat(&[&x, &x, &x], 3)?,
            _ => x,
        };
        let x = resize(&x, self.size, self.resize)?;
        if self.mean.iter().all(|m| *m == 0.0) && self.std.iter().all(|s| *s == 1.0) {
            return Ok(x);
        }
        let k = self.colours.channels();
        let row = |v: Vec<f64>| Tensor::from_vec(&[1, k], v).to_dtype(x.dtype()).to_device(&x.device());
        let x = elementwise::channel_scale(&x, &broadcast_to(&row(self.std.iter().map(|s| 1.0 / s).collect())?, &[n, k])?)?;
        let shift = row(self.mean.iter().zip(&self.std).map(|(m, s)| -m / s).collect())?.reshape(&[k])?;
        bias_act(&x, Some(&shift), None, Activation::LINEAR)
    }
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [h, w] = self.size;
        let colours = match self.colours {
            Colours::Grey => "grey",
            Colours::Rgb => "RGB",
        };
        write!(f, "{colours} {h}x{w} in [0, 1], resized {}", self.resize)?;
        if self.mean.iter().any(|m| *m != 0.0) || self.std.iter().any(|s| *s != 1.0) {
            write!(f, ", mean {:?}, std {:?}", self.mean, self.std)?;
        }
        Ok(())
    }
}
