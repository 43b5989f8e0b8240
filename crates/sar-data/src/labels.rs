//! From labels as people write them, indices or names, to classes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use unicode_normalization::{UnicodeNormalization, is_nfc};

use crate::DataError;

/// The most classes that labels may name; an index beyond is a slip, not a data set.
const MAX_CLASSES: usize = 1 << 20;

/// The largest list or file of names, in bytes.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// A name with composed characters (NFC): macOS stores an accent apart from its letter, keyboards
/// write both as one.
pub(crate) fn nfc(name: &str) -> String {
    if is_nfc(name) { name.to_owned() } else { name.nfc().collect() }
}

/// Sorts class names: as numbers if all are numbers (0, 1, 2, 10), else by their characters.
pub(crate) fn sort_classes(names: &mut [String]) {
    let number = |name: &String| {
        let digits = name.bytes().all(|b| b.is_ascii_digit() || b"+-.".contains(&b));
        digits.then(|| name.parse::<f64>().ok()).flatten()
    };
    if names.iter().all(|name| number(name).is_some()) {
        let value = |name: &String| number(name).expect("all are numbers");
        names.sort_by(|a, b| value(a).total_cmp(&value(b)).then_with(|| a.cmp(b)));
    } else {
        names.sort();
    }
}

/// Reads a text file as UTF-8, without the mark that some editors put before it.
///
/// # Errors
/// If it cannot be read, is too large, or is no text.
pub(crate) fn read_text(path: &Path) -> Result<String, DataError> {
    let format = |problem: &str| DataError::Format { path: path.into(), problem: problem.into() };
    let file = File::open(path).map_err(DataError::io(path))?;
    let mut bytes = Vec::new();
    file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(DataError::io(path))?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(format("is larger than 1 GiB; name a text file"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format("is not UTF-8 text; convert it"))?;
    Ok(text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text))
}

/// Reads class names, one per line, in the order of their indices, composed.
///
/// # Errors
/// As [`read_text`], or if there is none or an empty line between them.
pub(crate) fn read_names(path: &Path) -> Result<Vec<String>, DataError> {
    let format = |problem: String| DataError::Format { path: path.into(), problem };
    let text = read_text(path)?;
    let names: Vec<String> = text.trim_end().lines().map(|line| nfc(line.trim())).collect();
    match names.iter().position(String::is_empty) {
        Some(i) => Err(format(format!("line {}: no class name; remove the line", i + 1))),
        None if names.is_empty() => {
            Err(format("no class names; write one per line, in the order of the indices".into()))
        }
        None => Ok(names),
    }
}

/// The classes and each image's index among them.
///
/// With class names, a label is one of them or an index below their number. Without, labels are all
/// indices, or else all names, in the order of [`sort_classes`]. Names are compared composed.
///
/// # Errors
/// The first label that is no class; `at` says where the `i`-th is written.
pub(crate) fn resolve(
    written: &[String],
    names: Option<Vec<String>>,
    at: impl Fn(usize) -> String,
) -> Result<(Vec<String>, Vec<usize>), DataError> {
    let wrong = |i: usize, problem: String| DataError::Label {
        at: at(i),
        label: written[i].clone(),
        problem,
    };
    let indices: Option<Vec<usize>> = written.iter().map(|label| label.parse().ok()).collect();
    match (names, indices) {
        (Some(classes), _) => {
            // A name that two classes have says nothing; ImageNet has two cranes.
            let mut by_name: HashMap<&str, Option<usize>> = HashMap::new();
            for (i, name) in classes.iter().enumerate() {
                by_name.entry(name).and_modify(|known| *known = None).or_insert(Some(i));
            }
            let find = |(i, label): (usize, &String)| match by_name.get(&*composed(label)) {
                Some(Some(index)) => Ok(*index),
                Some(None) => {
                    Err(wrong(i, "is the name of more than one class; write its index".into()))
                }
                None => match label.parse::<usize>() {
                    Ok(index) if index < classes.len() => Ok(index),
                    _ => Err(wrong(
                        i,
                        format!("is none of the {} class names, nor an index", classes.len()),
                    )),
                },
            };
            let labels = written.iter().enumerate().map(find).collect::<Result<_, _>>()?;
            drop(by_name);
            Ok((classes, labels))
        }
        (None, Some(indices)) => {
            if let Some(i) = indices.iter().position(|index| *index >= MAX_CLASSES) {
                return Err(wrong(i, format!("is too large an index; below {MAX_CLASSES}")));
            }
            let n = indices.iter().max().map_or(0, |last| last + 1);
            Ok(((0..n).map(|i| i.to_string()).collect(), indices))
        }
        (None, None) => {
            let composed: Vec<Cow<'_, str>> = written.iter().map(|label| composed(label)).collect();
            let distinct: HashSet<&str> = composed.iter().map(|label| &**label).collect();
            let mut classes: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
            sort_classes(&mut classes);
            let index: HashMap<&str, usize> =
                classes.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
            let labels = composed.iter().map(|label| index[&**label]).collect();
            Ok((classes, labels))
        }
    }
}

/// As [`nfc`], without a copy where none is needed.
pub(crate) fn composed(label: &str) -> Cow<'_, str> {
    if is_nfc(label) { Cow::Borrowed(label) } else { Cow::Owned(nfc(label)) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn resolved(
        written: &[&str],
        names: Option<&[&str]>,
    ) -> Result<(Vec<String>, Vec<usize>), String> {
        let own = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        resolve(&own(written), names.map(own), |i| format!("list:{}", i + 1))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn indices_names_and_names_of_a_file() {
        let (classes, labels) = resolved(&["2", "0", "02"], None).unwrap();
        assert_eq!((classes.join(" ").as_str(), &labels[..]), ("0 1 2", &[2, 0, 2][..]));
        let (classes, labels) = resolved(&["dog", "7", "ant", "dog"], None).unwrap();
        assert_eq!((classes.join(" ").as_str(), &labels[..]), ("7 ant dog", &[2, 0, 1, 2][..]));
        let names: &[&str] = &["tench", "crane", "2", "crane"];
        let (classes, labels) = resolved(&["tench", "0", "2", "3"], Some(names)).unwrap();
        assert_eq!((classes.len(), &labels[..]), (4, &[0, 0, 2, 3][..]));
        let error = resolved(&["0", "crane"], Some(names)).unwrap_err();
        assert_eq!(
            error,
            "list:2: label 'crane' is the name of more than one class; write its index"
        );
        let error = resolved(&["4"], Some(names)).unwrap_err();
        assert_eq!(error, "list:1: label '4' is none of the 4 class names, nor an index");
        assert!(resolved(&["-1"], Some(names)).is_err());
        let error = resolved(&["1", "4000000000"], None).unwrap_err();
        assert!(error.contains("list:2: label '4000000000' is too large"), "{error}");
    }

    #[test]
    fn numbers_sort_as_numbers_and_accents_compose() {
        let classes = |written: &[&str]| resolved(written, None).unwrap().0.join(" ");
        assert_eq!(classes(&["10", "-1", "9", "2"]), "-1 2 9 10");
        assert_eq!(classes(&["10.0", "2.0", "1.5"]), "1.5 2.0 10.0");
        assert_eq!(
            classes(&["10", "9", "nan", "inf"]),
            "10 9 inf nan",
            "one is a name, so all are"
        );
        let (classes, labels) = resolved(&["cafe\u{301}", "caf\u{e9}", "bar"], None).unwrap();
        assert_eq!((classes.join(" ").as_str(), &labels[..]), ("bar caf\u{e9}", &[1, 1, 0][..]));
        let names: &[&str] = &["bar", "caf\u{e9}"];
        assert_eq!(resolved(&["cafe\u{301}"], Some(names)).unwrap().1, [1]);
    }

    #[test]
    fn files_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names.txt");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read_names(&path).map_err(|error| error.to_string())
        };
        assert_eq!(read("\u{FEFF}a b\r\n c \r\n\n".as_bytes()).unwrap(), ["a b", "c"]);
        assert_eq!(read("cafe\u{301}".as_bytes()).unwrap(), ["caf\u{e9}"]);
        assert!(read(b"a\n\nb").unwrap_err().contains("names.txt: line 2: no class name"));
        assert!(read(b"\n").unwrap_err().contains("no class names"));
        assert!(read(b"\xFF\xFE").unwrap_err().contains("not UTF-8"));
        let missing = read_names(&dir.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none: cannot be read"), "{missing}");
    }

    proptest! {
        #[test]
        fn every_label_is_the_class_of_its_name(written in prop::collection::vec("[a-c0-9]{1,2}", 0..20)) {
            let (classes, labels) = resolve(&written, None, |i| i.to_string()).unwrap();
            let all_indices = written.iter().all(|label| label.parse::<usize>().is_ok());
            for (label, index) in written.iter().zip(labels) {
                if all_indices {
                    prop_assert_eq!(label.parse::<usize>().unwrap(), index);
                } else {
                    prop_assert_eq!(label, &classes[index]);
                }
            }
        }
    }
}
