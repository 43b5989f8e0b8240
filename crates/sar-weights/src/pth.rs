//! The zip files that `torch.save` writes since torch 1.6.
//!
//! `PREFIX/data.pkl` is a pickle of everything but the numbers, `PREFIX/data/KEY` are the storages
//! that the tensors in it are views of, `PREFIX/byteorder` says `little` (files from before torch
//! 2.0 lack it and are little-endian too). A storage is read once, straight into its tensor where
//! that is the whole of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use crate::error::{WeightsError, one_line};
use crate::flatten::{StoredTensor, named_tensors};
use crate::named::NamedTensors;
use crate::pickle::{self, Storage};
use crate::safetensors::check_bools;
use crate::strided::zeros;

/// The longest `data.pkl`; that of a model of 1.5 GB takes 100 kB.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// How many times its own size a file may need in memory, which bounds compressed storages,
/// expanded (stride 0) views, and tensors that share a storage.
const MAX_EXPANSION: u64 = 16;
/// What any file may need in memory, however small it is.
const FREE_BYTES: u64 = 64 << 20;
/// What the zip crate says of a checksum that does not match.
const CHECKSUM: &str = "Invalid checksum";

pub(crate) fn read(path: &Path) -> Result<NamedTensors, WeightsError> {
    let mut reader = Reader::open(path)?;
    reader.check_byte_order()?;
    let pickle = reader.read_small("data.pkl", MAX_PICKLE_BYTES)?;
    let (heap, root) = pickle::run(&pickle)
        .map_err(|what| reader.damaged(format!("its data.pkl is broken at {what}")))?;
    let tensors = named_tensors(&heap, root).map_err(|what| reader.damaged(what))?;
    if tensors.is_empty() {
        return Err(WeightsError::Unsupported {
            path: path.into(),
            reason: "it holds no named tensor".into(),
            advice: "save a dictionary of tensors, such as the state_dict() of a module",
        });
    }
    let storages = reader.plan(tensors)?;
    let mut named = NamedTensors::new();
    for (entry, users) in storages {
        reader.read_storage(entry, users, &mut named)?;
    }
    Ok(named)
}

struct Reader<'p> {
    path: &'p Path,
    archive: ZipArchive<BufReader<File>>,
    /// What the names of all entries begin with, the slash included.
    prefix: String,
    /// The most bytes that storages, and tensors, may take.
    max_bytes: u64,
}

impl<'p> Reader<'p> {
    fn open(path: &'p Path) -> Result<Self, WeightsError> {
        let failed = |error| WeightsError::Read { path: path.into(), error };
        let damaged = |reason| WeightsError::Damaged { path: path.into(), reason };
        let file = File::open(path).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        let archive = ZipArchive::new(BufReader::new(file))
            .map_err(|error| damaged(one_line(&error.to_string())))?;
        if archive.has_duplicate_names() {
            return Err(damaged("two entries of the zip file have the same name".into()));
        }

        let names = || archive.file_names_raw().filter_map(|name| str::from_utf8(name).ok());
        let prefixes: Vec<&str> = names()
            .filter_map(|name| name.strip_suffix("data.pkl"))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('/'))
            .collect();
        let &[prefix] = prefixes.as_slice() else {
            return Err(WeightsError::Unsupported {
                path: path.into(),
                reason: format!("a zip file with {} entries data.pkl", prefixes.len()),
                advice: "read a file that torch.save wrote",
            });
        };
        let prefix = prefix.to_owned();
        if names().any(|name| name.strip_prefix(&prefix) == Some("constants.pkl")) {
            return Err(WeightsError::Unsupported {
                path: path.into(),
                reason: "a TorchScript program".into(),
                advice: "load it with torch.jit.load and torch.save its state_dict()",
            });
        }
        let max_bytes = file_bytes.saturating_mul(MAX_EXPANSION).saturating_add(FREE_BYTES);
        Ok(Self { path, archive, prefix, max_bytes })
    }

    fn check_byte_order(&mut self) -> Result<(), WeightsError> {
        if self.find("byteorder").is_none() {
            return Ok(());
        }
        match self.read_small("byteorder", 16)?.as_slice() {
            b"little" => Ok(()),
            other => Err(WeightsError::Unsupported {
                path: self.path.into(),
                reason: format!("byte order {}", one_line(&String::from_utf8_lossy(other))),
                advice: "save it again on a little-endian machine",
            }),
        }
    }

    /// Groups the tensors by the entry of their storage, in the order of the file, and checks that
    /// neither entries nor tensors are larger than they can be.
    fn plan<'a>(
        &self,
        tensors: Vec<StoredTensor<'a>>,
    ) -> Result<BTreeMap<usize, Vec<StoredTensor<'a>>>, WeightsError> {
        let mut n_bytes = 0u64;
        let mut storages: BTreeMap<usize, Vec<StoredTensor>> = BTreeMap::new();
        for tensor in tensors {
            let storage = tensor.storage;
            let (name, key) = (one_line(&tensor.name), one_line(storage.key));
            let entry = self.find(&format!("data/{}", storage.key)).ok_or_else(|| {
                self.damaged(format!("tensor {name} needs data/{key}, which is not there"))
            })?;
            let users = storages.entry(entry).or_default();
            if users.first().is_some_and(|first| first.storage != storage) {
                return Err(self.damaged(format!("data/{key} has two types or lengths")));
            }
            let n = tensor.view.n_elements().and_then(|n| n.checked_mul(storage.dtype.size()));
            n_bytes = n_bytes.saturating_add(n.map_or(u64::MAX, |n| n as u64));
            users.push(tensor);
        }
        for users in storages.values() {
            let Storage { key, dtype, len } = users[0].storage;
            if (len as u64).checked_mul(dtype.size() as u64).is_none_or(|n| n > self.max_bytes) {
                let key = one_line(key);
                return Err(self.damaged(format!("data/{key} claims {len} elements")));
            }
        }
        if n_bytes > self.max_bytes {
            return Err(self.damaged(format!(
                "its tensors take {n_bytes} bytes, over {MAX_EXPANSION} times the file"
            )));
        }
        Ok(storages)
    }

    /// Reads one storage and adds the tensors on it.
    fn read_storage(
        &mut self,
        entry: usize,
        users: Vec<StoredTensor>,
        named: &mut NamedTensors,
    ) -> Result<(), WeightsError> {
        let Storage { dtype, len, .. } = users[0].storage;
        let (len, size) = (len as usize, dtype.size());
        if let [tensor] = users.as_slice()
            && tensor.view.is_whole(len)
        {
            let mut data = zeros(dtype, &tensor.view.shape);
            self.read_exact(entry, &mut data.bytes)?;
            self.add(named, &tensor.name, data)?;
            return Ok(());
        }
        let mut storage = vec![0; len * size];
        self.read_exact(entry, &mut storage)?;
        for tensor in users {
            let mut data = zeros(dtype, &tensor.view.shape);
            tensor.view.gather(&storage, size, &mut data.bytes);
            self.add(named, &tensor.name, data)?;
        }
        Ok(())
    }

    fn add(
        &self,
        named: &mut NamedTensors,
        name: &str,
        data: burn::tensor::TensorData,
    ) -> Result<(), WeightsError> {
        check_bools(&data)
            .map_err(|what| self.damaged(format!("tensor {} {what}", one_line(name))))?;
        named.insert(name, data);
        Ok(())
    }

    /// Reads an entry that has exactly the bytes of `buffer`, and its checksum.
    fn read_exact(&mut self, entry: usize, buffer: &mut [u8]) -> Result<(), WeightsError> {
        let (path, name) = (self.path, self.name_of(entry));
        let mut entry = self.archive.by_index(entry).map_err(|error| broken(path, &name, error))?;
        if entry.size() != buffer.len() as u64 {
            let reason =
                format!("{name} has {} bytes and its tensors need {}", entry.size(), buffer.len());
            return Err(WeightsError::Damaged { path: path.into(), reason });
        }
        // The checksum is compared when reading finds the end of the entry.
        let rest = entry.read_exact(buffer).and_then(|()| entry.read(&mut [0]));
        match rest {
            Ok(0) => Ok(()),
            Ok(_) => Err(broken(path, &name, ZipError::InvalidArchive("it is too long".into()))),
            Err(error) => Err(broken(path, &name, error.into())),
        }
    }

    /// Reads an entry of at most `max` bytes, and its checksum.
    fn read_small(&mut self, name: &str, max: u64) -> Result<Vec<u8>, WeightsError> {
        let path = self.path;
        let index = self.find(name).ok_or_else(|| self.damaged(format!("{name} is not there")))?;
        let mut entry = self.archive.by_index(index).map_err(|error| broken(path, name, error))?;
        let mut content = Vec::new();
        let taken = entry.by_ref().take(max + 1).read_to_end(&mut content);
        if taken.is_ok() && content.len() as u64 > max {
            let reason = format!("{name} has more than {max} bytes");
            return Err(WeightsError::Damaged { path: path.into(), reason });
        }
        match taken.and_then(|_| entry.read(&mut [0])) {
            Ok(_) => Ok(content),
            Err(error) => Err(broken(path, name, error.into())),
        }
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.archive.index_for_name(&format!("{}{name}", self.prefix))
    }

    fn name_of(&self, entry: usize) -> String {
        let name = self.archive.name_for_index(entry).and_then(Result::ok).unwrap_or_default();
        one_line(name.strip_prefix(&self.prefix).unwrap_or(&name))
    }

    fn damaged(&self, reason: String) -> WeightsError {
        WeightsError::Damaged { path: self.path.into(), reason }
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
