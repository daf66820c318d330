//! MNIST in its original IDX files, gzipped or not.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io;
use crate::io::resample::{Filter, resize};

/// Which part of MNIST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// 60,000 images.
    Train,
    /// 10,000 images.
    Test,
}

impl Split {
    /// How its files' names start.
    fn stem(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "t10k",
        }
    }
}

/// Grey images with their digits.
#[derive(Clone, Debug)]
pub struct Mnist {
    /// `[n, height, width]`, 0 is background.
    pub images: Vec<u8>,
    pub height: usize,
    pub width: usize,
    /// One of 0..=9 for each image.
    pub labels: Vec<u8>,
}

impl Mnist {
    /// Reads a split from the folder that holds its two files. Errors, each in one line: no such file in the folder, a
    /// wrong magic number, a file cut short or longer than it says, images and labels of different number, a label
    /// that is no digit.
    pub fn read(folder: impl AsRef<Path>, split: Split) -> Result<Mnist> {
        let stem = split.stem();
        let folder = folder.as_ref();
        let images_path = find(folder, stem, "images", 3)?;
        let labels_path = find(folder, stem, "labels", 1)?;
        let (sizes, images) = read_idx(&images_path, 3)?;
        let (count, labels) = read_idx(&labels_path, 1)?;
        if count[0] != sizes[0] {
            let problem = format!("holds {} labels for {} images; take both files from one place", count[0], sizes[0]);
            return Err(Error::file(&labels_path, problem));
        }
        if images.is_empty() {
            return Err(Error::file(&images_path, "holds no image; download it again"));
        }
        if let Some(bad) = labels.iter().find(|l| **l > 9) {
            return Err(Error::file(&labels_path, format!("holds the label {bad}, which is no digit; download it again")));
        }
        Ok(Mnist { images, height: sizes[1], width: sizes[2], labels })
    }

    /// The file of a split's images.
    pub fn images_file(folder: impl AsRef<Path>, split: Split) -> Result<PathBuf> {
        find(folder.as_ref(), split.stem(), "images", 3)
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The same images at `size` × `size`, bilinear, rounded to 8 bits: how the field's classifiers saw them.
    pub fn resized(&self, size: usize) -> Mnist {
        if (self.height, self.width) == (size, size) {
            return self.clone();
        }
        let images = self
            .images
            .chunks_exact(self.height * self.width)
            .flat_map(|image| resize(image, (self.height, self.width), 1, (size, size), Filter::Bilinear))
            .collect();
        Mnist { images, height: size, width: size, labels: self.labels.clone() }
    }
}

/// The file of a part, under the names that it is published with.
fn find(folder: &Path, stem: &str, part: &str, dims: u8) -> Result<PathBuf> {
    if !folder.is_dir() {
        return Err(Error::file(folder, "is not a folder; give the folder of MNIST's four original files"));
    }
    for dot in ['-', '.'] {
        for end in ["", ".gz"] {
            let path = folder.join(format!("{stem}-{part}{dot}idx{dims}-ubyte{end}"));
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    let problem = format!("holds no {stem}-{part}-idx{dims}-ubyte[.gz]; give the folder of MNIST's four original files");
    Err(Error::file(folder, problem))
}

/// Reads an IDX file of unsigned bytes with `rank` dimensions: the sizes and the bytes. gzip is recognised by content.
pub fn read_idx(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let bytes = unpacked(path, io::read(path)?)?;
    let magic = [0, 0, 8, rank as u8];
    let head = 4 + 4 * rank;
    if bytes.len() < 4 || bytes[..4] != magic {
        let problem = format!("is not an IDX file of bytes in {rank} dimensions (wrong magic number); download it again");
        return Err(Error::file(path, problem));
    }
    let cut = |has: usize, wants: String| {
        Error::file(path, format!("is cut short: it has {has} bytes of {wants}; download it again"))
    };
    if bytes.len() < head {
        return Err(cut(bytes.len(), "a longer header".into()));
    }
    let sizes: Vec<usize> =
        bytes[4..head].as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b) as usize).collect();
    let wants = sizes.iter().try_fold(1usize, |n, size| n.checked_mul(*size)).and_then(|n| n.checked_add(head));
    match wants {
        Some(wants) if wants == bytes.len() => {}
        Some(wants) if wants < bytes.len() => {
            let problem = format!("is longer than it says: {} bytes instead of {wants}; download it again", bytes.len());
            return Err(Error::file(path, problem));
        }
        wants => return Err(cut(bytes.len(), wants.map_or("more than any file has".into(), |n| n.to_string()))),
    }
    Ok((sizes, bytes[head..].to_vec()))
}

/// Bytes that an IDX file may have: MNIST and its relatives have up to 180 MB.
const MAX_UNPACKED: u64 = 1 << 30;

fn unpacked(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut out = Vec::new();
    let mut gzip = flate2::read::GzDecoder::new(&bytes[..]).take(MAX_UNPACKED);
    match gzip.read_to_end(&mut out) {
        Ok(_) => Ok(out),
        Err(_) => Err(Error::file(path, "is cut short or damaged: it does not unpack; download it again")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::io::scratch::{Scratch, real_data, refused};

    fn idx(magic: [u8; 4], sizes: &[u32], data: &[u8]) -> Vec<u8> {
        let mut out = magic.to_vec();
        sizes.iter().for_each(|s| out.extend(s.to_be_bytes()));
        out.extend(data);
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn plain_and_gzipped() {
        let scratch = Scratch::new();
        let pixels: Vec<u8> = (0..2 * 3 * 4).collect();
        scratch.file("train-images-idx3-ubyte", &idx([0, 0, 8, 3], &[2, 3, 4], &pixels));
        scratch.file("train-labels.idx1-ubyte.gz", &gzip(&idx([0, 0, 8, 1], &[2], &[7, 9])));
        let mnist = Mnist::read(scratch.path(), Split::Train).unwrap();
        assert_eq!((mnist.len(), mnist.height, mnist.width), (2, 3, 4));
        assert_eq!((mnist.images, mnist.labels), (pixels, vec![7, 9]));
        refused(Mnist::read(scratch.path().join("none"), Split::Test), &["none", "is not a folder"]);
        refused(Mnist::read(scratch.path(), Split::Test), &["t10k-images-idx3-ubyte", "four original files"]);
    }

    #[test]
    fn bad_files() {
        let scratch = Scratch::new();
        let bad = |content: &[u8], says: &str| refused(read_idx(&scratch.file("bad", content), 3), &["bad", says]);
        let good = idx([0, 0, 8, 3], &[2, 1, 1], &[1, 2]);
        bad(b"", "wrong magic");
        bad(b"<html>", "wrong magic");
        bad(&idx([0, 0, 8, 1], &[2], &[1, 2]), "wrong magic");
        bad(&good[..10], "cut short");
        bad(&good[..good.len() - 1], "cut short: it has 17 bytes of 18");
        bad(&[&good[..], &[0]].concat(), "longer than it says");
        bad(&idx([0, 0, 8, 3], &[u32::MAX; 3], &[]), "cut short");
        let packed = gzip(&good);
        bad(&packed[..packed.len() / 2], "does not unpack");
        scratch.file("train-images-idx3-ubyte", &good);
        scratch.file("train-labels-idx1-ubyte", &idx([0, 0, 8, 1], &[1], &[1]));
        refused(Mnist::read(scratch.path(), Split::Train), &["train-labels", "1 labels for 2 images"]);
        scratch.file("train-labels-idx1-ubyte", &idx([0, 0, 8, 1], &[2], &[1, 10]));
        refused(Mnist::read(scratch.path(), Split::Train), &["train-labels", "no digit"]);
    }

    /// The classifiers' input, as torchvision's Resize made it.
    #[test]
    fn resized_as_pillow_does() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/nets/lenet_mnist_first64.npz");
        let arrays = crate::io::npz::read(path).unwrap();
        let bytes = |name: &str| match &arrays[name].values {
            crate::io::npz::Values::U8(v) => v.clone(),
            _ => panic!("{name} is uint8"),
        };
        let mnist = Mnist { images: bytes("images28"), height: 28, width: 28, labels: vec![0; 64] };
        assert!(mnist.resized(32).images == bytes("images32"));
    }

    #[test]
    fn real_mnist() {
        let Some(data) = real_data("real_mnist") else { return };
        for (split, n, first) in [(Split::Train, 60_000, 5), (Split::Test, 10_000, 7)] {
            let mnist = Mnist::read(data.join("mnist"), split).unwrap();
            assert_eq!((mnist.len(), mnist.height, mnist.width, mnist.labels[0]), (n, 28, 28, first));
        }
    }
}
