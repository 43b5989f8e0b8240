//! The order in which training sees images: a pure function of (seed, epoch, index).

use sar_core::SeedTree;

/// A fresh permutation of the images for each epoch.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    seed: SeedTree,
    n: usize,
    // The last permutation, so that walking through an epoch makes it once.
    cached: Option<(u64, Vec<usize>)>,
}

impl EpochOrder {
    /// The order of `n` images.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(seed: SeedTree, n: usize) -> Self {
        assert!(n > 0, "an order of no images");
        Self { seed, n, cached: None }
    }

    /// The image at an absolute position; epoch `position / n`.
    pub fn index(&mut self, position: u64) -> usize {
        let (epoch, place) = (position / self.n as u64, (position % self.n as u64) as usize);
        if self.cached.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            self.cached = Some((epoch, self.seed.at(epoch).permutation(self.n)));
        }
        self.cached.as_ref().map_or(0, |(_, order)| order[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_epoch_is_a_permutation_whatever_is_asked_first(n in 1usize..40, epoch in 0u64..5, seed: u64) {
            let mut order = EpochOrder::new(SeedTree::new(seed), n);
            let start = epoch * n as u64;
            let forward: Vec<usize> = (start..start + n as u64).map(|p| order.index(p)).collect();
            let mut sorted = forward.clone();
            sorted.sort_unstable();
            prop_assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let mut other = EpochOrder::new(SeedTree::new(seed), n);
            for p in (start..start + n as u64).rev() {
                prop_assert_eq!(other.index(p), forward[(p - start) as usize]);
            }
        }
    }
}
