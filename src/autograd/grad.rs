//! The engine: gradients of outputs by targets, as `Var`s.

use std::collections::{BTreeMap, HashSet};

use super::{Io, Var, add, rules};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Whether the gradients will be differentiated again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Gradients carry no history; each is dropped as soon as it is used.
    Last,
    /// Gradients are differentiable themselves.
    Differentiable,
}

/// `Σ_outputs ∂ sum(output) / ∂ target` for each target. `None`: the outputs do not depend on that target. Only what
/// leads from the outputs to a target is computed; contributions are added in order of node ids, so results are
/// reproducible.
pub fn grad(outputs: &[&Var], targets: &[&Var], order: Order) -> Result<Vec<Option<Var>>> {
    let one = |v: &&Var| -> Result<Var> { Ok(Var::constant(Tensor::full_on(v.shape(), 1.0, v.dtype(), &v.value().device())?)) };
    let seeds = outputs.iter().map(one).collect::<Result<Vec<_>>>()?;
    grad_seeded(outputs, &seeds, targets, order)
}

/// As `grad`, with given gradients of the outputs instead of ones.
pub fn grad_seeded(outputs: &[&Var], seeds: &[Var], targets: &[&Var], order: Order) -> Result<Vec<Option<Var>>> {
    for (o, s) in outputs.iter().zip(seeds) {
        if o.shape() != s.shape() {
            return Err(Error::shape("grad", format!("seed {:?} for output {:?}", s.shape(), o.shape())));
        }
    }
    let leading = leading_to(outputs, targets);
    let wanted: HashSet<u64> = targets.iter().map(|t| t.id()).collect();
    let mut done: BTreeMap<u64, Var> = BTreeMap::new();
    // Keyed by id: taking the largest first visits every node after all nodes that depend on it.
    let mut pending: BTreeMap<u64, (Var, Var)> = BTreeMap::new();
    for (output, seed) in outputs.iter().zip(seeds) {
        if leading.contains(&output.id()) {
            accumulate(&mut pending, output, seed.clone())?;
        }
    }
    while let Some((id, (var, gradient))) = pending.pop_last() {
        if wanted.contains(&id) {
            done.insert(id, gradient.clone());
        }
        let Some(history) = &var.0.history else { continue };
        let need: Vec<bool> = history.inputs.iter().map(|i| leading.contains(&i.id())).collect();
        if !need.contains(&true) {
            continue;
        }
        let detached;
        let (inputs, output) = match order {
            Order::Differentiable => (&history.inputs, var.clone()),
            Order::Last => {
                detached = history.inputs.iter().map(Var::detach).collect::<Vec<_>>();
                (&detached, var.detach())
            }
        };
        let gradients = history.rule.vjp(&Io { inputs, output: &output }, &gradient, &need)?;
        drop(gradient);
        for ((input, gradient), needed) in history.inputs.iter().zip(gradients).zip(&need) {
            let Some(gradient) = gradient.filter(|_| *needed) else { continue };
            if gradient.shape() != input.shape() {
                return Err(Error::shape(history.rule.op(), format!("rule made gradient {:?} for input {:?}", gradient.shape(), input.shape())));
            }
            accumulate(&mut pending, input, gradient)?;
        }
    }
    Ok(targets.iter().map(|t| done.get(&t.id()).cloned()).collect())
}

fn accumulate(pending: &mut BTreeMap<u64, (Var, Var)>, at: &Var, gradient: Var) -> Result<()> {
    let sum = match pending.remove(&at.id()) {
        Some((_, earlier)) => add(&earlier, &gradient)?,
        None => gradient,
    };
    pending.insert(at.id(), (at.clone(), sum));
    Ok(())
}

/// Ids of all nodes between `outputs` and `targets`, ends included.
fn leading_to(outputs: &[&Var], targets: &[&Var]) -> HashSet<u64> {
    // Every node reachable from the outputs, each after its inputs (ids grow along edges).
    let mut reached: BTreeMap<u64, &Var> = BTreeMap::new();
    let mut waiting: Vec<&Var> = outputs.to_vec();
    let lowest = targets.iter().map(|t| t.id()).min().unwrap_or(u64::MAX);
    while let Some(v) = waiting.pop() {
        // A node older than every target cannot depend on one.
        if !v.0.tracked || v.id() < lowest || reached.insert(v.id(), v).is_some() {
            continue;
        }
        if let Some(history) = &v.0.history {
            waiting.extend(&history.inputs);
        }
    }
    let mut leading: HashSet<u64> = targets.iter().map(|t| t.id()).collect();
    for (id, v) in reached {
        if let Some(history) = &v.0.history
            && history.inputs.iter().any(|i| leading.contains(&i.id()))
        {
            leading.insert(id);
        }
    }
    leading
}

/// Gradient of `Σ outputs` by targets where a missing dependence is a zero gradient: what an optimiser step takes.
pub fn grad_or_zero(outputs: &[&Var], targets: &[&Var], order: Order) -> Result<Vec<Var>> {
    let found = grad(outputs, targets, order)?;
    found.into_iter().zip(targets).map(|(g, t)| g.map_or_else(|| rules::zeros_like(t), Ok)).collect()
}
