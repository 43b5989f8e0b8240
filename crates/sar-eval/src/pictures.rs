//! Images of one size whose features are taken: a folder, an `.npz` file, or a source of a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sar_data::{Crop, Dataset, ImageSource, Prefetch, ReadAhead, RgbImage};

use crate::{EvalError, Npz};

/// Images, all of one size.
pub struct Pictures {
    origin: Origin,
    /// What messages and reports call them.
    name: String,
    /// Height and width, pixels.
    size: [usize; 2],
    len: usize,
    notes: Vec<String>,
    cropped: Arc<AtomicUsize>,
    enlarged: Arc<AtomicUsize>,
}

enum Origin {
    /// Images of a data set, by their indices.
    Dataset { dataset: Arc<dyn Dataset>, indices: Vec<usize>, others: Others },
    Npz {
        path: PathBuf,
        labels: Option<Vec<usize>>,
        /// Whether reading them keeps all of them.
        keeps_all: bool,
    },
}

/// What becomes of images of another size.
#[derive(Clone, Copy)]
enum Others {
    /// They are an error: the size is that of the first one.
    Refused,
    /// They are an error: the size is that of other images, and no square.
    NoSquares,
    /// They become squares, see [`Crop::AdmCenter`].
    Cropped,
}

impl Pictures {
    /// The images of a source, where it says which ones are held out these alone: as squares of a side in
    /// pixels ([`Crop::AdmCenter`]), or without one as they are stored, which then have to be of one size.
    ///
    /// # Errors
    /// If there are none, or the first one cannot be read, or emoji have no side.
    pub fn of_source(
        name: String,
        source: &ImageSource,
        side: Option<u32>,
    ) -> Result<Self, EvalError> {
        let dataset: Arc<dyn Dataset> = source.open(side.unwrap_or_default(), &|| ())?.into();
        let (indices, measured): (Vec<usize>, String) = match dataset.n_train() {
            Some(n_train) => {
                let held_out = dataset.split().held_out;
                let n = held_out.len();
                let line =
                    format!("{name}: measures {n} held-out images, not {n_train} that train");
                (held_out, line)
            }
            None => {
                let n = dataset.len();
                ((0..n).collect(), format!("{name}: measures all {n} images"))
            }
        };
        if indices.is_empty() {
            return Err(EvalError::Unfit { problem: format!("{name}: holds no image out") });
        }
        let left_out = dataset.left_out().iter().map(|kind| format!("left out {kind}"));
        let notes = dataset.notes().iter().cloned().chain(left_out).chain([measured]).collect();
        let size = side.map(|side| [side as usize; 2]);
        let pictures = Self::of_dataset(name, dataset, indices, size)?;
        Ok(Self { notes, ..pictures })
    }

    /// The images of an `.npz` file (`arr_0`), with their labels if it has them (`arr_1`).
    ///
    /// # Errors
    /// If it has none, or they are not 8-bit, or there are other than as many labels.
    pub fn npz(path: &Path) -> Result<Self, EvalError> {
        let problem = |problem| EvalError::Npz { path: path.into(), problem };
        let mut npz = Npz::open(path)?;
        let Some([n, height, width]) = npz.images()? else {
            return Err(problem("has no images, no array arr_0".into()));
        };
        let keeps_all = npz.is_in_fortrans_order()?;
        let labels = npz.labels()?;
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != n) {
            return Err(problem(format!("{} labels (arr_1) of {n} images (arr_0)", labels.len())));
        }
        let name = path.display().to_string();
        Ok(Self {
            notes: vec![format!("{name}: measures all {n} images")],
            name,
            size: [height, width],
            len: n,
            cropped: Arc::default(),
            enlarged: Arc::default(),
            origin: Origin::Npz { path: path.into(), labels, keeps_all },
        })
    }

    /// Some images of a data set at a size, height and width. Images of other sizes become squares
    /// ([`Crop::AdmCenter`]) if the size is one. Without a size they stay as they are stored, and then have to be of
    /// one size.
    ///
    /// # Errors
    /// If there are none, or the size has to be that of the first one and this cannot be read.
    pub fn of_dataset(
        name: String,
        dataset: Arc<dyn Dataset>,
        indices: Vec<usize>,
        size: Option<[usize; 2]>,
    ) -> Result<Self, EvalError> {
        let Some(first) = indices.first() else {
            return Err(EvalError::Unfit { problem: format!("{name}: has no images") });
        };
        let (size, others) = match size {
            Some(size) if size[0] == size[1] => (size, Others::Cropped),
            Some(size) => (size, Others::NoSquares),
            None => {
                let (width, height) = dataset.image(*first)?.dimensions();
                ([height as usize, width as usize], Others::Refused)
            }
        };
        Ok(Self {
            name,
            size,
            len: indices.len(),
            notes: Vec::new(),
            cropped: Arc::default(),
            enlarged: Arc::default(),
            origin: Origin::Dataset { dataset, indices, others },
        })
    }

    /// What messages and reports call them.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Height and width, pixels.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether these are held-out images of a source that has them apart.
    pub fn is_held_out(&self) -> bool {
        match &self.origin {
            Origin::Dataset { dataset, indices, .. } => {
                dataset.n_train().is_some_and(|n_train| indices.iter().all(|i| *i >= n_train))
            }
            Origin::Npz { .. } => false,
        }
    }

    /// Bytes that are kept while they are read: all pixels of an `.npz` file whose images are in Fortran's order.
    pub fn bytes_kept(&self) -> usize {
        let [height, width] = self.size;
        match self.origin {
            Origin::Npz { keeps_all: true, .. } => self.len * height * width * 3,
            _ => 0,
        }
    }

    /// What became of those that were read last and had another size, a line each.
    pub fn resized(&self) -> Vec<String> {
        let (len, [height, width]) = (self.len, self.size);
        let cropped = format!(
            "have another size than {width}x{height} px and were cropped and resized to it, before they are resized \
             for the network"
        );
        let enlarged = format!(
            "are smaller than {width}x{height} px and were enlarged, so that they are less sharp than others of this \
             size"
        );
        let lines = [(self.n_cropped(), cropped), (self.n_enlarged(), enlarged)];
        let happened = lines.into_iter().filter(|(n, _)| *n > 0);
        happened.map(|(n, what)| format!("{}: {n} of {len} images {what}", self.name)).collect()
    }

    /// How many of those that were read last had another size, before they were cropped to it.
    pub fn n_cropped(&self) -> usize {
        self.cropped.load(Ordering::Relaxed)
    }

    /// How many of those that were read last were smaller than the size, before they were cropped to it.
    pub fn n_enlarged(&self) -> usize {
        self.enlarged.load(Ordering::Relaxed)
    }

    /// Whether they are those of an `.npz` file, in an order that its maker chose.
    pub(crate) fn is_npz(&self) -> bool {
        matches!(self.origin, Origin::Npz { .. })
    }

    /// How the source was understood, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// One index for each image, if [`labels`](Self::labels) are indices with no name beside them (`arr_1`):
    /// whether they count the same classes as others cannot be seen.
    pub fn bare_labels(&self) -> Option<&[usize]> {
        match &self.origin {
            Origin::Npz { labels, .. } => labels.as_deref(),
            Origin::Dataset { .. } => None,
        }
    }

    /// The class of each image among classes, or why they are not known: class folders by their names, or by
    /// their indices where no class is called by a number, `arr_1` of an `.npz` file, or file names that begin with
    /// the index of a class and a hyphen, as `sar sample` gives them. A name behind that has to be the one of the
    /// class, see [`class_slug`].
    pub fn labels(&self, classes: &[String]) -> Result<Vec<usize>, String> {
        let labels = match &self.origin {
            Origin::Npz { labels: Some(labels), .. } => labels.clone(),
            Origin::Npz { labels: None, .. } => {
                return Err("the .npz file has no labels (arr_1)".into());
            }
            Origin::Dataset { dataset, indices, .. } if dataset.classes() == classes => {
                indices.iter().map(|i| dataset.label(*i)).collect()
            }
            Origin::Dataset { dataset, indices, .. } if dataset.classes().len() > 1 => {
                let labels = dataset.classes().iter().map(|name| class_of_folder(name, classes));
                let labels = labels.collect::<Result<Vec<_>, _>>()?;
                indices.iter().map(|i| labels[dataset.label(*i)]).collect()
            }
            Origin::Dataset { dataset, indices, .. } => {
                let of = |i: &usize| {
                    let name = dataset.name(*i);
                    let file = name.rsplit('/').next().unwrap_or(&name);
                    label_of(file, classes)
                };
                indices.iter().map(of).collect::<Result<Vec<usize>, _>>()?
            }
        };
        match labels.iter().find(|label| **label >= classes.len()) {
            Some(label) => Err(format!("label {label} is none of {} classes", classes.len())),
            None => Ok(labels),
        }
    }

    /// Hands on the images in order, a batch at a time, read ahead on threads.
    ///
    /// # Errors
    /// If an image cannot be read or has another size, and what `seen` returns.
    ///
    /// # Panics
    /// If the batch is 0.
    pub fn for_each_batch<E: From<EvalError>>(
        &self,
        batch: usize,
        mut seen: impl FnMut(Vec<RgbImage>) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(batch > 0, "batches of no images");
        match &self.origin {
            Origin::Npz { path, .. } => Npz::open(path)?.for_each_batch(batch, seen),
            Origin::Dataset { dataset, indices, others } => {
                let [height, width] = self.size;
                let (of, at, others) = (Arc::clone(dataset), indices.clone(), *others);
                let [cropped, enlarged] = [&self.cropped, &self.enlarged].map(Arc::clone);
                cropped.store(0, Ordering::Relaxed);
                enlarged.store(0, Ordering::Relaxed);
                let ReadAhead { threads, batches } = ReadAhead::default();
                let positions = 0..indices.len() as u64;
                let mut images = Prefetch::new(
                    positions,
                    threads,
                    batches * batch,
                    move |position| -> Result<RgbImage, EvalError> {
                        let index = at[position as usize];
                        let image = of.image(index)?;
                        let own = [image.height() as usize, image.width() as usize];
                        if own == [height, width] {
                            return Ok(image);
                        }
                        match others {
                            Others::Cropped => {
                                cropped.fetch_add(1, Ordering::Relaxed);
                                if own[0].min(own[1]) < height {
                                    enlarged.fetch_add(1, Ordering::Relaxed);
                                }
                                let square = Crop::AdmCenter {}.evaluation(image, height as u32);
                                Ok(square.expect("this crop takes any size"))
                            }
                            Others::Refused => Err(EvalError::Sizes {
                                image: of.describe(index),
                                size: own,
                                first: of.describe(at[0]),
                                first_size: [height, width],
                            }),
                            Others::NoSquares => Err(EvalError::NoSquare {
                                image: of.describe(index),
                                size: own,
                                wanted: [height, width],
                            }),
                        }
                    },
                );
                loop {
                    let some: Vec<RgbImage> =
                        (&mut images).take(batch).collect::<Result<_, _>>()?;
                    if some.is_empty() {
                        return Ok(());
                    }
                    seen(some)?;
                }
            }
        }
    }
}

/// The class of a class folder. A part of a name is not enough: what is like it may be another class. Nor are
/// words that two classes share, or none.
fn class_of_folder(name: &str, classes: &[String]) -> Result<usize, String> {
    if let Some(label) = classes.iter().position(|class| class == name) {
        return Ok(label);
    }
    let has_words = |text: &str| text.chars().any(char::is_alphanumeric);
    let slug = class_slug(name);
    let is_like_it = |class: &str| has_words(name) && has_words(class) && class_slug(class) == slug;
    let mut like_it = (0..classes.len()).filter(|label| is_like_it(&classes[*label]));
    match (like_it.next(), like_it.next()) {
        (Some(label), None) => return Ok(label),
        (Some(one), Some(other)) => {
            let [one, other] = [one, other].map(|label| &classes[label]);
            return Err(format!("class folder {name}: may be the class '{one}' or '{other}'"));
        }
        (None, _) => {}
    }
    let is_number = |text: &String| text.parse::<usize>().is_ok();
    match name.parse::<usize>() {
        Ok(label) if label < classes.len() && !classes.iter().any(is_number) => Ok(label),
        _ => Err(format!("class folder {name}: the reference has no class of this name")),
    }
}

/// The class that a file's name begins with, as in `3-food-drink-007.png` or `3-007.png`.
fn label_of(file: &str, classes: &[String]) -> Result<usize, String> {
    let parts = file.split_once('-').and_then(|(index, rest)| Some((index.parse().ok()?, rest)));
    let Some((label, rest)) = parts else {
        return Err(format!("the name of {file} does not begin with a class"));
    };
    let Some(class) = classes.get(label) else {
        return Err(format!("{file}: label {label} is none of {} classes", classes.len()));
    };
    let stem = rest.rsplit_once('.').map_or(rest, |(stem, _)| stem);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let slug = match stem.rsplit_once('-') {
        Some((slug, number)) if is_number(number) => slug,
        _ if is_number(stem) => return Ok(label),
        _ => stem,
    };
    // Weights that do not know the names of their classes call them by their numbers.
    let known = [class_slug(class), label.to_string()];
    if known.iter().any(|known| known == slug || known == stem) {
        return Ok(label);
    }
    Err(format!("{file} says class '{slug}', the reference's class {label} is '{class}'"))
}

/// A class name as part of a file name: `Smileys & Emotion` to `smileys-emotion`.
pub fn class_slug(class: &str) -> String {
    let words = class.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-").to_lowercase();
    if name.is_empty() { "class".into() } else { name }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::Rgb;

    use super::*;

    #[test]
    fn a_name_beside_the_index_of_a_class_has_to_be_its_name() {
        let classes = ["Smileys & Emotion", "People", "7", "Area 51"].map(String::from);
        let label = |file: &str| label_of(file, &classes);
        for (file, expected) in [
            ("0-smileys-emotion-000.png", 0),
            ("1-people-1234.png", 1),
            ("1-people.png", 1),
            ("0-17.png", 0),
            ("1-1-017.png", 1),
            ("2-7-000.png", 2),
            ("2-2-000.png", 2),
            ("3-area-51.png", 3),
            ("3-area-51-51.png", 3),
        ] {
            assert_eq!(label(file), Ok(expected), "{file}");
        }
        for (file, part) in [
            (
                "1-smileys-emotion-000.png",
                "says class 'smileys-emotion', the reference's class 1 is 'People'",
            ),
            ("0-smileys-000.png", "says class 'smileys'"),
            ("2-9-000.png", "says class '9'"),
            ("4-people-000.png", "label 4 is none of 4 classes"),
            ("people-000.png", "does not begin with a class"),
            ("000.png", "does not begin with a class"),
        ] {
            let error = label(file).unwrap_err();
            assert!(error.contains(file) && error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_class_folder_is_of_its_name_not_of_one_like_it() {
        let classes = ["Smileys & Emotion", "caterpillar", "area-51"].map(String::from);
        let label = |name: &str| class_of_folder(name, &classes);
        for (name, expected) in [
            ("Smileys & Emotion", 0),
            ("smileys-emotion", 0),
            ("caterpillar", 1),
            ("Area 51", 2),
            ("0", 0),
            ("002", 2),
        ] {
            assert_eq!(label(name), Ok(expected), "{name}");
        }
        for name in ["cat", "pillar", "Smileys", "3", "-1", "51"] {
            let error = label(name).unwrap_err();
            assert_eq!(
                error,
                format!("class folder {name}: the reference has no class of this name")
            );
        }
        // No words, or words of two classes.
        let others = ["😀", "🐾", "A B", "a-b"].map(String::from);
        assert_eq!(class_of_folder("🐾", &others), Ok(1));
        assert_eq!(class_of_folder("a-b", &others), Ok(3));
        for name in ["🎈", "class"] {
            assert!(class_of_folder(name, &others).unwrap_err().contains("no class of this name"));
        }
        let error = class_of_folder("A-B", &others).unwrap_err();
        assert_eq!(error, "class folder A-B: may be the class 'A B' or 'a-b'");
        // Names that are numbers are no indices.
        let numbers = ["1", "2", "10"].map(String::from);
        assert_eq!(class_of_folder("10", &numbers), Ok(2));
        assert!(class_of_folder("0", &numbers).is_err());
    }

    #[test]
    fn of_a_split_the_held_out_images_are_measured() {
        let root = tempfile::tempdir().unwrap();
        for (part, n) in [("train/a", 5), ("val/a", 2), ("train/b", 1), ("val/b", 1)] {
            fs::create_dir_all(root.path().join(part)).unwrap();
            for i in 0..n {
                let level = if part.starts_with("val") { 200 } else { 10 };
                let image = RgbImage::from_pixel(8, 6, Rgb([level; 3]));
                image.save(root.path().join(part).join(format!("{i}.png"))).unwrap();
            }
        }
        let measured = |path: &Path| {
            let source = ImageSource::Folder { path: path.into(), held_out: None };
            let name = path.display().to_string();
            let pictures = Pictures::of_source(name, &source, None).unwrap();
            assert_eq!((pictures.size(), pictures.bare_labels()), ([6, 8], None));
            assert_eq!(pictures.is_held_out(), path == root.path());
            let mut levels = Vec::new();
            let read = pictures.for_each_batch(2, |images| {
                levels.extend(images.iter().map(|image| image.get_pixel(0, 0).0[0]));
                Ok::<_, EvalError>(())
            });
            read.unwrap();
            assert_eq!(levels.len(), pictures.len());
            let labels = pictures.labels(&["a".into(), "b".into()]).unwrap();
            (levels, labels, pictures.notes().last().unwrap().clone())
        };
        let (levels, labels, note) = measured(root.path());
        assert_eq!((levels, labels), (vec![200; 3], vec![0, 0, 1]));
        assert!(note.ends_with(": measures 3 held-out images, not 6 that train"), "{note}");
        let (levels, labels, note) = measured(&root.path().join("train"));
        assert_eq!((levels, labels), (vec![10; 6], vec![0, 0, 0, 0, 0, 1]));
        assert!(note.ends_with("train: measures all 6 images"), "{note}");
    }
}
