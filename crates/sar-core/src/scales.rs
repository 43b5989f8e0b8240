//! Scale schedules: the increasing list of token-map sizes that an image is predicted through.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::resample::area_window;

/// Height and width of one scale, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScaleSize {
    /// Rows of tokens, at least 1.
    pub height: usize,
    /// Columns of tokens, at least 1.
    pub width: usize,
}

impl ScaleSize {
    /// A square scale.
    pub const fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }

    /// Tokens of this scale, `height * width`.
    pub const fn tokens(self) -> usize {
        self.height * self.width
    }
}

impl fmt::Display for ScaleSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.height == self.width {
            write!(f, "{}", self.height)
        } else {
            write!(f, "{}x{}", self.height, self.width)
        }
    }
}

/// Why a list of sizes is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// No scale at all.
    #[error("a scale schedule needs at least one scale, e.g. 1_2_3_4")]
    Empty,
    /// A scale does not grow.
    #[error("scales must increase: {next} after {previous} (scale {index} of the list)")]
    NotIncreasing {
        /// Zero-based place of the offending scale.
        index: usize,
        /// The scale before it.
        previous: ScaleSize,
        /// The offending scale.
        next: ScaleSize,
    },
    /// A side that is not a positive integer, or too large to be meant.
    #[error(
        "'{}' is not a scale: write sides such as 1_2_3_4, or heights and widths such as 1_2x3 (each from 1 to {})",
        text.escape_debug(),
        ScaleSchedule::MAX_SIDE
    )]
    Unreadable {
        /// The text that could not be read.
        text: String,
    },
    /// A name that is not a preset.
    #[error("no scale preset '{name}'; known: {}", ScaleSchedule::PRESETS.map(|(n, _)| n).join(", "))]
    UnknownPreset {
        /// The name asked for.
        name: String,
    },
}

/// An increasing list of token-map sizes (VAR, section 3.1). It starts at a single token, the class token's,
/// unless a model's [first scale](crate::FirstScale) is another.
///
/// Written and serialized as `1_2_3_4`, with `HxW` for scales that are not square: `1_2x3_4x6`.
///
/// ```
/// use sar_core::ScaleSchedule;
/// let scales: ScaleSchedule = "1_2_3_4".parse().unwrap();
/// assert_eq!(scales.n_tokens(), 30);
/// assert_eq!(scales.range(2), 5..14);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScaleSchedule {
    sizes: Vec<ScaleSize>,
}

impl ScaleSchedule {
    /// Longest side that is accepted, in tokens.
    pub const MAX_SIDE: usize = 1024;

    /// Published schedules by name: the image side they were trained for, or FlexVAR's step counts.
    pub const PRESETS: [(&str, &[usize]); 11] = [
        ("256px", &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
        ("512px", &[1, 2, 3, 4, 6, 9, 13, 18, 24, 32]),
        ("512px-zero-shot", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 23, 32]),
        ("1024px", &[1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64]),
        ("6-steps", &[1, 2, 4, 6, 10, 16]),
        ("8-steps", &[1, 2, 3, 5, 7, 10, 13, 16]),
        ("9-steps", &[1, 2, 3, 4, 5, 7, 10, 13, 16]),
        ("10-steps", &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
        ("11-steps", &[1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 16]),
        ("12-steps", &[1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]),
        ("13-steps", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16]),
    ];

    /// A schedule of the given sizes.
    ///
    /// # Errors
    /// If the list is empty, or a scale has fewer rows, fewer columns or not more tokens than the one
    /// before.
    pub fn new(sizes: Vec<ScaleSize>) -> Result<Self, ScheduleError> {
        let first = *sizes.first().ok_or(ScheduleError::Empty)?;
        if first.tokens() == 0 || first.height.max(first.width) > Self::MAX_SIDE {
            return Err(ScheduleError::Unreadable { text: first.to_string() });
        }
        for (index, pair) in sizes.windows(2).enumerate() {
            let (previous, next) = (pair[0], pair[1]);
            let grows = next.height >= previous.height
                && next.width >= previous.width
                && next.tokens() > previous.tokens();
            if !grows {
                return Err(ScheduleError::NotIncreasing { index: index + 1, previous, next });
            }
            if next.height > Self::MAX_SIDE || next.width > Self::MAX_SIDE {
                return Err(ScheduleError::Unreadable { text: next.to_string() });
            }
        }
        Ok(Self { sizes })
    }

    /// A schedule of square scales.
    ///
    /// # Errors
    /// As [`ScaleSchedule::new`].
    pub fn squares(sides: &[usize]) -> Result<Self, ScheduleError> {
        Self::new(sides.iter().map(|&side| ScaleSize::square(side)).collect())
    }

    /// A published schedule by its name in [`ScaleSchedule::PRESETS`].
    ///
    /// # Errors
    /// If there is no preset of that name.
    pub fn preset(name: &str) -> Result<Self, ScheduleError> {
        match Self::PRESETS.iter().find(|(known, _)| *known == name) {
            Some((_, sides)) => Self::squares(sides),
            None => Err(ScheduleError::UnknownPreset { name: name.into() }),
        }
    }

    /// The same scales stretched so that the last has another size; the class token's stays 1x1, and scales
    /// that rounding makes equal are one. FlexVAR samples at any of them, at other resolutions and aspect ratios.
    ///
    /// ```
    /// use sar_core::ScaleSchedule;
    /// let scales: ScaleSchedule = "1_2_3_4_6_8".parse().unwrap();
    /// let wide = scales.with_last("8x12".parse().unwrap()).unwrap();
    /// assert_eq!(wide.to_string(), "1_2x3_3x5_4x6_6x9_8x12");
    /// ```
    ///
    /// # Errors
    /// If the last size is larger than a side may be, or has a side of 0.
    pub fn with_last(&self, last: ScaleSize) -> Result<Self, ScheduleError> {
        if last.tokens() == 0 {
            return Err(ScheduleError::Unreadable { text: last.to_string() });
        }
        let from = self.last();
        // Rounded to the nearest, halves up, in integers.
        let stretch = |side: usize, to: usize, from: usize| {
            ((2 * side * to + from) / (2 * from)).clamp(1, to)
        };
        let of_class = usize::from(self.sizes[0] == ScaleSize::square(1));
        let mut sizes = self.sizes[..of_class].to_vec();
        for size in &self.sizes[of_class..] {
            sizes.push(ScaleSize {
                height: stretch(size.height, last.height, from.height),
                width: stretch(size.width, last.width, from.width),
            });
        }
        // A schedule of one scale has no other to stretch.
        if sizes.len() == 1 && last != sizes[0] {
            sizes.push(last);
        }
        sizes.dedup();
        Self::new(sizes)
    }

    /// Number of scales, K.
    #[allow(clippy::len_without_is_empty, reason = "a schedule is never empty")]
    pub fn len(&self) -> usize {
        self.sizes.len()
    }

    /// All sizes, coarse to fine.
    pub fn sizes(&self) -> &[ScaleSize] {
        &self.sizes
    }

    /// The size of scale `k`.
    ///
    /// # Panics
    /// If `k` is not below [`len`](Self::len).
    pub fn size(&self, k: usize) -> ScaleSize {
        self.sizes[k]
    }

    /// The finest scale, the one that is decoded.
    pub fn last(&self) -> ScaleSize {
        self.sizes[self.sizes.len() - 1]
    }

    /// Tokens of the whole pyramid, L.
    pub fn n_tokens(&self) -> usize {
        self.sizes.iter().map(|size| size.tokens()).sum()
    }

    /// Where scale `k` lies in the sequence of all tokens.
    pub fn range(&self, k: usize) -> Range<usize> {
        let start = self.sizes[..k].iter().map(|size| size.tokens()).sum();
        start..start + self.sizes[k].tokens()
    }

    /// All ranges, coarse to fine.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.sizes.iter().scan(0, |start, size| {
            let range = *start..*start + size.tokens();
            *start = range.end;
            Some(range)
        })
    }

    /// Tokens whose window of [area](crate::Filter::Area) pooling over a map of latents is also that of a token of
    /// a coarser scale, each with the first of these: places in the sequence of all tokens.
    ///
    /// A direct tokenizer pools all scales from one map, and gives both the same code. How many there are
    /// depends on the map's size: of `1_2_3_4_6_8` over 8x8 latents 16 of the 36 tokens at 6x6 say again what
    /// is known from 4x4; of the published `256px` 104 of 680 over 16x16, and 24 over the 32x32 of 512 px.
    pub fn repeats(&self, latents: ScaleSize) -> Vec<[usize; 2]> {
        let mut first_of = HashMap::new();
        let mut repeats = Vec::new();
        for (size, range) in self.sizes.iter().zip(self.ranges()) {
            for token in range.clone() {
                let (y, x) =
                    ((token - range.start) / size.width, (token - range.start) % size.width);
                let window = [
                    area_window(y, latents.height, size.height),
                    area_window(x, latents.width, size.width),
                ];
                match first_of.entry(window) {
                    Entry::Occupied(first) => repeats.push([token, *first.get()]),
                    Entry::Vacant(place) => _ = place.insert(token),
                }
            }
        }
        repeats
    }

    /// The schedule `1, s_k` of a class token and one single scale, as a transition is trained.
    ///
    /// # Panics
    /// If `k` is 0 or not below [`len`](Self::len).
    pub fn transition(&self, k: usize) -> Self {
        assert!(k > 0, "scale 0 has no transition into it");
        Self { sizes: vec![ScaleSize::square(1), self.sizes[k]] }
    }
}

impl FromStr for ScaleSchedule {
    type Err = ScheduleError;

    /// Reads `1_2_3`, `1_2x3`, or the name of a preset.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ScheduleError::Empty);
        }
        if Self::PRESETS.iter().any(|(name, _)| *name == text) {
            return Self::preset(text);
        }
        Self::new(text.split('_').map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl FromStr for ScaleSize {
    type Err = ScheduleError;

    /// Reads `16` or, height first, `12x16`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let side = |text: &str| match text.parse::<usize>() {
            Ok(side) if (1..=ScaleSchedule::MAX_SIDE).contains(&side) => Ok(side),
            _ => Err(ScheduleError::Unreadable { text: text.into() }),
        };
        match text.split_once('x') {
            Some((height, width)) => Ok(Self { height: side(height)?, width: side(width)? }),
            None => Ok(Self::square(side(text)?)),
        }
    }
}

impl fmt::Display for ScaleSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (k, size) in self.sizes.iter().enumerate() {
            if k > 0 {
                f.write_str("_")?;
            }
            write!(f, "{size}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for ScaleSchedule {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ScaleSchedule> for String {
    fn from(schedule: ScaleSchedule) -> Self {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repeats_by_hand() {
        let over = |latents, text: &str| text.parse::<ScaleSchedule>().unwrap().repeats(latents);
        let repeats = |text| over(ScaleSize::square(8), text);
        // Rows 0, 2, 3, 5 of 6 are means of rows 0-1, 2-3, 4-5, 6-7 of 8: rows 0 to 3 of 4.
        let places = [0, 2, 3, 5].into_iter().enumerate();
        let expected: Vec<[usize; 2]> = places
            .clone()
            .flat_map(|(y4, y6)| {
                places.clone().map(move |(x4, x6)| [30 + 6 * y6 + x6, 14 + 4 * y4 + x4])
            })
            .collect();
        assert_eq!(repeats("1_2_3_4_6_8"), expected);
        for (latents, expected) in [(16, [4, 16, 84]), (32, [0, 16, 8])] {
            let schedule = ScaleSchedule::preset("256px").unwrap();
            let found = over(ScaleSize::square(latents), "256px");
            let at = |side| {
                let k = schedule.sizes().iter().position(|size| size.height == side).unwrap();
                found.iter().filter(|[token, _]| schedule.range(k).contains(token)).count()
            };
            assert_eq!([5, 10, 13].map(at), expected);
            assert_eq!(found.len(), expected.iter().sum::<usize>());
        }
        // 5 of 8 begins and ends as 4 of 8 does; in one row of latents all rows are the same.
        assert_eq!(repeats("4_5_8"), [[16, 0], [20, 3], [36, 12], [40, 15]]);
        let row = ScaleSize { height: 1, width: 4 };
        assert_eq!(over(row, "1_1x2_1x4"), [[0; 2]; 0]);
        assert!(repeats("1_2_4_8").is_empty());
    }

    #[test]
    fn published_token_counts() {
        assert_eq!(ScaleSchedule::preset("256px").unwrap().n_tokens(), 680);
        for (name, sides) in ScaleSchedule::PRESETS {
            assert_eq!(name.parse(), ScaleSchedule::preset(name));
            if let Some(steps) = name.strip_suffix("-steps") {
                assert_eq!((sides.len().to_string().as_str(), sides.last()), (steps, Some(&16)));
            }
        }
    }

    #[test]
    fn what_is_refused() {
        let check = |text: &str, message: &str| {
            let error = text.parse::<ScaleSchedule>().unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
            assert!(!error.contains('\n'));
        };
        check("", "at least one scale");
        check("1_3_3", "3 after 3 (scale 2");
        check("1_4_3", "3 after 4");
        check("1_2x5_4x4", "4 after 2x5");
        check("1_two", "'two' is not a scale");
        check("1_0", "'0' is not a scale");
        check("1_2x\n;", "'\\n;' is not a scale");
        check("1_99999999999999999999", "is not a scale");
        check("1_2_", "'' is not a scale");
    }

    #[test]
    fn schedules_are_stretched_to_other_sizes() {
        let check = |preset: &str, last: &str, expected: &str| {
            let schedule: ScaleSchedule = preset.parse().unwrap();
            let stretched = schedule.with_last(last.parse().unwrap()).unwrap();
            assert_eq!(stretched.to_string(), expected);
            assert_eq!(stretched.to_string().parse::<ScaleSchedule>().unwrap(), stretched);
        };
        check("1_2_3_4", "4", "1_2_3_4");
        check("1_2_3_4", "8", "1_4_6_8");
        // 2/4, 3/4 and 4/4 of 2 are 1, 2 and 2: what is equal is one.
        check("1_2_3_4", "2", "1_2");
        check("1", "3x2", "1_3x2");
        check("256px", "16x24", "1_2x3_3x5_4x6_5x8_6x9_8x12_10x15_13x20_16x24");
        // A first scale that is not the class token's is stretched, too.
        check("4_5_6_8", "8x12", "4x6_5x8_6x9_8x12");
        check("4_5_6_8", "16", "8_10_12_16");
        let zero = ScaleSize { height: 0, width: 4 };
        assert!("1_2".parse::<ScaleSchedule>().unwrap().with_last(zero).is_err());
    }

    proptest! {
        #[test]
        fn text_round_trip_and_ranges(steps in prop::collection::vec((0usize..5, 0usize..5), 0..12)) {
            let mut sizes = vec![ScaleSize::square(1)];
            for (dh, dw) in steps {
                let last = sizes[sizes.len() - 1];
                sizes.push(ScaleSize { height: last.height + dh, width: last.width + dw + usize::from(dh == 0) });
            }
            let schedule = ScaleSchedule::new(sizes).unwrap();
            prop_assert_eq!(&schedule.to_string().parse::<ScaleSchedule>().unwrap(), &schedule);
            let ranges: Vec<_> = schedule.ranges().collect();
            prop_assert_eq!(ranges[ranges.len() - 1].end, schedule.n_tokens());
            for (k, range) in ranges.into_iter().enumerate() {
                prop_assert_eq!(schedule.range(k), range);
            }
        }

        #[test]
        fn any_text_gives_a_result(text in ".{0,40}") {
            let _ = text.parse::<ScaleSchedule>();
        }
    }
}
