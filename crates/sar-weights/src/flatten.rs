//! The tensors of an interpreted pickle by name: keys and positions joined by dots.

use std::collections::HashSet;

use burn::tensor::DType;

use crate::error::one_line;
use crate::pickle::{Foreign, Heap, Value};
use crate::strided::{MAX_RANK, View};
use crate::unreadable::Unreadable;

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
    /// The key of the storage.
    pub(crate) key: &'a str,
    pub(crate) dtype: DType,
    /// The number of elements of the storage.
    pub(crate) len: usize,
    pub(crate) view: View,
}

/// What a pickle holds under names.
#[derive(Debug, Default)]
pub(crate) struct Named<'a> {
    pub(crate) tensors: Vec<StoredTensor<'a>>,
    /// Sorted by name.
    pub(crate) unreadable: Vec<Unreadable>,
}

/// Lists every tensor that a path of string and integer keys leads to; everything else is passed
/// over, and so is a container inside of itself.
///
/// # Errors
/// What is wrong with which tensor, or which bound is exceeded.
pub(crate) fn named_tensors<'a>(heap: &Heap<'a>, root: Value<'a>) -> Result<Named<'a>, String> {
    let mut walk = Walk {
        heap,
        name: String::new(),
        open: Vec::new(),
        n_visits: 0,
        taken: HashSet::new(),
        found: Named::default(),
    };
    // A tensor that lies nowhere has no name.
    if !matches!(root, Value::Tensor(_) | Value::Foreign(_)) {
        walk.visit(root)?;
    }
    walk.found.unreadable.sort_by(|a, b| a.name.cmp(&b.name));
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
    found: Named<'a>,
}

impl<'a> Walk<'_, 'a> {
    fn visit(&mut self, value: Value<'a>) -> Result<(), String> {
        self.n_visits += 1;
        if self.n_visits > MAX_VISITS {
            return Err(format!("it nests more than {MAX_VISITS} values"));
        }
        match value {
            Value::Tensor(tensor) => return self.take(tensor),
            Value::Foreign(why) => return self.pass_over(why),
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
        let leads_on = matches!(
            item,
            Value::Tensor(_) | Value::Foreign(_) | Value::Sequence(_) | Value::Dict(_)
        );
        if !leads_on {
            return Ok(());
        }
        let length = self.name.len();
        if length + part.len() + 1 > MAX_NAME_BYTES {
            if matches!(item, Value::Foreign(_)) {
                return Ok(());
            }
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
        let rebuilt = self.heap.tensors[tensor];
        let storage = self.heap.storages[rebuilt.storage];
        let tensor = || format!("tensor {}", one_line(&self.name));

        let bad = |what: &str| format!("{} has {what}", tensor());
        let sides = self.sides(rebuilt.sizes).ok_or_else(|| bad("sizes that are not sizes"))?;
        let strides =
            self.sides(rebuilt.strides).ok_or_else(|| bad("strides that are not strides"))?;
        if sides.len() != strides.len() || sides.len() > MAX_RANK {
            return Err(bad(&format!("{} sizes and {} strides", sides.len(), strides.len())));
        }
        let offset = usize::try_from(rebuilt.offset).map_err(|_| bad("a negative offset"))?;
        let len = usize::try_from(storage.len).map_err(|_| bad("a storage of negative length"))?;
        // The elements that belong to the tensor's storage: all of them, or a part.
        let (start, end) = match storage.part {
            None => (0, len),
            Some(part) => {
                part_of(part, len).ok_or_else(|| bad("an impossible part of a storage"))?
            }
        };
        let view = View { offset, shape: sides, strides };
        if view.n_elements().is_none() || view.end().is_none_or(|last| last > end - start) {
            let View { offset, shape, strides } = view;
            let n = end - start;
            return Err(bad(&format!(
                "sizes {shape:?}, strides {strides:?} and offset {offset}, beyond its storage of {n} elements"
            )));
        }
        // An empty tensor may lie beyond the end of its storage.
        let view = View { offset: view.offset.saturating_add(start), ..view };
        self.claim_name()?;
        let (name, key, dtype) = (self.name.clone(), storage.key, rebuilt.dtype);
        self.found.tensors.push(StoredTensor { name, key, dtype, len, view });
        Ok(())
    }

    fn pass_over(&mut self, why: Foreign<'a>) -> Result<(), String> {
        // What is not read does no harm by its name.
        if self.taken.contains(&self.name) {
            return Ok(());
        }
        self.claim_name()?;
        let what = one_line(&why.describe());
        self.found.unreadable.push(Unreadable { name: self.name.clone(), what });
        Ok(())
    }

    fn claim_name(&mut self) -> Result<(), String> {
        if self.taken.len() == MAX_TENSORS {
            return Err(format!("it holds more than {MAX_TENSORS} tensors"));
        }
        if !self.taken.insert(self.name.clone()) {
            return Err(format!("two tensors have the name {}", one_line(&self.name)));
        }
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

/// The first element of a part of a storage of `len` elements, and the one behind its last.
fn part_of((start, n): (i64, i64), len: usize) -> Option<(usize, usize)> {
    let (start, n) = (usize::try_from(start).ok()?, usize::try_from(n).ok()?);
    let end = start.checked_add(n)?;
    (end <= len).then_some((start, end))
}
