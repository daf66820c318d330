//! What several test programs share: reading reference files without the code under test, and comparing.
#![allow(dead_code)]

pub mod gpu;
pub mod hashed;
pub mod stylegan2;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use recant::tensor::Tensor;

pub type Arrays = BTreeMap<String, Tensor>;

pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The folder of real data, or none with a line that says so: past the macros, whose output of tests that pass nobody sees.
pub fn real_data(test: &str) -> Option<PathBuf> {
    use std::io::Write;
    let folder = std::env::var_os("RECANT_DATA").map(PathBuf::from);
    if folder.is_none() {
        let _ = writeln!(std::io::stderr(), "skipped {test}: RECANT_DATA does not name the folder of real data");
    }
    folder
}

/// All arrays of an npz file, integers and f64 converted to f32.
pub fn npz(name: &str) -> Arrays {
    let file = std::fs::File::open(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut zip = zip::ZipArchive::new(file).unwrap();
    let mut arrays = Arrays::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).unwrap();
        let key = entry.name().unwrap().trim_end_matches(".npy").to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let npy = npyz::NpyFile::new(&bytes[..]).unwrap();
        let shape: Vec<usize> = npy.shape().iter().map(|d| *d as usize).collect();
        let text = npy.dtype().descr();
        let data: Vec<f32> = match text.trim_matches('\'') {
            "<f4" => npy.into_vec::<f32>().unwrap(),
            "<f8" => npy.into_vec::<f64>().unwrap().iter().map(|v| *v as f32).collect(),
            "<i8" => npy.into_vec::<i64>().unwrap().iter().map(|v| *v as f32).collect(),
            "|u1" => npy.into_vec::<u8>().unwrap().iter().map(|v| *v as f32).collect(),
            other => panic!("{name}: {key} has dtype {other}"),
        };
        arrays.insert(key, Tensor::from_vec(&shape, data));
    }
    arrays
}

/// The f64 arrays of an npz file at their full precision, flat.
pub fn npz_f64(name: &str) -> BTreeMap<String, Vec<f64>> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"))).unwrap();
    let mut arrays = BTreeMap::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).unwrap();
        let key = entry.name().unwrap().trim_end_matches(".npy").to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let npy = npyz::NpyFile::new(&bytes[..]).unwrap();
        if npy.dtype().descr().trim_matches('\'') == "<f8" {
            arrays.insert(key, npy.into_vec::<f64>().unwrap());
        }
    }
    arrays
}

/// All tensors of a safetensors file, f32.
pub fn safetensors(name: &str) -> Arrays {
    let bytes = std::fs::read(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(key, view)| {
            let data: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            (key, Tensor::from_vec(view.shape(), data))
        })
        .collect()
}

/// `‖got − want‖₂ / ‖want‖₂`
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let (mut error, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        error += (*g as f64 - *w as f64).powi(2);
        norm += (*w as f64).powi(2);
    }
    (error / norm.max(1e-30)).sqrt()
}

/// Fails unless the relative L2 error is at most `bound`; prints what was found.
pub fn assert_near(what: &str, got: &Tensor, want: &Tensor, bound: f64) {
    assert_eq!(got.len(), want.len(), "{what}: {:?} against {:?}", got.shape(), want.shape());
    let error = relative_error(got.as_slice(), want.as_slice());
    assert!(error <= bound, "{what}: relative L2 error {error:.3e} exceeds {bound:.0e}");
}

/// NCHW of the reference files to the engine's NHWC.
pub fn nhwc(t: &Tensor) -> Tensor {
    recant::ops::layout::permute(t, &[0, 2, 3, 1]).unwrap()
}
