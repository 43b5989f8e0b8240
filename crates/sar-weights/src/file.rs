//! A file of weights that is read tensor by tensor, and the writing of one tensor after the other,
//! so that a conversion never holds a whole file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};

use crate::error::WeightsError;
use crate::named::NamedTensors;
use crate::{pth, safetensors};

/// What a file says of a tensor before its numbers are read.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// The name.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of bytes of the elements.
    pub fn n_bytes(&self) -> usize {
        self.n_elements() * self.dtype.size()
    }
}

/// The formats of files of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON header and the bytes of the tensors.
    Safetensors,
    /// What `torch.save` writes since torch 1.6.
    Pth,
}

/// What became of checking the bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// The file carries a checksum, and its bytes match.
    Verified,
    /// The file carries none.
    Absent,
}

/// An open file of weights: its header is read and checked, its tensors are not read yet.
#[derive(Debug)]
pub struct WeightsFile {
    path: PathBuf,
    n_bytes: u64,
    listing: Listing,
    reader: Reader,
}

/// What a file says before its numbers are read.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Sorted by name.
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
enum Reader {
    Pth(pth::Reader),
    Safetensors(safetensors::Reader),
}

impl WeightsFile {
    /// Opens a file of either format, told apart by its content and never by its name.
    ///
    /// Of a `.pth` file the names of nested dictionaries are joined by dots, elements of lists and
    /// tuples are named by their position. Everything that is not a tensor of a supported element
    /// type (f64, f32, f16, bf16, i64, i32, i16, i8, u8, bool) is passed over, and storages that
    /// only such things use are never read. Nothing in the pickle is executed.
    ///
    /// # Errors
    /// If the file cannot be read, is of neither format, is truncated or contradicts itself, asks
    /// for far more memory than its own size, holds an element type that burn has not, or is a
    /// `.pth` without any named tensor.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |error| WeightsError::Read { path: path.into(), error };
        let about = fs::metadata(path).map_err(failed)?;
        if !about.is_file() {
            // Opening a pipe would wait for its other end.
            let what = if about.is_dir() { "it is a folder" } else { "it is no regular file" };
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let (reader, listing) = match Start::of(path)? {
            Start::Zip => {
                let (reader, listing) = pth::Reader::open(path)?;
                (Reader::Pth(reader), listing)
            }
            Start::LegacyPickle => return Err(WeightsError::LegacyPickle { path: path.into() }),
            Start::Other => {
                let (reader, listing) = safetensors::Reader::open(path)?;
                (Reader::Safetensors(reader), listing)
            }
        };
        Ok(Self { path: path.into(), n_bytes: about.len(), listing, reader })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The format.
    pub fn format(&self) -> Format {
        match self.reader {
            Reader::Pth(_) => Format::Pth,
            Reader::Safetensors(_) => Format::Safetensors,
        }
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.listing.tensors
    }

    /// The string metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.listing.metadata
    }

    /// Reads one tensor, contiguous and row-major, whatever strides it was stored with.
    ///
    /// The checksum of a `.pth` file is compared here; that of a safetensors file is one for all
    /// tensors and is compared by [`verify`](Self::verify) and [`read_all`](Self::read_all).
    ///
    /// # Errors
    /// If the file cannot be read or the tensor is damaged.
    ///
    /// # Panics
    /// If there is no tensor of that name.
    pub fn read(&mut self, name: &str) -> Result<TensorData, WeightsError> {
        match &mut self.reader {
            Reader::Pth(reader) => reader.read(name),
            Reader::Safetensors(reader) => reader.read(name),
        }
    }

    /// Reads all bytes that tensors are made of, a little at a time, and compares their checksum.
    ///
    /// # Errors
    /// If the file cannot be read or the checksum does not match.
    pub fn verify(&mut self) -> Result<Checksum, WeightsError> {
        match &mut self.reader {
            Reader::Pth(reader) => reader.verify(),
            Reader::Safetensors(reader) => reader.verify(),
        }
    }

    /// Reads all tensors, in the order of the file, and compares the checksum if there is one.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn read_all(self) -> Result<NamedTensors, WeightsError> {
        let tensors = match self.reader {
            Reader::Pth(mut reader) => reader.read_all()?,
            Reader::Safetensors(mut reader) => reader.read_all()?,
        };
        Ok(NamedTensors::of_file(self.path, tensors, self.listing.metadata))
    }
}

/// A format to write, with what only that format has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'r> {
    /// A safetensors file, with the CRC-32 of its tensors in the metadata.
    Safetensors,
    /// A zip file that `torch.load(weights_only=True)` reads.
    Pth {
        /// The dotted path of the nested dictionaries that the tensors lie under; empty for none.
        root: &'r str,
    },
}

/// Writes a file of weights one tensor after the other, all or nothing: a temporary file in the
/// same folder is written, flushed to the disk and then renamed to `path`.
///
/// `data` returns each tensor once, when its turn comes. Equal tensors and metadata give equal
/// bytes. The folder is not created.
///
/// # Errors
/// If the file cannot be written, a tensor has a name, rank or element type that the format cannot
/// hold, or `data` fails.
///
/// # Panics
/// If two tensors have the same name, or if `data` returns another shape or element type than was
/// said.
pub fn write_weights<'d>(
    path: &Path,
    target: Target,
    tensors: &[TensorInfo],
    metadata: &BTreeMap<String, String>,
    data: impl FnMut(&str) -> Result<Cow<'d, TensorData>, WeightsError>,
) -> Result<(), WeightsError> {
    let names: BTreeMap<&str, ()> = tensors.iter().map(|info| (info.name.as_str(), ())).collect();
    assert_eq!(names.len(), tensors.len(), "two tensors of the same name");
    let mut data = data;
    let mut next = |info: &TensorInfo| -> Result<Cow<'d, TensorData>, WeightsError> {
        let data = data(&info.name)?;
        let TensorInfo { name, dtype, shape } = info;
        assert_eq!((data.dtype, &data.shape[..]), (*dtype, &shape[..]), "tensor {name}");
        Ok(data)
    };
    match target {
        Target::Safetensors => safetensors::write(path, tensors, metadata, &mut next),
        Target::Pth { root } => pth::write(path, root, tensors, metadata, &mut next),
    }
}

/// What the first bytes of a file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Zip,
    LegacyPickle,
    Other,
}

impl Start {
    fn of(path: &Path) -> Result<Self, WeightsError> {
        /// The pickled magic number at the start of torch's legacy format: protocol 2, LONG1.
        const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
        let mut start = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LEGACY.len() as u64).read_to_end(&mut start))
            .map_err(|error| WeightsError::Read { path: path.into(), error })?;
        Ok(match start.as_slice() {
            [b'P', b'K', 3, 4, ..] => Self::Zip,
            start if start == LEGACY => Self::LegacyPickle,
            _ => Self::Other,
        })
    }
}
