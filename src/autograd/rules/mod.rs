//! One file per differentiable family, same stem as `ops/`: the function on `Var`s and its rule.

mod bias_act;
mod conv2d;
mod elementwise;
mod layout;
mod matmul;
mod pool2d;
mod reduce;
mod upfirdn2d;

pub use bias_act::{bias_act, bias_act_grad};
pub use conv2d::{Scales, conv2d, conv2d_act, conv2d_transpose, conv2d_weight_grad};
pub use elementwise::*;
pub use layout::*;
pub use matmul::{matmul, matmul_scaled};
pub use pool2d::{avg_pool2d, avg_pool2d_transpose, gather_taps, max_pool2d, scatter_taps};
pub use reduce::*;
pub use upfirdn2d::{upfirdn2d, upfirdn2d_act};

/// `[need[i] => expression, …]` as the vector a rule returns: an expression is only evaluated when needed.
macro_rules! grads {
    ($($need:expr => $value:expr),* $(,)?) => {
        Ok(vec![$(if $need { Some($value) } else { None }),*])
    };
}
pub(crate) use grads;
