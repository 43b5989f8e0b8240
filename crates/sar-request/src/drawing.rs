//! Work that is drawn, and what is told of it.

use std::ops::ControlFlow;

use sar_pipeline::{Origin, PipelineError, RgbImage, to_png};
use serde_json::{Value, json};

use crate::engine::{Engine, Seen, Work};

/// What there is to tell of work.
#[derive(Debug)]
pub enum Told {
    /// It begins.
    Begins {
        /// `scales`, `height` and `width` in pixels, `notes`.
        about: Value,
        /// What an edit begins with: the picture as the model sees it, and with a hole; PNG files.
        before: Vec<Vec<u8>>,
    },
    /// A scale is painted.
    Scale {
        /// Its number, from 1.
        scale: usize,
        /// How many there are.
        of: usize,
        /// PNG files. After the last scale the results, before it nothing unless previews are wanted.
        pictures: Vec<Vec<u8>>,
    },
}

/// Draws work until it is done, which it then says, or `tell` breaks.
///
/// # Errors
/// If an edit turns out to leave nothing to draw.
pub fn draw(
    engine: &dyn Engine,
    work: &Work,
    tell: &mut dyn FnMut(Told) -> ControlFlow<()>,
) -> Result<bool, PipelineError> {
    let (mut of, mut is_done) = (0, false);
    engine.draw(work, &mut |seen| match seen {
        Seen::Begins { scales, before, notes } => {
            of = scales.len();
            let (last, unit) = (scales.last(), engine.unit());
            let about = json!({
                "scales": scales.to_string(),
                "height": last.height * unit,
                "width": last.width * unit,
                "notes": notes,
            });
            tell(Told::Begins { about, before: before.iter().map(to_png).collect() })
        }
        Seen::Scale(k, decode) => {
            let is_last = k + 1 == of;
            let drawn = if work.previews || is_last { decode() } else { Vec::new() };
            let png = |(i, image): (usize, &RgbImage)| match &work.origin {
                Some(origin) if is_last => Origin { number: i, ..origin.clone() }.to_png(image),
                _ => to_png(image),
            };
            let pictures = drawn.iter().enumerate().map(png).collect();
            let told = tell(Told::Scale { scale: k + 1, of, pictures });
            is_done |= is_last;
            told
        }
    })?;
    Ok(is_done)
}
