//! The stages of a run, and the files of their weights.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A stage of a run, in the order in which they are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageId {
    /// Images to tokens and back.
    Tokenizer,
    /// The backbone by teacher forcing.
    Pretrain,
    /// The backbone refined from its pre-trained weights.
    Sar,
    /// Teacher forcing for the same number of passes from the same weights: what SAR is compared with.
    Control,
}

impl StageId {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Tokenizer, Self::Pretrain, Self::Sar, Self::Control];

    /// Its name in recipes, checkpoints, metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Pretrain => "pretrain",
            Self::Sar => "sar",
            Self::Control => "control",
        }
    }

    /// The table of the recipe that its settings are in.
    pub fn table(self) -> &'static str {
        match self {
            Self::Control => Self::Sar.name(),
            stage => stage.name(),
        }
    }

    fn weights(self) -> &'static str {
        match self {
            Self::Tokenizer => "tokenizer",
            Self::Pretrain => "backbone-pretrain",
            Self::Sar => "backbone-sar",
            Self::Control => "backbone-control",
        }
    }

    /// The file of its weights in the folder of a run.
    pub fn weights_file(self) -> String {
        format!("{}.safetensors", self.weights())
    }

    /// The file of others of its weights, such as the `best`, beside it.
    pub fn other_weights_file(self, what: &str) -> String {
        format!("{}-{what}.safetensors", self.weights())
    }

    /// The stages that follow it.
    pub fn later(self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |other| *other > self)
    }
}

impl fmt::Display for StageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
