//! The order in which training sees images: a pure function of (seed, epoch, index).

use std::sync::Arc;

use sar_core::SeedTree;

/// A fresh permutation of the images for each epoch.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    seed: SeedTree,
    n: usize,
    // The last two permutations: threads that read ahead are on both sides of an epoch's end.
    cached: [Option<(u64, Arc<[usize]>)>; 2],
}

impl EpochOrder {
    /// The order of `n` images.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(seed: SeedTree, n: usize) -> Self {
        assert!(n > 0, "an order of no images");
        Self { seed, n, cached: [None, None] }
    }

    /// The order within an epoch.
    pub fn epoch(&mut self, epoch: u64) -> Arc<[usize]> {
        let known = self.cached.iter().flatten().find(|(cached, _)| *cached == epoch);
        if let Some((_, order)) = known {
            return Arc::clone(order);
        }
        let order: Arc<[usize]> = self.seed.at(epoch).permutation(self.n).into();
        self.cached.swap(0, 1);
        self.cached[0] = Some((epoch, Arc::clone(&order)));
        order
    }

    /// The image at an absolute position; epoch `position / n`.
    pub fn index(&mut self, position: u64) -> usize {
        self.epoch(position / self.n as u64)[(position % self.n as u64) as usize]
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
                other.index(p + 3 * n as u64);
                prop_assert_eq!(other.index(p), forward[(p - start) as usize]);
            }
        }
    }
}
