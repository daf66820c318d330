//! Folders of pictures, flat or with one subfolder for each class.

use std::path::{Path, PathBuf};

use super::dataset::{Dataset, class_of};
use crate::error::{Error, Result};
use crate::io::image;
use crate::io::pictures::Pictures;

/// A folder's pictures by path, in the order that they are numbered in: by class, then by name, byte by byte.
#[derive(Clone, Debug)]
pub struct Listing {
    pub files: Vec<PathBuf>,
    /// The class of each file; none for a flat folder.
    pub labels: Option<Vec<u32>>,
    /// The subfolders' names; empty for a flat folder.
    pub class_names: Vec<String>,
}

impl Listing {
    /// The files that are not of a class.
    pub fn without(self, class: &str) -> Result<Vec<PathBuf>> {
        let class = class_of(&self.class_names, class)?;
        let labels = self.labels.unwrap_or_default();
        Ok(self.files.into_iter().zip(labels).filter_map(|(file, label)| (label != class).then_some(file)).collect())
    }
}

/// Lists a folder. With subfolders each is a class, and pictures beside them are an error, since they would have none.
/// Hidden names are passed over, as are files that are no pictures by name. Errors, each in one line: no such folder,
/// no picture in it, an empty class.
pub fn list(folder: impl AsRef<Path>) -> Result<Listing> {
    let folder = folder.as_ref();
    let (mut files, classes) = entries(folder)?;
    if classes.is_empty() {
        if files.is_empty() {
            return Err(Error::file(folder, "holds no picture; give a folder of PNG, JPEG or WebP files, or of class folders"));
        }
        files.sort();
        return Ok(Listing { files, labels: None, class_names: Vec::new() });
    }
    if let Some(file) = files.first() {
        let problem = "lies beside class folders and so has no class; move it into one of them";
        return Err(Error::file(file, problem));
    }
    let mut listing = Listing { files: Vec::new(), labels: None, class_names: Vec::new() };
    let mut labels = Vec::new();
    for (class, path) in classes.iter().enumerate() {
        let (mut inside, _) = entries(path)?;
        if inside.is_empty() {
            return Err(Error::file(path, "holds no picture; remove this class folder or fill it"));
        }
        inside.sort();
        labels.extend(std::iter::repeat_n(class as u32, inside.len()));
        listing.files.extend(inside);
        listing.class_names.push(path.file_name().expect("read from a folder").to_string_lossy().into_owned());
    }
    listing.labels = Some(labels);
    Ok(listing)
}

/// The pictures and the subfolders of a folder, the latter sorted.
fn entries(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let read = std::fs::read_dir(folder).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::file(folder, "does not exist; check the path"),
        std::io::ErrorKind::NotADirectory => Error::file(folder, "is not a folder; give a folder of pictures"),
        _ => Error::io(folder, e),
    })?;
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in read {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        if hidden {
        } else if path.is_dir() {
            folders.push(path);
        } else if extension.is_some_and(|e| image::EXTENSIONS.contains(&e.as_str())) {
            files.push(path);
        }
    }
    folders.sort();
    Ok((files, folders))
}

/// Reads a folder as a data set; see `list` and `Pictures::from_files`.
pub fn read(folder: impl AsRef<Path>, size: Option<[usize; 2]>) -> Result<Dataset> {
    let listing = list(folder)?;
    let pictures = Pictures::from_files(listing.files, size)?;
    Ok(Dataset { pictures, labels: listing.labels, attributes: None, class_names: listing.class_names })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::{Scratch, real_data, refused};

    fn png(value: u8, height: usize, width: usize) -> Vec<u8> {
        image::encode_png(&vec![value; height * width * 3], height, width, 3)
    }

    #[test]
    fn flat_and_with_classes() {
        let scratch = Scratch::new();
        for (name, value) in [("b/2.png", 3), ("b/1.png", 2), ("a/x.PNG", 1)] {
            scratch.file(&format!("set/{name}"), &png(value, 4, 4));
        }
        scratch.file("set/.hidden/9.png", b"");
        scratch.file("set/b/notes.txt", b"");
        let set = read(scratch.path().join("set"), None).unwrap();
        assert_eq!(set.pictures.read(&[0, 1, 2]).unwrap().iter().step_by(48).copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((set.labels, set.class_names), (Some(vec![0, 1, 1]), vec!["a".to_owned(), "b".to_owned()]));
        let listing = list(scratch.path().join("set")).unwrap();
        assert_eq!(listing.clone().without("b").unwrap().len(), 1);
        refused(listing.without("c"), &["\"c\"", "a, b"]);
        let wide = read(scratch.path().join("set/b"), Some([2, 4])).unwrap();
        assert_eq!((wide.len(), wide.pictures.shape()), (2, [2, 4, 3]));
        let flat = read(scratch.path().join("set/b"), Some([2, 2])).unwrap();
        assert_eq!((flat.len(), flat.pictures.shape(), flat.labels), (2, [2, 2, 3], None));
    }

    #[test]
    fn bad_folders() {
        let scratch = Scratch::new();
        let file = scratch.file("good/1.png", &png(0, 4, 4));
        scratch.file("good/2.png", &png(0, 5, 4));
        refused(read(scratch.path().join("none"), None), &["none", "does not exist"]);
        refused(read(&file, None), &["1.png", "is not a folder"]);
        refused(read(scratch.path().join("good"), None), &["2.png", "is 4 x 5 pixels", "--size"]);
        refused(read(scratch.path().join("good"), Some([0, 4])), &["--size", "is 0"]);
        scratch.file("good/0.jpg", b"no picture");
        refused(read(scratch.path().join("good"), Some([4; 2])), &["0.jpg", "PNG, JPEG or WebP"]);
        scratch.file("empty/readme.txt", b"");
        refused(read(scratch.path().join("empty"), Some([4; 2])), &["empty", "holds no picture"]);
        scratch.file("classes/a/1.png", &png(0, 4, 4));
        scratch.file("classes/b/1.txt", b"");
        refused(read(scratch.path().join("classes"), Some([4; 2])), &["b", "holds no picture; remove this class"]);
        scratch.file("classes/stray.png", &png(0, 4, 4));
        refused(read(scratch.path().join("classes"), Some([4; 2])), &["stray.png", "has no class"]);
        scratch.file("wide/1.png", &png(0, 4, 6));
        refused(read(scratch.path().join("wide"), None), &["1.png", "not square"]);
    }

    #[test]
    fn real_faces() {
        let Some(data) = real_data("real_faces") else { return };
        let set = read(data.join("celeba_sample"), Some([64; 2])).unwrap();
        assert_eq!((set.len(), set.pictures.shape()), (32, [64, 64, 3]));
    }
}
