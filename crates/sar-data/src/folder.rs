//! Folders of images: `root/<class>/**`, one folder of images, or `root/{train,val}` of either.

use std::collections::HashMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use image::RgbImage;

use crate::decode::{decode, read_file, size_in_header};
use crate::labels::{nfc, sort_classes};
use crate::left_out::{Tally, in_one_line, one_line};
use crate::walk::{Entry, ImageFile, below, entries, holds, image_file, images_below, is_image};
use crate::{DataError, Dataset, LeftOut};

/// What folders of training images are called, in lower case.
const TRAIN: [&str; 2] = ["train", "training"];

/// What folders of held-out images are called, in lower case, the first before the others.
const HELD_OUT: [&str; 5] = ["val", "validation", "valid", "test", "testing"];

/// Images in one sub-folder per class, and held-out images in another such folder where there is
/// one.
///
/// Classes come in the order of their names, or of their values if all are numbers; two folders
/// whose names are the same in composed characters are one class. A folder below a class folder
/// belongs to the class. A folder of images without folders of images is one class of its name.
/// Hidden files and litter of systems are passed over; other files, and images beside class
/// folders, are counted as left out.
#[derive(Debug)]
pub struct ImageFolder {
    classes: Vec<String>,
    files: Vec<Listed>,
    n_train: Option<usize>,
    left_out: Vec<LeftOut>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Listed {
    file: ImageFile,
    /// Below its root, the same wherever that lies.
    name: String,
    label: usize,
}

impl ImageFolder {
    /// Lists the images below `root`, and held-out ones below another folder.
    ///
    /// A root that holds folders `train` and `val` (or `validation`, `valid`, `test`) is that of a
    /// split: one trains, the other is held out.
    ///
    /// # Errors
    /// If a folder cannot be read, holds no images, or has class folders where the other has none;
    /// the error names it.
    pub fn open(root: &Path, held_out: Option<&Path>) -> Result<Self, DataError> {
        Self::find(root, held_out, &|| ())
    }

    /// As [`open`](Self::open); `looked` hears of every file.
    pub(crate) fn find(
        root: &Path,
        held_out: Option<&Path>,
        looked: &dyn Fn(),
    ) -> Result<Self, DataError> {
        check_folder(root)?;
        held_out.map_or(Ok(()), check_folder)?;
        let roots = Roots::find(root, held_out)?;
        let (mut tally, mut notes) = (Tally::default(), Vec::new());
        let training = Tree::list(&roots.train, &mut tally, &mut notes, looked)?;
        if training.n_images() == 0 {
            let left_out = in_one_line(&tally.finish());
            return Err(DataError::NoImages { path: roots.train, left_out });
        }
        let mut held_out = None;
        if let Some(path) = &roots.held_out {
            let tree = Tree::list(path, &mut tally, &mut notes, looked)?;
            match tree.check_beside(&training) {
                Ok(()) => held_out = Some((path.as_path(), tree)),
                Err(problem) if roots.is_named => {
                    return Err(DataError::Format { path: path.clone(), problem });
                }
                Err(problem) => {
                    notes.push(format!("{}: {problem}; it is not used", path.display()));
                    for (_, file) in tree.files() {
                        tally.add("images of a split that is not used", shown(&file.path, root));
                    }
                }
            }
        }
        for folder in &roots.others {
            for file in images_below(folder, root, &mut Tally::default(), looked)? {
                tally.add("images beside the folders of the split", shown(&file.path, root));
            }
        }
        if roots.train != root {
            notes.push(format!(
                "{}: {} trains, {} is held out",
                root.display(),
                shown(&roots.train, root),
                held_out.as_ref().map_or("a tenth of it".into(), |(path, _)| shown(path, root))
            ));
        }
        let classes = if training.is_flat {
            vec![class_name(root)?]
        } else {
            let all = training.classes.iter().chain(held_out.iter().flat_map(|(_, t)| &t.classes));
            let mut names: Vec<String> = all.map(|(name, _)| name.clone()).collect();
            sort_classes(&mut names);
            names.dedup();
            names
        };
        let mut files = training.listed(&classes, &roots.train, "");
        let n_train = held_out.is_some().then_some(files.len());
        if let Some((path, tree)) = held_out {
            files.extend(tree.listed(&classes, path, "held-out/"));
        }
        Ok(Self { classes, files, n_train, left_out: tally.finish(), notes })
    }
}

fn check_folder(path: &Path) -> Result<(), DataError> {
    if !path.exists() {
        return Err(DataError::NoRoot { path: path.into() });
    }
    if !path.is_dir() {
        return Err(DataError::NotAFolder { path: path.into() });
    }
    Ok(())
}

/// Where training and held-out images are.
struct Roots {
    train: PathBuf,
    held_out: Option<PathBuf>,
    /// Whether the held-out folder is named by the recipe, not found by its name.
    is_named: bool,
    /// Folders beside those of a split.
    others: Vec<PathBuf>,
}

impl Roots {
    fn find(root: &Path, held_out: Option<&Path>) -> Result<Self, DataError> {
        let is_named = held_out.is_some();
        let held_out: Option<PathBuf> = held_out.map(Into::into);
        let folders = folders(root)?;
        let called = |names: &[&str]| {
            let of = |name: &&str| folders.iter().find(|path| is_called(path, name));
            names.iter().find_map(of).cloned()
        };
        let found = called(&HELD_OUT);
        let train = match called(&TRAIN) {
            Some(train) if found.is_some() => train,
            // Alone, a folder of this name may be a class, of locomotives.
            Some(train) if folders.len() == 1 && !self::folders(&train)?.is_empty() => train,
            _ => return Ok(Self { train: root.into(), held_out, is_named, others: Vec::new() }),
        };
        let held_out = held_out.or(found);
        let is_other = |path: &PathBuf| *path != train && Some(path) != held_out.as_ref();
        let others = folders.iter().filter(|path| is_other(path)).cloned().collect();
        Ok(Self { train, held_out, is_named, others })
    }
}

fn is_called(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|own| own.to_string_lossy().to_lowercase() == name)
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let folders = entries(path)?.into_iter().filter(|entry| entry.is_folder);
    Ok(folders.map(|entry| entry.path).collect())
}

/// The images below one root.
struct Tree {
    /// Names, which flat images have none of, and their images.
    classes: Vec<(String, Vec<ImageFile>)>,
    /// Whether the images lie in the root itself.
    is_flat: bool,
}

impl Tree {
    fn list(
        root: &Path,
        tally: &mut Tally,
        notes: &mut Vec<String>,
        looked: &dyn Fn(),
    ) -> Result<Self, DataError> {
        let (folders, own): (Vec<Entry>, Vec<Entry>) =
            entries(root)?.into_iter().partition(|entry| entry.is_folder);
        let mut classes: Vec<(String, Vec<ImageFile>)> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for Entry { path, .. } in folders {
            if holds(&path, root)? {
                tally.add("links to folders that are read already", shown(&path, root));
                continue;
            }
            let name = class_name(&path)?;
            let files = images_below(&path, root, tally, looked)?;
            match known.get(&name) {
                Some(&class) => {
                    let name = one_line(&name);
                    notes.push(format!("{}: is one class with its like, {name}", path.display()));
                    classes[class].1.extend(files);
                }
                None => {
                    known.insert(name.clone(), classes.len());
                    classes.push((name, files));
                }
            }
        }
        let is_flat = classes.iter().all(|(_, files)| files.is_empty());
        if is_flat {
            let files = own.into_iter().inspect(|_| looked());
            let files = files.filter_map(|entry| image_file(entry.path, root, tally));
            return Ok(Self { classes: vec![(String::new(), files.collect())], is_flat });
        }
        for Entry { path, .. } in own {
            if is_image(&path) {
                tally.add("images beside class folders", shown(&path, root));
            } else {
                tally.add_file(&path, shown(&path, root));
            }
        }
        Ok(Self { classes, is_flat })
    }

    fn files(&self) -> impl Iterator<Item = (&str, &ImageFile)> {
        self.classes.iter().flat_map(|(name, files)| files.iter().map(|file| (name.as_str(), file)))
    }

    fn n_images(&self) -> usize {
        self.classes.iter().map(|(_, files)| files.len()).sum()
    }

    /// Whether these can be held out beside training images, or why not.
    fn check_beside(&self, training: &Self) -> Result<(), String> {
        const SORT: &str = "sort them into the same class folders";
        match (self.n_images(), training.is_flat, self.is_flat) {
            (0, ..) => Err("holds no images".into()),
            (_, true, true) | (_, false, false) => Ok(()),
            (_, false, true) => Err(format!(
                "holds images without class folders, the training images have some; {SORT}"
            )),
            (_, true, false) => {
                Err(format!("holds class folders, the training images have none; {SORT}"))
            }
        }
    }

    /// The images in the order of the classes, their names below `base` after a prefix.
    fn listed(mut self, classes: &[String], base: &Path, prefix: &str) -> Vec<Listed> {
        let labels: HashMap<&str, usize> =
            classes.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        // Flat images are the only class there is.
        let label = |name: &str| labels.get(name).copied().unwrap_or_default();
        self.classes.sort_by_key(|(name, _)| label(name));
        let mut listed = Vec::new();
        for (class, files) in self.classes {
            let label = label(&class);
            listed.extend(files.into_iter().map(|file| {
                let name = format!("{prefix}{}", portable(below(&file.path, base)));
                Listed { file, name, label }
            }));
        }
        listed
    }
}

/// A path as a message names it.
fn shown(path: &Path, root: &Path) -> String {
    one_line(&below(path, root).display().to_string())
}

/// A path with slashes and composed characters, the same on every system.
fn portable(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(nfc(&name.to_string_lossy())),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}

/// The folder's own name, also where the path is `.` or ends in `..`.
fn class_name(folder: &Path) -> Result<String, DataError> {
    let whole = fs::canonicalize(folder).map_err(DataError::io(folder))?;
    // A link is called what it is called, not what it leads to.
    match folder.file_name().or(whole.file_name()).map(|name| name.to_str()) {
        Some(Some(name)) => Ok(nfc(name)),
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
        self.files[i].name.clone()
    }

    fn describe(&self, i: usize) -> String {
        one_line(&self.files[i].file.path.display().to_string())
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.files[i].file.bytes
    }

    fn size_in_header(&self, i: usize) -> Option<[u32; 2]> {
        size_in_header(&self.files[i].file.path)
    }

    fn n_train(&self) -> Option<usize> {
        self.n_train
    }

    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        read_file(&self.files[i].file.path)
            .and_then(|bytes| decode(&bytes))
            .map_err(|reason| DataError::Unreadable { image: self.describe(i), reason })
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;
    use crate::Split;

    fn save(path: &Path, width: u32, height: u32, level: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(width, height, Rgb([level; 3])).save(path).unwrap();
    }

    fn open(root: &Path) -> ImageFolder {
        ImageFolder::open(root, None).unwrap()
    }

    fn names(folder: &ImageFolder) -> Vec<String> {
        (0..folder.len()).map(|i| folder.name(i)).collect()
    }

    fn labels(folder: &ImageFolder) -> Vec<usize> {
        (0..folder.len()).map(|i| folder.label(i)).collect()
    }

    fn left_out(folder: &ImageFolder) -> Vec<String> {
        folder.left_out().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn classes_and_files_come_sorted_and_the_rest_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        save(&root.join("zebra/1.png"), 8, 8, 10);
        save(&root.join("ant/b.PNG"), 6, 4, 40);
        save(&root.join("ant/a.png"), 4, 4, 7);
        save(&root.join("ant/more/of.png/c.bmp"), 4, 4, 7);
        save(&root.join("beside.png"), 4, 4, 7);
        fs::write(root.join("ant/notes.txt"), "no image").unwrap();
        fs::write(root.join("ant/.hidden.png"), "no image").unwrap();
        fs::write(root.join("README"), "no image").unwrap();
        let folder = open(root);
        assert_eq!(folder.classes(), ["ant", "zebra"]);
        assert_eq!(
            names(&folder),
            ["ant/a.png", "ant/b.PNG", "ant/more/of.png/c.bmp", "zebra/1.png"]
        );
        assert_eq!(labels(&folder), [0, 0, 0, 1]);
        assert_eq!(PathBuf::from(folder.describe(1)), root.join("ant/b.PNG"));
        assert_eq!(folder.image(1).unwrap(), RgbImage::from_pixel(6, 4, Rgb([40; 3])));
        assert!(folder.stored_bytes(1) > 0);
        assert_eq!(folder.size_in_header(1), Some([6, 4]));
        let expected = [
            "1 .txt (first: ant/notes.txt)",
            "1 images beside class folders (first: beside.png)",
            "1 without an extension (first: README)",
        ];
        assert_eq!(left_out(&folder), expected);
        assert!(folder.notes().is_empty());
    }

    #[test]
    fn a_flat_folder_is_one_class() {
        let root = tempfile::tempdir().unwrap();
        let cats = root.path().join("cats");
        save(&cats.join("2.png"), 3, 3, 2);
        save(&cats.join("1.png"), 3, 3, 1);
        fs::create_dir(cats.join("docs")).unwrap();
        for path in [cats.clone(), cats.join("../cats"), cats.join(".")] {
            let folder = open(&path);
            assert_eq!((folder.classes(), folder.len()), (&["cats".to_owned()][..], 2));
            assert_eq!(names(&folder), ["1.png", "2.png"]);
        }
    }

    #[test]
    fn numbers_and_accents_in_names_of_classes() {
        let dir = tempfile::tempdir().unwrap();
        for class in ["0", "1", "10", "2"] {
            save(&dir.path().join("numbers").join(class).join("x.png"), 1, 1, 0);
        }
        let numbers = open(&dir.path().join("numbers"));
        assert_eq!(numbers.classes(), ["0", "1", "2", "10"]);
        assert_eq!(names(&numbers)[2..], ["2/x.png", "10/x.png"]);
        assert_eq!(labels(&numbers), [0, 1, 2, 3]);

        let accents = dir.path().join("accents");
        save(&accents.join("cafe\u{301}/1.png"), 1, 1, 0);
        save(&accents.join("caf\u{e9}/2.png"), 1, 1, 0);
        save(&accents.join("bar/3.png"), 1, 1, 0);
        let accents = open(&accents);
        assert_eq!(accents.classes(), ["bar", "caf\u{e9}"]);
        assert_eq!((names(&accents).len(), labels(&accents)), (3, vec![0, 1, 1]));
        assert!(names(&accents).contains(&"caf\u{e9}/1.png".into()));
        assert!(accents.notes()[0].contains("is one class"), "{:?}", accents.notes());
    }

    #[test]
    fn an_empty_class_folder_is_a_class_and_a_link_in_a_circle_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        save(&root.join("cats/1.png"), 1, 1, 0);
        fs::create_dir(root.join("birds")).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(root, root.join("loop")).unwrap();
        let folder = open(root);
        assert_eq!(
            (folder.classes(), labels(&folder)),
            (&["birds".into(), "cats".into()][..], vec![1])
        );
    }

    #[test]
    fn the_root_of_a_split_trains_on_one_and_holds_out_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("imagenet");
        for path in ["train/b/1.png", "train/a/2.png", "Val/b/3.png", "Val/c/4.png", "test/5.png"] {
            save(&root.join(path), 1, 1, 0);
        }
        let folder = open(&root);
        assert_eq!(folder.classes(), ["a", "b", "c"]);
        assert_eq!(names(&folder), ["a/2.png", "b/1.png", "held-out/b/3.png", "held-out/c/4.png"]);
        assert_eq!(labels(&folder), [0, 1, 1, 2]);
        assert_eq!(folder.split(), Split { train: vec![0, 1], held_out: vec![2, 3] });
        let expected = "1 images beside the folders of the split (first: test/5.png)";
        assert_eq!(left_out(&folder), [expected]);
        let expected = format!("{}: train trains, Val is held out", root.display());
        assert_eq!(folder.notes(), [expected]);

        // The same by name, from elsewhere.
        fs::rename(root.join("Val"), dir.path().join("elsewhere")).unwrap();
        fs::remove_dir_all(root.join("test")).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        for root in [root.clone(), root.join("train")] {
            let folder = ImageFolder::open(&root, Some(&elsewhere)).unwrap();
            assert_eq!((folder.n_train(), folder.len()), (Some(2), 4));
            assert_eq!(folder.name(3), "held-out/c/4.png");
        }
        // Alone, train is the root of classes; with classes beside it or no folders in it, a class.
        assert_eq!((open(&root).classes().len(), open(&root).n_train()), (2, None));
        save(&root.join("car/5.png"), 1, 1, 0);
        assert_eq!(open(&root).classes(), ["car", "train"]);
    }

    #[test]
    fn splits_without_class_folders() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("photos");
        save(&root.join("train/1.png"), 1, 1, 0);
        assert_eq!(open(&root).classes(), ["train"]);
        save(&root.join("val/2.png"), 1, 1, 0);
        let folder = open(&root);
        assert_eq!((folder.classes(), folder.n_train()), (&["photos".to_owned()][..], Some(1)));

        // ImageNet's validation images as they come: found, they are left out; named, they are wrong.
        let classes = dir.path().join("classes");
        save(&classes.join("train/a/1.png"), 1, 1, 0);
        save(&classes.join("val/2.png"), 1, 1, 0);
        let folder = open(&classes);
        assert_eq!(
            (folder.classes(), folder.len(), folder.n_train()),
            (&["a".into()][..], 1, None)
        );
        assert!(folder.notes()[0].contains("val: holds images without class folders"));
        assert!(folder.notes()[1].ends_with("train trains, a tenth of it is held out"));
        assert_eq!(left_out(&folder), ["1 images of a split that is not used (first: val/2.png)"]);
        let error =
            |held_out: &Path| ImageFolder::open(&classes, Some(held_out)).unwrap_err().to_string();
        let message = error(&classes.join("val"));
        assert!(message.contains("val: holds images without class folders"), "{message}");
        fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(error(&dir.path().join("empty")).contains("empty: holds no images"));
        assert!(error(&dir.path().join("none")).contains("none: no such folder"));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |path: &Path| ImageFolder::open(path, None).unwrap_err().to_string();
        assert!(error(&root.path().join("nowhere")).contains("nowhere: no such folder"));
        assert!(error(root.path()).contains("no images in this folder; add PNG"));
        fs::create_dir(root.path().join("cats")).unwrap();
        fs::write(root.path().join("cats/a.heic"), "x").unwrap();
        let message = error(root.path());
        let expected =
            "no images in this folder, 1 file left out: 1 .heic (first: cats/a.heic); add";
        assert!(message.contains(expected), "{message}");
        fs::write(root.path().join("cats/a.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
        assert!(error(&root.path().join("cats/a.png")).contains("not a folder"));
        // A broken image is found when it is read.
        assert_eq!(open(root.path()).size_in_header(0), None);
        let error = open(root.path()).image(0).unwrap_err().to_string();
        assert!(error.contains("a.png: not a readable image") && !error.contains('\n'), "{error}");
    }
}
