//! What identifies a data set without a look at its pixels.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{DataError, Dataset};

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
}

impl Fingerprint {
    /// The fingerprint of a data set.
    pub fn of(dataset: &dyn Dataset) -> Self {
        let mut hash = Fnv::new();
        for class in dataset.classes() {
            hash.text(class);
        }
        for i in 0..dataset.len() {
            hash.text(&dataset.name(i));
            hash.number(dataset.label(i) as u64);
            hash.number(dataset.stored_bytes(i));
        }
        for i in dataset.split().held_out {
            hash.number(i as u64);
        }
        let (images, classes) = (dataset.len(), dataset.classes().len());
        Self { images, classes, hash: format!("{:032x}", hash.0) }
    }

    /// Checks that these are the images that a run started with.
    ///
    /// # Errors
    /// [`DataError::Changed`], which says what differs.
    pub fn check_same_as(&self, theirs: &Self) -> Result<(), DataError> {
        if self == theirs {
            return Ok(());
        }
        Err(DataError::Changed { theirs: theirs.clone(), ours: self.clone() })
    }

    /// In words, what the images are now and what they were.
    pub(crate) fn difference(&self, now: &Self) -> String {
        if (self.images, self.classes) == (now.images, now.classes) {
            "other names, labels or sizes of images than when the run started".into()
        } else {
            format!("{now}, but {self} when the run started")
        }
    }
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
        for dataset in &changed {
            let error = of(dataset).check_same_as(&of(&start)).unwrap_err().to_string();
            assert!(error.contains("other names, labels or sizes"), "{error}");
        }
        let error = of(&Memory::numbered(11, 3)).check_same_as(&of(&start)).unwrap_err();
        let expected = "data.source: 11 images of 3 classes, but 12 images of 3 classes when the \
                        run started; put the images back as they were, or start a new run";
        assert_eq!(error.to_string(), expected);
        let json = serde_json::to_string(&of(&start)).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).unwrap(), of(&start));
    }
}
