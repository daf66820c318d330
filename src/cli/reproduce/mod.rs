//! `recant reproduce`: experiments of the paper.

mod chart;
mod experiment;
mod gaussians;
mod lab;
mod paper;
mod settings;
mod sweep;

use clap::Subcommand;

use super::Global;
use crate::error::Result;
use settings::Experiment;

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Reproduce {
    /// Points in the plane: a GAN of eight Gaussians unlearns two of them, in seconds
    Gaussians(gaussians::Gaussians),
    /// Table 1: digits 1, 4 and 8 of MNIST
    Mnist(experiment::ExperimentArgs),
    /// Bangs, Hat, Bald and Eyeglasses of CelebA-HQ
    CelebaHq(experiment::ExperimentArgs),
    /// Table 2: cat, dog and wild of AFHQ
    Afhq(experiment::ExperimentArgs),
    /// EL2, NL2 and IL2 over their strengths on MNIST, and a strength of each by a rule that does not see the evaluation
    Sweep(sweep::Sweep),
}

impl Reproduce {
    pub fn run(&self, global: &Global) -> Result<()> {
        match self {
            Reproduce::Gaussians(c) => c.run(global),
            Reproduce::Mnist(c) => c.run(global, Experiment::Mnist),
            Reproduce::CelebaHq(c) => c.run(global, Experiment::CelebaHq),
            Reproduce::Afhq(c) => c.run(global, Experiment::Afhq),
            Reproduce::Sweep(c) => c.run(global),
        }
    }
}
