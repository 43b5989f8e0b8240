//! The form that `torch.save` wrote before torch 1.6, and still writes on request.
//!
//! Five pickles, one behind the other: a magic number, the version of the protocol, what the machine
//! was like, the object, and the keys of all storages. Then each storage in the order of the
//! keys: the number of its elements as an i64, and the elements, little-endian on every machine. The
//! object refers to storages by key, so that only the last pickle says where they lie; the file
//! carries no checksum.

use std::collections::HashMap;
use std::path::Path;

use super::most_bytes;
use crate::error::{WeightsError, one_line};
use crate::pickle::{Element, Heap, Value, run_first};
use crate::source::Source;

/// The only version of the protocol that there ever was.
const PROTOCOL: i64 = 1001;
/// Bytes of the number of elements in front of each storage.
const COUNT_BYTES: u64 = 8;

/// The pickles of a file, interpreted.
pub(super) struct Pickles<'a> {
    pub(super) heap: Heap<'a>,
    /// The object that was saved.
    pub(super) root: Value<'a>,
    /// The storages in the order in which they lie in the file.
    keys: Vec<&'a str>,
    /// Where the first of them begins.
    end: usize,
}

impl<'a> Pickles<'a> {
    pub(super) fn run(start: &'a [u8], path: &Path) -> Result<Self, WeightsError> {
        let damaged = |reason| WeightsError::Damaged { path: path.into(), reason };
        let mut end = 0;
        let mut next = |what: &str| -> Result<(Heap<'a>, Value<'a>), WeightsError> {
            let (heap, root, n_bytes) = run_first(&start[end..]).map_err(|error| {
                damaged(format!("the pickle of its {what} is broken at {error}"))
            })?;
            end += n_bytes;
            Ok((heap, root))
        };
        next("magic number")?;
        let (_, version) = next("protocol version")?;
        if version != Value::Int(PROTOCOL) {
            return Err(WeightsError::Unsupported {
                path: path.into(),
                reason: format!("its legacy form is not of version {PROTOCOL}"),
                advice: "load it with the torch that wrote it, and save it again with a current one",
            });
        }
        // Numbers are little-endian whatever this says.
        next("machine")?;
        let (heap, root) = next("object")?;
        let (lists, list) = next("list of storages")?;
        let key = |value: &Value<'a>| match value {
            Value::Str(key) => Some(*key),
            _ => None,
        };
        let keys: Option<Vec<&str>> = match list {
            Value::Sequence(list) => lists.sequences[list].iter().map(key).collect(),
            _ => None,
        };
        let keys =
            keys.ok_or_else(|| damaged("its list of storages is not a list of keys".into()))?;
        Ok(Self { heap, root, keys, end })
    }
}

/// An open file whose storages are found.
#[derive(Debug)]
pub(super) struct Legacy {
    source: Source,
    /// Positions in `places` by key.
    numbers: HashMap<String, usize>,
    /// The first byte of each storage, and the number of its bytes.
    places: Vec<(u64, u64)>,
    pub(super) max_bytes: u64,
}

impl Legacy {
    /// Finds the storages, and checks that each has the length that the object says, and that all
    /// of them fill the rest of the file.
    pub(super) fn open(mut source: Source, pickles: &Pickles) -> Result<Self, WeightsError> {
        let (path, file_bytes) = (source.path().to_owned(), source.n_bytes());
        let damaged = |reason| WeightsError::Damaged { path: path.clone(), reason };

        let lengths = lengths(&pickles.heap).map_err(damaged)?;
        let mut numbers = HashMap::with_capacity(pickles.keys.len());
        let mut places = Vec::with_capacity(pickles.keys.len());
        let mut at = pickles.end as u64;
        for &key in &pickles.keys {
            let shown = one_line(key);
            let &(element, len) = lengths
                .get(key)
                .ok_or_else(|| damaged(format!("storage {shown} belongs to nothing")))?;
            if numbers.insert(key.to_owned(), places.len()).is_some() {
                return Err(damaged(format!("storage {shown} is there twice")));
            }
            let start = at + COUNT_BYTES;
            let left = file_bytes
                .checked_sub(start)
                .ok_or_else(|| damaged(format!("it ends before storage {shown}")))?;
            let mut count = [0; COUNT_BYTES as usize];
            source.read_at(at, &mut count)?;
            let count = i64::from_le_bytes(count);
            if count != len {
                let what = format!("storage {shown} has {count} elements and should have {len}");
                return Err(damaged(what));
            }
            let size = element.n_bytes().ok_or_else(|| WeightsError::Unsupported {
                path: path.clone(),
                reason: format!("storage {shown} has elements of an unknown type and size"),
                advice: "save it with torch 1.6 or later, without the legacy serialization",
            })?;
            let n_bytes = u64::try_from(count).ok().and_then(|n| n.checked_mul(size as u64));
            let n_bytes = n_bytes.filter(|n_bytes| *n_bytes <= left).ok_or_else(|| {
                damaged(format!("it ends within storage {shown} of {count} elements"))
            })?;
            places.push((start, n_bytes));
            at = start + n_bytes;
        }
        if at != file_bytes {
            let n = file_bytes - at;
            return Err(damaged(format!("{n} byte(s) follow its last storage")));
        }
        Ok(Self { source, numbers, places, max_bytes: most_bytes(file_bytes) })
    }

    pub(super) fn path(&self) -> &Path {
        self.source.path()
    }

    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.numbers.get(key).copied()
    }

    pub(super) fn read_exact(
        &mut self,
        storage: usize,
        buffer: &mut [u8],
    ) -> Result<(), WeightsError> {
        let (start, n_bytes) = self.places[storage];
        assert_eq!(buffer.len() as u64, n_bytes, "lengths are compared when the file is opened");
        self.source.read_at(start, buffer)
    }
}

/// The type and number of elements of each storage that the object refers to.
fn lengths<'a>(heap: &Heap<'a>) -> Result<HashMap<&'a str, (Element<'a>, i64)>, String> {
    let mut lengths = HashMap::new();
    for storage in &heap.storages {
        let found = (storage.element, storage.len);
        if *lengths.entry(storage.key).or_insert(found) != found {
            return Err(format!("storage {} has two types or lengths", one_line(storage.key)));
        }
    }
    Ok(lengths)
}
