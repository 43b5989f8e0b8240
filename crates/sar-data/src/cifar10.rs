//! CIFAR-10 in its binary version: records of a label and 32x32 pixels.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};

use crate::decode::read_part;
use crate::folder::entries;
use crate::labels::read_names;
use crate::{DataError, Dataset, Split};

const SIDE: usize = 32;

/// Bytes of one colour plane.
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
        let classes = read_names(&folder.join("batches.meta.txt"))?;
        let is_batch = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("data_batch_") && name.ends_with(".bin")
        };
        let mut files: Vec<PathBuf> = entries(folder)?.into_iter().filter(is_batch).collect();
        if files.is_empty() {
            let problem = "no data_batch_*.bin; unpack CIFAR-10's binary version here".into();
            return Err(DataError::Format { path: folder.into(), problem });
        }
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

    fn split(&self) -> Split {
        match self.n_train {
            Some(n) => Split { train: (0..n).collect(), held_out: (n..self.len()).collect() },
            None => Split::every_tenth(self.len()),
        }
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
        assert!(error(dir).contains("batches.meta.txt: cannot be read"));
        fs::write(dir.join("batches.meta.txt"), "plane\ncar\nbird\n\n").unwrap();
        assert!(error(dir).contains("no data_batch_*.bin"));
        fs::write(dir.join("data_batch_1.bin"), [record(2, 9), record(0, 8)].concat()).unwrap();
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
