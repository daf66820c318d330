//! L2: n-dimensional arrays without history, on the host (f32, f64, or bf16's values kept as f32) or on a GPU (f32 or bf16). A `Tensor` is a contiguous,
//! immutable, cheaply cloned view (`shape`, `offset`) into shared storage, in row-major order of its shape. Activations
//! are channels-last `[N, H, W, C]`, convolution weights `[C_out, k_h, k_w, C_in]`.

mod host;

use std::sync::Arc;

use half::bf16;

use crate::device::cpu::{self, Buffer, Element};
use crate::device::cuda::{CudaBuffer, Mailbox};
use crate::device::{CudaDevice, Device};
use crate::error::{Error, Result};
pub use host::HostBuffer;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F64,
    /// Activations where that precision is asked for; nothing else. On the host an f32 keeps each value.
    Bf16,
}

impl DType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 => 8,
            DType::Bf16 => 2,
        }
    }

    /// The type of sums over such elements, and of the parameters that meet them.
    pub fn accumulator(self) -> DType {
        match self {
            DType::F32 | DType::Bf16 => DType::F32,
            DType::F64 => DType::F64,
        }
    }
}

/// Shared memory behind tensors.
#[derive(Clone, Debug)]
pub enum Storage {
    F32(Arc<HostBuffer<f32>>),
    /// Values of bf16, as f32.
    Rounded(Arc<HostBuffer<f32>>),
    F64(Arc<HostBuffer<f64>>),
    /// f32 or bf16 on a GPU.
    Cuda(Arc<CudaBuffer>, DType),
}

/// Element types that a tensor can hold, tied to their storage.
pub trait Scalar: Element {
    const DTYPE: DType;
    fn store(buffer: Arc<HostBuffer<Self>>) -> Storage;
    /// The memory, if elements are kept as this type.
    fn view(storage: &Storage) -> Option<&HostBuffer<Self>>;
    fn unique(storage: &mut Storage) -> Option<&mut [Self]>;
}

macro_rules! scalar {
    ($t:ty, $variant:ident $(or $other:ident)?) => {
        impl Scalar for $t {
            const DTYPE: DType = DType::$variant;
            fn store(buffer: Arc<HostBuffer<Self>>) -> Storage {
                Storage::$variant(buffer)
            }
            fn view(storage: &Storage) -> Option<&HostBuffer<Self>> {
                match storage {
                    Storage::$variant(b) $(| Storage::$other(b))? => Some(b),
                    _ => None,
                }
            }
            fn unique(storage: &mut Storage) -> Option<&mut [Self]> {
                match storage {
                    Storage::$variant(b) => Arc::get_mut(b).map(|b| &mut **b),
                    _ => None,
                }
            }
        }
    };
}
scalar!(f32, F32 or Rounded);
scalar!(f64, F64);

/// An n-dimensional array. Cloning shares the memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    offset: usize,
    storage: Storage,
}

impl Tensor {
    /// Takes `data`, row-major of `shape`. Panics if the lengths differ: that is a bug of the caller.
    pub fn from_vec<T: Scalar>(shape: &[usize], data: Vec<T>) -> Tensor {
        Tensor::from_buffer(shape, data.into())
    }

    /// The same of memory that is used again.
    pub fn from_buffer<T: Scalar>(shape: &[usize], data: Buffer<T>) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "a tensor's data must fill its shape {shape:?}");
        Tensor { shape: shape.to_vec(), offset: 0, storage: T::store(Arc::new(HostBuffer::new(data))) }
    }

    /// Copies a slice.
    pub fn from_slice<T: Scalar>(shape: &[usize], data: &[T]) -> Tensor {
        let mut v = Buffer::stale(data.len());
        v.copy_from_slice(data);
        Tensor::from_buffer(shape, v)
    }

    /// A tensor filled with `value`.
    pub fn full(shape: &[usize], value: f64, dtype: DType) -> Tensor {
        let n = shape.iter().product();
        match dtype {
            DType::F32 => {
                let mut v = Buffer::<f32>::stale(n);
                v.fill(value as f32);
                Tensor::from_buffer(shape, v)
            }
            DType::F64 => Tensor::from_vec(shape, vec![value; n]),
            DType::Bf16 => Tensor::full(shape, value, DType::F32).rounded(),
        }
    }

    pub fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::full(shape, 0.0, dtype)
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of dimension `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.shape[i]
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn dtype(&self) -> DType {
        match self.storage {
            Storage::F32(_) => DType::F32,
            Storage::Rounded(_) => DType::Bf16,
            Storage::F64(_) => DType::F64,
            Storage::Cuda(_, dtype) => dtype,
        }
    }

    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::F32(_) | Storage::Rounded(_) | Storage::F64(_) => Device::Cpu,
            Storage::Cuda(buffer, _) => Device::Cuda(buffer.device().clone()),
        }
    }

    /// The same elements on another device; shares the memory when they are there already. f64 stays on the host; bf16
    /// goes to another device as f32, which holds every one of its values.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        match (&self.storage, device) {
            (Storage::Cuda(buffer, dtype), Device::Cpu) => Ok(Tensor::from_vec(&self.shape, self.download(buffer, *dtype)?)),
            (Storage::Cuda(buffer, _), Device::Cuda(to)) if buffer.device() == to => Ok(self.clone()),
            (Storage::Cuda(..), Device::Cuda(_)) => self.to_device(&Device::Cpu)?.to_device(device),
            (Storage::F32(_) | Storage::Rounded(_) | Storage::F64(_), Device::Cpu) => Ok(self.clone()),
            (Storage::F32(_) | Storage::Rounded(_), Device::Cuda(to)) => {
                let elements = self.as_slice::<f32>();
                Ok(Tensor::from_cuda(&self.shape, to.upload(elements)?))
            }
            (Storage::F64(_), Device::Cuda(_)) => {
                Err(Error::Unsupported { op: "to_device", problem: format!("f64 on {device}; GPUs hold f32, convert before") })
            }
        }
    }

    fn download(&self, buffer: &CudaBuffer, dtype: DType) -> Result<Vec<f32>> {
        let (device, at) = (buffer.device(), self.offset * dtype.size());
        match dtype {
            DType::Bf16 => Ok(device.download::<bf16>(buffer, at, self.len())?.into_iter().map(bf16::to_f32).collect()),
            _ => device.download(buffer, at, self.len()),
        }
    }

    /// A tensor filled with `value` on a device.
    pub fn full_on(shape: &[usize], value: f64, dtype: DType, device: &Device) -> Result<Tensor> {
        let len = shape.iter().product();
        match (device, dtype) {
            (Device::Cpu, _) => Ok(Tensor::full(shape, value, dtype)),
            (Device::Cuda(d), DType::F32) => Ok(Tensor::from_cuda(shape, d.filled(len, value as f32)?)),
            (Device::Cuda(d), DType::Bf16) => Ok(Tensor::of_cuda(shape, d.filled_bf16(len, bf16::from_f64(value))?, dtype)),
            _ => Err(Error::Unsupported { op: "full", problem: format!("{dtype:?} on {device}; GPUs hold f32 and bf16") }),
        }
    }

    /// A copy that shares no memory.
    pub fn deep_clone(&self) -> Result<Tensor> {
        match &self.storage {
            Storage::F32(_) => Ok(Tensor::from_slice(&self.shape, self.as_slice::<f32>())),
            Storage::Rounded(_) => Ok(Tensor::from_slice(&self.shape, self.as_slice::<f32>()).kept_as(Storage::Rounded)),
            Storage::F64(_) => Ok(Tensor::from_slice(&self.shape, self.as_slice::<f64>())),
            Storage::Cuda(buffer, dtype) => {
                let copy = Tensor::uninitialised_cuda_of(&self.shape, *dtype, buffer.device())?;
                // SAFETY: this tensor's elements lie inside its buffer, the copy is a fresh buffer of as many.
                unsafe { buffer.device().copy(copy.cuda_pointer(), self.cuda_pointer(), self.len() * dtype.size())? };
                Ok(copy)
            }
        }
    }

    /// Takes a GPU buffer of f32, row-major of `shape`.
    pub(crate) fn from_cuda(shape: &[usize], buffer: CudaBuffer) -> Tensor {
        Tensor::of_cuda(shape, buffer, DType::F32)
    }

    fn of_cuda(shape: &[usize], buffer: CudaBuffer, dtype: DType) -> Tensor {
        Tensor { shape: shape.to_vec(), offset: 0, storage: Storage::Cuda(Arc::new(buffer), dtype) }
    }

    /// A tensor of f32 on a GPU whose elements nobody has written.
    pub(crate) fn uninitialised_cuda(shape: &[usize], device: &CudaDevice) -> Result<Tensor> {
        Tensor::uninitialised_cuda_of(shape, DType::F32, device)
    }

    /// The same of f32 or bf16.
    pub(crate) fn uninitialised_cuda_of(shape: &[usize], dtype: DType, device: &CudaDevice) -> Result<Tensor> {
        Ok(Tensor::of_cuda(shape, device.allocate_elements(shape.iter().product(), dtype.size())?, dtype))
    }

    /// Address of the first element, aligned to an element. Panics for a host tensor: ops dispatch on `device()` first.
    pub(crate) fn cuda_pointer(&self) -> u64 {
        match &self.storage {
            Storage::Cuda(buffer, dtype) => buffer.pointer() + (self.offset * dtype.size()) as u64,
            _ => panic!("dispatch on device() before asking for an address"),
        }
    }

    /// The same for writing in place, when nothing else refers to the memory. A bf16 copy of it is stale from then on.
    pub(crate) fn cuda_pointer_mut(&mut self) -> Result<u64> {
        self.cuda_buffer_mut()?.set_shadow_fresh(false);
        Ok(self.cuda_pointer())
    }

    /// The buffer that the tensor lies in, when nothing else refers to it. Panics for a host tensor, as `cuda_pointer`.
    pub(crate) fn cuda_buffer_mut(&mut self) -> Result<&mut CudaBuffer> {
        let Storage::Cuda(buffer, _) = &mut self.storage else { panic!("dispatch on device() before asking for a buffer") };
        Arc::get_mut(buffer).ok_or(Error::Shape { op: "cuda_buffer_mut", problem: "the memory is still referred to by a graph or a view".into() })
    }

    /// The address of a bf16 copy of f32 elements, rounded to nearest, where whoever wrote them has left one.
    pub(crate) fn cuda_shadow(&self) -> Option<u64> {
        match &self.storage {
            Storage::Cuda(buffer, DType::F32) => buffer.shadow_of(self.offset, self.len()),
            _ => None,
        }
    }

    /// Takes the elements of `from`. On a GPU they are copied to where these lie, so that the address stays.
    pub fn assign(&mut self, from: &Tensor) -> Result<()> {
        if self.shape != from.shape || self.dtype() != from.dtype() || self.device() != from.device() {
            return Err(Error::shape("assign", format!("{:?} on {} to {:?} on {}", from.shape, from.device(), self.shape, self.device())));
        }
        if let Device::Cuda(device) = self.device() {
            let to = self.cuda_pointer_mut()?;
            // SAFETY: both hold as many elements; nothing else refers to what is written, so they do not overlap.
            return unsafe { device.copy(to, from.cuda_pointer(), self.len() * self.dtype().size()) };
        }
        *self = from.clone();
        Ok(())
    }

    /// The elements of a host tensor. Panics when `T` is not its dtype or it is on a GPU: ops dispatch on `dtype()` and
    /// `device()` first, others ask `to_device`.
    pub fn as_slice<T: Scalar>(&self) -> &[T] {
        &self.buffer::<T>()[self.offset..self.offset + self.len()]
    }

    fn buffer<T: Scalar>(&self) -> &HostBuffer<T> {
        T::view(&self.storage).unwrap_or_else(|| panic!("{:?} elements of a {:?} tensor on {}", T::DTYPE, self.dtype(), self.device()))
    }

    /// What `make` makes of the elements of a host tensor, kept in its memory until they change: `what` and `of` say what it is and
    /// all that it depends on but the elements and their shape. Panics as `as_slice`.
    pub(crate) fn derived<T: Scalar>(&self, what: &'static str, of: &[usize], make: impl FnOnce() -> Buffer<T>) -> Arc<HostBuffer<T>> {
        self.buffer::<T>().derived((what, [&[self.offset], self.shape(), of].concat()), make)
    }

    /// The elements, copied to the host. Panics when a GPU fails; `to_device` reports that.
    pub fn to_vec<T: Scalar>(&self) -> Vec<T> {
        self.host().as_slice::<T>().to_vec()
    }

    fn host(&self) -> Tensor {
        self.to_device(&Device::Cpu).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The elements as f64, whatever the dtype. Panics as `to_vec`.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        match self.dtype() {
            DType::F32 | DType::Bf16 => self.host().as_slice::<f32>().iter().map(|v| *v as f64).collect(),
            DType::F64 => self.to_vec(),
        }
    }

    /// The value of a tensor with one element.
    pub fn item(&self) -> Result<f64> {
        if self.len() != 1 {
            return Err(Error::shape("item", format!("needs one element, got {:?}", self.shape)));
        }
        Ok(self.to_device(&Device::Cpu)?.to_f64_vec()[0])
    }

    /// The same elements under another shape, without a copy.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape("reshape", format!("{:?} cannot become {shape:?}", self.shape)));
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// Rows `start..start + len` of the first dimension, without a copy.
    pub fn rows(&self, start: usize, len: usize) -> Result<Tensor> {
        if self.shape.is_empty() || start + len > self.shape[0] {
            return Err(Error::shape("rows", format!("{start}..{} of {:?}", start + len, self.shape)));
        }
        let inner: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = len;
        Ok(Tensor { shape, offset: self.offset + start * inner, storage: self.storage.clone() })
    }

    /// `len` elements from `start` of the flat order, as `shape`, without a copy: how a parameter is seen in its slab.
    pub fn segment(&self, start: usize, shape: &[usize]) -> Result<Tensor> {
        let len: usize = shape.iter().product();
        if start + len > self.len() {
            return Err(Error::shape("segment", format!("{start}..{} of {} elements", start + len, self.len())));
        }
        Ok(Tensor { shape: shape.to_vec(), offset: self.offset + start, storage: self.storage.clone() })
    }

    /// The elements for writing, when nothing else refers to the memory: parameters between two graphs.
    pub fn as_mut_slice<T: Scalar>(&mut self) -> Result<&mut [T]> {
        let (offset, len) = (self.offset, self.len());
        let all = T::unique(&mut self.storage)
            .ok_or(Error::Shape { op: "as_mut_slice", problem: "the memory is still referred to by a graph or a view".into() })?;
        Ok(&mut all[offset..offset + len])
    }

    /// The values of a host tensor of f32, rounded to bf16; in place where nothing else refers to them.
    pub fn rounded(self) -> Tensor {
        let mut own = match &self.storage {
            Storage::F32(buffer) if Arc::strong_count(buffer) == 1 => self,
            _ => Tensor::from_slice(&self.shape, self.as_slice::<f32>()),
        };
        cpu::round(own.as_mut_slice::<f32>().expect("nothing else refers to the memory"));
        own.kept_as(Storage::Rounded)
    }

    /// The same memory of f32 under another name.
    fn kept_as(&self, name: fn(Arc<HostBuffer<f32>>) -> Storage) -> Tensor {
        match &self.storage {
            Storage::F32(buffer) | Storage::Rounded(buffer) => Tensor { storage: name(buffer.clone()), ..self.clone() },
            _ => panic!("{:?} on {} is not kept as f32 on the host", self.dtype(), self.device()),
        }
    }

    /// The same values in another dtype of the host's.
    pub fn to_dtype(&self, dtype: DType) -> Tensor {
        match (self.dtype(), dtype) {
            (a, b) if a == b => self.clone(),
            (DType::F64, DType::Bf16) => self.to_dtype(DType::F32).rounded(),
            (_, DType::Bf16) => self.host().rounded(),
            (DType::Bf16, DType::F32) => self.host().kept_as(Storage::F32),
            (_, DType::F64) => Tensor::from_vec(&self.shape, self.to_f64_vec()),
            (_, DType::F32) => Tensor::from_vec(&self.shape, self.as_slice::<f64>().iter().map(|v| *v as f32).collect()),
        }
    }
}

/// A tensor on a GPU that the host fills anew while the GPU works.
pub struct Inbox {
    tensor: Tensor,
    mailbox: Mailbox,
}

impl Inbox {
    pub fn new(shape: &[usize], device: &CudaDevice) -> Result<Inbox> {
        let tensor = Tensor::from_cuda(shape, device.filled(shape.iter().product(), 0.0)?);
        Ok(Inbox { mailbox: Mailbox::new(device, tensor.len() * size_of::<f32>())?, tensor })
    }

    /// The tensor: always the same memory.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Sends the elements of a host tensor of the same shape, after all work queued so far.
    pub fn fill(&mut self, from: &Tensor) -> Result<()> {
        if from.shape() != self.tensor.shape() {
            return Err(Error::shape("inbox", format!("{:?} for {:?}", from.shape(), self.tensor.shape())));
        }
        let Storage::Cuda(buffer, _) = &self.tensor.storage else { unreachable!("made on a GPU") };
        self.mailbox.send(from.as_slice::<f32>(), buffer)
    }
}

/// The same tensors on `device`.
pub fn all_on(device: &Device, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    tensors.iter().map(|t| t.to_device(device)).collect()
}

/// Runs `$body` with `$t` bound to the host's element type of `$dtype`: bf16 is kept as f32.
#[macro_export]
macro_rules! on_dtype {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 | $crate::tensor::DType::Bf16 => {
                type $t = f32;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $t = f64;
                $body
            }
        }
    };
}
