//! Folders of images: `root/<class>/*`.

use std::fs;
use std::path::{Path, PathBuf};

use image::{RgbImage, imageops};

use crate::decode::{check, read_rgb};
use crate::{DataError, Dataset};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];

/// How many times its short side an image may be long; the rest lies far outside the crop.
const MAX_ASPECT: u32 = 8;

/// Images in one sub-folder per class; classes and files in the order of their names.
///
/// Hidden files and other extensions are passed over. Images are read when they are asked for.
#[derive(Debug)]
pub struct ImageFolder {
    classes: Vec<String>,
    files: Vec<(PathBuf, usize)>,
    side: u32,
}

impl ImageFolder {
    /// Lists the images below `root`; each will be resized so that its short side is `side` pixels
    /// and cropped to the centre.
    ///
    /// # Errors
    /// If the root, a class folder or the header of an image cannot be used; the error names it.
    pub fn open(root: &Path, side: u32) -> Result<Self, DataError> {
        if side == 0 {
            let allowed = "a side of at least 1 px";
            return Err(DataError::Side { side: 0, source_name: "folder", allowed });
        }
        if !root.exists() {
            return Err(DataError::NoRoot { path: root.into() });
        }
        if !root.is_dir() {
            return Err(DataError::NotAFolder { path: root.into() });
        }
        let mut classes = Vec::new();
        let mut files = Vec::new();
        for folder in entries(root)?.into_iter().filter(|path| path.is_dir()) {
            let label = classes.len();
            let before = files.len();
            let images =
                entries(&folder)?.into_iter().filter(|path| path.is_file() && is_image(path));
            files.extend(images.map(|path| (path, label)));
            if files.len() == before {
                return Err(DataError::EmptyClass { path: folder });
            }
            let name = folder.file_name().and_then(|name| name.to_str());
            let Some(name) = name else { return Err(DataError::ClassName { path: folder }) };
            classes.push(name.to_owned());
        }
        if classes.is_empty() {
            return Err(DataError::NoClassFolders { path: root.into() });
        }
        // What is no image at all is found now, not hours later.
        files.iter().try_for_each(|(path, _)| check(path))?;
        Ok(Self { classes, files, side })
    }
}

/// What lies in a folder, sorted by name, hidden entries left out.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let io =
        |error: std::io::Error| DataError::Io { path: folder.into(), reason: error.to_string() };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
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
    extension.is_some_and(|e| EXTENSIONS.contains(&e.to_ascii_lowercase().as_str()))
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, i: usize) -> usize {
        self.files[i].1
    }

    fn describe(&self, i: usize) -> String {
        self.files[i].0.display().to_string()
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        Ok(centre_square(&read_rgb(&self.files[i].0)?, self.side))
    }
}

/// Resizes the short side to `side` (antialiased) and crops the centre.
fn centre_square(image: &RgbImage, side: u32) -> RgbImage {
    let image = &trim(image);
    let (width, height) = image.dimensions();
    let scaled = |long: u32, short: u32| {
        ((u64::from(long) * u64::from(side) + u64::from(short) / 2) / u64::from(short)) as u32
    };
    let (width, height) = if width < height {
        (side, scaled(height, width).max(side))
    } else {
        (scaled(width, height).max(side), side)
    };
    let resized = if image.dimensions() == (width, height) {
        image.clone()
    } else {
        imageops::resize(image, width, height, imageops::FilterType::CatmullRom)
    };
    imageops::crop_imm(&resized, (width - side) / 2, (height - side) / 2, side, side).to_image()
}

/// Cuts a very long image around its centre, evenly at both ends, so that a strip one pixel wide
/// cannot ask for gigabytes when its short side is enlarged.
fn trim(image: &RgbImage) -> RgbImage {
    let (width, height) = image.dimensions();
    let limit = MAX_ASPECT * width.min(height);
    let cut = |length: u32| length.saturating_sub(limit) / 2;
    let (x, y) = (cut(width), cut(height));
    imageops::crop_imm(image, x, y, width - 2 * x, height - 2 * y).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;
    use proptest::prelude::*;

    fn save(path: &Path, width: u32, height: u32, value: impl Fn(u32, u32) -> u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_fn(width, height, |x, y| Rgb([value(x, y); 3])).save(path).unwrap();
    }

    #[test]
    fn classes_and_files_come_sorted_and_cropped() {
        let root = tempfile::tempdir().unwrap();
        save(&root.path().join("zebra/1.png"), 8, 8, |_, _| 10);
        save(&root.path().join("ant/b.PNG"), 6, 4, |x, _| 40 * x as u8);
        save(&root.path().join("ant/a.png"), 4, 4, |_, _| 7);
        fs::write(root.path().join("ant/notes.txt"), "no image").unwrap();
        fs::write(root.path().join("ant/.hidden.png"), "no image").unwrap();
        let folder = ImageFolder::open(root.path(), 4).unwrap();
        assert_eq!(folder.classes(), ["ant", "zebra"]);
        assert_eq!((0..3).map(|i| folder.label(i)).collect::<Vec<_>>(), [0, 0, 1]);
        assert!(folder.describe(1).ends_with("b.PNG"));
        // 6x4 at side 4: the two outer columns go.
        let crop = folder.image(1).unwrap();
        assert_eq!(
            (0..4).map(|x| crop.get_pixel(x, 2).0[0]).collect::<Vec<_>>(),
            [40, 80, 120, 160]
        );
        assert_eq!(folder.image(2).unwrap().dimensions(), (4, 4));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = |path: &Path| ImageFolder::open(path, 8).unwrap_err().to_string();
        assert!(error(&root.path().join("nowhere")).contains("nowhere: no such folder"));
        assert!(error(root.path()).contains("no class folders"));
        fs::create_dir(root.path().join("cats")).unwrap();
        assert!(error(root.path()).contains("cats: no images in this class folder"));
        fs::write(root.path().join("cats/a.png"), b"\x89PNG\r\n\x1a\nbroken").unwrap();
        assert!(error(&root.path().join("cats/a.png")).contains("not a folder"));
        let error = error(root.path());
        assert!(error.contains("a.png: not a readable image") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn extreme_shapes_still_give_squares() {
        let one = RgbImage::from_pixel(1, 1, Rgb([9; 3]));
        assert_eq!(centre_square(&one, 16).dimensions(), (16, 16));
        let strip = RgbImage::from_pixel(300, 1, Rgb([9; 3]));
        assert_eq!(centre_square(&strip, 4).dimensions(), (4, 4));
        // Untrimmed, this one would ask for 256 x 15 million pixels.
        let long = RgbImage::from_fn(1, 60_001, |_, y| Rgb([if y == 30_000 { 0 } else { 255 }; 3]));
        let square = centre_square(&long, 257);
        assert_eq!(square.get_pixel(128, 128).0, [0; 3], "the middle stays in the middle");
    }

    #[test]
    fn a_gradient_stays_one_when_halved() {
        // Output column j lies between columns 2 (j + 5) and 2 (j + 5) + 1: 6 (2 j + 10.5).
        let wide = RgbImage::from_fn(40, 20, |x, y| Rgb([6 * x as u8, 6 * y as u8, 40]));
        let image = centre_square(&wide, 10);
        for (x, y, pixel) in image.enumerate_pixels().filter(|(_, y, _)| (1..9).contains(y)) {
            let [r, g, b] = pixel.0.map(i64::from);
            let (x, y) = (i64::from(x), i64::from(y));
            assert!(
                (r - (12 * x + 63)).abs() <= 1 && (g - (12 * y + 3)).abs() <= 1,
                "{pixel:?} at {x} {y}"
            );
            assert_eq!(b, 40);
        }
    }

    #[test]
    fn reduction_does_not_alias() {
        // Black and white columns of one pixel, reduced by 4, give grey and not stripes.
        let stripes = RgbImage::from_fn(64, 64, |x, _| Rgb([if x % 2 == 0 { 0 } else { 255 }; 3]));
        let small = centre_square(&stripes, 16);
        for x in 2..14 {
            let value = i32::from(small.get_pixel(x, 8).0[0]);
            assert!((value - 128).abs() <= 2, "{value} at {x}");
        }
    }

    proptest! {
        #[test]
        fn every_size_gives_the_square(width in 1u32..50, height in 1u32..50, side in 1u32..40) {
            let image = centre_square(&RgbImage::from_pixel(width, height, Rgb([9, 90, 200])), side);
            prop_assert_eq!(image.dimensions(), (side, side));
            prop_assert!(image.pixels().all(|p| p.0 == [9, 90, 200]), "a flat image stays flat");
        }
    }
}
