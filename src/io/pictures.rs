//! Images of one size by number, in memory or in picture files. Files whose images would fill more than `KEPT` are read
//! when they are asked for, so a set of them may be larger than memory; the images are the same bit for bit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::image;
use super::resample::{Filter, cover};
use crate::device::cpu::Buffer;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Bytes of images that picture files are decoded into once and for all: 87,000 of 128 px, 21,000 of 256 px. To
/// decode a face of 178 x 218 again and bring it to 64 or 256 px takes 2 or 4 ms of one thread, which `ReadAhead` hides behind
/// training.
const KEPT: usize = 4 << 30;

/// 8-bit images `[n, height, width, channels]`. Clones and selections share what they are taken from.
#[derive(Clone, Debug)]
pub struct Pictures {
    shape: [usize; 3],
    store: Arc<Store>,
    /// Places in the store.
    places: Arc<[usize]>,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<u8>),
    Files(Files),
}

#[derive(Debug)]
struct Files {
    paths: Vec<PathBuf>,
    /// Height and width.
    size: [usize; 2],
    /// Whether pictures of another size are brought to that one; else they are errors.
    resized: bool,
}

impl Files {
    /// The pictures at `places` one after the other, decoded in parallel. The first unreadable one is the error.
    fn read(&self, places: &[usize]) -> Result<Vec<u8>> {
        let bytes = self.size[0] * self.size[1] * 3;
        let mut images = vec![0; places.len() * bytes];
        let each = images.par_chunks_exact_mut(bytes).zip(places);
        let problems: Vec<Error> = each.filter_map(|(out, place)| self.read_one(&self.paths[*place], out).err()).collect();
        problems.into_iter().next().map_or(Ok(images), Err)
    }

    fn read_one(&self, path: &Path, out: &mut [u8]) -> Result<()> {
        let picture = image::read(path)?;
        let ([h, w], to) = ([picture.height, picture.width], self.size);
        if [h, w] == to {
            out.copy_from_slice(&picture.pixels);
        } else if self.resized {
            out.copy_from_slice(&cover(&picture.pixels, (h, w), 3, (to[0], to[1]), Filter::Lanczos));
        } else {
            let problem = format!("is {w} x {h} pixels, the first picture {} x {}; give --size to bring all to one", to[1], to[0]);
            return Err(Error::file(path, problem));
        }
        Ok(())
    }
}

/// Height and width of the first picture, which must be a square: that of all without a size given.
fn side_of(first: &Path) -> Result<[usize; 2]> {
    let picture = image::read(first)?;
    if picture.height != picture.width {
        let problem = format!("is {} x {} pixels, not square; give --size", picture.width, picture.height);
        return Err(Error::file(first, problem));
    }
    Ok([picture.width; 2])
}

impl Pictures {
    /// Takes images `[n, height, width, channels]`, `shape` being that of one; 1 (grey) or 3 channels.
    pub fn from_bytes(images: Vec<u8>, shape: [usize; 3]) -> Pictures {
        let bytes = shape.iter().product::<usize>().max(1);
        assert!(images.len().is_multiple_of(bytes) && matches!(shape[2], 1 | 3), "whole images of 1 or 3 channels");
        let places = (0..images.len() / bytes).collect();
        Pictures { shape, store: Arc::new(Store::Memory(images)), places }
    }

    /// Picture files, each brought to `size` (height, width) by Lanczos until it covers that and a cut from the middle.
    /// Without a size all must be squares of the same size. Where all are decoded at once, here, the first unreadable
    /// file, in the files' order, is the error; where not, it is the error of the first `read` that meets it.
    pub fn from_files(paths: Vec<PathBuf>, size: Option<[usize; 2]>) -> Result<Pictures> {
        Pictures::from_files_within(KEPT, paths, size)
    }

    /// As `from_files`, keeping at most `kept` bytes.
    pub(crate) fn from_files_within(kept: usize, paths: Vec<PathBuf>, size: Option<[usize; 2]>) -> Result<Pictures> {
        let to = match (size, paths.first()) {
            (Some(size), _) if size.contains(&0) => return Err(Error::config("--size", "is 0; give the side of the images in pixels")),
            (Some(size), _) => size,
            (None, Some(first)) => side_of(first)?,
            (None, None) => return Err(Error::config("data", "holds no picture; give at least one")),
        };
        let places: Arc<[usize]> = (0..paths.len()).collect();
        let shape = [to[0], to[1], 3];
        let files = Files { paths, size: to, resized: size.is_some() };
        let store = match places.len().saturating_mul(shape.iter().product()) <= kept {
            true => Store::Memory(files.read(&places)?),
            false => Store::Files(files),
        };
        Ok(Pictures { shape, store: Arc::new(store), places })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Height, width and channels.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Whether images are decoded when they are asked for.
    pub fn is_streamed(&self) -> bool {
        matches!(*self.store, Store::Files(_))
    }

    /// The images of the given numbers, in that order.
    pub fn select(&self, indices: &[usize]) -> Pictures {
        Pictures { places: indices.iter().map(|i| self.places[*i]).collect(), ..self.clone() }
    }

    /// Bytes of the images of the given numbers, `[b, height, width, channels]`.
    pub fn read(&self, indices: &[usize]) -> Result<Vec<u8>> {
        let bytes = self.shape.iter().product::<usize>();
        match &*self.store {
            Store::Memory(all) => Ok(indices.iter().flat_map(|i| &all[self.places[*i] * bytes..][..bytes]).copied().collect()),
            Store::Files(files) => files.read(&indices.iter().map(|i| self.places[*i]).collect::<Vec<_>>()),
        }
    }

    /// The images of the given numbers as f32 `[b, height, width, 3]` in [−1, 1]; grey is repeated. `mirrored` says for
    /// each whether it is mirrored from left to right; it may be empty for none.
    pub fn batch(&self, indices: &[usize], mirrored: &[bool]) -> Result<Tensor> {
        assert!(mirrored.is_empty() || mirrored.len() == indices.len(), "one flag for each image, or none");
        let [height, width, channels] = self.shape;
        let images = self.read(indices)?;
        let mut out = Buffer::<f32>::stale(indices.len() * height * width * 3);
        let each = out.par_chunks_exact_mut((height * width * 3).max(1)).zip(images.par_chunks_exact((height * width * channels).max(1)));
        each.enumerate().for_each(|(b, (to, image))| {
            let mirror = mirrored.get(b).copied().unwrap_or(false);
            for (to, from) in to.chunks_exact_mut(width * 3).zip(image.chunks_exact(width * channels)) {
                for (x, pixel) in to.chunks_exact_mut(3).enumerate() {
                    let at = if mirror { width - 1 - x } else { x } * channels;
                    for (k, v) in pixel.iter_mut().enumerate() {
                        *v = from[at + k % channels] as f32 / 127.5 - 1.0;
                    }
                }
            }
        });
        Ok(Tensor::from_buffer(&[indices.len(), height, width, 3], out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::{Scratch, refused};

    /// Pictures of several sizes, each of one's own colours.
    fn files(scratch: &Scratch) -> Vec<PathBuf> {
        let sizes = [(4, 4), (5, 7), (9, 6), (4, 4), (8, 8)];
        let one = |(i, (h, w)): (usize, (usize, usize))| {
            let pixels: Vec<u8> = (0..h * w * 3).map(|v| (v * 37 + i * 50) as u8).collect();
            scratch.file(&format!("{i}.png"), &image::encode_png(&pixels, h, w, 3))
        };
        sizes.into_iter().enumerate().map(one).collect()
    }

    #[test]
    fn streamed_images_are_the_kept_ones() {
        let scratch = Scratch::new();
        let files = files(&scratch);
        let [kept, streamed] = [usize::MAX, 5 * 48 - 1].map(|n| Pictures::from_files_within(n, files.clone(), Some([4, 4])).unwrap());
        assert!(!kept.is_streamed() && streamed.is_streamed());
        assert_eq!((streamed.len(), streamed.shape()), (5, [4, 4, 3]));
        let some = [3, 1, 1, 4];
        assert_eq!(kept.read(&some).unwrap(), streamed.read(&some).unwrap());
        let [a, b] = [&kept, &streamed].map(|p| p.select(&[4, 2, 0]).batch(&[2, 1], &[true, false]).unwrap());
        assert_eq!(a.shape(), [2, 4, 4, 3]);
        assert_eq!(a.to_f64_vec(), b.to_f64_vec());
        // The first picture has the size that is asked for: mirrored it is its rows backwards.
        let first = image::read(&files[0]).unwrap().pixels;
        assert_eq!(a.to_vec::<f32>()[0], first[9] as f32 / 127.5 - 1.0);
    }

    #[test]
    fn a_bad_file_is_the_error_of_the_batch_that_needs_it() {
        let scratch = Scratch::new();
        let mut files = files(&scratch);
        files[2] = scratch.file("bad.jpg", b"no picture");
        refused(Pictures::from_files(files.clone(), Some([4, 4])), &["bad.jpg", "PNG, JPEG or WebP"]);
        let streamed = Pictures::from_files_within(0, files.clone(), Some([4, 4])).unwrap();
        assert_eq!(streamed.read(&[0, 1, 3]).unwrap().len(), 3 * 48);
        refused(streamed.read(&[0, 2, 1]), &["bad.jpg", "PNG, JPEG or WebP"]);
        std::fs::remove_file(&files[3]).unwrap();
        refused(streamed.batch(&[3], &[]), &["3.png", "does not exist"]);
        // Without a size the first picture's is everyone's.
        let same = Pictures::from_files_within(0, files, None).unwrap();
        refused(same.read(&[1]), &["1.png", "is 7 x 5 pixels, the first picture 4 x 4", "--size"]);
        refused(Pictures::from_files(vec![], None), &["holds no picture"]);
    }
}
