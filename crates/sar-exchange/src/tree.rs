//! Sums over a fixed binary tree, which come out the same to the last bit wherever their parts are made.
//!
//! The tree over n leaves splits them at the largest power of two below n, and so on:
//!
//! ```text
//! T(0..n) = T(0..p) + T(p..n),   p = 2^ceil(log2 n) / 2
//! T(0..5) = ((0 + 1) + (2 + 3)) + 4
//! ```
//! Every run of 2^k leaves that begins at a multiple of 2^k is a node of it, and every range of leaves is made up of at
//! most 2 log2(n) such nodes. Whoever has a range gives the sums of its nodes; put together in their order
//! they make the sum of all. While leaves come one by one, no more than log2(n) + 1 sums are held.

/// A node of the tree: a run of leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The first leaf.
    pub start: usize,
    /// Leaves, a power of two.
    pub len: usize,
}

impl Node {
    /// A single leaf.
    pub fn leaf(start: usize) -> Self {
        Self { start, len: 1 }
    }

    /// What it is the left half of, if `right` is the other.
    fn parent(self, right: Self) -> Option<Self> {
        let is_left = self.start.is_multiple_of(2 * self.len);
        let are_neighbors = self.len == right.len && self.start + self.len == right.start;
        (is_left && are_neighbors).then_some(Self { start: self.start, len: 2 * self.len })
    }
}

/// The sums of the nodes that have come so far.
#[derive(Clone, Debug)]
pub struct TreeSum<T> {
    nodes: Vec<(Node, T)>,
}

impl<T> Default for TreeSum<T> {
    fn default() -> Self {
        Self { nodes: Vec::new() }
    }
}

impl<T> TreeSum<T> {
    /// Takes in the sum of a node, which lies behind all that have come; `add` adds a right half to a left one.
    ///
    /// # Panics
    /// If it does not.
    pub fn push(&mut self, node: Node, value: T, add: impl Fn(T, T) -> T) {
        let (mut node, mut value) = (node, value);
        while let Some((left, sum)) = self.nodes.pop() {
            assert!(left.start + left.len <= node.start, "{left:?} comes before {node:?}");
            match left.parent(node) {
                Some(parent) => (node, value) = (parent, add(sum, value)),
                None => {
                    self.nodes.push((left, sum));
                    break;
                }
            }
        }
        self.nodes.push((node, value));
    }

    /// The nodes and their sums, in their order.
    pub fn into_nodes(self) -> Vec<(Node, T)> {
        self.nodes
    }

    /// The sum of everything, once all leaves have come; nothing if there is none.
    pub fn finish(self, add: impl Fn(T, T) -> T) -> Option<T> {
        self.nodes.into_iter().rev().map(|(_, sum)| sum).reduce(|right, left| add(left, right))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Share;

    /// Writes down who is added to whom.
    fn add(left: String, right: String) -> String {
        format!("({left}+{right})")
    }

    /// The definition.
    fn tree(leaves: std::ops::Range<usize>) -> String {
        match leaves.len() {
            1 => leaves.start.to_string(),
            n => {
                let middle = leaves.start + n.next_power_of_two() / 2;
                add(tree(leaves.start..middle), tree(middle..leaves.end))
            }
        }
    }

    #[test]
    fn by_hand() {
        assert_eq!(tree(0..5), "(((0+1)+(2+3))+4)");
        assert_eq!(tree(0..7), "(((0+1)+(2+3))+((4+5)+6))");
        let share = Share { start: 3, end: 11, of: 16 };
        let nodes: Vec<_> = share.nodes().iter().map(|node| (node.start, node.len)).collect();
        assert_eq!(nodes, [(3, 1), (4, 4), (8, 2), (10, 1)]);
        assert!(TreeSum::<String>::default().finish(add).is_none());
    }

    proptest! {
        /// However the leaves are shared, the same additions are made.
        #[test]
        fn the_sum_is_that_of_the_tree_for_any_ranks(n in 1usize..40, ranks in 1usize..50) {
            let mut whole = TreeSum::default();
            let mut next = 0;
            for rank in 0..ranks {
                let share = Share::of_rank(n, rank, ranks);
                prop_assert_eq!((share.start, share.of), (next, n));
                next = share.end;
                let mut own = TreeSum::default();
                share.range().for_each(|leaf| own.push(Node::leaf(leaf), leaf.to_string(), add));
                let nodes = own.into_nodes();
                prop_assert_eq!(nodes.iter().map(|(node, _)| *node).collect::<Vec<_>>(), share.nodes());
                prop_assert!(nodes.len() <= 2 * n.ilog2() as usize + 1);
                nodes.into_iter().for_each(|(node, sum)| whole.push(node, sum, add));
            }
            prop_assert_eq!(next, n);
            prop_assert_eq!(whole.finish(add), Some(tree(0..n)));
        }
    }
}
