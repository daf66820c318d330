//! Fréchet inception distance. A number without its protocol says nothing, so the protocol is a type and stands in
//! every line printed; with a file that lacks the last layers the distance is called FID-768, never FID.

use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{FeatureStats, Statistics, frechet_distance};
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::io::ahead::ReadAhead;
use crate::io::resample::{Filter, square};
use crate::io::{image, npz};
use crate::models::inception::{Block, Inception, SIZE};
use crate::ops::elementwise::{Map, map};
use crate::ops::layout::concat;
use crate::ops::resize::{Resize, resize};
use crate::tensor::Tensor;

/// How 8-bit images become the network's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preparation {
    /// pytorch-fid: bilinear without antialiasing, `v / 127.5 − 1`.
    PytorchFid,
    /// clean-fid's default mode: Pillow's bicubic in floating point, `(v − 128) / 128`.
    CleanFid,
    /// Of statistics whose files do not say it: those of other programs.
    Unknown,
}

impl Preparation {
    /// How images are brought to 299 px, and what takes 0..255 to the input's range.
    fn steps(self) -> Option<(Resize, Map)> {
        match self {
            Preparation::PytorchFid => Some((Resize::Bilinear, Map::Affine { scale: 1.0 / 127.5, shift: -1.0 })),
            Preparation::CleanFid => Some((Resize::AntialiasedBicubic, Map::Affine { scale: 1.0 / 128.0, shift: -1.0 })),
            Preparation::Unknown => None,
        }
    }
}

impl fmt::Display for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, range) = match self {
            Preparation::PytorchFid => ("pytorch-fid", "v/127.5 - 1"),
            Preparation::CleanFid => ("clean-fid", "(v - 128)/128"),
            Preparation::Unknown => return f.write_str("prepared as the files of statistics do not say"),
        };
        let (resize, _) = self.steps().expect("a known preparation");
        write!(f, "{name}, {resize} to {SIZE} px, input {range}")
    }
}

/// Everything that a distance depends on besides the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FidProtocol {
    pub preparation: Preparation,
    pub block: Block,
    /// Side that real images are brought to before: that of the model they are compared with. `None`: their own.
    pub size: Option<usize>,
}

impl FidProtocol {
    /// "FID" for the 2048 features that the word stands for, else with their number.
    pub fn name(self) -> String {
        match self.block {
            Block::D2048 => "FID".into(),
            block => format!("FID-{block}"),
        }
    }

    /// Images of 0..255 `[N, H, W, 3 or 1]` as the network takes them, `[N, 299, 299, 3]`.
    fn prepare(self, bytes: &Tensor) -> Result<Tensor> {
        if bytes.rank() != 4 || !matches!(bytes.dim(3), 1 | 3) {
            return Err(Error::shape("FID", format!("images {:?} where [N, H, W, 3] or [N, H, W, 1] is needed", bytes.shape())));
        }
        let (how, range) = self.preparation.steps().expect("`Extractor::new` has seen to it");
        let x = map(&resize(bytes, [SIZE; 2], how)?, range)?;
        if x.dim(3) == 1 { concat(&[&x, &x, &x], 3) } else { Ok(x) }
    }

    /// The picture of a file as the network takes it, `[1, 299, 299, 3]`.
    fn prepare_file(self, file: &Path) -> Result<Tensor> {
        let image::Picture { height, width, pixels } = image::read(file)?;
        let (height, width, pixels) = match self.size {
            Some(side) if [height, width] != [side; 2] => (side, side, square(&pixels, (height, width), 3, side, Filter::Lanczos)),
            _ => (height, width, pixels),
        };
        let values = pixels.into_iter().map(f32::from).collect::<Vec<f32>>();
        self.prepare(&Tensor::from_vec(&[1, height, width, 3], values))
    }
}

impl fmt::Display for FidProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(size) = self.size {
            write!(f, "images of {size} px, ")?;
        }
        write!(f, "{}, block {}", self.preparation, self.block)
    }
}

/// A distance with what it takes to compare it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FidReport {
    pub distance: f64,
    pub protocol: FidProtocol,
    /// Numbers of images; unknown for statistics of others.
    pub images: [Option<usize>; 2],
}

impl fmt::Display for FidReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: Option<usize>| n.map_or("unknown".to_string(), |n| n.to_string());
        let [a, b] = self.images.map(count);
        write!(f, "{} {:.4} ({}, images {a} and {b})", self.protocol.name(), self.distance, self.protocol)
    }
}

/// The Fréchet distance of two sets of statistics taken under one protocol.
pub fn fid(protocol: FidProtocol, a: &Statistics, b: &Statistics) -> Result<FidReport> {
    for s in [a, b] {
        if s.dims() != protocol.block.dims() {
            return Err(Error::config("statistics", format!("{} dimensions, but {} compares {}", s.dims(), protocol.name(), protocol.block)));
        }
    }
    Ok(FidReport { distance: frechet_distance(a, b)?, protocol, images: [a.count, b.count] })
}

/// The Inception network under one protocol.
pub struct Extractor {
    net: Inception,
    protocol: FidProtocol,
}

impl Extractor {
    /// Fails when the network's file ends before the protocol's block.
    pub fn new(net: Inception, protocol: FidProtocol) -> Result<Extractor> {
        if protocol.block > net.last_block() {
            let problem = format!("the Inception file ends at block {}; {} needs the whole file", net.last_block(), protocol.name());
            return Err(Error::config("--dims", problem));
        }
        if protocol.preparation.steps().is_none() {
            return Err(Error::config("--preparation", "must be known to take features"));
        }
        Ok(Extractor { net, protocol })
    }

    pub fn protocol(&self) -> FidProtocol {
        self.protocol
    }

    /// Empty statistics of these features.
    pub fn start(&self) -> FeatureStats {
        FeatureStats::new(self.protocol.block.dims())
    }

    /// Adds a batch of images of 0..255, `[N, H, W, 3 or 1]`, prepared where the network is.
    pub fn add_bytes(&self, stats: &mut FeatureStats, bytes: &Tensor) -> Result<()> {
        self.add_prepared(stats, &self.protocol.prepare(&bytes.to_device(&self.net.device())?)?)
    }

    /// Adds a batch of images in [−1, 1], `[N, H, W, 3 or 1]`. They are rounded to 8 bits first, so that a model's
    /// distance is the same whether its images were saved in between or not.
    pub fn add_images(&self, stats: &mut FeatureStats, images: &Tensor) -> Result<()> {
        let bytes = images.to_f64_vec().iter().map(|v| image::to_byte(*v as f32) as f32).collect::<Vec<f32>>();
        self.add_bytes(stats, &Tensor::from_vec(images.shape(), bytes))
    }

    fn add_prepared(&self, stats: &mut FeatureStats, x: &Tensor) -> Result<()> {
        stats.add(&self.net.features(x, &[self.protocol.block])?[0])
    }

    /// Statistics of a data set, `batch` images at a time; `progress` is called with the number of images done and
    /// ends the work by an error.
    pub fn dataset(&self, data: &Dataset, batch: usize, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Statistics> {
        let ([height, width, channels], protocol) = (data.pictures.shape(), self.protocol);
        let all: Vec<usize> = (0..data.len()).collect();
        self.read_ahead(progress, all.chunks(batch.max(1)).map(|indices| {
            let (pictures, indices) = (data.pictures.clone(), indices.to_vec());
            move || {
                let values = pictures.read(&indices)?.into_iter().map(f32::from).collect::<Vec<f32>>();
                protocol.prepare(&Tensor::from_vec(&[indices.len(), height, width, channels], values))
            }
        }))
    }

    /// Statistics of batches that jobs prepare: while the network looks at one the next is made.
    fn read_ahead<J: FnOnce() -> Result<Tensor> + Send + 'static>(
        &self,
        progress: &mut dyn FnMut(usize) -> Result<()>,
        jobs: impl Iterator<Item = J>,
    ) -> Result<Statistics> {
        let mut stats = self.start();
        for prepared in ReadAhead::new(jobs) {
            self.add_prepared(&mut stats, &prepared?)?;
            progress(stats.count())?;
        }
        stats.finish()
    }

    /// Fingerprint of the network's weights: statistics of other weights are no statistics of these features.
    pub fn weights(&self) -> u64 {
        self.net.fingerprint()
    }

    /// Statistics of pictures of any sizes, `batch` at a time, each brought to 299 px from its own size, or from the
    /// protocol's. Memory: two batches, however many files.
    pub fn pictures(&self, files: &[PathBuf], batch: usize, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<Statistics> {
        let protocol = self.protocol;
        self.read_ahead(progress, files.chunks(batch.max(1)).map(|files| {
            let files = files.to_vec();
            move || {
                let prepared = files.par_iter().map(|file| protocol.prepare_file(file)).collect::<Result<Vec<_>>>()?;
                concat(&prepared.iter().collect::<Vec<_>>(), 0)
            }
        }))
    }
}

/// What a file of statistics says about itself. Files of pytorch-fid say nothing.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    pub protocol: Option<FidProtocol>,
    /// `Extractor::weights`.
    pub weights: Option<u64>,
    /// Of the images, where they lie in files.
    pub fingerprint: Option<u64>,
}

/// Reads statistics as pytorch-fid's `--save-stats` writes them: `mu` `[D]` and `sigma` `[D, D]`; `count` and `origin`
/// (JSON) where the file is ours.
pub fn read_statistics(path: impl AsRef<Path>) -> Result<(Statistics, Origin)> {
    let path = path.as_ref();
    let arrays = npz::read_only(path, &["mu", "sigma"], &["count", "origin"])?;
    let take = |name: &str| arrays[name].to_tensor();
    let (mu, sigma) = (take("mu"), take("sigma"));
    let d = mu.len();
    if mu.rank() != 1 || sigma.shape() != [d, d] || d == 0 {
        return Err(Error::file(path, format!("mu {:?} and sigma {:?} are no statistics of features", mu.shape(), sigma.shape())));
    }
    let statistics = Statistics {
        count: arrays.get("count").and_then(|c| c.to_tensor().item().ok()).map(|n| n as usize),
        mu: mu.to_f64_vec(),
        sigma: sigma.to_f64_vec(),
    };
    let finite = statistics.mu.iter().chain(&statistics.sigma).all(|v| v.is_finite());
    let largest = statistics.sigma.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let symmetric = (0..d * d).all(|i| (statistics.sigma[i] - statistics.sigma[i % d * d + i / d]).abs() <= 1e-6 * largest);
    if !finite || !symmetric || (0..d).any(|i| statistics.sigma[i * d + i] < 0.0) {
        return Err(Error::file(path, "sigma is no covariance (not finite, not symmetric, or a negative variance); compute it again"));
    }
    let origin = match arrays.get("origin").map(|a| &a.values) {
        Some(npz::Values::U8(text)) => serde_json::from_slice(text).map_err(|e| Error::file(path, format!("its origin does not parse ({e}); compute it again")))?,
        _ => Origin::default(),
    };
    Ok((statistics, origin))
}

/// Writes statistics so that pytorch-fid reads them.
pub fn write_statistics(path: impl AsRef<Path>, statistics: &Statistics, origin: &Origin) -> Result<()> {
    let d = statistics.dims();
    let mut arrays = npz::Arrays::new();
    arrays.insert("mu".into(), npz::Array::new(&[d], npz::Values::F64(statistics.mu.clone())));
    arrays.insert("sigma".into(), npz::Array::new(&[d, d], npz::Values::F64(statistics.sigma.clone())));
    if let Some(n) = statistics.count {
        arrays.insert("count".into(), npz::Array::new(&[], npz::Values::I64(vec![n as i64])));
    }
    let text = serde_json::to_vec(origin).expect("plain data");
    arrays.insert("origin".into(), npz::Array::new(&[text.len()], npz::Values::U8(text)));
    npz::write(path, &arrays)
}
