//! Writing files that `torch.load(weights_only=True)` accepts: the zip format, with plain values and tensors only.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::error::{Error, Result};
use crate::io::atomic;
use crate::tensor::{DType, Tensor};

/// A value to write.
#[derive(Clone, Debug)]
pub enum Item {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Written contiguous, f32 or f64 as it is.
    Tensor(Tensor),
    List(Vec<Item>),
    /// With text keys, in this order.
    Dict(Vec<(String, Item)>),
    /// With integer keys: the `state` of an optimiser.
    Numbered(Vec<(i64, Item)>),
}

impl Item {
    /// A state_dict: the tensors by name.
    pub fn state_dict(tensors: &BTreeMap<String, Tensor>) -> Item {
        Item::Dict(tensors.iter().map(|(name, tensor)| (name.clone(), Item::Tensor(tensor.clone()))).collect())
    }
}

impl From<&Tensor> for Item {
    fn from(tensor: &Tensor) -> Item {
        Item::Tensor(tensor.clone())
    }
}

/// Writes `root` to `path`, whole or not at all. The archive's inner folder carries the file's stem, as torch.save
/// does it.
pub fn write(path: impl AsRef<Path>, root: &Item) -> Result<()> {
    let path = path.as_ref();
    let mut pickle = Pickler { out: vec![0x80, 2], tensors: Vec::new() };
    pickle.item(root);
    pickle.out.push(b'.');
    // ASCII, so that every reader agrees on the entries' names.
    let stem = path.file_stem().and_then(|s| s.to_str()).filter(|s| s.is_ascii() && !s.is_empty()).unwrap_or("archive");
    atomic::write(path, |out| {
        let mut zip = ZipWriter::new(out);
        let mut entry = |name: &str, content: &[u8]| -> io::Result<()> {
            // PyTorch maps storages into memory at multiples of 64 bytes. The time is torch.save's too: equal values
            // make equal files.
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .with_alignment(64)
                .last_modified_time(zip::DateTime::default())
                .large_file(content.len() as u64 > u32::MAX as u64);
            zip.start_file(format!("{stem}/{name}"), options).map_err(io::Error::from)?;
            zip.write_all(content)
        };
        entry("data.pkl", &pickle.out)?;
        entry("byteorder", b"little")?;
        for (key, tensor) in pickle.tensors.iter().enumerate() {
            let name = format!("data/{key}");
            match tensor.dtype() {
                DType::F32 | DType::Bf16 => entry(&name, bytemuck::cast_slice(tensor.as_slice::<f32>()))?,
                DType::F64 => entry(&name, bytemuck::cast_slice(tensor.as_slice::<f64>()))?,
            }
        }
        entry("version", b"3\n")?;
        zip.finish().map_err(io::Error::from)?;
        Ok(())
    })
    .map_err(|e| match e {
        Error::Io { path, source } => Error::file(path, format!("cannot be written: {source}")),
        other => other,
    })
}

/// Pickle, protocol 2, as torch.save writes it, without a memo: no value here is shared.
struct Pickler<'a> {
    out: Vec<u8>,
    tensors: Vec<&'a Tensor>,
}

impl<'a> Pickler<'a> {
    fn item(&mut self, item: &'a Item) {
        match item {
            Item::None => self.out.push(b'N'),
            Item::Bool(v) => self.out.push(if *v { 0x88 } else { 0x89 }),
            Item::Int(v) => self.int(*v),
            Item::Float(v) => {
                self.out.push(b'G');
                self.out.extend(v.to_be_bytes());
            }
            Item::Text(v) => self.text(v),
            Item::Tensor(tensor) => self.tensor(tensor),
            Item::List(items) => {
                self.out.extend(b"](");
                for item in items {
                    self.item(item);
                }
                self.out.push(b'e');
            }
            Item::Dict(entries) => {
                self.out.extend(b"}(");
                for (key, value) in entries {
                    self.text(key);
                    self.item(value);
                }
                self.out.push(b'u');
            }
            Item::Numbered(entries) => {
                self.out.extend(b"}(");
                for (key, value) in entries {
                    self.int(*key);
                    self.item(value);
                }
                self.out.push(b'u');
            }
        }
    }

    fn int(&mut self, v: i64) {
        match i32::try_from(v) {
            Ok(v) => {
                self.out.push(b'J');
                self.out.extend(v.to_le_bytes());
            }
            Err(_) => {
                self.out.extend([0x8a, 8]);
                self.out.extend(v.to_le_bytes());
            }
        }
    }

    fn text(&mut self, v: &str) {
        self.out.push(b'X');
        self.out.extend((v.len() as u32).to_le_bytes());
        self.out.extend(v.as_bytes());
    }

    fn sizes(&mut self, sizes: impl Iterator<Item = usize>) {
        self.out.push(b'(');
        for size in sizes {
            self.int(size as i64);
        }
        self.out.push(b't');
    }

    /// `torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`.
    fn tensor(&mut self, tensor: &'a Tensor) {
        self.out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.out.extend(match tensor.dtype() {
            DType::F32 | DType::Bf16 => &b"ctorch\nFloatStorage\n"[..],
            DType::F64 => b"ctorch\nDoubleStorage\n",
        });
        self.text(&self.tensors.len().to_string());
        self.text("cpu");
        self.int(tensor.len() as i64);
        self.out.extend(b"tQ");
        self.int(0);
        self.sizes(tensor.shape().iter().copied());
        let mut strides = vec![1; tensor.rank()];
        for i in (1..tensor.rank()).rev() {
            strides[i - 1] = strides[i] * tensor.dim(i).max(1);
        }
        self.sizes(strides.into_iter());
        self.out.extend([0x89]);
        self.out.extend(b"ccollections\nOrderedDict\n)RtR");
        self.tensors.push(tensor);
    }
}
