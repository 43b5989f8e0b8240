//! What can be wrong with a user's images, labels, class names or data settings.

use std::path::PathBuf;

/// A one-line message: the path or field, what is wrong, what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A data set was asked for images of a side that it cannot give.
    #[error("side {side}: {source_name} images have {allowed}; choose such a side")]
    Side {
        /// The side asked for, in pixels.
        side: usize,
        /// Which kind of images, e.g. `"emoji"`.
        source_name: &'static str,
        /// The sides that exist, e.g. `"a side of 1 to 64 px"`.
        allowed: &'static str,
    },

    /// The root of an image folder does not exist.
    #[error("{}: no such folder; check the path, relative ones start at the working directory", path.display())]
    NoRoot {
        /// The root as given.
        path: PathBuf,
    },

    /// The root of an image folder is a file.
    #[error("{}: not a folder; name the folder that holds the images or one sub-folder per class", path.display())]
    NotAFolder {
        /// The root as given.
        path: PathBuf,
    },

    /// A folder holds neither images nor folders of images.
    #[error(
        "{}: no images in this folder{}; add PNG, JPEG, WebP, TIFF, BMP or GIF files, or one sub-folder of them per class",
        path.display(), after_comma(left_out)
    )]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// What it holds instead, counted.
        left_out: Option<String>,
    },

    /// Shards hold no sample that has an image.
    #[error("data.source.shards: no sample with an image{}; {remedy}", after_comma(left_out))]
    NoSamples {
        /// What they hold instead, counted.
        left_out: Option<String>,
        /// What to do.
        remedy: &'static str,
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

    /// A file that lists or holds images is not in its format.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// Where in it, what is wrong and what to do.
        problem: String,
    },

    /// A label is no class.
    #[error("{at}: label '{label}' {problem}")]
    Label {
        /// Where it is written: a file and a line, or a shard and a sample.
        at: String,
        /// The label as written.
        label: String,
        /// What is wrong and what to do.
        problem: String,
    },

    /// An image that is missing, truncated, or not an image of a known format.
    #[error("{image}: not a readable image ({reason}); replace or remove it")]
    Unreadable {
        /// Which: a file, or a place in one.
        image: String,
        /// The system's or decoder's message.
        reason: String,
    },

    /// More images are unreadable than the recipe allows.
    #[error(
        "data.max_unreadable: {found} of {total} images cannot be read, {allowed} may be: {named}; replace or remove them, or raise data.max_unreadable"
    )]
    TooManyUnreadable {
        /// Different unreadable images found so far.
        found: usize,
        /// All images.
        total: usize,
        /// How many of them may be unreadable.
        allowed: usize,
        /// The first of them with their reasons.
        named: String,
    },

    /// No image of a split can be read.
    #[error("data.source: none of the {total} {split} images can be read: {named}; replace them")]
    NoneReadable {
        /// Which split.
        split: &'static str,
        /// Its images.
        total: usize,
        /// The first of them with their reasons.
        named: String,
    },

    /// An image is not of the side that the recipe states, and is not to be cropped to it.
    #[error(
        "{image}: is {width}x{height} px, not {side}x{side} as data.side says; choose another data.crop than 'exact', or another side"
    )]
    WrongSize {
        /// Which image.
        image: String,
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
        /// The side that the recipe states.
        side: u32,
    },

    /// Too few images to hold any out.
    #[error(
        "data.source: {found} images; add some: every tenth is held out, and at least one of each is needed"
    )]
    TooFew {
        /// How many there are.
        found: usize,
    },

    /// The images are not those that a run started with.
    #[error(
        "data.source: {difference}; put the images back as they were, or start a new run (only images that the run found unreadable may be replaced or removed)"
    )]
    Changed {
        /// What is other than when the run started.
        difference: String,
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

    /// Those that share the search for images cannot go on.
    #[error("{why}")]
    Search {
        /// Their own words.
        why: String,
    },

    /// A setting is outside its range.
    #[error("{field}: {value} is out of range; choose {allowed}")]
    Setting {
        /// The recipe field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        allowed: &'static str,
    },
}

impl DataError {
    /// The file system's refusal of a path.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, reason: error.to_string() }
    }
}

fn after_comma(text: &Option<String>) -> String {
    text.as_ref().map_or(String::new(), |text| format!(", {text}"))
}

fn field_prefix(field: &Option<&'static str>) -> String {
    field.map_or(String::new(), |name| format!("{name}: "))
}
