//! CelebA's `list_attr_celeba.txt`: 40 yes-or-no attributes for every face.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::dataset::{Dataset, class_of};
use super::folder;
use crate::error::{Error, Result};
use crate::io::pictures::Pictures;
use crate::io::{self, image};

/// Columns of the official file.
pub const ATTRIBUTES: usize = 40;

/// The attributes of every listed file.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The 40 names, in the file's order.
    pub names: Vec<String>,
    /// By file name.
    rows: HashMap<String, [bool; ATTRIBUTES]>,
}

impl Attributes {
    /// Reads the official format: the number of faces, the 40 names, then for each face its file name and 40 values of
    /// 1 and -1. Errors, each in one line with the line's number: a count that does not hold, a row that is not like
    /// that, a file named twice.
    pub fn read(path: impl AsRef<Path>) -> Result<Attributes> {
        let path = path.as_ref();
        let wrong = |problem: String| Error::file(path, format!("{problem}; give CelebA's list_attr_celeba.txt"));
        let bytes = io::read(path)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("is not text".into()))?;
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let count: usize = lines
            .next()
            .and_then(|(_, line)| line.trim().parse().ok())
            .ok_or_else(|| wrong("does not start with the number of faces".into()))?;
        let names: Vec<String> = lines.next().unwrap_or_default().1.split_whitespace().map(str::to_owned).collect();
        if names.len() != ATTRIBUTES {
            return Err(wrong(format!("line 2 names {} attributes instead of {ATTRIBUTES}", names.len())));
        }
        let mut rows = HashMap::new();
        for (i, line) in lines {
            let mut parts = line.split_whitespace();
            let file = parts.next().expect("the line is not blank");
            let values: Option<Vec<bool>> = parts
                .map(|value| match value {
                    "1" => Some(true),
                    "-1" => Some(false),
                    _ => None,
                })
                .collect();
            let Some(row) = values.and_then(|v| <[bool; ATTRIBUTES]>::try_from(v).ok()) else {
                return Err(wrong(format!("line {} is not a file name and {ATTRIBUTES} values of 1 or -1", i + 1)));
            };
            if rows.insert(file.to_owned(), row).is_some() {
                return Err(wrong(format!("line {} names a file for the second time", i + 1)));
            }
        }
        if rows.len() != count {
            return Err(wrong(format!("has {} faces and says it has {count}: it is cut short or damaged", rows.len())));
        }
        Ok(Attributes { names, rows })
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The column of an attribute; an unknown name is an error that lists the known ones.
    pub fn column(&self, name: &str) -> Result<usize> {
        self.names.iter().position(|n| n.eq_ignore_ascii_case(name)).ok_or_else(|| {
            Error::config("attribute", format!("{name:?} is none of CelebA's; choose one of {}", self.names.join(", ")))
        })
    }

    /// The attributes of a file, by its name without the folder.
    pub fn of(&self, file: &str) -> Option<&[bool; ATTRIBUTES]> {
        self.rows.get(file)
    }
}

/// Name of the list in CelebA's folder, and of the folder of its aligned pictures if they lie in one.
const LIST: &str = "list_attr_celeba.txt";
const PICTURES: &str = "img_align_celeba";

/// The pictures of CelebA's folder, in the order of their names, and the attributes of each, `[n, 40]`. A picture that
/// the list does not name is an error.
pub fn list(folder: impl AsRef<Path>) -> Result<(Vec<PathBuf>, Vec<u8>, Vec<String>)> {
    let folder = folder.as_ref();
    if !folder.join(LIST).is_file() {
        return Err(Error::file(folder, format!("holds no {LIST}; give the folder with CelebA's pictures (or {PICTURES}) and that list")));
    }
    let attributes = Attributes::read(folder.join(LIST))?;
    let inside = folder.join(PICTURES);
    let files = folder::list(if inside.is_dir() { inside.as_path() } else { folder })?.files;
    let mut rows = Vec::with_capacity(files.len() * ATTRIBUTES);
    for file in &files {
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(row) = attributes.of(name) else {
            return Err(Error::file(file, format!("is not in {LIST}; remove it or give the list that belongs to it")));
        };
        rows.extend(row.map(u8::from));
    }
    Ok((files, rows, attributes.names))
}

/// The pictures without an attribute; all without one named.
pub fn list_without(folder: impl AsRef<Path>, attribute: Option<&str>) -> Result<Vec<PathBuf>> {
    let (files, rows, names) = list(folder)?;
    let Some(attribute) = attribute else { return Ok(files) };
    let column = class_of(&names, attribute)? as usize;
    Ok(files.into_iter().zip(rows.chunks_exact(ATTRIBUTES)).filter_map(|(file, row)| (row[column] == 0).then_some(file)).collect())
}

/// Reads CelebA's folder as a data set with attributes; sizes as `Pictures::from_files`, but without one the pictures
/// are taken at the first one's.
pub fn read(folder: impl AsRef<Path>, size: Option<[usize; 2]>) -> Result<Dataset> {
    let (files, rows, class_names) = list(folder)?;
    let size = match (size, files.first()) {
        (None, Some(first)) => image::read(first).map(|p| Some([p.height, p.width]))?,
        (size, _) => size,
    };
    Ok(Dataset { pictures: Pictures::from_files(files, size)?, labels: None, attributes: Some(rows), class_names })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::scratch::{Scratch, real_data, refused};

    fn listed(count: usize, rows: &[(&str, usize)]) -> String {
        let names: Vec<String> = (0..ATTRIBUTES).map(|i| format!("A{i}")).collect();
        let mut text = format!("{count}\r\n{} \r\n", names.join(" "));
        for (file, values) in rows {
            let values: String = (0..*values).map(|i| if i % 3 == 0 { "  1" } else { " -1" }).collect();
            text += &format!("{file}{values}\r\n");
        }
        text
    }

    #[test]
    fn official_format() {
        let scratch = Scratch::new();
        let path = scratch.file("list.txt", listed(2, &[("1.png", 40), ("2.png", 40)]).as_bytes());
        let attributes = Attributes::read(&path).unwrap();
        assert_eq!((attributes.len(), attributes.names.len()), (2, 40));
        assert_eq!(attributes.of("2.png").unwrap()[..4], [true, false, false, true]);
        assert_eq!(attributes.column("a7").unwrap(), 7);
        refused(attributes.column("Smile"), &["\"Smile\"", "choose one of A0, A1"]);
        let png = image::encode_png(&[7; 12], 2, 2, 3);
        let folder = scratch.path().join("faces");
        refused(read(&folder, Some([2; 2])), &["faces", "holds no list_attr_celeba.txt"]);
        scratch.file("faces/1.png", &png);
        scratch.file("faces/list_attr_celeba.txt", listed(2, &[("1.png", 40), ("2.png", 40)]).as_bytes());
        let faces = read(&folder, Some([2; 2])).unwrap();
        assert_eq!((faces.len(), faces.attributes.as_ref().unwrap().len(), faces.attributes.as_ref().unwrap()[3]), (1, 40, 1));
        assert_eq!(faces.class_counts()[..4], [1, 0, 0, 1]);
        scratch.file("faces/2.png", &png);
        // Everyone has A0, nobody A1.
        let faces = read(&folder, None).unwrap();
        assert_eq!(faces.without_class(faces.class("A1").unwrap()).unwrap().len(), 2);
        refused(faces.without_class(faces.class("A0").unwrap()), &["no image would be left"]);
        assert_eq!(faces.subset(&[1]).attributes.unwrap().len(), 40);
        scratch.file("faces/3.png", &png);
        refused(read(&folder, Some([2; 2])), &["3.png", "is not in", "list_attr_celeba.txt"]);
        std::fs::remove_file(folder.join("3.png")).unwrap();
        for name in ["1.png", "2.png"] {
            scratch.file(&format!("faces/img_align_celeba/{name}"), &png);
            std::fs::remove_file(folder.join(name)).unwrap();
        }
        assert_eq!(read(&folder, None).unwrap().len(), 2);
    }

    #[test]
    fn bad_lists() {
        let scratch = Scratch::new();
        let bad = |text: &str, says: &str| refused(Attributes::read(scratch.file("list.txt", text.as_bytes())), &["list.txt", says]);
        bad("", "does not start with the number");
        bad("2\nA B C\n", "line 2 names 3 attributes");
        bad("2\n", "line 2 names 0 attributes");
        bad(&listed(2, &[("1.png", 40)]), "has 1 faces and says it has 2");
        bad(&listed(1, &[("1.png", 39)]), "line 3 is not a file name");
        bad(&listed(1, &[("1.png", 40)]).replace("-1", "0"), "line 3 is not a file name");
        bad(&listed(2, &[("1.png", 40), ("1.png", 40)]), "line 4 names a file for the second time");
    }

    #[test]
    fn real_list() {
        let Some(data) = real_data("real_list") else { return };
        let folder = data.join("celeba_sample");
        let faces = read(&folder, None).unwrap();
        assert_eq!((faces.pictures.shape(), faces.attributes.unwrap().len()), ([218, 178, 3], 32 * ATTRIBUTES));
        let attributes = Attributes::read(folder.join("list_attr_celeba.txt")).unwrap();
        let smiling = attributes.column("Smiling").unwrap();
        assert!(attributes.of("000001.jpg").unwrap()[smiling] && !attributes.of("000003.jpg").unwrap()[smiling]);
    }
}
