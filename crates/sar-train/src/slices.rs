//! Each rank owns a slice of a model's parameters: it sums their gradients, keeps their moments and moves
//! them.
//!
//! ```text
//! accumulate   sums of gradients along the tree, of the micro-batches of each rank
//! sum          to their owners, who put them together along the tree
//! squares      of each parameter, from its owner to all: norm and clipping are the same everywhere
//! spread       parameters that moved, from their owners to all
//! ```
//! The owner of a parameter changes nothing in what is computed, so that neither does the number of ranks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use sar_core::ScaleSize;
use sar_exchange::{ExchangeError, Group, Node, Share, TreeSum};
use serde::{Deserialize, Serialize};

use crate::gradients::Gradients;
use crate::step::{Accumulated, Losses, Partial, fold};
use crate::wire::Wire;

/// Values that an owner exchanges at once, about: 16 MiB.
const AT_ONCE: usize = 4 << 20;

/// Who owns which parameter.
#[derive(Clone, Debug)]
pub(crate) struct Slices {
    /// Values of each parameter, in visit order.
    sizes: Vec<usize>,
    /// The owner of each.
    owners: Vec<usize>,
    /// Rounds of an exchange: some parameters of each owner, in visit order.
    rounds: Vec<Vec<Vec<usize>>>,
}

impl Slices {
    /// The largest parameter goes first, each to the rank that has the fewest values, of several to the first.
    pub(crate) fn new(sizes: Vec<usize>, ranks: usize) -> Self {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|place| (std::cmp::Reverse(sizes[*place]), *place));
        let mut owners = vec![0; sizes.len()];
        let mut loads = vec![0; ranks];
        for place in order {
            let lightest = (0..ranks).min_by_key(|rank| loads[*rank]).expect("at least one rank");
            owners[place] = lightest;
            loads[lightest] += sizes[place];
        }
        Self::of(sizes, owners, ranks)
    }

    /// All of them in the hands of the rank that leads.
    fn of_leader(&self, ranks: usize) -> Self {
        Self::of(self.sizes.clone(), vec![0; self.sizes.len()], ranks)
    }

    fn of(sizes: Vec<usize>, owners: Vec<usize>, ranks: usize) -> Self {
        let mut rounds: Vec<Vec<Vec<usize>>> = Vec::new();
        // Of each owner, the round that it is at and the values in it.
        let mut at = vec![(0, 0); ranks];
        for (place, owner) in owners.iter().enumerate() {
            let (round, values) = &mut at[*owner];
            if *values > 0 && *values + sizes[place] > AT_ONCE {
                (*round, *values) = (*round + 1, 0);
            }
            *values += sizes[place];
            if rounds.len() == *round {
                rounds.push(vec![Vec::new(); ranks]);
            }
            rounds[*round][*owner].push(place);
        }
        Self { sizes, owners, rounds }
    }

    /// Whether a rank owns a parameter.
    pub(crate) fn owns(&self, rank: usize, place: usize) -> bool {
        self.owners[place] == rank
    }

    /// Values of a parameter.
    pub(crate) fn size(&self, place: usize) -> usize {
        self.sizes[place]
    }

    /// The mean gradients of all ranks' micro-batches: those of the parameters that this rank owns, and the
    /// losses of all.
    pub(crate) fn sum<B: Backend, O>(
        &self,
        partial: Partial<B, O>,
        group: &Group,
        device: &B::Device,
    ) -> Result<Accumulated<B, O>, ExchangeError> {
        let Partial { gradients, losses, outputs, factor, wire } = partial;
        let add = |left, right| plus(left, right).map(|sum| wire.round(sum));
        let share = outputs.share();
        let (me, ranks) = (group.rank(), group.ranks());
        let nodes_of = |rank: usize| -> Vec<Node> { Share::of_rank(share.of, rank, ranks).nodes() };
        let nodes: Vec<Vec<Node>> = (0..ranks).map(nodes_of).collect();
        let mut mine: Vec<Vec<Option<Tensor<B, 1>>>> =
            gradients.into_nodes().into_iter().map(|(_, sum)| sum.into_flat()).collect();
        let mut summed: Vec<Option<Tensor<B, 1>>> = vec![None; self.sizes.len()];
        for round in &self.rounds {
            let message = |owner: usize| {
                let mut message = Vec::new();
                if owner == me {
                    return message;
                }
                for place in &round[owner] {
                    for sums in &mut mine {
                        write(&mut message, sums[*place].take(), wire);
                    }
                }
                message
            };
            let messages: Vec<Vec<u8>> = (0..ranks).map(message).collect();
            let received = group.all_to_all(&slices(&messages))?;
            drop(messages);
            let mut readers: Vec<Reader<'_>> =
                received.iter().enumerate().map(|(rank, bytes)| Reader { rank, bytes }).collect();
            for &place in &round[me] {
                let mut sum = TreeSum::default();
                for (rank, nodes) in nodes.iter().enumerate() {
                    for (i, node) in nodes.iter().enumerate() {
                        let value = match rank == me {
                            true => mine[i][place].take(),
                            false => readers[rank].tensor(self.sizes[place], wire, device)?,
                        };
                        sum.push(*node, value, add);
                    }
                }
                summed[place] = sum.finish(add).flatten();
            }
            for (rank, reader) in readers.iter().enumerate().filter(|(rank, _)| *rank != me) {
                reader.is_empty().then_some(()).ok_or(ExchangeError::Unexpected { rank })?;
            }
        }
        let (parts, scales) = fold(all_losses(losses, group, device)?);
        let gradients = Gradients::from_flat(summed).times(factor);
        Ok(Accumulated { gradients, parts, scales, outputs })
    }

    /// The squared norms of all gradients `[p]`, and the places of their parameters, of which each rank has
    /// those that it owns.
    pub(crate) fn squares<B: Backend>(
        &self,
        gradients: &Gradients<B>,
        group: &Group,
        device: &B::Device,
    ) -> Result<(Tensor<B, 1>, Vec<usize>), ExchangeError> {
        let places = gradients.with_gradient();
        let squares = match places.is_empty() {
            true => Vec::new(),
            false => host(gradients.squares()),
        };
        let mut message = Vec::new();
        for (place, square) in places.iter().zip(squares) {
            message.extend((*place as u64).to_le_bytes());
            message.extend(square.to_le_bytes());
        }
        let mut all = BTreeMap::new();
        for (rank, bytes) in group.all_gather(&message)?.iter().enumerate() {
            let mut reader = Reader { rank, bytes };
            while !reader.is_empty() {
                let place = u64::from_le_bytes(reader.take()?) as usize;
                all.insert(place, f32::from_le_bytes(reader.take()?));
            }
        }
        assert!(!all.is_empty(), "no gradient at all");
        let (places, squares): (Vec<usize>, Vec<f32>) = all.into_iter().unzip();
        let n = squares.len();
        Ok((Tensor::from_data(TensorData::new(squares, [n]), device), places))
    }

    /// A module whose parameters, of those that `wanted` says, are everywhere as their owners have them.
    pub(crate) fn spread<B: Backend, M: Module<B>>(
        &self,
        module: M,
        wanted: impl Fn(usize) -> bool,
        group: &Group,
    ) -> Result<M, ExchangeError> {
        let mut module = module;
        for round in &self.rounds {
            let of = |rank: usize| -> Vec<usize> {
                round[rank].iter().copied().filter(|place| wanted(*place)).collect()
            };
            let mut collect = Collect { wanted: of(group.rank()), next: 0, bytes: Vec::new() };
            module.visit(&mut collect);
            let received = group.all_gather(&collect.bytes)?;
            drop(collect);
            let mut values = BTreeMap::new();
            for (rank, bytes) in received.iter().enumerate() {
                if rank == group.rank() {
                    continue;
                }
                let mut reader = Reader { rank, bytes };
                for place in of(rank) {
                    values.insert(place, reader.floats(self.sizes[place])?);
                }
            }
            drop(received);
            module = module.map(&mut Replace { values, next: 0 });
        }
        Ok(module)
    }

    /// A module as the rank that leads has it.
    pub(crate) fn as_leader<B: Backend, M: Module<B>>(
        &self,
        module: M,
        group: &Group,
    ) -> Result<M, ExchangeError> {
        self.of_leader(group.ranks()).spread(module, |_| true, group)
    }
}

/// The sum of what is there.
fn plus<B: Backend>(
    left: Option<Tensor<B, 1>>,
    right: Option<Tensor<B, 1>>,
) -> Option<Tensor<B, 1>> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left + right),
        (left, right) => left.or(right),
    }
}

/// The losses of all micro-batches, in their order.
fn all_losses<B: Backend>(
    losses: Vec<Losses<B>>,
    group: &Group,
    device: &B::Device,
) -> Result<Vec<Losses<B>>, ExchangeError> {
    /// Bits of numbers: they need not be finite.
    #[derive(Serialize, Deserialize)]
    struct OfOne {
        parts: Vec<(String, u32)>,
        scales: Vec<([usize; 2], u32)>,
    }
    let bits = |x: Tensor<B, 1>| host(x)[0].to_bits();
    let of_one = |(parts, scales): Losses<B>| OfOne {
        parts: parts.into_iter().map(|(name, value)| (name.to_owned(), bits(value))).collect(),
        scales: scales
            .into_iter()
            .map(|(size, value)| ([size.height, size.width], bits(value)))
            .collect(),
    };
    let own: Vec<OfOne> = losses.into_iter().map(of_one).collect();
    let message = serde_json::to_vec(&own).expect("plain values");
    let value = |bits| Tensor::from_floats([f32::from_bits(bits)], device);
    let mut all = Vec::new();
    for (rank, bytes) in group.all_gather(&message)?.iter().enumerate() {
        let theirs: Vec<OfOne> =
            serde_json::from_slice(bytes).map_err(|_| ExchangeError::Unexpected { rank })?;
        all.extend(theirs.into_iter().map(|OfOne { parts, scales }| {
            let scales = scales.into_iter().map(|([height, width], bits)| {
                let size = ScaleSize { height, width };
                (size, value(bits))
            });
            let parts = parts.into_iter().map(|(name, bits)| (known(name), value(bits)));
            (parts.collect(), scales.collect())
        }));
    }
    Ok(all)
}

/// The name of a part of a loss, which another rank may have made up: there are a few.
fn known(name: String) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match names.get(name.as_str()) {
        Some(name) => name,
        None => {
            let name: &'static str = name.leak();
            names.insert(name);
            name
        }
    }
}

fn host<B: Backend>(x: Tensor<B, 1>) -> Vec<f32> {
    x.into_data().convert::<f32>().into_vec::<f32>().expect("f32")
}

fn slices(messages: &[Vec<u8>]) -> Vec<&[u8]> {
    messages.iter().map(Vec::as_slice).collect()
}

fn little(values: &[f32]) -> impl Iterator<Item = u8> {
    values.iter().flat_map(|value| value.to_le_bytes())
}

/// A tensor that need not be there.
fn write<B: Backend>(message: &mut Vec<u8>, tensor: Option<Tensor<B, 1>>, wire: Wire) {
    message.push(u8::from(tensor.is_some()));
    if let Some(tensor) = tensor {
        wire.write(message, &host(tensor));
    }
}

/// What is left of a message.
struct Reader<'b> {
    rank: usize,
    bytes: &'b [u8],
}

impl<'b> Reader<'b> {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], ExchangeError> {
        let unexpected = ExchangeError::Unexpected { rank: self.rank };
        let (taken, left) = self.bytes.split_first_chunk::<N>().ok_or(unexpected)?;
        self.bytes = left;
        Ok(*taken)
    }

    fn part(&mut self, n: usize) -> Result<&'b [u8], ExchangeError> {
        let unexpected = ExchangeError::Unexpected { rank: self.rank };
        let (taken, left) = self.bytes.split_at_checked(n).ok_or(unexpected)?;
        self.bytes = left;
        Ok(taken)
    }

    fn floats(&mut self, n: usize) -> Result<Vec<f32>, ExchangeError> {
        let taken = self.part(4 * n)?;
        Ok(taken.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn tensor<B: Backend>(
        &mut self,
        n: usize,
        wire: Wire,
        device: &B::Device,
    ) -> Result<Option<Tensor<B, 1>>, ExchangeError> {
        let [is_there] = self.take()?;
        if is_there == 0 {
            return Ok(None);
        }
        Ok(Some(wire.read(self.part(wire.bytes() * n)?, device)))
    }
}

/// The values of some parameters, in visit order.
struct Collect {
    wanted: Vec<usize>,
    next: usize,
    bytes: Vec<u8>,
}

impl<B: Backend> ModuleVisitor<B> for Collect {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.wanted.binary_search(&self.next).is_ok() {
            let data = param.val().into_data().convert::<f32>();
            self.bytes.extend(little(data.as_slice::<f32>().expect("f32")));
        }
        self.next += 1;
    }
}

/// Other values for some parameters, by their places.
struct Replace {
    values: BTreeMap<usize, Vec<f32>>,
    next: usize,
}

impl<B: Backend> ModuleMapper<B> for Replace {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let values = self.values.remove(&self.next);
        self.next += 1;
        let Some(values) = values else { return param };
        param.map(|old| {
            let (shape, device) = (old.shape(), old.device());
            Tensor::from_data(TensorData::new(values, shape), &device)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use burn_flex::Flex;
    use sar_core::SeedTree;
    use sar_exchange::{Exchange, MicroBatches};

    use super::*;
    use crate::testing::on_ranks;

    #[test]
    fn parameters_are_shared_by_size_and_by_nothing_else() {
        let slices = Slices::new(vec![10, 70, 20, 40, 10], 3);
        assert_eq!(slices.owners, [2, 0, 2, 1, 2]);
        assert_eq!(slices.rounds, [[vec![1], vec![3], vec![0, 2, 4]]]);
        assert!(slices.owns(1, 3) && !slices.owns(0, 3));
        // Ties go to the first; ranks may own nothing.
        assert_eq!(Slices::new(vec![5, 5, 5], 2).owners, [0, 1, 0]);
        assert_eq!(Slices::new(vec![5], 4).owners, [0]);
    }

    #[test]
    fn large_slices_are_exchanged_in_rounds() {
        let slices = Slices::new(vec![AT_ONCE, AT_ONCE / 2, AT_ONCE / 2, 1], 1);
        assert_eq!(slices.rounds, [[vec![0]], [vec![1, 2]], [vec![3]]]);
    }

    #[test]
    fn what_is_too_short_is_no_tensor() {
        let mut reader = Reader { rank: 3, bytes: &[1, 0, 0] };
        let read = reader.tensor::<Flex>(1, Wire::F32, &Default::default());
        assert_eq!(read.unwrap_err(), ExchangeError::Unexpected { rank: 3 });
    }

    const SIZES: [usize; 4] = [5, 3, 11, 1];

    /// The gradients of some micro-batches of a step, of which every third knows nothing of the second
    /// parameter.
    fn partial(share: Share, wire: Wire) -> Partial<Flex, ()> {
        let mut gradients = TreeSum::default();
        for leaf in share.range() {
            let draws = SeedTree::new(3).at(leaf as u64);
            let of = |(place, n): (usize, &usize)| {
                let values = draws.child("values").at(place as u64).normals(*n);
                let is_there = place != 1 || !leaf.is_multiple_of(3);
                is_there.then(|| Tensor::from_floats(&values[..], &Default::default()))
            };
            let of_one = Gradients::from_flat(SIZES.iter().enumerate().map(of).collect());
            gradients.push(Node::leaf(leaf), of_one.rounded(wire), |a, b| a.plus_on(b, wire));
        }
        let outputs = MicroBatches::new(vec![(); share.len()], share);
        Partial { gradients, losses: Vec::new(), outputs, factor: 1.0 / share.of as f64, wire }
    }

    fn bits(gradients: Gradients<Flex>) -> Vec<Option<Vec<u32>>> {
        let of = |x: Tensor<Flex, 1>| host(x).into_iter().map(f32::to_bits).collect();
        gradients.into_flat().into_iter().map(|x| x.map(of)).collect()
    }

    /// Ranks that count what they send to others.
    #[derive(Debug)]
    struct Counted(Group, Arc<AtomicUsize>);

    impl Exchange for Counted {
        fn rank(&self) -> usize {
            self.0.rank()
        }

        fn ranks(&self) -> usize {
            self.0.ranks()
        }

        fn all_to_all(&self, messages: &[&[u8]]) -> Result<Vec<Vec<u8>>, ExchangeError> {
            let others = messages.iter().enumerate().filter(|(to, _)| *to != self.rank());
            self.1.fetch_add(others.map(|(_, bytes)| bytes.len()).sum(), Ordering::Relaxed);
            self.0.all_to_all(messages)
        }

        fn fail(&self, why: &str) {
            self.0.fail(why);
        }
    }

    /// What the owners of all parameters have, and the bytes that were sent for it.
    fn summed(n: usize, ranks: usize, wire: Wire) -> (Vec<Option<Vec<u32>>>, usize) {
        let sent = Arc::new(AtomicUsize::new(0));
        let slices = Slices::new(SIZES.to_vec(), ranks);
        let one = |group: Group| {
            let group = Group::new(Counted(group, Arc::clone(&sent)));
            let sum = slices.sum(partial(group.share(n), wire), &group, &Default::default());
            bits(sum.unwrap().gradients)
        };
        let all = on_ranks(ranks, one);
        let of_owner = |place: usize| all[slices.owners[place]][place].clone();
        ((0..SIZES.len()).map(of_owner).collect(), sent.load(Ordering::Relaxed))
    }

    #[test]
    fn sums_are_the_same_for_any_ranks_however_they_travel() {
        for n in [1, 2, 3, 5, 8, 13] {
            let [exact, rounded] = [Wire::F32, Wire::Bf16].map(|wire| {
                let alone = bits(partial(Share::whole(n), wire).whole().gradients);
                for ranks in [2, 3, 4, 8] {
                    let (sums, _) = summed(n, ranks, wire);
                    assert_eq!(sums, alone, "{n} micro-batches, {ranks} ranks, {wire}");
                }
                alone
            });
            assert_ne!(exact, rounded, "rounding changes something");
            for (exact, rounded) in exact.iter().flatten().zip(rounded.iter().flatten()) {
                for (exact, rounded) in exact.iter().zip(rounded) {
                    let [exact, rounded] = [exact, rounded].map(|bits| f32::from_bits(*bits));
                    assert!((exact - rounded).abs() < 0.05, "{exact} {rounded}");
                }
            }
        }
    }

    /// Each rank sends one sum for all that it does not own.
    #[test]
    fn half_precision_sends_half_the_bytes() {
        for (ranks, micro_batches) in [(2, 2), (2, 8), (4, 4), (8, 16)] {
            let [f32, bf16] =
                [Wire::F32, Wire::Bf16].map(|wire| summed(micro_batches, ranks, wire).1);
            // The second parameter is nowhere in a node that is one of the micro-batches without it.
            let nodes_without = match micro_batches / ranks {
                1 => {
                    let owner = Slices::new(SIZES.to_vec(), ranks).owners[1];
                    let without = |rank: &usize| *rank != owner && rank.is_multiple_of(3);
                    (0..ranks).filter(without).count()
                }
                _ => 0,
            };
            let values: usize = SIZES.iter().sum();
            let sent = (ranks - 1) * values - SIZES[1] * nodes_without;
            assert_eq!(f32 - bf16, 2 * sent, "{ranks} ranks");
        }
    }

    #[test]
    fn every_sum_is_rounded_by_hand() {
        // Both leaves are half way between two neighbors and go down; in f32 their mean is between them, too.
        let leaf = |x: f32| {
            let x = Tensor::<Flex, 1>::from_floats([x], &Default::default());
            Gradients::from_flat(vec![Some(x)])
        };
        let x = 1.0 + 2f32.powi(-8);
        for (wire, mean) in [(Wire::F32, x), (Wire::Bf16, 1.0)] {
            let mut gradients = TreeSum::default();
            for place in [0, 1] {
                let leaf = leaf(x).rounded(wire);
                gradients.push(Node::leaf(place), leaf, |a, b| a.plus_on(b, wire));
            }
            let (share, losses) = (Share::whole(2), Vec::new());
            let outputs = MicroBatches::new(vec![(); 2], share);
            let partial = Partial { gradients, losses, outputs, factor: 0.5, wire };
            assert_eq!(bits(partial.whole().gradients), [Some(vec![mean.to_bits()])]);
        }
    }
}
