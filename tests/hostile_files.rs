//! Mutated and hostile checkpoint files: no panic, no long wait, no memory beyond a small multiple of the file. The
//! allocator of this test counts, so the tests of this file run one after another.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use recant::io::archive::Archive;
use recant::io::torch_file::TorchFile;
use recant::io::{npz, safetensors};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract, which is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The most memory that was held at once during `work`, beyond what was held before.
fn peak(work: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed).saturating_sub(before)
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)).expect("golden files are there")
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(std::env::temp_dir().join(format!("recant-hostile-{}-{name}", std::process::id())))
    }

    fn holding(&self, bytes: &[u8]) -> &Path {
        // A new file each time: writing over an old one makes some file systems wait for the disk.
        let _ = std::fs::remove_file(&self.0);
        std::fs::write(&self.0, bytes).expect("the temporary folder is writable");
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A small generator of its own (splitmix64): the mutations must not change with the engine's.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ x >> 31) % n as u64) as usize
    }

    /// Changes bytes, puts extreme numbers in, repeats, removes or cuts off a part.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(16)).min(bytes.len());
            match self.below(8) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.below(256) as u8,
                2 => bytes[at..end].fill(0xff),
                3 => bytes[at..end].fill(0),
                4 => bytes[at..end].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f].repeat(4)[..end - at]),
                5 => {
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part.repeat(1 + self.below(20)));
                }
                6 => drop(bytes.drain(at..end)),
                _ if self.below(8) == 0 => bytes.truncate(at.max(1)),
                _ => bytes[at] = b"().0QRbcehjqtu}]\x81\x85\x8a\x93\x94"[self.below(21)],
            }
        }
    }
}

/// Memory that reading a file of this size may take: nodes and names are a few dozen times larger than the bytes that
/// make them, buffers have a fixed size.
fn allowed(file: usize) -> usize {
    64 * file + (1 << 20)
}

fn survives(name: &str, original: &[u8], runs: usize, read: impl Fn(&Path) -> recant::error::Result<()>) {
    let _alone = alone();
    let scratch = Scratch::new(name);
    read(scratch.holding(original)).expect("the original is good");
    let mut dice = Dice(1);
    let mut refused = 0;
    let start = Instant::now();
    for _ in 0..runs {
        let mut bytes = original.to_vec();
        dice.mutate(&mut bytes);
        let path = scratch.holding(&bytes);
        let mut line = None;
        let memory = peak(|| line = read(path).err().map(|e| e.to_string()));
        assert!(memory <= allowed(bytes.len()), "{memory} bytes of memory for a file of {}", bytes.len());
        if let Some(line) = line {
            refused += 1;
            assert!(!line.contains('\n') && line.len() < 600, "not one line: {line}");
        }
    }
    // Most mutations of a zip entry change its checksum; of the others many change nothing that matters.
    assert!(refused > runs / 20, "only {refused} of {runs} refused");
    let took = start.elapsed();
    assert!(took < Duration::from_secs(60), "{runs} small files took {took:?}");
}

fn read_torch(path: &Path) -> recant::error::Result<()> {
    TorchFile::open(path)?.tensors().map(drop)
}

#[test]
fn mutated_legacy_checkpoints() {
    survives("legacy", &golden("torch_files/small_legacy.pt"), 6000, read_torch);
}

#[test]
fn mutated_zip_checkpoints() {
    survives("zip", &golden("torch_files/small_zip.pt"), 3000, read_torch);
}

/// The pickle inside a zip is protected by a checksum, which a hostile writer would set right.
#[test]
fn mutated_pickles_with_right_checksums() {
    let _alone = alone();
    let scratch = Scratch::new("pickle");
    let archive = Archive::open(scratch.holding(&golden("torch_files/small_zip.pt"))).unwrap();
    let entries: Vec<_> = archive.entries.iter().map(|e| (e.name.clone(), archive.read(e).unwrap())).collect();
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let packed = |mutated: &mut dyn FnMut(&[u8]) -> Vec<u8>| {
        let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, content) in &entries {
            out.start_file(name, options).unwrap();
            let content = if name.ends_with("data.pkl") { mutated(content) } else { content.clone() };
            std::io::Write::write_all(&mut out, &content).unwrap();
        }
        out.finish().unwrap().into_inner()
    };
    let mut dice = Dice(2);
    for _ in 0..3000 {
        let bytes = packed(&mut |pickle| {
            let mut pickle = pickle.to_vec();
            dice.mutate(&mut pickle);
            pickle
        });
        let path = scratch.holding(&bytes);
        let memory = peak(|| drop(read_torch(path)));
        assert!(memory <= allowed(bytes.len()), "{memory} bytes of memory for a file of {}", bytes.len());
    }
}

/// Pickles made to be large in memory or slow: each is about 100 KB.
#[test]
fn pickles_that_aim_at_memory_and_time() {
    let _alone = alone();
    let n = 100_000;
    let head = b"\x80\x02";
    let tail = |middle: Vec<u8>| [&head[..], &middle, b"."].concat();
    let ordered = b"ccollections\nOrderedDict\nq\x010";
    let mut numbers = b"](".to_vec();
    (0..n / 2).for_each(|_| numbers.extend(b"K\x01"));
    numbers.extend(b"eq\x020");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("lists", tail(vec![b']'; n])),
        ("marks", tail(vec![b'('; n])),
        ("twins", tail([&b"N"[..], &vec![b'2'; n]].concat())),
        ("memo", tail([&b"N"[..], &(0..n as u32 / 5).flat_map(|i| [&b"r"[..], &i.to_le_bytes()].concat()).collect::<Vec<_>>()].concat())),
        // One long list, called and appended over and over.
        ("calls", tail([&ordered[..], &numbers, &b"h\x01h\x02\x85R0".repeat(n / 7)].concat())),
        ("append", tail([&numbers[..], &b"]h\x02a0".repeat(n / 5)].concat())),
        ("build", tail([&b"}q\x03("[..], &b"K\x01K\x02".repeat(n / 8), b"u0cargparse\nNamespace\n)\x81", &b"h\x03b".repeat(n / 3)].concat())),
        ("tuples", tail([&numbers[..], &b"h\x02\x85h\x02\x860".repeat(n / 7)].concat())),
        ("length", tail([b"X", &u32::MAX.to_le_bytes()[..], b"abc"].concat())),
        ("bytes", tail([b"\x8e", &(u64::MAX / 2).to_le_bytes()[..], b"abc"].concat())),
        ("long", tail([b"\x8b", &u32::MAX.to_le_bytes()[..], b"abc"].concat())),
        ("line", tail([&b"I"[..], &vec![b'1'; n]].concat())),
        ("wide", tail([&numbers[..], &[b"](".to_vec(), b"h\x02".repeat(2000), b"e".to_vec()].concat()].concat())),
    ];
    let scratch = Scratch::new("aimed");
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, pickle) in cases {
        let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        out.start_file("x/data.pkl", options).unwrap();
        std::io::Write::write_all(&mut out, &pickle).unwrap();
        let bytes = out.finish().unwrap().into_inner();
        let path = scratch.holding(&bytes);
        let start = Instant::now();
        let memory = peak(|| drop(read_torch(path)));
        assert!(memory <= allowed(bytes.len()), "{name}: {memory} bytes of memory for a file of {}", bytes.len());
        assert!(start.elapsed() < Duration::from_secs(3), "{name} took {:?}", start.elapsed());
    }
}

#[test]
fn mutated_arrays_and_safetensors() {
    let bytes = golden("nets/lenet_mnist_first64.npz");
    survives("npz", &bytes, 1000, |path| npz::read(path).map(drop));
    let bytes = golden("stylegan2_tiny/train_generator_after3.safetensors");
    // The header and the first tensors; mutations deep in the numbers would only change numbers.
    survives("safetensors", &bytes, 300, |path| safetensors::read(path).map(drop));
}
