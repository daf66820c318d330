//! The loop around iterations: batches in, losses and snapshots out.

use std::cell::{Cell, RefCell};

use super::replay::Replay;
use super::{GanState, Losses, Measured, Regulariser, Trainer};
use crate::data::dataset::{Dataset, Flip, Sampler, SamplerState};
use crate::device::Device;
use crate::error::Result;
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

/// Batches of a data set.
pub struct DatasetBatches<'a> {
    data: &'a Dataset,
    sampler: Sampler,
    batch: usize,
}

impl<'a> DatasetBatches<'a> {
    /// `drawn`: batches that an interrupted run has already taken.
    pub fn new(data: &'a Dataset, batch: usize, flip: Flip, seed: u64, drawn: u64) -> Result<DatasetBatches<'a>> {
        Ok(DatasetBatches { data, sampler: sampler_after(data.len(), flip, seed, drawn, batch)?, batch })
    }
}

impl Batches for DatasetBatches<'_> {
    fn next(&mut self) -> Result<Tensor> {
        Ok(self.sampler.next_batch(self.data, self.batch))
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
