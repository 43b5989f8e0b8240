//! CIFAR-10 in its binary version: records of a label and 32x32 pixels.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

use crate::decode::read_part;
use crate::labels::read_names;
use crate::walk::entries;
use crate::{DataError, Dataset};

const SIDE: usize = 32;

/// Bytes of one color plane.
const PLANE: usize = SIDE * SIDE;

/// One byte of label, then the red, the green and the blue plane, row by row.
const RECORD: u64 = 1 + 3 * PLANE as u64;

/// The images of `data_batch_*.bin` and, held out, those of `test_batch.bin`.
#[derive(Debug)]
pub struct Cifar10 {
    classes: Vec<String>,
    files: Vec<PathBuf>,
    /// The number of images in the files before, per file.
    starts: Vec<usize>,
    labels: Vec<usize>,
    /// How many images train, if the others are held out.
    n_train: Option<usize>,
}

impl Cifar10 {
    /// Reads the labels of all batches in a folder, and the class names of `batches.meta.txt`.
    ///
    /// # Errors
    /// If a file is missing, is no whole number of records, or has a label without a name.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        if !folder.exists() {
            return Err(DataError::NoRoot { path: folder.into() });
        }
        let mut files = batches(folder)?;
        if files.is_empty() {
            return Err(DataError::Format { path: folder.into(), problem: no_batches(folder) });
        }
        let classes = read_names(&folder.join("batches.meta.txt"))?;
        let (mut starts, mut labels, mut n_train) = (Vec::new(), Vec::new(), None);
        let test = folder.join("test_batch.bin");
        let n_batches = files.len();
        files.extend(test.exists().then_some(test));
        for (i, file) in files.iter().enumerate() {
            if i == n_batches {
                n_train = Some(labels.len());
            }
            starts.push(labels.len());
            read_labels(file, classes.len(), &mut labels)?;
        }
        Ok(Self { classes, files, starts, labels, n_train })
    }

    /// The file of image `i`, and its place there.
    fn place(&self, i: usize) -> (&Path, usize) {
        let file = self.starts.partition_point(|start| *start <= i) - 1;
        (&self.files[file], i - self.starts[file])
    }
}

/// The training batches in a folder, by name.
fn batches(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let is_batch = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("data_batch_") && name.ends_with(".bin")
    };
    Ok(entries(folder)?.into_iter().map(|entry| entry.path).filter(is_batch).collect())
}

/// What there is in place of batches, and what to do.
fn no_batches(folder: &Path) -> String {
    const BINARY: &str = "the binary version, cifar-10-binary.tar.gz";
    let has = |name: &str| folder.join(name).is_file();
    if has("data_batch_1") || has("batches.meta") {
        return format!(
            "these are CIFAR-10's Python batches, which are not read; download {BINARY}"
        );
    }
    if has("fine_label_names.txt") || (has("meta") && has("train")) {
        return "this is CIFAR-100; only CIFAR-10 is read so, write its images into class folders \
                and use kind = \"folder\""
            .into();
    }
    if batches(&folder.join("cifar-10-batches-bin")).is_ok_and(|files| !files.is_empty()) {
        return "no data_batch_*.bin here, but in cifar-10-batches-bin; name that folder".into();
    }
    format!("no data_batch_*.bin; unpack here {BINARY}")
}

fn read_labels(path: &Path, n_classes: usize, labels: &mut Vec<usize>) -> Result<(), DataError> {
    let format = |problem: String| DataError::Format { path: path.into(), problem };
    let io = || DataError::io(path);
    let mut file = File::open(path).map_err(io())?;
    let length = file.metadata().map_err(io())?.len();
    if length == 0 || !length.is_multiple_of(RECORD) {
        let problem = format!("{length} bytes are no whole number of images of {RECORD} bytes");
        return Err(format(format!("{problem}; fetch the binary version again")));
    }
    for i in 0..length / RECORD {
        let mut label = [0];
        file.seek(SeekFrom::Start(i * RECORD)).map_err(io())?;
        file.read_exact(&mut label).map_err(io())?;
        let label = usize::from(label[0]);
        if label >= n_classes {
            let problem = format!("image {i} has label {label}, but there are {n_classes} classes");
            return Err(format(format!("{problem} in batches.meta.txt")));
        }
        labels.push(label);
    }
    Ok(())
}

/// The image of a record's planes.
fn from_planes(planes: &[u8]) -> RgbImage {
    RgbImage::from_fn(SIDE as u32, SIDE as u32, |x, y| {
        let at = y as usize * SIDE + x as usize;
        Rgb([0, 1, 2].map(|c| planes[c * PLANE + at]))
    })
}

impl Dataset for Cifar10 {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, i: usize) -> usize {
        self.labels[i]
    }

    fn name(&self, i: usize) -> String {
        let (file, place) = self.place(i);
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        format!("{file}, image {place}")
    }

    fn describe(&self, i: usize) -> String {
        let (file, place) = self.place(i);
        format!("{}, image {place}", file.display())
    }

    fn stored_bytes(&self, _: usize) -> u64 {
        RECORD
    }

    fn n_train(&self) -> Option<usize> {
        self.n_train
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        let (file, place) = self.place(i);
        read_part(file, place as u64 * RECORD + 1, RECORD - 1)
            .map(|planes| from_planes(&planes))
            .map_err(|reason| DataError::Unreadable { image: self.describe(i), reason })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::Split;

    fn record(label: u8, red: u8) -> Vec<u8> {
        let mut record = vec![label];
        record.extend((0..3 * PLANE).map(|i| if i == 0 { red } else { (i % 251) as u8 }));
        record
    }

    #[test]
    fn records_become_images() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let error = |dir: &Path| Cifar10::open(dir).unwrap_err().to_string();
        assert!(error(&dir.join("none")).contains("none: no such folder"));
        assert!(error(dir).contains("no data_batch_*.bin; unpack here the binary version"));
        let inner = dir.join("cifar-10-batches-bin");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("data_batch_1.bin"), "").unwrap();
        assert!(error(dir).contains("but in cifar-10-batches-bin; name that folder"));
        for (name, expected) in [
            ("fine_label_names.txt", "this is CIFAR-100"),
            ("data_batch_1", "Python batches, which are not read; download the binary version"),
        ] {
            fs::write(dir.join(name), "x").unwrap();
            assert!(error(dir).contains(expected), "{}", error(dir));
        }
        fs::write(dir.join("data_batch_1.bin"), [record(2, 9), record(0, 8)].concat()).unwrap();
        assert!(error(dir).contains("batches.meta.txt: cannot be read"));
        fs::write(dir.join("batches.meta.txt"), "plane\ncar\nbird\n\n").unwrap();
        fs::write(dir.join("data_batch_2.bin"), record(1, 7)).unwrap();
        assert_eq!(Cifar10::open(dir).unwrap().split(), Split::every_tenth(3));
        fs::write(dir.join("test_batch.bin"), record(1, 6)).unwrap();
        let cifar = Cifar10::open(dir).unwrap();
        assert_eq!((0..4).map(|i| cifar.label(i)).collect::<Vec<_>>(), [2, 0, 1, 1]);
        assert_eq!(cifar.split(), Split { train: vec![0, 1, 2], held_out: vec![3] });
        assert_eq!(
            (cifar.name(1), cifar.name(3)),
            ("data_batch_1.bin, image 1".into(), "test_batch.bin, image 0".into())
        );
        let reds: Vec<u8> = (0..4).map(|i| cifar.image(i).unwrap().get_pixel(0, 0).0[0]).collect();
        assert_eq!(reds, [9, 8, 7, 6]);
        // Row 2, column 5 is byte 69 of each plane.
        let expected = [69, 69 + 1024, 69 + 2048].map(|i| (i % 251) as u8);
        assert_eq!(cifar.image(3).unwrap().get_pixel(5, 2).0, expected);
        // Cut short while the run goes on.
        fs::write(dir.join("test_batch.bin"), &record(1, 6)[..100]).unwrap();
        let message = cifar.image(3).unwrap_err().to_string();
        assert!(message.contains("test_batch.bin, image 0: not a readable image"), "{message}");
        assert!(error(dir).contains("test_batch.bin: 100 bytes are no whole number"));
        fs::write(dir.join("test_batch.bin"), record(3, 6)).unwrap();
        assert!(error(dir).contains("image 0 has label 3, but there are 3 classes"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_image_is_found_in_its_file(sizes in prop::collection::vec(1usize..4, 1..4), extra in 0u64..RECORD) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("batches.meta.txt"), "a\nb\n").unwrap();
            let mut level = 0;
            for (i, n) in sizes.iter().enumerate() {
                let records: Vec<u8> = (0..*n).flat_map(|_| {
                    level += 1;
                    record(level % 2, level)
                }).collect();
                fs::write(dir.path().join(format!("data_batch_{i}.bin")), records).unwrap();
            }
            let cifar = Cifar10::open(dir.path()).unwrap();
            prop_assert_eq!(cifar.len(), sizes.iter().sum::<usize>());
            for i in 0..cifar.len() {
                prop_assert_eq!(usize::from(cifar.image(i).unwrap().get_pixel(0, 0).0[0]), i + 1);
                prop_assert_eq!(cifar.label(i), (i + 1) % 2);
            }
            fs::write(dir.path().join("test_batch.bin"), vec![0; (RECORD + extra) as usize]).unwrap();
            prop_assert_eq!(Cifar10::open(dir.path()).is_ok(), extra == 0);
        }
    }
}
