//! safetensors: named tensors and text about them. Tensors are read straight from the file into their own memory and
//! written straight from it, so a network is never held twice.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};

use super::atomic;
use crate::device::cpu::Buffer;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The content of a file.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: BTreeMap<String, String>,
}

/// A checked header, and where the tensors' data start. The crate's own check of a whole file wants it in memory.
struct Header {
    metadata: Metadata,
    data_at: u64,
}

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;

fn header(path: &Path, file: &mut impl Read, length: u64) -> Result<Header> {
    let no = |what: &str| Error::file(path, format!("is not a safetensors file ({what}); give one, or convert it first"));
    let cut = || Error::file(path, "is cut short or damaged: its tensors do not fill it; download or copy it again");
    let mut size = [0; 8];
    if length < 8 {
        return Err(no("it has no header"));
    }
    file.read_exact(&mut size).map_err(|e| Error::io(path, e))?;
    let size = u64::from_le_bytes(size);
    let mut first = [0; 1];
    let n = file.read(&mut first).map_err(|e| Error::io(path, e))?;
    if n == 0 || first != *b"{" || size > MAX_HEADER {
        return Err(no("it does not start with a header"));
    }
    if size > length - 8 {
        return Err(cut());
    }
    let mut text = vec![first[0]; size as usize];
    file.read_exact(&mut text[1..]).map_err(|e| Error::io(path, e))?;
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|e| no(&format!("its header does not parse: {e}")))?;
    let data_at = 8 + size;
    // The crate has checked that the tensors lie one behind the other and that their sizes fit their shapes.
    let end = metadata.tensors().values().map(|t| t.data_offsets.1).max().unwrap_or(0);
    if data_at.checked_add(end as u64) != Some(length) {
        return Err(cut());
    }
    Ok(Header { metadata, data_at })
}

/// Reads the metadata only.
pub fn read_metadata(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>> {
    let path = path.as_ref();
    let (mut file, length) = super::open(path)?;
    Ok(strings(header(path, &mut file, length)?.metadata))
}

fn strings(metadata: Metadata) -> BTreeMap<String, String> {
    metadata.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Reads every tensor. f64 stays f64; f32, f16, bf16, integers and bools become f32; other element types are refused.
/// Errors, each in one line: not a safetensors file, cut short, an element type without a number in it.
pub fn read(path: impl AsRef<Path>) -> Result<Content> {
    let path = path.as_ref();
    let (file, length) = super::open(path)?;
    read_from(path, file, length)
}

/// Reads every tensor of a file that is part of the program; `name` stands for its path in errors.
pub fn read_embedded(name: &str, bytes: &[u8]) -> Result<Content> {
    read_from(Path::new(name), std::io::Cursor::new(bytes), bytes.len() as u64)
}

/// Whether a file starts as this format does: a length, then `{`.
pub fn recognises(path: impl AsRef<Path>) -> Result<bool> {
    let path = path.as_ref();
    let (mut file, length) = super::open(path)?;
    let mut head = [0; 9];
    if length < head.len() as u64 {
        return Ok(false);
    }
    file.read_exact(&mut head).map_err(|e| Error::io(path, e))?;
    Ok(head[8] == b'{' && u64::from_le_bytes(head[..8].try_into().expect("eight bytes")) <= MAX_HEADER)
}

fn read_from(path: &Path, mut file: impl Read + Seek, length: u64) -> Result<Content> {
    let header = header(path, &mut file, length)?;
    let mut infos: Vec<(String, &TensorInfo)> = header.metadata.tensors().into_iter().collect();
    infos.sort_by_key(|(_, info)| info.data_offsets);
    file.seek(SeekFrom::Start(header.data_at)).map_err(|e| Error::io(path, e))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut tensors = BTreeMap::new();
    for (name, info) in infos {
        let tensor = tensor(&mut reader, info).map_err(|e| Error::io(path, e))?;
        let Some(tensor) = tensor else {
            let problem = format!("tensor {name:?} has elements of type {:?}; save it as f32", info.dtype);
            return Err(Error::file(path, problem));
        };
        tensors.insert(name, tensor);
    }
    Ok(Content { tensors, metadata: strings(header.metadata) })
}

/// The next tensor of the data, or none if its element type has no meaning here.
fn tensor(reader: &mut impl Read, info: &TensorInfo) -> std::io::Result<Option<Tensor>> {
    let n: usize = info.shape.iter().product();
    let narrow = match info.dtype {
        Dtype::F32 => {
            let mut out = Buffer::<f32>::stale(n);
            reader.read_exact(bytemuck::cast_slice_mut(&mut out))?;
            return Ok(Some(Tensor::from_buffer(&info.shape, out)));
        }
        Dtype::F64 => {
            let mut out = Buffer::<f64>::stale(n);
            reader.read_exact(bytemuck::cast_slice_mut(&mut out))?;
            return Ok(Some(Tensor::from_buffer(&info.shape, out)));
        }
        Dtype::F16 => convert(reader, n, |b| half::f16::from_le_bytes(b).to_f32())?,
        Dtype::BF16 => convert(reader, n, |b| half::bf16::from_le_bytes(b).to_f32())?,
        Dtype::I64 => convert(reader, n, |b| i64::from_le_bytes(b) as f32)?,
        Dtype::I32 => convert(reader, n, |b| i32::from_le_bytes(b) as f32)?,
        Dtype::I16 => convert(reader, n, |b| i16::from_le_bytes(b) as f32)?,
        Dtype::I8 => convert(reader, n, |b| i8::from_le_bytes(b) as f32)?,
        Dtype::U8 => convert(reader, n, |b: [u8; 1]| b[0] as f32)?,
        Dtype::BOOL => convert(reader, n, |b: [u8; 1]| (b[0] != 0) as u8 as f32)?,
        _ => return Ok(None),
    };
    Ok(Some(Tensor::from_vec(&info.shape, narrow)))
}

fn convert<const N: usize>(reader: &mut impl Read, n: usize, number: impl Fn([u8; N]) -> f32) -> std::io::Result<Vec<f32>> {
    let mut bytes = vec![0; n * N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|b| number(*b)).collect())
}

/// Writes tensors and metadata to `path`, whole or not at all. Tensors lie in the order of their names, larger elements
/// first, as the format wants them aligned; equal content makes equal files.
pub fn write(path: impl AsRef<Path>, tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<()> {
    let path = path.as_ref();
    if tensors.contains_key("__metadata__") {
        return Err(Error::file(path, "cannot be written: the format keeps the name __metadata__ for itself; rename that tensor"));
    }
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, t)| t.dtype() == DType::F32);
    let mut fields = Vec::with_capacity(order.len() + 1);
    if !metadata.is_empty() {
        fields.push(format!("\"__metadata__\":{}", json(metadata)));
    }
    let mut at = 0;
    for (name, tensor) in &order {
        let (dtype, bytes) = match tensor.dtype() {
            DType::F32 | DType::Bf16 => (Dtype::F32, 4),
            DType::F64 => (Dtype::F64, 8),
        };
        let end = at + tensor.len() * bytes;
        let info = TensorInfo { dtype, shape: tensor.shape().to_vec(), data_offsets: (at, end) };
        fields.push(format!("{}:{}", json(name), json(&info)));
        at = end;
    }
    let mut header = format!("{{{}}}", fields.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    atomic::write(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in &order {
            match tensor.dtype() {
                DType::F32 | DType::Bf16 => out.write_all(bytemuck::cast_slice(tensor.as_slice::<f32>()))?,
                DType::F64 => out.write_all(bytemuck::cast_slice(tensor.as_slice::<f64>()))?,
            }
        }
        Ok(())
    })
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("text, numbers and text keys always serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::{Scratch, refused};

    fn sample() -> (BTreeMap<String, Tensor>, BTreeMap<String, String>) {
        let tensors = BTreeMap::from([
            ("b".to_owned(), Tensor::from_vec(&[2, 3], vec![1f32, -2.0, 3.5, f32::MIN_POSITIVE, 0.0, -0.0])),
            ("a.weight".to_owned(), Tensor::from_vec(&[], vec![7f32])),
            ("wide".to_owned(), Tensor::from_vec(&[2], vec![1e-300f64, 2.0])),
            ("none".to_owned(), Tensor::from_vec(&[0, 4], Vec::<f32>::new())),
        ]);
        let metadata = BTreeMap::from([("size".to_owned(), "32".to_owned()), ("note".to_owned(), "\"\n\u{e9}".to_owned())]);
        (tensors, metadata)
    }

    #[test]
    fn round_trip_and_the_crate_reads_it() {
        let scratch = Scratch::new();
        let path = scratch.path().join("m.safetensors");
        let (tensors, metadata) = sample();
        write(&path, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let content = read(&path).unwrap();
        assert_eq!((&content.metadata, read_metadata(&path).unwrap()), (&metadata, metadata.clone()));
        assert_eq!(content.tensors.keys().collect::<Vec<_>>(), tensors.keys().collect::<Vec<_>>());
        let other = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in &tensors {
            let back = &content.tensors[name];
            assert_eq!((back.shape(), back.dtype(), back.to_f64_vec()), (tensor.shape(), tensor.dtype(), tensor.to_f64_vec()));
            assert_eq!(other.tensor(name).unwrap().shape(), tensor.shape());
        }
        write(&path, &tensors, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "equal content makes equal files");
    }

    /// A file with one tensor `x` of the given type.
    fn single(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{\"x\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[0,{}]}}}}", data.len());
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn narrow_types_become_f32() {
        let scratch = Scratch::new();
        let cases: [(&str, &[u8]); 6] = [
            ("F16", &[0x00, 0x3e, 0x00, 0xc0]),
            ("BF16", &[0xc0, 0x3f, 0x00, 0xc0]),
            ("I64", &[3, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            ("I32", &[3, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]),
            ("U8", &[3, 254]),
            ("BOOL", &[1, 0]),
        ];
        let expected = [[1.5, -2.0], [1.5, -2.0], [3.0, -2.0], [3.0, -2.0], [3.0, 254.0], [1.0, 0.0]];
        for ((dtype, data), expected) in cases.into_iter().zip(expected) {
            let content = read(scratch.file("x.safetensors", &single(dtype, "[2]", data))).unwrap();
            assert_eq!(content.tensors["x"].to_vec::<f32>(), expected.map(|v| v as f32), "{dtype}");
        }
    }

    #[test]
    fn bad_files() {
        let scratch = Scratch::new();
        let good = single("F32", "[1]", &1f32.to_le_bytes());
        let bad = |name: &str, bytes: &[u8], says: &str| refused(read(scratch.file(name, bytes)), &[name, says]);
        bad("empty", b"", "not a safetensors file");
        bad("zip", b"PK\x03\x04 and so on", "not a safetensors file");
        bad("cut", &good[..good.len() - 1], "cut short");
        bad("longer", &[&good[..], &[0]].concat(), "cut short or damaged");
        bad("header-cut", &good[..20], "cut short");
        bad("huge", &[&u64::MAX.to_le_bytes()[..], b"{"].concat(), "not a safetensors file");
        bad("shape", &single("F32", "[2]", &[0; 4]), "does not parse");
        bad("overflow", &single("F32", "[18446744073709551615,2]", &[0; 4]), "does not parse");
        bad("type", &single("F8_E4M3", "[1]", &[0]), "save it as f32");
        refused(read(scratch.path().join("none")), &["none", "does not exist"]);
        let odd = BTreeMap::from([("__metadata__".to_owned(), Tensor::from_vec(&[1], vec![0f32]))]);
        refused(write(scratch.path().join("odd"), &odd, &BTreeMap::new()), &["odd", "rename"]);
    }
}
