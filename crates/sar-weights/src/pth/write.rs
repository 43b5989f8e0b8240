//! Writing the zip file of a pickle and its storages.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn::tensor::{BoolStore, DType, TensorData};
use zip::result::{ZipError, ZipResult};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::METADATA_ENTRY;
use crate::atomic::write_whole;
use crate::error::{WeightsError, one_line};
use crate::file::TensorInfo;
use crate::flatten::MAX_NAME_BYTES;
use crate::pickle;
use crate::strided::MAX_RANK;

/// What the names of all entries begin with. torch takes the name of the file, which would make the
/// bytes depend on it.
const PREFIX: &str = "archive/";
/// Storages begin at multiples of this, as torch's do, so that they can be mapped.
const ALIGNMENT: u16 = 64;

pub(crate) fn write<'d, E: From<WeightsError>>(
    path: &Path,
    root: &str,
    tensors: &[TensorInfo],
    metadata: &BTreeMap<String, String>,
    next: &mut dyn FnMut(&TensorInfo) -> Result<Cow<'d, TensorData>, E>,
) -> Result<(), E> {
    let mut tensors: Vec<&TensorInfo> = tensors.iter().collect();
    tensors.sort_by_key(|info| info.name.as_str());
    let pickle = pickle(path, root, &tensors)?;
    let failed = |error| WeightsError::Write { path: path.into(), error };
    let written = |result: ZipResult<()>| {
        result.map_err(|error| match error {
            ZipError::Io(error) => failed(error),
            other => failed(io::Error::other(other)),
        })
    };
    write_whole(path, |file| {
        let mut zip = ZipWriter::new(file);
        written(add(&mut zip, "data.pkl", &pickle))?;
        written(add(&mut zip, "byteorder", b"little"))?;
        if !metadata.is_empty() {
            let metadata = serde_json::to_vec(metadata).expect("strings are valid JSON");
            written(add(&mut zip, METADATA_ENTRY, &metadata))?;
        }
        for (key, info) in tensors.iter().enumerate() {
            let data = next(info)?;
            written(add(&mut zip, &format!("data/{key}"), data.as_bytes()))?;
        }
        written(add(&mut zip, "version", b"3\n"))?;
        written(zip.finish().map(|_| ()))?;
        Ok(())
    })
}

/// Adds an entry, stored and without a date.
fn add(zip: &mut ZipWriter<&mut BufWriter<File>>, name: &str, content: &[u8]) -> ZipResult<()> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(ALIGNMENT)
        .large_file(content.len() as u64 >= u64::from(u32::MAX));
    zip.start_file(format!("{PREFIX}{name}"), options)?;
    Ok(zip.write_all(content)?)
}

/// The pickle of a dictionary of tensors, in the order of their storages.
fn pickle(path: &Path, root: &str, tensors: &[&TensorInfo]) -> Result<Vec<u8>, WeightsError> {
    let unwritable = |name: &str, reason: String| WeightsError::Unwritable {
        path: path.into(),
        name: one_line(name),
        reason,
    };
    let mut pickle = pickle::Writer::new(root);
    for (key, TensorInfo { name, dtype, shape }) in tensors.iter().enumerate() {
        let storage = storage(*dtype)
            .ok_or_else(|| unwritable(name, format!("torch has no storage of {}", dtype.name())))?;
        if shape.len() > MAX_RANK || shape.iter().any(|side| i64::try_from(*side).is_err()) {
            let reason = format!("more than {MAX_RANK} dimensions, or one beyond 2^63");
            return Err(unwritable(name, reason));
        }
        if root.len() + 1 + name.len() > MAX_NAME_BYTES {
            return Err(unwritable(name, format!("a name of over {MAX_NAME_BYTES} bytes")));
        }
        pickle.tensor(name, storage, key, shape);
    }
    Ok(pickle.finish())
}

fn storage(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::F64 => "DoubleStorage",
        DType::F32 | DType::Flex32 => "FloatStorage",
        DType::F16 => "HalfStorage",
        DType::BF16 => "BFloat16Storage",
        DType::I64 => "LongStorage",
        DType::I32 => "IntStorage",
        DType::I16 => "ShortStorage",
        DType::I8 => "CharStorage",
        DType::U8 => "ByteStorage",
        DType::Bool(BoolStore::Native | BoolStore::U8) => "BoolStorage",
        DType::U64 | DType::U32 | DType::U16 => return None,
        DType::Bool(BoolStore::U32) | DType::QFloat(_) => return None,
    })
}
