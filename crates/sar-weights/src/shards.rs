//! Weights in several files, with a JSON index beside them that says which tensor is where.
//!
//! `{"metadata": {"total_size": N}, "weight_map": {"NAME": "FILE", ..}}`, as the libraries of
//! Hugging Face write it. The files lie in the folder of the index, or below it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use burn::tensor::TensorData;
use serde_json::Value;

use crate::error::{WeightsError, one_line};
use crate::file::{Checksum, Format, Listing, WeightsFile};

/// How the names of indices end, those that are preferred first.
const ENDINGS: [&str; 2] = [".safetensors.index.json", ".bin.index.json"];
/// The longest index; that of a model of 600 GB takes 10 MB.
const MAX_INDEX_BYTES: u64 = 16 << 20;
/// The most shards, which all are open at the same time.
const MAX_SHARDS: usize = 512;

/// Open shards.
#[derive(Debug)]
pub(crate) struct Shards {
    files: Vec<WeightsFile>,
    /// The shard of each tensor.
    places: BTreeMap<String, usize>,
}

impl Shards {
    /// Opens all shards of an index. Their tensors together are those of the model.
    pub(crate) fn open(index: &Path) -> Result<(Self, Listing), WeightsError> {
        let damaged = |reason| WeightsError::Damaged { path: index.into(), reason };
        let map = weight_map(index)?;
        let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let names: Vec<&str> = names.into_iter().collect();
        if names.len() > MAX_SHARDS {
            return Err(WeightsError::Unsupported {
                path: index.into(),
                reason: format!("it names {} shards, more than {MAX_SHARDS}", names.len()),
                advice: "save the model in fewer files",
            });
        }
        let folder = index.parent().unwrap_or(Path::new(""));
        let mut shards = Self { files: Vec::new(), places: BTreeMap::new() };
        let mut listing = Listing::default();
        for (number, &name) in names.iter().enumerate() {
            let path = path_of(folder, name).ok_or_else(|| WeightsError::Unsupported {
                path: index.into(),
                reason: format!("it names the shard {}, outside of its folder", one_line(name)),
                advice: "put all shards beside the index and name them without a path",
            })?;
            if !path.exists() {
                return Err(damaged(format!("its shard {} is missing", one_line(name))));
            }
            let file = WeightsFile::open_shard(&path)?;
            let readable = file.tensors().iter().map(|info| &info.name);
            for tensor in readable.chain(file.unreadable().iter().map(|other| &other.name)) {
                if shards.places.insert(tensor.clone(), number).is_some() {
                    return Err(damaged(format!("two shards hold tensor {}", one_line(tensor))));
                }
            }
            listing.tensors.extend_from_slice(file.tensors());
            listing.unreadable.extend_from_slice(file.unreadable());
            shards.files.push(file);
        }
        for (tensor, shard) in &map {
            if shards.places.get(tensor).is_none_or(|number| names[*number] != shard) {
                let (tensor, shard) = (one_line(tensor), one_line(shard));
                return Err(damaged(format!("tensor {tensor} is not in its shard {shard}")));
            }
        }
        let mut formats = shards.files.iter().map(WeightsFile::format);
        let first = formats.next();
        if formats.any(|format| Some(format) != first) {
            return Err(WeightsError::Unsupported {
                path: index.into(),
                reason: "its shards are of different formats".into(),
                advice: "save all of them as safetensors",
            });
        }
        listing.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        listing.unreadable.sort_by(|a, b| a.name.cmp(&b.name));
        listing.metadata = agreed(&shards.files);
        Ok((shards, listing))
    }

    pub(crate) fn n_files(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn n_bytes(&self) -> u64 {
        self.files.iter().map(WeightsFile::n_bytes).fold(0, u64::saturating_add)
    }

    pub(crate) fn format(&self) -> Format {
        self.files.first().map_or(Format::Safetensors, WeightsFile::format)
    }

    pub(crate) fn read(&mut self, name: &str) -> Result<TensorData, WeightsError> {
        let shard = *self.places.get(name).expect("a tensor of the shards");
        self.files[shard].read(name)
    }

    /// Compares the checksums of all shards; they are there if every shard has one.
    pub(crate) fn verify(&mut self) -> Result<Checksum, WeightsError> {
        let mut all = Checksum::Verified;
        for file in &mut self.files {
            if file.verify()? == Checksum::Absent {
                all = Checksum::Absent;
            }
        }
        Ok(all)
    }

    pub(crate) fn read_all(self) -> Result<BTreeMap<String, TensorData>, WeightsError> {
        let mut tensors = BTreeMap::new();
        for file in self.files {
            tensors.extend(file.read_all()?);
        }
        Ok(tensors)
    }
}

/// The index in a folder.
///
/// # Errors
/// If there is none, or more than one of the preferred kind.
pub(crate) fn index_in(folder: &Path) -> Result<PathBuf, WeightsError> {
    let failed = |error| WeightsError::Read { path: folder.into(), error };
    let unsupported = |reason: String| WeightsError::Unsupported {
        path: folder.into(),
        reason,
        advice: "name a file in it",
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort();
    for ending in ENDINGS {
        let found: Vec<&String> = names.iter().filter(|name| name.ends_with(ending)).collect();
        match found[..] {
            [] => {}
            [name] => return Ok(folder.join(name)),
            [first, second, ..] => {
                let (first, second) = (one_line(first), one_line(second));
                let what = format!("a folder with several indices of shards: {first}, {second}");
                return Err(unsupported(what));
            }
        }
    }
    let what = "it is a folder without an index of shards (*.safetensors.index.json)";
    Err(unsupported(what.into()))
}

/// The shard of each tensor, as an index says it.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let failed = |error| WeightsError::Read { path: index.into(), error };
    let other = |reason: String| WeightsError::Unsupported {
        path: index.into(),
        reason,
        advice: "name a file of weights, or the index.json beside the shards of a model",
    };
    let mut text = Vec::new();
    let file = File::open(index).map_err(failed)?;
    file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_INDEX_BYTES {
        return Err(other(format!("a JSON file of more than {MAX_INDEX_BYTES} bytes")));
    }
    let json: Value = serde_json::from_slice(&text).map_err(|error| WeightsError::Damaged {
        path: index.into(),
        reason: format!("its JSON: {}", one_line(&error.to_string())),
    })?;
    let Some(Value::Object(map)) = json.get("weight_map") else {
        return Err(other(
            "a JSON file that is not an index of shards: it has no weight_map".into(),
        ));
    };
    if map.is_empty() {
        return Err(other("an index of shards whose weight_map is empty".into()));
    }
    let place = |(tensor, shard): (&String, &Value)| match shard {
        Value::String(shard) => Ok((tensor.clone(), shard.clone())),
        _ => Err(other(format!("its weight_map has no file name for {}", one_line(tensor)))),
    };
    map.iter().map(place).collect()
}

/// The path of a shard, unless it leads out of the folder of the index.
fn path_of(folder: &Path, name: &str) -> Option<PathBuf> {
    let is_plain = !name.is_empty()
        && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    is_plain.then(|| folder.join(name))
}

/// The metadata on which all files agree that have it.
fn agreed(files: &[WeightsFile]) -> BTreeMap<String, String> {
    let mut values: BTreeMap<&String, BTreeSet<&String>> = BTreeMap::new();
    for (key, value) in files.iter().flat_map(WeightsFile::metadata) {
        values.entry(key).or_default().insert(value);
    }
    let only = |(key, values): (&String, BTreeSet<&String>)| match values.len() {
        1 => Some((key.clone(), values.into_iter().next()?.clone())),
        _ => None,
    };
    values.into_iter().filter_map(only).collect()
}
