//! `recant reproduce`: experiments of the paper, one file each.

mod gaussians;

use clap::Subcommand;

use super::Global;
use crate::error::Result;

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Reproduce {
    /// Points in the plane: a GAN of eight Gaussians unlearns two of them, in seconds
    Gaussians(gaussians::Gaussians),
}

impl Reproduce {
    pub fn run(&self, global: &Global) -> Result<()> {
        match self {
            Reproduce::Gaussians(c) => c.run(global),
        }
    }
}
