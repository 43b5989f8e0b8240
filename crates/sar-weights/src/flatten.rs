//! The tensors of an interpreted pickle by name: keys and positions joined by dots.

use std::collections::HashSet;

use crate::error::one_line;
use crate::pickle::{Heap, Storage, Value};
use crate::strided::{MAX_RANK, View};

/// How deep tensors may lie. Released checkpoints nest three dictionaries.
const MAX_DEPTH: usize = 64;
/// The most values that are looked at. A container that is shared many times counts every time.
const MAX_VISITS: usize = 1 << 20;
/// The longest name of a tensor, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 1024;
/// The most tensors. With the bounds of names and ranks this bounds the memory of the listing.
const MAX_TENSORS: usize = 1 << 16;

/// A tensor of the pickle: which elements of which storage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredTensor<'a> {
    pub(crate) name: String,
    pub(crate) storage: Storage<'a>,
    pub(crate) view: View,
}

/// Lists every tensor that a path of string and integer keys leads to; everything else is passed
/// over, and so is a container inside of itself.
///
/// # Errors
/// What is wrong with which tensor, or which bound is exceeded.
pub(crate) fn named_tensors<'a>(
    heap: &Heap<'a>,
    root: Value<'a>,
) -> Result<Vec<StoredTensor<'a>>, String> {
    let mut walk = Walk {
        heap,
        name: String::new(),
        open: Vec::new(),
        n_visits: 0,
        taken: HashSet::new(),
        found: Vec::new(),
    };
    // A tensor that lies nowhere has no name.
    if !matches!(root, Value::Tensor(_)) {
        walk.visit(root)?;
    }
    Ok(walk.found)
}

struct Walk<'h, 'a> {
    heap: &'h Heap<'a>,
    /// The name of the value that is being visited.
    name: String,
    /// The containers that the value lies in.
    open: Vec<Value<'a>>,
    n_visits: usize,
    taken: HashSet<String>,
    found: Vec<StoredTensor<'a>>,
}

impl<'a> Walk<'_, 'a> {
    fn visit(&mut self, value: Value<'a>) -> Result<(), String> {
        self.n_visits += 1;
        if self.n_visits > MAX_VISITS {
            return Err(format!("it nests more than {MAX_VISITS} values"));
        }
        match value {
            Value::Tensor(tensor) => return self.take(tensor),
            Value::Sequence(_) | Value::Dict(_) if !self.open.contains(&value) => {}
            _ => return Ok(()),
        }
        if self.open.len() == MAX_DEPTH {
            return Err(format!("it nests deeper than {MAX_DEPTH} containers"));
        }
        self.open.push(value);
        let heap = self.heap;
        match value {
            Value::Sequence(items) => {
                for (position, &item) in heap.sequences[items].iter().enumerate() {
                    self.visit_below(&position.to_string(), item)?;
                }
            }
            Value::Dict(items) => {
                for &(key, item) in &heap.dicts[items] {
                    match key {
                        Value::Str(key) => self.visit_below(key, item)?,
                        Value::Int(key) => self.visit_below(&key.to_string(), item)?,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        self.open.pop();
        Ok(())
    }

    fn visit_below(&mut self, part: &str, item: Value<'a>) -> Result<(), String> {
        if !matches!(item, Value::Tensor(_) | Value::Sequence(_) | Value::Dict(_)) {
            return Ok(());
        }
        let length = self.name.len();
        if length + part.len() + 1 > MAX_NAME_BYTES {
            return Err(format!("a name is longer than {MAX_NAME_BYTES} bytes"));
        }
        if self.open.len() > 1 {
            self.name.push('.');
        }
        self.name.push_str(part);
        self.visit(item)?;
        self.name.truncate(length);
        Ok(())
    }

    fn take(&mut self, tensor: usize) -> Result<(), String> {
        if self.found.len() == MAX_TENSORS {
            return Err(format!("it holds more than {MAX_TENSORS} tensors"));
        }
        let rebuilt = self.heap.tensors[tensor];
        let storage = self.heap.storages[rebuilt.storage];
        let tensor = || format!("tensor {}", one_line(&self.name));

        let bad = |what: &str| format!("{} has {what}", tensor());
        let sides = self.sides(rebuilt.sizes).ok_or_else(|| bad("sizes that are no sizes"))?;
        let strides = self.sides(rebuilt.strides).ok_or_else(|| bad("strides that are none"))?;
        if sides.len() != strides.len() || sides.len() > MAX_RANK {
            return Err(bad(&format!("{} sizes and {} strides", sides.len(), strides.len())));
        }
        let offset = usize::try_from(rebuilt.offset).map_err(|_| bad("a negative offset"))?;
        let view = View { offset, shape: sides, strides };
        let len = usize::try_from(storage.len).map_err(|_| bad("a storage of negative length"))?;
        if view.n_elements().is_none() || view.end().is_none_or(|end| end > len) {
            let View { offset, shape, strides } = view;
            return Err(bad(&format!(
                "sizes {shape:?}, strides {strides:?} and offset {offset}, beyond its storage of {len} elements"
            )));
        }
        if !self.taken.insert(self.name.clone()) {
            return Err(format!("two tensors have the name {}", one_line(&self.name)));
        }
        self.found.push(StoredTensor { name: self.name.clone(), storage, view });
        Ok(())
    }

    fn sides(&self, sequence: usize) -> Option<Vec<usize>> {
        let side = |value: &Value| match value {
            Value::Int(side) => usize::try_from(*side).ok(),
            _ => None,
        };
        let items = &self.heap.sequences[sequence];
        if items.len() > MAX_RANK {
            return None;
        }
        items.iter().map(side).collect()
    }
}
