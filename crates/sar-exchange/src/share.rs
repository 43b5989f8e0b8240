//! Which micro-batches of a step a rank computes.

use crate::tree::{Node, TreeSum};

/// A range of the micro-batches of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The first,
    pub start: usize,
    /// and the one behind the last,
    pub end: usize,
    /// of so many.
    pub of: usize,
}

impl Share {
    /// All of them.
    pub fn whole(of: usize) -> Self {
        Self { start: 0, end: of, of }
    }

    /// Those of a rank among so many, as even as it goes: from `n rank / ranks` on, rounded down.
    pub fn of_rank(of: usize, rank: usize, ranks: usize) -> Self {
        let start = |rank| of * rank / ranks;
        Self { start: start(rank), end: start(rank + 1), of }
    }

    /// How many they are; none, where there are more ranks than micro-batches.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Their numbers.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.end
    }

    /// The nodes of the tree that they make up, in their order: see [`TreeSum`].
    pub fn nodes(&self) -> Vec<Node> {
        let mut sum = TreeSum::default();
        self.range().for_each(|micro_batch| sum.push(Node::leaf(micro_batch), (), |(), ()| ()));
        sum.into_nodes().into_iter().map(|(node, ())| node).collect()
    }
}

/// Something for each micro-batch of a share.
#[derive(Clone, Debug)]
pub struct MicroBatches<I> {
    items: Vec<I>,
    share: Share,
}

impl<I> MicroBatches<I> {
    /// One item for each of a share.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub fn new(items: Vec<I>, share: Share) -> Self {
        assert_eq!(items.len(), share.len(), "one for each micro-batch");
        Self { items, share }
    }

    /// Which they are.
    pub fn share(&self) -> Share {
        self.share
    }

    /// The items.
    pub fn items(&self) -> &[I] {
        &self.items
    }

    /// The items alone.
    pub fn into_items(self) -> Vec<I> {
        self.items
    }

    /// The same micro-batches with other items.
    pub fn map<T>(self, map: impl FnMut(I) -> T) -> MicroBatches<T> {
        MicroBatches { items: self.items.into_iter().map(map).collect(), share: self.share }
    }
}

impl<I> From<Vec<I>> for MicroBatches<I> {
    /// All micro-batches of a step.
    fn from(items: Vec<I>) -> Self {
        let share = Share::whole(items.len());
        Self { items, share }
    }
}
