//! What a user says of sampling; the weights say the rest.

use burn::tensor::backend::Backend;
use sar_core::{ScaleSchedule, ScaleSize};
use sar_rollout::{Choice, Filters, Sampler};

use crate::{Pipeline, PipelineError};

/// The most guidance: a hundred times what pictures bear, and far from what overflows.
const MOST_GUIDANCE: f64 = 1000.0;
/// The longest side that can be asked for, pixels.
const MOST_PIXELS: usize = 1 << 14;

/// How tokens are drawn and at which sizes, as far as it is said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    /// Scale of classifier-free guidance, by the rule of the weights; in [0, 1000].
    pub guidance: Option<f64>,
    /// Keeps the most probable codes of each token; 0 for all.
    pub top_k: Option<usize>,
    /// Keeps the codes that make up this probability, in [0, 1]; 0 for all.
    pub top_p: Option<f64>,
    /// Mixes codes instead of drawing one.
    pub more_smooth: bool,
    /// The scales, before they are stretched.
    pub scales: Option<ScaleSchedule>,
    /// In pixels: the scales are stretched to it.
    pub size: Option<ScaleSize>,
}

impl Wishes {
    /// Checks the numbers.
    ///
    /// # Errors
    /// If one of them is out of its range; the line begins with its name.
    pub fn check(&self) -> Result<(), PipelineError> {
        let refuse = |name, value: f64, problem| {
            Err(PipelineError::Setting { name, value: value.to_string(), problem })
        };
        match (self.guidance, self.top_p) {
            (Some(guidance), _) if !(0.0..=MOST_GUIDANCE).contains(&guidance) => {
                refuse("guidance", guidance, "must be in [0, 1000]")
            }
            (_, Some(top_p)) if !(0.0..=1.0).contains(&top_p) => {
                refuse("top-p", top_p, "must be in [0, 1]")
            }
            _ => Ok(()),
        }
    }

    /// The sampler of the weights, but for what is said: a top-k or a top-p draws codes also where the
    /// weights take the most probable one, and where they mix codes it is of the mixture.
    pub fn sampler(&self, base: Sampler) -> Sampler {
        let Filters { top_k, top_p } = base.choice.filters();
        let (top_k, top_p) = (self.top_k.unwrap_or(top_k), self.top_p.unwrap_or(top_p));
        let is_said = self.top_k.is_some() || self.top_p.is_some();
        let choice = match self.more_smooth {
            true => Choice::MoreSmooth { top_k, top_p },
            false if is_said => base.choice.with_filters(Filters { top_k, top_p }),
            false => base.choice,
        };
        let guidance = self.guidance.map_or(base.guidance, |scale| base.guidance.with_scale(scale));
        Sampler { guidance, choice }
    }

    /// The scales that are said or those of the weights, stretched to the size.
    ///
    /// # Errors
    /// If the model cannot run at them.
    pub fn scales<B: Backend>(
        &self,
        pipeline: &Pipeline<B>,
    ) -> Result<ScaleSchedule, PipelineError> {
        let scales = self.scales.as_ref().unwrap_or(&pipeline.backbone().scales);
        match self.size {
            Some(size) => pipeline.stretched(scales, size),
            None => pipeline.check_scales(scales).map(|()| scales.clone()),
        }
    }
}

/// Reads a size in pixels, height first, as in `256x384`.
///
/// # Errors
/// If it is none, or a side is none or over 16384 px; the line says which.
pub fn pixels(text: &str) -> Result<ScaleSize, PipelineError> {
    let refuse =
        |problem| Err(PipelineError::Setting { name: "size", value: text.into(), problem });
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // More digits than a number has are a large one.
    let side = |text: &str| is_number(text).then(|| text.parse().unwrap_or(usize::MAX));
    match text.split_once('x').and_then(|(h, w)| side(h).zip(side(w))) {
        Some((height, width)) if height.max(width) > MOST_PIXELS => {
            refuse("a side has at most 16384 px")
        }
        Some((height, width)) if height.min(width) > 0 => Ok(ScaleSize { height, width }),
        _ => refuse("write height and width in pixels, as in 256x384"),
    }
}

#[cfg(test)]
mod tests {
    use sar_rollout::Guidance;

    use super::*;

    #[test]
    fn what_is_said_replaces_what_the_weights_say() {
        let base = Sampler {
            guidance: Guidance::Ramp { scale: 3.0 },
            choice: Choice::Sample { top_k: 0, top_p: 0.7 },
        };
        let nothing = Wishes::default();
        assert_eq!(nothing.sampler(base), base);
        let smooth = Wishes { more_smooth: true, ..nothing.clone() };
        assert_eq!(
            Wishes { guidance: Some(1.5), top_k: Some(7), ..smooth }.sampler(base),
            Sampler {
                guidance: Guidance::Ramp { scale: 1.5 },
                choice: Choice::MoreSmooth { top_k: 7, top_p: 0.7 },
            }
        );
        let flex = Sampler { guidance: Guidance::flexvar(2.5), ..base };
        let four = Wishes { guidance: Some(4.0), ..nothing.clone() };
        assert_eq!(four.sampler(flex).guidance, Guidance::flexvar(4.0));
        let argmax = Sampler { choice: Choice::Argmax, ..base };
        assert_eq!(four.sampler(argmax).choice, Choice::Argmax);
        for top_p in [0.5, 0.0] {
            let drawn = Wishes { top_p: Some(top_p), ..nothing.clone() }.sampler(argmax).choice;
            assert_eq!(drawn, Choice::Sample { top_k: 0, top_p });
        }
        let mixed = Sampler { choice: Choice::MoreSmooth { top_k: 9, top_p: 0.2 }, ..base };
        assert_eq!(four.sampler(mixed).choice, mixed.choice);
        let mixed = Wishes { top_p: Some(0.5), ..nothing }.sampler(mixed).choice;
        assert_eq!(mixed, Choice::MoreSmooth { top_k: 9, top_p: 0.5 });
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let check = |guidance, top_p, line: &str| {
            let wishes = Wishes { guidance, top_p, ..Wishes::default() };
            assert_eq!(wishes.check().unwrap_err().to_string(), line);
        };
        check(Some(-1.0), None, "guidance -1: must be in [0, 1000]");
        check(Some(1000.1), None, "guidance 1000.1: must be in [0, 1000]");
        check(Some(f64::NAN), None, "guidance NaN: must be in [0, 1000]");
        check(Some(f64::INFINITY), Some(1.0), "guidance inf: must be in [0, 1000]");
        check(Some(2.0), Some(1.5), "top-p 1.5: must be in [0, 1]");
        check(None, Some(f64::NAN), "top-p NaN: must be in [0, 1]");
        for guidance in [0.0, MOST_GUIDANCE] {
            let wishes = Wishes { guidance: Some(guidance), top_p: Some(1.0), ..Wishes::default() };
            wishes.check().unwrap();
        }
    }

    #[test]
    fn sizes_are_height_and_width() {
        assert_eq!(pixels("256x384").unwrap(), ScaleSize { height: 256, width: 384 });
        for bad in ["256", "256x", "x3", "0x5", "axb", "256x384x3", "-8x8", "+8x8"] {
            let error = pixels(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains("256x384"), "{error}");
        }
        for large in ["99999x8", "8x16385", "100000x100000", "8x99999999999999999999999"] {
            let error = pixels(large).unwrap_err().to_string();
            assert_eq!(error, format!("size {large}: a side has at most 16384 px"));
        }
    }
}
