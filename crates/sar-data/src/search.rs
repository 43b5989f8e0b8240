//! Who looks for the images of a source.

use std::path::{Path, PathBuf};

use crate::{DataError, ShardIndex};

/// Who looks for the images of a source: a closure, which hears of all that is looked at, or one of several processes
/// that share the work.
pub trait Search {
    /// A file, a line or a member is looked at: of a million, that takes a while.
    fn looked(&self);

    /// Takes the index of each tar file, in their order; `index` looks into one. Those that share the work look into
    /// some each, and take all.
    ///
    /// # Errors
    /// That of the first file that cannot be used; [`DataError::Search`] where the others cannot go on.
    fn indices(
        &self,
        files: &[PathBuf],
        index: &mut dyn FnMut(&Path) -> Result<ShardIndex, DataError>,
        take: &mut dyn FnMut(ShardIndex),
    ) -> Result<(), DataError> {
        for file in files {
            take(index(file)?);
        }
        Ok(())
    }
}

impl<F: Fn()> Search for F {
    fn looked(&self) {
        self();
    }
}
