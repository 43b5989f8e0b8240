//! The files that `torch.save` writes.
//!
//! Since torch 1.6 they are zip files: `PREFIX/data.pkl` is a pickle of everything but the numbers,
//! `PREFIX/data/KEY` are the storages that the tensors in it are views of, `PREFIX/byteorder` says
//! `little` (files from before torch 2.0 lack it and are little-endian too). The legacy form before
//! that is a sequence of pickles and storages, see [`legacy`]. A storage is read when a tensor on
//! it is, straight into the tensor where that is the whole of it.

mod archive;
mod legacy;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::{DType, TensorData};

use self::archive::Archive;
use self::legacy::Legacy;
pub(crate) use self::write::write;

use crate::error::{WeightsError, one_line};
use crate::file::{Checksum, Listing, TensorInfo};
use crate::flatten::{Named, StoredTensor, named_tensors};
use crate::pickle;
use crate::safetensors::check_bools;
use crate::source::Source;
use crate::strided::{View, zeros};

/// The longest pickle; that of a model of 1.5 GB takes 100 kB.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// How many times its own size a file may need in memory, which bounds compressed storages,
/// expanded (stride 0) views, and tensors that share a storage.
const MAX_EXPANSION: u64 = 16;
/// What any file may need in memory, however small it is.
const FREE_BYTES: u64 = 64 << 20;
/// The entry of the string metadata, which torch does not write and does not look at.
const METADATA_ENTRY: &str = "sar/metadata.json";

/// An open file: its pickle is interpreted, its storages are not read yet.
#[derive(Debug)]
pub(crate) struct Reader {
    container: Container,
    slots: BTreeMap<String, Slot>,
    /// Tensors by their storage, in the order of the file.
    users: BTreeMap<usize, Vec<String>>,
    /// Storages of several tensors, from the first of these that is read to the last.
    shared: HashMap<usize, Shared>,
}

/// Where the elements of a tensor are.
#[derive(Debug, Clone)]
struct Slot {
    /// The storage, by its number in the container.
    storage: usize,
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
    /// Opens a zip file.
    pub(crate) fn open(source: Source) -> Result<(Self, Listing), WeightsError> {
        let mut archive = Archive::open(source)?;
        archive.check_byte_order()?;
        let metadata = archive.read_metadata()?;
        let pickle = archive.read_small("data.pkl", MAX_PICKLE_BYTES)?;
        let container = Container::Archive(archive);
        let (heap, root) = pickle::run(&pickle)
            .map_err(|what| container.damaged(format!("its data.pkl is broken at {what}")))?;
        let named = named_tensors(&heap, root).map_err(|what| container.damaged(what))?;
        Self::new(container, named, metadata)
    }

    /// Opens a file of the legacy form.
    pub(crate) fn open_legacy(mut source: Source) -> Result<(Self, Listing), WeightsError> {
        // The pickles lie in the first bytes, as far as pickles are read.
        let start = source.start(MAX_PICKLE_BYTES)?;
        let pickles = legacy::Pickles::run(&start, source.path())?;
        let container = Container::Legacy(Legacy::open(source, &pickles)?);
        let named =
            named_tensors(&pickles.heap, pickles.root).map_err(|what| container.damaged(what))?;
        Self::new(container, named, BTreeMap::new())
    }

    fn new(
        container: Container,
        Named { tensors, unreadable }: Named,
        metadata: BTreeMap<String, String>,
    ) -> Result<(Self, Listing), WeightsError> {
        if tensors.is_empty() && unreadable.is_empty() {
            return Err(WeightsError::Unsupported {
                path: container.path().into(),
                reason: "it holds no named tensor".into(),
                advice: "save a dictionary of tensors, such as the state_dict() of a module",
            });
        }
        let slots = container.plan(tensors)?;
        let mut users: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (name, slot) in &slots {
            users.entry(slot.storage).or_default().push(name.clone());
        }
        let info = |(name, slot): (&String, &Slot)| TensorInfo {
            name: name.clone(),
            dtype: slot.dtype,
            shape: slot.view.shape.clone(),
        };
        let tensors = slots.iter().map(info).collect();
        let reader = Self { container, slots, users, shared: HashMap::new() };
        Ok((reader, Listing { tensors, unreadable, metadata }))
    }

    /// Reads one tensor. A storage that is one tensor from end to end is read straight into it; one
    /// of several tensors is kept until all of them are read.
    pub(crate) fn read(&mut self, name: &str) -> Result<TensorData, WeightsError> {
        let Slot { storage: at, dtype, len, view } = &self.slots[name];
        let (size, n_users) = (dtype.size(), self.users[at].len());
        let mut data = zeros(*dtype, &view.shape);
        if n_users > 1 {
            if !self.shared.contains_key(at) {
                let mut storage = vec![0; len * size];
                self.container.read_exact(*at, name, &mut storage)?;
                self.shared.insert(*at, Shared { storage, readers_left: n_users });
            }
            let shared = self.shared.get_mut(at).expect("inserted above");
            view.gather(&shared.storage, size, &mut data.bytes);
            shared.readers_left -= 1;
            if shared.readers_left == 0 {
                self.shared.remove(at);
            }
        } else if view.is_whole(*len) {
            self.container.read_exact(*at, name, &mut data.bytes)?;
        } else {
            let mut storage = vec![0; len * size];
            self.container.read_exact(*at, name, &mut storage)?;
            view.gather(&storage, size, &mut data.bytes);
        }
        check_bools(&data)
            .map_err(|what| self.container.damaged(format!("tensor {} {what}", one_line(name))))?;
        Ok(data)
    }

    /// Reads all tensors in the order of the file.
    pub(crate) fn read_all(&mut self) -> Result<BTreeMap<String, TensorData>, WeightsError> {
        let order: Vec<String> = self.users.values().flatten().cloned().collect();
        order.into_iter().map(|name| Ok((name.clone(), self.read(&name)?))).collect()
    }

    pub(crate) fn verify(&mut self) -> Result<Checksum, WeightsError> {
        let Container::Archive(archive) = &mut self.container else {
            return Ok(Checksum::Absent);
        };
        for (&entry, users) in &self.users {
            let Slot { dtype, len, .. } = &self.slots[&users[0]];
            archive.read_through(entry, &users[0], (len * dtype.size()) as u64)?;
        }
        Ok(Checksum::Verified)
    }
}

/// What storages lie in. They are numbered in the order of the file.
#[derive(Debug)]
enum Container {
    Archive(Archive),
    Legacy(Legacy),
}

impl Container {
    fn path(&self) -> &Path {
        match self {
            Self::Archive(archive) => &archive.path,
            Self::Legacy(legacy) => legacy.path(),
        }
    }

    /// The most bytes that storages, and tensors, may take.
    fn max_bytes(&self) -> u64 {
        match self {
            Self::Archive(archive) => archive.max_bytes,
            Self::Legacy(legacy) => legacy.max_bytes,
        }
    }

    fn find(&self, key: &str) -> Option<usize> {
        match self {
            Self::Archive(archive) => archive.find(&format!("data/{key}")),
            Self::Legacy(legacy) => legacy.find(key),
        }
    }

    /// What the storage of a key is called in messages.
    fn shown(&self, key: &str) -> String {
        match self {
            Self::Archive(_) => format!("data/{}", one_line(key)),
            Self::Legacy(_) => format!("storage {}", one_line(key)),
        }
    }

    /// Reads the storage of a tensor, of exactly the bytes of `buffer`.
    fn read_exact(
        &mut self,
        storage: usize,
        tensor: &str,
        buffer: &mut [u8],
    ) -> Result<(), WeightsError> {
        match self {
            Self::Archive(archive) => archive.read_exact(storage, tensor, buffer),
            Self::Legacy(legacy) => legacy.read_exact(storage, buffer),
        }
    }

    fn damaged(&self, reason: String) -> WeightsError {
        WeightsError::Damaged { path: self.path().into(), reason }
    }

    /// Finds the storage of each tensor, and checks that neither storages nor tensors are larger
    /// than they can be.
    fn plan(&self, tensors: Vec<StoredTensor>) -> Result<BTreeMap<String, Slot>, WeightsError> {
        let max_bytes = self.max_bytes();
        let mut n_bytes = 0u64;
        let mut storages: HashMap<usize, (DType, usize)> = HashMap::new();
        let mut slots = BTreeMap::new();
        for StoredTensor { name, key, dtype, len, view } in tensors {
            let (shown, key_shown) = (one_line(&name), self.shown(key));
            let storage = self.find(key).ok_or_else(|| {
                self.damaged(format!("tensor {shown} needs {key_shown}, which is not there"))
            })?;
            if *storages.entry(storage).or_insert((dtype, len)) != (dtype, len) {
                let what = format!("{key_shown} has two types or lengths, by tensor {shown}");
                return Err(self.damaged(what));
            }
            let claimed = (len as u64).checked_mul(dtype.size() as u64);
            if claimed.is_none_or(|n| n > max_bytes) {
                let what = format!("{key_shown} claims {len} elements, by tensor {shown}");
                return Err(self.damaged(what));
            }
            let n = view.n_elements().and_then(|n| n.checked_mul(dtype.size()));
            n_bytes = n_bytes.saturating_add(n.map_or(u64::MAX, |n| n as u64));
            if n_bytes > max_bytes {
                let what = format!(
                    "its tensors up to {shown} take {n_bytes} bytes, over {MAX_EXPANSION} times the file"
                );
                return Err(self.damaged(what));
            }
            slots.insert(name, Slot { storage, dtype, len, view });
        }
        let stored = |(dtype, len): &(DType, usize)| dtype.size() as u64 * *len as u64;
        let n_bytes = storages.values().map(stored).fold(0, u64::saturating_add);
        if n_bytes > max_bytes {
            return Err(self.damaged(format!(
                "its storages take {n_bytes} bytes, over {MAX_EXPANSION} times the file"
            )));
        }
        Ok(slots)
    }
}

fn most_bytes(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(MAX_EXPANSION).saturating_add(FREE_BYTES)
}
