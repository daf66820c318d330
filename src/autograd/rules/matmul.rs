//! Matrix product; its derivatives are matrix products with other transpositions.

use super::grads;
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::matmul::{self as ops, Read};

struct MatmulRule {
    alpha: f64,
    ra: Read,
    rb: Read,
}

impl Rule for MatmulRule {
    fn op(&self) -> &'static str {
        "matmul"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let (a, b) = (&io.inputs[0], &io.inputs[1]);
        let product = |u: &Var, ru: Read, v: &Var, rv: Read| matmul_scaled(self.alpha, u, ru, v, rv);
        grads![
            need[0] => match self.ra {
                Read::Plain => product(g, Read::Plain, b, self.rb.flipped())?,
                Read::Transposed => product(b, self.rb, g, Read::Transposed)?,
            },
            need[1] => match self.rb {
                Read::Plain => product(a, self.ra.flipped(), g, Read::Plain)?,
                Read::Transposed => product(g, Read::Transposed, a, self.ra)?,
            },
        ]
    }
}

/// `op(a) · op(b)` of two matrices.
pub fn matmul(a: &Var, ra: Read, b: &Var, rb: Read) -> Result<Var> {
    matmul_scaled(1.0, a, ra, b, rb)
}

/// `alpha · op(a) · op(b)` of two matrices.
pub fn matmul_scaled(alpha: f64, a: &Var, ra: Read, b: &Var, rb: Read) -> Result<Var> {
    Ok(Var::from_op(ops::matmul_scaled(alpha, a.value(), ra, b.value(), rb)?, &[a, b], MatmulRule { alpha, ra, rb }))
}
