//! Tensors by name, as a file of weights holds them.

use std::borrow::Cow;
use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;

use crate::error::WeightsError;
use crate::file::{Format, Target, TensorInfo, WeightsFile, write_weights};
use crate::unreadable::{Unreadable, check_readable};

/// Tensors by name, with the string metadata of their file.
///
/// Every tensor is contiguous and row-major, whatever strides it was stored with, and keeps the
/// element type of the file. Iteration is in the order of the names.
#[derive(Clone, Default)]
pub struct NamedTensors {
    tensors: BTreeMap<String, TensorData>,
    metadata: BTreeMap<String, String>,
    unreadable: Vec<Unreadable>,
    origin: Option<PathBuf>,
}

impl NamedTensors {
    /// No tensors, no metadata.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn of_file(
        origin: PathBuf,
        tensors: BTreeMap<String, TensorData>,
        unreadable: Vec<Unreadable>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self { tensors, metadata, unreadable, origin: Some(origin) }
    }

    /// Reads a file of any format, told apart by its content and never by its name.
    ///
    /// # Errors
    /// As [`WeightsFile::open`] and [`WeightsFile::read_all`].
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        WeightsFile::open(path)?.read_all()
    }

    /// Reads a safetensors file, one tensor at a time, without holding the file in memory.
    ///
    /// # Errors
    /// As [`read`](Self::read), and if the file is a `.pth`.
    pub fn read_safetensors(path: &Path) -> Result<Self, WeightsError> {
        let file = WeightsFile::open(path)?;
        match file.format() {
            Format::Safetensors => file.read_all(),
            Format::Pth => Err(WeightsError::Unsupported {
                path: path.into(),
                reason: "a PyTorch file, where a safetensors file is needed".into(),
                advice: "convert it with `sar convert`",
            }),
        }
    }

    /// Writes a safetensors file, all or nothing, see [`write_weights`].
    ///
    /// # Errors
    /// If the file cannot be written, or a tensor has a name or an element type that safetensors
    /// cannot hold.
    pub fn write_safetensors(&self, path: &Path) -> Result<(), WeightsError> {
        self.write(path, Target::Safetensors)
    }

    /// Writes a `.pth` file that `torch.load(weights_only=True)` reads, all or nothing, see
    /// [`write_weights`]: a dictionary by name, in nested dictionaries along the dotted `root`.
    ///
    /// The string metadata goes into an entry of its own, which torch does not look at.
    ///
    /// # Errors
    /// If the file cannot be written, or a tensor has a name or an element type that torch cannot
    /// hold.
    pub fn write_pth(&self, path: &Path, root: &str) -> Result<(), WeightsError> {
        self.write(path, Target::Pth { root })
    }

    fn write(&self, path: &Path, target: Target) -> Result<(), WeightsError> {
        let data = |name: &str| Ok(Cow::Borrowed(&self.tensors[name]));
        write_weights(path, target, &self.infos(), &self.metadata, data)
    }

    /// Names, element types and shapes, sorted by name.
    pub fn infos(&self) -> Vec<TensorInfo> {
        let info = |(name, data): (&str, &TensorData)| TensorInfo {
            name: name.into(),
            dtype: data.dtype,
            shape: data.shape.to_vec(),
        };
        self.iter().map(info).collect()
    }

    /// Keeps what lies under a dotted root, without the root and its dot, and drops the rest; an empty
    /// root keeps all.
    pub fn below(mut self, root: &str) -> Self {
        if !root.is_empty() {
            self.tensors = std::mem::take(&mut self.tensors)
                .into_iter()
                .filter_map(|(name, data)| {
                    let name = name.strip_prefix(root)?.strip_prefix('.')?;
                    Some((name.to_owned(), data))
                })
                .collect();
        }
        self
    }

    /// The tensor of a name.
    pub fn get(&self, name: &str) -> Option<&TensorData> {
        self.tensors.get(name)
    }

    /// Adds a tensor and returns the one that it replaces.
    ///
    /// # Panics
    /// If the data has not as many bytes as its shape and element type ask for.
    pub fn insert(&mut self, name: impl Into<String>, data: TensorData) -> Option<TensorData> {
        let name = name.into();
        assert_eq!(
            data.as_bytes().len(),
            data.num_elements() * data.dtype.size(),
            "tensor {name}: bytes do not match shape {:?}",
            data.shape
        );
        self.tensors.insert(name, data)
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<TensorData> {
        self.tensors.remove(name)
    }

    /// The tensors with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &TensorData)> {
        self.tensors.iter().map(|(name, data)| (name.as_str(), data))
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The string metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The string metadata, to change it.
    pub fn metadata_mut(&mut self) -> &mut BTreeMap<String, String> {
        &mut self.metadata
    }

    /// The tensors of the file that could not be read, by the names that they have there.
    pub fn unreadable(&self) -> &[Unreadable] {
        &self.unreadable
    }

    /// Refuses tensors of the file that could not be read, as far as their names are wanted, see
    /// [`WeightsFile::check_readable`].
    ///
    /// # Errors
    /// [`WeightsError::Unreadable`] with the first of them.
    pub fn check_readable(&self, wanted: impl FnMut(&str) -> bool) -> Result<(), WeightsError> {
        check_readable(self.origin(), &self.unreadable, wanted)
    }

    /// The file that the tensors were read from.
    pub fn origin(&self) -> Option<&Path> {
        self.origin.as_deref()
    }
}

impl IntoIterator for NamedTensors {
    type Item = (String, TensorData);
    type IntoIter = btree_map::IntoIter<String, TensorData>;

    fn into_iter(self) -> Self::IntoIter {
        self.tensors.into_iter()
    }
}

/// Equality of names, shapes, element types, bytes and metadata; not of the file of origin, nor of
/// what could not be read there.
impl PartialEq for NamedTensors {
    fn eq(&self, other: &Self) -> bool {
        let Self { tensors, metadata, unreadable: _, origin: _ } = self;
        tensors == &other.tensors && metadata == &other.metadata
    }
}

/// Names, element types and shapes, never the values.
impl fmt::Debug for NamedTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = |data: &TensorData| format!("{} {:?}", data.dtype.name(), &data.shape[..]);
        f.debug_map().entries(self.iter().map(|(name, data)| (name, summary(data)))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> NamedTensors {
        let mut tensors = NamedTensors::new();
        for name in names {
            tensors.insert(*name, TensorData::from([1f32]));
        }
        tensors
    }

    #[test]
    fn what_lies_below_a_root_is_kept() {
        let names = |tensors: NamedTensors| tensors.names().map(String::from).collect::<Vec<_>>();
        let all = ["model", "modeling.b", "t.v.a", "t.v.b.c"];
        assert_eq!(names(named(&all).below("t.v")), ["a", "b.c"]);
        assert_eq!(names(named(&all).below("")), all);
        assert_eq!(names(named(&all).below("model")), [""; 0]);
    }

    #[test]
    #[should_panic(expected = "tensor a: bytes do not match")]
    fn a_tensor_of_the_wrong_length_is_not_inserted() {
        let mut data = TensorData::from([1f32, 2.0]);
        data.shape = [3].into();
        named(&[]).insert("a", data);
    }

    #[test]
    fn debug_shows_shapes_and_no_values() {
        assert_eq!(format!("{:?}", named(&["a"])), r#"{"a": "f32 [1]"}"#);
    }
}
