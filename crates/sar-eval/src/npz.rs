//! Arrays of an `.npz` file, as numpy and the evaluation scripts of this field write it.
//!
//! Images are `arr_0`, 8-bit `[n, height, width, 3]`, and their labels `arr_1`; statistics are `mu` and
//! `sigma`, of other features `mu_s` and `sigma_s` (guided-diffusion's evaluator, pytorch-fid).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use npyz::{DType, NpyFile, NpyHeader, Order, TypeChar};
use sar_data::RgbImage;
use zip::ZipArchive;
use zip::result::ZipError;

use crate::EvalError;

/// Name of the array of images.
const IMAGES: &str = "arr_0";
/// Name of the array of their labels.
const LABELS: &str = "arr_1";

/// An open file.
pub struct Npz {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
}

/// A matrix of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows and columns; a vector is one row.
    pub shape: [usize; 2],
    /// Row after row.
    pub values: Vec<f64>,
}

impl Npz {
    /// Opens a file; nothing of its arrays is read yet.
    ///
    /// # Errors
    /// If it cannot be read or is no zip archive.
    pub fn open(path: &Path) -> Result<Self, EvalError> {
        let problem = |problem: String| EvalError::Npz { path: path.into(), problem };
        let file = File::open(path).map_err(|error| problem(error.to_string()))?;
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            problem(format!("no .npz file, or a truncated one ({error}); write it anew"))
        })?;
        Ok(Self { path: path.into(), zip })
    }

    /// The path that it was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is an array of this name.
    pub fn has(&self, name: &str) -> bool {
        self.zip.index_for_name(&format!("{name}.npy")).is_some()
    }

    /// Number, height and width of the images, if there are images.
    ///
    /// # Errors
    /// If `arr_0` is no array of 8-bit images.
    pub fn images(&mut self) -> Result<Option<[usize; 3]>, EvalError> {
        if !self.has(IMAGES) {
            return Ok(None);
        }
        self.read(IMAGES, |header, _| image_shape(header)).map(Some)
    }

    /// Hands on the images in order, a batch at a time, as they are read.
    ///
    /// # Errors
    /// If there are none, or they cannot be read, and what `seen` returns.
    pub fn for_each_batch<E: From<EvalError>>(
        &mut self,
        batch: usize,
        mut seen: impl FnMut(Vec<RgbImage>) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self.path.clone();
        let outcome = self.read(IMAGES, |header, reader| {
            let [n, height, width] = image_shape(header)?;
            let mut left = n;
            while left > 0 {
                let mut images = Vec::new();
                for _ in 0..batch.min(left) {
                    let mut pixels = vec![0; height * width * 3];
                    reader.read_exact(&mut pixels).map_err(|error| {
                        format!("{IMAGES}: ends in image {} of {n} ({error})", n - left)
                    })?;
                    let image = RgbImage::from_raw(width as u32, height as u32, pixels);
                    images.push(image.expect("as many bytes as pixels"));
                    left -= 1;
                }
                if let Err(error) = seen(images) {
                    return Ok(Err(error));
                }
            }
            // The archive's checksum is compared at the end of the array.
            let rest = reader.read(&mut [0]).map_err(|error| format!("{IMAGES}: {error}"))?;
            match rest {
                0 => Ok(Ok(())),
                _ => Err(format!("{IMAGES}: is longer than its shape says")),
            }
        });
        match outcome {
            Ok(outcome) => outcome,
            Err(EvalError::Npz { problem, .. }) => Err(EvalError::Npz { path, problem }.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// The labels of the images, if there are any.
    ///
    /// # Errors
    /// If they are no whole numbers of 0 and more.
    pub fn labels(&mut self) -> Result<Option<Vec<usize>>, EvalError> {
        if !self.has(LABELS) {
            return Ok(None);
        }
        let Matrix { values, .. } = self.matrix(LABELS)?;
        let label = |x: f64| (x >= 0.0 && x.fract() == 0.0).then_some(x as usize);
        let labels = values.into_iter().map(label).collect::<Option<Vec<_>>>();
        labels.map(Some).ok_or_else(|| {
            self.problem(format!("{LABELS}: labels are whole numbers of 0 and more"))
        })
    }

    /// An array of numbers of one or two dimensions.
    ///
    /// # Errors
    /// If it is not there, is of another kind, or cannot be read.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix, EvalError> {
        self.read(name, |header, reader| {
            let shape = match *header.shape() {
                [columns] => [1, columns as usize],
                [rows, columns] => [rows as usize, columns as usize],
                _ => return Err(format!("{name}: {:?} is no matrix", header.shape())),
            };
            let kind = kind(header);
            let file = NpyFile::with_header(header.clone(), reader);
            let values: Result<Vec<f64>, _> = match kind {
                Some((TypeChar::Float, 8)) => file.into_vec(),
                Some((TypeChar::Float, 4)) => floats(file.into_vec::<f32>()),
                Some((TypeChar::Int, 8)) => {
                    file.into_vec::<i64>().map(|v| v.into_iter().map(|x| x as f64).collect())
                }
                Some((TypeChar::Int, 4)) => floats(file.into_vec::<i32>()),
                Some((TypeChar::Uint, 1)) => floats(file.into_vec::<u8>()),
                _ => {
                    return Err(format!(
                        "{name}: numbers of type {}; save float32, float64 or integers",
                        header.dtype().descr()
                    ));
                }
            };
            let mut values = values.map_err(|error| format!("{name}: {error}"))?;
            if header.order() == Order::Fortran {
                let [rows, columns] = shape;
                let at = |i: usize| values[(i % columns) * rows + i / columns];
                values = (0..values.len()).map(at).collect();
            }
            Ok(Matrix { shape, values })
        })
    }

    fn read<T>(
        &mut self,
        name: &str,
        f: impl FnOnce(&NpyHeader, &mut dyn Read) -> Result<T, String>,
    ) -> Result<T, EvalError> {
        let outcome = match self.zip.by_name(&format!("{name}.npy")) {
            Ok(mut entry) => NpyHeader::from_reader(&mut entry)
                .map_err(|error| format!("{name}: {error}"))
                .and_then(|header| f(&header, &mut entry)),
            Err(ZipError::FileNotFound) => Err(format!("has no array {name}")),
            Err(error) => Err(format!("{name}: {error}")),
        };
        outcome.map_err(|problem| self.problem(problem))
    }

    fn problem(&self, problem: String) -> EvalError {
        EvalError::Npz { path: self.path.clone(), problem }
    }
}

fn floats<T: Into<f64>>(values: std::io::Result<Vec<T>>) -> std::io::Result<Vec<f64>> {
    values.map(|values| values.into_iter().map(Into::into).collect())
}

/// Kind and bytes of the numbers of an array of plain numbers.
fn kind(header: &NpyHeader) -> Option<(TypeChar, u64)> {
    match header.dtype() {
        DType::Plain(kind) => Some((kind.type_char(), kind.size_field())),
        _ => None,
    }
}

/// Number, height and width.
fn image_shape(header: &NpyHeader) -> Result<[usize; 3], String> {
    match kind(header) {
        Some((TypeChar::Uint, 1)) => {}
        Some((TypeChar::Float, _)) => {
            return Err(format!(
                "{IMAGES}: numbers of type {}, but images are 8-bit (uint8, 0 to 255): scale and round \
                 them before saving",
                header.dtype().descr()
            ));
        }
        _ => {
            return Err(format!(
                "{IMAGES}: numbers of type {}, but images are 8-bit (uint8)",
                header.dtype().descr()
            ));
        }
    }
    match *header.shape() {
        [n, height, width, 3] if n > 0 && height > 0 && width > 0 => {
            if header.order() == Order::Fortran {
                return Err(format!("{IMAGES}: is in Fortran's order; save a contiguous array"));
            }
            Ok([n, height, width].map(|x| x as usize))
        }
        _ => Err(format!(
            "{IMAGES}: has shape {:?}, but images are [n, height, width, 3]",
            header.shape()
        )),
    }
}
