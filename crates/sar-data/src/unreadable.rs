//! The images of a run that were found unreadable.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::put_back::PutBack;
use crate::{DataError, Dataset};

/// How many unreadable images an error names.
const NAMED: usize = 3;

/// An image that a run found unreadable, as it was when the run started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct UnreadableImage {
    /// Its place in the data set.
    pub index: usize,
    /// Its name there.
    pub name: String,
    /// Its class.
    pub label: usize,
    /// Whether a source with a split of its own holds it out.
    pub held_out: bool,
    /// Its size as it was stored.
    pub bytes: u64,
}

/// An image that was found unreadable, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FoundUnreadable {
    /// Its place in the data set.
    pub index: usize,
    /// What it is called.
    pub image: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What was found so far.
pub(crate) struct Unreadable {
    /// All images, and how many of them may be unreadable.
    total: usize,
    allowed: usize,
    indices: BTreeSet<usize>,
    /// The first of them with their reasons.
    named: Vec<String>,
    /// What nobody was told yet.
    warnings: Vec<String>,
    /// What no other process was told yet.
    found: Vec<FoundUnreadable>,
}

impl Unreadable {
    pub(crate) fn new(total: usize, allowed: usize) -> Self {
        let (named, warnings, found) = Default::default();
        Self { total, allowed, indices: BTreeSet::new(), named, warnings, found }
    }

    /// Takes down images that could not be read, each with a warning.
    ///
    /// # Errors
    /// [`DataError::TooManyUnreadable`] if there are more than are allowed.
    pub(crate) fn take_down(
        &mut self,
        passed_over: Vec<(usize, DataError)>,
    ) -> Result<(), DataError> {
        let Self { total, allowed, .. } = *self;
        for (index, error) in passed_over {
            if !self.indices.insert(index) {
                continue;
            }
            let found = self.indices.len();
            if found <= NAMED {
                self.named.push(name(&error));
            }
            let (image, reason) = match &error {
                DataError::Unreadable { image, reason } => (image.clone(), reason.clone()),
                other => (format!("image {index}"), other.to_string()),
            };
            self.found.push(FoundUnreadable { index, image, reason });
            self.warnings.push(format!(
                "{error}; the next image takes its place ({found} of {total} unreadable, {allowed} allowed)"
            ));
        }
        self.check()
    }

    /// Takes down the images that are missing or empty, with one note for all of them.
    ///
    /// # Errors
    /// As [`take_down`](Self::take_down).
    pub(crate) fn take_down_missing(
        &mut self,
        dataset: &PutBack,
    ) -> Result<Option<String>, DataError> {
        let is_missing = |i: &usize| dataset.stored_bytes(*i) == 0 && !dataset.is_removed(*i);
        for i in (0..dataset.len()).filter(is_missing) {
            self.indices.insert(i);
            if self.named.len() < NAMED {
                let reason = dataset.image(i).err().map(|error| name(&error));
                self.named.push(reason.unwrap_or_else(|| dataset.describe(i)));
            }
        }
        self.check()?;
        let missing = self.indices.len();
        Ok((missing > 0).then(|| {
            format!(
                "data.source: {missing} of {} images are missing or empty and will be passed over: {}",
                self.total,
                list(&self.named, missing)
            )
        }))
    }

    fn check(&self) -> Result<(), DataError> {
        let &Self { total, allowed, .. } = self;
        let found = self.indices.len();
        if found > allowed {
            let named = list(&self.named, found);
            return Err(DataError::TooManyUnreadable { found, total, allowed, named });
        }
        Ok(())
    }

    /// Which they are, in the order of the data set.
    pub(crate) fn indices(&self) -> impl Iterator<Item = usize> {
        self.indices.iter().copied()
    }

    /// What was found since the last call.
    pub(crate) fn take_found(&mut self) -> Vec<FoundUnreadable> {
        std::mem::take(&mut self.found)
    }

    /// Puts back what [`take_found`](Self::take_found) gave.
    pub(crate) fn keep_found(&mut self, found: Vec<FoundUnreadable>) {
        self.found = found;
    }

    /// The warnings since the last call.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

/// What is unreadable, and why.
pub(crate) fn name(error: &DataError) -> String {
    match error {
        DataError::Unreadable { image, reason } => format!("{image} ({reason})"),
        other => other.to_string(),
    }
}

/// The first of so many names.
pub(crate) fn list(names: &[String], total: usize) -> String {
    let named: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    let more = if total > named.len() { ", ..." } else { "" };
    named.join(", ") + more
}
