//! Images of one size whose features are taken: a folder, an `.npz` file, or a source of a recipe.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sar_core::find_class;
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
}

enum Origin {
    /// Images of a data set, by their indices.
    Dataset {
        dataset: Arc<dyn Dataset>,
        indices: Vec<usize>,
        others: Others,
    },
    Npz {
        path: PathBuf,
        labels: Option<Vec<usize>>,
    },
}

/// What becomes of images of another size.
#[derive(Clone, Copy)]
enum Others {
    /// They are an error.
    Refused,
    /// They become squares, see [`Crop::AdmCenter`].
    Cropped,
}

impl Pictures {
    /// The images of a folder, of class folders or all in one.
    ///
    /// # Errors
    /// If there are none, or the first one cannot be read.
    pub fn folder(path: &Path) -> Result<Self, EvalError> {
        let source = ImageSource::Folder { path: path.into(), held_out: None };
        let dataset: Arc<dyn Dataset> = source.open(0, &|| ())?.into();
        let (width, height) = dataset.image(0)?.dimensions();
        let indices: Vec<usize> = (0..dataset.len()).collect();
        let left_out = dataset.left_out().iter().map(|kind| format!("left out {kind}"));
        let notes = dataset.notes().iter().cloned().chain(left_out).collect();
        Ok(Self {
            name: path.display().to_string(),
            size: [height as usize, width as usize],
            len: indices.len(),
            notes,
            origin: Origin::Dataset { dataset, indices, others: Others::Refused },
        })
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
        let labels = npz.labels()?;
        if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != n) {
            return Err(problem(format!("{} labels (arr_1) of {n} images (arr_0)", labels.len())));
        }
        Ok(Self {
            name: path.display().to_string(),
            size: [height, width],
            len: n,
            notes: Vec::new(),
            origin: Origin::Npz { path: path.into(), labels },
        })
    }

    /// Some images of a data set at a size. Images of other sizes become squares ([`Crop::AdmCenter`])
    /// if the size is one.
    ///
    /// # Errors
    /// If there are none, or images would have to become anything but squares.
    pub fn of_dataset(
        name: String,
        dataset: Arc<dyn Dataset>,
        indices: Vec<usize>,
        size: [usize; 2],
    ) -> Result<Self, EvalError> {
        if indices.is_empty() {
            return Err(EvalError::Unfit { problem: format!("{name}: has no images") });
        }
        let others = if size[0] == size[1] { Others::Cropped } else { Others::Refused };
        let notes = Vec::new();
        let len = indices.len();
        Ok(Self { origin: Origin::Dataset { dataset, indices, others }, name, size, len, notes })
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

    /// How the source was understood, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The class of each image among classes, or why they are not known: class folders by their names,
    /// `arr_1` of an `.npz` file, or file names that begin with the index of a class and a hyphen, as
    /// `sar sample` gives them.
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
                let of = |name: &String| match find_class(classes, name) {
                    Ok(label) => Ok(label),
                    Err(error) => Err(format!("class folder {name}: {error}")),
                };
                let labels = dataset.classes().iter().map(of).collect::<Result<Vec<_>, _>>()?;
                indices.iter().map(|i| labels[dataset.label(*i)]).collect()
            }
            Origin::Dataset { dataset, indices, .. } => {
                let of = |i: &usize| {
                    let name = dataset.name(*i);
                    let file = name.rsplit('/').next().unwrap_or(&name);
                    let label = file.split_once('-').and_then(|(label, _)| label.parse().ok());
                    label.ok_or_else(|| format!("the name of {file} does not begin with a class"))
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
                let ReadAhead { threads, batches } = ReadAhead::default();
                let positions = 0..indices.len() as u64;
                let mut images =
                    Prefetch::new(positions, threads, batches * batch, move |position| {
                        let index = at[position as usize];
                        let image = of.image(index)?;
                        fitted(image, [height, width], others).map_err(|size| EvalError::Sizes {
                            image: of.describe(index),
                            size,
                            first: of.describe(at[0]),
                            first_size: [height, width],
                        })
                    });
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

/// An image of the size, or its own size, if it cannot become one of it.
fn fitted(image: RgbImage, size: [usize; 2], others: Others) -> Result<RgbImage, [usize; 2]> {
    let (width, height) = image.dimensions();
    let own = [height as usize, width as usize];
    match others {
        _ if own == size => Ok(image),
        Others::Refused => Err(own),
        Others::Cropped => Ok(Crop::AdmCenter {}
            .evaluation(image, size[0] as u32)
            .expect("this crop takes any size")),
    }
}
