//! L4: history and derivatives. A `Var` is an immutable tensor with, if a tracked leaf leads to it, the rule that
//! made it. A rule returns `Var`s made by the same functions, so `grad` can be applied to its own results: R1 and
//! path length need no double-backward code. There is no recording mode; recording is a property of values.

mod grad;
pub mod gradcheck;
mod rules;

pub use grad::{Order, accumulate_squared_grads, grad, grad_or_zero, grad_seeded, or_zero};
pub use rules::*;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::ops::conv2d::WeightGrad;
use crate::tensor::{DType, Tensor};

/// How one op's output depends on its inputs.
pub trait Rule: Send + Sync {
    /// The op's name, for errors.
    fn op(&self) -> &'static str;

    /// The gradient of each input for which `need` holds, given the gradient `g` of the output.
    fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>>;

    /// As `vjp`; an input for which `leave` holds, too, may get its gradient as a convolution's weight gradient that is still
    /// to be computed, and none otherwise.
    fn vjp_leaving(&self, io: &Io, g: &Var, need: &[bool], _leave: &[bool]) -> Result<Gradients> {
        Ok((self.vjp(io, g, need)?, None))
    }
}

/// Gradients of a node's inputs, and the one that was left to be computed with the input that it is of.
pub type Gradients = (Vec<Option<Var>>, Option<(usize, WeightGrad)>);

/// What a rule sees of its node.
pub struct Io<'a> {
    pub inputs: &'a [Var],
    pub output: &'a Var,
}

struct History {
    rule: Box<dyn Rule>,
    inputs: Vec<Var>,
}

struct Node {
    id: u64,
    tracked: bool,
    value: Tensor,
    history: Option<History>,
}

/// A value that may remember where it came from. Cloning shares it.
#[derive(Clone)]
pub struct Var(Arc<Node>);

/// Ids grow with creation, so an op's output always has a larger id than its inputs.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Var {
    fn new(value: Tensor, tracked: bool, history: Option<History>) -> Var {
        Var(Arc::new(Node { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), tracked, value, history }))
    }

    /// A leaf that gradients can be asked for.
    pub fn leaf(value: Tensor) -> Var {
        Var::new(value, true, None)
    }

    /// A value without history: data, noise, anything that is not differentiated.
    pub fn constant(value: Tensor) -> Var {
        Var::new(value, false, None)
    }

    /// The output of `rule` on `inputs`; forgets both when no input is tracked.
    pub(crate) fn from_op(value: Tensor, inputs: &[&Var], rule: impl Rule + 'static) -> Var {
        if inputs.iter().any(|v| v.0.tracked) {
            let inputs = inputs.iter().map(|v| (*v).clone()).collect();
            Var::new(value, true, Some(History { rule: Box::new(rule), inputs }))
        } else {
            Var::constant(value)
        }
    }

    /// The same value without history.
    pub fn detach(&self) -> Var {
        if self.0.tracked { Var::constant(self.0.value.clone()) } else { self.clone() }
    }

    pub fn value(&self) -> &Tensor {
        &self.0.value
    }

    pub fn shape(&self) -> &[usize] {
        self.0.value.shape()
    }

    pub fn dim(&self, i: usize) -> usize {
        self.0.value.dim(i)
    }

    pub fn dtype(&self) -> DType {
        self.0.value.dtype()
    }

    /// Whether a leaf leads here.
    pub fn is_tracked(&self) -> bool {
        self.0.tracked
    }

    /// The value of a one-element `Var`.
    pub fn item(&self) -> Result<f64> {
        self.0.value.item()
    }

    fn id(&self) -> u64 {
        self.0.id
    }
}

impl Drop for Node {
    /// A long chain is taken apart step by step: dropping it recursively would overflow the stack.
    fn drop(&mut self) {
        let Some(history) = self.history.take() else { return };
        let mut waiting = history.inputs;
        while let Some(Var(node)) = waiting.pop() {
            if let Some(mut alone) = Arc::into_inner(node)
                && let Some(history) = alone.history.take()
            {
                waiting.extend(history.inputs);
            }
        }
    }
}
