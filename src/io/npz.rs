//! NumPy's arrays: single ones (`.npy`) and named ones in a zip archive (`.npz`). The header is parsed here, since it
//! is one fixed line of Python and a general parser of Python literals would be the larger risk.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::archive::Archive;
use super::atomic;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The elements of an array. Narrower types of a file are widened: f16 to f32, bool to u8, other integers to i64.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    U8(Vec<u8>),
    I64(Vec<i64>),
}

/// An array in row-major (C) order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Values,
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::F64(v) => v.len(),
            Values::U8(v) => v.len(),
            Values::I64(v) => v.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Values::F32(v) => bytemuck::cast_slice(v),
            Values::F64(v) => bytemuck::cast_slice(v),
            Values::U8(v) => v,
            Values::I64(v) => bytemuck::cast_slice(v),
        }
    }
}

impl Array {
    /// Panics if the lengths differ: that is a bug of the caller.
    pub fn new(shape: &[usize], values: Values) -> Array {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "an array's values must fill its shape {shape:?}");
        Array { shape: shape.to_vec(), values }
    }

    /// The array as a tensor: f64 stays f64, everything else becomes f32.
    pub fn to_tensor(&self) -> Tensor {
        match &self.values {
            Values::F32(v) => Tensor::from_slice(&self.shape, v),
            Values::F64(v) => Tensor::from_slice(&self.shape, v),
            Values::U8(v) => Tensor::from_vec(&self.shape, v.iter().map(|v| *v as f32).collect()),
            Values::I64(v) => Tensor::from_vec(&self.shape, v.iter().map(|v| *v as f32).collect()),
        }
    }
}

impl From<&Tensor> for Array {
    fn from(tensor: &Tensor) -> Array {
        let values = match tensor.dtype() {
            DType::F32 | DType::Bf16 => Values::F32(tensor.to_vec()),
            DType::F64 => Values::F64(tensor.to_vec()),
        };
        Array { shape: tensor.shape().to_vec(), values }
    }
}

/// Arrays by name, without `.npy`.
pub type Arrays = BTreeMap<String, Array>;

/// Reads every array of an `.npz`, stored or deflated. Errors, each in one line: not an npz, damaged, an array of
/// Python objects, complex numbers, text or records.
pub fn read(path: impl AsRef<Path>) -> Result<Arrays> {
    read_named(path.as_ref(), |_| true)
}

/// Reads the `required` arrays of an `.npz`, and of the `optional` ones those that it has. A missing one is an error
/// that lists what the file has.
pub fn read_only(path: impl AsRef<Path>, required: &[&str], optional: &[&str]) -> Result<Arrays> {
    let path = path.as_ref();
    let found = read_named(path, |name| required.contains(&name) || optional.contains(&name))?;
    if let Some(missing) = required.iter().find(|name| !found.contains_key(**name)) {
        let archive = open(path)?;
        let names: Vec<&str> = archive.entries.iter().filter_map(|e| e.name.strip_suffix(".npy")).take(8).collect();
        let has = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
        return Err(Error::file(path, format!("holds no array named {missing:?} (it holds {has}); save one of that name")));
    }
    Ok(found)
}

fn open(path: &Path) -> Result<Archive> {
    let (mut file, _) = super::open(path)?;
    let mut head = [0; 4];
    let n = io::Read::read(&mut file, &mut head).map_err(|e| Error::io(path, e))?;
    if !Archive::recognises(&head[..n]) {
        return Err(Error::file(path, "is not an npz file; give one that numpy.savez wrote"));
    }
    Archive::open(path)
}

fn read_named(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Arrays> {
    let archive = open(path)?;
    let mut arrays = Arrays::new();
    for entry in &archive.entries {
        let Some(name) = entry.name.strip_suffix(".npy").filter(|name| wanted(name)) else { continue };
        let array = parse(archive.read(entry)?).map_err(|problem| Error::file(path, format!("array {name:?} {problem}")))?;
        arrays.insert(name.to_owned(), array);
    }
    Ok(arrays)
}

/// Reads an `.npy`. Errors as `read`.
pub fn read_npy(path: impl AsRef<Path>) -> Result<Array> {
    let path = path.as_ref();
    parse(super::read(path)?).map_err(|problem| Error::file(path, problem))
}

/// Writes arrays as an `.npz`, deflated, whole or not at all. Equal arrays make equal files.
pub fn write(path: impl AsRef<Path>, arrays: &Arrays) -> Result<()> {
    atomic::write(path.as_ref(), |out| {
        let mut zip = ZipWriter::new(out);
        for (name, array) in arrays {
            zip.start_file(format!("{name}.npy"), options(array.values.bytes().len())).map_err(io::Error::from)?;
            write_array(&mut zip, array)?;
        }
        zip.finish().map_err(io::Error::from)?;
        Ok(())
    })
}

fn options(bytes: usize) -> SimpleFileOptions {
    // Fast deflation: noise-like floats do not shrink, images do.
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(1))
        .last_modified_time(zip::DateTime::default())
        .large_file(bytes as u64 > u32::MAX as u64 / 2)
}

/// Writes one f32 array of `shape` as an `.npz`, whole or not at all, out of the tensors that `next` makes one after the
/// other: only one of them is in memory at a time. They fill the array in row-major order.
pub fn write_streamed(path: impl AsRef<Path>, name: &str, shape: &[usize], next: &mut dyn FnMut() -> Result<Tensor>) -> Result<()> {
    atomic::write_made(path.as_ref(), |out| {
        let mut left: usize = shape.iter().product();
        let mut zip = ZipWriter::new(out);
        zip.start_file(format!("{name}.npy"), options(4 * left)).map_err(io::Error::from)?;
        write_header(&mut zip, "<f4", shape)?;
        while left > 0 {
            let part = next()?;
            assert!(part.len() <= left && !part.is_empty(), "parts that fill the array's shape {shape:?}");
            zip.write_all(bytemuck::cast_slice(part.as_slice::<f32>()))?;
            left -= part.len();
        }
        zip.finish().map_err(io::Error::from)?;
        Ok(())
    })
}

/// Writes an `.npy`, whole or not at all.
pub fn write_npy(path: impl AsRef<Path>, array: &Array) -> Result<()> {
    atomic::write(path.as_ref(), |out| write_array(out, array))
}

const MAGIC: &[u8; 6] = b"\x93NUMPY";

fn write_array(out: &mut impl Write, array: &Array) -> io::Result<()> {
    let descr = match array.values {
        Values::F32(_) => "<f4",
        Values::F64(_) => "<f8",
        Values::U8(_) => "|u1",
        Values::I64(_) => "<i8",
    };
    write_header(out, descr, &array.shape)?;
    out.write_all(array.values.bytes())
}

fn write_header(out: &mut impl Write, descr: &str, shape: &[usize]) -> io::Result<()> {
    let sizes: String = shape.iter().map(|size| format!("{size},")).collect();
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // The elements start at a multiple of 64 bytes; version 1.0 has a head of ten bytes.
    let padding = (10 + header.len() + 1).next_multiple_of(64) - (10 + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    out.write_all(MAGIC)?;
    out.write_all(&[1, 0])?;
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())
}

/// What went wrong, as the rest of a sentence about the array.
type Parsed<T> = std::result::Result<T, String>;

struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// The three fields of a header's dictionary, in any order.
fn parse_header(text: &str) -> Option<Header> {
    let after = |key: &str| {
        let at = [format!("'{key}'"), format!("\"{key}\"")].iter().find_map(|k| text.find(k.as_str()).map(|i| i + k.len()))?;
        text[at..].trim_start().strip_prefix(':').map(str::trim_start)
    };
    let descr = after("descr")?;
    let quote = descr.chars().next()?;
    // A list here is a record type; it is reported as it stands.
    let descr = if quote == '\'' || quote == '"' { descr[1..].split(quote).next()? } else { "a record" };
    let fortran = after("fortran_order")?;
    let fortran = if fortran.starts_with("True") { true } else { fortran.starts_with("False").then_some(false)? };
    let sizes = after("shape")?.strip_prefix('(')?.split(')').next()?;
    let sizes = sizes.split(',').map(|s| s.trim().trim_end_matches('L')).filter(|s| !s.is_empty());
    let shape: Vec<usize> = sizes.map(|s| s.parse().ok()).collect::<Option<_>>()?;
    (shape.len() <= 32).then(|| Header { descr: descr.to_owned(), fortran, shape })
}

/// The array of an `.npy` file's bytes.
fn parse(bytes: Vec<u8>) -> Parsed<Array> {
    let not = || "is not in NumPy's format; save it with numpy.save or numpy.savez".to_owned();
    let cut = || "is cut short; download or save it again".to_owned();
    if bytes.len() < 10 || &bytes[..6] != MAGIC {
        return Err(not());
    }
    let (head, size): (usize, usize) = match bytes[6] {
        1 => (10, u16::from_le_bytes([bytes[8], bytes[9]]) as usize),
        2 | 3 if bytes.len() >= 12 => (12, u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize),
        _ => return Err(not()),
    };
    let text = bytes.get(head..head.saturating_add(size)).ok_or_else(cut)?;
    let header = std::str::from_utf8(text).ok().and_then(parse_header).ok_or_else(not)?;
    let data = &bytes[head + size..];
    let width: usize = header.descr.trim_start_matches(['<', '>', '|', '=']).get(1..).and_then(|n| n.parse().ok()).unwrap_or(0);
    let kind = header.descr.trim_start_matches(['<', '>', '|', '=']).chars().next().unwrap_or('?');
    let unknown = || {
        let shown: String = header.descr.chars().take(20).collect();
        format!("has elements of type {shown:?}; save numbers (float32, float64, uint8 or int64)")
    };
    if header.descr.starts_with('>') && width > 1 {
        return Err(format!("is big-endian ({}); save it as little-endian", header.descr));
    }
    let known = matches!((kind, width), ('f', 2 | 4 | 8) | ('i' | 'u', 1 | 2 | 4 | 8) | ('b', 1));
    if !known {
        return Err(unknown());
    }
    let n = header.shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size));
    match n.and_then(|n| n.checked_mul(width)) {
        Some(size) if size == data.len() => {}
        Some(size) if size < data.len() => return Err("is longer than its shape says; save it again".into()),
        _ => return Err(cut()),
    }
    fn each<const N: usize, T>(data: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
        data.as_chunks::<N>().0.iter().map(|b| number(*b)).collect()
    }
    let values = match (kind, width) {
        ('f', 2) => Values::F32(each(data, |b| half::f16::from_le_bytes(b).to_f32())),
        ('f', 4) => Values::F32(each(data, f32::from_le_bytes)),
        ('f', 8) => Values::F64(each(data, f64::from_le_bytes)),
        ('u', 1) => Values::U8(data.to_vec()),
        ('b', 1) => Values::U8(each(data, |b: [u8; 1]| (b[0] != 0) as u8)),
        ('i', 1) => Values::I64(each(data, |b| i8::from_le_bytes(b) as i64)),
        ('i', 2) => Values::I64(each(data, |b| i16::from_le_bytes(b) as i64)),
        ('i', 4) => Values::I64(each(data, |b| i32::from_le_bytes(b) as i64)),
        ('i', 8) => Values::I64(each(data, i64::from_le_bytes)),
        ('u', 2) => Values::I64(each(data, |b| u16::from_le_bytes(b) as i64)),
        ('u', 4) => Values::I64(each(data, |b| u32::from_le_bytes(b) as i64)),
        // An unsigned number beyond 2^63 is none that an index or a label can be.
        ('u', 8) => {
            let wide = each(data, u64::from_le_bytes);
            let narrow: Option<Vec<i64>> = wide.into_iter().map(|v| i64::try_from(v).ok()).collect();
            Values::I64(narrow.ok_or("holds an integer beyond 2^63; save it as int64")?)
        }
        _ => return Err(unknown()),
    };
    drop(bytes);
    let values = if header.fortran { row_major(&header.shape, values) } else { values };
    Ok(Array { shape: header.shape, values })
}

/// Elements in column-major (Fortran) order, put into row-major order.
fn row_major(shape: &[usize], values: Values) -> Values {
    fn order<T: Copy>(shape: &[usize], from: &[T]) -> Vec<T> {
        let mut index = vec![0; shape.len()];
        let mut at = 0;
        (0..from.len())
            .map(|_| {
                let value = from[at];
                // Count up in row-major order, the last dimension fastest; its stride is the longest here.
                let mut stride = from.len();
                for axis in (0..shape.len()).rev() {
                    stride /= shape[axis];
                    index[axis] += 1;
                    at += stride;
                    if index[axis] < shape[axis] {
                        break;
                    }
                    at -= stride * shape[axis];
                    index[axis] = 0;
                }
                value
            })
            .collect()
    }
    match values {
        Values::F32(v) => Values::F32(order(shape, &v)),
        Values::F64(v) => Values::F64(order(shape, &v)),
        Values::U8(v) => Values::U8(order(shape, &v)),
        Values::I64(v) => Values::I64(order(shape, &v)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::{Scratch, refused};

    #[test]
    fn round_trip() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a.npz");
        let arrays = Arrays::from([
            ("f".to_owned(), Array::new(&[2, 2], Values::F32(vec![1.0, -0.0, f32::INFINITY, 1e-40]))),
            ("d".to_owned(), Array::new(&[], Values::F64(vec![0.1]))),
            ("images".to_owned(), Array::new(&[1, 2, 1, 3], Values::U8(vec![0, 1, 2, 253, 254, 255]))),
            ("labels".to_owned(), Array::new(&[3], Values::I64(vec![i64::MIN, 0, 7]))),
            ("none".to_owned(), Array::new(&[0, 3], Values::F32(vec![]))),
        ]);
        write(&path, &arrays).unwrap();
        assert_eq!(read(&path).unwrap(), arrays);
        let bytes = std::fs::read(&path).unwrap();
        write(&path, &arrays).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "equal arrays make equal files");
        assert_eq!(read_only(&path, &["d"], &["absent"]).unwrap().keys().collect::<Vec<_>>(), ["d"]);
        refused(read_only(&path, &["d", "latents"], &[]), &["a.npz", "\"latents\"", "it holds d, f, images"]);
        let single = scratch.path().join("f.npy");
        write_npy(&single, &arrays["f"]).unwrap();
        assert_eq!(read_npy(&single).unwrap(), arrays["f"]);
        assert_eq!(arrays["images"].to_tensor().shape(), [1, 2, 1, 3]);
        assert_eq!(Array::from(&arrays["f"].to_tensor()), arrays["f"]);
    }

    #[test]
    fn parts_make_the_same_file() {
        let scratch = Scratch::new();
        let (whole, parts) = (scratch.path().join("whole.npz"), scratch.path().join("parts.npz"));
        let values: Vec<f32> = (0..24).map(|v| v as f32 / 7.0).collect();
        write(&whole, &Arrays::from([("images".to_owned(), Array::new(&[4, 2, 3], Values::F32(values.clone())))])).unwrap();
        let mut chunks = values.chunks(9);
        let mut next = || Ok(Tensor::from_slice(&[chunks.clone().next().unwrap().len()], chunks.next().unwrap()));
        write_streamed(&parts, "images", &[4, 2, 3], &mut next).unwrap();
        assert_eq!(std::fs::read(whole).unwrap(), std::fs::read(&parts).unwrap());
        let before = std::fs::read(&parts).unwrap();
        refused(write_streamed(&parts, "images", &[4, 2, 3], &mut || Err(Error::config("--n", "broken"))), &["--n: broken"]);
        assert_eq!(std::fs::read(&parts).unwrap(), before);
    }

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn fortran_order_and_narrow_types() {
        let scratch = Scratch::new();
        let read = |header: &str, data: &[u8]| read_npy(scratch.file("x.npy", &npy(header, data)));
        // a[i][j][k] = 100i + 10j + k of shape (2, 3, 2), the first index running fastest.
        let data: Vec<u8> = (0..12).map(|n| (100 * (n % 2) + 10 * (n / 2 % 3) + n / 6) as u8).collect();
        let array = read("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 2), }\n", &data).unwrap();
        assert_eq!(array.values, Values::U8(vec![0, 1, 10, 11, 20, 21, 100, 101, 110, 111, 120, 121]));
        let short = "'fortran_order': False, 'shape': (2,)}";
        let case = |descr: &str, data: &[u8]| read(&format!("{{'descr': '{descr}', {short}"), data).unwrap().values;
        assert_eq!(case("<f2", &[0x00, 0x3e, 0x00, 0xc0]), Values::F32(vec![1.5, -2.0]));
        assert_eq!(case("<i4", &[3, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]), Values::I64(vec![3, -2]));
        assert_eq!(case("<u2", &[3, 0, 0xff, 0xff]), Values::I64(vec![3, 65535]));
        assert_eq!(case("|b1", &[1, 0]), Values::U8(vec![1, 0]));
        assert_eq!(case("|i1", &[1, 0xff]), Values::I64(vec![1, -1]));
    }

    #[test]
    fn bad_files() {
        let scratch = Scratch::new();
        let bad = |bytes: &[u8], says: &str| refused(read_npy(scratch.file("bad.npy", bytes)), &["bad.npy", says]);
        let plain = |descr: &str, shape: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}");
        bad(b"", "not in NumPy's format");
        bad(b"PK\x03\x04123456789", "not in NumPy's format");
        bad(&npy("{'descr': '<f4'}", &[]), "not in NumPy's format");
        bad(&npy(&plain("<f4", "(2,)"), &[0; 7]), "cut short");
        bad(&npy(&plain("<f4", "(2,)"), &[0; 9]), "longer than its shape");
        bad(&npy(&plain("<f4", "(4611686018427387904, 4)"), &[0; 8]), "cut short");
        bad(&npy(&plain("|O", "(2,)"), &[0; 9]), "has elements of type \"|O\"");
        bad(&npy(&plain("<c8", "(1,)"), &[0; 8]), "has elements of type");
        bad(&npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", &[0; 4]), "a record");
        bad(&npy(&plain(">f4", "(1,)"), &[0; 4]), "big-endian");
        bad(&npy(&plain("<u8", "(1,)"), &[0xff; 8]), "beyond 2^63");
        let mut cut = npy(&plain("<f4", "(1,)"), &[0; 4]);
        cut.truncate(20);
        bad(&cut, "cut short");
        refused(read(scratch.file("x.npz", b"hello world")), &["x.npz", "not an npz file"]);
        refused(read(scratch.path().join("none.npz")), &["none.npz", "does not exist"]);
    }
}
