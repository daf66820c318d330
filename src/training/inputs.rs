//! The inputs of an iteration. Where each random one lies in the state's stream is known before any is drawn, so a GPU
//! can draw them itself: the same integers, whatever the device.

use super::{Hyper, Trainer};
use crate::autograd::{Var, scale};
use crate::device::Device;
use crate::error::Result;
use crate::models::stylegan2::Styles;
use crate::ops::random::Random;
use crate::tensor::{Tensor, all_on};

use super::GanState;

/// What a batch is generated from.
pub struct BatchInputs {
    pub styles: Styles,
    pub noise: Vec<Tensor>,
}

impl BatchInputs {
    /// The same inputs on another device.
    fn to_device(&self, device: &Device) -> Result<BatchInputs> {
        Ok(BatchInputs { styles: self.styles.to_device(device)?, noise: all_on(device, &self.noise)? })
    }

    /// Those of the first `n` images.
    pub(super) fn first(&self, n: usize) -> Result<BatchInputs> {
        let of_map = |map: &Tensor| if map.dim(0) == 1 { Ok(map.clone()) } else { map.rows(0, n) };
        Ok(BatchInputs { styles: self.styles.rows(&(0..n).collect::<Vec<_>>())?, noise: self.noise.iter().map(of_map).collect::<Result<_>>()? })
    }
}

/// Random inputs of the path-length step.
pub struct PathInputs {
    pub batch: BatchInputs,
    /// `[n, H, W, 3]`, already divided by √(H·W).
    pub y: Tensor,
}

/// Everything that an iteration reads besides the state.
pub struct Inputs {
    /// `[batch, H, W, 3]` in [−1, 1].
    pub real: Tensor,
    /// `[given_fakes, H, W, 3]` that D judges as fake behind the generated ones.
    pub given_fakes: Option<Tensor>,
    /// The fakes of D's step; `None`: the first of those of G's (`Hyper::same_fakes`).
    pub d: Option<BatchInputs>,
    /// The fakes of G's step.
    pub g: BatchInputs,
    pub r1: bool,
    pub path: Option<PathInputs>,
}

impl Inputs {
    /// The same inputs on another device.
    pub fn to_device(&self, device: &Device) -> Result<Inputs> {
        Ok(Inputs {
            real: self.real.to_device(device)?,
            given_fakes: self.given_fakes.as_ref().map(|t| t.to_device(device)).transpose()?,
            d: self.d.as_ref().map(|d| d.to_device(device)).transpose()?,
            g: self.g.to_device(device)?,
            r1: self.r1,
            path: match &self.path {
                None => None,
                Some(p) => Some(PathInputs { batch: p.batch.to_device(device)?, y: p.y.to_device(device)? }),
            },
        })
    }

    /// How many of the images that D judges as fake are generated.
    pub(super) fn generated(&self) -> usize {
        self.real.dim(0) - self.given_fakes.as_ref().map_or(0, |given| given.dim(0))
    }
}

/// A draw that has not been made: where it begins, and its shape.
pub(super) type Draw = (Random, Vec<usize>);

/// Latents and noise of one batch, not drawn yet.
pub(super) struct BatchDraws {
    n: usize,
    z1: Random,
    /// Second latents, and the first layer that takes them.
    mixed: Option<(Random, usize)>,
    noise: Vec<Draw>,
}

/// The random inputs of one iteration, not drawn yet.
pub(super) struct Draws {
    latent: usize,
    /// Real images of a batch; what follows are given fakes.
    real: usize,
    /// `None` where D judges G's.
    d: Option<BatchDraws>,
    g: BatchDraws,
    pub r1: bool,
    path: Option<(BatchDraws, Draw)>,
}

/// How second latents are told.
#[derive(Clone, Copy)]
pub(super) enum Mixing<'a> {
    /// There are some where a batch is mixed.
    AsDrawn,
    /// There are always some; rows `[D | G | path] × layers`, of the batches that there are, say which layer takes which
    /// (`Styles::Chosen`).
    ByChoice(&'a Tensor),
}

impl Draws {
    fn batches(&self) -> impl Iterator<Item = &BatchDraws> {
        self.d.iter().chain([&self.g]).chain(self.path.as_ref().map(|(batch, _)| batch))
    }

    pub fn has_path(&self) -> bool {
        self.path.is_some()
    }

    /// All draws, in the order in which `inputs` wants their results.
    pub fn list(&self, mixing: Mixing) -> Vec<Draw> {
        let mut list = Vec::new();
        for batch in self.batches() {
            let latents = vec![batch.n, self.latent];
            list.push((batch.z1, latents.clone()));
            match (batch.mixed, mixing) {
                (Some((z2, _)), _) => list.push((z2, latents)),
                // Nobody takes it.
                (None, Mixing::ByChoice(_)) => list.push((batch.z1, latents)),
                (None, Mixing::AsDrawn) => {}
            }
            list.extend(batch.noise.iter().cloned());
        }
        list.extend(self.path.iter().map(|(_, y)| y.clone()));
        list
    }

    /// Which layer takes which latents, for `Mixing::ByChoice`: `[3 · layers, 2]`.
    pub fn choices(&self, layers: usize) -> Tensor {
        let mut rows = Vec::with_capacity(6 * layers);
        for batch in self.batches() {
            let crossover = batch.mixed.map_or(layers, |(_, crossover)| crossover);
            rows.extend((0..layers).flat_map(|i| if i < crossover { [1.0_f32, 0.0] } else { [0.0, 1.0] }));
        }
        rows.resize(6 * layers, 0.0);
        Tensor::from_vec(&[3 * layers, 2], rows)
    }

    /// The inputs made of a batch (the real images, then the given fakes) and of `drawn`, the results of `list`.
    pub fn inputs(&self, batch_images: &Tensor, drawn: Vec<Tensor>, mixing: Mixing) -> Result<Inputs> {
        let mut drawn = drawn.into_iter();
        let mut next = || drawn.next().expect("one result per draw");
        let mut indices = 0..;
        let mut batch = |at: &BatchDraws| -> Result<BatchInputs> {
            let (z1, index) = (next(), indices.next().expect("endless"));
            let styles = match (mixing, at.mixed) {
                (Mixing::ByChoice(all), _) => {
                    let layers = all.dim(0) / 3;
                    Styles::Chosen { z1, z2: next(), choice: all.rows(index * layers, layers)? }
                }
                (Mixing::AsDrawn, Some((_, crossover))) => Styles::Mixed { z1, z2: next(), crossover },
                (Mixing::AsDrawn, None) => Styles::One(z1),
            };
            Ok(BatchInputs { styles, noise: at.noise.iter().map(|_| next()).collect() })
        };
        let d = self.d.as_ref().map(&mut batch).transpose()?;
        let g = batch(&self.g)?;
        let path = self.path.as_ref().map(|(at, _)| batch(at)).transpose()?;
        let path = match path {
            None => None,
            Some(batch) => {
                let y = Var::constant(next());
                let size = y.dim(1) as f64;
                Some(PathInputs { batch, y: scale(&y, 1.0 / size)?.value().clone() })
            }
        };
        let given = batch_images.dim(0) - self.real;
        let given_fakes = (given > 0).then(|| batch_images.rows(self.real, given)).transpose()?;
        Ok(Inputs { real: batch_images.rows(0, self.real)?, given_fakes, d, g, r1: self.r1, path })
    }
}

impl Trainer {
    /// Passes over the latents of `n` images, mixed with the run's probability.
    fn pass_styles(&self, n: usize, rng: &mut Random) -> (Random, Option<(Random, usize)>) {
        let config = self.generator.config();
        let z1 = rng.skip(n * config.latent);
        let mixed = ((rng.unit() as f64) < self.hyper.mixing).then(|| {
            let z2 = rng.skip(n * config.latent);
            // Uniform in 1 … layers − 1, one draw for the batch.
            (z2, 1 + rng.below(config.style_layers() - 1))
        });
        (z1, mixed)
    }

    fn pass_batch(&self, n: usize, rng: &mut Random) -> BatchDraws {
        let (z1, mixed) = self.pass_styles(n, rng);
        let noise = self.generator.noise_shapes(n).map(|shape| (rng.skip(shape.iter().product()), shape.to_vec())).collect();
        BatchDraws { n, z1, mixed, noise }
    }

    /// Latents for `n` images, mixed with the run's probability, on the host.
    pub fn draw_styles(&self, n: usize, rng: &mut Random) -> Styles {
        let (mut z1, mixed) = self.pass_styles(n, rng);
        let shape = [n, self.generator.config().latent];
        match mixed {
            None => Styles::One(z1.normal(&shape)),
            Some((mut z2, crossover)) => Styles::Mixed { z1: z1.normal(&shape), z2: z2.normal(&shape), crossover },
        }
    }

    /// Passes over the random part of iteration `state.iteration` in the state's stream.
    pub(super) fn pass_inputs(&self, state: &mut GanState) -> Draws {
        let (h, i) = (&self.hyper, state.iteration);
        let config = self.generator.config();
        let rng = &mut state.rng;
        Draws {
            latent: config.latent,
            real: h.batch,
            d: (!h.same_fakes).then(|| self.pass_batch(h.batch - h.given_fakes, rng)),
            g: self.pass_batch(h.batch, rng),
            r1: h.r1_due(i),
            path: h.path_due(i).then(|| {
                let n = (h.batch / h.path_shrink).max(1);
                let batch = self.pass_batch(n, rng);
                let y = vec![n, config.size, config.size, 3];
                (batch, (rng.skip(y.iter().product()), y))
            }),
        }
    }

    /// Draws the random part of iteration `state.iteration` on the host. `batch`: the real images, then the given fakes.
    pub fn draw_inputs(&self, state: &mut GanState, batch: &Tensor) -> Result<Inputs> {
        let draws = self.pass_inputs(state);
        let drawn = draws.list(Mixing::AsDrawn).into_iter().map(|(mut at, shape)| at.normal(&shape)).collect();
        draws.inputs(batch, drawn, Mixing::AsDrawn)
    }
}

impl Hyper {
    fn r1_due(&self, iteration: u64) -> bool {
        self.r1_weight > 0.0 && iteration.is_multiple_of(self.r1_every)
    }

    fn path_due(&self, iteration: u64) -> bool {
        self.path_weight > 0.0 && iteration.is_multiple_of(self.path_every)
    }
}
