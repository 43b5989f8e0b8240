//! The figures as JSON and as a table.

use anyhow::Result;
use burn::tensor::backend::Backend;
use sar_eval::{Extractor, FeatureSet, Quality};
use sar_metrics::Ridge;
use serde_json::{Map, Value, json};

use super::Seen;
use super::reference::Real;
use crate::table::aligned;

/// What a run of `sar eval` found.
pub(super) struct Report {
    kind: Kind,
    fields: Map<String, Value>,
    floor: Option<Quality>,
    results: Vec<Value>,
}

/// What figures of a network are called.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    EfficientNet,
    Inception,
}

impl Kind {
    pub(super) fn of<B: Backend>(extractor: &Extractor<B>) -> Self {
        if extractor.name() == "efficientnet-lite0" { Self::EfficientNet } else { Self::Inception }
    }

    /// What people call its Fréchet distance.
    pub(super) fn frechet(self) -> &'static str {
        match self {
            Self::EfficientNet => "FD-EffNetLite0",
            Self::Inception => "FID",
        }
    }

    /// Names of the Fréchet distance, the kernel distance and the sliced one.
    fn keys(self) -> [&'static str; 3] {
        match self {
            Self::EfficientNet => ["fd_effnetlite0", "kid_effnetlite0", "mind_effnetlite0"],
            Self::Inception => ["fid", "kid", "mind"],
        }
    }
}

impl Report {
    pub(super) fn new<B: Backend>(extractor: &Extractor<B>, real: &Real) -> Result<Self> {
        let kind = Kind::of(extractor);
        let floor = real.reference.floor()?;
        if real.reference.holds_out_copies() {
            eprintln!(
                "reference: half of its held-out images and more are among the others; copies of those are not looked for"
            );
        }
        let mut fields = Map::new();
        let network = json!({
            "name": extractor.name(), "input": extractor.input(), "hash": extractor.hash()
        });
        fields.insert("extractor".into(), network);
        fields.insert("reference".into(), real.described.clone());
        fields.insert("measures".into(), measures());
        fields.insert("sar".into(), json!(env!("CARGO_PKG_VERSION")));
        fields.insert("commit".into(), json!(option_env!("SAR_COMMIT")));
        let of_floor = floor.as_ref().map(|floor| figures(kind, floor));
        fields.insert("floor".into(), json!(of_floor));
        Ok(Self { kind, fields, floor, results: Vec::new() })
    }

    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.fields.insert(name.into(), value);
    }

    pub(super) fn floor(&self) -> Option<&Quality> {
        self.floor.as_ref()
    }

    /// Compares images with the real ones; `settings` are what a sweep has chosen.
    pub(super) fn add(&mut self, seen: &Seen, real: &Real, settings: Value) -> Result<Quality> {
        let quality = real.reference.compare(&seen.set, seen.labels.as_deref())?;
        if self.results.is_empty() {
            match quality.rank_deficient {
                Some(true) => {
                    let fewest = count(&quality).into_iter().chain(quality.n_reference).min();
                    eprintln!(
                        "{} images or fewer than features: the Fréchet distance is far too large, and compares \
                         with those of as many images only",
                        fewest.expect("a number that is too small")
                    );
                }
                None => eprintln!(
                    "mu and sigma do not say of how many images they are: the Fréchet distance compares with those \
                     of as many only, and is far too large if they are no more than features"
                ),
                Some(false) => {}
            }
            if let Some(labels) = &seen.labels
                && let Some(class) = real.reference.not_learned(labels)
            {
                eprintln!(
                    "no class accuracy: of class {class}, '{}', the reference has no training image",
                    real.classes[class]
                );
            }
        }
        let mut result = figures(self.kind, &quality);
        result.insert("images_hash".into(), json!(seen.set.hash()));
        if let Value::Object(settings) = settings {
            result.extend(settings);
        }
        self.results.push(Value::Object(result));
        Ok(quality)
    }

    /// Of one set of images its figures and all settings; of a sweep the figures in `sweep`, beside the number of
    /// images of each.
    pub(super) fn json(&self) -> Value {
        let mut fields = self.fields.clone();
        match &self.results[..] {
            [Value::Object(one)] => fields.extend(one.clone()),
            several => {
                // As many images at each setting.
                let n = several.first().map(|first| first["n"].clone());
                fields.insert("n".into(), json!(n));
                fields.insert("sweep".into(), json!(several));
            }
        }
        Value::Object(fields)
    }
}

/// The settings of figures, which are the same for all images.
fn measures() -> Value {
    let [published, newer] = Quality::NEIGHBORS;
    json!({
        "seed": Quality::SEED,
        "neighbors": {
            "precision": published, "recall": published, "density": newer, "coverage": newer
        },
        "mind_directions": Quality::DIRECTIONS,
        "inception_score_split": FeatureSet::SPLIT,
        "probe": Ridge::default(),
    })
}

/// The number of images, where it is known.
fn count(quality: &Quality) -> Option<usize> {
    (quality.n > 0).then_some(quality.n)
}

fn figures(kind: Kind, quality: &Quality) -> Map<String, Value> {
    let [frechet, kernel, sliced] = kind.keys();
    let subsets = quality.kernel_of_subsets.map(|(of, size)| {
        json!({ "mean": of.mean, "deviation": of.deviation, "size": size, "count": of.n })
    });
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        fields.insert(name.into(), value);
    };
    put("n", json!(count(quality)));
    put("n_reference", json!(quality.n_reference));
    put(frechet, json!(quality.frechet));
    put("rank_deficient", json!(quality.rank_deficient));
    if kind == Kind::Inception {
        put("sfid", json!(quality.frechet_of_places));
        put("inception_score", json!(quality.inception_score.map(|score| score.mean)));
        put("inception_score_deviation", json!(quality.inception_score.map(|of| of.deviation)));
    }
    put(kernel, json!(quality.kernel));
    put(&format!("{kernel}_subsets"), json!(subsets));
    put(sliced, json!(quality.mind.map(|of| of.mean)));
    put(&format!("{sliced}_standard_error"), json!(quality.mind.map(|of| of.standard_error())));
    put("precision", json!(quality.precision));
    put("recall", json!(quality.recall));
    put("density", json!(quality.density));
    put("coverage", json!(quality.coverage));
    put("class_accuracy", json!(quality.class_accuracy));
    put("memorization", json!(quality.memorization));
    fields
}

/// A row for each set of images, and the floor; of few sets a column for each.
pub(super) fn table<B: Backend>(
    extractor: &Extractor<B>,
    rows: &[(&str, &Quality)],
    floor: Option<&Quality>,
) -> String {
    let kind = Kind::of(extractor);
    let mut lines = vec![vec![String::new(), "images".to_owned()]];
    lines[0].extend(shown(kind, None).into_iter().map(|(name, _)| name.to_owned()));
    let floor = floor.map(|floor| ("held-out real", floor));
    for (name, quality) in rows.iter().copied().chain(floor) {
        let n = count(quality).map_or_else(|| "-".into(), |n| n.to_string());
        let mut line = vec![name.to_owned(), n];
        line.extend(shown(kind, Some(quality)).into_iter().map(|(_, value)| value));
        lines.push(line);
    }
    if lines.len() > MOST_COLUMNS {
        return aligned(&lines);
    }
    let columns = 0..lines[0].len();
    let turned = columns.map(|i| lines.iter().map(|line| line[i].clone()).collect());
    aligned(&turned.collect::<Vec<Vec<String>>>())
}

/// Sets of images, with the names, that stand side by side.
const MOST_COLUMNS: usize = 4;

/// Names and values of the figures of a table.
fn shown(kind: Kind, of: Option<&Quality>) -> Vec<(&'static str, String)> {
    let value = |figure: fn(&Quality) -> Option<f64>, digits: usize| match of.and_then(figure) {
        Some(value) => format!("{value:.digits$}"),
        None => "-".into(),
    };
    let mut all = Vec::new();
    all.push((kind.frechet(), value(|of| Some(of.frechet), 2)));
    if kind == Kind::Inception {
        all.push(("sFID", value(|of| of.frechet_of_places, 2)));
        all.push(("IS", value(|of| of.inception_score.map(|score| score.mean), 2)));
    }
    all.push(("KID x1000", value(|of| of.kernel.map(|kernel| 1000.0 * kernel), 2)));
    all.push(("MIND", value(|of| of.mind.map(|of| of.mean), 2)));
    all.push(("precision", value(|of| of.precision, 3)));
    all.push(("recall", value(|of| of.recall, 3)));
    all.push(("density", value(|of| of.density, 3)));
    all.push(("coverage", value(|of| of.coverage, 3)));
    all.push(("class accuracy", value(|of| of.class_accuracy, 3)));
    all.push(("near a training image", value(|of| of.memorization.map(|of| of.near_share), 3)));
    all
}
