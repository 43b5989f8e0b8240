//! The weights that a recipe's stages start from, read and checked before anything is written.

use std::mem::discriminant;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use sar_core::{FirstScale, SeedTree};
use sar_model::{Backbone, BackboneConfig, BackboneConfigError, LAYOUT, PositionsConfig};
use sar_pipeline::{Known, TrainedBackbone, TrainedTokenizer};
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
    /// What the user should know of files that were read: a line each.
    pub(crate) notes: Vec<String>,
}

/// The models of files that a recipe names; none where it starts from random weights.
pub(crate) struct Given<B: Backend> {
    tokenizer: Option<Tokenizer<B>>,
    backbone: Option<Backbone<B>>,
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
        let Given { tokenizer, backbone, notes } = Given::load(recipe, classes, device)?;
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
        Ok(Self { tokenizer, backbone, notes })
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
        let backbone = match &recipe.pretrain.init_from {
            InitFrom::Scratch {} => None,
            InitFrom::Weights { path, root, adapt } => {
                let of_recipe = matches!(config.positions, PositionsConfig::PerToken { .. });
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
                let adaptation = Adaptation { classes, config: &config, adapt };
                let fresh = || random_backbone(recipe, classes.len(), device);
                let (backbone, changes) =
                    adaptation.of(&loaded.value, fresh).map_err(|problem| {
                        let problem = format!("{} {problem}", path.display());
                        TrainError::InitFrom { stage: StageId::Pretrain, problem }
                    })?;
                notes.extend(changes.iter().map(|change| format!("{}: {change}", path.display())));
                Some(backbone)
            }
        };
        Ok(Self { tokenizer, backbone, notes })
    }
}

/// Weights of another number of classes or codes as weights of ours.
struct Adaptation<'a> {
    classes: &'a [String],
    config: &'a BackboneConfig,
    adapt: &'a [Adapt],
}

const CLASS_EMBEDDING: &str = "class_emb.weight";
/// What depends on the codebook, in front of the transformer and behind it.
const OF_CODES: [&str; 4] = ["word_embed.weight", "word_embed.bias", "head.weight", "head.bias"];

impl Adaptation<'_> {
    /// The weights of a file in our shape, and what was made anew out of the random weights `fresh`.
    ///
    /// # Errors
    /// If anything differs that may not be made anew.
    fn of<B: Backend>(
        self,
        given: &TrainedBackbone<B>,
        fresh: impl FnOnce() -> Result<Backbone<B>, BackboneConfigError>,
    ) -> Result<(Backbone<B>, Vec<String>), String> {
        let Self { classes, config, adapt } = self;
        let theirs = &given.config;
        let may = |part: Adapt| adapt.contains(&part);
        let other_classes = theirs.classes != config.classes;
        let codes = |config: &BackboneConfig| (config.codebook_size, config.codebook_dim);
        let other_codes = codes(theirs) != codes(config);
        if other_classes && !may(Adapt::Classes) {
            return Err(format!(
                "has {} classes, the images {}; to keep everything but the class embedding, set \
                 pretrain.init_from.adapt = [\"classes\"]",
                theirs.classes, config.classes
            ));
        }
        if other_codes && !may(Adapt::Codes) {
            let ((v, c), (ours_v, ours_c)) = (codes(theirs), codes(config));
            return Err(format!(
                "was trained on {v} codes of {c} channels, the tokenizer has {ours_v} of {ours_c}; to \
                 keep everything but what depends on the codes, set \
                 pretrain.init_from.adapt = [\"codes\"]"
            ));
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
            return Ok((model, Vec::new()));
        }
        let fresh = fresh().map_err(|error| error.to_string())?;
        let mut tensors = collect(&given.model, &LAYOUT);
        let random = collect(&fresh, &LAYOUT);
        let mut changes = Vec::new();
        if other_classes {
            let (embedding, taken) = class_embedding(&tensors, &random, &given.classes, classes);
            tensors.insert(CLASS_EMBEDDING, embedding);
            changes.push(match taken.as_slice() {
                [] => format!("the class embedding is new for all {} classes", classes.len()),
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
            .filter(|name| shape(&tensors, name) != shape(&random, name))
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
        if let Some(from) = names.iter().position(|known| known == name) {
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
