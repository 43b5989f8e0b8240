//! The safetensors format: a JSON header of names, types, shapes and offsets, then the bytes.
//!
//! The header is parsed and checked by the `safetensors` crate. Reading and writing go tensor by
//! tensor, so that a file of 1.5 GB takes no more memory than its tensors, or than the largest of
//! them in a conversion; the header is written here, because that crate writes metadata in the
//! random order of a hash map.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use burn::tensor::{BoolStore, DType, TensorData};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo as HeaderInfo};

use crate::atomic::write_whole;
use crate::checksum::Crc32;
use crate::error::{WeightsError, one_line};
use crate::file::{Checksum, Listing, TensorInfo};
use crate::source::Source;
use crate::strided::{MAX_RANK, zeros};
use crate::unreadable::Unreadable;

/// Bytes of the little-endian header length at the start of the file.
const LENGTH_BYTES: u64 = 8;
/// The longest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The key of the header that is not a tensor.
const METADATA_KEY: &str = "__metadata__";
/// The metadata field with the CRC-32 of all bytes behind the header, in hexadecimal. Files of other
/// writers have none.
const CHECKSUM_KEY: &str = "crc32";

/// Bytes that are read at a time where only their checksum is wanted.
const CHUNK_BYTES: usize = 1 << 16;

/// An open file whose header is checked.
#[derive(Debug)]
pub(crate) struct Reader {
    source: Source,
    /// Where the bytes of the tensors begin.
    data_start: u64,
    /// Behind the first byte of the tensors, for each.
    slots: BTreeMap<String, Slot>,
    /// Whether some of its bytes belong to tensors that cannot be read.
    has_unreadable: bool,
    /// The checksum that the file carries, as it is shown.
    checksum: Option<String>,
}

#[derive(Debug)]
struct Slot {
    start: u64,
    dtype: DType,
    shape: Vec<usize>,
}

impl Reader {
    pub(crate) fn open(mut source: Source) -> Result<(Self, Listing), WeightsError> {
        let header = read_header(&mut source)?;
        let data_start = source.n_bytes() - header.data_len() as u64;

        let mut metadata: BTreeMap<String, String> =
            header.metadata().clone().unwrap_or_default().into_iter().collect();
        let checksum = metadata.remove(CHECKSUM_KEY);
        let mut slots = BTreeMap::new();
        let mut unreadable = Vec::new();
        for name in header.offset_keys() {
            let HeaderInfo { dtype, shape, data_offsets: (start, _) } =
                header.info(&name).expect("a name of the header").clone();
            if shape.len() > MAX_RANK {
                let reason = format!("has {} dimensions, at most {MAX_RANK}", shape.len());
                return Err(damaged(source.path(), &name, &reason));
            }
            match burn_dtype(dtype) {
                Some(dtype) => {
                    slots.insert(name, Slot { start: start as u64, dtype, shape });
                }
                None => unreadable.push(Unreadable { name, what: dtype.to_string() }),
            }
        }
        unreadable.sort_by(|a, b| a.name.cmp(&b.name));
        let info = |(name, slot): (&String, &Slot)| TensorInfo {
            name: name.clone(),
            dtype: slot.dtype,
            shape: slot.shape.clone(),
        };
        let tensors = slots.iter().map(info).collect();
        let has_unreadable = !unreadable.is_empty();
        let reader = Self { source, data_start, slots, has_unreadable, checksum };
        Ok((reader, Listing { tensors, unreadable, metadata }))
    }

    pub(crate) fn read(&mut self, name: &str) -> Result<TensorData, WeightsError> {
        let slot = self.slots.get(name).expect("a tensor of the file");
        let mut data = zeros(slot.dtype, &slot.shape);
        self.source.read_at(self.data_start + slot.start, &mut data.bytes)?;
        check_bools(&data).map_err(|reason| damaged(self.source.path(), name, reason))?;
        Ok(data)
    }

    /// Reads all tensors in the order of the file, in which their checksum is made.
    pub(crate) fn read_all(&mut self) -> Result<BTreeMap<String, TensorData>, WeightsError> {
        let mut order: Vec<(u64, String)> =
            self.slots.iter().map(|(name, slot)| (slot.start, name.clone())).collect();
        order.sort();
        let mut tensors = BTreeMap::new();
        let mut checksum = Crc32::default();
        for (_, name) in order {
            let data = self.read(&name)?;
            checksum.update(&data.bytes);
            tensors.insert(name, data);
        }
        if self.has_unreadable {
            // The checksum is that of all bytes.
            self.verify()?;
        } else {
            self.compare(&checksum)?;
        }
        Ok(tensors)
    }

    pub(crate) fn verify(&mut self) -> Result<Checksum, WeightsError> {
        if self.checksum.is_none() {
            return Ok(Checksum::Absent);
        }
        let mut checksum = Crc32::default();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut hash = || {
            self.source.seek(SeekFrom::Start(self.data_start))?;
            loop {
                match self.source.read(&mut chunk)? {
                    0 => return Ok(()),
                    n => checksum.update(&chunk[..n]),
                }
            }
        };
        let hashed: io::Result<()> = hash();
        hashed.map_err(|error| self.source.failed(error))?;
        self.compare(&checksum)
    }

    fn compare(&self, found: &Crc32) -> Result<Checksum, WeightsError> {
        let Some(expected) = &self.checksum else { return Ok(Checksum::Absent) };
        let found = found.to_string();
        if *expected == found {
            return Ok(Checksum::Verified);
        }
        Err(WeightsError::Damaged {
            path: self.source.path().into(),
            reason: format!("its checksum is {found} and should be {}", one_line(expected)),
        })
    }
}

/// Reads and checks the header. Its tensors then lie end to end and fill the rest of the file.
fn read_header(source: &mut Source) -> Result<Metadata, WeightsError> {
    let (path, file_bytes) = (source.path().to_owned(), source.n_bytes());
    let unknown = |reason| WeightsError::UnknownFormat { path: path.clone(), reason };

    let Some(most) = file_bytes.checked_sub(LENGTH_BYTES) else {
        return Err(unknown(format!("it has {file_bytes} bytes")));
    };
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_at(0, &mut length)?;
    let length = u64::from_le_bytes(length);
    if length > most.min(MAX_HEADER_BYTES) {
        return Err(unknown(format!("a header of {length} bytes in a file of {file_bytes}")));
    }
    let mut header = vec![0; length as usize];
    source.read_at(LENGTH_BYTES, &mut header)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| unknown(format!("its header: {}", one_line(&error.to_string()))))?;

    let expected = (LENGTH_BYTES + length).saturating_add(header.data_len() as u64);
    if expected != file_bytes {
        return Err(WeightsError::Damaged {
            path,
            reason: format!("its header promises {expected} bytes and it has {file_bytes}"),
        });
    }
    Ok(header)
}

fn damaged(path: &Path, name: &str, reason: &str) -> WeightsError {
    WeightsError::Damaged {
        path: path.into(),
        reason: format!("tensor {} {reason}", one_line(name)),
    }
}

/// Checks that a tensor of bools holds no byte but 0 and 1, which is undefined behavior to read.
pub(crate) fn check_bools(data: &TensorData) -> Result<(), &'static str> {
    match data.dtype {
        DType::Bool(_) if data.as_bytes().iter().any(|&byte| byte > 1) => {
            Err("has bools other than 0 and 1")
        }
        _ => Ok(()),
    }
}

pub(crate) fn write<'d, E: From<WeightsError>>(
    path: &Path,
    tensors: &[TensorInfo],
    metadata: &BTreeMap<String, String>,
    next: &mut dyn FnMut(&TensorInfo) -> Result<Cow<'d, TensorData>, E>,
) -> Result<(), E> {
    let failed = |error| WeightsError::Write { path: path.into(), error };
    // In the order of their offsets: wide elements first, so that all are aligned, then by name.
    let mut tensors: Vec<&TensorInfo> = tensors.iter().collect();
    tensors.sort_by_key(|info| (std::cmp::Reverse(info.dtype.size()), info.name.as_str()));
    let mut checksum = Crc32::default();
    let provisional = header(path, &tensors, metadata, &checksum)?;
    write_whole(path, |file| {
        let length = (provisional.len() as u64).to_le_bytes();
        file.write_all(&length).and_then(|()| file.write_all(&provisional)).map_err(failed)?;
        for info in &tensors {
            let data = next(info)?;
            checksum.update(data.as_bytes());
            file.write_all(data.as_bytes()).map_err(failed)?;
        }
        // As long as the first one, for a checksum is eight digits.
        let header = header(path, &tensors, metadata, &checksum)?;
        file.seek(SeekFrom::Start(LENGTH_BYTES)).map_err(failed)?;
        file.write_all(&header).map_err(failed)?;
        Ok(())
    })
}

/// The header, padded to whole words.
fn header(
    path: &Path,
    tensors: &[&TensorInfo],
    metadata: &BTreeMap<String, String>,
    checksum: &Crc32,
) -> Result<Vec<u8>, WeightsError> {
    let unwritable = |name: &str, reason: String| WeightsError::Unwritable {
        path: path.into(),
        name: one_line(name),
        reason,
    };
    let json = |text: &str| serde_json::to_string(text).expect("a string is valid JSON");

    let mut metadata = metadata.clone();
    metadata.insert(CHECKSUM_KEY.into(), checksum.to_string());
    let metadata = serde_json::to_string(&metadata).expect("strings are valid JSON");
    let mut entries = vec![format!("{}:{metadata}", json(METADATA_KEY))];
    let mut start = 0;
    for info in tensors {
        let name = info.name.as_str();
        if name == METADATA_KEY {
            return Err(unwritable(name, "the name is reserved by safetensors".into()));
        }
        let dtype = file_dtype(info.dtype).ok_or_else(|| {
            unwritable(name, format!("safetensors has no element type {}", info.dtype.name()))
        })?;
        if info.shape.len() > MAX_RANK {
            return Err(unwritable(name, format!("more than {MAX_RANK} dimensions")));
        }
        let end = start + info.n_bytes();
        let info = HeaderInfo { dtype, shape: info.shape.clone(), data_offsets: (start, end) };
        let info = serde_json::to_string(&info).expect("numbers and names are valid JSON");
        entries.push(format!("{}:{info}", json(name)));
        start = end;
    }
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    Ok(header)
}

fn burn_dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}

fn file_dtype(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 | DType::Flex32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool(BoolStore::Native | BoolStore::U8) => Dtype::BOOL,
        DType::Bool(BoolStore::U32) | DType::QFloat(_) => return None,
    })
}
