//! What lies in folders, in an order that is the same on every file system.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::DataError;
use crate::decode::is_image_extension;
use crate::labels::nfc;
use crate::left_out::Tally;

/// Files and folders that systems and tools leave behind, in lower case; hidden ones are litter, too.
const LITTER: [&str; 9] = [
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "@eadir",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "icon\r",
];

/// An entry of a folder.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    /// Whether it is a folder, or a link to one.
    pub(crate) is_folder: bool,
}

/// What lies in a folder without litter, sorted by name.
pub(crate) fn entries(folder: &Path) -> Result<Vec<Entry>, DataError> {
    let mut named = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_litter(&name) {
            continue;
        }
        let path = entry.path();
        let is_folder = match entry.file_type() {
            Ok(kind) if !kind.is_symlink() => kind.is_dir(),
            _ => path.is_dir(),
        };
        named.push((nfc(&name), Entry { path, is_folder }));
    }
    named.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.path.cmp(&y.path)));
    Ok(named.into_iter().map(|(_, entry)| entry).collect())
}

fn is_litter(name: &str) -> bool {
    name.starts_with('.') || LITTER.contains(&name.to_lowercase().as_str())
}

/// An image file in a folder or below it.
#[derive(Debug)]
pub(crate) struct ImageFile {
    pub(crate) path: PathBuf,
    /// 0 if it is missing: a link to nowhere.
    pub(crate) bytes: u64,
}

/// The image files in a folder and in the folders below it, in the order of their paths.
///
/// A folder that links lead to more than once is taken once, and a link to a folder that holds
/// `root` is left out: it would never end. What is not an image is counted by its extension.
/// `looked` hears of every file.
pub(crate) fn images_below(
    folder: &Path,
    root: &Path,
    tally: &mut Tally,
    looked: &dyn Fn(),
) -> Result<Vec<ImageFile>, DataError> {
    let mut walk = Walk { root, seen: HashSet::new(), tally, looked, files: Vec::new() };
    walk.visit(folder)?;
    Ok(walk.files)
}

struct Walk<'a> {
    root: &'a Path,
    seen: HashSet<PathBuf>,
    tally: &'a mut Tally,
    looked: &'a dyn Fn(),
    files: Vec<ImageFile>,
}

impl Walk<'_> {
    fn visit(&mut self, folder: &Path) -> Result<(), DataError> {
        let whole = fs::canonicalize(folder).map_err(DataError::io(folder))?;
        if (folder != self.root && holds(folder, self.root)?) || !self.seen.insert(whole) {
            let why = "links to folders that are read already";
            self.tally.add(why, below(folder, self.root).display());
            return Ok(());
        }
        for Entry { path, is_folder } in entries(folder)? {
            (self.looked)();
            if is_folder {
                self.visit(&path)?;
            } else {
                self.files.extend(image_file(path, self.root, self.tally));
            }
        }
        Ok(())
    }
}

/// Whether a folder, or what it links to, is `root` or one that `root` lies in.
pub(crate) fn holds(folder: &Path, root: &Path) -> Result<bool, DataError> {
    let whole = |path: &Path| fs::canonicalize(path).map_err(DataError::io(path));
    Ok(whole(root)?.starts_with(whole(folder)?))
}

/// The image file at a path; what is none is counted.
pub(crate) fn image_file(path: PathBuf, root: &Path, tally: &mut Tally) -> Option<ImageFile> {
    if !is_image(&path) {
        tally.add_file(&path, below(&path, root).display());
        return None;
    }
    let file = fs::metadata(&path);
    if file.as_ref().is_ok_and(|file| !file.is_file()) {
        tally.add("that are not regular files", below(&path, root).display());
        return None;
    }
    Some(ImageFile { path, bytes: file.map_or(0, |file| file.len()) })
}

/// Whether a file is taken for an image, by its extension.
pub(crate) fn is_image(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(is_image_extension)
}

/// A path without the folder that it lies in.
pub(crate) fn below<'a>(path: &'a Path, root: &Path) -> &'a Path {
    path.strip_prefix(root).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_hears_of_every_file() {
        let dir = tempfile::tempdir().unwrap();
        ["a/1.png", "a/2.png", "a/3.txt"].iter().for_each(|path| touch(dir.path().join(path)));
        let looked = std::cell::Cell::new(0);
        let look = || looked.set(looked.get() + 1);
        images_below(dir.path(), dir.path(), &mut Tally::default(), &look).unwrap();
        assert_eq!(looked.get(), 4, "the folder, too");
    }

    fn touch(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    fn names(root: &Path) -> (Vec<String>, Vec<String>) {
        let mut tally = Tally::default();
        let files = images_below(root, root, &mut tally, &|| ()).unwrap();
        let names = files.iter().map(|file| below(&file.path, root).display().to_string());
        let left_out = tally.finish().iter().map(ToString::to_string).collect();
        (names.collect(), left_out)
    }

    #[test]
    fn folders_below_count_and_litter_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let paths = ["b.png", "a/2.JFIF", "a/1.jpe", "a-b.tif", "c.gif", "d.BMP", "e.heic", "f"];
        paths.iter().for_each(|path| touch(root.join(path)));
        let litter = [".x.png", "__MACOSX/y.png", "a/.ipynb_checkpoints/z.png", "Thumbs.db"];
        litter.iter().for_each(|path| touch(root.join(path)));
        let (found, left_out) = names(root);
        assert_eq!(found, ["a/1.jpe", "a/2.JFIF", "a-b.tif", "b.png", "c.gif", "d.BMP"]);
        assert_eq!(left_out, ["1 .heic (first: e.heic)", "1 without an extension (first: f)"]);
    }

    #[test]
    #[cfg(unix)]
    fn links_in_circles_end() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        touch(root.join("a/1.png"));
        touch(root.join("b/2.png"));
        symlink(&root, root.join("a/up")).unwrap();
        symlink(root.join(".."), root.join("a/higher")).unwrap();
        symlink(root.join("b"), root.join("a/across")).unwrap();
        symlink(root.join("a"), root.join("b/back")).unwrap();
        symlink(root.join("nowhere"), root.join("b/broken.png")).unwrap();
        let (found, left_out) = names(&root);
        assert_eq!(found, ["a/1.png", "a/across/2.png", "a/across/broken.png"]);
        let expected = "4 links to folders that are read already (first: a/across/back)";
        assert_eq!(left_out, [expected]);
    }

    #[test]
    fn the_order_is_that_of_composed_names() {
        let dir = tempfile::tempdir().unwrap();
        // e with an accent as two characters sorts before f only when it is not composed.
        touch(dir.path().join("cafe\u{301}.png"));
        touch(dir.path().join("caff.png"));
        assert_eq!(names(dir.path()).0, ["caff.png", "cafe\u{301}.png"]);
    }
}
