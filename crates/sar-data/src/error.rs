//! What can be wrong with a user's images, folders, class names or augmentation settings.

use std::path::PathBuf;

/// A one-line message: the path or field, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A data set was asked for images of a side that it cannot give.
    #[error("side {side}: {source_name} images have {allowed}; choose such a side")]
    Side {
        /// The side asked for, in pixels.
        side: usize,
        /// Which kind of images, e.g. `"emoji"`.
        source_name: &'static str,
        /// The sides that exist, e.g. `"an even side of 16 to 64 px"`.
        allowed: &'static str,
    },

    /// The root of an image folder does not exist.
    #[error("{}: no such folder; check the path, relative ones start at the working directory", path.display())]
    NoRoot {
        /// The root as given.
        path: PathBuf,
    },

    /// The root of an image folder is a file.
    #[error("{}: not a folder; name the folder that holds one sub-folder per class", path.display())]
    NotAFolder {
        /// The root as given.
        path: PathBuf,
    },

    /// The root of an image folder holds no sub-folder.
    #[error("{}: no class folders; put the images into one sub-folder per class", path.display())]
    NoClassFolders {
        /// The root as given.
        path: PathBuf,
    },

    /// A class folder holds no image.
    #[error("{}: no images in this class folder; add png, jpg, jpeg or webp files or remove the folder", path.display())]
    EmptyClass {
        /// The class folder.
        path: PathBuf,
    },

    /// A class folder whose name cannot be a class name.
    #[error("{}: the folder's name is not valid UTF-8; rename it", path.display())]
    ClassName {
        /// The class folder.
        path: PathBuf,
    },

    /// The file system refused a folder or a file.
    #[error("{}: cannot be read ({reason}); check that it exists and its permissions", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The operating system's message.
        reason: String,
    },

    /// A file that is not a whole image of a known format.
    #[error("{}: not a readable image ({reason}); replace or remove the file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The decoder's message.
        reason: String,
    },

    /// Too few images to hold any out.
    #[error(
        "data.source: {found} images; add some: every tenth is held out, and at least one of each is needed"
    )]
    TooFew {
        /// How many there are.
        found: usize,
    },

    /// No class has this name.
    #[error("{}no class '{query}'; nearest: {nearest}; known: 0..{last}", field_prefix(field))]
    UnknownClass {
        /// The recipe field that holds the name, if it comes from one.
        field: Option<&'static str>,
        /// The name asked for.
        query: String,
        /// The nearest names, quoted, with commas.
        nearest: String,
        /// The last class index.
        last: usize,
    },

    /// No class has this index.
    #[error("no class {query}; known: 0..{last}, or a class name")]
    ClassIndex {
        /// The index asked for, as written.
        query: String,
        /// The last class index.
        last: usize,
    },

    /// Several classes match equally well.
    #[error("class '{query}' is ambiguous: {candidates}; write more of the name, or its index")]
    AmbiguousClass {
        /// The name asked for.
        query: String,
        /// The classes that match, quoted, with indices and commas.
        candidates: String,
    },

    /// An augmentation setting is outside its range.
    #[error("augmentation.{field}: {value} is out of range; choose {allowed}")]
    Augmentation {
        /// The field of [`Augmentation`](crate::Augmentation).
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

fn field_prefix(field: &Option<&'static str>) -> String {
    field.map_or(String::new(), |name| format!("{name}: "))
}
