//! What a run amounts to, as `report.json` holds it.

use sar_eval::TokenizerFigures;
use serde::{Deserialize, Serialize};

use crate::held_out::{Figures, HeldOut};
use crate::quality::QualityReport;

/// The figures of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// Name of the recipe.
    pub recipe: String,
    /// Root of all randomness.
    pub seed: u64,
    /// Training and held-out images.
    pub images: ImageCounts,
    /// What each stage took.
    pub stages: Vec<StageReport>,
    /// Seconds from the start of the run to its report, in all processes.
    pub wall_s: f64,
    /// Largest resident memory of the process in MB (10^6 bytes), where the system tells.
    pub peak_rss_mb: Option<f64>,
    /// The tokenizer on held-out images.
    pub tokenizer: TokenizerReport,
    /// Losses on held-out images.
    pub held_out: HeldOutReport,
    /// Samples beside real images, where the recipe asks for it.
    #[serde(default)]
    pub quality: Option<QualityReport>,
}

/// Images of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ImageCounts {
    /// Trained on.
    pub train: usize,
    /// Never seen in training.
    pub held_out: usize,
}

/// One stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageReport {
    /// `tokenizer`, `pretrain`, `sar` or `control`.
    pub name: String,
    /// Seconds in its steps.
    pub wall_s: f64,
    /// Optimization steps.
    pub steps: u64,
    /// Images per step.
    pub batch: usize,
    /// Parameters that it trains.
    pub parameters: usize,
    /// The step whose checkpoint measured best on held-out images, where the recipe measures.
    pub best_step: Option<u64>,
}

/// The tokenizer on held-out images.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenizerReport {
    /// Those of the weights that the stage ends with.
    #[serde(flatten)]
    pub figures: TokenizerFigures,
    /// The PSNR of the averaged weights, where the recipe keeps an average.
    pub average_psnr_db: Option<f64>,
}

/// Held-out losses around SAR.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HeldOutReport {
    /// The weights that SAR starts from.
    pub before: HeldOut,
    /// After SAR.
    pub after: HeldOut,
    /// After as many teacher-forced passes from the same weights, where the recipe asks for it.
    pub control: Option<HeldOut>,
    /// The averages of the weights before, where the recipe keeps one.
    pub before_average: Option<HeldOut>,
    /// The average of the weights after SAR.
    pub after_average: Option<HeldOut>,
    /// The same weights compared image by image.
    pub paired: Paired,
}

/// Differences on the same images; negative is lower.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Paired {
    /// What SAR changed.
    pub after_minus_before: Figures,
    /// What the control changed.
    pub control_minus_before: Option<Figures>,
    /// SAR against the control.
    pub after_minus_control: Option<Figures>,
}

/// Largest resident memory of this process in MB.
pub fn peak_rss_mb() -> Option<f64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        // Kibibytes on Linux, bytes on macOS.
        let unit = if cfg!(target_os = "macos") { 1.0 } else { 1024.0 };
        getrusage(UsageWho::RUSAGE_SELF).ok().map(|usage| usage.max_rss() as f64 * unit / 1e6)
    }
    #[cfg(not(unix))]
    None
}
