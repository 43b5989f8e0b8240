//! Which tokens a token attends to.

use std::ops::Range;
use std::sync::OnceLock;

use burn::tensor::{Tensor, TensorData, backend::Backend};

/// Added to the scores of tokens that must not be seen; its exponential is exactly zero.
const HIDDEN: f32 = -1e9;

/// What every token sees: the tokens of a prefix, which all see, and those of a range.
#[derive(Clone, Debug)]
pub struct Visible<B: Backend> {
    seen: Seen,
    mask_ll: OnceLock<Tensor<B, 2>>,
}

/// The same without what a backend makes of it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The tokens `0..prefix` are seen by all.
    pub(crate) prefix: usize,
    /// What each token sees beside them; neither starts nor ends ever decrease.
    pub(crate) spans: Vec<Span>,
}

/// Tokens from a start to before an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl<B: Backend> Visible<B> {
    /// Token `t` sees the tokens `0..prefix` and `ranges[t]`.
    ///
    /// # Panics
    /// If a range is empty, starts or ends before that of the token before, ends within the prefix, or
    /// lies beyond the tokens.
    pub fn new(prefix: usize, ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        // What begins within the prefix or right behind it is one range from the first token on.
        let spans = ranges.into_iter().map(|range| {
            let start = if range.start <= prefix { 0 } else { range.start };
            assert!(range.start < range.end && prefix <= range.end, "{range:?} behind {prefix}");
            Span { start: start as u32, end: range.end as u32 }
        });
        let seen = Seen { prefix, spans: spans.collect() };
        seen.check();
        Self { seen, mask_ll: OnceLock::new() }
    }

    /// Each of so many tokens sees all of them.
    pub fn all(tokens: usize) -> Self {
        Self::new(0, std::iter::repeat_n(0..tokens, tokens))
    }

    /// Number of tokens, l.
    pub fn tokens(&self) -> usize {
        self.seen.spans.len()
    }

    #[cfg(feature = "flex")]
    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// 0 where seen, [`HIDDEN`] elsewhere: `[l, l]`, query by key. None where all is seen.
    pub(crate) fn mask(&self, device: &B::Device) -> Option<Tensor<B, 2>> {
        let l = self.tokens();
        let Seen { prefix, spans } = &self.seen;
        let all = Span { start: 0, end: l as u32 };
        if spans.iter().all(|span| *span == all) {
            return None;
        }
        let build = || {
            let mut mask = vec![HIDDEN; l * l];
            for (row, span) in mask.chunks_exact_mut(l).zip(spans) {
                row[..*prefix].fill(0.0);
                row[span.range()].fill(0.0);
            }
            Tensor::from_data(TensorData::new(mask, [l, l]), device)
        };
        Some(self.mask_ll.get_or_init(build).clone().to_device(device))
    }
}

impl Seen {
    pub(crate) fn check(&self) {
        let Self { prefix, spans } = self;
        assert!(
            spans.is_sorted_by_key(|span| span.start) && spans.is_sorted_by_key(|span| span.end),
            "what a token sees begins and ends no earlier than for the token before"
        );
        let beyond = spans.last().is_some_and(|span| span.end as usize > spans.len());
        assert!(!beyond && *prefix <= spans.len(), "tokens that are there");
    }
}

impl Span {
    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}
