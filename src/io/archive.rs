//! Reading zip archives, as far as PyTorch files and npz need: stored and deflated entries, zip64. Written here
//! because every size must be bounded by the file's own length before memory is asked for.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How an entry's bytes are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Stored,
    Deflated,
}

/// One file of an archive.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub method: Method,
    /// Bytes of the content.
    pub size: u64,
    /// Bytes in the archive.
    pub packed: u64,
    checksum: u32,
    header_at: u64,
}

/// An opened archive: its directory, and the file to read entries from.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: File,
    length: u64,
    pub entries: Vec<Entry>,
}

/// Deflate cannot do better than 1032 to 1, so a larger claim is a lie.
const DEFLATE_LIMIT: u64 = 1032;

fn u16_at(b: &[u8], at: usize) -> u64 {
    u16::from_le_bytes([b[at], b[at + 1]]) as u64
}

fn u32_at(b: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes")) as u64
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"))
}

impl Archive {
    /// Whether the file begins as a zip archive does.
    pub fn recognises(head: &[u8]) -> bool {
        head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06")
    }

    /// Reads the directory. Fails when it is missing (the file was cut short) or contradicts the file's length.
    pub fn open(path: &Path) -> Result<Archive> {
        let (file, length) = super::open(path)?;
        let mut archive = Archive { path: path.to_path_buf(), file, length, entries: Vec::new() };
        let (start, size) = archive.directory()?;
        let bytes = archive.bytes(start, size)?;
        let mut rest = &bytes[..];
        while rest.len() >= 46 && rest.starts_with(b"PK\x01\x02") {
            let (name, extra, comment) = (u16_at(rest, 28), u16_at(rest, 30), u16_at(rest, 32));
            let end = 46 + (name + extra + comment) as usize;
            if end > rest.len() {
                return Err(archive.damaged("an entry of its directory is incomplete"));
            }
            let entry = archive.entry(&rest[..46], &rest[46..46 + name as usize], &rest[46 + name as usize..end])?;
            archive.entries.push(entry);
            rest = &rest[end..];
        }
        if !rest.is_empty() {
            return Err(archive.damaged("its directory holds something else than entries"));
        }
        Ok(archive)
    }

    fn damaged(&self, what: &str) -> Error {
        Error::file(&self.path, format!("is a damaged zip archive ({what}); download or copy it again"))
    }

    /// Bytes `start..start + size` of the file.
    fn bytes(&self, start: u64, size: u64) -> Result<Vec<u8>> {
        if start.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(self.damaged("something lies past its end"));
        }
        let mut file = &self.file;
        let mut out = vec![0; size as usize];
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut out)).map_err(|e| Error::io(&self.path, e))?;
        Ok(out)
    }

    /// Where the directory starts and how long it is: from the end record, which a comment of up to 64 KiB may follow.
    fn directory(&self) -> Result<(u64, u64)> {
        let tail_size = self.length.min(22 + 0xffff + 20 + 56);
        let tail_at = self.length - tail_size;
        let tail = self.bytes(tail_at, tail_size)?;
        let found = (0..tail.len().saturating_sub(21)).rev().find(|i| tail[*i..].starts_with(b"PK\x05\x06"));
        let Some(end) = found else {
            return Err(Error::file(&self.path, "is cut short: its zip directory is missing; download or copy it again"));
        };
        let (size, start) = (u32_at(&tail, end + 12), u32_at(&tail, end + 16));
        let wide = size == 0xffff_ffff || start == 0xffff_ffff || u16_at(&tail, end + 10) == 0xffff;
        if !wide {
            return Ok((start, size));
        }
        if end < 20 || !tail[end - 20..].starts_with(b"PK\x06\x07") {
            return Err(self.damaged("its 64-bit end record is missing"));
        }
        let record = self.bytes(u64_at(&tail, end - 12), 56)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(self.damaged("its 64-bit end record is missing"));
        }
        Ok((u64_at(&record, 48), u64_at(&record, 40)))
    }

    fn entry(&self, fixed: &[u8], name: &[u8], mut extra: &[u8]) -> Result<Entry> {
        let name = std::str::from_utf8(name).map_err(|_| self.damaged("the name of an entry is not text"))?;
        let method = match u16_at(fixed, 10) {
            0 => Method::Stored,
            8 => Method::Deflated,
            other => {
                let problem = format!("{name:?} is packed by method {other}; store or deflate it instead");
                return Err(Error::file(&self.path, problem));
            }
        };
        if u16_at(fixed, 8) & 1 != 0 {
            return Err(Error::file(&self.path, format!("{name:?} is encrypted; store it without a password")));
        }
        // Sizes too large for 32 bits stand in an extra field, in this order.
        let mut values = [u32_at(fixed, 24), u32_at(fixed, 20), u32_at(fixed, 42)];
        while extra.len() >= 4 && values.contains(&0xffff_ffff) {
            let end = 4 + u16_at(extra, 2) as usize;
            if end > extra.len() {
                break;
            }
            if u16_at(extra, 0) == 1 {
                let wanted = values.iter_mut().filter(|v| **v == 0xffff_ffff);
                for (value, wide) in wanted.zip(extra[4..end].chunks_exact(8)) {
                    *value = u64_at(wide, 0);
                }
                break;
            }
            extra = &extra[end..];
        }
        let [size, packed, header_at] = values;
        let possible = match method {
            Method::Stored => size == packed,
            Method::Deflated => size / DEFLATE_LIMIT <= packed,
        };
        if packed > self.length || !possible {
            return Err(self.damaged(&format!("the sizes of {name:?} are impossible")));
        }
        Ok(Entry { name: name.to_owned(), method, size, packed, checksum: u32_at(fixed, 16) as u32, header_at })
    }

    /// The entry of that name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// The content of an entry, its checksum verified.
    pub fn read(&self, entry: &Entry) -> Result<Vec<u8>> {
        let header = self.bytes(entry.header_at, 30)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(self.damaged(&format!("{:?} is not where the directory says", entry.name)));
        }
        let start = entry.header_at + 30 + u16_at(&header, 26) + u16_at(&header, 28);
        let packed = self.bytes(start, entry.packed)?;
        let content = match entry.method {
            Method::Stored => packed,
            Method::Deflated => {
                let mut out = Vec::with_capacity(entry.size as usize);
                let inflated = flate2::read::DeflateDecoder::new(&packed[..]).take(entry.size + 1).read_to_end(&mut out);
                if inflated.is_err() || out.len() as u64 != entry.size {
                    return Err(self.damaged(&format!("{:?} does not inflate", entry.name)));
                }
                out
            }
        };
        let mut checksum = flate2::Crc::new();
        checksum.update(&content);
        if checksum.sum() != entry.checksum {
            return Err(self.damaged(&format!("the checksum of {:?} is wrong", entry.name)));
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::io::scratch::{Scratch, refused};

    fn zipped(options: zip::write::SimpleFileOptions) -> Vec<u8> {
        let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, content) in [("a", &b"first"[..]), ("folder/b", &[7; 5000])] {
            out.start_file(name, options).unwrap();
            out.write_all(content).unwrap();
        }
        out.finish().unwrap().into_inner()
    }

    #[test]
    fn stored_deflated_and_wide() {
        let scratch = Scratch::new();
        let plain = zip::write::SimpleFileOptions::default();
        for options in [
            plain.compression_method(zip::CompressionMethod::Stored),
            plain.compression_method(zip::CompressionMethod::Deflated),
            plain.compression_method(zip::CompressionMethod::Stored).large_file(true),
        ] {
            let archive = Archive::open(&scratch.file("x.zip", &zipped(options))).unwrap();
            assert_eq!(archive.read(archive.find("a").unwrap()).unwrap(), b"first");
            assert_eq!(archive.read(archive.find("folder/b").unwrap()).unwrap(), [7; 5000]);
            assert!(archive.find("b").is_none());
        }
    }

    #[test]
    fn damage_is_named() {
        let scratch = Scratch::new();
        let good = zipped(zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored));
        refused(Archive::open(&scratch.file("cut.zip", &good[..good.len() / 2])), &["cut.zip", "cut short"]);
        let mut flipped = good.clone();
        flipped[32] ^= 1;
        let archive = Archive::open(&scratch.file("flip.zip", &flipped)).unwrap();
        refused(archive.read(archive.find("a").unwrap()), &["flip.zip", "checksum"]);
        // The second entry of the directory claims a size that the file cannot hold.
        let mut huge = good.clone();
        let second = (0..huge.len()).rfind(|i| huge[*i..].starts_with(b"PK\x01\x02")).unwrap();
        huge[second + 20..second + 28].fill(0x7f);
        refused(Archive::open(&scratch.file("huge.zip", &huge)), &["huge.zip", "impossible"]);
        refused(Archive::open(&scratch.path().join("none.zip")), &["none.zip", "does not exist"]);
    }
}
