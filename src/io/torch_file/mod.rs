//! PyTorch's checkpoint files without Python: `torch.save`'s zip format (since 1.6) and the older stream of pickles.
//!
//! A file is data. Only the pickle instructions and globals that tensors need are interpreted (`pickle`); any other
//! global is refused by name. Every size is checked against the file's length before memory is asked for, and values
//! are read where they lie when they are asked for.

mod pickle;
#[cfg(test)]
mod tests;
mod write;

pub use pickle::Kind;
pub use write::{Item, write};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use pickle::{Id, Input, Node, Outcome, Pickle, Problem, View};

use super::archive::{Archive, Entry, Method};
use crate::error::{Error, Result};
use crate::tensor::{Scalar, Tensor};

/// An opened file: its values without the tensors' elements.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    length: u64,
    pickle: Pickle,
    /// Where each of the pickle's storages lies.
    places: Vec<Place>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Zip(Archive),
    Legacy(File),
}

#[derive(Debug)]
enum Place {
    Entry(Entry),
    At(u64),
}

/// The signature at the head of a legacy file, as the bytes of a Python integer.
const LEGACY_SIGNATURE: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const LEGACY_VERSION: i64 = 1001;

/// Deflated entries (somebody packed the file again) may not grow by more than this: weights hardly shrink at all.
const MAX_INFLATION: u64 = 64;

/// Nesting that names of tensors go down to; a circular value ends there too.
const MAX_DEPTH: usize = 32;

impl TorchFile {
    /// Reads everything but the tensors' elements. Errors, each in one line: not a PyTorch file, cut short, damaged, an
    /// object that is not plain data (by its name), a tensor that the file does not hold.
    pub fn open(path: impl AsRef<Path>) -> Result<TorchFile> {
        let path = path.as_ref();
        let (mut file, length) = super::open(path)?;
        let mut head = Vec::new();
        Read::take(&mut file, 32).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
        if Archive::recognises(&head) {
            return open_zip(path, length);
        }
        // Newer pickle protocols put a frame before the signature.
        let signed = head.windows(LEGACY_SIGNATURE.len()).any(|part| part == LEGACY_SIGNATURE);
        if head.first() != Some(&0x80) || (head.len() == 32 && !signed) {
            return Err(Error::file(path, "is not a PyTorch file; give a .pt or .pth file that torch.save wrote"));
        }
        file.rewind().map_err(|e| Error::io(path, e))?;
        let (pickle, places) = read_legacy(&file, length).map_err(|p| error(path, p))?;
        Ok(TorchFile { path: path.to_path_buf(), length, pickle, places, source: Source::Legacy(file) })
    }

    /// The file's whole value.
    pub fn root(&self) -> Value<'_> {
        Value { file: self, id: self.pickle.root }
    }

    /// Every tensor of the file as f32, by its dotted name (`g_ema.conv1.conv.weight`, `g_optim.state.0.exp_avg`); a
    /// file that is one bare tensor gives it the empty name.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.root().tensors()
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::file(&self.path, problem)
    }

    /// The bytes of a storage.
    fn storage(&self, index: usize) -> Result<Vec<u8>> {
        match (&self.places[index], &self.source) {
            (Place::Entry(entry), Source::Zip(archive)) => archive.read(entry),
            (Place::At(at), Source::Legacy(file)) => {
                let storage = &self.pickle.storages[index];
                // `open` found the whole of it inside the file.
                let mut bytes = vec![0; (storage.elements * storage.kind.bytes()) as usize];
                let mut file = file;
                file.seek(SeekFrom::Start(*at)).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| Error::io(&self.path, e))?;
                Ok(bytes)
            }
            _ => unreachable!("places are made together with their source"),
        }
    }
}

fn error(path: &Path, problem: Problem) -> Error {
    match problem {
        Problem::CutShort => Error::file(path, "is cut short; download or copy it again"),
        Problem::Refused(what) => Error::file(path, what),
        Problem::Io(e) => Error::io(path, e),
    }
}

fn open_zip(path: &Path, length: u64) -> Result<TorchFile> {
    let archive = Archive::open(path)?;
    let Some(main) = archive.entries.iter().find(|e| e.name.ends_with("/data.pkl")) else {
        let problem = if archive.entries.iter().any(|e| e.name.ends_with(".npy")) {
            "is an npz file, not a PyTorch file; give a .pt or .pth file"
        } else {
            "is a zip archive without data.pkl, so not a PyTorch file; give one that torch.save wrote"
        };
        return Err(Error::file(path, problem));
    };
    let prefix = main.name.strip_suffix("data.pkl").expect("found by its end").to_owned();
    if archive.find(&format!("{prefix}constants.pkl")).is_some() {
        return Err(Error::file(path, "is a TorchScript program, not a checkpoint; save its state_dict with torch.save"));
    }
    if let Some(order) = archive.find(&format!("{prefix}byteorder"))
        && archive.read(order)? != b"little"
    {
        return Err(Error::file(path, "was written on a big-endian machine; save it again on a little-endian one"));
    }
    bounded(path, main)?;
    let bytes = archive.read(main)?;
    let mut input = Input { left: bytes.len() as u64, reader: &bytes[..] };
    let pickle = pickle::read(&mut input).map_err(|p| error(path, p))?;
    let entries: std::collections::HashMap<&str, &Entry> = archive.entries.iter().map(|e| (e.name.as_str(), e)).collect();
    let places = pickle
        .storages
        .iter()
        .map(|storage| {
            let name = format!("{prefix}data/{}", storage.key);
            let entry = entries.get(name.as_str()).copied();
            // The same size, or the tensors' bounds would be wrong.
            match entry.filter(|e| storage.elements.checked_mul(storage.kind.bytes()) == Some(e.size)) {
                Some(entry) => bounded(path, entry).map(|()| Place::Entry(entry.clone())),
                None => {
                    let problem = format!("storage {:?} is missing or of another size; download or copy it again", name);
                    Err(Error::file(path, problem))
                }
            }
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(TorchFile { path: path.to_path_buf(), length, pickle, places, source: Source::Zip(archive) })
}

fn bounded(path: &Path, entry: &Entry) -> Result<()> {
    if entry.method == Method::Deflated && entry.size / MAX_INFLATION > entry.packed {
        let problem = format!("{:?} is packed more than {MAX_INFLATION} to 1; store it, as torch.save does", entry.name);
        return Err(Error::file(path, problem));
    }
    Ok(())
}

/// Signature, version, machine, the value and the list of its storages are five pickles; then come the storages, each
/// after its number of elements.
fn read_legacy(file: &File, length: u64) -> Outcome<(Pickle, Vec<Place>)> {
    let refused = |what: &str| Err(Problem::Refused(what.into()));
    let mut input = Input { reader: BufReader::with_capacity(1 << 16, file), left: length };
    let signature = pickle::read(&mut input)?;
    if !matches!(&signature.nodes[signature.root as usize], Node::Bytes(b) if **b == LEGACY_SIGNATURE) {
        return refused("is not a PyTorch file; give a .pt or .pth file that torch.save wrote");
    }
    let version = pickle::read(&mut input)?;
    if !matches!(version.nodes[version.root as usize], Node::Int(LEGACY_VERSION)) {
        return refused("is a PyTorch file of an unknown version; save it again with a newer PyTorch");
    }
    let machine = pickle::read(&mut input)?;
    if let Node::Dict(about) = &machine.nodes[machine.root as usize] {
        let text = |id: Id| matches!(&machine.nodes[id as usize], Node::Text(t) if &**t == "little_endian");
        let big = |id: Id| matches!(machine.nodes[id as usize], Node::Bool(false));
        if about.iter().any(|(key, value)| text(*key) && big(*value)) {
            return refused("was written on a big-endian machine; save it again on a little-endian one");
        }
    }
    let pickle = pickle::read(&mut input)?;
    let list = pickle::read(&mut input)?;
    let Node::List(keys) = &list.nodes[list.root as usize] else {
        return refused("its list of storages is missing; download or copy it again");
    };
    let index: std::collections::HashMap<&str, usize> =
        pickle.storages.iter().enumerate().map(|(i, s)| (s.key.as_str(), i)).collect();
    let mut at = vec![None; pickle.storages.len()];
    for key in keys {
        let known = match &list.nodes[*key as usize] {
            Node::Text(key) => index.get(&**key).copied(),
            _ => None,
        };
        let Some(i) = known else {
            return refused("its list of storages names one that no tensor uses; download or copy it again");
        };
        let storage = &pickle.storages[i];
        if u64::from_le_bytes(input.array()?) != storage.elements {
            return refused("the size of a storage differs from its tensors'; download or copy it again");
        }
        let Some(bytes) = storage.elements.checked_mul(storage.kind.bytes()).filter(|n| *n <= input.left) else {
            return Err(Problem::CutShort);
        };
        at[i] = Some(length - input.left);
        input.reader.seek_relative(bytes as i64)?;
        input.left -= bytes;
    }
    match at.into_iter().map(|at| at.map(Place::At)).collect() {
        Some(places) => Ok((pickle, places)),
        None => refused("a storage that its tensors use is missing; download or copy it again"),
    }
}

/// A value of a file: a place to look at, cheap to copy.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    file: &'a TorchFile,
    id: Id,
}

/// A key of a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    Text(&'a str),
    Int(i64),
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Text(t) => f.write_str(t),
            Key::Int(i) => write!(f, "{i}"),
        }
    }
}

impl<'a> Value<'a> {
    fn node(self) -> &'a Node {
        &self.file.pickle.nodes[self.id as usize]
    }

    fn at(self, id: Id) -> Value<'a> {
        Value { file: self.file, id }
    }

    fn pairs(self) -> &'a [(Id, Id)] {
        match self.node() {
            Node::Dict(pairs) => pairs,
            Node::Namespace(Some(state)) => self.at(*state).pairs(),
            _ => &[],
        }
    }

    /// Whether this is a dict, an OrderedDict or an argparse.Namespace.
    pub fn is_dict(self) -> bool {
        matches!(self.node(), Node::Dict(_) | Node::Namespace(_))
    }

    pub fn is_none(self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// Keys and values of a dictionary or Namespace in the file's order; nothing for other values. Keys that are
    /// neither text nor integers are left out.
    pub fn entries(self) -> impl Iterator<Item = (Key<'a>, Value<'a>)> {
        self.pairs().iter().filter_map(move |(key, value)| {
            let key = match self.at(*key).node() {
                Node::Text(t) => Key::Text(t),
                Node::Int(i) => Key::Int(*i),
                _ => return None,
            };
            Some((key, self.at(*value)))
        })
    }

    /// The value of a text key of a dictionary or Namespace.
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        self.entries().filter(|(k, _)| *k == Key::Text(key)).last().map(|(_, v)| v)
    }

    /// The value of an integer key of a dictionary (`state[i]` of an optimiser).
    pub fn get_index(self, key: i64) -> Option<Value<'a>> {
        self.entries().filter(|(k, _)| *k == Key::Int(key)).last().map(|(_, v)| v)
    }

    /// The items of a list or tuple; nothing for other values.
    pub fn items(self) -> impl ExactSizeIterator<Item = Value<'a>> {
        let ids: &[Id] = match self.node() {
            Node::List(ids) => ids,
            Node::Tuple(ids) => ids,
            _ => &[],
        };
        ids.iter().map(move |id| self.at(*id))
    }

    pub fn as_bool(self) -> Option<bool> {
        match self.node() {
            Node::Bool(v) => Some(*v),
            _ => None,
        }
    }

    pub fn as_int(self) -> Option<i64> {
        match self.node() {
            Node::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// A float, or an integer as one.
    pub fn as_f64(self) -> Option<f64> {
        match self.node() {
            Node::Float(v) => Some(*v),
            Node::Int(v) => Some(*v as f64),
            _ => None,
        }
    }

    pub fn as_text(self) -> Option<&'a str> {
        match self.node() {
            Node::Text(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self.node() {
            Node::Bytes(v) => Some(v),
            _ => None,
        }
    }

    fn view(self) -> Option<&'a View> {
        match self.node() {
            Node::Tensor(view) => Some(view),
            _ => None,
        }
    }

    /// The sizes of a tensor; none for other values.
    pub fn shape(self) -> Option<&'a [usize]> {
        self.view().map(|v| &v.shape[..])
    }

    /// The element type of a tensor in the file; none for other values.
    pub fn kind(self) -> Option<Kind> {
        self.view().map(|v| self.file.pickle.storages[v.storage].kind)
    }

    /// A tensor's elements, row-major of its shape whatever its strides were, converted to `T`. Fails when this is no
    /// tensor, or one that repeats its storage so often that it has more elements than the file has bytes.
    pub fn tensor<T: Scalar>(self) -> Result<Tensor> {
        let Some(view) = self.view() else { return Err(self.file.error("a tensor was expected, another value is there")) };
        let mut budget = Budget::of(self.file);
        budget.elements(self.file, view)?;
        let bytes = self.file.storage(view.storage)?;
        Ok(gather::<T>(&bytes, self.file.pickle.storages[view.storage].kind, view))
    }

    /// Every tensor at or under this value as f32, by its dotted name relative to this value. Other values are passed
    /// over. Equal views of a storage share memory.
    pub fn tensors(self) -> Result<BTreeMap<String, Tensor>> {
        let mut budget = Budget::of(self.file);
        let mut found = Vec::new();
        collect(self, String::new(), 0, &mut budget, &mut found)?;
        // By storage, so that each is read once.
        found.sort_by_key(|(_, view)| (view.storage, view.offset));
        let mut out = BTreeMap::new();
        let mut bytes = Vec::new();
        let mut last: Option<(&View, Tensor)> = None;
        for (name, view) in found {
            if let Some((seen, tensor)) = &last
                && (seen.storage, seen.offset) == (view.storage, view.offset)
                && (&seen.shape, &seen.strides) == (&view.shape, &view.strides)
            {
                out.insert(name, tensor.clone());
                continue;
            }
            budget.elements(self.file, view)?;
            if last.as_ref().is_none_or(|(seen, _)| seen.storage != view.storage) {
                // Freed first: never two storages at a time.
                drop(std::mem::take(&mut bytes));
                bytes = self.file.storage(view.storage)?;
            }
            let tensor = gather::<f32>(&bytes, self.file.pickle.storages[view.storage].kind, view);
            out.insert(name, tensor.clone());
            last = Some((view, tensor));
        }
        Ok(out)
    }
}

/// What may be taken out of a file before it is called hostile: shared values would otherwise let a small file stand
/// for more than any memory holds.
struct Budget {
    elements: u64,
    steps: u64,
}

impl Budget {
    fn of(file: &TorchFile) -> Budget {
        // An element has at least one byte, and a value and its name a few, unless they are shared; sixteen times as
        // many steps leave room for checkpoints that name the same tensors several times.
        Budget { elements: file.length, steps: 16 * file.length + (1 << 16) }
    }

    fn elements(&mut self, file: &TorchFile, view: &View) -> Result<()> {
        let n = view.shape.iter().try_fold(1u64, |n, size| n.checked_mul(*size as u64));
        match n.and_then(|n| self.elements.checked_sub(n)) {
            Some(left) => self.elements = left,
            None => return Err(file.error("its tensors have more elements than the file has bytes; save them as contiguous copies")),
        }
        Ok(())
    }

    fn step(&mut self, file: &TorchFile, cost: usize) -> Result<()> {
        match self.steps.checked_sub(cost as u64 + 1) {
            Some(left) => self.steps = left,
            None => return Err(file.error("its values are nested in each other without end; it is not a checkpoint")),
        }
        Ok(())
    }
}

fn collect<'a>(
    value: Value<'a>,
    name: String,
    depth: usize,
    budget: &mut Budget,
    found: &mut Vec<(String, &'a View)>,
) -> Result<()> {
    budget.step(value.file, name.len())?;
    if depth > MAX_DEPTH {
        return Err(value.file.error("its values are nested in each other without end; it is not a checkpoint"));
    }
    let under = |key: &dyn std::fmt::Display| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
    if let Some(view) = value.view() {
        found.push((name, view));
        return Ok(());
    }
    for (key, inner) in value.entries() {
        collect(inner, under(&key), depth + 1, budget, found)?;
    }
    for (i, inner) in value.items().enumerate() {
        collect(inner, under(&i), depth + 1, budget, found)?;
    }
    Ok(())
}

/// The elements of a view, in row-major order.
fn gather<T: Scalar>(bytes: &[u8], kind: Kind, view: &View) -> Tensor {
    match kind {
        Kind::F64 => gather_as::<T, 8>(bytes, view, f64::from_le_bytes),
        Kind::F32 => gather_as::<T, 4>(bytes, view, |b| f32::from_le_bytes(b) as f64),
        Kind::F16 => gather_as::<T, 2>(bytes, view, |b| half::f16::from_le_bytes(b).to_f64()),
        Kind::Bf16 => gather_as::<T, 2>(bytes, view, |b| half::bf16::from_le_bytes(b).to_f64()),
        Kind::I64 => gather_as::<T, 8>(bytes, view, |b| i64::from_le_bytes(b) as f64),
        Kind::I32 => gather_as::<T, 4>(bytes, view, |b| i32::from_le_bytes(b) as f64),
        Kind::I16 => gather_as::<T, 2>(bytes, view, |b| i16::from_le_bytes(b) as f64),
        Kind::I8 => gather_as::<T, 1>(bytes, view, |b| i8::from_le_bytes(b) as f64),
        Kind::U8 => gather_as::<T, 1>(bytes, view, |b| b[0] as f64),
        Kind::Bool => gather_as::<T, 1>(bytes, view, |b| (b[0] != 0) as u8 as f64),
    }
}

fn gather_as<T: Scalar, const N: usize>(bytes: &[u8], view: &View, number: impl Fn([u8; N]) -> f64) -> Tensor {
    // Every other type fits into f64, so the detour changes no bit (an i64 beyond 2^53 is rounded, once).
    let (elements, _) = bytes.as_chunks::<N>();
    let n: usize = view.shape.iter().product();
    let mut out = Vec::with_capacity(n);
    let (rows, row, step) = match (view.shape.split_last(), view.strides.last()) {
        (Some((row, outer)), Some(step)) if n > 0 => (outer, *row, *step),
        (None, _) => (&[][..], 1, 0),
        _ => return Tensor::from_vec(&view.shape, out),
    };
    let mut index = vec![0; rows.len()];
    let mut start = view.offset;
    loop {
        out.extend((0..row).map(|i| T::from_f64(number(elements[start + i * step]))));
        // The next row: count up like an odometer.
        let Some(axis) = (0..rows.len()).rev().find(|a| index[*a] + 1 < rows[*a]) else { break };
        for (count, stride) in index[axis + 1..].iter_mut().zip(&view.strides[axis + 1..]) {
            start -= *count * stride;
            *count = 0;
        }
        index[axis] += 1;
        start += view.strides[axis];
    }
    Tensor::from_vec(&view.shape, out)
}

/// Without the `module.` that DataParallel puts before every name of a network it wraps; names are left alone unless
/// all of them have it.
pub fn without_module_prefix(tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    if tensors.is_empty() || !tensors.keys().all(|name| name.starts_with("module.")) {
        return tensors;
    }
    tensors.into_iter().map(|(name, tensor)| (name["module.".len()..].to_owned(), tensor)).collect()
}
