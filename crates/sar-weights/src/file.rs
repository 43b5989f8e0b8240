//! A file of weights that is read tensor by tensor, and the writing of one tensor after the other,
//! so that a conversion never holds a whole file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};

use crate::error::WeightsError;
use crate::named::NamedTensors;
use crate::shards::{self, Shards};
use crate::source::Source;
use crate::unreadable::{Unreadable, check_readable};
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
#[non_exhaustive]
pub enum Format {
    /// A JSON header and the bytes of the tensors.
    Safetensors,
    /// What `torch.save` writes: a zip file, or before torch 1.6 a sequence of pickles and storages.
    Pth,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::Pth => ".pth",
        })
    }
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
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Sorted by name.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Sorted by name.
    pub(crate) unreadable: Vec<Unreadable>,
    pub(crate) metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
enum Reader {
    Pth(pth::Reader),
    Safetensors(safetensors::Reader),
    Shards(Shards),
}

impl WeightsFile {
    /// Opens a file of any format, told apart by its content and never by its name.
    ///
    /// An index of shards (`model.safetensors.index.json`, `pytorch_model.bin.index.json`), or a
    /// folder that holds one, is opened as one file of all tensors of all shards.
    ///
    /// Of a `.pth` file the names of nested dictionaries are joined by dots, elements of lists and
    /// tuples are named by their position. What is neither a tensor nor an array is passed over, and
    /// storages that only such things use are never read. Nothing in the pickle is executed.
    ///
    /// Tensors of another element type than f64, f32, f16, bf16, bool and integers, sparse ones and
    /// others that cannot be read are listed by [`unreadable`](Self::unreadable).
    ///
    /// # Errors
    /// If the file cannot be read, is of no known format, is truncated or contradicts itself, asks
    /// for far more memory than its own size, or is a `.pth` without any named tensor; if a shard,
    /// or in it a tensor of the index, is missing.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |error| WeightsError::Read { path: path.into(), error };
        if fs::metadata(path).map_err(failed)?.is_dir() {
            return Self::open_index(&shards::index_in(path)?);
        }
        let mut source = Source::open(path)?;
        match Start::of(&mut source)? {
            Start::Index => Self::open_index(path),
            start => Self::open_single(source, start),
        }
    }

    /// Opens weights in memory, of any format but an index of shards, as [`open`](Self::open) does a
    /// file. `name` stands where messages name the file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::open_one(Source::in_memory(name, bytes))
    }

    /// Opens a file that is not an index.
    pub(crate) fn open_shard(path: &Path) -> Result<Self, WeightsError> {
        Self::open_one(Source::open(path)?)
    }

    fn open_one(mut source: Source) -> Result<Self, WeightsError> {
        match Start::of(&mut source)? {
            Start::Index => Err(WeightsError::Unsupported {
                path: source.path().into(),
                reason: "JSON text, where weights are needed".into(),
                advice: "give a file of weights; only a file on the disk can be an index of shards, and none of its shards is one",
            }),
            start => Self::open_single(source, start),
        }
    }

    fn open_single(source: Source, start: Start) -> Result<Self, WeightsError> {
        let (path, n_bytes) = (source.path().to_owned(), source.n_bytes());
        let (reader, listing) = match start {
            Start::Zip => {
                let (reader, listing) = pth::Reader::open(source)?;
                (Reader::Pth(reader), listing)
            }
            Start::LegacyPickle => {
                let (reader, listing) = pth::Reader::open_legacy(source)?;
                (Reader::Pth(reader), listing)
            }
            Start::Tar => {
                return Err(WeightsError::Unsupported {
                    path,
                    reason: "a tar file, which is how torch saved before version 0.1.10".into(),
                    advice: "if it holds weights, load it with torch.load and save it again with a current torch",
                });
            }
            Start::Index | Start::Other => {
                let (reader, listing) = safetensors::Reader::open(source)?;
                (Reader::Safetensors(reader), listing)
            }
        };
        Ok(Self { path, n_bytes, listing, reader })
    }

    fn open_index(path: &Path) -> Result<Self, WeightsError> {
        let (shards, listing) = Shards::open(path)?;
        let n_bytes = shards.n_bytes();
        Ok(Self { path: path.into(), n_bytes, listing, reader: Reader::Shards(shards) })
    }

    /// The file, or the index of shards.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size of the file, or of all shards together.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The number of files that the tensors lie in: one, or the number of shards.
    pub fn n_files(&self) -> usize {
        match &self.reader {
            Reader::Shards(shards) => shards.n_files(),
            Reader::Pth(_) | Reader::Safetensors(_) => 1,
        }
    }

    /// The format; that of the shards for an index.
    pub fn format(&self) -> Format {
        match &self.reader {
            Reader::Pth(_) => Format::Pth,
            Reader::Safetensors(_) => Format::Safetensors,
            Reader::Shards(shards) => shards.format(),
        }
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.listing.tensors
    }

    /// The tensors that are there but cannot be read, sorted by name.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.listing.unreadable
    }

    /// Refuses tensors that are there but cannot be read, as far as their names are wanted.
    ///
    /// To be asked before tensors are missed: what lies outside of the wanted model, such as the
    /// state of an optimizer, may be of any kind.
    ///
    /// # Errors
    /// [`WeightsError::Unreadable`] with the first of them.
    pub fn check_readable(&self, wanted: impl FnMut(&str) -> bool) -> Result<(), WeightsError> {
        check_readable(Some(&self.path), &self.listing.unreadable, wanted)
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
    /// If the file cannot be read, the tensor is damaged, or it is one of the
    /// [`unreadable`](Self::unreadable).
    ///
    /// # Panics
    /// If there is no tensor of that name.
    pub fn read(&mut self, name: &str) -> Result<TensorData, WeightsError> {
        self.check_readable(|unreadable| unreadable == name)?;
        match &mut self.reader {
            Reader::Pth(reader) => reader.read(name),
            Reader::Safetensors(reader) => reader.read(name),
            Reader::Shards(shards) => shards.read(name),
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
            Reader::Shards(shards) => shards.verify(),
        }
    }

    /// Reads all tensors that can be read, in the order of the file, and compares the checksum if
    /// there is one.
    ///
    /// The others stay listed in [`NamedTensors::unreadable`], and [`bind`](crate::bind) refuses
    /// them where a module wants them.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn read_all(self) -> Result<NamedTensors, WeightsError> {
        let Self { path, listing: Listing { unreadable, metadata, .. }, reader, .. } = self;
        let tensors = match reader {
            Reader::Pth(mut reader) => reader.read_all()?,
            Reader::Safetensors(mut reader) => reader.read_all()?,
            Reader::Shards(shards) => shards.read_all()?,
        };
        Ok(NamedTensors::of_file(path, tensors, unreadable, metadata))
    }
}

/// A format to write, with what only that format has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
/// `data` returns each tensor once, when its turn comes; it may fail with an error of its own. Equal
/// tensors and metadata give equal bytes. The folder is not created.
///
/// # Errors
/// If the file cannot be written, a tensor has a name, rank or element type that the format cannot
/// hold, or `data` fails.
///
/// # Panics
/// If two tensors have the same name, or if `data` returns another shape or element type than was
/// said.
pub fn write_weights<'d, E: From<WeightsError>>(
    path: &Path,
    target: Target,
    tensors: &[TensorInfo],
    metadata: &BTreeMap<String, String>,
    data: impl FnMut(&str) -> Result<Cow<'d, TensorData>, E>,
) -> Result<(), E> {
    let names: BTreeMap<&str, ()> = tensors.iter().map(|info| (info.name.as_str(), ())).collect();
    assert_eq!(names.len(), tensors.len(), "two tensors of the same name");
    let mut data = data;
    let mut next = |info: &TensorInfo| -> Result<Cow<'d, TensorData>, E> {
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
    Tar,
    /// JSON text, which may be an index of shards.
    Index,
    Other,
}

impl Start {
    /// The block of a tar file that begins with the header of its first member.
    const BLOCK_BYTES: u64 = 512;

    fn of(source: &mut Source) -> Result<Self, WeightsError> {
        Ok(Self::seen_in(&source.start(Self::BLOCK_BYTES)?))
    }

    fn seen_in(start: &[u8]) -> Self {
        /// torch's magic number, pickled: ten bytes behind LONG1.
        const MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
        /// FRAME and the length of the frame, which protocols from 4 on write in front of it.
        const FRAME_BYTES: usize = 9;
        let is_legacy = |protocol: u8, rest: &[u8]| {
            (2..=5).contains(&protocol)
                && (rest.starts_with(MAGIC)
                    || rest.get(FRAME_BYTES..).is_some_and(|rest| rest.starts_with(MAGIC)))
        };
        match start {
            [b'P', b'K', 3, 4, ..] => Self::Zip,
            [0x80, protocol, rest @ ..] if is_legacy(*protocol, rest) => Self::LegacyPickle,
            _ if start.get(257..262) == Some(b"ustar") => Self::Tar,
            // A safetensors file begins with a length, whose upper bytes are zero.
            _ if !start.iter().take(8).any(|&byte| byte == 0)
                && start.trim_ascii_start().first() == Some(&b'{') =>
            {
                Self::Index
            }
            _ => Self::Other,
        }
    }
}
