//! Tensors by name, as a file of weights holds them.

use std::borrow::Cow;
use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;

use crate::error::WeightsError;
use crate::file::{Format, Target, TensorInfo, WeightsFile, write_weights};

/// Tensors by name, with the string metadata of their file.
///
/// Every tensor is contiguous and row-major, whatever strides it was stored with, and keeps the
/// element type of the file. Iteration is in the order of the names.
#[derive(Clone, Default)]
pub struct NamedTensors {
    tensors: BTreeMap<String, TensorData>,
    metadata: BTreeMap<String, String>,
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
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self { tensors, metadata, origin: Some(origin) }
    }

    /// Reads a file of either format, told apart by its content and never by its name.
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
                reason: "a PyTorch zip file, where a safetensors file is needed".into(),
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

    /// Keeps what lies under the first of the roots under which anything lies, without the root
    /// and its dot, and drops the rest; changes nothing where none of them is there.
    ///
    /// Released training checkpoints hold the model beside the optimizer and other state, say
    /// under `trainer.var_wo_ddp`.
    pub fn unwrap_root(mut self, roots: &[&str]) -> Self {
        let below = |name: &str, root: &str| {
            name.strip_prefix(root)?.strip_prefix('.').map(ToOwned::to_owned)
        };
        let found = roots.iter().find(|root| self.names().any(|name| below(name, root).is_some()));
        if let Some(root) = found {
            self.tensors = std::mem::take(&mut self.tensors)
                .into_iter()
                .filter_map(|(name, data)| Some((below(&name, root)?, data)))
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

/// Equality of names, shapes, element types, bytes and metadata; not of the file of origin.
impl PartialEq for NamedTensors {
    fn eq(&self, other: &Self) -> bool {
        let Self { tensors, metadata, origin: _ } = self;
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
    fn the_first_root_with_anything_below_it_is_unwrapped() {
        let check = |names: &[&str], roots: &[&str], expected: &[&str]| {
            let unwrapped = named(names).unwrap_root(roots);
            assert_eq!(unwrapped.names().collect::<Vec<_>>(), expected);
        };
        check(&["t.v.a", "t.v.b.c", "t.o.a"], &["model", "t.v"], &["a", "b.c"]);
        check(&["a", "model.b"], &["t.v", "model"], &["b"]);
        check(&["a", "b"], &["model"], &["a", "b"]);
        check(&["model", "modelling.b"], &["model"], &["model", "modelling.b"]);
        check(&["a.x", "b.x", "b.y"], &["b", "a"], &["x", "y"]);
        check(&[], &["model"], &[]);
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
