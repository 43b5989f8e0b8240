//! The zip files that `torch.save` writes since torch 1.6.
//!
//! `PREFIX/data.pkl` is a pickle of everything but the numbers, `PREFIX/data/KEY` are the storages
//! that the tensors in it are views of, `PREFIX/byteorder` says `little` (files from before torch
//! 2.0 lack it and are little-endian too). A storage is read when a tensor on it is, straight into
//! the tensor where that is the whole of it.

mod write;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use zip::ZipArchive;
use zip::result::ZipError;

pub(crate) use self::write::write;

use crate::error::{WeightsError, one_line};
use crate::file::{Checksum, Listing, TensorInfo};
use crate::flatten::{StoredTensor, named_tensors};
use crate::pickle;
use crate::safetensors::check_bools;
use crate::strided::{View, zeros};

/// The longest `data.pkl`; that of a model of 1.5 GB takes 100 kB.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// The longest string metadata.
const MAX_METADATA_BYTES: u64 = 16 << 20;
/// How many times its own size a file may need in memory, which bounds compressed storages,
/// expanded (stride 0) views, and tensors that share a storage.
const MAX_EXPANSION: u64 = 16;
/// What any file may need in memory, however small it is.
const FREE_BYTES: u64 = 64 << 20;
/// What the zip crate says of a checksum that does not match.
const CHECKSUM: &str = "Invalid checksum";
/// The entry of the string metadata, which torch does not write and does not look at.
const METADATA_ENTRY: &str = "sar/metadata.json";

/// An open file: its pickle is interpreted, its storages are not read yet.
#[derive(Debug)]
pub(crate) struct Reader {
    zip: Zip,
    slots: BTreeMap<String, Slot>,
    /// Tensors by the entry of their storage, in the order of the file.
    users: BTreeMap<usize, Vec<String>>,
    /// Storages of several tensors, from the first of these that is read to the last.
    shared: HashMap<usize, Shared>,
}

/// Where the elements of a tensor are.
#[derive(Debug, Clone)]
struct Slot {
    entry: usize,
    dtype: DType,
    /// The number of elements of the storage.
    len: usize,
    view: View,
}

#[derive(Debug)]
struct Shared {
    storage: Vec<u8>,
    readers_left: usize,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<(Self, Listing), WeightsError> {
        let mut zip = Zip::open(path)?;
        zip.check_byte_order()?;
        let metadata = zip.read_metadata()?;
        let pickle = zip.read_small("data.pkl", MAX_PICKLE_BYTES)?;
        let (heap, root) = pickle::run(&pickle)
            .map_err(|what| zip.damaged(format!("its data.pkl is broken at {what}")))?;
        let tensors = named_tensors(&heap, root).map_err(|what| zip.damaged(what))?;
        if tensors.is_empty() {
            return Err(WeightsError::Unsupported {
                path: path.into(),
                reason: "it holds no named tensor".into(),
                advice: "save a dictionary of tensors, such as the state_dict() of a module",
            });
        }
        let slots = zip.plan(tensors)?;
        let mut users: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (name, slot) in &slots {
            users.entry(slot.entry).or_default().push(name.clone());
        }
        let info = |(name, slot): (&String, &Slot)| TensorInfo {
            name: name.clone(),
            dtype: slot.dtype,
            shape: slot.view.shape.clone(),
        };
        let tensors = slots.iter().map(info).collect();
        let reader = Self { zip, slots, users, shared: HashMap::new() };
        Ok((reader, Listing { tensors, metadata }))
    }

    /// Reads one tensor. A storage that is one tensor from end to end is read straight into it; one
    /// of several tensors is kept until all of them are read.
    pub(crate) fn read(&mut self, name: &str) -> Result<TensorData, WeightsError> {
        let Slot { entry, dtype, len, view } = &self.slots[name];
        let (size, n_users) = (dtype.size(), self.users[entry].len());
        let mut data = zeros(*dtype, &view.shape);
        if n_users > 1 {
            if !self.shared.contains_key(entry) {
                let mut storage = vec![0; len * size];
                self.zip.read_exact(*entry, name, &mut storage)?;
                self.shared.insert(*entry, Shared { storage, readers_left: n_users });
            }
            let shared = self.shared.get_mut(entry).expect("inserted above");
            view.gather(&shared.storage, size, &mut data.bytes);
            shared.readers_left -= 1;
            if shared.readers_left == 0 {
                self.shared.remove(entry);
            }
        } else if view.is_whole(*len) {
            self.zip.read_exact(*entry, name, &mut data.bytes)?;
        } else {
            let mut storage = vec![0; len * size];
            self.zip.read_exact(*entry, name, &mut storage)?;
            view.gather(&storage, size, &mut data.bytes);
        }
        check_bools(&data)
            .map_err(|what| self.zip.damaged(format!("tensor {} {what}", one_line(name))))?;
        Ok(data)
    }

    /// Reads all tensors in the order of the file.
    pub(crate) fn read_all(&mut self) -> Result<BTreeMap<String, TensorData>, WeightsError> {
        let order: Vec<String> = self.users.values().flatten().cloned().collect();
        order.into_iter().map(|name| Ok((name.clone(), self.read(&name)?))).collect()
    }

    pub(crate) fn verify(&mut self) -> Result<Checksum, WeightsError> {
        for (&entry, users) in &self.users {
            let Slot { dtype, len, .. } = &self.slots[&users[0]];
            self.zip.read_through(entry, &users[0], (len * dtype.size()) as u64)?;
        }
        Ok(Checksum::Verified)
    }
}

#[derive(Debug)]
struct Zip {
    path: PathBuf,
    archive: ZipArchive<BufReader<File>>,
    /// What the names of all entries begin with, the slash included.
    prefix: String,
    /// The most bytes that storages, and tensors, may take.
    max_bytes: u64,
}

impl Zip {
    fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |error| WeightsError::Read { path: path.into(), error };
        let damaged = |reason| WeightsError::Damaged { path: path.into(), reason };
        let file = File::open(path).map_err(failed)?;
        let file_bytes = file.metadata().map_err(failed)?.len();
        let mut archive = ZipArchive::new(BufReader::new(file))
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
        Ok(Self { path: path.into(), archive, prefix, max_bytes })
    }

    fn check_byte_order(&mut self) -> Result<(), WeightsError> {
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
    fn read_metadata(&mut self) -> Result<BTreeMap<String, String>, WeightsError> {
        if self.find(METADATA_ENTRY).is_none() {
            return Ok(BTreeMap::new());
        }
        let content = self.read_small(METADATA_ENTRY, MAX_METADATA_BYTES)?;
        serde_json::from_slice(&content).map_err(|error| {
            self.damaged(format!("{METADATA_ENTRY}: {}", one_line(&error.to_string())))
        })
    }

    /// Finds the storage of each tensor, and checks that neither storages nor tensors are larger
    /// than they can be.
    fn plan(&self, tensors: Vec<StoredTensor>) -> Result<BTreeMap<String, Slot>, WeightsError> {
        let mut n_bytes = 0u64;
        let mut storages: HashMap<usize, (DType, i64)> = HashMap::new();
        let mut slots = BTreeMap::new();
        for StoredTensor { name, storage, view } in tensors {
            let (shown, key) = (one_line(&name), one_line(storage.key));
            let entry = self.find(&format!("data/{}", storage.key)).ok_or_else(|| {
                self.damaged(format!("tensor {shown} needs data/{key}, which is not there"))
            })?;
            let (dtype, len) = (storage.dtype, storage.len);
            if *storages.entry(entry).or_insert((dtype, len)) != (dtype, len) {
                let what = format!("data/{key} has two types or lengths, by tensor {shown}");
                return Err(self.damaged(what));
            }
            let claimed = (len as u64).checked_mul(dtype.size() as u64);
            if claimed.is_none_or(|n| n > self.max_bytes) {
                let what = format!("data/{key} claims {len} elements, by tensor {shown}");
                return Err(self.damaged(what));
            }
            let n = view.n_elements().and_then(|n| n.checked_mul(dtype.size()));
            n_bytes = n_bytes.saturating_add(n.map_or(u64::MAX, |n| n as u64));
            if n_bytes > self.max_bytes {
                let what = format!(
                    "its tensors up to {shown} take {n_bytes} bytes, over {MAX_EXPANSION} times the file"
                );
                return Err(self.damaged(what));
            }
            slots.insert(name, Slot { entry, dtype, len: len as usize, view });
        }
        let stored = |(dtype, len): &(DType, i64)| dtype.size() as u64 * *len as u64;
        let n_bytes = storages.values().map(stored).fold(0, u64::saturating_add);
        if n_bytes > self.max_bytes {
            return Err(self.damaged(format!(
                "its storages take {n_bytes} bytes, over {MAX_EXPANSION} times the file"
            )));
        }
        Ok(slots)
    }

    /// Reads the entry of a tensor, of exactly the bytes of `buffer`, and its checksum.
    fn read_exact(
        &mut self,
        entry: usize,
        tensor: &str,
        buffer: &mut [u8],
    ) -> Result<(), WeightsError> {
        let n_bytes = buffer.len() as u64;
        self.with_entry(entry, tensor, n_bytes, |entry| entry.read_exact(buffer))
    }

    /// Reads the entry of a tensor, of exactly `n_bytes`, for the sake of its checksum.
    fn read_through(
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
    fn read_small(&mut self, name: &str, max: u64) -> Result<Vec<u8>, WeightsError> {
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

    fn find(&self, name: &str) -> Option<usize> {
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
