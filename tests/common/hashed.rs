//! Weights made from their names, as the reference files' networks have them (tests/golden/README.md).

use std::collections::BTreeMap;

use recant::tensor::Tensor;

/// Element `i` of a name's stream, in [0, 1).
fn unit(name: &str, i: u64) -> f64 {
    let fnv = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut z = fnv.wrapping_add(i).wrapping_mul(GOLDEN).wrapping_add(GOLDEN);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f64 / (1_u64 << 24) as f64
}

/// Values of a parameter or a running statistic of this name and of PyTorch's shape.
pub fn value(name: &str, shape: &[usize], gain: f64) -> Tensor {
    let fan_in: usize = shape.iter().skip(1).product();
    let value = |u: f64| match name.rsplit('.').next().unwrap() {
        "running_var" => 0.75 + 0.5 * u,
        "running_mean" => 0.2 * (u - 0.5),
        _ if shape.len() >= 2 => (2.0 * u - 1.0) * 3.0_f64.sqrt() * gain / (fan_in as f64).sqrt(),
        "weight" => 0.8 + 0.4 * u,
        _ => 0.2 * (u - 0.5),
    };
    let n: usize = shape.iter().product();
    Tensor::from_vec(shape, (0..n as u64).map(|i| value(unit(name, i)) as f32).collect::<Vec<f32>>())
}

/// Every state-dict entry of pytorch-fid's network with hashed values.
pub fn inception() -> BTreeMap<String, Tensor> {
    let names = std::fs::read_to_string(super::golden("nets/inception_state_dict_names.txt")).unwrap();
    names
        .lines()
        .map(|line| {
            let (name, shape) = line.split_once(' ').unwrap();
            let shape: Vec<usize> = shape.trim_matches(['[', ']']).split(", ").filter(|s| !s.is_empty()).map(|s| s.parse().unwrap()).collect();
            (name.to_string(), value(name, &shape, 1.6))
        })
        .collect()
}
