//! Matrix product; its derivatives are matrix products with other transpositions.

use super::grads;
use crate::autograd::{Io, Rule, Var};
use crate::error::Result;
use crate::ops::matmul::{self as ops, Read};

struct MatmulRule {
    ra: Read,
    rb: Read,
}

impl Rule for MatmulRule {
    fn op(&self) -> &'static str {
        "matmul"
    }
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
        let (a, b) = (&io.inputs[0], &io.inputs[1]);
        grads![
            need[0] => match self.ra {
                Read::Plain => matmul(g, Read::Plain, b, self.rb.flipped())?,
                Read::Transposed => matmul(b, self.rb, g, Read::Transposed)?,
            },
            need[1] => match self.rb {
                Read::Plain => matmul(a, self.ra.flipped(), g, Read::Plain)?,
                Read::Transposed => matmul(g, Read::Transposed, a, self.ra)?,
            },
        ]
    }
}

/// `op(a) · op(b)` of two matrices.
pub fn matmul(a: &Var, ra: Read, b: &Var, rb: Read) -> Result<Var> {
    Ok(Var::from_op(ops::matmul(a.value(), ra, b.value(), rb)?, &[a, b], MatmulRule { ra, rb }))
}
