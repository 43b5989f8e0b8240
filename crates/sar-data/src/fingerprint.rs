//! What identifies a data set without a look at its pixels.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DataError, Dataset};

/// The most parts that are told apart; of so many images each is one.
const MAX_PARTS: usize = 1024;

/// How many names a message says.
const NAMED: usize = 3;

/// How many images and classes a data set has, and a hash of the names, labels and stored sizes of
/// its images, its class names and its split.
///
/// It does not change when the images move to another folder, nor when one is replaced by another
/// of the same size in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Number of images.
    pub images: usize,
    /// Number of classes.
    pub classes: usize,
    /// FNV-1a of all that, 128 bits as hexadecimal digits.
    pub hash: String,
    /// Runs of consecutive images, all of the same length but the last, to say what has changed;
    /// none in files of before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

/// Some consecutive images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The name of the first.
    pub first: String,
    /// A hash of their names and labels.
    pub names: u32,
    /// A hash of their sizes.
    pub sizes: u32,
}

impl Fingerprint {
    /// The fingerprint of a data set.
    pub fn of(dataset: &dyn Dataset) -> Self {
        Self::with_sizes(dataset, |i| dataset.stored_bytes(i))
    }

    /// The fingerprint of a data set whose images would take these bytes.
    pub(crate) fn with_sizes(dataset: &dyn Dataset, bytes: impl Fn(usize) -> u64) -> Self {
        let mut hash = Fnv::new();
        for class in dataset.classes() {
            hash.text(class);
        }
        let mut parts = Vec::new();
        let all = dataset.len();
        for start in (0..all).step_by(part_length(all)) {
            let (mut names, mut sizes) = (Fnv::new(), Fnv::new());
            for i in start..all.min(start + part_length(all)) {
                let (name, label, bytes) = (dataset.name(i), dataset.label(i) as u64, bytes(i));
                for hash in [&mut hash, &mut names] {
                    hash.text(&name);
                    hash.number(label);
                }
                for hash in [&mut hash, &mut sizes] {
                    hash.number(bytes);
                }
            }
            let (first, names, sizes) = (dataset.name(start), names.short(), sizes.short());
            parts.push(Part { first, names, sizes });
        }
        for i in dataset.split().held_out {
            hash.number(i as u64);
        }
        let classes = dataset.classes().len();
        Self { images: all, classes, hash: format!("{:032x}", hash.0), parts }
    }

    /// Checks that these are the images that a run started with.
    ///
    /// # Errors
    /// [`DataError::Changed`], which says what differs.
    pub fn check_same_as(&self, theirs: &Self) -> Result<(), DataError> {
        let Self { images, classes, hash, parts: _ } = self;
        if (images, classes, hash) == (&theirs.images, &theirs.classes, &theirs.hash) {
            return Ok(());
        }
        Err(DataError::Changed { difference: theirs.difference(self) })
    }

    /// In words, what the images are now and what they were.
    fn difference(&self, now: &Self) -> String {
        let numbers = if (self.images, self.classes) == (now.images, now.classes) {
            None
        } else {
            Some(format!("{now}, but {self} when the run started"))
        };
        let detail = if self.parts.is_empty() || now.parts.is_empty() {
            None
        } else if self.images.max(now.images) <= MAX_PARTS {
            self.changed_images(now)
        } else {
            self.changed_parts(now)
        };
        match (numbers, detail) {
            (Some(numbers), Some(detail)) => format!("{numbers}; {detail}"),
            (Some(text), None) => text,
            (None, Some(detail)) => {
                format!("the images are others than when the run started; {detail}")
            }
            (None, None) if self.parts.is_empty() => {
                "other names, labels or sizes of images than when the run started".into()
            }
            (None, None) => "other class names, or another split, than when the run started".into(),
        }
    }

    /// What has changed, where a part is one image.
    fn changed_images(&self, now: &Self) -> Option<String> {
        let names = |all: &Self| all.parts.iter().map(|part| part.first.clone()).collect();
        let (before, after): (HashSet<String>, HashSet<String>) = (names(self), names(now));
        let without = |these: &Self, others: &HashSet<String>| {
            let names = these.parts.iter().map(|part| &part.first);
            names.filter(|name| !others.contains(*name)).cloned().collect::<Vec<_>>()
        };
        let mut changes = Vec::new();
        let mut say = |what: &str, names: Vec<String>| {
            if !names.is_empty() {
                changes.push(format!("{what}: {}", listed(&names)));
            }
        };
        say("gone", without(self, &after));
        say("new", without(now, &before));
        let old: HashMap<&str, &Part> =
            self.parts.iter().map(|part| (part.first.as_str(), part)).collect();
        let differs = |differ: fn(&Part, &Part) -> bool| {
            let known = now.parts.iter().filter_map(|part| Some((part, *old.get(&*part.first)?)));
            known.filter(|(a, b)| differ(a, b)).map(|(part, _)| part.first.clone()).collect()
        };
        say("with another label", differs(|a, b| a.names != b.names));
        say("of another size", differs(|a, b| a.sizes != b.sizes));
        let moved = || now.parts.iter().zip(&self.parts).find(|(a, b)| a.first != b.first);
        if changes.is_empty() {
            return moved().map(|(now, _)| format!("in another order from {} on", now.first));
        }
        Some(changes.join("; "))
    }

    /// Where the first change is, where a part is many images.
    fn changed_parts(&self, now: &Self) -> Option<String> {
        let length = part_length(now.images);
        if part_length(self.images) != length {
            return None;
        }
        let place = self.parts.iter().zip(&now.parts).position(|(a, b)| a != b);
        let place = place.unwrap_or(self.parts.len().min(now.parts.len()));
        let (old, new) = (self.parts.get(place)?, now.parts.get(place)?);
        let what = if old.names == new.names { "sizes" } else { "names or labels" };
        Some(format!("the first other {what} are among the {length} images from {} on", new.first))
    }
}

/// How many images a part has.
fn part_length(images: usize) -> usize {
    images.div_ceil(MAX_PARTS).max(1)
}

fn listed(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    let more = names.len() - first.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    first.join(", ") + &more
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images of {} classes", self.images, self.classes)
    }
}

/// FNV-1a with 128 bits (Fowler, Noll, Vo): good against accidents, no protection from malice.
struct Fnv(u128);

impl Fnv {
    fn new() -> Self {
        Self(0x6C62_272E_07BB_0142_62B8_2175_6295_C58D)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul((1 << 88) + 0x13B);
        }
    }

    /// 32 bits of it.
    fn short(&self) -> u32 {
        (self.0 ^ (self.0 >> 64)) as u32
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    /// The length first, so that no two lists of texts are the same bytes.
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;

    #[test]
    fn the_hash_is_the_published_one() {
        let hash = |text: &[u8]| {
            let mut hash = Fnv::new();
            hash.bytes(text);
            hash.0
        };
        assert_eq!(hash(b"a"), 0xD228_CB69_6F1A_8CAF_7891_2B70_4E4A_8964);
        assert_eq!(hash(b"foobar"), 0x343E_1662_793C_64BF_6F0D_3597_BA44_6F18);
    }

    #[test]
    fn whatever_changes_changes_it_and_is_said() {
        let start = Memory::numbered(12, 3);
        let of = |dataset: &Memory| Fingerprint::of(dataset);
        assert_eq!(of(&start), of(&Memory::numbered(12, 3)));
        let mut changed = [start.clone(), start.clone(), start.clone(), start.clone()];
        changed[0].names[4] = "other".into();
        changed[1].labels[4] = (changed[1].labels[4] + 1) % 3;
        changed[2].classes[0] = "other".into();
        changed[3].bytes[4] += 1;
        let difference =
            |dataset: &Memory| of(dataset).check_same_as(&of(&start)).unwrap_err().to_string();
        let others = "data.source: the images are others than when the run started; ";
        for (dataset, expected) in changed.iter().zip([
            format!("{others}gone: image 4; new: other; put"),
            format!("{others}with another label: image 4; put"),
            "data.source: other class names, or another split, than when".into(),
            format!("{others}of another size: image 4; put"),
        ]) {
            let error = difference(dataset);
            assert!(error.starts_with(&expected), "{error}");
        }
        let mut swapped = start.clone();
        swapped.names.swap(2, 5);
        assert!(difference(&swapped).contains("in another order from image 5 on"));
        let expected = "data.source: 8 images of 3 classes, but 12 images of 3 classes when the run \
                        started; gone: image 8, image 9, image 10 and 1 more; put the images back";
        assert!(difference(&Memory::numbered(8, 3)).starts_with(expected));
        let json = serde_json::to_string(&of(&start)).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), of(&start));
    }

    #[test]
    fn of_many_images_the_part_is_said_and_without_parts_nothing() {
        let start = Memory::numbered(3000, 3);
        let of = |dataset: &Memory| Fingerprint::of(dataset);
        assert_eq!(of(&start).parts.len(), 1000);
        let mut changed = start.clone();
        changed.bytes[7] += 1;
        let error = of(&changed).check_same_as(&of(&start)).unwrap_err().to_string();
        assert!(
            error.contains("the first other sizes are among the 3 images from image 6 on"),
            "{error}"
        );
        changed.names[4] = "other".into();
        let error = of(&changed).check_same_as(&of(&start)).unwrap_err().to_string();
        assert!(
            error
                .contains("the first other names or labels are among the 3 images from image 3 on"),
            "{error}"
        );
        // As files of before have it.
        let Fingerprint { images, classes, hash, .. } = of(&start);
        let json = format!(r#"{{"images": {images}, "classes": {classes}, "hash": "{hash}"}}"#);
        let old: Fingerprint = serde_json::from_str(&json).unwrap();
        of(&start).check_same_as(&old).unwrap();
        let error = of(&changed).check_same_as(&old).unwrap_err().to_string();
        assert!(error.contains("other names, labels or sizes of images than when"), "{error}");
    }
}
