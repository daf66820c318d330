//! FID's protocol: what goes into the network, what is printed, and statistics files both ways.

use std::collections::BTreeMap;
use std::path::PathBuf;

use recant::data::Dataset;
use recant::io::image::{Picture, write_png};
use recant::io::npz;
use recant::io::pictures::Pictures;
use recant::metrics::fid::{Extractor, FidProtocol, Preparation, fid, read_statistics, write_statistics};
use recant::metrics::{FeatureStats, Origin, Statistics};
use recant::models::inception::{Block, Inception};
use recant::ops::random::Random;
use recant::tensor::Tensor;

/// A folder of this test alone, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("recant-fid-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// The stem of an Inception with random weights: enough for block 64.
fn stem() -> Inception {
    let mut r = Random::new(6, 0);
    let mut tensors = BTreeMap::new();
    for (name, shape) in [("Conv2d_1a_3x3", [32, 3, 3, 3]), ("Conv2d_2a_3x3", [32, 32, 3, 3]), ("Conv2d_2b_3x3", [64, 32, 3, 3])] {
        let scale = (2.0 / (shape[1] * 9) as f32).sqrt();
        let weight: Vec<f32> = r.normal(&shape).as_slice::<f32>().iter().map(|v| v * scale).collect();
        tensors.insert(format!("{name}.conv.weight"), Tensor::from_vec(&shape, weight));
        tensors.insert(format!("{name}.conv.bias"), r.normal(&shape[..1]));
    }
    Inception::from_torch(&tensors).unwrap()
}

fn extractor(preparation: Preparation) -> Extractor {
    Extractor::new(stem(), FidProtocol { preparation, block: Block::D64, size: None }).unwrap()
}

/// Bytes of `n` RGB images of 12 px.
fn pixels(n: usize) -> Vec<u8> {
    Random::new(7, 0).uniform(&[n, 12, 12, 3]).as_slice::<f32>().iter().map(|v| (v * 256.0) as u8).collect()
}

fn dataset(pixels: Vec<u8>, channels: usize) -> Dataset {
    let pictures = Pictures::from_bytes(pixels, [12, 12, channels]);
    Dataset { pictures, labels: None, attributes: None, class_names: Vec::new() }
}

fn difference(a: &Statistics, b: &Statistics) -> f64 {
    let pairs = a.mu.iter().zip(&b.mu).chain(a.sigma.iter().zip(&b.sigma));
    pairs.map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

/// A folder, a data set and a model's images in [−1, 1] are one set of images; batches do not matter.
#[test]
fn sources_of_the_same_images_agree() {
    let (data, bytes) = (dataset(pixels(7), 3), pixels(7));
    let extractor = extractor(Preparation::PytorchFid);
    let mut seen = Vec::new();
    let whole = extractor
        .dataset(&data, 3, &mut |n| {
            seen.push(n);
            Ok(())
        })
        .unwrap();
    assert_eq!((whole.count, seen), (Some(7), vec![3, 6, 7]));

    let mut stats = extractor.start();
    // What a model makes lies between the 8-bit values.
    let between: Vec<f32> = bytes.iter().enumerate().map(|(i, v)| *v as f32 / 127.5 - 1.0 + (i % 5) as f32 * 1e-3 - 2e-3).collect();
    extractor.add_images(&mut stats, &Tensor::from_vec(&[7, 12, 12, 3], between)).unwrap();
    let from_model = stats.finish().unwrap();

    let folder = Scratch::new("sources");
    let files: Vec<PathBuf> = (0..7).map(|i| folder.0.join(format!("{i}.png"))).collect();
    for (file, pixels) in files.iter().zip(bytes.chunks_exact(12 * 12 * 3)) {
        write_png(file, &Picture { height: 12, width: 12, pixels: pixels.to_vec() }).unwrap();
    }
    let from_files = extractor.pictures(&files, 4, &mut |_| Ok(())).unwrap();
    for (what, other) in [("model", from_model), ("folder", from_files)] {
        let d = difference(&whole, &other);
        assert!(d < 1e-5, "{what}: statistics differ by {d:e}");
    }
}

/// The two preparations see different images, and grey ones as their RGB copies.
#[test]
fn preparations_differ_and_grey_is_repeated() {
    let data = dataset(pixels(4), 3);
    let run = |p| extractor(p).dataset(&data, 4, &mut |_| Ok(())).unwrap();
    assert!(difference(&run(Preparation::PytorchFid), &run(Preparation::CleanFid)) > 1e-3);
    let grey: Vec<u8> = pixels(4).into_iter().step_by(3).collect();
    let rgb = grey.iter().flat_map(|v| [*v; 3]).collect();
    let (grey, rgb) = (dataset(grey, 1), dataset(rgb, 3));
    let extractor = extractor(Preparation::CleanFid);
    let [a, b] = [grey, rgb].map(|d| extractor.dataset(&d, 4, &mut |_| Ok(())).unwrap());
    assert!(difference(&a, &b) < 1e-6);
}

/// The line says all that the number depends on, and only 2048 features are called FID.
#[test]
fn a_distance_is_printed_with_its_protocol() {
    let stats = |dims: usize, seed: u64| {
        let mut s = FeatureStats::new(dims);
        s.add(&Random::new(seed, 0).normal(&[10, dims])).unwrap();
        s.finish().unwrap()
    };
    let protocol = FidProtocol { preparation: Preparation::PytorchFid, block: Block::D768, size: None };
    let report = fid(protocol, &stats(768, 0), &Statistics { count: None, ..stats(768, 0) }).unwrap().to_string();
    let want = "FID-768 0.0000 (pytorch-fid, bilinear without antialiasing to 299 px, input v/127.5 - 1, block 768, images 10 and unknown)";
    assert_eq!(report, want);
    let clean = FidProtocol { preparation: Preparation::CleanFid, block: Block::D2048, size: Some(32) };
    assert_eq!(clean.name(), "FID");
    assert_eq!(clean.to_string(), "images of 32 px, clean-fid, antialiased bicubic to 299 px, input (v - 128)/128, block 2048");
    assert!(fid(protocol, &stats(64, 0), &stats(768, 1)).unwrap_err().to_string().contains("64 dimensions"));
    assert!(Extractor::new(stem(), protocol).err().unwrap().to_string().contains("ends at block 64"));
}

#[test]
fn statistics_files_go_both_ways_and_bad_ones_are_refused() {
    let folder = Scratch::new("statistics");
    let path = folder.0.join("stats.npz");
    let whole = extractor(Preparation::PytorchFid).dataset(&dataset(pixels(5), 3), 5, &mut |_| Ok(())).unwrap();
    let protocol = FidProtocol { preparation: Preparation::PytorchFid, block: Block::D64, size: None };
    let origin = Origin { protocol: Some(protocol), weights: Some(u64::MAX), fingerprint: None };
    write_statistics(&path, &whole, &origin).unwrap();
    assert_eq!(read_statistics(&path).unwrap(), (whole, origin));

    let refused = |mu: (&[usize], Vec<f64>), sigma: (&[usize], Vec<f64>), part: &str| {
        let mut arrays = npz::Arrays::new();
        arrays.insert("mu".into(), npz::Array::new(mu.0, npz::Values::F64(mu.1)));
        arrays.insert("sigma".into(), npz::Array::new(sigma.0, npz::Values::F64(sigma.1)));
        npz::write(&path, &arrays).unwrap();
        let error = read_statistics(&path).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("stats.npz") && !error.contains('\n'), "{error}");
    };
    refused((&[2], vec![0.0; 2]), (&[3, 3], vec![0.0; 9]), "no statistics");
    refused((&[2], vec![0.0; 2]), (&[2, 2], vec![1.0, 0.5, 0.0, 1.0]), "no covariance");
    refused((&[2], vec![0.0, f64::NAN]), (&[2, 2], vec![1.0, 0.0, 0.0, 1.0]), "not finite");
    refused((&[2], vec![0.0; 2]), (&[2, 2], vec![-1.0, 0.0, 0.0, 1.0]), "negative variance");
    // As pytorch-fid writes them: without a count.
    let mut arrays = npz::Arrays::new();
    arrays.insert("mu".into(), npz::Array::new(&[1], npz::Values::F64(vec![2.0])));
    arrays.insert("sigma".into(), npz::Array::new(&[1, 1], npz::Values::F64(vec![3.0])));
    npz::write(&path, &arrays).unwrap();
    assert_eq!(read_statistics(&path).unwrap(), (Statistics { count: None, mu: vec![2.0], sigma: vec![3.0] }, Origin::default()));
}
