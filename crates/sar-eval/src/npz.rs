//! Arrays of an `.npz` file, as numpy and the evaluation scripts of this field write it.
//!
//! Images are `arr_0`, 8-bit `[n, height, width, 3]`, and their labels `arr_1`; statistics are `mu` and
//! `sigma`, of other features `mu_s` and `sigma_s` (guided-diffusion's evaluator, pytorch-fid).

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use npyz::half::f16;
use npyz::{DType, NpyFile, NpyHeader, Order, TypeChar};
use sar_data::RgbImage;
use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use crate::EvalError;

/// Name of the array of images.
const IMAGES: &str = "arr_0";
/// Name of the array of their labels.
const LABELS: &str = "arr_1";
/// The longest side of an image, pixels.
const MOST_SIDE: u64 = 1 << 14;
/// How many times its size deflate can shorten something, and a little more.
const MOST_DEFLATED: u64 = 1100;

/// An open file.
pub struct Npz {
    path: PathBuf,
    /// Of the file.
    bytes: u64,
    zip: ZipArchive<BufReader<File>>,
}

/// A matrix of numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows and columns.
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
        let bytes = file.metadata().map_err(|error| problem(error.to_string()))?.len();
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            problem(format!("no .npz file, or a truncated one ({error}); write it anew"))
        })?;
        Ok(Self { path: path.into(), bytes, zip })
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

    /// Whether the images are in Fortran's order: no image is in one piece, and to read them keeps all of them.
    ///
    /// # Errors
    /// If there are none.
    pub(crate) fn is_in_fortrans_order(&mut self) -> Result<bool, EvalError> {
        self.read(IMAGES, |header, _| Ok(header.order() == Order::Fortran))
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
            let shape @ [n, height, width] = image_shape(header)?;
            let mut all = Vec::new();
            if header.order() == Order::Fortran {
                all.resize(n * height * width * 3, 0);
                reader
                    .read_exact(&mut all)
                    .map_err(|error| format!("{IMAGES}: ends too early ({error})"))?;
            }
            let mut left = n;
            while left > 0 {
                let mut images = Vec::new();
                for _ in 0..batch.min(left) {
                    let mut pixels = vec![0; height * width * 3];
                    if all.is_empty() {
                        reader.read_exact(&mut pixels).map_err(|error| {
                            format!("{IMAGES}: ends in image {} of {n} ({error})", n - left)
                        })?;
                    } else {
                        gather(&all, shape, n - left, &mut pixels);
                    }
                    let image = RgbImage::from_raw(width as u32, height as u32, pixels);
                    images.push(image.expect("as many bytes as pixels"));
                    left -= 1;
                }
                if let Err(error) = seen(images) {
                    return Ok(Err(error));
                }
            }
            check_end(IMAGES, reader)?;
            Ok(Ok(()))
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
    /// If they are no vector of whole numbers of 0 and more.
    pub fn labels(&mut self) -> Result<Option<Vec<usize>>, EvalError> {
        if !self.has(LABELS) {
            return Ok(None);
        }
        let values = self.vector(LABELS)?;
        let label = |x: f64| (x >= 0.0 && x.fract() == 0.0).then_some(x as usize);
        let labels = values.into_iter().map(label).collect::<Option<Vec<_>>>();
        labels.map(Some).ok_or_else(|| {
            self.problem(format!("{LABELS}: labels are whole numbers of 0 and more"))
        })
    }

    /// An array of numbers of one dimension.
    ///
    /// # Errors
    /// If it is not there, is of another kind, or cannot be read.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f64>, EvalError> {
        let shape = |shape: &[u64]| match *shape {
            [n] => Ok([1, n as usize]),
            _ => Err(format!("has shape {shape:?}, but a vector is wanted, [n]; reshape it")),
        };
        Ok(self.numbers(name, shape)?.values)
    }

    /// An array of numbers of two dimensions.
    ///
    /// # Errors
    /// If it is not there, is of another kind, or cannot be read.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix, EvalError> {
        self.numbers(name, |shape| match *shape {
            [rows, columns] => Ok([rows as usize, columns as usize]),
            _ => Err(format!("has shape {shape:?}, but a matrix is wanted, [rows, columns]")),
        })
    }

    /// An array of numbers of a shape that can be taken for rows and columns.
    fn numbers(
        &mut self,
        name: &str,
        rows_and_columns: impl FnOnce(&[u64]) -> Result<[usize; 2], String>,
    ) -> Result<Matrix, EvalError> {
        self.read(name, |header, reader| {
            let shape = rows_and_columns(header.shape());
            let shape = shape.map_err(|problem| format!("{name}: {problem}"))?;
            let kind = kind(header);
            let file = NpyFile::with_header(header.clone(), &mut *reader);
            let values: Result<Vec<f64>, _> = match kind {
                Some((TypeChar::Float, 8)) => file.into_vec(),
                Some((TypeChar::Float, 4)) => floats(file.into_vec::<f32>()),
                Some((TypeChar::Float, 2)) => floats(file.into_vec::<f16>()),
                Some((TypeChar::Int, 8)) => {
                    file.into_vec::<i64>().map(|v| v.into_iter().map(|x| x as f64).collect())
                }
                Some((TypeChar::Int, 4)) => floats(file.into_vec::<i32>()),
                Some((TypeChar::Int, 2)) => floats(file.into_vec::<i16>()),
                Some((TypeChar::Int, 1)) => floats(file.into_vec::<i8>()),
                Some((TypeChar::Uint, 8)) => {
                    file.into_vec::<u64>().map(|v| v.into_iter().map(|x| x as f64).collect())
                }
                Some((TypeChar::Uint, 4)) => floats(file.into_vec::<u32>()),
                Some((TypeChar::Uint, 2)) => floats(file.into_vec::<u16>()),
                Some((TypeChar::Uint, 1)) => floats(file.into_vec::<u8>()),
                _ => {
                    return Err(format!(
                        "{name}: numbers of type {}; save float16, float32, float64 or integers",
                        header.dtype().descr()
                    ));
                }
            };
            let mut values = values.map_err(|error| format!("{name}: {error}"))?;
            check_end(name, reader)?;
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
            Ok(mut entry) => {
                let room = room(&entry, self.bytes);
                NpyHeader::from_reader(&mut entry)
                    .map_err(|error| error.to_string())
                    .and_then(|header| check_size(&header, room).map(|()| header))
                    .map_err(|problem| format!("{name}: {problem}"))
                    .and_then(|header| f(&header, &mut entry))
            }
            Err(ZipError::FileNotFound) => Err(format!("has no array {name}")),
            Err(error) => Err(format!("{name}: {error}")),
        };
        outcome.map_err(|problem| self.problem(problem))
    }

    fn problem(&self, problem: String) -> EvalError {
        EvalError::Npz { path: self.path.clone(), problem }
    }
}

/// How many bytes an entry holds at most, in a file of so many: what it says, if that can be.
fn room<R: Read>(entry: &ZipFile<'_, R>, bytes: u64) -> u64 {
    let most = match entry.compression() {
        CompressionMethod::Stored => bytes,
        _ => bytes.saturating_mul(MOST_DEFLATED),
    };
    entry.size().min(most)
}

/// Compares what a header says with the bytes that there are, before anything is made of it.
fn check_size(header: &NpyHeader, room: u64) -> Result<(), String> {
    // Other kinds are refused where they are read.
    let Some((_, size)) = kind(header) else { return Ok(()) };
    let shape = header.shape();
    let bytes = shape.iter().try_fold(size, |bytes, side| bytes.checked_mul(*side));
    match bytes {
        Some(bytes) if bytes <= room => Ok(()),
        _ => Err(format!(
            "has shape {shape:?}, but {room} bytes at most; the file is truncated or damaged, write it anew"
        )),
    }
}

/// Looks for the end of an array, where the archive's checksum is compared.
fn check_end(name: &str, reader: &mut dyn Read) -> Result<(), String> {
    match reader.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(format!("{name}: is longer than its shape says")),
        Err(error) => Err(format!("{name}: {error}; the file is damaged, write it anew")),
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
            if height.max(width) > MOST_SIDE {
                return Err(format!(
                    "{IMAGES}: images of {height}x{width} px; a side has at most {MOST_SIDE}"
                ));
            }
            Ok([n, height, width].map(|x| x as usize))
        }
        _ => Err(format!(
            "{IMAGES}: has shape {:?}, but images are [n, height, width, 3]",
            header.shape()
        )),
    }
}

/// The pixels of an image among all of `[n, height, width]` in Fortran's order, where `n` goes fastest.
fn gather(all: &[u8], [n, height, width]: [usize; 3], i: usize, pixels: &mut [u8]) {
    for (at, value) in pixels.iter_mut().enumerate() {
        let (y, x, channel) = (at / 3 / width, at / 3 % width, at % 3);
        *value = all[((channel * width + x) * height + y) * n + i];
    }
}

/// The header of an array in numpy's format, version 1.0, of a kind of numbers such as `|u1` or `<f8`; its
/// length is a multiple of 64. The numbers follow, the last axis fastest.
pub fn npy_header(kind: &str, shape: &[u64]) -> Vec<u8> {
    let sides: Vec<String> = shape.iter().map(u64::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let shape = sides.join(", ") + comma;
    let mut text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}");
    let start = 10;
    let length = (start + text.len() + 1).next_multiple_of(64);
    text += &" ".repeat(length - start - text.len() - 1);
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    /// A file of one array.
    fn file(
        name: &str,
        kind: &str,
        shape: &[u64],
        data: &[u8],
        method: CompressionMethod,
    ) -> Saved {
        file_of(name, &npy_header(kind, shape), data, method)
    }

    /// The same of an array in Fortran's order.
    fn fortran_file(name: &str, kind: &str, shape: &[u64], data: &[u8]) -> Saved {
        let header = String::from_utf8_lossy(&npy_header(kind, shape)[10..]).into_owned();
        let header = header.replace("False", "True").replace('\n', " \n");
        let header = [&npy_header(kind, shape)[..10], header.as_bytes()].concat();
        file_of(name, &header, data, CompressionMethod::Deflated)
    }

    fn file_of(name: &str, header: &[u8], data: &[u8], method: CompressionMethod) -> Saved {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let bytes = [header, data].concat();
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(&bytes).unwrap();
        zip.finish().unwrap();
        Saved { npz: Npz::open(&path).unwrap(), folder }
    }

    struct Saved {
        npz: Npz,
        folder: tempfile::TempDir,
    }

    const METHODS: [CompressionMethod; 2] =
        [CompressionMethod::Stored, CompressionMethod::Deflated];

    #[test]
    fn what_is_written_is_read() {
        for method in METHODS {
            let data: Vec<u8> = (0..12).collect();
            let mut images = file("arr_0", "|u1", &[2, 1, 2, 3], &data, method).npz;
            assert_eq!(images.images().unwrap(), Some([2, 1, 2]));
            let mut seen = Vec::new();
            let read = images.for_each_batch(1, |images| {
                seen.extend(images.into_iter().flat_map(RgbImage::into_raw));
                Ok::<_, EvalError>(())
            });
            read.unwrap();
            assert_eq!(seen, data);

            let data: Vec<u8> =
                [1.5f64, -2.0, 0.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
            let mut matrix = file("mu", "<f8", &[2, 2], &data, method).npz;
            let expected = Matrix { shape: [2, 2], values: vec![1.5, -2.0, 0.0, 4.0] };
            assert_eq!(matrix.matrix("mu").unwrap(), expected);
            assert!(matrix.has("mu") && !matrix.has("sigma") && matrix.images().unwrap().is_none());
        }
    }

    #[test]
    fn integers_of_all_sizes_and_halves_are_numbers() {
        let i8s = [0u8, 127, 0x80];
        let i16s = [0i16, 300, -300].map(i16::to_le_bytes).concat();
        let u16s = [0u16, 300, 65535].map(u16::to_le_bytes).concat();
        let u32s = [0u32, 70_000, u32::MAX].map(u32::to_le_bytes).concat();
        let u64s = [0u64, 70_000, 1 << 40].map(u64::to_le_bytes).concat();
        let big = [0i16, 300, -300].map(i16::to_be_bytes).concat();
        // numpy: np.array([2.0**-24, 1.5, -2.0], np.float16).view(np.uint16)
        let halves = [0x0001u16, 0x3e00, 0xc000];
        let (f16s, big_f16s) =
            (halves.map(u16::to_le_bytes).concat(), halves.map(u16::to_be_bytes).concat());
        let of_halves = [2f64.powi(-24), 1.5, -2.0];
        for (kind, data, expected) in [
            ("|i1", &i8s[..], [0.0, 127.0, -128.0]),
            ("<i2", &i16s, [0.0, 300.0, -300.0]),
            (">i2", &big, [0.0, 300.0, -300.0]),
            ("<u2", &u16s, [0.0, 300.0, 65535.0]),
            ("<u4", &u32s, [0.0, 70_000.0, 4_294_967_295.0]),
            ("<u8", &u64s, [0.0, 70_000.0, 1_099_511_627_776.0]),
            ("<f2", &f16s, of_halves),
            (">f2", &big_f16s, of_halves),
        ] {
            let mut saved = file("arr_1", kind, &[3], data, CompressionMethod::Deflated);
            assert_eq!(saved.npz.vector("arr_1").unwrap(), expected, "{kind}");
            let labels = saved.npz.labels();
            assert_eq!(labels.is_err(), expected[2] < 0.0, "{kind}: {labels:?}");
        }
        let mut complex = file("mu", "<c8", &[2], &[0; 16], CompressionMethod::Stored).npz;
        let error = complex.vector("mu").unwrap_err().to_string();
        let why = "a.npz: mu: numbers of type '<c8'; save float16, float32, float64 or integers";
        assert!(error.ends_with(why), "{error}");
        // Images are bytes.
        let data = [0; 6];
        let mut images = file("arr_0", "<f2", &[1, 1, 1, 3], &data, CompressionMethod::Stored).npz;
        let error = images.images().unwrap_err().to_string();
        assert!(error.contains("a.npz: arr_0: numbers of type '<f2', but images are"), "{error}");
    }

    #[test]
    fn arrays_in_fortrans_order_are_those_of_c() {
        // Rows 0 1 2 and 3 4 5, column after column.
        let data = [0u8, 3, 1, 4, 2, 5];
        let mut saved = fortran_file("mu", "|u1", &[2, 3], &data);
        let expected = Matrix { shape: [2, 3], values: (0..6).map(f64::from).collect() };
        assert_eq!(saved.npz.matrix("mu").unwrap(), expected);

        let [n, height, width] = [5, 2, 3];
        let size = height * width * 3;
        let value = |i: usize, at: usize| (i * size + at) as u8;
        let mut turned = Vec::new();
        for channel in 0..3 {
            for x in 0..width {
                for y in 0..height {
                    turned.extend((0..n).map(|i| value(i, (y * width + x) * 3 + channel)));
                }
            }
        }
        let shape = [n, height, width, 3].map(|side| side as u64);
        let mut saved = fortran_file("arr_0", "|u1", &shape, &turned);
        assert_eq!(saved.npz.images().unwrap(), Some([n, height, width]));
        assert!(saved.npz.is_in_fortrans_order().unwrap());
        let mut seen = Vec::new();
        let read = saved.npz.for_each_batch(2, |images| {
            seen.extend(images.into_iter().flat_map(RgbImage::into_raw));
            Ok::<_, EvalError>(())
        });
        read.unwrap();
        assert_eq!(seen, (0..n * size).map(|at| at as u8).collect::<Vec<_>>());
        turned.push(0);
        let mut long = fortran_file("arr_0", "|u1", &shape, &turned).npz;
        let read = long.for_each_batch(2, |_| Ok::<_, EvalError>(()));
        assert!(read.unwrap_err().to_string().contains("is longer than its shape says"));
    }

    #[test]
    fn a_vector_is_no_matrix_and_a_matrix_no_vector() {
        let saved =
            |shape: &[u64]| file("arr_1", "<i8", shape, &[0; 24], CompressionMethod::Stored);
        let mut vector = saved(&[3]);
        assert_eq!(vector.npz.labels().unwrap(), Some(vec![0; 3]));
        let error = vector.npz.matrix("arr_1").unwrap_err().to_string();
        let why = "a.npz: arr_1: has shape [3], but a matrix is wanted, [rows, columns]";
        assert!(error.ends_with(why), "{error}");
        for shape in [&[3, 1][..], &[1, 3], &[1, 3, 1]] {
            let mut other = saved(shape);
            let error = other.npz.labels().unwrap_err().to_string();
            let why = format!("a.npz: arr_1: has shape {shape:?}, but a vector is wanted, [n]");
            assert!(error.contains(&why) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_array_that_is_not_what_was_written_is_refused() {
        let data: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let Saved { folder, .. } = file("mu", "<f8", &[2], &data, CompressionMethod::Stored);
        let path = folder.path().join("a.npz");
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(data.len()).position(|some| some == data).unwrap();
        // 1.5 becomes 1.75.
        bytes[at + 6] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        let error = Npz::open(&path).unwrap().vector("mu").unwrap_err().to_string();
        assert!(error.contains("a.npz: mu: ") && error.contains("is damaged"), "{error}");
        assert!(!error.contains('\n'), "{error}");
        let mut long = file("mu", "<f8", &[1], &data, CompressionMethod::Deflated).npz;
        let error = long.vector("mu").unwrap_err().to_string();
        assert!(error.contains("mu: is longer than its shape says"), "{error}");
    }

    #[test]
    fn headers_that_say_more_than_there_is_are_refused_before_anything_is_made_of_them() {
        #[track_caller]
        fn refused<T: std::fmt::Debug>(found: Result<T, EvalError>, part: &str) {
            let error = found.unwrap_err().to_string();
            assert!(error.contains("a.npz: ") && error.contains(part), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for method in METHODS {
            let images = |shape: &[u64]| {
                let mut saved = file("arr_0", "|u1", shape, &[7; 12], method);
                let read = saved.npz.for_each_batch(4, |_| Ok::<_, EvalError>(()));
                let error = saved.npz.images().unwrap_err().to_string();
                assert_eq!(read.unwrap_err().to_string(), error);
                Err::<(), _>(EvalError::Unfit { problem: error })
            };
            refused(images(&[1, 1000000, 1000000, 3]), "[1, 1000000, 1000000, 3]");
            refused(images(&[1, 4294967296, 4294967296, 3]), "truncated or damaged");
            refused(images(&[18446744073709551615, 16, 16, 3]), "truncated or damaged");
            // One row more than is there, and a side that no image has.
            refused(images(&[1, 2, 1000, 3]), "arr_0: has shape [1, 2, 1000, 3], but");
            let matrix =
                |shape: &[u64]| file("mu", "<f8", shape, &[0; 16], method).npz.matrix("mu");
            refused(matrix(&[4294967296, 4294967296]), "mu: has shape");
            refused(matrix(&[1000, 1000]), "mu: has shape [1000, 1000]");
            refused(matrix(&[2305843009213693953]), "truncated or damaged");
        }
        let long = vec![0; 3 * 20_000];
        let mut saved = file("arr_0", "|u1", &[1, 1, 20000, 3], &long, CompressionMethod::Deflated);
        refused(saved.npz.images(), "1x20000 px; a side has at most 16384");
        // An entry that says of itself that it is huge.
        const ENTRY: u32 = u32::MAX - 9;
        let path = saved.folder.path().join("a.npz");
        let mut bytes = std::fs::read(&path).unwrap();
        let size = (128 + long.len() as u32).to_le_bytes();
        let places: Vec<usize> =
            (0..bytes.len() - 4).filter(|i| bytes[*i..*i + 4] == size).collect();
        assert!(!places.is_empty());
        places.iter().for_each(|i| bytes[*i..*i + 4].copy_from_slice(&ENTRY.to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
        let Npz { mut zip, bytes, .. } = Npz::open(&path).unwrap();
        let found = zip.by_name("arr_0.npy").unwrap();
        assert_eq!(found.size(), u64::from(ENTRY));
        assert!(room(&found, bytes) < 1 << 20, "{}", room(&found, bytes));
    }
}
