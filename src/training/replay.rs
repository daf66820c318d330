//! Training on a GPU: an iteration of each kind (plain, with R1, with path length, with both) is queued op by op once,
//! then recorded, and from then on queued as one graph.
//!
//! What differs between iterations is in the GPU's memory before the graph starts: the batch, where the random numbers
//! lie in their stream, which layers mix, Adam's powers, the running mean of path lengths, the repulsion's distance. All
//! but the first three are left there by the iteration before. The host never waits for the GPU.

use std::collections::HashMap;

use super::inputs::{Draws, Inputs, Mixing};
use super::{GanState, Measured, Regulariser, Trainer};
use crate::device::CudaDevice;
use crate::device::cuda::{Graph, Workspace};
use crate::error::Result;
use crate::ops::random::Places;
use crate::tensor::{Inbox, Tensor};

/// R1, path length.
type Kind = (bool, bool);

struct Recorded {
    graph: Graph,
    measured: Measured,
    g_steps: i64,
    d_steps: i64,
}

/// One training run on a GPU.
pub(super) struct Replay<'a> {
    trainer: &'a Trainer,
    device: CudaDevice,
    batch: Inbox,
    places: Places,
    choices: Inbox,
    workspace: Workspace,
    recorded: HashMap<Kind, Recorded>,
}

impl<'a> Replay<'a> {
    pub fn new(trainer: &'a Trainer, device: &CudaDevice) -> Result<Replay<'a>> {
        let config = trainer.generator.config();
        // Per batch two latents and the noise maps, and what the path length is measured along.
        let draws = 3 * (2 + config.noise_layers()) + 1;
        Ok(Replay {
            trainer,
            device: device.clone(),
            batch: Inbox::new(&[trainer.hyper.batch + trainer.hyper.given_fakes, config.size, config.size, 3], device)?,
            places: Places::new(device, draws)?,
            choices: Inbox::new(&[3 * config.style_layers(), 2], device)?,
            workspace: Workspace::default(),
            recorded: HashMap::new(),
        })
    }

    /// Queues iteration `state.iteration` on a batch from the host. The iterations of `state` are not counted.
    pub fn step(&mut self, state: &mut GanState, batch: &Tensor, regulariser: &dyn Regulariser) -> Result<Measured> {
        let draws = self.trainer.pass_inputs(state);
        self.send(batch, &draws)?;
        let kind = (draws.r1, draws.has_path());
        if let Some(recorded) = self.recorded.get_mut(&kind) {
            recorded.graph.launch()?;
            state.g_optim.count(recorded.g_steps);
            state.d_optim.count(recorded.d_steps);
            return Ok(recorded.measured.clone());
        }
        // The rehearsal leaves in the workspace all memory that the recording will ask for, so it keeps none itself.
        let measured = self.device.with_workspace(&self.workspace, || self.queue(state, &draws, regulariser))?.deep_clone()?;
        if self.trainer.record {
            let recorded = self.record(state, &draws, regulariser)?;
            self.recorded.insert(kind, recorded);
        }
        Ok(measured)
    }

    fn send(&mut self, batch: &Tensor, draws: &Draws) -> Result<()> {
        self.batch.fill(batch)?;
        self.choices.fill(&draws.choices(self.trainer.generator.config().style_layers()))?;
        let places: Vec<_> = draws.list(Mixing::ByChoice(self.choices.tensor())).into_iter().map(|(at, _)| at).collect();
        self.places.fill(&places)
    }

    fn queue(&self, state: &mut GanState, draws: &Draws, regulariser: &dyn Regulariser) -> Result<Measured> {
        self.trainer.queue(state, &self.inputs(draws)?, regulariser)
    }

    fn inputs(&self, draws: &Draws) -> Result<Inputs> {
        let mixing = Mixing::ByChoice(self.choices.tensor());
        let list = draws.list(mixing);
        let drawn = list.iter().enumerate().map(|(i, (at, shape))| self.places.normal(i, at, shape)).collect::<Result<_>>()?;
        draws.inputs(self.batch.tensor(), drawn, mixing)
    }

    fn record(&self, state: &mut GanState, draws: &Draws, regulariser: &dyn Regulariser) -> Result<Recorded> {
        let before = (state.g_optim.step, state.d_optim.step);
        let (graph, measured) = self.device.record(&self.workspace, || self.queue(state, draws, regulariser))?;
        let steps = |after: u64, before: u64| (after - before) as i64;
        let (g_steps, d_steps) = (steps(state.g_optim.step, before.0), steps(state.d_optim.step, before.1));
        // Recorded, not done.
        state.g_optim.count(-g_steps);
        state.d_optim.count(-d_steps);
        Ok(Recorded { graph, measured, g_steps, d_steps })
    }
}
