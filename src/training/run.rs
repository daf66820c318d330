//! The loop around iterations: batches in, losses and snapshots out.

use super::{GanState, Losses, Regulariser, Trainer};
use crate::error::Result;
use crate::tensor::Tensor;

/// A source of batches `[batch, H, W, 3]` in [−1, 1], shuffled, without end.
pub trait Batches {
    fn next(&mut self) -> Result<Tensor>;
}

/// What the loop tells after each iteration.
pub struct Progress<'a> {
    pub state: &'a GanState,
    pub losses: Losses,
    /// Iterations to do in all.
    pub until: u64,
}

/// Trains `state` until it has done `until` iterations. `on_iteration` may save, draw or stop (by an error).
pub fn run(
    trainer: &Trainer,
    state: &mut GanState,
    batches: &mut dyn Batches,
    regulariser: &mut dyn Regulariser,
    until: u64,
    on_iteration: &mut dyn FnMut(&Progress) -> Result<()>,
) -> Result<()> {
    while state.iteration < until {
        let real = batches.next()?;
        let inputs = trainer.draw_inputs(state, real);
        let losses = trainer.iteration(state, &inputs, regulariser)?;
        on_iteration(&Progress { state, losses, until })?;
    }
    Ok(())
}
