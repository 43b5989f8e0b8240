//! Where weights come from: files, or the program itself, which carries small weights of the emoji.

use std::path::{Path, PathBuf};

use sar_emoji_weights::{BACKBONE, TOKENIZER};
use sar_weights::{WeightsError, WeightsFile};

/// Weights that are not read yet.
pub(crate) enum WeightsSource {
    /// In a file, of any format.
    File(PathBuf),
    /// In the program.
    InTheBox {
        /// What messages name them by.
        name: &'static str,
        bytes: &'static [u8],
    },
}

impl WeightsSource {
    /// The tokenizer that comes along.
    pub(crate) const TOKENIZER: Self =
        Self::InTheBox { name: "emoji/tokenizer.safetensors", bytes: TOKENIZER };
    /// The backbone that comes along.
    pub(crate) const BACKBONE: Self =
        Self::InTheBox { name: "emoji/backbone-sar.safetensors", bytes: BACKBONE };

    /// The recipe that they are of.
    pub(crate) const RECIPE: &str = "emoji";

    pub(crate) fn open(&self) -> Result<WeightsFile, WeightsError> {
        match self {
            Self::File(path) => WeightsFile::open(path),
            Self::InTheBox { name, bytes } => WeightsFile::from_bytes(name, bytes.to_vec()),
        }
    }

    /// The file, or the name that stands for it.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::InTheBox { name, .. } => Path::new(name),
        }
    }
}

impl From<PathBuf> for WeightsSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}
