//! The entries of the zip file, found by name and read with their checksums.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use super::{METADATA_ENTRY, most_bytes};
use crate::error::{WeightsError, one_line};
use crate::source::Source;

/// The longest string metadata.
const MAX_METADATA_BYTES: u64 = 16 << 20;
/// What the zip crate says of a checksum that does not match.
const CHECKSUM: &str = "Invalid checksum";

#[derive(Debug)]
pub(super) struct Archive {
    pub(super) path: PathBuf,
    archive: ZipArchive<BufReader<Source>>,
    /// What the names of all entries begin with, the slash included.
    prefix: String,
    /// The most bytes that storages, and tensors, may take.
    pub(super) max_bytes: u64,
}

impl Archive {
    pub(super) fn open(source: Source) -> Result<Self, WeightsError> {
        let (path, file_bytes) = (source.path().to_owned(), source.n_bytes());
        let damaged = |reason| WeightsError::Damaged { path: path.clone(), reason };
        let mut archive = ZipArchive::new(BufReader::new(source))
            .map_err(|error| damaged(one_line(&error.to_string())))?;
        if archive.has_duplicate_names() {
            return Err(damaged("two entries of the zip file have the same name".into()));
        }
        match archive.has_overlapping_entries() {
            Ok(false) => {}
            Ok(true) => return Err(damaged("entries of the zip file overlap".into())),
            Err(error) => return Err(damaged(one_line(&error.to_string()))),
        }

        let names = || archive.file_names_raw().filter_map(|name| str::from_utf8(name).ok());
        let prefixes: Vec<&str> = names()
            .filter_map(|name| name.strip_suffix("data.pkl"))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
            .collect();
        let &[prefix] = prefixes.as_slice() else {
            return Err(WeightsError::Unsupported {
                path: path.clone(),
                reason: format!("a zip file with {} entries data.pkl", prefixes.len()),
                advice: "read a file that torch.save wrote",
            });
        };
        let prefix = prefix.to_owned();
        if names().any(|name| name.strip_prefix(&prefix) == Some("constants.pkl")) {
            return Err(WeightsError::Unsupported {
                path: path.clone(),
                reason: "a TorchScript program".into(),
                advice: "load it with torch.jit.load and torch.save its state_dict()",
            });
        }
        let max_bytes = most_bytes(file_bytes);
        Ok(Self { path, archive, prefix, max_bytes })
    }

    pub(super) fn check_byte_order(&mut self) -> Result<(), WeightsError> {
        if self.find("byteorder").is_none() {
            return Ok(());
        }
        match self.read_small("byteorder", 16)?.as_slice() {
            b"little" => Ok(()),
            other => Err(WeightsError::Unsupported {
                path: self.path.clone(),
                reason: format!("byte order {}", one_line(&String::from_utf8_lossy(other))),
                advice: "save it again on a little-endian machine",
            }),
        }
    }

    /// The string metadata, if the file has any.
    pub(super) fn read_metadata(&mut self) -> Result<BTreeMap<String, String>, WeightsError> {
        if self.find(METADATA_ENTRY).is_none() {
            return Ok(BTreeMap::new());
        }
        let content = self.read_small(METADATA_ENTRY, MAX_METADATA_BYTES)?;
        serde_json::from_slice(&content).map_err(|error| {
            self.damaged(format!("{METADATA_ENTRY}: {}", one_line(&error.to_string())))
        })
    }

    /// Reads the entry of a tensor, of exactly the bytes of `buffer`, and its checksum.
    pub(super) fn read_exact(
        &mut self,
        entry: usize,
        tensor: &str,
        buffer: &mut [u8],
    ) -> Result<(), WeightsError> {
        let n_bytes = buffer.len() as u64;
        self.with_entry(entry, tensor, n_bytes, |entry| entry.read_exact(buffer))
    }

    /// Reads the entry of a tensor, of exactly `n_bytes`, for the sake of its checksum.
    pub(super) fn read_through(
        &mut self,
        entry: usize,
        tensor: &str,
        n_bytes: u64,
    ) -> Result<(), WeightsError> {
        self.with_entry(entry, tensor, n_bytes, |entry| {
            io::copy(&mut entry.take(n_bytes), &mut io::sink()).map(|_| ())
        })
    }

    fn with_entry(
        &mut self,
        entry: usize,
        tensor: &str,
        n_bytes: u64,
        read: impl FnOnce(&mut dyn Read) -> io::Result<()>,
    ) -> Result<(), WeightsError> {
        let name = format!("{} of tensor {}", self.name_of(entry), one_line(tensor));
        let Self { path, archive, .. } = self;
        let mut entry = archive.by_index(entry).map_err(|error| broken(path, &name, error))?;
        if entry.size() != n_bytes {
            let reason = format!("{name} has {} bytes and should have {n_bytes}", entry.size());
            return Err(WeightsError::Damaged { path: path.clone(), reason });
        }
        // The checksum is compared when reading finds the end of the entry.
        match read(&mut entry).and_then(|()| entry.read(&mut [0])) {
            Ok(0) => Ok(()),
            Ok(_) => Err(broken(path, &name, ZipError::InvalidArchive("it is too long".into()))),
            Err(error) => Err(broken(path, &name, error.into())),
        }
    }

    /// Reads an entry of at most `max` bytes, and its checksum.
    pub(super) fn read_small(&mut self, name: &str, max: u64) -> Result<Vec<u8>, WeightsError> {
        let index = self.find(name).ok_or_else(|| self.damaged(format!("{name} is not there")))?;
        let Self { path, archive, .. } = self;
        let mut entry = archive.by_index(index).map_err(|error| broken(path, name, error))?;
        let mut content = Vec::new();
        let taken = entry.by_ref().take(max + 1).read_to_end(&mut content);
        if taken.is_ok() && content.len() as u64 > max {
            let reason = format!("{name} has more than {max} bytes");
            return Err(WeightsError::Damaged { path: path.clone(), reason });
        }
        match taken.and_then(|_| entry.read(&mut [0])) {
            Ok(_) => Ok(content),
            Err(error) => Err(broken(path, name, error.into())),
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.archive.index_for_name(&format!("{}{name}", self.prefix))
    }

    fn name_of(&self, entry: usize) -> String {
        let name = self.archive.name_for_index(entry).and_then(Result::ok).unwrap_or_default();
        one_line(name.strip_prefix(&self.prefix).unwrap_or(&name))
    }

    fn damaged(&self, reason: String) -> WeightsError {
        WeightsError::Damaged { path: self.path.clone(), reason }
    }
}

fn broken(path: &Path, entry: &str, error: ZipError) -> WeightsError {
    let reason = match error {
        ZipError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it ends too early".into()
        }
        ZipError::Io(error) if error.to_string() == CHECKSUM => {
            "its checksum is wrong, or was left out with torch's set_crc32_options(False)".into()
        }
        error => one_line(&error.to_string()),
    };
    WeightsError::Damaged { path: path.into(), reason: format!("cannot read {entry}: {reason}") }
}
