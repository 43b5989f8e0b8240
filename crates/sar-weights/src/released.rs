//! Which released model a file holds, recognised by the names and shapes of its tensors.
//!
//! Sources: the released checkpoints of VAR, FlexVAR and SAR; SAR's have FlexVAR's layout.

mod backbone;
mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub use self::backbone::{BackboneShape, PositionsShape};
pub use self::tokenizer::{Phi, TokenizerFamily, TokenizerShape};

use crate::error::{Misfit, WeightsError, one_line};
use crate::file::TensorInfo;
use crate::layout::Layout;

/// Where the model lies in released training checkpoints, the first that is there.
const ROOTS: [&str; 3] = ["trainer.var_wo_ddp", "model", ""];
/// Tensors that released files hold beside the parameters of the model.
const BUFFERS: Layout = Layout {
    renames: &[],
    ignored: &[
        "attn_bias_for_masking",
        "lvl_1L",
        "attn.zero_k_bias",
        "quantize.codebook_used",
        "quantize.ema_vocab_hit_SV",
    ],
    roots: &[],
};
/// How many names of a kind a message lists.
const LISTED: usize = 3;

/// A released model, by what can be seen of it in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// Images to tokens and back.
    Tokenizer(TokenizerShape),
    /// Tokens from coarser tokens.
    Backbone(BackboneShape),
}

/// A released model, and where in its file it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognised {
    /// What the names of its tensors begin with, without the dot; empty for nothing.
    pub root: String,
    /// The model.
    pub model: Released,
}

impl Recognised {
    /// The name of a tensor without the root; `None` for one that lies elsewhere.
    pub fn strip<'n>(&self, name: &'n str) -> Option<&'n str> {
        below(&self.root, name)
    }
}

/// Recognises a released model: its kind, its shape, and where it lies.
///
/// All of its parameters have to be there in the right shape, and nothing else but the buffers of
/// the released files. What lies outside of the model's root is not looked at.
///
/// ```
/// use sar_weights::{NamedTensors, Released, recognise};
///
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/parity/flexvar_tiny/backbone.pth");
/// # let path = std::path::Path::new(path);
/// let tensors = NamedTensors::read(path)?;
/// let found = recognise(path, &tensors.infos())?;
/// assert_eq!(found.root, "trainer.var_wo_ddp");
/// let Released::Backbone(shape) = found.model else { panic!() };
/// assert_eq!((shape.depth, shape.width, shape.heads), (2, 32, Some(2)));
/// # Ok::<(), sar_weights::WeightsError>(())
/// ```
///
/// # Errors
/// [`WeightsError::Unrecognised`] with what is missing, unused or of another shape.
pub fn recognise(path: &Path, tensors: &[TensorInfo]) -> Result<Recognised, WeightsError> {
    let unrecognised = |reason: String| WeightsError::Unrecognised { path: path.into(), reason };
    let root = root(tensors).map_err(unrecognised)?;
    let shapes: Shapes = tensors
        .iter()
        .filter_map(|info| Some((below(&root, &info.name)?, info.shape.as_slice())))
        .collect();
    let model = if shapes.contains_key(backbone::ANCHOR) {
        BackboneShape::seen_in(&shapes).map(Released::Backbone)
    } else {
        TokenizerShape::seen_in(&shapes).map(Released::Tokenizer)
    };
    let model = model.map_err(unrecognised)?;
    match differences(&model, &root, tensors) {
        None => Ok(Recognised { root, model }),
        Some(what) => Err(unrecognised(format!("looks like a {}, but {what}", model.kind()))),
    }
}

impl Released {
    /// The published model of a name such as `flexvar-d16`, `sar-d16` or `var-d36-s`; see
    /// [`presets`](Self::presets).
    pub fn preset(name: &str) -> Option<Self> {
        let name = name.replace("sar-d", "flexvar-d");
        Self::presets().into_iter().find(|(known, _)| *known == name).map(|(_, model)| model)
    }

    /// The published models by name. SAR's have the shapes of FlexVAR's.
    pub fn presets() -> [(&'static str, Self); 10] {
        let flexvar = |depth| Self::Backbone(BackboneShape::flexvar(depth));
        let var = |depth| Self::Backbone(BackboneShape::var(depth));
        [
            ("flexvar-tokenizer", Self::Tokenizer(TokenizerShape::flexvar())),
            ("var-tokenizer", Self::Tokenizer(TokenizerShape::var())),
            ("flexvar-d16", flexvar(16)),
            ("flexvar-d20", flexvar(20)),
            ("flexvar-d24", flexvar(24)),
            ("var-d16", var(16)),
            ("var-d20", var(20)),
            ("var-d24", var(24)),
            ("var-d30", var(30)),
            ("var-d36-s", Self::Backbone(BackboneShape::var_d36_s())),
        ]
    }

    /// The name of the published model of this shape, if it is one.
    pub fn preset_name(&self) -> Option<&'static str> {
        Self::presets().into_iter().find(|(_, model)| model == self).map(|(name, _)| name)
    }

    /// `flexvar-tokenizer`, `flexvar-backbone`, `var-tokenizer` or `var-backbone`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tokenizer(TokenizerShape { family: TokenizerFamily::Flexvar, .. }) => {
                "flexvar-tokenizer"
            }
            Self::Tokenizer(TokenizerShape { family: TokenizerFamily::Var { .. }, .. }) => {
                "var-tokenizer"
            }
            Self::Backbone(BackboneShape { positions: PositionsShape::Grid { .. }, .. }) => {
                "flexvar-backbone"
            }
            Self::Backbone(BackboneShape {
                positions: PositionsShape::PerToken { .. }, ..
            }) => "var-backbone",
        }
    }

    /// Names and shapes of the parameters, in the released layout.
    pub fn parameters(&self) -> BTreeMap<String, Vec<usize>> {
        match self {
            Self::Tokenizer(shape) => shape.parameters(),
            Self::Backbone(shape) => shape.parameters(),
        }
    }

    /// Whether a released file holds a tensor of this name that is no parameter of the model.
    pub fn is_buffer(name: &str) -> bool {
        BUFFERS.is_ignored(name)
    }
}

/// Shapes by name, below the root.
type Shapes<'t> = BTreeMap<&'t str, &'t [usize]>;

fn below<'n>(root: &str, name: &'n str) -> Option<&'n str> {
    if root.is_empty() { Some(name) } else { name.strip_prefix(root)?.strip_prefix('.') }
}

/// The root of the one model that is to be recognised.
fn root(tensors: &[TensorInfo]) -> Result<String, String> {
    let roots: BTreeSet<&str> = tensors
        .iter()
        .filter_map(|info| {
            [backbone::ANCHOR, tokenizer::ANCHOR].iter().find_map(|anchor| {
                let root = info.name.strip_suffix(anchor)?;
                if root.is_empty() { Some(root) } else { root.strip_suffix('.') }
            })
        })
        .collect();
    if let Some(root) = ROOTS.iter().find(|root| roots.contains(*root)) {
        return Ok((*root).to_owned());
    }
    let roots: Vec<&str> = roots.into_iter().collect();
    match roots.as_slice() {
        [] => Err(format!("there is neither {} nor {}", backbone::ANCHOR, tokenizer::ANCHOR)),
        [root] => Ok((*root).to_owned()),
        [first, second, ..] => Err(format!(
            "there are {} models, under {}, {} and so on",
            roots.len(),
            one_line(first),
            one_line(second)
        )),
    }
}

/// How the tensors under a root differ from the parameters of a model.
fn differences(model: &Released, root: &str, tensors: &[TensorInfo]) -> Option<String> {
    let mut missing = model.parameters();
    let (mut unused, mut misfits) = (Vec::new(), Vec::new());
    for TensorInfo { name, dtype, shape } in tensors {
        let Some(name) = below(root, name) else { continue };
        match missing.remove(name) {
            None if Released::is_buffer(name) => {}
            None => unused.push(one_line(name)),
            Some(expected) if expected != *shape || !dtype.is_float() => misfits.push(
                Misfit { name: name.into(), expected, found: shape.clone(), dtype: dtype.name() }
                    .to_string(),
            ),
            Some(_) => {}
        }
    }
    let missing: Vec<String> = missing.into_keys().collect();
    let parts = [("missing", missing), ("unused", unused), ("of another shape or type", misfits)];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| {
            let more = if names.len() > LISTED { ", ..." } else { "" };
            let listed = names[..names.len().min(LISTED)].join(", ");
            format!("{} {what}: {listed}{more}", names.len())
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The sides of a tensor that has to be there with that rank.
fn sides<const D: usize>(shapes: &Shapes, name: &str) -> Result<[usize; D], String> {
    let shape = shapes.get(name).ok_or_else(|| format!("there is no {name}"))?;
    <[usize; D]>::try_from(*shape)
        .map_err(|_| format!("{name} is {shape:?}, which has not {D} dimensions"))
}

/// How many of the names of consecutive numbers are there.
fn count(shapes: &Shapes, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|&i| shapes.contains_key(name(i).as_str())).count()
}

/// `n / unit` where that is a whole number.
fn times(n: usize, unit: usize, what: &str) -> Result<usize, String> {
    match n.checked_div(unit) {
        Some(times) if times > 0 && times * unit == n => Ok(times),
        _ => Err(format!("{what}: {n} is not a multiple of {unit}")),
    }
}
