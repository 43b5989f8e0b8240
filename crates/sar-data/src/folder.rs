//! Folders of images: `root/<class>/*`, or one folder of images.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::decode::{decode, read_file};
use crate::{DataError, Dataset};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// Images in one sub-folder per class; classes and files in the order of their names.
///
/// A folder of images without sub-folders is one class of its name. Hidden files and other
/// extensions are passed over, and so are images beside class folders.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    classes: Vec<String>,
    files: Vec<ImageFile>,
}

#[derive(Debug)]
struct ImageFile {
    /// Below the root.
    path: PathBuf,
    label: usize,
    bytes: u64,
}

impl ImageFolder {
    /// Lists the images below `root`.
    ///
    /// # Errors
    /// If the root or a class folder cannot be used; the error names it.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        if !root.exists() {
            return Err(DataError::NoRoot { path: root.into() });
        }
        if !root.is_dir() {
            return Err(DataError::NotAFolder { path: root.into() });
        }
        let mut folders: Vec<PathBuf> =
            entries(root)?.into_iter().filter(|path| path.is_dir()).collect();
        let is_flat = folders.is_empty();
        if is_flat {
            folders.push(root.into());
        }
        let mut classes = Vec::new();
        let mut files = Vec::new();
        for folder in folders {
            let before = files.len();
            for path in entries(&folder)?.into_iter().filter(|path| is_image(path)) {
                let file = fs::metadata(&path);
                if file.as_ref().is_ok_and(|file| !file.is_file()) {
                    continue;
                }
                let bytes = file.map_or(0, |file| file.len());
                let path = path.strip_prefix(root).expect("listed below the root").to_owned();
                files.push(ImageFile { path, label: classes.len(), bytes });
            }
            if files.len() == before {
                return Err(if is_flat {
                    DataError::NoImages { path: folder }
                } else {
                    DataError::EmptyClass { path: folder }
                });
            }
            classes.push(class_name(&folder)?);
        }
        Ok(Self { root: root.into(), classes, files })
    }

    fn path(&self, i: usize) -> PathBuf {
        self.root.join(&self.files[i].path)
    }
}

/// What lies in a folder, sorted by name, hidden entries left out.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = entry.map_err(DataError::io(folder))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if name.is_some_and(|name| !name.starts_with('.')) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(is_image_extension)
}

/// Whether files with this extension are taken for images, in upper or lower case.
pub(crate) fn is_image_extension(extension: &str) -> bool {
    EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str())
}

/// The folder's own name, also where the path is `.` or ends in `..`.
fn class_name(folder: &Path) -> Result<String, DataError> {
    let whole = fs::canonicalize(folder).map_err(DataError::io(folder))?;
    // A link is called what it is called, not what it leads to.
    match folder.file_name().or(whole.file_name()).map(|name| name.to_str()) {
        Some(Some(name)) => Ok(name.to_owned()),
        Some(None) => Err(DataError::ClassName { path: folder.into() }),
        None => Ok("images".into()),
    }
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, i: usize) -> usize {
        self.files[i].label
    }

    fn name(&self, i: usize) -> String {
        self.files[i].path.display().to_string()
    }

    fn describe(&self, i: usize) -> String {
        self.path(i).display().to_string()
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.files[i].bytes
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        read_file(&self.path(i))
            .and_then(|bytes| decode(&bytes))
            .map_err(|reason| DataError::Unreadable { image: self.describe(i), reason })
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn save(path: &Path, width: u32, height: u32, level: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(width, height, Rgb([level; 3])).save(path).unwrap();
    }

    #[test]
    fn classes_and_files_come_sorted() {
        let root = tempfile::tempdir().unwrap();
        save(&root.path().join("zebra/1.png"), 8, 8, 10);
        save(&root.path().join("ant/b.PNG"), 6, 4, 40);
        save(&root.path().join("ant/a.png"), 4, 4, 7);
        save(&root.path().join("beside.png"), 4, 4, 7);
        fs::write(root.path().join("ant/notes.txt"), "no image").unwrap();
        fs::write(root.path().join("ant/.hidden.png"), "no image").unwrap();
        fs::create_dir(root.path().join("ant/folder.png")).unwrap();
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(folder.classes(), ["ant", "zebra"]);
        assert_eq!((0..folder.len()).map(|i| folder.label(i)).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(PathBuf::from(folder.name(1)), Path::new("ant").join("b.PNG"));
        assert_eq!(PathBuf::from(folder.describe(1)), root.path().join("ant/b.PNG"));
        assert_eq!(folder.image(1).unwrap(), RgbImage::from_pixel(6, 4, Rgb([40; 3])));
        assert!(folder.stored_bytes(1) > 0);
    }

    #[test]
    fn a_flat_folder_is_one_class() {
        let root = tempfile::tempdir().unwrap();
        let cats = root.path().join("cats");
        save(&cats.join("2.png"), 3, 3, 2);
        save(&cats.join("1.png"), 3, 3, 1);
        for path in [cats.clone(), cats.join("../cats"), cats.join(".")] {
            let folder = ImageFolder::open(&path).unwrap();
            assert_eq!((folder.classes(), folder.len()), (&["cats".to_owned()][..], 2));
            assert_eq!(folder.name(0), "1.png");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |path: &Path| ImageFolder::open(path).unwrap_err().to_string();
        assert!(error(&root.path().join("nowhere")).contains("nowhere: no such folder"));
        assert!(error(root.path()).contains("no images in this folder"));
        fs::create_dir(root.path().join("cats")).unwrap();
        assert!(error(root.path()).contains("cats: no images in this class folder"));
        fs::write(root.path().join("cats/a.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
        assert!(error(&root.path().join("cats/a.png")).contains("not a folder"));
        // A broken image is found when it is read.
        let error = ImageFolder::open(root.path()).unwrap().image(0).unwrap_err().to_string();
        assert!(error.contains("a.png: not a readable image") && !error.contains('\n'), "{error}");
    }
}
