//! The safetensors format: a JSON header of names, types, shapes and offsets, then the bytes.
//!
//! The header is parsed and checked by the `safetensors` crate. Reading and writing go tensor by
//! tensor, so that a file of 1.5 GB takes no more memory than its tensors; the header is written
//! here, because that crate writes metadata in the random order of a hash map.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{BoolStore, DType, TensorData};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{WeightsError, one_line};
use crate::named::NamedTensors;
use crate::strided::zeros;

/// Bytes of the little-endian header length at the start of the file.
const LENGTH_BYTES: u64 = 8;
/// The longest header that the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The key of the header that is no tensor.
const METADATA_KEY: &str = "__metadata__";
/// The metadata field with the CRC-32 of all bytes behind the header, in hexadecimal. Files of other
/// writers have none.
const CHECKSUM_KEY: &str = "crc32";

pub(crate) fn read(path: &Path) -> Result<NamedTensors, WeightsError> {
    let failed = |error| WeightsError::Read { path: path.into(), error };
    let mut file = File::open(path).map_err(failed)?;
    let file_bytes = file.metadata().map_err(failed)?.len();
    let header = read_header(&mut file, file_bytes, path)?;

    let mut named = NamedTensors::new();
    let mut checksum = crc32fast::Hasher::new();
    for name in header.offset_keys() {
        let info = header.info(&name).expect("a name of the header");
        let dtype = burn_dtype(info.dtype).ok_or_else(|| WeightsError::Unsupported {
            path: path.into(),
            reason: format!("tensor {} has element type {}", one_line(&name), info.dtype),
            advice: "convert it to f32 before saving",
        })?;
        let mut data = zeros(dtype, &info.shape);
        file.read_exact(&mut data.bytes).map_err(failed)?;
        checksum.update(&data.bytes);
        check_bools(&data).map_err(|reason| damaged(path, &name, reason))?;
        named.insert(name, data);
    }
    if let Some(metadata) = header.metadata() {
        named.metadata_mut().extend(metadata.clone());
    }
    if let Some(expected) = named.metadata_mut().remove(CHECKSUM_KEY) {
        let found = shown(checksum);
        if expected != found {
            return Err(WeightsError::Damaged {
                path: path.into(),
                reason: format!("its checksum is {found} and should be {}", one_line(&expected)),
            });
        }
    }
    Ok(named)
}

/// Reads and checks the header. Its tensors then lie end to end and fill the rest of the file.
fn read_header(file: &mut File, file_bytes: u64, path: &Path) -> Result<Metadata, WeightsError> {
    let failed = |error| WeightsError::Read { path: path.into(), error };
    let unknown = |reason| WeightsError::UnknownFormat { path: path.into(), reason };

    let Some(most) = file_bytes.checked_sub(LENGTH_BYTES) else {
        return Err(unknown(format!("it has {file_bytes} bytes")));
    };
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(failed)?;
    let length = u64::from_le_bytes(length);
    if length > most.min(MAX_HEADER_BYTES) {
        return Err(unknown(format!("a header of {length} bytes in a file of {file_bytes}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(failed)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| unknown(format!("its header: {}", one_line(&error.to_string()))))?;

    let expected = (LENGTH_BYTES + length).saturating_add(header.data_len() as u64);
    if expected != file_bytes {
        return Err(WeightsError::Damaged {
            path: path.into(),
            reason: format!("its header promises {expected} bytes and it has {file_bytes}"),
        });
    }
    Ok(header)
}

fn shown(checksum: crc32fast::Hasher) -> String {
    format!("{:08x}", checksum.finalize())
}

fn damaged(path: &Path, name: &str, reason: &str) -> WeightsError {
    WeightsError::Damaged {
        path: path.into(),
        reason: format!("tensor {} {reason}", one_line(name)),
    }
}

/// Checks that a tensor of bools holds no byte but 0 and 1, which is undefined behaviour to read.
pub(crate) fn check_bools(data: &TensorData) -> Result<(), &'static str> {
    match data.dtype {
        DType::Bool(_) if data.as_bytes().iter().any(|&byte| byte > 1) => {
            Err("has bools other than 0 and 1")
        }
        _ => Ok(()),
    }
}

pub(crate) fn write(named: &NamedTensors, path: &Path) -> Result<(), WeightsError> {
    let failed = |error| WeightsError::Write { path: path.into(), error };
    let (header, tensors) = header(named, path)?;
    let temporary = temporary_beside(path).map_err(failed)?;
    let written = write_flushed(&temporary, &header, &tensors)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| flush_folder(path));
    if written.is_err() {
        // What the caller needs to know is why the writing failed; the rest may be gone already.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed)
}

/// The header, padded to whole words, and the tensors in the order of their offsets: wide elements
/// first, so that all are aligned, then by name.
fn header<'n>(
    named: &'n NamedTensors,
    path: &Path,
) -> Result<(Vec<u8>, Vec<&'n TensorData>), WeightsError> {
    let unwritable = |name: &str, reason: String| WeightsError::Unwritable {
        path: path.into(),
        name: one_line(name),
        reason,
    };
    let json = |text: &str| serde_json::to_string(text).expect("a string is valid JSON");

    let mut tensors: Vec<_> = named.iter().collect();
    tensors.sort_by_key(|(name, data)| (std::cmp::Reverse(data.dtype.size()), *name));
    let mut checksum = crc32fast::Hasher::new();
    tensors.iter().for_each(|(_, data)| checksum.update(data.as_bytes()));
    let mut metadata = named.metadata().clone();
    metadata.insert(CHECKSUM_KEY.into(), shown(checksum));
    let metadata = serde_json::to_string(&metadata).expect("strings are valid JSON");
    let mut entries = vec![format!("{}:{metadata}", json(METADATA_KEY))];
    let mut start = 0;
    for (name, data) in &tensors {
        if *name == METADATA_KEY {
            return Err(unwritable(name, "the name is reserved by safetensors".into()));
        }
        let dtype = file_dtype(data.dtype).ok_or_else(|| {
            unwritable(name, format!("safetensors has no element type {}", data.dtype.name()))
        })?;
        let end = start + data.as_bytes().len();
        let info = TensorInfo { dtype, shape: data.shape.to_vec(), data_offsets: (start, end) };
        let info = serde_json::to_string(&info).expect("numbers and names are valid JSON");
        entries.push(format!("{}:{info}", json(name)));
        start = end;
    }
    let mut header = format!("{{{}}}", entries.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    Ok((header, tensors.into_iter().map(|(_, data)| data).collect()))
}

fn write_flushed(path: &Path, header: &[u8], tensors: &[&TensorData]) -> io::Result<()> {
    let mut file = BufWriter::new(File::options().write(true).create_new(true).open(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header)?;
    for data in tensors {
        file.write_all(data.as_bytes())?;
    }
    file.into_inner()?.sync_all()
}

/// A hidden name in the same folder that no other writer, thread or process, takes.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    };
    let folder = folder_of(path);
    if !folder.is_dir() {
        let what = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{count}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

/// Makes the rename itself survive a power failure, where folders can be flushed.
fn flush_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
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
