//! Files appear whole or not at all: the content goes to a temporary file in the target's own folder, is flushed to
//! the disk and then renamed over the target.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Removes the temporary file unless the rename has taken it away.
struct Leftover(Option<PathBuf>);

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Lets `fill` write the content of `path`. What was at `path` before stays as it is until all of the new content is
/// on the disk; on any failure it stays for good, and nothing is left beside it. A symbolic link keeps pointing where
/// it did. Fails in one line when the folder is missing or not writable, the disk is full, or `path` is something
/// other than a file.
pub fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
    if path.file_name().is_none() {
        return Err(Error::file(path, "is not the name of a file; give one"));
    }
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if fs::metadata(&target).is_ok_and(|about| !about.is_file()) {
        return Err(Error::file(path, "cannot be written: it is a folder or a device; give the name of a file"));
    }
    let mut beside = target.clone().into_os_string();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut leftover = Leftover(None);
    let written = (|| {
        let file = File::create(&beside)?;
        leftover.0 = Some(beside.clone());
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        out.flush()?;
        // Before the rename, or a crash could leave the new name with old or no content.
        out.get_ref().sync_all()?;
        drop(out);
        fs::rename(&beside, &target)
    })();
    match written {
        Ok(()) => {
            leftover.0 = None;
            Ok(())
        }
        Err(e) => Err(refusal(path, e)),
    }
}

/// As `write`, for content that is made while it is written: what goes wrong in making it is the error.
pub fn write_made(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<(), Making>) -> Result<()> {
    let mut failed = None;
    let written = write(path, |out| {
        fill(out).map_err(|e| match e {
            Making::Write(e) => e,
            Making::Content(e) => {
                failed = Some(e);
                io::Error::other("the content could not be made")
            }
        })
    });
    failed.map_or(written, Err)
}

/// What goes wrong while content is made and written.
pub enum Making {
    Write(io::Error),
    Content(Error),
}

impl From<io::Error> for Making {
    fn from(e: io::Error) -> Making {
        Making::Write(e)
    }
}

impl From<Error> for Making {
    fn from(e: Error) -> Making {
        Making::Content(e)
    }
}

/// Writes `content` to `path` as `write` does.
pub fn write_bytes(path: &Path, content: &[u8]) -> Result<()> {
    write(path, |out| out.write_all(content))
}

/// Makes the folder and its parents if they are missing; fails in one line.
pub fn create_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            Error::file(path, "cannot be made a folder: a file of that name is in the way; remove it or choose another")
        }
        _ => refusal(path, e),
    })
}

/// Removes a file that may be missing.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file(path, format!("cannot be removed: {e}"))),
        _ => Ok(()),
    }
}

fn refusal(path: &Path, e: io::Error) -> Error {
    let remedy = match e.kind() {
        io::ErrorKind::NotFound => "its folder does not exist; create it first",
        io::ErrorKind::NotADirectory => "its folder is a file; choose another place",
        io::ErrorKind::PermissionDenied => "its folder may not be written by this user; choose another place",
        io::ErrorKind::ReadOnlyFilesystem => "its file system is read-only; choose another place",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full; free some space or choose another disk",
        _ => return Error::file(path, format!("cannot be written: {e}")),
    };
    Error::file(path, format!("cannot be written: {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::{Scratch, refused};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_whole_files() {
        let scratch = Scratch::new();
        let path = scratch.path().join("a.json");
        write_bytes(&path, b"one").unwrap();
        write_bytes(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(scratch.path()), ["a.json"]);
    }

    #[test]
    fn a_failure_keeps_the_old_file_and_leaves_nothing() {
        let scratch = Scratch::new();
        let path = scratch.file("a.json", b"good");
        let full = write(&path, |out| {
            out.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        refused(full, &["a.json", "the disk is full"]);
        let unmade = write_made(&path, |out| {
            out.write_all(b"half")?;
            Err(Error::config("--n", "too many").into())
        });
        refused(unmade, &["--n: too many"]);
        assert_eq!(fs::read(&path).unwrap(), b"good");
        assert_eq!(names(scratch.path()), ["a.json"]);
    }

    #[test]
    fn places_that_cannot_be_written() {
        let scratch = Scratch::new();
        let file = scratch.file("file", b"");
        refused(write_bytes(&scratch.path().join("no/such/a.json"), b""), &["a.json", "create it first"]);
        refused(write_bytes(&file.join("a.json"), b""), &["a.json", "its folder is a file"]);
        refused(write_bytes(scratch.path(), b""), &["a folder or a device"]);
        refused(write_bytes(Path::new("/dev/null"), b""), &["/dev/null", "a folder or a device"]);
        refused(create_folder(&file), &["file", "in the way"]);
        refused(create_folder(&file.join("inner")), &["inner", "in the way"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_keeps_its_target() {
        let scratch = Scratch::new();
        let real = scratch.file("real", b"old");
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_bytes(&link, b"new").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
