//! A 64-bit number that changes with what it is taken of: for caches, which ask "is this still the same?" and face
//! accidents, not attackers.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// Taken of bytes in pieces; where the pieces end counts.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Fingerprint {
        Fingerprint(0x9e37_79b9_7f4a_7c15)
    }
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of `x`.
fn mixed(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Fingerprint {
    pub fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add_number(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.add_number(u64::from_le_bytes(last));
        self.add_number(bytes.len() as u64);
    }

    fn add_number(&mut self, n: u64) {
        self.0 = mixed(self.0.rotate_left(5) ^ n);
    }

    /// Adds a file's name, size and time of change: its content is not read.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let about = fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let changed = about.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        self.add(path.file_name().unwrap_or_default().as_encoded_bytes());
        self.add_number(about.len());
        self.add_number(changed.map_or(0, |t| t.as_nanos() as u64));
        Ok(())
    }

    pub fn finish(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::Scratch;

    fn of(parts: &[&[u8]]) -> u64 {
        let mut f = Fingerprint::default();
        parts.iter().for_each(|p| f.add(p));
        f.finish()
    }

    #[test]
    fn every_byte_and_every_border_counts() {
        let data: Vec<u8> = (0..37).collect();
        let whole = of(&[&data]);
        assert_eq!(whole, of(&[&data]));
        for i in 0..data.len() {
            let mut other = data.clone();
            other[i] ^= 1;
            assert_ne!(whole, of(&[&other]), "byte {i}");
        }
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_ne!(of(&[b"a"]), of(&[b"a\0"]));
    }

    #[test]
    fn a_file_that_changes_or_moves_is_another() {
        let scratch = Scratch::new();
        let of = |path: &Path| {
            let mut f = Fingerprint::default();
            f.add_file(path).map(|()| f.finish())
        };
        let path = scratch.file("a", b"one");
        let first = of(&path).unwrap();
        assert_eq!(first, of(&path).unwrap());
        assert_ne!(first, of(&scratch.file("a", b"three")).unwrap());
        assert_ne!(first, of(&scratch.file("b", b"one")).unwrap());
        assert!(of(&scratch.path().join("none")).is_err());
    }
}
