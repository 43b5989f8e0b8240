//! Webdataset shards: tar files whose members `key.jpg`, `key.cls` are one sample.

use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::braces::expand;
use crate::decode::{decode, read_part};
use crate::labels::{read_names, resolve};
use crate::left_out::{Tally, in_one_line, one_line};
use crate::shard_index::{DOTTED, Found, ShardIndex, index_shard};
use crate::walk::entries;
use crate::{DataError, Dataset, LeftOut, Search};

/// What to do about images whose names hold a dot.
const RENAME: &str = "rename them, as the key of a sample ends at the first dot of a file name";

/// What to do where nothing else helps.
const NAME_SHARDS: &str =
    "name tar files, or folders of them, whose members are images and labels of the same key";

/// The images of tar shards, found once and read where they lie.
///
/// Members with the same path up to the first dot of the file name are one sample, as in the library
/// webdataset. Its image has the extension of a format that is read; its label is in `.cls`, or in a
/// field `label`, `cls` or `class` of `.json`, or in `.txt`. Hidden members are passed over; images
/// that belong to no sample are counted as left out.
#[derive(Debug)]
pub struct Shards {
    classes: Vec<String>,
    files: Vec<PathBuf>,
    samples: Vec<Sample>,
    labels: Vec<usize>,
    n_train: Option<usize>,
    left_out: Vec<LeftOut>,
    notes: Vec<String>,
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
    /// Indexes shards: each path is a tar file, many of them by braces as in `{000000..000127}`, or
    /// a folder of tar files. `names` is a file of class names.
    ///
    /// # Errors
    /// If a shard cannot be read, is not a whole tar file, has an image without a label, or a label
    /// is no class.
    pub fn open(
        train: &[PathBuf],
        held_out: Option<&[PathBuf]>,
        names: Option<&Path>,
    ) -> Result<Self, DataError> {
        Self::find(train, held_out, names, &|| ())
    }

    /// As [`open`](Self::open); the search hears of every member, and may share the files with others.
    pub(crate) fn find(
        train: &[PathBuf],
        held_out: Option<&[PathBuf]>,
        names: Option<&Path>,
        search: &dyn Search,
    ) -> Result<Self, DataError> {
        let names = names.map(read_names).transpose()?;
        let (mut files, mut samples, mut written) = (Vec::<PathBuf>::new(), Vec::new(), Vec::new());
        let (mut tally, mut notes) = (Tally::default(), Vec::new());
        let mut index = |paths: &[PathBuf], tally: &mut Tally| {
            let first = files.len();
            files.extend(tar_files(paths, tally)?);
            let mut look = |path: &Path| index_shard(path, names.is_some(), &|| search.looked());
            let mut shard = first;
            let mut take = |found: ShardIndex| {
                if !found.has_end {
                    let path = files[shard].display();
                    notes.push(format!("{path}: has no mark of its end and may be cut short"));
                }
                for Found { member, offset, bytes, label } in found.samples {
                    samples.push(Sample { shard, member, offset, bytes });
                    written.push(label);
                }
                tally.append(found.left_out);
                shard += 1;
            };
            search.indices(&files[first..], &mut look, &mut take)?;
            Ok::<usize, DataError>(samples.len())
        };
        let n = index(train, &mut tally)?;
        if n == 0 {
            let left_out = tally.finish();
            let is_dotted = left_out.iter().any(|kind| kind.why == DOTTED);
            let remedy = if is_dotted { RENAME } else { NAME_SHARDS };
            return Err(DataError::NoSamples { left_out: in_one_line(&left_out), remedy });
        }
        let n_train = match held_out {
            Some(paths) => index(paths, &mut tally).map(|_| Some(n))?,
            None => None,
        };
        let at = |i: usize| member_path(&files, &samples[i]);
        let (classes, labels) = resolve(&written, names, at)?;
        let left_out = tally.finish();
        if let Some(dotted) = left_out.iter().find(|kind| kind.why == DOTTED) {
            notes.push(format!("data.source.shards: {dotted} belong to no sample; {RENAME}"));
        }
        Ok(Self { classes, files, samples, labels, n_train, left_out, notes })
    }
}

/// The tar files that the paths name, in their order, those of a folder by name.
fn tar_files(paths: &[PathBuf], tally: &mut Tally) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for path in paths {
        for path in expanded(path)? {
            if path.is_dir() {
                files.extend(tar_files_of(&path, tally)?);
            } else {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// What the braces of a path stand for; files of that very name come first.
fn expanded(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let format = |problem: String| DataError::Format { path: path.into(), problem };
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return Ok(vec![path.into()]) };
    let paths: Vec<PathBuf> = expand(text).map_err(format)?.into_iter().map(Into::into).collect();
    let missing: Vec<&PathBuf> = paths.iter().filter(|path| !path.exists()).collect();
    match missing.first() {
        Some(first) if paths.len() > 1 => Err(format(format!(
            "stands for {} files, of which {} do not exist, the first is {}",
            paths.len(),
            missing.len(),
            first.display()
        ))),
        _ => Ok(paths),
    }
}

fn tar_files_of(folder: &Path, tally: &mut Tally) -> Result<Vec<PathBuf>, DataError> {
    const COMPRESSED: [&str; 8] =
        [".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".txz", ".tar.bz2", ".tar.lz4", ".zip"];
    let mut compressed = 0;
    let mut files = Vec::new();
    for entry in entries(folder)? {
        let name = entry.path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.ends_with(".tar") {
            files.push(entry.path);
        } else if COMPRESSED.iter().any(|ending| name.ends_with(ending)) {
            compressed += 1;
            tally.add("compressed archives", entry.path.display());
        }
    }
    if files.is_empty() {
        let problem = if compressed > 0 {
            format!("no .tar files in this folder, but {compressed} compressed ones; unpack them")
        } else {
            "no .tar files in this folder; name the folder of the shards".into()
        };
        return Err(DataError::Format { path: folder.into(), problem });
    }
    Ok(files)
}

fn member_path(files: &[PathBuf], sample: &Sample) -> String {
    format!("{}: {}", files[sample.shard].display(), one_line(&sample.member))
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

    fn n_train(&self) -> Option<usize> {
        self.n_train
    }

    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn notes(&self) -> &[String] {
        &self.notes
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
    use std::fs::{self, File};
    use std::io::Cursor;

    use image::{ImageFormat, Rgb};
    use proptest::prelude::*;
    use tar::{Builder, EntryType, Header};

    use super::*;
    use crate::Split;

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
        // With braces, and as a file that has braces in its name.
        let braces = |name: &str| Shards::open(&[dir.join(name)], None, None);
        assert_eq!(levels(&braces("{b,a}.tar").unwrap()), [1, 2, 3, 4, 4]);
        let error = braces("{a,b,c,d}.tar").unwrap_err().to_string();
        let expected = "{a,b,c,d}.tar: stands for 4 files, of which 2 do not exist, the first is ";
        assert!(error.contains(expected) && error.ends_with("c.tar"), "{error}");
        fs::rename(dir.join("a.tar"), dir.join("{a,b}.tar")).unwrap();
        assert_eq!(levels(&braces("{a,b}.tar").unwrap()), [4]);
    }

    /// A rank's images come at random from all shards: each is opened for one image, and closed again.
    #[test]
    #[cfg(target_os = "linux")]
    fn no_more_shards_are_open_than_threads_read() {
        use std::collections::BTreeSet;

        use crate::{Augmentation, Crop, DataRecipe, ImageSource, Images, Part, ReadAhead};

        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().canonicalize().unwrap();
        let image = png(1);
        for i in 0..60 {
            let members: &[(&str, &[u8])] = &[("a.png", &image), ("a.cls", b"0")];
            fs::write(folder.join(format!("{i:02}.tar")), tar_of(members)).unwrap();
        }
        let recipe = DataRecipe {
            source: ImageSource::Webdataset {
                shards: vec![folder.clone()],
                held_out: None,
                labels: None,
            },
            side: 2,
            crop: Crop::Exact {},
            augmentation: Augmentation::none(),
            max_unreadable: 0.0,
        };
        let open = || {
            let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
            files
                .filter_map(|fd| fs::read_link(fd.path()).ok())
                .filter(|path| path.starts_with(&folder))
                .count()
        };
        let most_open = std::cell::Cell::new(0);
        let look = || most_open.set(open().max(most_open.get()));
        let threads = 3;
        let images = Images::open(&recipe, ReadAhead { threads, batches: 2 }, &look).unwrap();
        assert_eq!(most_open.get(), 1, "while they are indexed");
        let part = Part { of: 9, from: 3, to: 6 };
        let mut read = BTreeSet::new();
        for batch in images.training_part(sar_core::SeedTree::new(0), part, 0, 3).take(60) {
            read.extend(batch.unwrap().indices);
            assert!(open() <= threads, "{} are open", open());
        }
        assert!(read.len() > 40, "a third of the positions has come to {} shards", read.len());
    }

    #[test]
    fn what_belongs_to_no_sample_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("s.tar");
        let image = png(1);
        let open = |members: &[(&str, &[u8])]| {
            fs::write(&tar, tar_of(members)).unwrap();
            Shards::open(std::slice::from_ref(&tar), None, None).map_err(|error| error.to_string())
        };
        let shards = open(&[
            ("v1.0/a.png", &image),
            ("v1.0/a.JPG", &image),
            ("v1.0/a.cls", b"0"),
            ("img_22.00.png", &image),
            ("img_22.00.cls", b"0"),
            ("img_22.01.png", &image),
            ("img_22.01.cls", b"0"),
            ("b.avif", &image),
            ("b.cls", b"1"),
            ("d.cls", b"1"),
            ("c.mask.png", &image),
            ("c.png", &image),
            ("c.cls", b"0"),
        ])
        .unwrap();
        assert_eq!(shards.name(0), "s.tar: v1.0/a.png", "dots of folders do not count");
        assert_eq!(shards.len(), 2);
        let left_out: Vec<String> = shards.left_out().iter().map(ToString::to_string).collect();
        let expected = [
            "2 images with a dot in their names before the extension (first: s.tar: img_22.00.png)",
            "1 .avif (first: s.tar: b.avif)",
            "1 further images of a sample (first: s.tar: v1.0/a.JPG)",
            "1 labels without an image (first: s.tar: d)",
        ];
        assert_eq!(left_out, expected);
        assert!(shards.notes()[0].contains("ends at the first dot") && shards.notes().len() == 1);
        // Cut where a sample ends, which no header shows, and where one does not.
        let whole = tar_of(&[("a.png", &image), ("a.cls", b"0"), ("b.png", &image)]);
        let cut = |blocks: usize| {
            fs::write(&tar, &whole[..512 * blocks]).unwrap();
            Shards::open(std::slice::from_ref(&tar), None, None)
        };
        assert!(cut(4).unwrap().notes()[0].contains("s.tar: has no mark of its end"));
        let error = cut(6).unwrap_err().to_string();
        assert!(error.contains("b.png: no label") && error.contains("or the file was cut short"));

        let error = open(&[("v2.0 x.png", &image), ("v2.0 x.cls", b"0")]).unwrap_err();
        let expected =
            "no sample with an image, 1 file left out: 1 images with a dot in their names";
        assert!(error.contains(expected) && error.contains("rename them, as the key"), "{error}");
        let error = open(&[("n01440764.tar", b"x")]).unwrap_err();
        assert!(error.contains("1 tar files in tar files"), "{error}");

        let apart: &[(&str, &[u8])] =
            &[("a.png", &image), ("b.png", &image), ("a.cls", b"0"), ("b.cls", b"0")];
        let error = open(apart).unwrap_err();
        let expected = "s.tar: the members of sample a are not next to each other; pack the shard \
                        again with its members sorted: tar --sort=name";
        assert!(error.ends_with(expected), "{error}");
        let labels_first: Vec<(&str, &[u8])> = apart.iter().rev().copied().collect();
        assert!(open(&labels_first).unwrap_err().contains("sample b are not next"));
        let twice: &[(&str, &[u8])] = &[
            ("a.png", &image),
            ("a.cls", b"0"),
            ("b.txt", b"x"),
            ("a.png", &image),
            ("a.cls", b"0"),
        ];
        assert_eq!(open(twice).unwrap().len(), 2);
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
        let message = error(b"\x1F\x8B\x08 compressed");
        assert!(message.contains("s.tar: is compressed") && message.contains("with gunzip"));
        assert!(error(&[7; 2048]).contains("s.tar: not a whole tar file"));
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
        assert!(open(dir).contains("no .tar files in this folder; name"));
        fs::write(dir.join("s.tar.gz"), "x").unwrap();
        assert!(open(dir).contains("no .tar files in this folder, but 1 compressed ones; unpack"));
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
