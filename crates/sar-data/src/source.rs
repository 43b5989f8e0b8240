//! Where a recipe's images come from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Cifar10, DataError, Dataset, Emoji, ImageFolder, ImageList, Search, Shards};

/// A set of images as a recipe names it; relative paths start at the working directory.
///
/// Held-out images are every tenth, unless the source has some of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ImageSource {
    /// The embedded emoji, reduced to the side.
    Emoji {},
    /// A folder of class folders, or of images of one class; or of `train` and `val` folders of these.
    Folder {
        /// Its root.
        path: PathBuf,
        /// Such a folder of the images that are held out.
        #[serde(skip_serializing_if = "Option::is_none")]
        held_out: Option<HeldOutFolder>,
    },
    /// A text file of `path label` lines, or a `.csv` file; a label is an index or a name.
    List {
        /// The list.
        path: PathBuf,
        /// What the paths in it are relative to.
        root: PathBuf,
        /// Another such list, of the images that are held out.
        #[serde(skip_serializing_if = "Option::is_none")]
        held_out: Option<PathBuf>,
        /// A file of class names, one per line, in the order of the indices.
        #[serde(skip_serializing_if = "Option::is_none")]
        labels: Option<PathBuf>,
    },
    /// CIFAR-10's binary version; its test batch is held out.
    Cifar10 {
        /// The folder with the batches.
        path: PathBuf,
    },
    /// Tar shards with samples of an image and a label.
    Webdataset {
        /// Tar files, many of them by braces as in `{000000..000127}`, or folders of them.
        shards: Vec<PathBuf>,
        /// The same of the images that are held out.
        #[serde(skip_serializing_if = "Option::is_none")]
        held_out: Option<Vec<PathBuf>>,
        /// A file of class names, one per line, in the order of the indices.
        #[serde(skip_serializing_if = "Option::is_none")]
        labels: Option<PathBuf>,
    },
}

/// A folder of held-out images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutFolder {
    /// Its root.
    pub path: PathBuf,
}

impl ImageSource {
    /// Opens the images. Emoji have the side; all others come as they are stored.
    ///
    /// `search` hears of every file, line or member that is looked at on the way, and may share tar files with
    /// others; a closure is enough, `&|| ()`.
    ///
    /// # Errors
    /// As [`Emoji::new`], [`ImageFolder::open`], [`ImageList::open`], [`Cifar10::open`] and
    /// [`Shards::open`]; [`DataError::Search`] where the others cannot go on.
    pub fn open(&self, side: u32, search: &dyn Search) -> Result<Box<dyn Dataset>, DataError> {
        let looked = || search.looked();
        Ok(match self {
            Self::Emoji {} => Box::new(Emoji::new(side)?),
            Self::Folder { path, held_out } => {
                let held_out = held_out.as_ref().map(|folder| folder.path.as_path());
                Box::new(ImageFolder::find(path, held_out, &looked)?)
            }
            Self::List { path, root, held_out, labels } => {
                let files = [held_out.as_deref(), labels.as_deref()];
                Box::new(ImageList::find(path, root, files, &looked)?)
            }
            Self::Cifar10 { path } => Box::new(Cifar10::open(path)?),
            Self::Webdataset { shards, held_out, labels } => {
                let (held_out, labels) = (held_out.as_deref(), labels.as_deref());
                Box::new(Shards::find(shards, held_out, labels, search)?)
            }
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
        let path: PathBuf = "photos".into();
        let root: PathBuf = "/".into();
        let list = |held_out, labels| ImageSource::List {
            path: path.clone(),
            root: root.clone(),
            held_out,
            labels,
        };
        let all = [
            ImageSource::Folder { path: path.clone(), held_out: None },
            ImageSource::Cifar10 { path: path.clone() },
            list(None, None),
            list(Some("val".into()), Some("names".into())),
            ImageSource::Webdataset { shards: vec![path.clone()], held_out: None, labels: None },
        ];
        for source in &all {
            assert_eq!(parse(&serde_json::to_string(source).unwrap()).unwrap(), *source);
        }
        let held_out = Some(HeldOutFolder { path: "val".into() });
        let folder = ImageSource::Folder { path: path.clone(), held_out };
        let json = r#"{"kind":"folder","path":"photos","held_out":{"path":"val"}}"#;
        assert_eq!(
            (parse(json).unwrap(), serde_json::to_string(&folder).unwrap()),
            (folder, json.into())
        );
        assert_eq!(serde_json::to_string(&all[0]).unwrap(), r#"{"kind":"folder","path":"photos"}"#);
        assert_eq!(parse(r#"{"kind": "list", "path": "photos", "root": "/"}"#).unwrap(), all[2]);
        assert_eq!(parse(r#"{"kind": "webdataset", "shards": ["photos"]}"#).unwrap(), all[4]);
        for wrong in [
            r#"{"kind": "emoji", "path": "photos"}"#,
            r#"{"kind": "folder"}"#,
            r#"{"kind": "folder", "path": "photos", "side": 32}"#,
            r#"{"kind": "folder", "path": "photos", "held_out": "val"}"#,
            r#"{"kind": "list", "path": "photos"}"#,
            r#"{"kind": "tar", "path": "photos"}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    /// Files in class folders and in one folder, lines of a list, members of a shard.
    #[test]
    fn who_waits_hears_of_all_that_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| dir.path().join(name);
        let png = of("flat").join("0.png");
        std::fs::create_dir_all(of("flat")).unwrap();
        image::RgbImage::new(2, 2).save(&png).unwrap();
        for i in 0..12 {
            let class = of("classes").join(if i % 2 == 0 { "a" } else { "b" });
            std::fs::create_dir_all(&class).unwrap();
            std::fs::copy(&png, class.join(format!("{i}.png"))).unwrap();
            std::fs::copy(&png, of("flat").join(format!("{i}.png"))).unwrap();
        }
        let lines = (0..12).map(|i| format!("{i}.png 0\n"));
        std::fs::write(of("list.txt"), lines.collect::<String>()).unwrap();
        let mut tar = tar::Builder::new(std::fs::File::create(of("s.tar")).unwrap());
        for i in 0..12 {
            tar.append_path_with_name(&png, format!("{i:02}.png")).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            tar.append_data(&mut header, format!("{i:02}.cls"), &b"0"[..]).unwrap();
        }
        tar.finish().unwrap();
        let folder = |name| ImageSource::Folder { path: of(name), held_out: None };
        let list = ImageSource::List {
            path: of("list.txt"),
            root: of("flat"),
            held_out: None,
            labels: None,
        };
        let shards =
            ImageSource::Webdataset { shards: vec![of("s.tar")], held_out: None, labels: None };
        for (source, least) in
            [(folder("classes"), 12), (folder("flat"), 12), (list, 12), (shards, 24)]
        {
            let looked = std::cell::Cell::new(0);
            let opened = source.open(2, &|| looked.set(looked.get() + 1)).unwrap();
            assert_eq!(opened.len(), 12);
            assert!((least..=least + 2).contains(&looked.get()), "{source:?}: {}", looked.get());
        }
    }

    #[test]
    fn opening_gives_images_of_the_side_or_the_reason() {
        let emoji = ImageSource::Emoji {}.open(16, &|| ()).unwrap();
        assert_eq!(emoji.image(7).unwrap().dimensions(), (16, 16));
        let missing = ImageSource::Folder { path: "no/such/folder".into(), held_out: None };
        let Err(error) = missing.open(16, &|| ()) else { panic!("opened") };
        assert!(error.to_string().starts_with("no/such/folder: no such folder"), "{error}");
    }
}
