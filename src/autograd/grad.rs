//! The engine: gradients of outputs by targets, as `Var`s.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Io, Var, add, rules};
use crate::error::{Error, Result};
use crate::ops::conv2d::{WeightGrad, conv2d_weight_grad_squared};
use crate::ops::elementwise::{Zip, zip};
use crate::ops::optimizer::accumulate_squares;
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
    backward(outputs, seeds, targets, order, None)
}

/// Weight gradients that were left to be computed, by the target's id.
type Deferred = HashMap<u64, Vec<WeightGrad>>;

/// Gradients of the targets. With `deferred`, what is a convolution's weight gradient of a leaf goes there instead.
fn backward(outputs: &[&Var], seeds: &[Var], targets: &[&Var], order: Order, mut deferred: Option<&mut Deferred>) -> Result<Vec<Option<Var>>> {
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
        let io = Io { inputs, output: &output };
        let gradients = match &mut deferred {
            None => history.rule.vjp(&io, &gradient, &need)?,
            Some(deferred) => {
                let leave: Vec<bool> = history.inputs.iter().map(|input| wanted.contains(&input.id()) && input.0.history.is_none()).collect();
                let (gradients, left) = history.rule.vjp_leaving(&io, &gradient, &need, &leave)?;
                if let Some((i, left)) = left {
                    deferred.entry(history.inputs[i].id()).or_default().push(left);
                }
                gradients
            }
        };
        drop(gradient);
        for ((input, gradient), needed) in history.inputs.iter().zip(gradients).zip(&need) {
            let Some(gradient) = gradient.filter(|_| *needed) else { continue };
            if gradient.shape() != input.shape() {
                return Err(Error::shape(history.rule.op(), format!("rule made gradient {:?} for input {:?}", gradient.shape(), input.shape())));
            }
            if gradient.dtype() != input.dtype() {
                return Err(Error::shape(history.rule.op(), format!("rule made a gradient of {:?} for an input of {:?}", gradient.dtype(), input.dtype())));
            }
            accumulate(&mut pending, input, gradient)?;
        }
    }
    Ok(targets.iter().map(|t| done.get(&t.id()).cloned()).collect())
}

/// Adds `weight · (∂ output / ∂ target)²` to `into`, for each target from its element `offsets[i]` on. On a GPU the
/// gradient of a convolution's weight is squared where it is computed, and never stored.
pub fn accumulate_squared_grads(output: &Var, targets: &[&Var], offsets: &[usize], weight: f64, into: &mut Tensor) -> Result<()> {
    let one = Var::constant(Tensor::full_on(output.shape(), 1.0, output.dtype(), &output.value().device())?);
    let mut deferred = Deferred::new();
    let found = backward(&[output], &[one], targets, Order::Last, Some(&mut deferred))?;
    let (mut dense, mut places) = (Vec::new(), Vec::new());
    for ((target, gradient), &offset) in targets.iter().zip(found).zip(offsets) {
        let gradient = gradient.map(|g| g.value().clone());
        match (deferred.remove(&target.id()).as_deref(), gradient) {
            (Some([left]), rest) => conv2d_weight_grad_squared(left, 1, rest.as_ref(), weight, into, offset)?,
            // A weight of several convolutions: their sum is squared.
            (Some(several), rest) => {
                let all = several.iter().map(WeightGrad::compute).chain(rest.map(Ok));
                dense.push(all.reduce(|sum, next| zip(&sum?, &next?, Zip::Add)).expect("several")?);
                places.push(offset);
            }
            (None, Some(gradient)) => {
                dense.push(gradient);
                places.push(offset);
            }
            (None, None) => {}
        }
    }
    accumulate_squares(into, &dense, &places, weight)
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
    or_zero(grad(outputs, targets, order)?, targets)
}

/// Gradients by targets, zeros where there is none.
pub fn or_zero(found: Vec<Option<Var>>, targets: &[&Var]) -> Result<Vec<Var>> {
    found.into_iter().zip(targets).map(|(g, t)| g.map_or_else(|| rules::zeros_like(t), Ok)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::autograd::{Rule, Scales, conv2d, mul, square, sum};
    use crate::ops::conv2d::Conv2d;
    use crate::ops::random::Random;
    use crate::tensor::DType;

    /// Squares of gradients that are left to be computed are those of gradients that are computed: a weight of one
    /// convolution that the loss also reaches otherwise, one of two convolutions, one without a convolution.
    #[test]
    fn squared_gradients_are_the_squares_of_gradients() {
        let mut random = Random::new(4, 0);
        let x = Var::constant(random.normal(&[2, 4, 4, 3]));
        let [one, two] = [[5, 3, 3, 3], [3, 3, 3, 3]].map(|shape| Var::leaf(random.normal(&shape)));
        let plain = Var::leaf(random.normal(&[2, 4, 4, 5]));
        let y = conv2d(&x, &two, Scales::NONE, SPEC).and_then(|y| conv2d(&y, &two, Scales::NONE, SPEC)).unwrap();
        let y = mul(&conv2d(&y, &one, Scales::NONE, SPEC).unwrap(), &plain).unwrap();
        let loss = add(&sum(&y).unwrap(), &sum(&square(&one).unwrap()).unwrap()).unwrap();
        let targets = [&plain, &one, &two];
        let lengths = targets.map(|t| t.value().len());
        let offsets = [2, 2 + lengths[0], 2 + lengths[0] + lengths[1]];
        let mut squares = Tensor::zeros(&[offsets[2] + lengths[2]], DType::F32);
        accumulate_squared_grads(&loss, &targets, &offsets, 0.5, &mut squares).unwrap();
        let mut want = vec![0.0; 2];
        for gradient in grad_or_zero(&[&loss], &targets, Order::Last).unwrap() {
            want.extend(gradient.value().as_slice::<f32>().iter().map(|g| 0.5 * g * g));
        }
        for (i, (got, want)) in squares.as_slice::<f32>().iter().zip(&want).enumerate() {
            // Sums of a few hundred products in f32.
            assert!((got - want).abs() <= 1e-4 * want.abs().max(1.0), "{i}: {got} for {want}");
        }
    }

    /// A convolution that writes down which gradients it is asked for.
    struct Probe {
        asked: Arc<Mutex<Vec<Vec<bool>>>>,
    }

    const SPEC: Conv2d = Conv2d::square(1, 1);

    impl Rule for Probe {
        fn op(&self) -> &'static str {
            "probe"
        }
        fn vjp(&self, io: &Io, g: &Var, need: &[bool]) -> Result<Vec<Option<Var>>> {
            self.asked.lock().expect("one thread").push(need.to_vec());
            // The gradients of a real convolution of the same inputs, asked for in the same way. Inputs of the last order
            // come detached; as leaves they make the convolution keep its rule.
            let leaf = |v: &Var| if v.is_tracked() { v.clone() } else { Var::leaf(v.value().clone()) };
            let y = conv2d(&leaf(&io.inputs[0]), &leaf(&io.inputs[1]), Scales::NONE, SPEC)?;
            let history = y.0.history.as_ref().expect("tracked inputs");
            history.rule.vjp(&Io { inputs: &history.inputs, output: &y }, g, need)
        }
    }

    /// R1: the inner gradient, by the images, must not compute weight gradients; the outer one must.
    #[test]
    fn the_inner_gradient_of_r1_asks_for_images_only() {
        let mut random = Random::new(1, 0);
        let (x, w) = (Var::leaf(random.normal(&[2, 4, 4, 3])), Var::leaf(random.normal(&[5, 3, 3, 3])));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let value = crate::ops::conv2d::conv2d(x.value(), w.value(), None, None, SPEC).unwrap();
        let y = Var::from_op(value, &[&x, &w], Probe { asked: asked.clone() });
        let inner = grad_or_zero(&[&square(&y).unwrap()], &[&x], Order::Differentiable).unwrap();
        assert_eq!(*asked.lock().unwrap(), [[true, false]]);
        let penalty = sum(&square(&inner[0]).unwrap()).unwrap();
        let outer = grad_or_zero(&[&penalty], &[&w], Order::Last).unwrap();
        assert!(asked.lock().unwrap()[1..].iter().all(|need| *need == [false, true]));
        assert!(outer[0].value().to_f64_vec().iter().any(|v| *v != 0.0));
    }

    /// What a rule returns for what it was not asked for is nothing, so nothing was launched for it.
    #[test]
    fn the_convolution_computes_only_what_is_asked() {
        let mut random = Random::new(2, 0);
        let (x, w) = (Var::leaf(random.normal(&[1, 4, 4, 2])), Var::leaf(random.normal(&[3, 3, 3, 2])));
        let y = conv2d(&x, &w, Scales::NONE, SPEC).unwrap();
        let history = y.0.history.as_ref().unwrap();
        for need in [[true, false], [false, true], [true, true]] {
            let gradients = history.rule.vjp(&Io { inputs: &history.inputs, output: &y }, &y, &need).unwrap();
            assert_eq!(gradients.iter().map(Option::is_some).collect::<Vec<_>>(), need);
        }
        let unused = mul(&x, &x).unwrap();
        assert!(grad(&[&unused], &[&w], Order::Last).unwrap()[0].is_none());
    }
}
