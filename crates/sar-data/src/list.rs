//! Lists of images: a text file of `path label` lines.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::decode::{decode, read_file};
use crate::labels::{read_names, read_text, resolve};
use crate::{DataError, Dataset, Split};

/// A line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// The line, counted from 1.
    pub line: usize,
    /// The path as written.
    pub path: String,
    /// The label as written: an index or a name.
    pub label: String,
}

/// The entries of a list: a path, spaces or tabs, and a label that holds neither. Empty lines are
/// passed over; a path may hold spaces.
///
/// # Errors
/// The first line without both, counted from 1.
pub fn parse_list(text: &str) -> Result<Vec<ListEntry>, usize> {
    // A carriage return too: the last line of a Windows file may end in one alone.
    const BLANK: [char; 3] = [' ', '\t', '\r'];
    let mut entries = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim_matches(&BLANK[..]);
        if line.is_empty() {
            continue;
        }
        let (path, label) = line.rsplit_once(&BLANK[..]).ok_or(i + 1)?;
        let path = path.trim_end_matches(&BLANK[..]);
        entries.push(ListEntry { line: i + 1, path: path.into(), label: label.into() });
    }
    Ok(entries)
}

/// The images of a list, or of one for training and one of held-out images.
#[derive(Debug)]
pub struct ImageList {
    root: PathBuf,
    classes: Vec<String>,
    paths: Vec<String>,
    labels: Vec<usize>,
    bytes: Vec<u64>,
    /// How many images train, if the others are held out.
    n_train: Option<usize>,
}

impl ImageList {
    /// Reads a list of paths below `root`, another of held-out images, and a file of class names,
    /// where there are any.
    ///
    /// A listed image that does not exist is an unreadable image, unless none exists.
    ///
    /// # Errors
    /// If a file cannot be read, a line has no path and label, or a label is no class.
    pub fn open(
        list: &Path,
        root: &Path,
        held_out: Option<&Path>,
        names: Option<&Path>,
    ) -> Result<Self, DataError> {
        let names = names.map(read_names).transpose()?;
        let mut entries = read_list(list)?;
        let n_train = held_out.is_some().then_some(entries.len());
        if let Some(held_out) = held_out {
            entries.extend(read_list(held_out)?);
        }
        let written: Vec<String> =
            entries.iter_mut().map(|entry| std::mem::take(&mut entry.label)).collect();
        let at = |i: usize| {
            let file = held_out.filter(|_| Some(i) >= n_train).unwrap_or(list);
            format!("{}: line {}", file.display(), entries[i].line)
        };
        let (classes, labels) = resolve(&written, names, at)?;
        let paths: Vec<String> = entries.into_iter().map(|entry| entry.path).collect();
        let size = |path: &String| fs::metadata(root.join(path)).ok().map(|file| file.len());
        let sizes: Vec<Option<u64>> = paths.iter().map(size).collect();
        if sizes.iter().all(Option::is_none) {
            let problem = format!(
                "none of its {} images exists, the first would be {}; change data.source.root",
                paths.len(),
                root.join(&paths[0]).display()
            );
            return Err(DataError::Format { path: list.into(), problem });
        }
        let bytes = sizes.into_iter().map(Option::unwrap_or_default).collect();
        Ok(Self { root: root.into(), classes, paths, labels, bytes, n_train })
    }

    fn path(&self, i: usize) -> PathBuf {
        self.root.join(&self.paths[i])
    }
}

fn read_list(path: &Path) -> Result<Vec<ListEntry>, DataError> {
    let format = |problem: String| DataError::Format { path: path.into(), problem };
    let entries = parse_list(&read_text(path)?)
        .map_err(|line| format(format!("line {line}: write a path, a space and a label")))?;
    if entries.is_empty() {
        return Err(format("no images; write lines of a path, a space and a label".into()));
    }
    Ok(entries)
}

impl Dataset for ImageList {
    fn len(&self) -> usize {
        self.paths.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, i: usize) -> usize {
        self.labels[i]
    }

    fn name(&self, i: usize) -> String {
        self.paths[i].clone()
    }

    fn describe(&self, i: usize) -> String {
        self.path(i).display().to_string()
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.bytes[i]
    }

    fn split(&self) -> Split {
        match self.n_train {
            Some(n) => Split { train: (0..n).collect(), held_out: (n..self.len()).collect() },
            None => Split::every_tenth(self.len()),
        }
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        read_file(&self.path(i))
            .and_then(|bytes| decode(&bytes))
            .map_err(|reason| DataError::Unreadable { image: self.describe(i), reason })
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_with_spaces_names_and_a_held_out_list() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for (name, level) in [("a.png", 1), ("my cat 2.png", 2), ("b.png", 3)] {
            RgbImage::from_pixel(3, 2, Rgb([level; 3])).save(dir.join(name)).unwrap();
        }
        let train = dir.join("train.txt");
        let val = dir.join("val.txt");
        let names = dir.join("names.txt");
        fs::write(&train, "a.png 1\r\n\n  my cat 2.png \t cat\n").unwrap();
        fs::write(&val, "b.png 0\ngone.png dog").unwrap();
        fs::write(&names, "cat\ndog\n").unwrap();
        let list = ImageList::open(&train, dir, Some(&val), Some(&names)).unwrap();
        assert_eq!(list.classes(), ["cat", "dog"]);
        assert_eq!((0..4).map(|i| list.label(i)).collect::<Vec<_>>(), [1, 0, 0, 1]);
        assert_eq!(list.split(), Split { train: vec![0, 1], held_out: vec![2, 3] });
        assert_eq!((list.name(1).as_str(), list.len()), ("my cat 2.png", 4));
        let image = list.image(1).unwrap();
        assert_eq!((image.dimensions(), image.get_pixel(0, 0).0), ((3, 2), [2; 3]));
        assert!(list.stored_bytes(0) > 0 && list.stored_bytes(3) == 0);
        let error = list.image(3).unwrap_err().to_string();
        assert!(error.contains("gone.png: not a readable image (No such file"), "{error}");

        let alone = ImageList::open(&train, dir, None, Some(&names)).unwrap();
        assert_eq!(alone.split(), Split::every_tenth(2));
        // Without the file of names, '1' and 'cat' are both names.
        assert_eq!(ImageList::open(&train, dir, None, None).unwrap().classes(), ["1", "cat"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (train, val, names) = (dir.join("t.txt"), dir.join("v.txt"), dir.join("n.txt"));
        fs::write(&train, "x.png 0\n").unwrap();
        let error = |held_out, names| {
            ImageList::open(&train, dir, held_out, names).unwrap_err().to_string()
        };
        let message = error(None, None);
        assert!(message.contains("none of its 1 images exists") && message.contains("x.png"));
        fs::write(&names, "cat\n").unwrap();
        fs::write(&val, "y.png 0\n\nz.png 1\n").unwrap();
        let message = error(Some(&val), Some(&names));
        assert!(message.contains("v.txt: line 3: label '1' is none of the 1"), "{message}");
        fs::write(&val, "y.png\n").unwrap();
        assert!(error(Some(&val), None).contains("v.txt: line 1: write a path"));
        fs::write(&train, "\n").unwrap();
        assert!(error(None, None).contains("t.txt: no images"));
        fs::remove_file(&train).unwrap();
        assert!(error(None, None).contains("t.txt: cannot be read"));
    }

    proptest! {
        #[test]
        fn written_and_parsed_again(
            pairs in prop::collection::vec(("[^ \t\r\n]([^\r\n]{0,8}[^ \t\r\n])?", "[^ \t\r\n]{1,4}"), 0..8),
            blank in "[ \t]{1,3}", end in "\r?\n|\n\n",
        ) {
            let text: String = pairs.iter().map(|(p, l)| format!("{p}{blank}{l}{end}")).collect();
            let parsed: Vec<(String, String)> =
                parse_list(&text).unwrap().into_iter().map(|e| (e.path, e.label)).collect();
            prop_assert_eq!(parsed, pairs);
        }

        #[test]
        fn any_text_has_entries_or_a_wrong_line(text in "(.|\n|\t){0,60}") {
            let n = text.lines().count();
            match parse_list(&text) {
                Ok(entries) => prop_assert!(entries.iter().all(|e| !e.path.is_empty() && !e.label.is_empty())),
                Err(line) => prop_assert!(1 <= line && line <= n),
            }
        }
    }
}
