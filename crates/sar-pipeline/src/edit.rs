//! Parts of a picture drawn anew: in-painting, expansion, refinement.
//!
//! Everything is said in pixels of the source picture. The picture is resized to about as many pixels
//! as the model draws, keeping its aspect ratio where the model can run at it. The tokens outside the
//! part that is drawn anew stay exactly those of the source; its pixels pass through the tokenizer,
//! unless the source's own are blended back.

use std::ops::{ControlFlow, Range};

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};
use image::{Rgb, RgbImage, imageops};
use sar_core::{ScaleSchedule, ScaleSize, SeedTree};
use sar_rollout::{KeptTokens, Region, Sampler};

use crate::pipeline::{Pipeline, Request};
use crate::{Mask, PipelineError, to_tensor};

/// Shown where the source is drawn anew.
const HOLE: Rgb<u8> = Rgb([128; 3]);

/// What is drawn anew.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Part {
    /// The pixels of a mask.
    Inside(Mask),
    /// The pixels that a mask leaves out.
    Outside(Mask),
    /// Margins around the picture, in its pixels: left, top, right, bottom. The result is larger.
    Margins([u32; 4]),
    /// Everything but the coarse scales that a small picture already has the pixels for.
    Refine,
}

/// How a picture is edited.
#[derive(Clone, Debug, PartialEq)]
pub struct EditSettings {
    /// What is drawn anew.
    pub part: Part,
    /// The class of what is drawn; the number of classes is no class at all.
    pub label: usize,
    /// Coarse scales that are kept whole, which keeps more of the source's layout; `None` for those that
    /// the part asks for.
    pub keep_scales: Option<usize>,
    /// Puts the source's own pixels back outside what is drawn anew, mixed over so many pixels.
    pub blend: Option<u32>,
    /// The scales, before they are stretched to the picture.
    pub scales: ScaleSchedule,
    /// Whether the picture is cropped to the size of `scales` instead of the scales being stretched to
    /// the picture.
    pub exact_size: bool,
    /// Guidance and filters.
    pub sampler: Sampler,
    /// Seed of the results.
    pub seed: u64,
}

/// A picture that is ready to be edited.
#[derive(Clone, Debug)]
pub struct Edit<'p, B: Backend> {
    pipeline: &'p Pipeline<B>,
    canvas: RgbImage,
    region: Region,
    whole_scales: usize,
    /// Where the source is blended back: the result's share in each pixel.
    shares: Option<Vec<f64>>,
    label: usize,
    scales: ScaleSchedule,
    sampler: Sampler,
    seed: SeedTree,
    tokens_1l: Tensor<B, 2, Int>,
    notes: Vec<String>,
}

impl<B: Backend> Pipeline<B> {
    /// Where a source of some width and height lies on the canvas, before margins.
    fn placement(&self, source: (u32, u32), settings: &EditSettings) -> Placement {
        let (last, unit) = (settings.scales.last(), self.downsampling() as u32);
        let drawn = [last.width, last.height].map(|n| n as u32 * unit);
        let is_fixed = self.backbone.config.positions.only_scales().is_some();
        match settings.exact_size || is_fixed {
            true => Placement::cover(source, drawn),
            false => Placement::keep_aspect(source, drawn, unit),
        }
    }

    /// The scales that an edit of a source of some width and height is drawn at, margins included: what
    /// [`edit`](Self::edit) will take, before it takes it.
    ///
    /// # Errors
    /// If the model cannot run at the size.
    pub fn edit_scales(
        &self,
        source: (u32, u32),
        settings: &EditSettings,
    ) -> Result<ScaleSchedule, PipelineError> {
        let placement = self.placement(source, settings);
        let [width, height] = placement.size.map(u64::from);
        let unit = self.downsampling() as u64;
        let [width, height] = match &settings.part {
            Part::Margins(margins) => {
                let [left, top, right, bottom] = placement.scaled(*margins);
                [width + left + right, height + top + bottom].map(|n| n.next_multiple_of(unit))
            }
            _ => [width, height],
        };
        let size = ScaleSize { height: height as usize, width: width as usize };
        self.stretched(&settings.scales, size)
    }

    /// Prepares a picture for an edit.
    ///
    /// # Errors
    /// If nothing is left to be drawn, a mask is of another size than the picture, or the model cannot
    /// run at the size.
    pub fn edit(
        &self,
        source: &RgbImage,
        settings: &EditSettings,
    ) -> Result<Edit<'_, B>, PipelineError> {
        let EditSettings { part, label, keep_scales, blend, sampler, seed, .. } = settings;
        let refuse = |problem: String| Err(PipelineError::Edit(problem));
        let unit = self.downsampling() as u32;
        // Before the canvas takes memory: margins can make it very large.
        let scales = self.edit_scales(source.dimensions(), settings)?;
        let placement = self.placement(source.dimensions(), settings);
        let mut notes = placement.note(source.dimensions()).into_iter().collect::<Vec<_>>();
        let picture = placement.render(source);
        let size = |image: &RgbImage| ScaleSize {
            height: image.height() as usize,
            width: image.width() as usize,
        };
        let (canvas, region) = match part {
            Part::Inside(mask) | Part::Outside(mask) => {
                if mask.dimensions() != source.dimensions() {
                    let ((w, h), (width, height)) = (mask.dimensions(), source.dimensions());
                    return refuse(format!(
                        "the mask has {w}x{h} pixels, the picture {width}x{height} (width x height)"
                    ));
                }
                let is_inside = matches!(part, Part::Inside(_));
                if mask.share() == if is_inside { 1.0 } else { 0.0 } {
                    notes.push("the mask leaves nothing out: everything is drawn anew".into());
                }
                let is_anew = |x, y| mask.contains(x, y) == is_inside;
                let region = Region::new(size(&picture), |x, y| {
                    let [xs, ys] = placement.footprint(x as u32, y as u32);
                    ys.into_iter().any(|y| xs.clone().any(|x| is_anew(x, y)))
                });
                (picture, region)
            }
            Part::Margins(margins) => {
                // A canvas that has scales has sides of 32 bits.
                expanded(&picture, placement.scaled(*margins).map(|n| n as u32), unit)
            }
            Part::Refine => {
                let region = Region::all(size(&picture));
                (picture, region)
            }
        };
        let has_pixels = |size: &&ScaleSize| {
            size.height as u32 * unit <= source.height()
                && size.width as u32 * unit <= source.width()
        };
        let asked_for = match part {
            Part::Refine => scales.sizes().iter().take_while(has_pixels).count(),
            _ => 0,
        };
        let whole_scales = keep_scales.unwrap_or(asked_for);
        if region.is_empty() {
            return refuse(
                "nothing is left to be drawn: no pixel is to be drawn anew; check the mask or box"
                    .into(),
            );
        }
        if whole_scales >= scales.len() {
            return refuse(format!(
                "nothing is left to be drawn: {whole_scales} of {} scales are kept; keep fewer \
                 (--keep-scales), or draw at more pixels (--size)",
                scales.len(),
            ));
        }
        let h_bchw =
            self.tokenizer.model.encode(to_tensor(std::slice::from_ref(&canvas), &self.device));
        let tokens_1l = self.tokenizer.model.tokens(h_bchw, &scales);
        let shares = blend.map(|seam| shares(&region, canvas.dimensions(), seam));
        Ok(Edit {
            pipeline: self,
            canvas,
            region,
            whole_scales,
            shares,
            label: *label,
            scales,
            sampler: *sampler,
            seed: SeedTree::new(*seed).child("edit"),
            tokens_1l,
            notes,
        })
    }
}

impl<B: Backend> Edit<'_, B> {
    /// The picture as the model sees it, before anything is drawn.
    pub fn canvas(&self) -> &RgbImage {
        &self.canvas
    }

    /// The picture with what is drawn anew in gray.
    pub fn holed(&self) -> RgbImage {
        RgbImage::from_fn(self.canvas.width(), self.canvas.height(), |x, y| {
            if self.region.contains(x as usize, y as usize) {
                HOLE
            } else {
                *self.canvas.get_pixel(x, y)
            }
        })
    }

    /// What the user should know: a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The scales that are drawn.
    pub fn scales(&self) -> &ScaleSchedule {
        &self.scales
    }

    /// The results of some numbers: each is a function of its number, whatever is drawn with it.
    pub fn draw(&self, numbers: Range<usize>) -> Vec<RgbImage> {
        let (request, kept) = self.wanted(numbers);
        self.finished(self.pipeline.generate(&request, Some(&kept)))
    }

    /// As [`draw`](Self::draw), showing what there is after every scale, as
    /// [`Pipeline::sample_previews`] does; the last are the results.
    pub fn draw_previews(
        &self,
        numbers: Range<usize>,
        mut seen: impl FnMut(usize, &dyn Fn() -> Vec<RgbImage>) -> ControlFlow<()>,
    ) {
        let (request, kept) = self.wanted(numbers);
        let last = self.scales.len() - 1;
        self.pipeline.generate_previews(&request, Some(&kept), |k, decode| {
            seen(k, &|| if k == last { self.finished(decode()) } else { decode() })
        });
    }

    fn wanted(&self, numbers: Range<usize>) -> (Request, KeptTokens<B>) {
        let n = numbers.len();
        let wanted = numbers.map(|i| (self.label, i));
        let request = Request::of(self.seed, wanted, self.scales.clone(), self.sampler);
        let tokens_bl = Tensor::cat(vec![self.tokens_1l.clone(); n], 0);
        let kept = KeptTokens::new(tokens_bl, &self.scales, &self.region, self.whole_scales);
        (request, kept)
    }

    /// Blends the source back, where that was asked for.
    fn finished(&self, images: Vec<RgbImage>) -> Vec<RgbImage> {
        let Some(shares) = &self.shares else { return images };
        images.into_iter().map(|image| blended(&self.canvas, &image, shares)).collect()
    }
}

/// Which part of the source becomes which pixels of the canvas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placement {
    /// Left, top, width, height in the source.
    cut: [u32; 4],
    /// Width and height on the canvas.
    size: [u32; 2],
}

impl Placement {
    /// The whole source at about as many pixels as `drawn` has, both sides multiples of `unit`.
    fn keep_aspect((w, h): (u32, u32), drawn: [u32; 2], unit: u32) -> Self {
        let [wide, high] = drawn.map(f64::from);
        let scale = (wide * high / (f64::from(w) * f64::from(h))).sqrt();
        let side = |n: u32| ((f64::from(n) * scale / f64::from(unit)).round() as u32).max(1) * unit;
        Self { cut: [0, 0, w, h], size: [side(w), side(h)] }
    }

    /// The center of the source that has the aspect ratio of `size`.
    fn cover((w, h): (u32, u32), size: [u32; 2]) -> Self {
        let ratio = |i: usize, n: u32| f64::from(size[i]) / f64::from(n);
        let scale = ratio(0, w).max(ratio(1, h));
        let part =
            |wanted: u32, has: u32| ((f64::from(wanted) / scale).round() as u32).clamp(1, has);
        let [cut_w, cut_h] = [part(size[0], w), part(size[1], h)];
        Self { cut: [(w - cut_w) / 2, (h - cut_h) / 2, cut_w, cut_h], size }
    }

    /// What is lost of the source, in words.
    fn note(&self, (w, h): (u32, u32)) -> Option<String> {
        let [left, top, width, height] = self.cut;
        ((width, height) != (w, h)).then(|| {
            format!(
                "the picture of {w}x{h} pixels is cropped to {width}x{height} of them, from \
                 {left},{top} on (width x height): the model draws {}x{} here",
                self.size[0], self.size[1]
            )
        })
    }

    fn render(&self, source: &RgbImage) -> RgbImage {
        let [left, top, w, h] = self.cut;
        let cut = imageops::crop_imm(source, left, top, w, h).to_image();
        let [width, height] = self.size;
        if cut.dimensions() == (width, height) {
            return cut;
        }
        imageops::resize(&cut, width, height, imageops::FilterType::CatmullRom)
    }

    /// The columns and rows of the source that a pixel of the canvas shows.
    fn footprint(&self, x: u32, y: u32) -> [Range<u32>; 2] {
        let [left, top, w, h] = self.cut.map(u64::from);
        let [width, height] = self.size.map(u64::from);
        let along = |at: u32, start: u64, from: u64, to: u64| {
            let at = u64::from(at);
            let range = at * from / to..((at + 1) * from).div_ceil(to);
            (start + range.start) as u32..(start + range.end) as u32
        };
        [along(x, left, w, width), along(y, top, h, height)]
    }

    /// Margins in source pixels as pixels of the canvas, rounded up.
    fn scaled(&self, [left, top, right, bottom]: [u32; 4]) -> [u64; 4] {
        let [_, _, w, h] = self.cut.map(u64::from);
        let [width, height] = self.size.map(u64::from);
        let scaled = |margin: u32, to: u64, from: u64| (u64::from(margin) * to).div_ceil(from);
        [
            scaled(left, width, w),
            scaled(top, height, h),
            scaled(right, width, w),
            scaled(bottom, height, h),
        ]
    }
}

/// A larger picture around another, its margins rounded up so that both sides are multiples of `unit`;
/// the margins hold the edge's pixels, and are drawn anew.
fn expanded(
    image: &RgbImage,
    [left, top, right, bottom]: [u32; 4],
    unit: u32,
) -> (RgbImage, Region) {
    let (width, height) = image.dimensions();
    let [w, h] =
        [width + left + right, height + top + bottom].map(|length| length.next_multiple_of(unit));
    let inside = |at: u32, margin: u32, length: u32| at.checked_sub(margin).filter(|x| *x < length);
    let canvas = RgbImage::from_fn(w, h, |x, y| {
        let near = |at: u32, margin: u32, length: u32| at.saturating_sub(margin).min(length - 1);
        *image.get_pixel(near(x, left, width), near(y, top, height))
    });
    let size = ScaleSize { height: h as usize, width: w as usize };
    let region = Region::new(size, |x, y| {
        inside(x as u32, left, width).is_none() || inside(y as u32, top, height).is_none()
    });
    (canvas, region)
}

/// The share of the result in each pixel, row by row: 1 in the region, and falling to 0 at the end of a
/// seam of so many pixels around it (Chebyshev distance).
fn shares(region: &Region, (width, height): (u32, u32), seam: u32) -> Vec<f64> {
    let (w, h) = (width as usize, height as usize);
    let inside = |i: usize| region.contains(i % w, i / w);
    let mut distances: Vec<u32> =
        (0..w * h).map(|i| if inside(i) { 0 } else { u32::MAX }).collect();
    // Each pixel is one further than the nearest of its eight neighbors: those that precede it, then
    // those that follow it.
    let mut visit = |i: usize, neighbors: [(isize, isize); 4]| {
        let (x, y) = ((i % w) as isize, (i / w) as isize);
        for (dx, dy) in neighbors {
            let (x, y) = (x + dx, y + dy);
            if (0..w as isize).contains(&x) && (0..h as isize).contains(&y) {
                let beside = distances[y as usize * w + x as usize].saturating_add(1);
                distances[i] = distances[i].min(beside);
            }
        }
    };
    (0..w * h).for_each(|i| visit(i, [(-1, -1), (0, -1), (1, -1), (-1, 0)]));
    (0..w * h).rev().for_each(|i| visit(i, [(1, 1), (0, 1), (-1, 1), (1, 0)]));
    let share = |d: u32| if d > seam { 0.0 } else { 1.0 - f64::from(d) / f64::from(seam + 1) };
    distances.into_iter().map(share).collect()
}

/// The source and the result, mixed by the result's share in each pixel.
fn blended(source: &RgbImage, result: &RgbImage, shares: &[f64]) -> RgbImage {
    let (width, height) = source.dimensions();
    RgbImage::from_fn(width, height, |x, y| {
        let (a, b) = (source.get_pixel(x, y).0, result.get_pixel(x, y).0);
        let share = shares[y as usize * width as usize + x as usize];
        Rgb(std::array::from_fn(|c| {
            (f64::from(a[c]) * (1.0 - share) + f64::from(b[c]) * share).round() as u8
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_are_rounded_up_and_drawn_anew() {
        let image = RgbImage::from_fn(4, 4, |x, _| Rgb([x as u8; 3]));
        let (canvas, region) = expanded(&image, [1, 0, 2, 0], 4);
        assert_eq!(canvas.dimensions(), (8, 4));
        let row: Vec<u8> = (0..8).map(|x| canvas.get_pixel(x, 0).0[0]).collect();
        assert_eq!(row, [0, 0, 1, 2, 3, 3, 3, 3]);
        let anew: Vec<bool> = (0..8).map(|x| region.contains(x, 3)).collect();
        assert_eq!(anew, [true, false, false, false, false, true, true, true]);
    }

    #[test]
    fn blending_keeps_the_source_and_mixes_the_seam() {
        let (source, result) =
            (RgbImage::from_pixel(6, 1, Rgb([0; 3])), RgbImage::from_pixel(6, 1, Rgb([90; 3])));
        let region = Region::new(ScaleSize { height: 1, width: 6 }, |x, _| x == 0);
        let row = |seam| {
            let shares = shares(&region, source.dimensions(), seam);
            let image = blended(&source, &result, &shares);
            (0..6).map(|x| image.get_pixel(x, 0).0[0]).collect::<Vec<_>>()
        };
        assert_eq!(row(0), [90, 0, 0, 0, 0, 0]);
        assert_eq!(row(2), [90, 60, 30, 0, 0, 0]);
    }

    #[test]
    fn the_aspect_ratio_is_kept() {
        let place = |w, h| Placement::keep_aspect((w, h), [32, 32], 4);
        assert_eq!(place(32, 32).size, [32, 32]);
        assert_eq!(place(640, 640).size, [32, 32]);
        // sqrt(32 * 32 / (640 * 480)) = 0.0577: 36.95 and 27.7 pixels.
        assert_eq!(place(640, 480).size, [36, 28]);
        assert_eq!(place(640, 480).note((640, 480)), None);
        // 160 source pixels are 9.0 of the canvas.
        assert_eq!(place(640, 480).scaled([0, 0, 160, 1]), [0, 0, 9, 1]);
        assert_eq!(place(1000, 1).size[1], 4, "a side is never lost");
    }

    #[test]
    fn a_crop_keeps_the_center_and_says_so() {
        let image = RgbImage::from_fn(12, 4, |x, _| Rgb([20 * x as u8; 3]));
        let placement = Placement::cover((12, 4), [4, 4]);
        assert_eq!(placement.render(&image), imageops::crop_imm(&image, 4, 0, 4, 4).to_image());
        let note = placement.note((12, 4)).unwrap();
        assert!(note.contains("12x4") && note.contains("4x4 of them, from 4,0"), "{note}");
        assert_eq!(Placement::cover((1, 900), [16, 16]).render(&RgbImage::new(1, 900)).width(), 16);
    }

    #[test]
    fn every_source_pixel_shows_in_some_pixel() {
        for (from, to) in [((64, 48), [36, 28]), ((5, 3), [32, 32]), ((7, 900), [4, 256])] {
            let placement = Placement { cut: [0, 0, from.0, from.1], size: to };
            for y in 0..from.1 {
                let seen = (0..to[1]).any(|v| placement.footprint(0, v)[1].contains(&y));
                assert!(seen, "row {y} of {from:?}");
            }
            for x in 0..from.0 {
                let seen = (0..to[0]).any(|u| placement.footprint(u, 0)[0].contains(&x));
                assert!(seen, "column {x} of {from:?}");
            }
        }
    }
}
