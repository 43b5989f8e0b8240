//! Figures of a tokenizer, as reports hold them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A tokenizer on some images.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenizerFigures {
    /// Mean over images of the peak signal-to-noise ratio of the finest scale, dB, pixels clamped.
    pub psnr_db: f64,
    /// Mean over images of the structural similarity of the finest scale, pixels clamped.
    pub ssim: f64,
    /// Different codes used by the pyramids of all images.
    pub codes_used: usize,
    /// Codes that none of them used.
    pub codes_dead: usize,
    /// Number of codes.
    pub codes: usize,
    /// The same by scale.
    pub by_scale: Vec<TokenizerScale>,
    /// The errors of the finest scale by the principal axes of the images' colors.
    #[serde(default)]
    pub by_color: Vec<TokenizerColor>,
}

/// One axis of the colors of the images.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenizerColor {
    /// A unit vector of red, green and blue.
    pub axis: [f64; 3],
    /// Standard deviation of the images' pixels along it; pixels span 2.
    pub deviation: f64,
    /// Of the mean squared error along it, dB, for a peak of 2.
    pub psnr_db: f64,
    /// The mean squared error along it as a share of the variance: 1 for colors that are not there. None
    /// where the images do not vary along it, as gray ones along two axes of three.
    pub error_share: Option<f64>,
}

/// One scale of the tokenizer. What a scale decodes to is compared with the image at that size
/// (area-resampled): the coarse scales of a direct tokenizer (FlexVAR) decode to small images, and
/// their values compare with those of the same size alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TokenizerScale {
    /// The scale, as written in a schedule.
    pub scale: String,
    /// Height and width that it decodes to, pixels.
    pub pixels: [usize; 2],
    /// Mean over images of the peak signal-to-noise ratio, dB, pixels clamped.
    pub psnr_db: f64,
    /// Mean over images of the structural similarity, see [`ssim`](sar_loss::ssim()): in a smaller window
    /// where a side has less than 11 px.
    pub ssim: f64,
    /// Mean over images of each distance that was asked for, by its name; none where images of this size
    /// are too small for the network.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub distances: BTreeMap<String, Option<f64>>,
    /// Different codes used.
    pub codes_used: usize,
    /// Codes of the codebook that are not used at this scale, whether or not they could have been.
    pub codes_dead: usize,
    /// As many different codes as could have been used: those that the scale may use, or one for each of
    /// its tokens, where these are fewer; 0 in reports of before it was counted.
    #[serde(default)]
    pub codes_usable: usize,
    /// How many of these were not used; 0 in reports of before they were counted.
    #[serde(default)]
    pub codes_dead_of_usable: usize,
    /// Exponential of the entropy of the code histogram.
    pub perplexity: f64,
}
