//! Every network's parameters are one contiguous f32 slab with a table of named segments. Gradient moments, EMA, EWC
//! anchor, Fisher diagonal and centroids are slabs of the same layout, so the method's own passes are single passes
//! over memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::autograd::Var;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::layout as ops;
use crate::ops::random::Random;
use crate::tensor::{DType, Tensor};

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Constant(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in ±bound.
    Uniform(f64),
}

/// One named parameter.
#[derive(Clone, Debug)]
pub struct Segment {
    /// PyTorch's name.
    pub name: String,
    /// Shape in PyTorch's file.
    pub torch_shape: Vec<usize>,
    /// `torch_shape` regrouped into the dimensions that `order` permutes.
    view: Vec<usize>,
    /// Engine dimension `i` is dimension `order[i]` of `view`.
    order: Vec<usize>,
    /// Shape in the engine.
    pub shape: Vec<usize>,
    /// First element in the slab.
    pub offset: usize,
    pub init: Init,
}

impl Segment {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The table of a network's parameters, in PyTorch's registration order.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    segments: Vec<Segment>,
    index: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    pub fn new() -> Layout {
        Layout::default()
    }

    /// Adds a parameter which the engine keeps as PyTorch does.
    pub fn plain(&mut self, name: impl Into<String>, shape: &[usize], init: Init) {
        let order: Vec<usize> = (0..shape.len()).collect();
        self.permuted(name, shape, shape, &order, shape, init);
    }

    /// Adds a parameter stored by PyTorch as `torch_shape`, read as `view`, permuted by `order`, kept as `shape`.
    pub fn permuted(&mut self, name: impl Into<String>, torch_shape: &[usize], view: &[usize], order: &[usize], shape: &[usize], init: Init) {
        let name = name.into();
        let len: usize = shape.iter().product();
        assert_eq!(torch_shape.iter().product::<usize>(), len, "{name}: one number of elements in file and engine");
        assert!(self.index.insert(name.clone(), self.segments.len()).is_none(), "{name} is declared twice");
        let segment = Segment {
            name,
            torch_shape: torch_shape.to_vec(),
            view: view.to_vec(),
            order: order.to_vec(),
            shape: shape.to_vec(),
            offset: self.len,
            init,
        };
        self.segments.push(segment);
        self.len += len;
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Number of elements of the slab.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First element of each segment.
    pub fn offsets(&self) -> Vec<usize> {
        self.segments.iter().map(|s| s.offset).collect()
    }

    pub fn segment(&self, name: &str) -> Option<&Segment> {
        self.index.get(name).map(|i| &self.segments[*i])
    }
}

/// A slab of f32 in some layout: parameters, or anything that goes along with them.
#[derive(Clone, Debug)]
pub struct ParamSlab {
    layout: Arc<Layout>,
    values: Tensor,
}

impl ParamSlab {
    /// Parameters at their initial values, drawn from `rng` in the order of the table.
    pub fn init(layout: &Arc<Layout>, rng: &mut Random) -> ParamSlab {
        let mut values = Vec::with_capacity(layout.len());
        for s in layout.segments() {
            match s.init {
                Init::Constant(v) => values.resize(values.len() + s.len(), v as f32),
                Init::Normal(std) => values.extend(rng.normal(&[s.len()]).as_slice::<f32>().iter().map(|v| v * std as f32)),
                Init::Uniform(bound) => {
                    values.extend(rng.uniform(&[s.len()]).as_slice::<f32>().iter().map(|v| (2.0 * v - 1.0) * bound as f32))
                }
            }
        }
        ParamSlab { layout: layout.clone(), values: Tensor::from_vec(&[layout.len()], values) }
    }

    /// All zeros: the start of moments and Fisher diagonals.
    pub fn zeros(layout: &Arc<Layout>) -> ParamSlab {
        ParamSlab { layout: layout.clone(), values: Tensor::zeros(&[layout.len()], DType::F32) }
    }

    /// Takes a whole slab of values.
    pub fn from_values(layout: &Arc<Layout>, values: Vec<f32>) -> Result<ParamSlab> {
        if values.len() != layout.len() {
            return Err(Error::shape("parameters", format!("{} values for a layout of {}", values.len(), layout.len())));
        }
        Ok(ParamSlab { layout: layout.clone(), values: Tensor::from_vec(&[layout.len()], values) })
    }

    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All elements, `[len]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// All elements for writing; fails while a graph still refers to them.
    pub fn values_mut(&mut self) -> &mut Tensor {
        &mut self.values
    }

    /// All elements of a slab on the host.
    pub fn as_slice(&self) -> &[f32] {
        self.values.as_slice()
    }

    /// The same slab on another device; shares the memory when it is there already.
    pub fn to_device(&self, device: &Device) -> Result<ParamSlab> {
        Ok(ParamSlab { layout: self.layout.clone(), values: self.values.to_device(device)? })
    }

    /// A copy that shares no memory: what a training run changes must not be seen by others.
    pub fn deep_clone(&self) -> Result<ParamSlab> {
        Ok(ParamSlab { layout: self.layout.clone(), values: self.values.deep_clone()? })
    }

    fn vars(&self, mut make: impl FnMut(Tensor) -> Var) -> Params {
        let view = |s: &Segment| self.values.segment(s.offset, &s.shape).expect("segments lie inside their slab");
        Params { layout: self.layout.clone(), vars: self.layout.segments().iter().map(|s| make(view(s))).collect() }
    }

    /// The parameters as leaves that gradients can be asked for.
    pub fn leaves(&self) -> Params {
        self.vars(Var::leaf)
    }

    /// Whether all are numbers; of a slab on the host.
    pub fn is_finite(&self) -> bool {
        self.as_slice().iter().all(|v| v.is_finite())
    }

    /// Those that `tracked` names as leaves, the others as constants.
    pub fn leaves_where(&self, tracked: &dyn Fn(&str) -> bool) -> Params {
        let mut segments = self.layout.segments().iter();
        self.vars(|t| if tracked(&segments.next().expect("one value per segment").name) { Var::leaf(t) } else { Var::constant(t) })
    }

    /// The parameters as constants: forward passes record nothing.
    pub fn constants(&self) -> Params {
        self.vars(Var::constant)
    }

    /// The parameters by name in PyTorch's shapes and order, on the host. Panics when a GPU fails; `to_device` reports
    /// that.
    pub fn to_torch(&self) -> BTreeMap<String, Tensor> {
        let values = self.values.to_device(&Device::Cpu).unwrap_or_else(|e| panic!("{e}"));
        self.layout
            .segments()
            .iter()
            .map(|s| {
                let engine = values.segment(s.offset, &s.shape).expect("segments lie inside their slab");
                let permuted: Vec<usize> = s.order.iter().map(|&d| s.view[d]).collect();
                let mut inverse = vec![0; s.order.len()];
                for (to, from) in s.order.iter().enumerate() {
                    inverse[*from] = to;
                }
                let torch = engine
                    .reshape(&permuted)
                    .and_then(|t| ops::permute(&t, &inverse))
                    .and_then(|t| t.reshape(&s.torch_shape))
                    .expect("the table's shapes agree");
                (s.name.clone(), torch)
            })
            .collect()
    }

    /// Reads parameters by name from tensors in PyTorch's shapes; other names in `tensors` are left alone. `what` names
    /// the network in errors.
    pub fn from_torch(layout: &Arc<Layout>, tensors: &BTreeMap<String, Tensor>, what: &str) -> std::result::Result<ParamSlab, String> {
        let mut values = Vec::with_capacity(layout.len());
        for s in layout.segments() {
            let t = tensors.get(&s.name).ok_or_else(|| format!("{what} lacks the parameter {}", s.name))?;
            if t.shape() != s.torch_shape {
                return Err(format!("{what}: {} has shape {:?} where {:?} is needed", s.name, t.shape(), s.torch_shape));
            }
            let engine = t
                .to_dtype(DType::F32)
                .reshape(&s.view)
                .and_then(|t| ops::permute(&t, &s.order))
                .map_err(|e| e.to_string())?;
            values.extend_from_slice(engine.as_slice::<f32>());
        }
        Ok(ParamSlab { layout: layout.clone(), values: Tensor::from_vec(&[layout.len()], values) })
    }
}

/// The parameters of one network as `Var`s, for one graph.
#[derive(Clone)]
pub struct Params {
    layout: Arc<Layout>,
    vars: Vec<Var>,
}

impl Params {
    /// Given values, one per segment of the table and of its shape.
    pub fn from_vars(layout: &Arc<Layout>, vars: Vec<Var>) -> Params {
        assert!(layout.segments().iter().map(|s| &s.shape[..]).eq(vars.iter().map(Var::shape)), "one value of its shape per parameter");
        Params { layout: layout.clone(), vars }
    }

    /// The parameter of that name. Panics when there is none: names are the network's own.
    pub fn get(&self, name: &str) -> &Var {
        let i = self.layout.index.get(name).unwrap_or_else(|| panic!("no parameter is called {name}"));
        &self.vars[*i]
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.vars.first().map_or(Device::Cpu, |v| v.value().device())
    }

    /// All of them, in the order of the table.
    pub fn all(&self) -> Vec<&Var> {
        self.vars.iter().collect()
    }
}
