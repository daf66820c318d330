//! The part of Python's pickle language that tensors need, as data: an instruction makes a node in a flat list or
//! changes one, nothing is looked up and nothing runs. Any other global (a class or function of Python) is refused by
//! name. Nodes refer to each other by index, so shared and even circular values cost nothing and nothing recurses.

use std::collections::HashMap;
use std::io::{self, BufRead};

/// Why a pickle was not understood.
#[derive(Debug)]
pub(super) enum Problem {
    /// The file ends inside the pickle.
    CutShort,
    /// What is in it is not allowed or makes no sense.
    Refused(String),
    Io(io::Error),
}

impl From<io::Error> for Problem {
    fn from(e: io::Error) -> Problem {
        if e.kind() == io::ErrorKind::UnexpectedEof { Problem::CutShort } else { Problem::Io(e) }
    }
}

pub(super) type Outcome<T> = std::result::Result<T, Problem>;

fn refused<T>(what: impl Into<String>) -> Outcome<T> {
    Err(Problem::Refused(what.into()))
}

/// Index of a node.
pub(super) type Id = u32;

/// Element types of PyTorch's storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Kind {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Kind::F64 | Kind::I64 => 8,
            Kind::F32 | Kind::I32 => 4,
            Kind::F16 | Kind::Bf16 | Kind::I16 => 2,
            Kind::I8 | Kind::U8 | Kind::Bool => 1,
        }
    }

    fn of_storage(class: &str) -> Option<Kind> {
        Some(match class {
            "DoubleStorage" => Kind::F64,
            "FloatStorage" => Kind::F32,
            "HalfStorage" => Kind::F16,
            "BFloat16Storage" => Kind::Bf16,
            "LongStorage" => Kind::I64,
            "IntStorage" => Kind::I32,
            "ShortStorage" => Kind::I16,
            "CharStorage" => Kind::I8,
            "ByteStorage" => Kind::U8,
            "BoolStorage" => Kind::Bool,
            _ => return None,
        })
    }
}

/// A run of elements in the file, that tensors are views of.
#[derive(Debug)]
pub(super) struct Storage {
    pub kind: Kind,
    pub key: String,
    pub elements: u64,
}

/// A strided view of a storage; every element is known to lie inside it.
#[derive(Debug)]
pub(super) struct View {
    pub storage: usize,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The globals that are understood. Storage classes carry their element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    Namespace,
    RebuildTensor,
    RebuildParameter,
    Size,
    Device,
    Storage(Kind),
}

#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    /// A dict or OrderedDict: keys and values, the last of equal keys holds.
    Dict(Vec<(Id, Id)>),
    /// An argparse.Namespace: the dict of its names and values, once it is known.
    Namespace(Option<Id>),
    Global(Global),
    Storage(u32),
    Tensor(Box<View>),
}

/// What one pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    pub nodes: Vec<Node>,
    pub storages: Vec<Storage>,
    pub root: Id,
}

/// Checkpoints hold thousands of values; a file that asks for more than this is not one.
const MAX_NODES: usize = 4 << 20;

/// What the known functions take at most, with room.
const MAX_ARGUMENTS: usize = 8;
/// Dimensions of a tensor at most: a network's have five.
const MAX_RANK: usize = 8;

/// Bytes of a file that knows how many are left, so that no claimed length is believed.
pub(super) struct Input<R> {
    pub reader: R,
    pub left: u64,
}

impl<R: BufRead> Input<R> {
    pub(super) fn bytes(&mut self, n: u64) -> Outcome<Vec<u8>> {
        if n > self.left {
            return Err(Problem::CutShort);
        }
        let mut out = vec![0; n as usize];
        self.reader.read_exact(&mut out)?;
        self.left -= n;
        Ok(out)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut out = [0; N];
        self.reader.read_exact(&mut out)?;
        self.left = self.left.saturating_sub(N as u64);
        Ok(out)
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Text up to a newline, which is dropped.
    fn line(&mut self) -> Outcome<String> {
        let mut out = Vec::new();
        // Names and numbers are short; a longer line is no pickle of ours.
        io::Read::take(&mut self.reader, 4096).read_until(b'\n', &mut out)?;
        self.left = self.left.saturating_sub(out.len() as u64);
        match out.pop() {
            Some(b'\n') => text(out),
            Some(_) if out.len() < 4095 => Err(Problem::CutShort),
            Some(_) => refused("a line of its pickle is longer than 4096 bytes"),
            None => Err(Problem::CutShort),
        }
    }
}

fn text(bytes: Vec<u8>) -> Outcome<String> {
    String::from_utf8(bytes).or_else(|_| refused("a string of its pickle is not text"))
}

/// Names of what a file holds are shown in errors; a hostile one must not fill the screen.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
    if short.len() < name.len() { short + "..." } else { short }
}

struct Machine<'a, R> {
    input: &'a mut Input<R>,
    nodes: Vec<Node>,
    storages: Vec<Storage>,
    storage_of_key: HashMap<String, usize>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

/// Interprets one pickle; afterwards `input` stands behind it.
pub(super) fn read<R: BufRead>(input: &mut Input<R>) -> Outcome<Pickle> {
    let mut machine = Machine {
        input,
        nodes: Vec::new(),
        storages: Vec::new(),
        storage_of_key: HashMap::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let opcode = machine.input.byte()?;
        if opcode == b'.' {
            let root = machine.pop()?;
            return Ok(Pickle { nodes: machine.nodes, storages: machine.storages, root });
        }
        machine.step(opcode)?;
        let held = machine.nodes.len().max(machine.stack.len()).max(machine.marks.len()).max(machine.memo.len());
        if held > MAX_NODES {
            return refused(format!("its pickle holds more than {MAX_NODES} values; it is not a checkpoint"));
        }
    }
}

impl<R: BufRead> Machine<'_, R> {
    fn step(&mut self, opcode: u8) -> Outcome<()> {
        match opcode {
            // The protocol, and frames, which only matter to readers that read ahead.
            0x80 => {
                let protocol = self.input.byte()?;
                if protocol > 5 {
                    return refused(format!("pickle protocol {protocol} is unknown; save it with protocol 2"));
                }
            }
            0x95 => {
                self.input.array::<8>()?;
            }

            // The stack.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.above_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }

            // Plain values.
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'K' => {
                let v = self.input.byte()?;
                self.push(Node::Int(v as i64));
            }
            b'M' => {
                let v = u16::from_le_bytes(self.input.array()?);
                self.push(Node::Int(v as i64));
            }
            b'J' => {
                let v = i32::from_le_bytes(self.input.array()?);
                self.push(Node::Int(v as i64));
            }
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'I' | b'L' => {
                let line = self.input.line()?;
                let node = match (line.trim_end_matches('L'), opcode) {
                    ("00", b'I') => Node::Bool(false),
                    ("01", b'I') => Node::Bool(true),
                    (digits, _) => match digits.parse() {
                        Ok(v) => Node::Int(v),
                        Err(_) => return refused("a number of its pickle is malformed"),
                    },
                };
                self.push(node);
            }
            b'F' => match self.input.line()?.parse() {
                Ok(v) => self.push(Node::Float(v)),
                Err(_) => return refused("a number of its pickle is malformed"),
            },
            b'G' => {
                let v = f64::from_be_bytes(self.input.array()?);
                self.push(Node::Float(v));
            }
            b'V' => {
                let v = self.input.line()?;
                self.push(Node::Text(v.into()));
            }
            // Strings: of Python 3, then of Python 2.
            0x8c | b'U' => self.text(1)?,
            b'X' | b'T' => self.text(4)?,
            0x8d => self.text(8)?,
            b'C' => self.raw_bytes(1)?,
            b'B' => self.raw_bytes(4)?,
            0x8e => self.raw_bytes(8)?,

            // Containers.
            b')' => self.push(Node::Tuple([].into())),
            b't' => {
                let items = self.above_mark()?;
                self.push(Node::Tuple(items.into()));
            }
            0x85..=0x87 => {
                let items = self.pop_many(opcode as usize - 0x84)?;
                self.push(Node::Tuple(items.into()));
            }
            b']' => self.push(Node::List(Vec::new())),
            b'l' => {
                let items = self.above_mark()?;
                self.push(Node::List(items));
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.above_mark()?;
                let pairs = pairs(&items)?;
                self.push(Node::Dict(pairs));
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)?;
            }
            b'e' => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.above_mark()?;
                self.set_items(&items)?;
            }

            // The memo.
            b'p' => {
                let at = self.input.line()?.parse().or_else(|_| refused("a memo index is malformed"))?;
                self.remember(at)?;
            }
            b'q' => {
                let at = self.input.byte()? as u64;
                self.remember(at)?;
            }
            b'r' => {
                let at = u32::from_le_bytes(self.input.array()?) as u64;
                self.remember(at)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'g' => {
                let at = self.input.line()?.parse().or_else(|_| refused("a memo index is malformed"))?;
                self.recall(at)?;
            }
            b'h' => {
                let at = self.input.byte()? as u64;
                self.recall(at)?;
            }
            b'j' => {
                let at = u32::from_le_bytes(self.input.array()?) as u64;
                self.recall(at)?;
            }

            // Globals, and what may be done with them.
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let (Node::Text(module), Node::Text(name)) = (self.node(names[0]), self.node(names[1])) else {
                    return refused("the name of a global in its pickle is not text");
                };
                let (module, name) = (module.to_string(), name.to_string());
                self.global(&module, &name)?;
            }
            b'Q' => self.storage()?,
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            other => return refused(format!("its pickle uses instruction {other:#04x}, which tensors do not need")),
        }
        Ok(())
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    fn top(&self) -> Outcome<Id> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => refused("its pickle takes more values than there are"),
        }
    }

    /// Values under the last mark are out of reach until it is taken away.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Outcome<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, n: usize) -> Outcome<Vec<Id>> {
        if self.stack.len() < self.floor() + n {
            return refused("its pickle takes more values than there are");
        }
        Ok(self.stack.split_off(self.stack.len() - n))
    }

    fn above_mark(&mut self) -> Outcome<Vec<Id>> {
        match self.marks.pop() {
            Some(at) => Ok(self.stack.split_off(at)),
            None => refused("its pickle takes more values than there are"),
        }
    }

    /// A length of 1, 4 or 8 bytes, then as many bytes.
    fn counted(&mut self, width: usize) -> Outcome<Vec<u8>> {
        let n = match width {
            1 => self.input.byte()? as u64,
            4 => u32::from_le_bytes(self.input.array()?) as u64,
            _ => u64::from_le_bytes(self.input.array()?),
        };
        self.input.bytes(n)
    }

    fn text(&mut self, width: usize) -> Outcome<()> {
        let bytes = self.counted(width)?;
        let v = text(bytes)?;
        self.push(Node::Text(v.into()));
        Ok(())
    }

    fn raw_bytes(&mut self, width: usize) -> Outcome<()> {
        let bytes = self.counted(width)?;
        self.push(Node::Bytes(bytes.into()));
        Ok(())
    }

    /// A little-endian integer in two's complement. One that 64 bits cannot hold stays bytes: PyTorch's own signature
    /// at the head of a legacy file is one.
    fn long(&mut self, width: usize) -> Outcome<()> {
        let bytes = self.counted(width)?;
        if bytes.len() > 8 {
            self.push(Node::Bytes(bytes.into()));
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(&bytes);
        self.push(Node::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn remember(&mut self, at: u64) -> Outcome<()> {
        let id = self.top()?;
        self.memo.insert(at, id);
        Ok(())
    }

    fn recall(&mut self, at: u64) -> Outcome<()> {
        match self.memo.get(&at) {
            Some(id) => self.stack.push(*id),
            None => return refused(format!("its pickle refers to value {at}, which it never made")),
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Outcome<()> {
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::List(list) => list.extend(items),
            _ => return refused("its pickle appends to something that is no list"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Outcome<()> {
        let pairs = pairs(items)?;
        let id = self.top()?;
        match &mut self.nodes[id as usize] {
            Node::Dict(dict) => dict.extend(pairs),
            _ => return refused("its pickle sets items of something that is no dictionary"),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Outcome<()> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("argparse", "Namespace") => Global::Namespace,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
            ("torch", "Size") => Global::Size,
            ("torch", "device") => Global::Device,
            ("torch", class) if Kind::of_storage(class).is_some() => {
                Global::Storage(Kind::of_storage(class).expect("the guard asked"))
            }
            _ => {
                let name = shown(&format!("{module}.{name}"));
                return refused(format!(
                    "holds a Python object of {name}, which is not read because it could run code; \
                     save tensors, numbers, strings, lists and dictionaries only (a state_dict)"
                ));
            }
        };
        self.push(Node::Global(global));
        Ok(())
    }

    /// A persistent id: ("storage", class, key, device, elements), in older files with a sixth part.
    fn storage(&mut self) -> Outcome<()> {
        let id = self.pop()?;
        let malformed = || refused("its pickle describes a storage in an unknown way");
        let Node::Tuple(parts) = self.node(id) else { return malformed() };
        let parts: Vec<&Node> = parts.iter().map(|id| self.node(*id)).collect();
        let (kind, key, elements) = match &parts[..] {
            [Node::Text(tag), Node::Global(Global::Storage(kind)), Node::Text(key), Node::Text(_), Node::Int(elements), rest @ ..]
                if &**tag == "storage" =>
            {
                if !matches!(rest, [] | [Node::None]) {
                    return refused("was written by PyTorch before 0.4; load and save it again with a newer one");
                }
                (*kind, key.to_string(), *elements)
            }
            _ => return malformed(),
        };
        let Ok(elements) = u64::try_from(elements) else { return malformed() };
        let index = match self.storage_of_key.get(&key).copied() {
            Some(i) if self.storages[i].kind == kind && self.storages[i].elements == elements => i,
            Some(_) => return refused(format!("its pickle describes storage {} in two ways", shown(&key))),
            None => {
                self.storage_of_key.insert(key.clone(), self.storages.len());
                self.storages.push(Storage { kind, key, elements });
                self.storages.len() - 1
            }
        };
        self.push(Node::Storage(index as u32));
        Ok(())
    }

    /// Calls of the known globals, by what they would make.
    fn call(&mut self) -> Outcome<()> {
        let parts = self.pop_many(2)?;
        let (Node::Global(global), Node::Tuple(args)) = (self.node(parts[0]), self.node(parts[1])) else {
            return refused("its pickle calls something that is no function");
        };
        let wrong = || refused("its pickle calls a function of PyTorch with unknown arguments");
        if args.len() > MAX_ARGUMENTS {
            return wrong();
        }
        let (global, args) = (*global, args.to_vec());
        let node = match (global, &args[..]) {
            (Global::OrderedDict, []) => Node::Dict(Vec::new()),
            // Python 2 wrote the items as a list of pairs, made for this call alone: taken out of it, not copied, or a
            // pickle could have one list copied a thousand times.
            (Global::OrderedDict, [items]) => {
                let Node::List(list) = &mut self.nodes[*items as usize] else { return wrong() };
                let list = std::mem::take(list);
                let mut dict = Vec::with_capacity(list.len());
                for item in list {
                    match self.node(item) {
                        Node::Tuple(pair) if pair.len() == 2 => dict.push((pair[0], pair[1])),
                        Node::List(pair) if pair.len() == 2 => dict.push((pair[0], pair[1])),
                        _ => return wrong(),
                    }
                }
                Node::Dict(dict)
            }
            (Global::Namespace, []) => Node::Namespace(None),
            (Global::RebuildTensor, [storage, offset, shape, strides, ..]) => {
                let Node::Storage(storage) = self.node(*storage) else { return wrong() };
                let view = View {
                    storage: *storage as usize,
                    offset: self.size(*offset)?,
                    shape: self.sizes(*shape)?,
                    strides: self.sizes(*strides)?,
                };
                if !fits(&view, self.storages[view.storage].elements) {
                    return refused("a tensor lies outside its storage");
                }
                Node::Tensor(Box::new(view))
            }
            (Global::RebuildParameter, [tensor, ..]) if matches!(self.node(*tensor), Node::Tensor(_)) => {
                self.stack.push(*tensor);
                return Ok(());
            }
            (Global::Size, [sizes]) if matches!(self.node(*sizes), Node::Tuple(_)) => {
                self.stack.push(*sizes);
                return Ok(());
            }
            (Global::Device, [name, ..]) if matches!(self.node(*name), Node::Text(_)) => {
                self.stack.push(*name);
                return Ok(());
            }
            _ => return wrong(),
        };
        self.push(node);
        Ok(())
    }

    /// The state of an object: a Namespace's values; of other things it is bookkeeping (`_metadata` of a state_dict).
    fn build(&mut self) -> Outcome<()> {
        let state = self.pop()?;
        let target = self.top()?;
        match self.node(target) {
            Node::Namespace(_) => {
                if !matches!(self.node(state), Node::Dict(_)) {
                    return refused("the state of an argparse.Namespace is no dictionary");
                }
                self.nodes[target as usize] = Node::Namespace(Some(state));
            }
            Node::Dict(_) | Node::Tensor(_) => {}
            _ => return refused("its pickle sets the state of something that has none"),
        }
        Ok(())
    }

    fn size(&self, id: Id) -> Outcome<usize> {
        match self.node(id) {
            Node::Int(v) => usize::try_from(*v).or_else(|_| refused("a tensor has a negative size or stride")),
            _ => refused("a size of a tensor is no integer"),
        }
    }

    fn sizes(&self, id: Id) -> Outcome<Vec<usize>> {
        match self.node(id) {
            Node::Tuple(ids) if ids.len() <= MAX_RANK => ids.iter().map(|id| self.size(*id)).collect(),
            Node::List(ids) if ids.len() <= MAX_RANK => ids.iter().map(|id| self.size(*id)).collect(),
            _ => refused("the shape of a tensor is no tuple of at most 8 sizes"),
        }
    }
}

fn pairs(items: &[Id]) -> Outcome<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return refused("a dictionary of its pickle has a key without a value");
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// Whether every element of the view lies among the storage's `elements`.
fn fits(view: &View, elements: u64) -> bool {
    if view.shape.len() != view.strides.len() {
        return false;
    }
    if view.shape.contains(&0) {
        return true;
    }
    let mut last = view.offset;
    for (size, stride) in view.shape.iter().zip(&view.strides) {
        let Some(next) = (size - 1).checked_mul(*stride).and_then(|reach| last.checked_add(reach)) else { return false };
        last = next;
    }
    (last as u64) < elements
}
