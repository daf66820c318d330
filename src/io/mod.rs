//! L3': files at the border of the engine. Every reader treats its file as data from a stranger: sizes are checked
//! against the file before anything is allocated, and what is wrong is said in one line that names the file and the
//! remedy. Every writer writes beside its target and renames (`atomic`). PyTorch's layouts are kept as they are in the
//! file; turning them into the engine's is the models' business.

pub mod ahead;
pub mod archive;
pub mod atomic;
pub mod fingerprint;
pub mod image;
pub mod meeting;
pub mod npz;
pub mod pictures;
pub mod resample;
pub mod safetensors;
pub mod torch_file;

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("the files' numbers are little-endian and are taken as they are");

/// Opens a file for reading; its length comes along because every size in it is checked against that.
/// What cannot be opened or is no regular file is an error that names the remedy.
pub fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(path, "does not exist; check the path"),
        std::io::ErrorKind::PermissionDenied => Error::file(path, "may not be read by this user; change its permissions"),
        _ => Error::io(path, e),
    })?;
    let about = file.metadata().map_err(|e| Error::io(path, e))?;
    if !about.is_file() {
        return Err(Error::file(path, "is not a regular file; give the path of a file"));
    }
    Ok((file, about.len()))
}

/// The whole content of a file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let (mut file, length) = open(path)?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    Ok(bytes)
}

/// A folder of its own for each test, removed when the test ends.
#[cfg(test)]
pub(crate) mod scratch {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};

    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new() -> Scratch {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let name = format!("recant-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).expect("the temporary folder is writable");
            Scratch(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the temporary folder is writable");
            std::fs::write(&path, content).expect("the temporary folder is writable");
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Asserts that `result` is an error of one line that contains every one of `parts`.
    #[track_caller]
    pub(crate) fn refused<T>(result: crate::error::Result<T>, parts: &[&str]) {
        let Err(error) = result else { panic!("expected an error with {parts:?}") };
        let line = error.to_string();
        assert!(!line.contains('\n') && line.len() < 400, "not one line: {line}");
        for part in parts {
            assert!(line.contains(part), "{part:?} is missing in: {line}");
        }
    }

    /// The folder of real data for tests that want it, or none with a line that says so: past the macros, whose output of
    /// tests that pass nobody sees.
    pub(crate) fn real_data(test: &str) -> Option<PathBuf> {
        use std::io::Write;
        let folder = std::env::var_os("RECANT_DATA").map(PathBuf::from);
        if folder.is_none() {
            let _ = writeln!(std::io::stderr(), "skipped {test}: RECANT_DATA does not name the folder of real data");
        }
        folder
    }
}
