//! Where a recipe's images come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{DataError, Dataset, Emoji, ImageFolder};

/// A set of images as a recipe names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageSource {
    /// The embedded emoji.
    Emoji {},
    /// A folder of class folders.
    Folder {
        /// Its root; relative paths start at the working directory.
        path: PathBuf,
    },
}

impl ImageSource {
    /// Opens the images at a side in pixels.
    ///
    /// # Errors
    /// As [`Emoji::new`] and [`ImageFolder::open`].
    pub fn open(&self, side: u32) -> Result<Box<dyn Dataset>, DataError> {
        Ok(match self {
            Self::Emoji {} => Box::new(Emoji::new(side)?),
            Self::Folder { path } => Box::new(ImageFolder::open(path, side)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_name_a_source_and_only_its_fields() {
        let parse = |json: &str| serde_json::from_str::<ImageSource>(json);
        assert_eq!(parse(r#"{"kind": "emoji"}"#).unwrap(), ImageSource::Emoji {});
        let folder = ImageSource::Folder { path: "photos".into() };
        assert_eq!(parse(r#"{"kind": "folder", "path": "photos"}"#).unwrap(), folder);
        assert_eq!(parse(&serde_json::to_string(&folder).unwrap()).unwrap(), folder);
        for wrong in [
            r#"{"kind": "emoji", "path": "photos"}"#,
            r#"{"kind": "folder"}"#,
            r#"{"kind": "folder", "path": "photos", "side": 32}"#,
            r#"{"kind": "tar", "path": "photos"}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn opening_gives_images_of_the_side_or_the_reason() {
        let emoji = ImageSource::Emoji {}.open(16).unwrap();
        assert_eq!(emoji.image(7).unwrap().dimensions(), (16, 16));
        let missing = ImageSource::Folder { path: "no/such/folder".into() };
        let Err(error) = missing.open(16) else { panic!("opened") };
        assert!(error.to_string().starts_with("no/such/folder: no such folder"), "{error}");
    }
}
