//! Editing: tokens of some scales, or outside a region, stay those of a source image, and the model
//! predicts the rest around them (VAR, section 5.3: in-painting, out-painting, class-conditional
//! editing; refinement of a coarse image).
//!
//! Shapes: b batch, n tokens of one scale, l of all, c code channels.

use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};
use sar_core::{CodePyramid, ScaleSchedule, ScaleSize};

/// The part of an image that is drawn anew, pixel by pixel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    size: ScaleSize,
    anew: Vec<bool>,
}

impl Region {
    /// A region of an image of `size` pixels; `anew(x, y)` says whether a pixel is drawn anew.
    pub fn new(size: ScaleSize, anew: impl Fn(usize, usize) -> bool) -> Self {
        let ScaleSize { height, width } = size;
        let pixels = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        Self { size, anew: pixels.map(|(x, y)| anew(x, y)).collect() }
    }

    /// The whole image.
    pub fn all(size: ScaleSize) -> Self {
        Self::new(size, |_, _| true)
    }

    /// Whether a pixel is drawn anew.
    ///
    /// # Panics
    /// If the image has no such pixel.
    pub fn contains(&self, x: usize, y: usize) -> bool {
        assert!(x < self.size.width, "column {x}");
        self.anew[y * self.size.width + x]
    }

    /// Whether nothing is drawn anew.
    pub fn is_empty(&self) -> bool {
        !self.anew.contains(&true)
    }

    /// Which tokens of a scale are drawn anew, row-major: those that see any pixel of the region, so
    /// that nothing of what was there shows through. A token sees the pixels of its cell of the image,
    /// `floor(i * H / h) .. ceil((i + 1) * H / h)`.
    pub fn at(&self, scale: ScaleSize) -> Vec<bool> {
        let cell = |i: usize, from: usize, to: usize| i * from / to..((i + 1) * from).div_ceil(to);
        let tokens = (0..scale.height).flat_map(|i| (0..scale.width).map(move |j| (i, j)));
        let is_anew = |(i, j)| {
            cell(i, self.size.height, scale.height).any(|y| {
                cell(j, self.size.width, scale.width).any(|x| self.anew[y * self.size.width + x])
            })
        };
        tokens.map(is_anew).collect()
    }
}

/// The tokens of a source image that an edit keeps.
#[derive(Clone, Debug)]
pub struct KeptTokens<B: Backend> {
    scales: Vec<KeptScale<B>>,
}

#[derive(Clone, Debug)]
struct KeptScale<B: Backend> {
    tokens_bn: Tensor<B, 2, Int>,
    keep_bn: Tensor<B, 2, Bool>,
    /// A row of that.
    keep: Vec<bool>,
}

impl<B: Backend> KeptTokens<B> {
    /// Keeps the first `whole_scales` scales as they are, and of the others what is outside the
    /// region.
    ///
    /// # Shapes
    /// - `tokens_bl`: `[b, l]`, the source images' tokens of all scales of `schedule`
    pub fn new(
        tokens_bl: Tensor<B, 2, Int>,
        schedule: &ScaleSchedule,
        region: &Region,
        whole_scales: usize,
    ) -> Self {
        let [b, _] = tokens_bl.dims();
        let device = tokens_bl.device();
        let scales = schedule.ranges().enumerate().map(|(k, range)| {
            let n = range.len();
            let keep: Vec<bool> = if k < whole_scales {
                vec![true; n]
            } else {
                region.at(schedule.size(k)).into_iter().map(|anew| !anew).collect()
            };
            let data = TensorData::new(keep.clone(), [n]);
            let keep_n = Tensor::<B, 1, Bool>::from_data(data, &device);
            KeptScale {
                keep,
                tokens_bn: tokens_bl.clone().slice_dim(1, range),
                keep_bn: keep_n.reshape([1, n]).expand([b, n]),
            }
        });
        Self { scales: scales.collect() }
    }

    /// Whether scale `k` keeps its token at a place.
    pub(crate) fn keeps(&self, k: usize, place: usize) -> bool {
        self.scales[k].keep[place]
    }

    /// The source's tokens of scale `k` at p places of each image, `[b, p]`.
    pub(crate) fn tokens_at(&self, k: usize, places: &[Vec<usize>]) -> Tensor<B, 2, Int> {
        let tokens_bn = self.scales[k].tokens_bn.clone();
        let places_bp: Vec<i64> = places.iter().flatten().map(|place| *place as i64).collect();
        let places_bp = TensorData::new(places_bp, [places.len(), places[0].len()]);
        let places_bp = Tensor::from_data(places_bp, &tokens_bn.device());
        tokens_bn.gather(1, places_bp)
    }

    /// The tokens of scale `k`, with the kept ones in their places.
    pub(crate) fn tokens(&self, k: usize, drawn_bn: Tensor<B, 2, Int>) -> Tensor<B, 2, Int> {
        let KeptScale { tokens_bn, keep_bn, .. } = &self.scales[k];
        drawn_bn.mask_where(keep_bn.clone(), tokens_bn.clone())
    }

    /// The codes of scale `k`, with the kept ones in their places.
    pub(crate) fn codes<P: CodePyramid<B>>(
        &self,
        k: usize,
        drawn_bnc: Tensor<B, 3>,
        pyramid: &P,
    ) -> Tensor<B, 3> {
        let KeptScale { tokens_bn, keep_bn, .. } = &self.scales[k];
        let [b, n, c] = drawn_bnc.dims();
        let keep_bnc = keep_bn.clone().reshape([b, n, 1]).expand([b, n, c]);
        drawn_bnc.mask_where(keep_bnc, pyramid.look_up(tokens_bn.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;

    #[test]
    fn a_token_is_drawn_anew_if_it_sees_any_pixel_of_the_region() {
        // Of 6x4 pixels the one at column 3, row 1.
        let region = Region::new(ScaleSize { height: 4, width: 6 }, |x, y| (x, y) == (3, 1));
        assert!(region.contains(3, 1) && !region.contains(2, 1) && !region.is_empty());
        assert_eq!(region.at(ScaleSize::square(1)), [true]);
        assert_eq!(region.at(ScaleSize::square(2)), [false, true, false, false]);
        // Three columns of two pixels; three rows of pixels 0..2, 1..3, 2..4, which overlap.
        let at3 = region.at(ScaleSize::square(3));
        assert_eq!(at3, [false, true, false, false, true, false, false, false, false]);
        assert_eq!(region.at(ScaleSize { height: 4, width: 6 }).iter().filter(|x| **x).count(), 1);
        let size = ScaleSize::square(5);
        assert!(Region::all(size).at(ScaleSize::square(3)).iter().all(|x| *x));
        assert!(Region::new(size, |_, _| false).is_empty());
    }

    #[test]
    fn kept_tokens_stand_where_they_were() {
        let schedule: ScaleSchedule = "1_2".parse().unwrap();
        let device = Default::default();
        let source = Tensor::<Flex, 2, Int>::from_ints([[1, 2, 3, 4, 5]], &device);
        let right = Region::new(ScaleSize::square(2), |x, _| x == 1);
        let drawn = |k, whole_scales| {
            let kept = KeptTokens::new(source.clone(), &schedule, &right, whole_scales);
            let n = schedule.size(k).tokens();
            let tokens = kept.tokens(k, Tensor::full([1, n], 9, &device));
            tokens.into_data().convert::<i64>().into_vec::<i64>().unwrap()
        };
        assert_eq!(drawn(0, 0), [9]);
        assert_eq!(drawn(0, 1), [1]);
        assert_eq!(drawn(1, 1), [2, 9, 4, 9]);
        assert_eq!(drawn(1, 2), [2, 3, 4, 5]);
    }
}
