use std::path::PathBuf;

use super::*;
use crate::io::scratch::{Scratch, real_data, refused};
use crate::io::safetensors;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Both formats of the same value, which holds every element type and every kind of value.
fn small() -> [TorchFile; 2] {
    ["small_zip.pt", "small_legacy.pt"].map(|name| TorchFile::open(golden("torch_files").join(name)).unwrap())
}

#[test]
fn element_types_and_strides() {
    let w: Vec<f64> = (0..24).map(|i| i as f64 / 8.0 - 1.0).collect();
    let pick = |indices: &[usize]| indices.iter().map(|i| w[*i]).collect::<Vec<_>>();
    for file in small() {
        let check = |name: &str, shape: &[usize], expected: &[f64]| {
            let tensor = file.root().get(name).unwrap().tensor::<f64>().unwrap();
            assert_eq!((tensor.shape(), &tensor.to_f64_vec()[..]), (shape, expected), "{name}");
        };
        let transposed: Vec<usize> = (0..4).flat_map(|k| (0..6).map(move |ij| ij * 4 + k)).collect();
        check("transposed", &[4, 2, 3], &pick(&transposed));
        check("offset", &[2, 4], &w[16..]);
        check("column", &[2, 3], &pick(&[2, 6, 10, 14, 18, 22]));
        check("expanded", &[3], &[2.5; 3]);
        check("parameter", &[3, 4], &w[..12]);
        for kind in ["f64", "f16", "bf16"] {
            check(kind, &[3, 4], &w[..12]);
        }
        check("i64", &[2], &[-5.0, (1u64 << 40) as f64]);
        for kind in ["i32", "i16", "i8"] {
            check(kind, &[2], &[-5.0, 7.0]);
        }
        check("u8", &[2], &[0.0, 255.0]);
        check("bool", &[2], &[1.0, 0.0]);
        check("scalar", &[], &[3.25]);
        check("empty", &[0, 4], &[]);
        assert_eq!(file.root().get("bf16").unwrap().kind(), Some(Kind::Bf16));
        refused(file.root().get("args").unwrap().tensor::<f32>(), &["small_", "a tensor was expected"]);
    }
}

#[test]
fn values_that_are_no_tensors() {
    for file in small() {
        let args = file.root().get("args").unwrap();
        assert!(args.is_dict());
        assert_eq!(args.get("size").unwrap().as_int(), Some(32));
        assert_eq!(args.get("lr").unwrap().as_f64(), Some(0.002));
        assert_eq!(args.get("name").unwrap().as_text(), Some("é"));
        assert_eq!(args.get("big").unwrap().as_int(), Some(1 << 40));
        assert_eq!(args.get("negative").unwrap().as_int(), Some(-3));
        assert_eq!(args.get("flag").unwrap().as_bool(), Some(true));
        assert!(args.get("none").unwrap().is_none());
        assert_eq!(args.get("list").unwrap().items().map(|v| v.as_int()).collect::<Vec<_>>(), [Some(1), Some(2)]);
        let pair = args.get("pair").unwrap().items().collect::<Vec<_>>();
        assert_eq!((pair[0].as_f64(), pair[1].as_text()), (Some(0.5), Some("x")));
        assert!(args.get("absent").is_none());
        assert_eq!(file.root().get("device").unwrap().as_text(), Some("cpu"));
        assert_eq!(file.root().get("size").unwrap().items().len(), 2);
        assert_eq!(file.root().get_index(7).unwrap().as_text(), Some("seven"));
        // An optimiser's state is keyed by integers.
        let optim = file.root().get("optim").unwrap();
        let state = optim.get("state").unwrap();
        assert_eq!(state.entries().map(|(k, _)| k).collect::<Vec<_>>(), [0, 1, 2, 3].map(Key::Int));
        let first = state.get_index(0).unwrap();
        assert_eq!(first.get("exp_avg_sq").unwrap().shape(), Some(&[2, 3][..]));
        assert_eq!(first.get("step").unwrap().tensor::<f32>().unwrap().item().unwrap(), 1.0);
        let group = optim.get("param_groups").unwrap().items().next().unwrap();
        assert_eq!(group.get("lr").unwrap().as_f64(), Some(0.002));
        let all = file.tensors().unwrap();
        assert_eq!(all["net.a.weight"].shape(), [2, 3]);
        assert_eq!(all["optim.state.3.exp_avg"].shape(), [2]);
        assert_eq!(all.len(), 16 + 7 + 12);
    }
}

#[test]
fn a_whole_checkpoint() {
    for name in ["rosinality_checkpoint.pt", "rosinality_checkpoint_legacy.pt"] {
        let file = TorchFile::open(golden("stylegan2_tiny").join(name)).unwrap();
        for (part, expected) in [("g", "generator"), ("g_ema", "gema"), ("d", "discriminator")] {
            let expected = golden("stylegan2_tiny").join(format!("train_{expected}_after3.safetensors"));
            let expected = safetensors::read(expected).unwrap().tensors;
            let found = file.root().get(part).unwrap().tensors().unwrap();
            assert!(found.keys().eq(expected.keys()));
            for (name, tensor) in &expected {
                assert_eq!(found[name].shape(), tensor.shape());
                assert_eq!(found[name].to_vec::<f32>(), tensor.to_vec::<f32>(), "{part}.{name}");
            }
        }
        let all = file.tensors().unwrap();
        assert!(all.contains_key("g_ema.conv1.conv.weight") && all.contains_key("d.final_linear.1.bias"));
    }
    let file = TorchFile::open(golden("stylegan2_tiny/rosinality_checkpoint.pt")).unwrap();
    assert_eq!(file.root().get("args").unwrap().get("latent").unwrap().as_int(), Some(16));
    assert_eq!(file.root().get("g_optim").unwrap().get("state").unwrap().entries().count(), 68);
}

#[test]
fn wrapped_names() {
    let file = &small()[0];
    let net = file.root().get("net").unwrap().tensors().unwrap();
    let wrapped: BTreeMap<_, _> = net.iter().map(|(k, v)| (format!("module.{k}"), v.clone())).collect();
    assert!(without_module_prefix(wrapped.clone()).keys().eq(net.keys()));
    let mut mixed = wrapped;
    mixed.insert("other".into(), net["a.bias"].clone());
    assert!(without_module_prefix(mixed.clone()).keys().eq(mixed.keys()));
}

#[test]
fn what_is_written_reads_back() {
    let scratch = Scratch::new();
    let path = scratch.path().join("out.pt");
    let tensor = Tensor::from_vec(&[2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let root = Item::Dict(vec![
        ("g".into(), Item::Dict(vec![("w".into(), (&tensor).into()), ("s".into(), (&Tensor::from_vec(&[], vec![2f64])).into())])),
        ("state".into(), Item::Numbered(vec![(0, (&tensor).into()), (1 << 40, Item::None)])),
        ("list".into(), Item::List(vec![Item::Int(-1), Item::Int(i64::MIN), Item::Float(0.1), Item::Bool(false), Item::Text("ü".into())])),
    ]);
    write(&path, &root).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let file = TorchFile::open(&path).unwrap();
    let all = file.tensors().unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["g.s", "g.w", "state.0"]);
    assert_eq!(all["g.w"].to_vec::<f32>(), tensor.to_vec::<f32>());
    assert_eq!(file.root().get("g").unwrap().get("s").unwrap().kind(), Some(Kind::F64));
    let list: Vec<_> = file.root().get("list").unwrap().items().collect();
    assert_eq!((list[0].as_int(), list[1].as_int(), list[2].as_f64()), (Some(-1), Some(i64::MIN), Some(0.1)));
    assert_eq!((list[3].as_bool(), list[4].as_text()), (Some(false), Some("ü")));
    assert!(file.root().get("state").unwrap().get_index(1 << 40).unwrap().is_none());
    write(&path, &root).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "equal values make equal files");
    refused(write(scratch.path().join("no/such.pt"), &root), &["such.pt", "create it first"]);
}

/// A zip file as PyTorch writes it, around a pickle and its storages.
fn zipped(scratch: &Scratch, name: &str, pickle: &[u8], storages: &[(&str, &[u8])], deflated: bool) -> PathBuf {
    use std::io::Write;
    let method = if deflated { ::zip::CompressionMethod::Deflated } else { ::zip::CompressionMethod::Stored };
    let options = ::zip::write::SimpleFileOptions::default().compression_method(method);
    let mut out = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    out.start_file("x/data.pkl", options).unwrap();
    out.write_all(pickle).unwrap();
    for (key, content) in storages {
        out.start_file(format!("x/data/{key}"), options).unwrap();
        out.write_all(content).unwrap();
    }
    scratch.file(name, &out.finish().unwrap().into_inner())
}

/// A pickle of one f32 tensor over storage "0".
fn tensor_pickle(elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let mut out = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu".to_vec();
    let int = |out: &mut Vec<u8>, v: i32| {
        out.push(b'J');
        out.extend(v.to_le_bytes());
    };
    int(&mut out, elements);
    out.extend(b"tQ");
    int(&mut out, offset);
    for sizes in [shape, strides] {
        out.push(b'(');
        sizes.iter().for_each(|v| int(&mut out, *v));
        out.push(b't');
    }
    out.extend(b"\x89}tR.");
    out
}

#[test]
fn hostile_tensors() {
    let scratch = Scratch::new();
    let four = 1f32.to_le_bytes();
    let open = |name: &str, pickle: &[u8], content: &[u8]| {
        TorchFile::open(zipped(&scratch, name, pickle, &[("0", content)], false)).and_then(|f| f.tensors())
    };
    assert_eq!(open("good", &tensor_pickle(1, 0, &[1], &[1]), &four).unwrap()[""].to_f64_vec(), [1.0]);
    refused(open("offset", &tensor_pickle(1, 1, &[1], &[1]), &four), &["offset", "outside its storage"]);
    refused(open("stride", &tensor_pickle(1, 0, &[2], &[1]), &four), &["stride", "outside its storage"]);
    refused(open("negative", &tensor_pickle(1, 0, &[1], &[-1]), &four), &["negative size or stride"]);
    refused(open("rank", &tensor_pickle(1, 0, &[1, 1], &[1]), &four), &["outside its storage"]);
    refused(open("size", &tensor_pickle(1 << 30, 0, &[1], &[1]), &four), &["size", "missing or of another size"]);
    // One element repeated 2^60 times, and one repeated by many tensors.
    refused(open("repeat", &tensor_pickle(1, 0, &[1 << 30, 1 << 30], &[0, 0]), &four), &["repeat", "more elements"]);
    let one = tensor_pickle(1, 0, &[300], &[0]);
    let mut other = one.clone();
    let at = other.windows(4).rposition(|w| w == 300i32.to_le_bytes()).unwrap();
    other[at..at + 4].copy_from_slice(&299i32.to_le_bytes());
    let pair = [&one[..one.len() - 1], &other[2..other.len() - 1], b"\x86."].concat();
    refused(open("many", &pair, &four), &["many", "more elements"]);
    let squeezed = zipped(&scratch, "zeros", &tensor_pickle(1 << 20, 0, &[1], &[1]), &[("0", &vec![0; 4 << 20])], true);
    refused(TorchFile::open(squeezed), &["zeros", "packed more than"]);
    let deflated = zipped(&scratch, "deflated", &tensor_pickle(1, 0, &[1], &[1]), &[("0", &four)], true);
    assert_eq!(TorchFile::open(deflated).unwrap().tensors().unwrap()[""].to_f64_vec(), [1.0]);
}

#[test]
fn hostile_pickles() {
    let scratch = Scratch::new();
    let open = |name: &str, pickle: &[u8]| TorchFile::open(zipped(&scratch, name, pickle, &[], false));
    refused(open("system", b"\x80\x02cposix\nsystem\nX\x04\0\0\0trueR."), &["system", "posix.system", "could run code"]);
    refused(open("stacked", b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."), &["builtins.eval"]);
    refused(open("escape", b"\x80\x02c\x1b[2J\nx\n."), &["?[2J.x"]);
    refused(open("build", b"\x80\x02]}b."), &["build", "sets the state"]);
    refused(open("call", b"\x80\x02])R."), &["calls something that is no function"]);
    refused(open("opcode", b"\x80\x02P0\n."), &["instruction 0x50"]);
    refused(open("underflow", b"\x80\x02(0."), &["more values than there are"]);
    refused(open("memo", b"\x80\x02h\x05."), &["value 5"]);
    refused(open("length", b"\x80\x02X\xff\xff\xff\xffabc"), &["length", "cut short"]);
    refused(open("length8", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc"), &["cut short"]);
    refused(open("odd", b"\x80\x02}(K\x01u."), &["key without a value"]);
    refused(open("unhashed", b"\x80\x02]K\x01K\x02s."), &["no dictionary"]);
    // A list that holds itself, and lists that hold the one before twice: 2^60 values in 300 bytes.
    let circle = open("circle", b"\x80\x02]q\x00h\x00a.").unwrap();
    refused(circle.tensors(), &["circle", "nested"]);
    let mut doubling = b"\x80\x02]q\x00".to_vec();
    (0..25).for_each(|_| doubling.extend(b"0](h\x00h\x00eq\x00"));
    doubling.push(b'.');
    refused(open("doubling", &doubling).unwrap().tensors(), &["doubling", "nested"]);
    let deep = [&b"\x80\x02"[..], &[b']'; 100_000], &[b'a'; 99_999], b"."].concat();
    refused(open("deep", &deep).unwrap().tensors(), &["deep", "nested"]);
}

#[test]
fn refused_files() {
    let scratch = Scratch::new();
    refused(TorchFile::open(golden("torch_files/numpy_scalar.pt")), &["numpy_scalar.pt", "numpy", "scalar", "could run code"]);
    let legacy = std::fs::read(golden("torch_files/small_legacy.pt")).unwrap();
    for at in [5, 30, 500, legacy.len() / 2, legacy.len() - 1] {
        refused(TorchFile::open(scratch.file("cut.pth", &legacy[..at])), &["cut.pth", "cut short; download or copy it again"]);
    }
    // The same signature behind a frame, as pickle protocol 4 writes it, and then cut off.
    let framed = [&b"\x80\x04\x95\x0d\0\0\0\0\0\0\0"[..], &legacy[2..15], &legacy[15..40]].concat();
    refused(TorchFile::open(scratch.file("framed.pth", &framed)), &["framed.pth", "cut short"]);
    let zip = std::fs::read(golden("torch_files/small_zip.pt")).unwrap();
    for at in [20, zip.len() / 2, zip.len() - 1] {
        refused(TorchFile::open(scratch.file("cut.pt", &zip[..at])), &["cut.pt", "cut short"]);
    }
    let not = "is not a PyTorch file";
    refused(TorchFile::open(scratch.file("empty.pt", b"")), &["empty.pt", not]);
    refused(TorchFile::open(scratch.file("text.pt", b"<!DOCTYPE html>")), &["text.pt", not]);
    refused(TorchFile::open(scratch.file("plain.pkl", b"\x80\x02}q\x00(X\x01\0\0\0aK\x01u.")), &["plain.pkl", not]);
    refused(TorchFile::open(scratch.path()), &["is not a regular file"]);
    refused(TorchFile::open(scratch.path().join("none.pt")), &["none.pt", "does not exist"]);
}

#[test]
fn real_files() {
    let Some(data) = real_data("real_files") else { return };
    let open = |name: &str| TorchFile::open(data.join(name));
    let list = open("torch_files/tensor_list_zip.pt").unwrap().tensors().unwrap();
    assert_eq!(list[""].shape(), [64, 512]);
    let classifier = open("torch_files/classifier_zip.pth").unwrap().tensors().unwrap();
    assert_eq!(classifier["conv.4.weight"].shape(), [128, 64, 4, 4]);
    let lenet = open("lenet_mnist_official.pth").unwrap().tensors().unwrap();
    assert_eq!(lenet["convnet.c1.weight"].shape(), [6, 1, 5, 5]);
    refused(open("torch_files/numpy_globals_zip.pt"), &["numpy_globals_zip.pt", "numpy", "could run code"]);
    refused(open("torch_files/truncated_legacy.pth"), &["truncated_legacy.pth", "cut short"]);
}
