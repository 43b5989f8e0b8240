//! Lists of images: a text file of `path label` lines, or a `.csv` file of them.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::decode::{decode, read_file};
use crate::labels::{read_names, read_text, resolve};
use crate::left_out::one_line;
use crate::walk::is_image;
use crate::{DataError, Dataset};

/// Words, in lower case, that a header calls paths by.
const PATHS: [&str; 12] = [
    "path",
    "paths",
    "file",
    "files",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "img_path",
];

/// Words, in lower case, that a header calls labels by.
const LABELS: [&str; 8] =
    ["label", "labels", "class", "classes", "class_id", "class_name", "category", "target"];

/// What parts a path from a label. A carriage return, too: the last line of a Windows file may end in
/// one alone.
const BLANK: [char; 3] = [' ', '\t', '\r'];

/// A line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    parse_lines(text, |line| {
        let (path, label) = line.trim_matches(&BLANK[..]).rsplit_once(&BLANK[..])?;
        Some((path.trim_end_matches(&BLANK[..]).into(), label.into()))
    })
}

/// The entries of a list with commas: a path and a label, either in double quotes where it holds a
/// comma. Empty lines are passed over.
///
/// # Errors
/// The first line that is not two fields, counted from 1.
pub fn parse_csv(text: &str) -> Result<Vec<ListEntry>, usize> {
    parse_lines(text, |line| {
        let (path, rest) = csv_field(line)?;
        let (label, end) = csv_field(rest?)?;
        let is_whole = end.is_none() && !path.is_empty() && !label.is_empty();
        is_whole.then_some((path, label))
    })
}

fn parse_lines(
    text: &str,
    parse: impl Fn(&str) -> Option<(String, String)>,
) -> Result<Vec<ListEntry>, usize> {
    let mut entries = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim_matches(&BLANK[..]).is_empty() {
            continue;
        }
        let (path, label) = parse(line).ok_or(i + 1)?;
        entries.push(ListEntry { line: i + 1, path, label });
    }
    Ok(entries)
}

/// The first field of a line, and what follows its comma.
fn csv_field(line: &str) -> Option<(String, Option<&str>)> {
    let line = line.trim();
    let Some(mut quoted) = line.strip_prefix('"') else {
        return Some(match line.split_once(',') {
            Some((field, rest)) => (field.trim_end().into(), Some(rest)),
            None => (line.into(), None),
        });
    };
    let mut field = String::new();
    loop {
        let (part, rest) = quoted.split_once('"')?;
        field.push_str(part);
        match rest.strip_prefix('"') {
            // Two quotes are one.
            Some(rest) => {
                field.push('"');
                quoted = rest;
            }
            None if rest.trim().is_empty() => return Some((field, None)),
            None => return Some((field, Some(rest.trim_start().strip_prefix(',')?))),
        }
    }
}

/// The images of a list, or of one for training and one of held-out images.
#[derive(Debug)]
pub struct ImageList {
    root: PathBuf,
    classes: Vec<String>,
    paths: Vec<String>,
    /// How many bytes of each path its name is without.
    unnamed: usize,
    labels: Vec<usize>,
    bytes: Vec<u64>,
    n_train: Option<usize>,
    notes: Vec<String>,
}

impl ImageList {
    /// Reads a list of paths below `root`, another of held-out images, and a file of class names,
    /// where there are any. Lists whose names end in `.csv` have commas, others spaces or tabs.
    ///
    /// A listed image that does not exist is an unreadable image, unless none exists. A header line
    /// is passed over, and a note says so.
    ///
    /// # Errors
    /// If a file cannot be read, a line has no path and label, or a label is no class.
    pub fn open(
        list: &Path,
        root: &Path,
        held_out: Option<&Path>,
        names: Option<&Path>,
    ) -> Result<Self, DataError> {
        Self::find(list, root, [held_out, names], &|| ())
    }

    /// As [`open`](Self::open), with the list of held-out images and the names; `looked` hears of every
    /// line.
    pub(crate) fn find(
        list: &Path,
        root: &Path,
        [held_out, names]: [Option<&Path>; 2],
        looked: &dyn Fn(),
    ) -> Result<Self, DataError> {
        let names = names.map(read_names).transpose()?;
        let mut notes = Vec::new();
        let (mut entries, mut bytes) = read_list(list, root, &mut notes, looked)?;
        let n_train = held_out.is_some().then_some(entries.len());
        if let Some(held_out) = held_out {
            let (more, their_bytes) = read_list(held_out, root, &mut notes, looked)?;
            entries.extend(more);
            bytes.extend(their_bytes);
        }
        let written: Vec<String> =
            entries.iter_mut().map(|entry| std::mem::take(&mut entry.label)).collect();
        let at = |i: usize| {
            let file = held_out.filter(|_| Some(i) >= n_train).unwrap_or(list);
            format!("{}: line {}", file.display(), entries[i].line)
        };
        let (classes, labels) = resolve(&written, names, at)?;
        let paths: Vec<String> = entries.into_iter().map(|entry| entry.path).collect();
        if bytes.iter().all(Option::is_none) {
            let problem = format!(
                "none of its {} images exists, the first would be {}; change data.source.root",
                paths.len(),
                root.join(&paths[0]).display()
            );
            return Err(DataError::Format { path: list.into(), problem });
        }
        let bytes = bytes.into_iter().map(Option::unwrap_or_default).collect();
        let unnamed = common_folder(&paths);
        Ok(Self { root: root.into(), classes, paths, unnamed, labels, bytes, n_train, notes })
    }

    fn path(&self, i: usize) -> PathBuf {
        self.root.join(&self.paths[i])
    }
}

/// The entries of a list without its header, and the sizes of their files, where these exist.
fn read_list(
    path: &Path,
    root: &Path,
    notes: &mut Vec<String>,
    looked: &dyn Fn(),
) -> Result<(Vec<ListEntry>, Vec<Option<u64>>), DataError> {
    let format = |problem: String| DataError::Format { path: path.into(), problem };
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let text = read_text(path)?;
    let (parsed, form) = if is_csv {
        (parse_csv(&text), "a path, a comma and a label")
    } else {
        (parse_list(&text), "a path, a space and a label")
    };
    let mut entries = parsed.map_err(|line| format(format!("line {line}: write {form}")))?;
    let size = |entry: &ListEntry| {
        looked();
        fs::metadata(root.join(&entry.path)).ok().map(|file| file.len())
    };
    let mut sizes: Vec<Option<u64>> = entries.iter().map(size).collect();
    if is_header(&entries, &sizes) {
        let ListEntry { line, path: first, label } = entries.remove(0);
        sizes.remove(0);
        let header = one_line(&format!("{first} {label}"));
        let path = path.display();
        notes.push(format!("{path}: line {line}, '{header}', is taken for a header and no image"));
    }
    if entries.is_empty() {
        return Err(format(format!("no images; write lines of {form}")));
    }
    Ok((entries, sizes))
}

/// Whether the first entry is none: its file does not exist, and its words are those of a header,
/// or it does not name an image and all the others exist.
fn is_header(entries: &[ListEntry], sizes: &[Option<u64>]) -> bool {
    let (Some(first), Some(None)) = (entries.first(), sizes.first()) else { return false };
    let is_word = |words: &[&str], field: &str| words.contains(&field.to_lowercase().as_str());
    let is_worded = is_word(&PATHS, &first.path) || is_word(&LABELS, &first.label);
    let others_exist = sizes.len() > 1 && sizes[1..].iter().all(Option::is_some);
    !is_image(Path::new(&first.path)) && (is_worded || others_exist)
}

/// The length of the folder that all paths lie in, if all begin at the root of the file system.
fn common_folder(paths: &[String]) -> usize {
    let Some(first) = paths.first() else { return 0 };
    if !paths.iter().all(|path| Path::new(path).is_absolute()) {
        return 0;
    }
    let folder = |path: &str| path.rfind('/').map_or(0, |slash| slash + 1);
    let mut length = folder(first);
    for path in &paths[1..] {
        let same = first.bytes().zip(path.bytes()).take(length).take_while(|(a, b)| a == b).count();
        if same < length {
            length = first.as_bytes()[..same].iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
        }
    }
    length
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
        self.paths[i][self.unnamed..].to_owned()
    }

    fn describe(&self, i: usize) -> String {
        one_line(&self.path(i).display().to_string())
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.bytes[i]
    }

    fn n_train(&self) -> Option<usize> {
        self.n_train
    }

    fn notes(&self) -> &[String] {
        &self.notes
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
    use crate::Split;

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

    #[test]
    fn a_header_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for name in ["0.png", "1.png", "label"] {
            RgbImage::new(1, 1).save_with_format(dir.join(name), image::ImageFormat::Png).unwrap();
        }
        let opened = |name: &str, text: &str| {
            fs::write(dir.join(name), text).unwrap();
            let list = ImageList::open(&dir.join(name), dir, None, None).unwrap();
            let names: Vec<String> = (0..list.len()).map(|i| list.name(i)).collect();
            (names.join(" "), list.classes().join(" "), list.notes().len())
        };
        let expected = |notes| ("0.png 1.png".to_owned(), "0 1 2".to_owned(), notes);
        assert_eq!(opened("l.txt", "path label\n0.png 2\n1.png 0\n"), expected(1));
        assert_eq!(opened("l.csv", "filename,label\n\n0.png, 2\n\"1.png\",0"), expected(1));
        assert_eq!(opened("l.txt", "# my things\n0.png 2\n1.png 0\n"), expected(1));
        assert_eq!(opened("l.txt", "0.png 2\n1.png 0\n"), expected(0));
        // With a missing image among the others, words decide.
        let (names, classes, notes) = opened("l.txt", "Image Class\n0.png 2\n9.png 0\n");
        assert_eq!((names.as_str(), classes.as_str(), notes), ("0.png 9.png", "0 1 2", 1));
        // A first image that is missing is no header, nor is a file that is there.
        assert_eq!(opened("l.txt", "9.png 1\n0.png 2\n1.png 0\n").0, "9.png 0.png 1.png");
        assert_eq!(opened("l.txt", "label 1\n0.png 2\n").0, "label 0.png");
        fs::write(dir.join("l.txt"), "path label\n").unwrap();
        let error = ImageList::open(&dir.join("l.txt"), dir, None, None).unwrap_err().to_string();
        assert!(error.contains("l.txt: no images; write lines of a path, a space"), "{error}");
    }

    #[test]
    fn fields_with_commas_and_quotes() {
        let parsed = |text: &str| {
            parse_csv(text)
                .map(|all| all.into_iter().map(|e| (e.path, e.label)).collect::<Vec<_>>())
        };
        let pair = |path: &str, label: &str| (path.to_owned(), label.to_owned());
        let text = "a b.png , cat\r\n\"x, \"\"y\"\".png\" , \"big cat\"\n";
        assert_eq!(
            parsed(text).unwrap(),
            [pair("a b.png", "cat"), pair("x, \"y\".png", "big cat")]
        );
        for wrong in ["a.png", "a.png,", ",1", "a,b,c", "\"a.png,1", "\"a\"b,1"] {
            assert_eq!(parsed(&format!("ok.png,1\n{wrong}")), Err(2), "{wrong}");
        }
    }

    #[test]
    fn names_do_not_depend_on_where_absolute_paths_begin() {
        let folder = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).into()).collect();
            paths[0][..common_folder(&paths)].to_owned()
        };
        assert_eq!(folder(&["/data/im/a.png", "/data/im/b/c.png"]), "/data/im/");
        assert_eq!(folder(&["/data/img/a.png", "/data/im/b.png"]), "/data/");
        assert_eq!(folder(&["/data/a.png"]), "/data/");
        assert_eq!(folder(&["im/a.png", "im/b.png"]), "", "relative ones are as written");
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
        fn any_text_has_entries_or_a_wrong_line(text in "(.|\n|\t|,|\"){0,60}") {
            let n = text.lines().count();
            for parsed in [parse_list(&text), parse_csv(&text)] {
                match parsed {
                    Ok(entries) => prop_assert!(entries.iter().all(|e| !e.path.is_empty() && !e.label.is_empty())),
                    Err(line) => prop_assert!(1 <= line && line <= n),
                }
            }
        }
    }
}
