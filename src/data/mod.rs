//! L6': data sets as 8-bit images in memory, and their way into batches.

pub mod mnist;
