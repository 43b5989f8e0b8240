//! Real images: what others are compared with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::backend::Backend;
use sar_data::{Dataset, ImageSource, Split};
use sar_eval::{Extractor, FeatureSet, Keep, Looking, Npz, Pictures, Reference, read_statistics};
use sar_train::Recipe;
use sar_train::recipe::BUILT_IN;
use serde_json::{Value, json};

use super::{Progress, announce, announce_kept};

/// The side of the embedded emoji as they are.
const EMOJI_SIDE: u32 = 64;

/// Where images come from.
pub(super) enum Source {
    /// A folder, or the source of a recipe with the side of its images.
    Images { name: String, source: ImageSource, side: Option<u32> },
    /// Images, moments of features, or both.
    Npz(PathBuf),
}

/// Real images that were looked at.
pub(super) struct Real {
    pub(super) reference: Reference,
    /// Their classes, where they are known.
    pub(super) classes: Vec<String>,
    /// What the report says of them.
    pub(super) described: Value,
}

/// Whether a path is the name of a built-in recipe, which then is meant: a file or folder of that name is `./NAME`.
fn is_built_in(path: &Path) -> bool {
    BUILT_IN.iter().any(|(name, _)| path.as_os_str() == *name)
}

/// The recipe of what was said, where that is the folder of a run.
pub(super) fn run_recipe(said: &Path) -> Option<PathBuf> {
    recipe_of(said).filter(|_| !is_built_in(said))
}

/// The recipe in the folder of a run.
fn recipe_of(run: &Path) -> Option<PathBuf> {
    let path = run.join("recipe.toml");
    path.is_file().then_some(path)
}

impl Source {
    /// An `.npz` file, a folder, or a recipe by its name or file.
    pub(super) fn named(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npz")) {
            return Ok(Self::Npz(path.into()));
        }
        let name = path.to_string_lossy().into_owned();
        if is_built_in(path) {
            if path.exists() {
                eprintln!(
                    "{name}: taken as the built-in recipe; what is called so here is ./{name}"
                );
            }
        } else if path.is_dir() {
            let source = ImageSource::Folder { path: path.into(), held_out: None };
            return Ok(Self::Images { name, source, side: None });
        }
        let recipe = Recipe::load(&name, &[])
            .with_context(|| format!("{name}: neither a folder nor an .npz file nor a recipe"))?;
        let (name, data) = (format!("recipe {}", recipe.name), recipe.data);
        Ok(Self::Images { name, source: data.source, side: Some(data.side) })
    }

    /// Real images: what was said, where a run means its recipe, else those of the run that is measured, else
    /// the embedded emoji.
    pub(super) fn of_real(said: Option<&Path>, run: Option<&Path>) -> Result<Self> {
        let said = said.map(|path| run_recipe(path).unwrap_or_else(|| path.into()));
        match said.or_else(|| recipe_of(run?)) {
            Some(path) => Self::named(&path).context("--reference"),
            None => {
                let name = "embedded emoji".to_owned();
                eprintln!("reference: the {name}; --reference names others");
                Ok(Self::Images { name, source: ImageSource::Emoji {}, side: Some(EMOJI_SIDE) })
            }
        }
    }

    /// Whether it is an `.npz` file, whose classes have no names.
    pub(super) fn is_npz(&self) -> bool {
        matches!(self, Self::Npz(_))
    }

    /// Opens the real images, at the size of those that are compared with them, where there is one; looks at
    /// none yet.
    pub(super) fn open(&self, size: Option<[usize; 2]>) -> Result<Opened> {
        let opened = match self {
            Self::Npz(path) => of_npz(path),
            Self::Images { name, source, side } => {
                of_dataset(name, source, side.map(|side| [side as usize; 2]), size)
            }
        };
        let opened = opened.context("--reference")?;
        if let Kind::Images { pictures, moments, .. } = &opened.kind {
            let (name, [h, w]) = (pictures.name(), pictures.size());
            match size {
                Some([height, width]) if [height, width] != [h, w] => eprintln!(
                    "{name}: {w}x{h} px, the images have {width}x{height}; either is resized for the network"
                ),
                None if moments.is_none() => eprintln!(
                    "{name}: looked at with {w}x{h} px; of what size the measured images were is not known"
                ),
                _ => {}
            }
        }
        Ok(opened)
    }
}

/// The moments in an `.npz` file that has no images.
pub(super) fn moments_alone(path: &Path) -> Result<Option<FeatureSet>> {
    if Npz::open(path)?.images()?.is_some() {
        return Ok(None);
    }
    let name = path.display();
    let Some(set) = read_statistics(path)? else {
        bail!("{name}: has neither images (arr_0) nor mean and covariance (mu, sigma)");
    };
    eprintln!("{name}: mean and covariance: Fréchet distances alone, without a floor");
    Ok(Some(set))
}

/// Checks that moments are of the features of a network.
pub(super) fn check_moments<B: Backend>(
    name: &str,
    set: &FeatureSet,
    extractor: &Extractor<B>,
) -> Result<()> {
    let (found, wanted) = (set.moments().dim(), extractor.dimension());
    ensure!(
        found == wanted,
        "{name}: mu and sigma are of {found} features, {} has {wanted}",
        extractor.name()
    );
    Ok(())
}

/// Real images that are there.
pub(super) struct Opened {
    name: String,
    kind: Kind,
    /// None where they are not known; of an `.npz` file their numbers.
    pub(super) classes: Vec<String>,
    /// What the report says of them.
    described: Value,
}

enum Kind {
    /// Images with labels where there are classes, and moments that stand for those of their features.
    Images {
        pictures: Box<Pictures>,
        split: Split,
        labels: Vec<usize>,
        moments: Option<FeatureSet>,
    },
    /// Of their features the moments alone.
    Moments(FeatureSet),
}

/// Images of a folder, or of a recipe at its size where no other is wanted.
fn of_dataset(
    name: &str,
    source: &ImageSource,
    of_recipe: Option<[usize; 2]>,
    wanted: Option<[usize; 2]>,
) -> Result<Opened> {
    let size = wanted.or(of_recipe);
    if let (ImageSource::Emoji {}, Some([height, width])) = (source, size) {
        ensure!(
            height == width,
            "emoji are squares, the images have {width}x{height} px; name another --reference"
        );
    }
    let mut side = size.map_or(0, |[height, _]| height as u32);
    if let ImageSource::Emoji {} = source {
        // Those that are too small for their size are enlarged as images of other sources are.
        side = side.min(EMOJI_SIDE);
    }
    let dataset: Arc<dyn Dataset> = source.open(side, &|| ())?.into();
    dataset.notes().iter().for_each(|note| eprintln!("{note}"));
    let all: Vec<usize> = (0..dataset.len()).collect();
    let labels: Vec<usize> = all.iter().map(|i| dataset.label(*i)).collect();
    let split = dataset.split();
    let classes = match dataset.classes() {
        [_] => Vec::new(),
        several => several.to_vec(),
    };
    // A folder of one size stays as it is, as an .npz file does.
    let size = size.filter(|size| of_recipe.is_some() || !has_one_other_size(&*dataset, *size));
    let pictures = Box::new(Pictures::of_dataset(name.into(), dataset, all, size)?);
    let described = json!({
        "source": name,
        "n": pictures.len(),
        "held_out": split.held_out.len(),
        "size": pictures.size(),
        "classes": classes.len(),
    });
    let kind = Kind::Images { pictures, split, labels, moments: None };
    Ok(Opened { name: name.into(), kind, classes, described })
}

/// Whether all images have one size, height and width, which is another; not where a header cannot be read.
fn has_one_other_size(dataset: &dyn Dataset, size: [usize; 2]) -> bool {
    let other = size.map(|length| length as u32);
    let mut sizes = (0..dataset.len()).map(|i| dataset.size_in_header(i));
    match sizes.next() {
        Some(Some([width, height])) if [height, width] != other => {
            sizes.all(|size| size == Some([width, height]))
        }
        _ => false,
    }
}

fn of_npz(path: &Path) -> Result<Opened> {
    let name = path.display().to_string();
    if let Some(set) = moments_alone(path)? {
        let described = json!({ "source": name, "kind": "moments", "hash": set.hash() });
        return Ok(Opened { name, kind: Kind::Moments(set), classes: Vec::new(), described });
    }
    // Moments that are there are those that published figures are of.
    let (pictures, moments) = (Box::new(Pictures::npz(path)?), read_statistics(path)?);
    let n = pictures.len();
    if moments.is_some() {
        eprintln!("{name}: Fréchet distances of mu and sigma, all else of its {n} images (arr_0)");
    }
    let split = Split::every_tenth(n);
    let labels = pictures.bare_labels().unwrap_or_default().to_vec();
    let n_classes = labels.iter().max().map_or(0, |last| last.saturating_add(1));
    let classes: Vec<String> = match n_classes {
        0 | 1 => Vec::new(),
        2.. if n_classes <= n => (0..n_classes).map(|class| class.to_string()).collect(),
        _ => {
            let last = n_classes - 1;
            eprintln!("{name}: no classes: labels (arr_1) go up to {last}, of {n} images");
            Vec::new()
        }
    };
    let of_moments =
        |set: &FeatureSet| json!({ "source": "mu and sigma of the file", "hash": set.hash() });
    let described = json!({
        "source": name,
        "n": n,
        "held_out": split.held_out.len(),
        "size": pictures.size(),
        "classes": classes.len(),
        "moments": moments.as_ref().map(of_moments),
    });
    let kind = Kind::Images { pictures, split, labels, moments };
    Ok(Opened { name, kind, classes, described })
}

impl Opened {
    /// Looks at them.
    pub(super) fn look<B: Backend>(
        self,
        extractor: &Extractor<B>,
        keep: Keep,
        device: &B::Device,
    ) -> Result<Real> {
        let Self { name, kind, classes, mut described } = self;
        if let Kind::Moments(set) | Kind::Images { moments: Some(set), .. } = &kind {
            check_moments(&name, set, extractor).context("--reference")?;
        }
        let mut seen = |pictures: &Pictures| -> Result<FeatureSet> {
            let set = features(pictures, extractor, keep, device)?;
            described["hash"] = json!(set.hash());
            let [cropped, enlarged] = said_of_sizes(pictures);
            described["cropped"] = json!(cropped);
            described["enlarged"] = json!(enlarged);
            Ok(set)
        };
        let reference = match (keep, kind) {
            (_, Kind::Moments(set)) | (Keep::Moments, Kind::Images { moments: Some(set), .. }) => {
                Reference::of(set)
            }
            (Keep::Moments, Kind::Images { pictures, .. }) => Reference::of(seen(&pictures)?),
            (Keep::Features, Kind::Images { pictures, split, labels, moments }) => {
                let mut set = seen(&pictures)?;
                if let Some(moments) = moments {
                    set = set.with_moments(moments);
                }
                let labels = (!classes.is_empty()).then_some((labels.as_slice(), classes.len()));
                let Split { train, held_out } = &split;
                if train.is_empty() || held_out.is_empty() {
                    eprintln!(
                        "reference {name}: has not both training and held-out images; without them there is no \
                         floor, no class accuracy, and nothing is said of copies"
                    );
                    Reference::of(set)
                } else {
                    Reference::split(set, [train, held_out], labels)?
                }
            }
        };
        Ok(Real { reference, classes, described })
    }
}

/// How many images had another size than they are looked at with, and how many were smaller, which is said.
pub(super) fn said_of_sizes(pictures: &Pictures) -> [usize; 2] {
    pictures.resized().iter().for_each(|line| eprintln!("{line}"));
    [pictures.n_cropped(), pictures.n_enlarged()]
}

fn features<B: Backend>(
    pictures: &Pictures,
    extractor: &Extractor<B>,
    keep: Keep,
    device: &B::Device,
) -> Result<FeatureSet> {
    // Training and held-out images are kept apart beside all of them.
    announce_kept(pictures);
    announce(pictures.len(), 2, extractor, keep);
    let mut progress = Progress::new("reference: looked at", pictures.len());
    let looking = Looking::new(extractor, keep, device);
    FeatureSet::of_pictures(pictures, looking, |n, _| progress.at(n)).context("--reference")
}

#[cfg(test)]
mod tests {
    use sar_eval::EvalError;

    use super::*;

    #[test]
    fn emoji_are_enlarged_beside_larger_images() {
        let emoji = ImageSource::Emoji {};
        let opened = of_dataset("emoji", &emoji, Some([64; 2]), Some([80; 2])).unwrap();
        let Kind::Images { pictures, .. } = opened.kind else { panic!("images") };
        assert_eq!((pictures.size(), pictures.len()), ([80; 2], 1906));
        // The first batch is enough.
        let stop = || EvalError::Unfit { problem: "enough".into() };
        let read = pictures.for_each_batch(2, |images| {
            assert!(images.iter().all(|image| image.dimensions() == (80, 80)));
            Err(stop())
        });
        assert_eq!(read.unwrap_err().to_string(), "enough");
        assert!(pictures.n_enlarged() >= 2 && pictures.n_cropped() >= 2);
        let wide = of_dataset("emoji", &emoji, Some([64; 2]), Some([40, 80]));
        assert!(
            wide.err().unwrap().to_string().contains("emoji are squares, the images have 80x40")
        );
    }
}
