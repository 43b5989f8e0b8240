//! Webdataset shards: tar files whose members `key.jpg`, `key.cls` are one sample.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use image::RgbImage;
use serde_json::Value;
use tar::{Archive, EntryType};

use crate::decode::{decode, read_part};
use crate::folder::{entries, is_image_extension};
use crate::labels::{read_names, resolve};
use crate::{DataError, Dataset, Split};

/// The most bytes that are read for one member while a shard is indexed: its headers or its label.
/// Images are passed over, and a longer label is none.
const MAX_MEMBER_READ: u64 = 1 << 20;

/// Keys of a `.json` member that hold the label, the first one that is there.
const JSON_LABELS: [&str; 3] = ["label", "cls", "class"];

/// The images of tar shards, found once and read where they lie.
///
/// Members with the same path up to the first dot of the file name are one sample. Its image has the
/// extension png, jpg, jpeg or webp; its label is in `.cls`, or in a field `label`, `cls` or `class`
/// of `.json`, or in `.txt`. Samples without an image and hidden members are passed over.
#[derive(Debug)]
pub struct Shards {
    classes: Vec<String>,
    files: Vec<PathBuf>,
    samples: Vec<Sample>,
    labels: Vec<usize>,
    /// How many images train, if the others are held out.
    n_train: Option<usize>,
}

/// An image in a shard.
#[derive(Debug)]
struct Sample {
    shard: usize,
    member: String,
    offset: u64,
    bytes: u64,
}

impl Shards {
    /// Indexes shards: each path is a tar file or a folder of them. `names` is a file of class
    /// names.
    ///
    /// # Errors
    /// If a shard cannot be read, is no whole tar file, has a sample without a label, or a label is
    /// no class.
    pub fn open(
        train: &[PathBuf],
        held_out: Option<&[PathBuf]>,
        names: Option<&Path>,
    ) -> Result<Self, DataError> {
        let names = names.map(read_names).transpose()?;
        let (mut files, mut samples, mut written) = (Vec::new(), Vec::new(), Vec::new());
        let mut index = |paths: &[PathBuf]| {
            for path in tar_files(paths)? {
                let found = index_shard(&path, names.is_some())?;
                for (member, offset, bytes, label) in found {
                    samples.push(Sample { shard: files.len(), member, offset, bytes });
                    written.push(label);
                }
                files.push(path);
            }
            Ok::<usize, DataError>(samples.len())
        };
        let n = index(train)?;
        if n == 0 {
            let allowed = "tar files, or folders of them, that hold images";
            return Err(DataError::Setting {
                field: "data.source.shards",
                value: format!("{train:?}"),
                allowed,
            });
        }
        let n_train = match held_out {
            Some(paths) => index(paths).map(|_| Some(n))?,
            None => None,
        };
        let at = |i: usize| member_path(&files, &samples[i]);
        let (classes, labels) = resolve(&written, names, at)?;
        Ok(Self { classes, files, samples, labels, n_train })
    }
}

/// The tar files that the paths name, in their order, those of a folder by name.
fn tar_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let before = files.len();
        let is_tar = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tar");
        files.extend(entries(path)?.into_iter().filter(is_tar));
        if files.len() == before {
            let problem = "no .tar files in this folder; name the folder of the shards".into();
            return Err(DataError::Format { path: path.clone(), problem });
        }
    }
    Ok(files)
}

/// Of every sample with an image: the image's member name, offset and size, and its label.
fn index_shard(path: &Path, has_names: bool) -> Result<Vec<(String, u64, u64, String)>, DataError> {
    let format = |problem: String| DataError::Format { path: path.into(), problem };
    let no_tar = |error: io::Error| {
        format(format!("not a whole tar file ({error}); unpack .tar.gz, fetch a torn one again"))
    };
    let file = File::open(path).map_err(DataError::io(path))?;
    let length = file.metadata().map_err(DataError::io(path))?.len();
    let budget = Rc::new(Cell::new(MAX_MEMBER_READ));
    let mut archive = Archive::new(Budgeted { file, left: Rc::clone(&budget) });
    let mut found = Vec::new();
    let mut group = Group::default();
    let mut finish = |group: Group| match group.finish(has_names) {
        Ok(sample) => {
            found.extend(sample);
            Ok(())
        }
        Err(problem) => Err(format(problem)),
    };
    for entry in archive.entries_with_seek().map_err(no_tar)? {
        let mut entry = entry.map_err(no_tar)?;
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(format(format!("ends in the middle of {member}; fetch it again")));
        }
        let is_file =
            matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous);
        let Some((key, extension)) = split_member(&member).filter(|_| is_file) else { continue };
        if group.key != key {
            finish(std::mem::replace(&mut group, Group { key: key.into(), ..Group::default() }))?;
        }
        let extension = extension.to_ascii_lowercase();
        if is_image_extension(&extension) {
            group.image.get_or_insert((member, offset, bytes));
        } else if let Some(kind) = LabelKind::of(&extension).filter(|_| bytes <= MAX_MEMBER_READ) {
            budget.set(MAX_MEMBER_READ);
            let mut text = Vec::new();
            entry.read_to_end(&mut text).map_err(no_tar)?;
            group.labels[kind as usize] = String::from_utf8(text).ok();
        }
        budget.set(MAX_MEMBER_READ);
    }
    finish(group)?;
    Ok(found)
}

/// The path up to the first dot of the file name, and what follows it; nothing for hidden files.
fn split_member(member: &str) -> Option<(&str, &str)> {
    let name = member.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + member[name..].find('.')?;
    (dot > name).then(|| (&member[..dot], &member[dot + 1..]))
}

/// Where a label is written, the first before the others.
#[derive(Clone, Copy)]
enum LabelKind {
    Cls,
    Json,
    Txt,
}

impl LabelKind {
    fn of(extension: &str) -> Option<Self> {
        match extension {
            "cls" => Some(Self::Cls),
            "json" => Some(Self::Json),
            "txt" => Some(Self::Txt),
            _ => None,
        }
    }
}

/// The members of one sample so far.
#[derive(Default)]
struct Group {
    key: String,
    image: Option<(String, u64, u64)>,
    labels: [Option<String>; 3],
}

impl Group {
    fn finish(self, has_names: bool) -> Result<Option<(String, u64, u64, String)>, String> {
        let Some((member, offset, bytes)) = self.image else { return Ok(None) };
        let [cls, json, txt] = self.labels;
        let trimmed = |text: String| text.trim().to_owned();
        // A text beside an image is a caption more often than a label.
        let is_label = |text: &String| has_names || text.parse::<usize>().is_ok();
        let label = cls
            .map(trimmed)
            .or_else(|| json.as_deref().and_then(json_label))
            .or_else(|| txt.map(trimmed).filter(is_label))
            .filter(|label| !label.is_empty());
        match label {
            Some(label) => Ok(Some((member, offset, bytes, label))),
            None => Err(format!(
                "{member}: no label; it is looked for in {key}.cls, in the field 'label' of \
                 {key}.json, and as an index, or a name of data.source.labels, in {key}.txt",
                key = self.key
            )),
        }
    }
}

fn json_label(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    match JSON_LABELS.iter().find_map(|key| value.get(key))? {
        Value::String(name) => Some(name.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn member_path(files: &[PathBuf], sample: &Sample) -> String {
    format!("{}: {}", files[sample.shard].display(), sample.member)
}

/// A file of which no more than a budget is read before the budget is renewed: a header may claim
/// gigabytes for a file name.
struct Budgeted {
    file: File,
    left: Rc<Cell<u64>>,
}

impl Read for Budgeted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header is larger than 1 MiB"));
        }
        let most = buffer.len().min(left as usize);
        let n = self.file.read(&mut buffer[..most])?;
        self.left.set(left - n as u64);
        Ok(n)
    }
}

impl Seek for Budgeted {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Dataset for Shards {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, i: usize) -> usize {
        self.labels[i]
    }

    fn name(&self, i: usize) -> String {
        let Sample { shard, member, .. } = &self.samples[i];
        let file = self.files[*shard].file_name().unwrap_or_default().to_string_lossy();
        format!("{file}: {member}")
    }

    fn describe(&self, i: usize) -> String {
        member_path(&self.files, &self.samples[i])
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.samples[i].bytes
    }

    fn split(&self) -> Split {
        match self.n_train {
            Some(n) => Split { train: (0..n).collect(), held_out: (n..self.len()).collect() },
            None => Split::every_tenth(self.len()),
        }
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        let Sample { shard, offset, bytes, .. } = self.samples[i];
        read_part(&self.files[shard], offset, bytes)
            .and_then(|bytes| decode(&bytes))
            .map_err(|reason| DataError::Unreadable { image: self.describe(i), reason })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Cursor;

    use image::{ImageFormat, Rgb};
    use proptest::prelude::*;
    use tar::{Builder, Header};

    use super::*;

    fn png(level: u8) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_pixel(2, 2, Rgb([level; 3])).write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        for (name, content) in members {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn levels(shards: &Shards) -> Vec<u8> {
        (0..shards.len()).map(|i| shards.image(i).unwrap().get_pixel(1, 1).0[0]).collect()
    }

    #[test]
    fn samples_are_members_of_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let long = format!("{}/x", "deep".repeat(60));
        let (one, two, three, four) = (png(1), png(2), png(3), png(4));
        let members: &[(&str, &[u8])] = &[
            ("./0001.cls", b"2\n"),
            ("./0001.png", &one),
            ("./0001.txt", b"a caption"),
            ("./._0001.png", b"from a Mac"),
            ("a/0002.JSON", br#"{"width": 2, "label": 0}"#),
            ("a/0002.PNG", &two),
            ("a/0002.seg.png", b"not this one"),
            ("b/0002.png", &three),
            ("b/0002.txt", b"1"),
            ("notes.txt", b"about the set"),
            (&format!("{long}.png"), &four),
            (&format!("{long}.cls"), b"2"),
        ];
        fs::write(dir.join("b.tar"), tar_of(members)).unwrap();
        fs::write(dir.join("a.tar"), tar_of(&[("v.png", &four), ("v.cls", b"1")])).unwrap();
        let train = [dir.join("b.tar")];
        let shards = Shards::open(&train, None, None).unwrap();
        assert_eq!(shards.classes(), ["0", "1", "2"]);
        assert_eq!((0..4).map(|i| shards.label(i)).collect::<Vec<_>>(), [2, 0, 1, 2]);
        assert_eq!(levels(&shards), [1, 2, 3, 4]);
        assert_eq!(shards.name(1), "b.tar: a/0002.PNG");
        assert_eq!(shards.stored_bytes(0), one.len() as u64);
        assert_eq!(shards.split(), Split::every_tenth(4));

        let both = Shards::open(&train, Some(&[dir.join("a.tar")]), None).unwrap();
        assert_eq!(both.split(), Split { train: vec![0, 1, 2, 3], held_out: vec![4] });
        let folder = Shards::open(&[dir.to_owned()], None, None).unwrap();
        assert_eq!(levels(&folder), [4, 1, 2, 3, 4], "a.tar comes first");
    }

    #[test]
    fn names_and_captions() {
        let dir = tempfile::tempdir().unwrap();
        let (tar, names) = (dir.path().join("s.tar"), dir.path().join("names.txt"));
        let image = png(1);
        let open = |members: &[(&str, &[u8])], names| {
            fs::write(&tar, tar_of(members)).unwrap();
            let shards = Shards::open(std::slice::from_ref(&tar), None, names);
            shards.map(|s| (s.classes.clone(), s.labels)).map_err(|error| error.to_string())
        };
        let captioned: &[(&str, &[u8])] = &[("k.jpg", &image), ("k.txt", b"red fox")];
        let error = open(captioned, None).unwrap_err();
        assert!(error.contains("s.tar: k.jpg: no label; it is looked for in k.cls"), "{error}");
        fs::write(&names, "hen\nred fox\n").unwrap();
        let (classes, labels) = open(captioned, Some(&names)).unwrap();
        assert_eq!((classes.len(), labels), (2, vec![1]));
        let error = open(&[("k.jpg", &image), ("k.txt", b"fox")], Some(&names)).unwrap_err();
        assert!(error.contains("s.tar: k.jpg: label 'fox' is none of the 2"), "{error}");
        let named: &[(&str, &[u8])] = &[
            ("a.jpg", &image),
            ("a.json", br#"{"cls": "fox"}"#),
            ("b.jpg", &image),
            ("b.cls", b"ant"),
        ];
        let (classes, labels) = open(named, None).unwrap();
        assert_eq!((classes, labels), (vec!["ant".into(), "fox".into()], vec![1, 0]));
        let error = open(&[("k.jpg", &image), ("k.cls", b" ")], None).unwrap_err();
        assert!(error.contains("no label"), "{error}");
        let error = open(&[("k.cls", b"1")], None).unwrap_err();
        assert!(error.contains("data.source.shards"), "{error}");
    }

    #[test]
    fn what_is_no_whole_tar_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let path = dir.join("s.tar");
        let error = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Shards::open(std::slice::from_ref(&path), None, None).unwrap_err().to_string()
        };
        assert!(error(b"\x1F\x8B\x08 compressed").contains("s.tar: not a whole tar file"));
        assert!(error(&[7; 2048]).contains("unpack .tar.gz"));
        let whole = tar_of(&[("k.cls", b"1"), ("k.png", &png(1))]);
        // Two blocks for the label, one of header, then pixels.
        assert!(error(&whole[..512 * 3 + 20]).contains("ends in the middle of k.png"));
        // A file name that claims 2 GiB, in a file that has them.
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_path("././@LongLink").unwrap();
        header.set_size(2 << 30);
        header.set_cksum();
        fs::write(&path, header.as_bytes()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(3 << 30).unwrap();
        let message =
            Shards::open(std::slice::from_ref(&path), None, None).unwrap_err().to_string();
        assert!(message.contains("a header is larger than 1 MiB"), "{message}");
        fs::remove_file(&path).unwrap();
        let open =
            |path: &Path| Shards::open(&[path.to_owned()], None, None).unwrap_err().to_string();
        assert!(open(dir).contains("no .tar files in this folder"));
        assert!(open(&path).contains("s.tar: cannot be read"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_sample_is_found_where_it_lies(
            sizes in prop::collection::vec((0usize..1500, 0usize..40, any::<bool>()), 1..12), split in 0usize..12,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let contents: Vec<(Vec<u8>, String, bool)> = sizes
                .iter()
                .enumerate()
                .map(|(i, (n, label, first))| (vec![i as u8; *n], label.to_string(), *first))
                .collect();
            let shard = |range: &[(Vec<u8>, String, bool)], from: usize| {
                let mut members: Vec<(String, &[u8])> = Vec::new();
                for (i, (image, label, label_first)) in range.iter().enumerate() {
                    let key = format!("{}", from + i);
                    let both = [(format!("{key}.webp"), &image[..]), (format!("{key}.cls"), label.as_bytes())];
                    members.extend(if *label_first { both.into_iter().rev().collect::<Vec<_>>() } else { both.into() });
                }
                let members: Vec<(&str, &[u8])> = members.iter().map(|(n, c)| (n.as_str(), *c)).collect();
                tar_of(&members)
            };
            let split = split.min(contents.len());
            fs::write(dir.path().join("1.tar"), shard(&contents[..split], 0)).unwrap();
            fs::write(dir.path().join("2.tar"), shard(&contents[split..], split)).unwrap();
            let shards = Shards::open(&[dir.path().to_owned()], None, None).unwrap();
            prop_assert_eq!(shards.len(), contents.len());
            for (i, (image, label, _)) in contents.iter().enumerate() {
                let Sample { shard, offset, bytes, .. } = shards.samples[i];
                prop_assert_eq!(&read_part(&shards.files[shard], offset, bytes).unwrap(), image);
                prop_assert_eq!(&shards.label(i).to_string(), label);
            }
        }

        #[test]
        fn damage_does_no_harm(at in 0usize..3000, with: u8, length in 0usize..4000) {
            let dir = tempfile::tempdir().unwrap();
            let image = png(1);
            let mut bytes = tar_of(&[("k.cls", b"1"), ("k.png", &image), (&"n".repeat(120), b"x"), ("l.png", &image)]);
            let end = bytes.len();
            bytes[at.min(end - 1)] = with;
            bytes.truncate(length.max(1).min(end));
            fs::write(dir.path().join("s.tar"), &bytes).unwrap();
            if let Ok(shards) = Shards::open(&[dir.path().join("s.tar")], None, None) {
                for i in 0..shards.len() {
                    let _ = shards.image(i);
                }
            }
        }
    }
}
