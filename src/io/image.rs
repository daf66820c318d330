//! Pictures: PNG, JPEG and WebP into 8-bit RGB, and PNG out of tensors.

use std::io::Cursor;
use std::path::Path;

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::atomic;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// An 8-bit RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub height: usize,
    pub width: usize,
    /// `[height, width, 3]`.
    pub pixels: Vec<u8>,
}

/// A small file can claim any size; more than this many pixels are not decoded.
const MAX_PIXELS: usize = 1 << 26;
const MAX_SIDE: usize = 1 << 15;

/// The names that pictures end in, lower case.
pub const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Reads a picture; the format is recognised by content. Grey becomes RGB, transparency is dropped, 16 bits become 8,
/// of an animation the first frame is taken. Errors, each in one line: another format, damaged, too large.
pub fn read(path: impl AsRef<Path>) -> Result<Picture> {
    let path = path.as_ref();
    let bytes = super::read(path)?;
    decode(&bytes).map_err(|problem| Error::file(path, problem))
}

/// What went wrong, as the rest of a sentence about the file.
type Decoded<T> = std::result::Result<T, String>;

/// Decodes the bytes of a PNG, JPEG or WebP file; an error is the rest of a sentence about the file.
pub fn decode(bytes: &[u8]) -> Decoded<Picture> {
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        decode_png(bytes)
    } else if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
        decode_jpeg(bytes)
    } else if bytes.len() >= 12 && bytes.starts_with(b"RIFF") && &bytes[8..12] == b"WEBP" {
        decode_webp(bytes)
    } else {
        Err("is no picture that can be read here; give PNG, JPEG or WebP".into())
    }
}

fn damaged(e: impl std::fmt::Display) -> String {
    let line: String = e.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect();
    format!("is a damaged picture ({line}); replace or remove it")
}

fn checked(width: usize, height: usize) -> Decoded<()> {
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE || width * height > MAX_PIXELS {
        return Err(format!("is a picture of {width} x {height} pixels, which is too large; reduce it first"));
    }
    Ok(())
}

/// `channels` per pixel (1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha) to RGB.
fn to_rgb(pixels: Vec<u8>, channels: usize) -> Vec<u8> {
    match channels {
        3 => pixels,
        1 | 2 => pixels.chunks_exact(channels).flat_map(|p| [p[0]; 3]).collect(),
        _ => pixels.chunks_exact(channels).flat_map(|p| [p[0], p[1], p[2]]).collect(),
    }
}

fn decode_png(bytes: &[u8]) -> Decoded<Picture> {
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: 8 * MAX_PIXELS });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(damaged)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    checked(width, height)?;
    let size = reader.output_buffer_size().ok_or_else(|| damaged("its size overflows"))?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).map_err(damaged)?;
    pixels.truncate(info.buffer_size());
    let pixels = to_rgb(pixels, info.color_type.samples());
    Ok(Picture { height, width, pixels })
}

fn decode_jpeg(bytes: &[u8]) -> Decoded<Picture> {
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        // A picture cut short is an error, not a picture with a grey end.
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(Cursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    let info = decoder.info().ok_or_else(|| damaged("it has no size"))?;
    let (width, height) = (info.width as usize, info.height as usize);
    checked(width, height)?;
    let pixels = decoder.decode().map_err(damaged)?;
    if pixels.len() != width * height * 3 {
        return Err(damaged("its colours are in an unknown space"));
    }
    Ok(Picture { height, width, pixels })
}

fn decode_webp(bytes: &[u8]) -> Decoded<Picture> {
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    checked(width, height)?;
    decoder.set_memory_limit(8 * MAX_PIXELS);
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut pixels = vec![0; width * height * channels];
    if decoder.is_animated() {
        decoder.read_frame(&mut pixels).map_err(damaged)?;
    } else {
        decoder.read_image(&mut pixels).map_err(damaged)?;
    }
    Ok(Picture { height, width, pixels: to_rgb(pixels, channels) })
}

/// Encodes `[height, width, channels]` (1 or 3 channels) as a PNG.
pub fn encode_png(pixels: &[u8], height: usize, width: usize, channels: usize) -> Vec<u8> {
    assert_eq!(pixels.len(), height * width * channels, "a picture must fill its shape");
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(if channels == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().expect("memory takes everything, and the sizes fit");
    writer.write_image_data(pixels).expect("memory takes everything, and the sizes fit");
    writer.finish().expect("memory takes everything, and the sizes fit");
    out
}

/// Writes a picture as a PNG file, whole or not at all.
pub fn write_png(path: impl AsRef<Path>, picture: &Picture) -> Result<()> {
    let path = path.as_ref();
    if picture.height == 0 || picture.width == 0 {
        return Err(Error::file(path, "cannot be written: the picture has no pixels; ask for at least one"));
    }
    atomic::write_bytes(path, &encode_png(&picture.pixels, picture.height, picture.width, 3))
}

/// One value of [−1, 1] as a byte. The range is fixed, so that pictures can be compared; what is outside is clipped.
pub fn to_byte(v: f32) -> u8 {
    // The cast saturates, and takes what is not a number to 0.
    ((v + 1.0) * 127.5).round() as u8
}

/// Pixels between the images of a grid and around it.
const GAP: usize = 2;

/// Where images of `[height, width]` lie in a grid: in reading order, with black gaps of 2 pixels.
struct Grid {
    size: [usize; 2],
    columns: usize,
}

impl Grid {
    fn new(n: usize, size: [usize; 2], columns: usize) -> Result<Grid> {
        if n == 0 || size.contains(&0) || columns == 0 {
            return Err(Error::shape("grid", format!("needs at least one image with pixels and one column, got {n} of {size:?} in {columns}")));
        }
        Ok(Grid { size, columns: columns.min(n) })
    }

    /// Height and width of the whole picture of `n` images.
    fn picture(&self, n: usize) -> [usize; 2] {
        [n.div_ceil(self.columns) * (self.size[0] + GAP) + GAP, self.columns * (self.size[1] + GAP) + GAP]
    }

    /// The lines of one row of images, the gap above them included; `images` is `[up to columns, h, w, c]`.
    fn band(&self, images: &[u8], c: usize) -> Vec<u8> {
        let [h, w] = self.size;
        let width = self.columns * (w + GAP) + GAP;
        let mut lines = vec![0; (h + GAP) * width * 3];
        for (i, image) in images.chunks_exact(h * w * c).enumerate() {
            for (y, row) in image.chunks_exact(w * c).enumerate() {
                let start = ((y + GAP) * width + i * (w + GAP) + GAP) * 3;
                for (to, from) in lines[start..start + w * 3].chunks_exact_mut(3).zip(row.chunks_exact(c)) {
                    (0..3).for_each(|k| to[k] = from[k % c]);
                }
            }
        }
        lines
    }
}

/// Bytes of images `[n, h, w, c]` (1 or 3 channels) in [−1, 1], f32 or f64, and their `[n, h, w, c]`.
fn bytes_of(images: &Tensor) -> Result<(Vec<u8>, [usize; 4])> {
    let shape: [usize; 4] = images.shape().try_into().ok().filter(|s: &[usize; 4]| matches!(s[3], 1 | 3)).ok_or_else(|| {
        Error::shape("grid", format!("needs [N, H, W, C] with 1 or 3 channels, got {:?}", images.shape()))
    })?;
    let images = images.to_device(&Device::Cpu)?;
    let bytes = match images.dtype() {
        DType::F32 | DType::Bf16 => images.as_slice::<f32>().iter().map(|v| to_byte(*v)).collect(),
        DType::F64 => images.as_slice::<f64>().iter().map(|v| to_byte(*v as f32)).collect(),
    };
    Ok((bytes, shape))
}

/// One image `[1, height, width, channels]` (1 or 3 channels) in [−1, 1] as a picture.
pub fn picture(image: &Tensor) -> Result<Picture> {
    let (bytes, [_, height, width, channels]) = bytes_of(image)?;
    Ok(Picture { height, width, pixels: to_rgb(bytes, channels) })
}

/// Images `[n, height, width, channels]` (1 or 3 channels) in [−1, 1], f32 or f64, as one picture of `columns` columns,
/// in reading order, with black gaps of 2 pixels.
pub fn grid(images: &Tensor, columns: usize) -> Result<Picture> {
    let (bytes, [n, h, w, c]) = bytes_of(images)?;
    let grid = Grid::new(n, [h, w], columns)?;
    let [height, width] = grid.picture(n);
    let mut pixels: Vec<u8> = bytes.chunks(grid.columns * h * w * c).flat_map(|row| grid.band(row, c)).collect();
    pixels.resize(height * width * 3, 0);
    Ok(Picture { height, width, pixels })
}

/// Writes `grid` as a PNG file, whole or not at all.
pub fn write_grid(path: impl AsRef<Path>, images: &Tensor, columns: usize) -> Result<()> {
    write_png(path, &grid(images, columns)?)
}

/// The same of `n` images of `[height, width]` that `next` makes in batches one after the other: only a batch and a row
/// of the grid are in memory at a time.
pub fn write_grid_streamed(path: impl AsRef<Path>, n: usize, size: [usize; 2], columns: usize, next: &mut dyn FnMut() -> Result<Tensor>) -> Result<()> {
    let grid = Grid::new(n, size, columns)?;
    let [height, width] = grid.picture(n);
    let io = |e: png::EncodingError| match e {
        png::EncodingError::IoError(e) => e,
        other => std::io::Error::other(other.to_string()),
    };
    atomic::write_made(path.as_ref(), |out| {
        let mut encoder = png::Encoder::new(out, width as u32, height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header().map_err(io)?;
        let mut stream = writer.stream_writer().map_err(io)?;
        let (mut waiting, mut left) = (Vec::new(), n);
        while left > 0 {
            let (bytes, [of_batch, h, w, c]) = bytes_of(&next()?)?;
            assert!([h, w] == size && of_batch > 0 && of_batch <= left, "batches of the announced images");
            waiting.extend(bytes);
            left -= of_batch;
            let row = grid.columns * h * w * c;
            let whole = if left == 0 { waiting.len() } else { waiting.len() / row * row };
            for images in waiting[..whole].chunks(row) {
                std::io::Write::write_all(&mut stream, &grid.band(images, c))?;
            }
            waiting.drain(..whole);
        }
        std::io::Write::write_all(&mut stream, &vec![0; GAP * width * 3])?;
        stream.finish().map_err(io)?;
        writer.finish().map_err(io)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::{Scratch, real_data, refused};

    #[test]
    fn a_grid_in_batches_is_the_same_picture() {
        let scratch = Scratch::new();
        for (n, columns, batch, c) in [(7, 3, 2, 3), (7, 3, 5, 1), (4, 2, 4, 3), (2, 9, 1, 3)] {
            let values: Vec<f32> = (0..n * 6 * c).map(|v| (v as f32 * 0.37).sin()).collect();
            let images = Tensor::from_vec(&[n, 3, 2, c], values);
            let (whole, parts) = (scratch.path().join("whole.png"), scratch.path().join("parts.png"));
            write_grid(&whole, &images, columns).unwrap();
            let mut at = 0;
            write_grid_streamed(&parts, n, [3, 2], columns, &mut || {
                let count = batch.min(n - at);
                at += count;
                images.rows(at - count, count)
            })
            .unwrap();
            let [a, b] = [whole, parts].map(|p| read(p).unwrap());
            assert_eq!((a.height, a.width, a.pixels), (b.height, b.width, b.pixels), "{n} in {columns}");
        }
    }

    #[test]
    fn png_round_trip() {
        let pixels: Vec<u8> = (0..4 * 5 * 3).map(|v| (v * 4) as u8).collect();
        let picture = Picture { height: 4, width: 5, pixels };
        let scratch = Scratch::new();
        let path = scratch.path().join("a.png");
        write_png(&path, &picture).unwrap();
        assert_eq!(read(&path).unwrap(), picture);
        let grey = decode(&encode_png(&[0, 9, 255, 7], 2, 2, 1)).unwrap();
        assert_eq!(grey.pixels, [0, 0, 0, 9, 9, 9, 255, 255, 255, 7, 7, 7]);
        refused(write_png(&path, &Picture { height: 0, width: 5, pixels: vec![] }), &["a.png", "no pixels"]);
    }

    #[test]
    fn webp_is_lossless_here() {
        let pixels: Vec<u8> = (0..8 * 8 * 4).map(|v| (v % 251) as u8).collect();
        let mut bytes = Vec::new();
        image_webp::WebPEncoder::new(&mut bytes).encode(&pixels, 8, 8, image_webp::ColorType::Rgba8).unwrap();
        assert_eq!(decode(&bytes).unwrap().pixels, to_rgb(pixels, 4));
    }

    #[test]
    fn grids() {
        let images: Vec<f32> = [-1.0, 0.0, 1.0, 9.0, f32::NAN].into_iter().flat_map(|v| [v; 4]).collect();
        let picture = grid(&Tensor::from_vec(&[5, 2, 2, 1], images), 3).unwrap();
        assert_eq!((picture.height, picture.width), (10, 14));
        let at = |y: usize, x: usize| picture.pixels[(y * 14 + x) * 3];
        assert_eq!([at(2, 2), at(2, 6), at(3, 11), at(6, 2), at(7, 7), at(6, 10), at(0, 0)], [0, 128, 255, 255, 0, 0, 0]);
        refused(grid(&Tensor::zeros(&[0, 2, 2, 3], DType::F32), 3), &["at least one image"]);
        refused(grid(&Tensor::zeros(&[1, 2, 2, 2], DType::F32), 3), &["1 or 3 channels"]);
        refused(grid(&Tensor::zeros(&[2, 2, 3], DType::F32), 3), &["[N, H, W, C]"]);
    }

    #[test]
    fn bad_files() {
        let scratch = Scratch::new();
        let good = encode_png(&[7; 30 * 30 * 3], 30, 30, 3);
        let bad = |name: &str, bytes: &[u8], says: &str| refused(read(scratch.file(name, bytes)), &[name, says]);
        bad("empty.png", b"", "PNG, JPEG or WebP");
        bad("text.jpg", b"hello", "PNG, JPEG or WebP");
        bad("cut.png", &good[..good.len() / 2], "damaged picture");
        bad("cut.jpg", &[0xff, 0xd8, 0xff, 0xe0, 0, 16], "damaged picture");
        bad("cut.webp", b"RIFF\x20\0\0\0WEBPVP8 ", "damaged picture");
        let mut huge = good.clone();
        huge[16..24].copy_from_slice(&[0, 0, 0x40, 0, 0, 0, 0x40, 0]);
        let crc = {
            let mut crc = flate2::Crc::new();
            crc.update(&huge[12..29]);
            crc.sum().to_be_bytes()
        };
        huge[29..33].copy_from_slice(&crc);
        bad("huge.png", &huge, "too large");
    }

    #[test]
    fn real_jpeg() {
        let Some(data) = real_data("real_jpeg") else { return };
        let picture = read(data.join("celeba_sample/000001.jpg")).unwrap();
        assert_eq!((picture.height, picture.width, picture.pixels.len()), (218, 178, 218 * 178 * 3));
        let bytes = std::fs::read(data.join("celeba_sample/000001.jpg")).unwrap();
        assert!(decode(&bytes[..bytes.len() / 2]).is_err(), "a JPEG cut short is refused");
    }
}
