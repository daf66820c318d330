//! L6: networks.

pub mod stylegan2;
