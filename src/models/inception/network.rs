//! The layers, as data that loading and running both walk.

use super::Block;
use crate::ops::pool2d::Window;

/// One layer or a set of parallel branches.
pub(super) enum Step {
    /// Convolution, folded batch normalisation, ReLU. The input channels are those that arrive.
    Convolve { name: String, out: usize, kernel: [usize; 2], stride: usize, padding: [usize; 2] },
    MaxPool(Window),
    /// Padding is not counted. Patch: TensorFlow's average does not use the padded zeros, torchvision's does.
    AvgPool(Window),
    /// Their outputs, joined along channels.
    Branches(Vec<Vec<Step>>),
}

/// Names of the convolutions.
pub(super) fn names(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .flat_map(|s| match s {
            Step::Convolve { name, .. } => vec![name.clone()],
            Step::Branches(branches) => branches.iter().flat_map(|b| names(b)).collect(),
            _ => vec![],
        })
        .collect()
}

/// A convolution that keeps the size.
fn same(name: String, out: usize, kernel: [usize; 2]) -> Step {
    Step::Convolve { name, out, kernel, stride: 1, padding: kernel.map(|k| k / 2) }
}

/// A 3×3 convolution without padding.
fn valid(name: String, out: usize, stride: usize) -> Step {
    Step::Convolve { name, out, kernel: [3, 3], stride, padding: [0, 0] }
}

const HALVE: Step = Step::MaxPool(Window::square(3, 2, 0));
const SMOOTH: Step = Step::AvgPool(Window::square(3, 1, 1));

/// torchvision's InceptionA.
fn a(block: &str, pool: usize) -> Step {
    let n = |branch: &str| format!("{block}.{branch}");
    Step::Branches(vec![
        vec![same(n("branch1x1"), 64, [1, 1])],
        vec![same(n("branch5x5_1"), 48, [1, 1]), same(n("branch5x5_2"), 64, [5, 5])],
        vec![same(n("branch3x3dbl_1"), 64, [1, 1]), same(n("branch3x3dbl_2"), 96, [3, 3]), same(n("branch3x3dbl_3"), 96, [3, 3])],
        vec![SMOOTH, same(n("branch_pool"), pool, [1, 1])],
    ])
}

/// torchvision's InceptionB.
fn b(block: &str) -> Step {
    let n = |branch: &str| format!("{block}.{branch}");
    Step::Branches(vec![
        vec![valid(n("branch3x3"), 384, 2)],
        vec![same(n("branch3x3dbl_1"), 64, [1, 1]), same(n("branch3x3dbl_2"), 96, [3, 3]), valid(n("branch3x3dbl_3"), 96, 2)],
        vec![HALVE],
    ])
}

/// torchvision's InceptionC with `c` channels inside its 7×1 and 1×7 pairs.
fn c(block: &str, c: usize) -> Step {
    let n = |branch: &str| format!("{block}.{branch}");
    Step::Branches(vec![
        vec![same(n("branch1x1"), 192, [1, 1])],
        vec![same(n("branch7x7_1"), c, [1, 1]), same(n("branch7x7_2"), c, [1, 7]), same(n("branch7x7_3"), 192, [7, 1])],
        vec![
            same(n("branch7x7dbl_1"), c, [1, 1]),
            same(n("branch7x7dbl_2"), c, [7, 1]),
            same(n("branch7x7dbl_3"), c, [1, 7]),
            same(n("branch7x7dbl_4"), c, [7, 1]),
            same(n("branch7x7dbl_5"), 192, [1, 7]),
        ],
        vec![SMOOTH, same(n("branch_pool"), 192, [1, 1])],
    ])
}

/// torchvision's InceptionD.
fn d(block: &str) -> Step {
    let n = |branch: &str| format!("{block}.{branch}");
    Step::Branches(vec![
        vec![same(n("branch3x3_1"), 192, [1, 1]), valid(n("branch3x3_2"), 320, 2)],
        vec![
            same(n("branch7x7x3_1"), 192, [1, 1]),
            same(n("branch7x7x3_2"), 192, [1, 7]),
            same(n("branch7x7x3_3"), 192, [7, 1]),
            valid(n("branch7x7x3_4"), 192, 2),
        ],
        vec![HALVE],
    ])
}

/// torchvision's InceptionE with its pooling left open.
fn e(block: &str, pool: Step) -> Step {
    let n = |branch: &str| format!("{block}.{branch}");
    let fork = |branch: &str| {
        Step::Branches(vec![vec![same(n(&format!("{branch}a")), 384, [1, 3])], vec![same(n(&format!("{branch}b")), 384, [3, 1])]])
    };
    Step::Branches(vec![
        vec![same(n("branch1x1"), 320, [1, 1])],
        vec![same(n("branch3x3_1"), 384, [1, 1]), fork("branch3x3_2")],
        vec![same(n("branch3x3dbl_1"), 448, [1, 1]), same(n("branch3x3dbl_2"), 384, [3, 3]), fork("branch3x3dbl_3")],
        vec![pool, same(n("branch_pool"), 192, [1, 1])],
    ])
}

/// The network up to each block of features.
pub(super) fn network() -> Vec<(Block, Vec<Step>)> {
    let stem = |name: &str| name.to_string();
    vec![
        (
            Block::D64,
            vec![valid(stem("Conv2d_1a_3x3"), 32, 2), valid(stem("Conv2d_2a_3x3"), 32, 1), same(stem("Conv2d_2b_3x3"), 64, [3, 3]), HALVE],
        ),
        (Block::D192, vec![same(stem("Conv2d_3b_1x1"), 80, [1, 1]), valid(stem("Conv2d_4a_3x3"), 192, 1), HALVE]),
        (
            Block::D768,
            vec![
                a("Mixed_5b", 32),
                a("Mixed_5c", 64),
                a("Mixed_5d", 64),
                b("Mixed_6a"),
                c("Mixed_6b", 128),
                c("Mixed_6c", 160),
                c("Mixed_6d", 160),
                c("Mixed_6e", 192),
            ],
        ),
        (
            Block::D2048,
            vec![
                d("Mixed_7a"),
                e("Mixed_7b", SMOOTH),
                // Patch: the last block pools by maximum, probably a mistake of 2015 that every FID since repeats.
                e("Mixed_7c", Step::MaxPool(Window::square(3, 1, 1))),
            ],
        ),
    ]
}
