//! A data set, where it comes from, and batches out of it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{celeba, folder};
use super::mnist::{Mnist, Split};
use crate::error::{Error, Result};
use crate::io::npz::{self, Values};
use crate::io::pictures::Pictures;
use crate::io::resample::{Filter, square};
use crate::ops::random::Random;

/// 8-bit images, all of one size, and what is known about them. Parts of a data set share its images.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub pictures: Pictures,
    /// The class of each image.
    pub labels: Option<Vec<u32>>,
    /// Of data with attributes instead of classes, `[n, attributes]`: 1 where an image has the attribute, 0 where not.
    pub attributes: Option<Vec<u8>>,
    /// One name for each class or attribute; empty without both.
    pub class_names: Vec<String>,
}

/// Where images come from: `mnist:DIR`, `folder:DIR`, `celeba:DIR` or `npz:FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Mnist(PathBuf),
    Folder(PathBuf),
    Celeba(PathBuf),
    Npz(PathBuf),
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Source> {
        let wrong = |problem: &str| Error::config("data", format!("{text:?} {problem}; give mnist:DIR, folder:DIR, celeba:DIR or npz:FILE"));
        let Some((kind, path)) = text.split_once(':') else { return Err(wrong("does not say what it is")) };
        if path.is_empty() {
            return Err(wrong("names no path"));
        }
        match kind {
            "mnist" => Ok(Source::Mnist(path.into())),
            "folder" => Ok(Source::Folder(path.into())),
            "celeba" => Ok(Source::Celeba(path.into())),
            "npz" => Ok(Source::Npz(path.into())),
            _ => Err(wrong("is of an unknown kind")),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Mnist(path) => write!(f, "mnist:{}", path.display()),
            Source::Folder(path) => write!(f, "folder:{}", path.display()),
            Source::Celeba(path) => write!(f, "celeba:{}", path.display()),
            Source::Npz(path) => write!(f, "npz:{}", path.display()),
        }
    }
}

impl Source {
    /// Reads the images at `size` × `size`; without a size, as they are. `split` matters to MNIST only. Digits are
    /// resized bilinearly, pictures by Lanczos with a cut from the middle.
    pub fn read(&self, split: Split, size: Option<usize>) -> Result<Dataset> {
        self.read_at(split, size.map(|s| [s, s]))
    }

    /// As `read`, at any height and width. Digits and arrays are squares.
    pub fn read_at(&self, split: Split, size: Option<[usize; 2]>) -> Result<Dataset> {
        if size.is_some_and(|s| s.contains(&0)) {
            return Err(Error::config("--size", "is 0; give the side of the images in pixels"));
        }
        let side = || match size {
            Some([h, w]) if h != w => Err(Error::config("--size", format!("{self} holds squares: give one side, not {h}x{w}"))),
            size => Ok(size.map(|s| s[0])),
        };
        match self {
            Source::Mnist(folder) => {
                let (mnist, side) = (Mnist::read(folder, split)?, side()?);
                Ok(Dataset::from(side.map(|size| mnist.resized(size)).unwrap_or(mnist)))
            }
            Source::Folder(folder) => folder::read(folder, size),
            Source::Celeba(folder) => celeba::read(folder, size),
            Source::Npz(file) => read_npz(file, side()?),
        }
    }
}

impl From<Mnist> for Dataset {
    fn from(mnist: Mnist) -> Dataset {
        Dataset {
            pictures: Pictures::from_bytes(mnist.images, [mnist.height, mnist.width, 1]),
            labels: Some(mnist.labels.iter().map(|l| *l as u32).collect()),
            attributes: None,
            class_names: (0..10).map(|digit| digit.to_string()).collect(),
        }
    }
}

/// Reads `images`: uint8 `[n, h, w, 3]`, `[n, h, w, 1]` or `[n, h, w]`, or f32 `[n, 3, h, w]` or `[n, 1, h, w]` in
/// [−1, 1], which is rounded to 8 bits; and `labels` `[n]`, integers from 0, if there. Other arrays are left alone.
fn read_npz(path: &Path, size: Option<usize>) -> Result<Dataset> {
    let wrong = |problem: String| Error::file(path, problem);
    let form = "uint8 [N, H, W, 3] or [N, H, W], or float32 [N, 3, H, W] in [-1, 1]";
    let mut arrays = npz::read_only(path, &["images"], &["labels"])?;
    let array = arrays.remove("images").expect("it is required");
    let (n, height, width, channels, bytes) = match (&array.values, &array.shape[..]) {
        (Values::U8(v), &[n, h, w]) => (n, h, w, 1, v.clone()),
        (Values::U8(v), &[n, h, w, c @ (1 | 3)]) => (n, h, w, c, v.clone()),
        (Values::F32(v), &[n, c @ (1 | 3), h, w]) => {
            if v.iter().any(|v| !v.is_finite()) {
                return Err(wrong("holds images with values that are not finite; save finite ones".into()));
            }
            if v.iter().any(|v| v.abs() > LARGEST_VALUE) {
                return Err(wrong(format!("holds images with values beyond ±{LARGEST_VALUE}, which are not about from -1 to 1; save them as {form}")));
            }
            let mut bytes = vec![0; v.len()];
            if h * w > 0 {
                bytes.par_chunks_exact_mut(c * h * w).zip(v.par_chunks_exact(c * h * w)).for_each(|(to, from)| {
                    for (i, pixel) in to.chunks_exact_mut(c).enumerate() {
                        (0..c).for_each(|k| pixel[k] = crate::io::image::to_byte(from[k * h * w + i]));
                    }
                });
            }
            (n, h, w, c, bytes)
        }
        (_, shape) => return Err(wrong(format!("holds images of another form, of shape {shape:?}; save them as {form}"))),
    };
    if n == 0 || height == 0 || width == 0 {
        return Err(wrong("holds no image; save at least one".into()));
    }
    let labels = match arrays.remove("labels") {
        None => None,
        Some(labels) => {
            let narrow: Option<Vec<u32>> = match &labels.values {
                Values::I64(v) => v.iter().map(|l| u32::try_from(*l).ok().filter(|l| *l < MAX_CLASSES)).collect(),
                Values::U8(v) => Some(v.iter().map(|l| *l as u32).collect()),
                _ => None,
            };
            if narrow.is_none() || labels.shape != [n] {
                let last = MAX_CLASSES - 1;
                return Err(wrong(format!("holds labels that are not {n} integers from 0 to {last}; save one for each image")));
            }
            narrow
        }
    };
    let classes = labels.iter().flatten().max().map_or(0, |l| l + 1);
    let class_names = (0..classes).map(|c| c.to_string()).collect();
    let pictures = match size.filter(|size| (height, width) != (*size, *size)) {
        None => Pictures::from_bytes(bytes, [height, width, channels]),
        Some(size) => {
            let resized = |image| square(image, (height, width), channels, size, Filter::Lanczos);
            let images = bytes.par_chunks_exact(height * width * channels).flat_map_iter(resized).collect();
            Pictures::from_bytes(images, [size, size, channels])
        }
    };
    Ok(Dataset { pictures, labels, attributes: None, class_names })
}

/// Every tenth image is held out.
const HELD_OUT: usize = 10;

/// Which images of a set that does not say itself what is for training and what for judging: every tenth image of each
/// class, in the set's order, is held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    All,
    /// Nine tenths.
    Training,
    /// The other tenth.
    HeldOut,
}

/// A pixel of floating point beyond this is of another range, such as 0 to 255.
pub const LARGEST_VALUE: f32 = 30.0;

/// A label beyond this is a mistake, and would name as many classes.
const MAX_CLASSES: u32 = 1 << 16;

/// Whether batches mirror images from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flip {
    Never,
    /// Each image with probability one half, anew in every epoch.
    Random,
}

/// The number of a class among `names`, given by name or number; an unknown one is an error that lists the known ones.
pub(super) fn class_of(names: &[String], name: &str) -> Result<u32> {
    let by_name = names.iter().position(|n| n == name);
    let by_number = || name.parse().ok().filter(|i: &usize| *i < names.len());
    by_name.or_else(by_number).map(|i| i as u32).ok_or_else(|| {
        let known = match names {
            [] => "the data have no classes".to_owned(),
            names => format!("choose one of {}", names[..names.len().min(50)].join(", ")),
        };
        Error::config("class", format!("{name:?} is not a class of the data; {known}"))
    })
}

impl Dataset {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// The class or attribute of a name or a number; an unknown one is an error that lists the known ones.
    pub fn class(&self, name: &str) -> Result<u32> {
        class_of(&self.class_names, name)
    }

    /// Images of each class, or with each attribute.
    pub fn class_counts(&self) -> Vec<usize> {
        let k = self.class_names.len();
        let mut counts = vec![0; k];
        self.labels.iter().flatten().for_each(|l| counts[*l as usize] += 1);
        for row in self.attributes.iter().flat_map(|a| a.chunks_exact(k.max(1))) {
            counts.iter_mut().zip(row).for_each(|(c, has)| *c += *has as usize);
        }
        counts
    }

    /// The same images with their classes numbered as in `names`, a classifier's, by name; classes that are not there come
    /// behind. Classes whose names are their numbers keep them.
    pub fn in_order_of(mut self, names: &[String]) -> Dataset {
        let Some(labels) = &mut self.labels else { return self };
        if self.class_names.iter().enumerate().all(|(i, name)| *name == i.to_string()) {
            return self;
        }
        let mut all = names.to_vec();
        let numbers: Vec<u32> = (self.class_names.iter())
            .map(|name| {
                let known = all.iter().position(|n| n == name);
                known.unwrap_or_else(|| {
                    all.push(name.clone());
                    all.len() - 1
                }) as u32
            })
            .collect();
        labels.iter_mut().for_each(|l| *l = numbers[*l as usize]);
        self.class_names = all;
        self
    }

    /// The images of the given indices, in that order, labels along.
    pub fn subset(&self, indices: &[usize]) -> Dataset {
        let labels = self.labels.as_ref().map(|labels| indices.iter().map(|i| labels[*i]).collect());
        let k = self.class_names.len();
        let attributes = self.attributes.as_ref().map(|all| indices.iter().flat_map(|i| &all[i * k..(i + 1) * k]).copied().collect());
        Dataset { pictures: self.pictures.select(indices), labels, attributes, class_names: self.class_names.clone() }
    }

    /// The images of one part.
    pub fn part(&self, part: Part) -> Dataset {
        if part == Part::All {
            return self.clone();
        }
        let mut seen = vec![0_usize; self.class_names.len().max(1)];
        let indices: Vec<usize> = (0..self.len())
            .filter(|i| {
                let count = &mut seen[self.labels.as_ref().map_or(0, |l| l[*i] as usize)];
                *count += 1;
                count.is_multiple_of(HELD_OUT) == (part == Part::HeldOut)
            })
            .collect();
        self.subset(&indices)
    }

    fn filtered(&self, class: u32, keep: bool) -> Result<Dataset> {
        let k = self.class_names.len();
        let is = |i: usize| match (&self.labels, &self.attributes) {
            (Some(labels), _) => Ok(labels[i] == class),
            (None, Some(attributes)) => Ok(attributes[i * k + class as usize] > 0),
            (None, None) => Err(Error::config("class", "the data have no classes; use class folders or an npz with labels")),
        };
        let mut indices = Vec::new();
        for i in 0..self.len() {
            if is(i)? == keep {
                indices.push(i);
            }
        }
        if indices.is_empty() {
            return Err(Error::config("class", "no image would be left; choose another class"));
        }
        Ok(self.subset(&indices))
    }

    /// Everything but a class, or everything without an attribute: what a model retrained from scratch would see. Classes
    /// keep their numbers.
    pub fn without_class(&self, class: u32) -> Result<Dataset> {
        self.filtered(class, false)
    }

    /// One class alone.
    pub fn only_class(&self, class: u32) -> Result<Dataset> {
        self.filtered(class, true)
    }

    /// The labels of the given indices.
    pub fn batch_labels(&self, indices: &[usize]) -> Result<Vec<u32>> {
        match &self.labels {
            Some(labels) => Ok(indices.iter().map(|i| labels[*i]).collect()),
            None => Err(Error::config("data", "has no labels; use class folders or an npz with labels")),
        }
    }
}

/// Where a sampler stands: all that continuing needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerState {
    pub seed: u64,
    pub epoch: u64,
    /// Images of this epoch that were handed out.
    pub position: u64,
}

/// Draws batches: every image once per epoch, in an order that depends on (seed, epoch) alone. A batch that an epoch's
/// end falls into goes on with the next epoch, so all batches are full, even of a set smaller than a batch.
#[derive(Clone, Debug)]
pub struct Sampler {
    state: SamplerState,
    n: usize,
    flip: Flip,
    order: Vec<usize>,
}

/// Streams of random numbers that nothing else draws from; the epoch is added below the mark.
const ORDER_STREAM: u64 = 0x6f72_6465 << 32;
const FLIP_STREAM: u64 = 0x666c_6970 << 32;

impl Sampler {
    /// A sampler of the numbers `0..n`, from `state` on. Fails when there is nothing to draw, or when the state is of
    /// a larger set.
    pub fn new(n: usize, flip: Flip, state: SamplerState) -> Result<Sampler> {
        if n == 0 {
            return Err(Error::config("data", "holds no image; give at least one"));
        }
        if state.position > n as u64 {
            let problem = format!("has {n} images, but the saved run stands at image {}; give the data it was started with", state.position);
            return Err(Error::config("data", problem));
        }
        let mut sampler = Sampler { state, n, flip, order: Vec::new() };
        sampler.shuffle();
        Ok(sampler)
    }

    /// A sampler at the start of the first epoch.
    pub fn from_seed(n: usize, flip: Flip, seed: u64) -> Result<Sampler> {
        Sampler::new(n, flip, SamplerState { seed, epoch: 0, position: 0 })
    }

    fn shuffle(&mut self) {
        self.order = Random::new(self.state.seed, ORDER_STREAM | self.state.epoch).permutation(self.n);
    }

    pub fn state(&self) -> SamplerState {
        self.state
    }

    /// The next `size` indices, and for each whether it is mirrored.
    pub fn next_indices(&mut self, size: usize) -> (Vec<usize>, Vec<bool>) {
        let (mut indices, mut mirrored) = (Vec::with_capacity(size), Vec::with_capacity(size));
        for _ in 0..size {
            if self.state.position == self.n as u64 {
                self.state.epoch += 1;
                self.state.position = 0;
                self.shuffle();
            }
            let at = self.state.position;
            indices.push(self.order[at as usize]);
            mirrored.push(match self.flip {
                Flip::Never => false,
                Flip::Random => {
                    let mut coin = Random { seed: self.state.seed, stream: FLIP_STREAM | self.state.epoch, counter: at };
                    coin.unit() < 0.5
                }
            });
            self.state.position += 1;
        }
        (indices, mirrored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::npz::{Array, Arrays};
    use crate::io::scratch::{Scratch, real_data, refused};

    fn tiny() -> Dataset {
        Dataset {
            pictures: Pictures::from_bytes(vec![0, 255, 51, 102, 1, 2, 3, 4], [1, 2, 1]),
            labels: Some(vec![0, 1, 1, 0]),
            attributes: None,
            class_names: vec!["cat".into(), "dog".into()],
        }
    }

    /// All of a set's bytes.
    fn bytes(set: &Dataset) -> Vec<u8> {
        set.pictures.read(&(0..set.len()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn sources() {
        assert_eq!("mnist:a/b".parse::<Source>().unwrap(), Source::Mnist("a/b".into()));
        assert_eq!("npz:C:x.npz".parse::<Source>().unwrap().to_string(), "npz:C:x.npz");
        for (text, says) in [("mnist", "does not say"), ("folder:", "names no path"), ("lmdb:x", "unknown kind")] {
            refused(text.parse::<Source>(), &[text, says, "mnist:DIR, folder:DIR, celeba:DIR or npz:FILE"]);
        }
    }

    #[test]
    fn batches() {
        let batch = tiny().pictures.batch(&[1, 0], &[false, true]).unwrap();
        assert_eq!(batch.shape(), [2, 1, 2, 3]);
        let expected = [-0.6, -0.6, -0.6, -0.2, -0.2, -0.2, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0];
        assert!(batch.to_f64_vec().iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
        assert_eq!(tiny().batch_labels(&[1, 0]).unwrap(), [1, 0]);
    }

    #[test]
    fn classes() {
        let set = tiny();
        assert_eq!((set.len(), set.class_counts()), (4, vec![2, 2]));
        assert_eq!((set.class("dog").unwrap(), set.class("0").unwrap()), (1, 0));
        refused(set.class("cow"), &["\"cow\"", "choose one of cat, dog"]);
        let rest = set.without_class(1).unwrap();
        assert_eq!((bytes(&rest), rest.labels), (vec![0, 255, 3, 4], Some(vec![0, 0])));
        let only = set.only_class(1).unwrap();
        assert_eq!(bytes(&only), [51, 102, 1, 2]);
        refused(only.without_class(1), &["class", "no image would be left"]);
        let names = ["cow", "dog"].map(String::from);
        let ordered = tiny().in_order_of(&names);
        assert_eq!(ordered.class_names, ["cow", "dog", "cat"]);
        assert_eq!(ordered.labels, tiny().labels.map(|l| l.into_iter().map(|c| if c == 0 { 2 } else { 1 }).collect()));
        let numbered = Dataset { class_names: vec!["0".into(), "1".into()], ..tiny() };
        assert_eq!(numbered.clone().in_order_of(&names).labels, numbered.labels);
        let none = Dataset { labels: None, class_names: vec![], ..tiny() };
        refused(none.without_class(1), &["class", "no classes"]);
        refused(none.class("1"), &["no classes"]);
        refused(none.batch_labels(&[0]), &["no labels"]);
    }

    #[test]
    fn every_tenth_of_each_class_is_held_out() {
        let pictures = Pictures::from_bytes((0..50).collect(), [1, 1, 1]);
        let labels = (0..50).map(|i| u32::from(i >= 20)).collect();
        let set = Dataset { pictures, labels: Some(labels), ..tiny() };
        let held = set.part(Part::HeldOut);
        assert_eq!((bytes(&held), held.labels), (vec![9, 19, 29, 39, 49], Some(vec![0, 0, 1, 1, 1])));
        assert_eq!((set.part(Part::Training).len(), set.part(Part::All).len()), (45, 50));
    }

    #[test]
    fn every_image_once_per_epoch_and_resumable() {
        let mut sampler = Sampler::from_seed(10, Flip::Random, 3).unwrap();
        let (first, _) = sampler.next_indices(4);
        let saved = sampler.state();
        let (rest, flips) = sampler.next_indices(9);
        let mut epoch: Vec<usize> = first.iter().chain(&rest[..6]).copied().collect();
        epoch.sort();
        assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        assert_eq!(sampler.state(), SamplerState { seed: 3, epoch: 1, position: 3 });
        let mut resumed = Sampler::new(10, Flip::Random, saved).unwrap();
        assert_eq!(resumed.next_indices(9), (rest, flips));
        let (other, _) = Sampler::from_seed(10, Flip::Random, 4).unwrap().next_indices(4);
        assert_ne!(other, first);
        // A set smaller than a batch, and about as many mirrored as not.
        let (many, flips) = Sampler::from_seed(3, Flip::Random, 0).unwrap().next_indices(3000);
        assert!((0..3).all(|i| many.iter().filter(|v| **v == i).count() == 1000));
        let mirrored = flips.iter().filter(|f| **f).count();
        assert!((1390..1610).contains(&mirrored), "{mirrored} of 3000");
        refused(Sampler::from_seed(0, Flip::Never, 0), &["data", "no image"]);
        refused(Sampler::new(3, Flip::Never, saved), &["3 images", "stands at image 4"]);
    }

    #[test]
    fn npz_forms() {
        let scratch = Scratch::new();
        let path = scratch.path().join("set.npz");
        let read = |arrays: &[(&str, Array)], size| {
            let arrays: Arrays = arrays.iter().map(|(name, array)| (name.to_string(), array.clone())).collect();
            npz::write(&path, &arrays).unwrap();
            Source::Npz(path.clone()).read(Split::Train, size)
        };
        let grey = Array::new(&[2, 1, 2], Values::U8(vec![1, 2, 3, 4]));
        let labels = Array::new(&[2], Values::I64(vec![0, 2]));
        let set = read(&[("images", grey.clone()), ("labels", labels)], None).unwrap();
        assert_eq!((bytes(&set), set.pictures.shape()), (vec![1, 2, 3, 4], [1, 2, 1]));
        assert_eq!((set.labels, set.class_names.len()), (Some(vec![0, 2]), 3));
        let float = Array::new(&[1, 3, 1, 2], Values::F32(vec![-1.0, 1.0, -0.6, 0.0, 2.0, -2.0]));
        let set = read(&[("images", float)], None).unwrap();
        assert_eq!((bytes(&set), set.labels), (vec![0, 51, 255, 255, 128, 0], None));
        let set = read(&[("images", Array::new(&[1, 4, 6, 3], Values::U8(vec![9; 72])))], Some(2)).unwrap();
        assert_eq!((set.pictures.shape(), bytes(&set)), ([2, 2, 3], vec![9; 12]));
        refused(read(&[("pictures", grey.clone())], None), &["set.npz", "no array named \"images\"", "pictures"]);
        refused(read(&[("images", Array::new(&[2], Values::U8(vec![1, 2])))], None), &["another form", "[2]"]);
        refused(read(&[("images", Array::new(&[0, 2, 2], Values::U8(vec![])))], None), &["holds no image"]);
        refused(read(&[("images", Array::new(&[1, 1, 1, 1], Values::F32(vec![f32::NAN])))], None), &["not finite"]);
        let few = Array::new(&[1], Values::I64(vec![0]));
        refused(read(&[("images", grey.clone()), ("labels", few)], None), &["not 2 integers"]);
        let negative = Array::new(&[2], Values::I64(vec![0, -1]));
        refused(read(&[("images", grey.clone()), ("labels", negative)], None), &["not 2 integers"]);
        refused(read(&[("images", grey)], Some(0)), &["--size"]);
    }

    #[test]
    fn real_digits() {
        let Some(data) = real_data("real_digits") else { return };
        let source: Source = format!("mnist:{}", data.join("mnist").display()).parse().unwrap();
        let set = source.read(Split::Test, Some(32)).unwrap();
        assert_eq!((set.len(), set.pictures.shape()), (10_000, [32, 32, 1]));
        let rest = set.without_class(8).unwrap();
        assert_eq!(rest.len(), 10_000 - 974);
        let (indices, mirrored) = Sampler::from_seed(rest.len(), Flip::Never, 0).unwrap().next_indices(16);
        let batch = rest.pictures.batch(&indices, &mirrored).unwrap();
        assert_eq!(batch.shape(), [16, 32, 32, 3]);
        assert!(batch.to_f64_vec().iter().all(|v| (-1.0..=1.0).contains(v)));
    }
}
