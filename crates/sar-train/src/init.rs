//! The weights that a recipe's stages start from, read and checked before anything is written.

use std::mem::discriminant;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use sar_core::{FirstScale, SeedTree};
use sar_model::{Backbone, BackboneConfig, BackboneConfigError, LAYOUT};
use sar_pipeline::{CodebookSketch, Known, TrainedBackbone, TrainedTokenizer};
use sar_tokenizer::Tokenizer;
use sar_weights::{Layout, NamedTensors, WeightsFile, bind, checksum, collect};
use serde::Serialize;

use crate::recipe::{Adapt, InitFrom, Recipe};
use crate::{StageId, TrainError};

/// The models of a recipe before their first step.
#[derive(Debug)]
pub(crate) struct Initial<B: Backend> {
    pub(crate) tokenizer: Tokenizer<B>,
    pub(crate) backbone: Backbone<B>,
    /// Some of the codes that the backbone was trained with before, where its file says.
    pub(crate) codebook: Option<CodebookSketch>,
    /// What the user should know of files that were read: a line each.
    pub(crate) notes: Vec<String>,
}

/// The models of files that a recipe names; none where it starts from random weights.
pub(crate) struct Given<B: Backend> {
    tokenizer: Option<Tokenizer<B>>,
    backbone: Option<Backbone<B>>,
    codebook: Option<CodebookSketch>,
    pub(crate) notes: Vec<String>,
}

impl<B: Backend> Initial<B> {
    /// What tells these weights from others.
    pub(crate) fn checksum(&self, tokenizer: &Layout) -> String {
        let backbone = checksum(&self.backbone, &sar_model::LAYOUT);
        format!("{}-{backbone}", checksum(&self.tokenizer, tokenizer))
    }

    /// Random weights, or those of the files that the recipe names.
    ///
    /// # Errors
    /// If a file cannot be read, or holds another model than the recipe describes.
    pub(crate) fn load(
        recipe: &Recipe,
        classes: &[String],
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let Given { tokenizer, backbone, codebook, notes } = Given::load(recipe, classes, device)?;
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => {
                let seed = SeedTree::new(recipe.seed).child("tokenizer").child("init");
                sar_tokenizer::init(&recipe.tokenizer.model, recipe.tokenizer.init, seed, device)?
            }
        };
        let backbone = match backbone {
            Some(backbone) => backbone,
            None => random_backbone(recipe, classes.len(), device)?,
        };
        Ok(Self { tokenizer, backbone, codebook, notes })
    }
}

fn random_backbone<B: Backend>(
    recipe: &Recipe,
    classes: usize,
    device: &B::Device,
) -> Result<Backbone<B>, BackboneConfigError> {
    let seed = SeedTree::new(recipe.seed).child("backbone");
    sar_model::init(&recipe.backbone_config(classes), recipe.backbone.init, seed, device)
}

impl<B: Backend> Given<B> {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// If a file cannot be read, or holds another model than the recipe describes.
    pub(crate) fn load(
        recipe: &Recipe,
        classes: &[String],
        device: &B::Device,
    ) -> Result<Self, TrainError> {
        let mut notes = Vec::new();
        let config = &recipe.tokenizer.model;
        let tokenizer = match &recipe.tokenizer.init_from {
            InitFrom::Scratch {} => None,
            InitFrom::Weights { path, root, adapt: _ } => {
                let known = Known { root: root.clone(), ..Known::default() };
                let loaded = TrainedTokenizer::load(WeightsFile::open(path)?, &known, device)?;
                notes.extend(loaded.notes().map(|note| format!("{}: {note}", path.display())));
                if let Some((field, file, recipe)) = difference(&loaded.value.config, config) {
                    let problem = format!(
                        "{} has tokenizer.model.{field} = {file}, the recipe {recipe}; \
                         set the recipe's to the file's",
                        path.display()
                    );
                    return Err(TrainError::InitFrom { stage: StageId::Tokenizer, problem });
                }
                Some(loaded.value.model)
            }
        };
        let config = recipe.backbone_config(classes.len());
        let (backbone, codebook) = match &recipe.pretrain.init_from {
            InitFrom::Scratch {} => (None, None),
            InitFrom::Weights { path, root, adapt } => {
                let of_recipe = config.positions.only_scales().is_some();
                let known = Known {
                    root: root.clone(),
                    heads: Some(config.shape.heads),
                    scales: of_recipe.then(|| recipe.scales().clone()),
                    visibility: Some(config.shape.visibility),
                    first_scale: Some(config.shape.first_scale),
                    ..Known::default()
                };
                let loaded = TrainedBackbone::load(WeightsFile::open(path)?, &known, device)?;
                // What a file leaves open about classes and scales is the recipe's to say.
                notes.extend(loaded.place.map(|note| format!("{}: {note}", path.display())));
                // Those of a tokenizer that is still to be trained are known to nobody.
                let codes = tokenizer.as_ref().filter(|_| recipe.tokenizer.steps == 0);
                let sketch = loaded.value.codebook.as_ref();
                let other_codebook =
                    sketch.zip(codes).is_some_and(|(it, codes)| !it.is_of(codes.codebook()));
                let adaptation = Adaptation { classes, config: &config, adapt, other_codebook };
                let fresh = || random_backbone(recipe, classes.len(), device);
                let (backbone, changes) =
                    adaptation.of(&loaded.value, fresh).map_err(|problem| {
                        let problem = format!("{} {problem}", path.display());
                        TrainError::InitFrom { stage: StageId::Pretrain, problem }
                    })?;
                notes.extend(changes.iter().map(|change| format!("{}: {change}", path.display())));
                (Some(backbone), loaded.value.codebook)
            }
        };
        Ok(Self { tokenizer, backbone, codebook, notes })
    }
}

/// Weights of other classes or codes as weights of ours.
struct Adaptation<'a> {
    classes: &'a [String],
    config: &'a BackboneConfig,
    adapt: &'a [Adapt],
    /// Whether the tokenizer is known to have other codes, of the same shape or not.
    other_codebook: bool,
}

/// Classes that a note lists by name.
const MOST_NAMED: usize = 20;
const CLASS_EMBEDDING: &str = "class_emb.weight";
/// What depends on the codebook, in front of the transformer and behind it.
const OF_CODES: [&str; 4] = ["word_embed.weight", "word_embed.bias", "head.weight", "head.bias"];

impl Adaptation<'_> {
    /// Whether the classes of a file are others than ours, by their names; a note where the file has none.
    ///
    /// # Errors
    /// If they are, and may not be made anew.
    fn other_classes(&self, theirs: &[String], notes: &mut Vec<String>) -> Result<bool, String> {
        let ours = self.classes;
        let may = self.adapt.contains(&Adapt::Classes);
        if theirs == ours && !(may && are_numbered(theirs)) {
            return Ok(false);
        }
        if may {
            return Ok(true);
        }
        let keep = "to keep everything but the class embedding, which has a row for each class of the same \
                    name in both, set pretrain.init_from.adapt = [\"classes\"]";
        if theirs.len() != ours.len() {
            let (theirs, ours) = (theirs.len(), ours.len());
            return Err(format!("has {theirs} classes, the images {ours}; {keep}"));
        }
        let pairs = theirs.iter().zip(ours).enumerate();
        let (i, (file, image)) =
            pairs.into_iter().find(|(_, (a, b))| a != b).expect("they differ in one at least");
        if are_numbered(theirs) {
            notes.push(format!(
                "names none of its {} classes; they are taken to be those of the images in their order, \
                 '{}' the first",
                ours.len(),
                ours[0]
            ));
            return Ok(false);
        }
        Err(format!("has '{file}' as class {i}, the images '{image}'; {keep}"))
    }

    /// The weights of a file in our shape, and what was made anew out of the random weights `fresh`.
    ///
    /// # Errors
    /// If anything differs that may not be made anew.
    fn of<B: Backend>(
        self,
        given: &TrainedBackbone<B>,
        fresh: impl FnOnce() -> Result<Backbone<B>, BackboneConfigError>,
    ) -> Result<(Backbone<B>, Vec<String>), String> {
        let Self { classes, config, adapt, other_codebook } = self;
        let theirs = &given.config;
        let may = |part: Adapt| adapt.contains(&part);
        let mut changes = Vec::new();
        let other_classes = self.other_classes(&given.classes, &mut changes)?;
        let codes = |config: &BackboneConfig| (config.codebook_size, config.codebook_dim);
        let other_shape = codes(theirs) != codes(config);
        let other_codes = other_shape || other_codebook;
        if other_shape && !may(Adapt::Codes) {
            let ((v, c), (ours_v, ours_c)) = (codes(theirs), codes(config));
            return Err(format!(
                "was trained on {v} codes of {c} channels, the tokenizer has {ours_v} of {ours_c}; to \
                 keep everything but what depends on the codes, set \
                 pretrain.init_from.adapt = [\"codes\"]"
            ));
        }
        if other_codebook && !may(Adapt::Codes) {
            return Err("was trained with other codes than those of tokenizer.init_from; take the \
                        tokenizer of its run, or, to keep everything but what depends on the codes, set \
                        pretrain.init_from.adapt = [\"codes\"]"
                .into());
        }
        let mut same = BackboneConfig {
            classes: config.classes,
            codebook_size: config.codebook_size,
            codebook_dim: config.codebook_dim,
            ..theirs.clone()
        };
        // How a first scale of the same kind is trained and sampled is no property of the weights.
        let is_same = |a: &FirstScale, b| discriminant(a) == discriminant(b);
        if is_same(&same.shape.first_scale, &config.shape.first_scale) {
            same.shape.first_scale = config.shape.first_scale;
        }
        if let Some((field, file, recipe)) = difference(&same, config) {
            return Err(format!(
                "has backbone.{field} = {file}, the recipe {recipe}; set the recipe's to the file's"
            ));
        }
        if !other_classes && !other_codes {
            let model = given.model.clone().with_first_scale(config.shape.first_scale);
            return Ok((model, changes));
        }
        let fresh = fresh().map_err(|error| error.to_string())?;
        let mut tensors = collect(&given.model, &LAYOUT);
        let random = collect(&fresh, &LAYOUT);
        if other_classes {
            let (embedding, taken) = class_embedding(&tensors, &random, &given.classes, classes);
            tensors.insert(CLASS_EMBEDDING, embedding);
            changes.push(match taken.as_slice() {
                [] => format!("the class embedding is new for all {} classes", classes.len()),
                taken if taken.len() > MOST_NAMED => format!(
                    "the class embedding has {} of {} classes by their names, the others are new",
                    taken.len(),
                    classes.len()
                ),
                taken => format!(
                    "the class embedding has {} of {} classes by their names ({}), the others are new",
                    taken.len(),
                    classes.len(),
                    taken.join(", ")
                ),
            });
        }
        let shape =
            |named: &NamedTensors, name: &str| named.get(name).map(|data| data.shape.clone());
        let new: Vec<&str> = OF_CODES
            .into_iter()
            .filter(|name| other_codebook || shape(&tensors, name) != shape(&random, name))
            .collect();
        for name in &new {
            let data = random.get(name).expect("a parameter of the backbone").clone();
            tensors.insert(*name, data);
        }
        if !new.is_empty() {
            changes.push(format!("new, as the codebook is another: {}", new.join(", ")));
        }
        let backbone = bind(fresh, tensors, &LAYOUT).map_err(|error| error.to_string())?;
        Ok((backbone, changes))
    }
}

/// Whether classes have no names but their numbers: nobody has said which they are.
fn are_numbered(names: &[String]) -> bool {
    names.iter().enumerate().all(|(i, name)| *name == i.to_string())
}

/// The rows of our classes: those of the same names in a file, the null class's, and random ones.
fn class_embedding(
    theirs: &NamedTensors,
    random: &NamedTensors,
    names: &[String],
    ours: &[String],
) -> (TensorData, Vec<String>) {
    let values = |named: &NamedTensors| {
        named.get(CLASS_EMBEDDING).expect("every backbone has one").to_vec::<f32>().expect("f32")
    };
    let (theirs, mut rows) = (values(theirs), values(random));
    let d = rows.len() / (ours.len() + 1);
    let mut copy = |to: usize, from: usize| {
        rows[to * d..(to + 1) * d].copy_from_slice(&theirs[from * d..(from + 1) * d]);
    };
    let mut taken = Vec::new();
    for (to, name) in ours.iter().enumerate() {
        // A number is no name: class 7 of another data set is another class.
        let from = names.iter().position(|known| known == name).filter(|_| !are_numbered(names));
        if let Some(from) = from {
            copy(to, from);
            taken.push(name.clone());
        }
    }
    copy(ours.len(), names.len());
    (TensorData::new(rows, [ours.len() + 1, d]), taken)
}

/// The first field in which two configurations differ, with both values.
fn difference<T: Serialize>(theirs: &T, ours: &T) -> Option<(String, String, String)> {
    let fields = |value: &T| match serde_json::to_value(value) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => unreachable!("a configuration has fields"),
    };
    let (theirs, ours) = (fields(theirs), fields(ours));
    let (field, value) = theirs.iter().find(|(field, value)| ours.get(*field) != Some(value))?;
    Some((field.clone(), value.to_string(), ours[field].to_string()))
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    const ADAPT: &[Adapt] = &[Adapt::Classes];

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// The rows of our classes out of a file's, by their numbers there; none where they are new.
    fn rows(
        theirs: &[&str],
        ours: &[&str],
        adapt: &[Adapt],
    ) -> Result<(Vec<Option<usize>>, Vec<String>), String> {
        let (theirs, ours) = (names(theirs), names(ours));
        let recipe = |name: &str| {
            let settings = ["backbone.depth=1".to_owned(), format!("seed={}", name.len())];
            Recipe::load("emoji-quick", &settings).unwrap()
        };
        let device = Default::default();
        let theirs_recipe = recipe("theirs");
        let given = TrainedBackbone::<Flex> {
            model: random_backbone(&theirs_recipe, theirs.len(), &device).unwrap(),
            config: theirs_recipe.backbone_config(theirs.len()),
            classes: theirs.clone(),
            scales: theirs_recipe.scales().clone(),
            sampler: theirs_recipe.evaluation.sampler,
            codebook: None,
        };
        let ours_recipe = recipe("us");
        let config = ours_recipe.backbone_config(ours.len());
        let other_codebook = false;
        let adaptation = Adaptation { classes: &ours, config: &config, adapt, other_codebook };
        let fresh = || random_backbone(&ours_recipe, ours.len(), &device);
        let (model, notes) = adaptation.of(&given, fresh)?;
        let rows = |model: &Backbone<Flex>| -> Vec<Vec<f32>> {
            let data = collect(model, &LAYOUT).get(CLASS_EMBEDDING).unwrap().clone();
            let values = data.to_vec::<f32>().unwrap();
            values.chunks(config.shape.width).map(<[f32]>::to_vec).collect()
        };
        let of_file = rows(&given.model);
        let place = |row: Vec<f32>| of_file.iter().position(|known| *known == row);
        Ok((rows(&model).into_iter().map(place).collect(), notes))
    }

    #[test]
    fn classes_are_known_by_their_names() {
        let all = Ok((vec![Some(0), Some(1), Some(2)], Vec::new()));
        assert_eq!(rows(&["cat", "dog"], &["cat", "dog"], &[]), all);
        assert_eq!(rows(&["cat", "dog"], &["cat", "dog"], ADAPT), all);
        // As many, but others, or in another order; the last row is of no class.
        let error = rows(&["cat", "dog"], &["cat", "wolf"], &[]).unwrap_err();
        assert!(error.contains("'dog' as class 1, the images 'wolf'"), "{error}");
        let (found, notes) = rows(&["cat", "dog"], &["dog", "wolf"], ADAPT).unwrap();
        assert_eq!(found, [Some(1), None, Some(2)]);
        assert!(notes[0].contains("1 of 2 classes by their names (dog)"), "{notes:?}");
        let (found, _) = rows(&["cat", "dog"], &["dog", "cat"], ADAPT).unwrap();
        assert_eq!(found, [Some(1), Some(0), Some(2)]);
        let error = rows(&["cat", "dog"], &["cat"], &[]).unwrap_err();
        assert!(error.contains("2 classes, the images 1"), "{error}");
    }

    #[test]
    fn classes_without_names_are_taken_in_their_order_or_made_anew() {
        let (found, notes) = rows(&["0", "1"], &["cat", "dog"], &[]).unwrap();
        assert_eq!(found, [Some(0), Some(1), Some(2)]);
        assert!(notes[0].contains("names none of its 2 classes"), "{notes:?}");
        assert!(notes[0].contains("'cat' the first"), "{notes:?}");
        let (found, notes) = rows(&["0", "1"], &["cat", "dog"], ADAPT).unwrap();
        assert_eq!(found, [None, None, Some(2)]);
        assert!(notes[0].contains("new for all 2 classes"), "{notes:?}");
        let (found, _) = rows(&["0", "1", "2"], &["0", "1"], ADAPT).unwrap();
        assert_eq!(found, [None, None, Some(3)]);
        let (found, _) = rows(&["0", "1"], &["0", "1"], ADAPT).unwrap();
        assert_eq!(found, [None, None, Some(2)]);
        let (found, notes) = rows(&["0", "1"], &["0", "1"], &[]).unwrap();
        assert_eq!((found, notes), (vec![Some(0), Some(1), Some(2)], Vec::new()));
    }

    #[test]
    fn a_backbone_of_another_tokenizer_is_known_by_its_codes() {
        let (folder, device) = (tempfile::tempdir().unwrap(), Default::default());
        let file = |name: &str| folder.path().join(format!("{name}.safetensors"));
        let recipe = Recipe::load("emoji-quick", &["backbone.depth=1".to_owned()]).unwrap();
        let classes = names(&["cat", "dog"]);
        let (config, init) = (&recipe.tokenizer.model, recipe.tokenizer.init);
        let [ours, other] = [1, 2].map(|seed| {
            let model =
                sar_tokenizer::init::<Flex>(config, init, SeedTree::new(seed), &device).unwrap();
            TrainedTokenizer { model, config: config.clone() }
        });
        ours.save(&file("ours")).unwrap();
        other.save(&file("other")).unwrap();
        let backbone = TrainedBackbone::<Flex> {
            model: random_backbone(&recipe, classes.len(), &device).unwrap(),
            config: recipe.backbone_config(classes.len()),
            classes: classes.clone(),
            scales: recipe.scales().clone(),
            sampler: recipe.evaluation.sampler,
            codebook: Some(CodebookSketch::of(ours.model.codebook())),
        };
        backbone.save(&file("backbone")).unwrap();
        let notes = |tokenizer: &str, adapt: &str| {
            let from = |name| format!("init_from={{ kind = \"weights\", path = {:?}", file(name));
            let settings = [
                "backbone.depth=1".to_owned(),
                "tokenizer.steps=0".to_owned(),
                format!("tokenizer.{} }}", from(tokenizer)),
                format!("pretrain.{}{adapt} }}", from("backbone")),
            ];
            let recipe = Recipe::load("emoji-quick", &settings).unwrap();
            let given = Given::<Flex>::load(&recipe, &classes, &device)?;
            assert_eq!(given.codebook, backbone.codebook);
            Ok::<_, TrainError>(given.notes)
        };
        let adapt = ", adapt = [\"codes\"]";
        assert!(notes("ours", "").unwrap().is_empty());
        assert!(notes("ours", adapt).unwrap().is_empty());
        let error = notes("other", "").unwrap_err().to_string();
        for part in ["backbone.safetensors was trained with other codes", "adapt = [\"codes\"]"] {
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        let said = notes("other", adapt).unwrap().join("\n");
        assert!(said.contains("new, as the codebook is another: word_embed.weight"), "{said}");
    }
}
