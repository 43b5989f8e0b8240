//! What a run amounts to, as `report.json` holds it.

use serde::{Deserialize, Serialize};

use crate::held_out::{Figures, HeldOut};

/// The figures of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
}

/// Images of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ImageCounts {
    /// Trained on.
    pub train: usize,
    /// Never seen in training.
    pub held_out: usize,
}

/// One stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
pub struct TokenizerReport {
    /// Mean over images of the peak signal-to-noise ratio of the finest scale, dB, pixels clamped.
    pub psnr_db: f64,
    /// The same of the averaged weights, where the recipe keeps an average.
    pub average_psnr_db: Option<f64>,
    /// Different codes used by the held-out pyramids.
    pub codes_used: usize,
    /// Number of codes.
    pub codes: usize,
    /// The same by scale.
    pub by_scale: Vec<TokenizerScale>,
    /// The errors of the finest scale by the principal axes of the images' colors.
    #[serde(default)]
    pub by_color: Vec<TokenizerColor>,
}

/// One axis of the colors of the held-out images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenizerColor {
    /// A unit vector of red, green and blue.
    pub axis: [f64; 3],
    /// Standard deviation of the images' pixels along it; pixels span 2.
    pub deviation: f64,
    /// Of the mean squared error along it, dB, for a peak of 2.
    pub psnr_db: f64,
    /// The mean squared error along it as a share of the variance: 1 for colors that are not there.
    pub error_share: f64,
}

/// One scale of the tokenizer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenizerScale {
    /// The scale, as written in a schedule.
    pub scale: String,
    /// Against the image at the size that the scale decodes to, dB.
    pub psnr_db: f64,
    /// Different codes used.
    pub codes_used: usize,
    /// Exponential of the entropy of the code histogram.
    pub perplexity: f64,
}

/// Held-out losses around SAR.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
