//! The loop around iterations: batches in, losses and snapshots out.

use std::cell::{Cell, RefCell};

use super::replay::Replay;
use super::{GanState, Losses, Measured, Regulariser, Trainer};
use crate::data::dataset::{Dataset, Flip, Sampler, SamplerState};
use crate::device::Device;
use crate::error::Result;
use crate::io::ahead::ReadAhead;
use crate::ops::layout::gather_rows;
use crate::tensor::Tensor;

/// A source of batches `[batch, H, W, 3]` in [−1, 1], shuffled, without end; `Hyper::given_fakes` further rows follow.
pub trait Batches {
    fn next(&mut self) -> Result<Tensor>;
}

/// A sampler of `n` images from which `drawn` batches of `batch` have been taken before.
fn sampler_after(n: usize, flip: Flip, seed: u64, drawn: u64, batch: usize) -> Result<Sampler> {
    let images = drawn * batch as u64;
    Sampler::new(n, flip, SamplerState { seed, epoch: images / n.max(1) as u64, position: images % n.max(1) as u64 })
}

/// Batches of a data set; while one is used the next is read.
pub struct DatasetBatches(ReadAhead<'static, Tensor>);

impl DatasetBatches {
    /// `drawn`: batches that an interrupted run has already taken.
    pub fn new(data: &Dataset, batch: usize, flip: Flip, seed: u64, drawn: u64) -> Result<DatasetBatches> {
        let pictures = data.pictures.clone();
        let mut sampler = sampler_after(data.len(), flip, seed, drawn, batch)?;
        Ok(DatasetBatches(ReadAhead::new(std::iter::repeat_with(move || {
            let (pictures, (indices, mirrored)) = (pictures.clone(), sampler.next_indices(batch));
            move || pictures.batch(&indices, &mirrored)
        }))))
    }
}

impl Batches for DatasetBatches {
    fn next(&mut self) -> Result<Tensor> {
        self.0.next().expect("there is always a next batch")
    }
}

/// Batches of some of the images of a tensor `[n, H, W, 3]`.
pub struct TensorBatches<'a> {
    images: &'a Tensor,
    subset: Vec<usize>,
    sampler: Sampler,
    batch: usize,
}

impl<'a> TensorBatches<'a> {
    /// `subset`: the images to draw from; `drawn` as in `DatasetBatches::new`.
    pub fn new(images: &'a Tensor, subset: Vec<usize>, batch: usize, seed: u64, drawn: u64) -> Result<TensorBatches<'a>> {
        let sampler = sampler_after(subset.len(), Flip::Never, seed, drawn, batch)?;
        Ok(TensorBatches { images, subset, sampler, batch })
    }
}

impl Batches for TensorBatches<'_> {
    fn next(&mut self) -> Result<Tensor> {
        let (indices, _) = self.sampler.next_indices(self.batch);
        gather_rows(self.images, &indices.iter().map(|&i| self.subset[i]).collect::<Vec<_>>())
    }
}

/// What the loop tells after each iteration.
pub struct Progress<'a> {
    pub state: &'a GanState,
    /// Iterations to do in all.
    pub until: u64,
    measured: Measured,
    regulariser: RefCell<&'a mut dyn Regulariser>,
    read: Cell<Option<Losses>>,
}

impl Progress<'_> {
    /// What the iteration measured, if all of it is finite. Asking waits for a GPU.
    pub fn losses(&self) -> Result<Losses> {
        if let Some(losses) = self.read.get() {
            return Ok(losses);
        }
        let losses = self.measured.read(self.state, *self.regulariser.borrow_mut())?;
        self.read.set(Some(losses));
        Ok(losses)
    }

    /// Whether R1 was measured, which happens once in many iterations.
    pub fn has_r1(&self) -> bool {
        self.measured.r1.is_some()
    }
}

/// A GPU is asked for its losses at least this often, to stop when one is no number any more.
const CHECK_EVERY: u64 = 50;

/// Trains `state` until it has done `until` iterations. `on_iteration` may save, draw or stop (by an error).
pub fn run(
    trainer: &Trainer,
    state: &mut GanState,
    batches: &mut dyn Batches,
    regulariser: &mut dyn Regulariser,
    until: u64,
    on_iteration: &mut dyn FnMut(&Progress) -> Result<()>,
) -> Result<()> {
    let mut replay = match state.device() {
        Device::Cpu => None,
        Device::Cuda(device) => Some(Replay::new(trainer, &device)?),
    };
    while state.iteration < until {
        let batch = batches.next()?;
        let measured = match &mut replay {
            None => {
                let inputs = trainer.draw_inputs(state, &batch)?;
                trainer.queue(state, &inputs, regulariser)?
            }
            Some(replay) => replay.step(state, &batch, regulariser)?,
        };
        state.iteration += 1;
        let progress = Progress { state, until, measured, regulariser: RefCell::new(&mut *regulariser), read: Cell::new(None) };
        let i = progress.state.iteration;
        if replay.is_none() || i.is_multiple_of(CHECK_EVERY) || i == until {
            progress.losses()?;
        }
        on_iteration(&progress)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::image::encode_png;
    use crate::io::pictures::Pictures;
    use crate::io::scratch::{Scratch, refused};

    fn pictures(folder: &Scratch, n: u8) -> Vec<std::path::PathBuf> {
        (0..n).map(|i| folder.file(&format!("{i}.png"), &encode_png(&[[i * 9; 20], [i * 9 + 5; 20], [1; 20]].concat(), 4, 5, 3))).collect()
    }

    fn set(kept: usize, files: &[std::path::PathBuf]) -> Dataset {
        let pictures = Pictures::from_files_within(kept, files.to_vec(), Some([3, 3])).unwrap();
        Dataset { pictures, labels: None, attributes: None, class_names: Vec::new() }
    }

    /// Reading ahead and decoding on demand change neither order nor pixels, also of a run that is continued.
    #[test]
    fn batches_are_those_of_the_sampler() {
        let folder = Scratch::new();
        let files = pictures(&folder, 7);
        let mut sampler = Sampler::from_seed(7, Flip::Random, 3).unwrap();
        let kept = set(usize::MAX, &files);
        let mut plain = || {
            let (indices, mirrored) = sampler.next_indices(4);
            kept.pictures.batch(&indices, &mirrored).unwrap().to_vec::<f32>()
        };
        let expected: Vec<Vec<f32>> = (0..6).map(|_| plain()).collect();
        for (kept, drawn) in [(usize::MAX, 0), (0, 0), (0, 3)] {
            let mut batches = DatasetBatches::new(&set(kept, &files), 4, Flip::Random, 3, drawn as u64).unwrap();
            for (i, want) in expected.iter().enumerate().skip(drawn) {
                assert_eq!(&batches.next().unwrap().to_vec::<f32>(), want, "batch {i} of {drawn}.., {kept} bytes kept");
            }
        }
    }

    #[test]
    fn a_bad_picture_ends_the_batch_that_needs_it() {
        let folder = Scratch::new();
        let mut files = pictures(&folder, 3);
        files[1] = folder.file("bad.png", b"no picture");
        let mut batches = DatasetBatches::new(&set(0, &files), 1, Flip::Never, 0, 0).unwrap();
        let results: Vec<Result<Tensor>> = (0..3).map(|_| batches.next()).collect();
        let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(good.len(), 2);
        bad.into_iter().for_each(|b| refused(b, &["bad.png", "PNG, JPEG or WebP"]));
    }
}
