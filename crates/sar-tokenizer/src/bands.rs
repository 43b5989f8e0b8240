//! Maps as bands of rows, where they are too large to be computed whole.
//!
//! A layer takes a band with some rows of its neighbors, and gives the rows that it gives of the whole
//! map; a group norm takes the moments of all bands, for which what lies before it is computed once
//! more. So all is as with whole maps up to rounding, without seams, while one map and a few bands are
//! in memory. A map in one band is computed as ever.
//!
//! Shapes: b batch, c channels, h height, w width.

use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::{Tensor, backend::Backend};
use sar_kernels::{GroupMoments, convolve, convolve_between, double_sides, normalize_by};

use crate::block::activate;

/// How large the maps of encoder and decoder may be: what their memory depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapLimits {
    /// Elements of the maps of most pixels that are computed whole, all images together. A batch beyond
    /// is computed in parts, and an image that is beyond on its own in bands of rows.
    pub whole: usize,
    /// Elements of a band, about.
    pub band: usize,
}

impl Default for MapLimits {
    /// 1 GiB and 64 MiB in f32: at the width of the released FlexVAR, 32 images of 256 px or one of 1448 px
    /// are computed whole.
    fn default() -> Self {
        Self { whole: 1 << 28, band: 1 << 24 }
    }
}

impl MapLimits {
    /// How many images, of so many elements each, are computed together, and the elements of their bands.
    pub(crate) fn parts(self, image: usize) -> (usize, usize) {
        match self.whole / image.max(1) {
            0 => (1, self.band),
            n => (n, usize::MAX),
        }
    }
}

/// A map of one or more bands, from top to bottom. All but the last have an even number of rows, and all
/// have two or more, unless there is one.
#[derive(Clone, Debug)]
pub(crate) struct Bands<B: Backend> {
    bands: Vec<Tensor<B, 4>>,
    /// Elements of a band.
    most: usize,
}

/// A band with rows of its neighbors, or what layers make of it.
#[derive(Clone, Debug)]
pub(crate) struct Slab<B: Backend> {
    pub(crate) x_bchw: Tensor<B, 4>,
    /// Whether the first and the last row are those of the map.
    edges: [bool; 2],
}

impl<B: Backend> Bands<B> {
    /// A map in one band, which layers that enlarge it cut into bands of `most` elements.
    pub(crate) fn whole(x_bchw: Tensor<B, 4>, most: usize) -> Self {
        Self { bands: vec![x_bchw], most }
    }

    /// Whether there is one band only.
    pub(crate) fn is_whole(&self) -> bool {
        self.bands.len() == 1
    }

    /// The map.
    pub(crate) fn joined(self) -> Tensor<B, 4> {
        joined(self.bands)
    }

    /// As one band, computed as a whole.
    pub(crate) fn whole_by(self, layer: impl FnOnce(Tensor<B, 4>) -> Tensor<B, 4>) -> Self {
        let most = self.most;
        Self::whole(layer(self.joined()), most)
    }

    /// The same map in bands of the size that is right where a row makes `elements`.
    pub(crate) fn cut(self, elements: usize) -> Self {
        let Self { bands, most } = self;
        let height: usize = bands.iter().map(|band| band.dims()[2]).sum();
        let rows = ((most / elements.max(1)) & !1).max(2);
        if bands.len() == 1 && height < rows.saturating_add(2) {
            return Self { bands, most };
        }
        let (mut cut, mut parts, mut left) = (Vec::new(), Vec::new(), height);
        // Rows that the next band still lacks.
        let mut lacks = 0;
        for band in bands {
            let (mut at, height) = (0, band.dims()[2]);
            while at < height {
                if lacks == 0 {
                    lacks = if left < rows + 2 { left } else { rows };
                    left -= lacks;
                }
                let n = lacks.min(height - at);
                parts.push(rows_of(&band, at, n));
                (at, lacks) = (at + n, lacks - n);
                if lacks == 0 {
                    cut.push(joined(std::mem::take(&mut parts)));
                }
            }
        }
        Self { bands: cut, most }
    }

    /// Elements of a row: `b c w`.
    pub(crate) fn row(&self) -> usize {
        let [b, c, _, w] = self.bands[0].dims();
        b * c * w
    }

    /// What a layer makes of every band, given `margin` (1 or 2) rows of its neighbors. A band is let go of when its
    /// successor is done.
    pub(crate) fn map(self, margin: usize, layer: impl Fn(Slab<B>) -> Tensor<B, 4>) -> Self {
        let most = self.most;
        let bands = self.slabs(margin).map(layer).collect();
        Self { bands, most }
    }

    /// The moments for a group norm of what layers make of the map, which is not kept; `margin` as in
    /// [`map`](Self::map), as many rows as the layers take away.
    pub(crate) fn moments_behind(
        &self,
        margin: usize,
        norm: &GroupNorm<B>,
        layers: impl Fn(Slab<B>) -> Slab<B>,
    ) -> GroupMoments<B> {
        let of = |slab| GroupMoments::of(layers(slab).x_bchw, norm.num_groups);
        self.clone().slabs(margin).map(of).reduce(GroupMoments::and).expect("one band or more")
    }

    /// The moments of the map for a group norm.
    pub(crate) fn moments(&self, norm: &GroupNorm<B>) -> GroupMoments<B> {
        let of = |band: &Tensor<B, 4>| GroupMoments::of(band.clone(), norm.num_groups);
        self.bands.iter().map(of).reduce(GroupMoments::and).expect("one band or more")
    }

    /// `conv(silu(norm(x)))`, of a convolution 3 pixels wide.
    pub(crate) fn activated(self, norm: &GroupNorm<B>, conv: &Conv2d<B>) -> Self {
        if self.is_whole() {
            return self.whole_by(|x_bchw| convolve(conv, activate(norm, x_bchw)));
        }
        let moments = self.moments(norm);
        self.map(1, |slab| slab.activate(norm, &moments).convolve(conv).x_bchw)
    }

    fn slabs(self, margin: usize) -> impl Iterator<Item = Slab<B>> {
        let mut bands = self.bands.into_iter().peekable();
        let mut above: Option<Tensor<B, 4>> = None;
        std::iter::from_fn(move || {
            let band = bands.next()?;
            let below = bands.peek().map(|below| rows_of(below, 0, margin));
            let edges = [above.is_none(), below.is_none()];
            // Nothing is below the last band, which may be of one row.
            let next_above = below.is_some().then(|| {
                let height = band.dims()[2];
                rows_of(&band, height - margin, margin)
            });
            let parts = [std::mem::replace(&mut above, next_above), Some(band), below];
            Some(Slab { x_bchw: joined(parts.into_iter().flatten().collect()), edges })
        })
    }
}

impl<B: Backend> Slab<B> {
    /// What a convolution gives of the rows of which all neighbors are here.
    pub(crate) fn convolve(self, conv: &Conv2d<B>) -> Self {
        let Self { x_bchw, edges } = self;
        Self { x_bchw: convolve_between(conv, x_bchw, edges), edges }
    }

    /// `silu(norm(x))`
    pub(crate) fn activate(self, norm: &GroupNorm<B>, moments: &GroupMoments<B>) -> Self {
        let Self { x_bchw, edges } = self;
        Self { x_bchw: normalize_by(norm, moments, x_bchw, true), edges }
    }

    /// Without `n` rows where a neighbor is.
    pub(crate) fn without(self, n: usize) -> Self {
        let [top, bottom] = self.edges.map(|is_edge| if is_edge { 0 } else { n });
        self.trimmed(top, bottom)
    }

    /// Without the row above, if there is one: what a convolution of stride 2 begins with.
    pub(crate) fn starting_here(self) -> Self {
        let top = usize::from(!self.edges[0]);
        self.trimmed(top, 0)
    }

    /// Every pixel twice along both sides, with as many rows of the neighbors as before.
    pub(crate) fn doubled(self, margin: usize) -> Self {
        let Self { x_bchw, edges } = self;
        Self { x_bchw: double_sides(x_bchw), edges }.without(margin)
    }

    fn trimmed(self, top: usize, bottom: usize) -> Self {
        let Self { x_bchw, edges } = self;
        let height = x_bchw.dims()[2];
        Self { x_bchw: rows_of(&x_bchw, top, height - top - bottom), edges }
    }
}

/// `n` rows from `first` on.
fn rows_of<B: Backend>(x_bchw: &Tensor<B, 4>, first: usize, n: usize) -> Tensor<B, 4> {
    match n == x_bchw.dims()[2] {
        true => x_bchw.clone(),
        false => x_bchw.clone().narrow(2, first, n),
    }
}

/// Maps below each other as one.
fn joined<B: Backend>(mut parts: Vec<Tensor<B, 4>>) -> Tensor<B, 4> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 2),
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    fn heights(bands: &Bands<Flex>) -> Vec<usize> {
        bands.bands.iter().map(|band| band.dims()[2]).collect()
    }

    #[test]
    fn bands_are_even_and_whole_maps_stay_whole() {
        let map = |height: usize| {
            let values = Tensor::arange(0..(height * 3) as i64, &Default::default()).float();
            Bands::<Flex>::whole(values.reshape([1, 1, height, 3]), 14)
        };
        // Fourteen elements are four rows of three.
        for (height, expected) in
            [(4, vec![4]), (5, vec![5]), (6, vec![4, 2]), (9, vec![4, 5]), (10, vec![4, 4, 2])]
        {
            let cut = map(height).cut(3);
            assert_eq!(heights(&cut), expected, "{height}");
            // Joined and cut again otherwise, no row is lost.
            let again = cut.cut(7);
            assert!(heights(&again).iter().all(|rows| (2..4).contains(rows)), "{height}");
            again.joined().into_data().assert_eq(&map(height).joined().into_data(), true);
        }
        assert_eq!(heights(&map(9).cut(1000)), [2, 2, 2, 3]);
        let all = Bands { most: usize::MAX, ..map(9) };
        assert_eq!(heights(&all.cut(1)), [9]);
    }

    #[test]
    fn a_band_comes_with_rows_of_its_neighbors() {
        let rows =
            Tensor::<Flex, 1>::from_floats([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &Default::default());
        let bands = Bands::whole(rows.reshape([1, 1, 6, 1]), 2).cut(1);
        let seen: Vec<_> = bands
            .slabs(1)
            .map(|slab| (slab.x_bchw.into_data().into_vec::<f32>().unwrap(), slab.edges))
            .collect();
        let expected = [
            (vec![0.0, 1.0, 2.0], [true, false]),
            (vec![1.0, 2.0, 3.0, 4.0], [false, false]),
            (vec![3.0, 4.0, 5.0], [false, true]),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn limits_say_how_many_images_and_how_large_bands() {
        let limits = MapLimits { whole: 100, band: 10 };
        assert_eq!(limits.parts(30), (3, usize::MAX));
        assert_eq!(limits.parts(100), (1, usize::MAX));
        assert_eq!(limits.parts(101), (1, 10));
    }
}
