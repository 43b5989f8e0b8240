//! What a training step on several ranks takes, by shapes and a few times that were measured.
//!
//! ```text
//! step        = compute + host + wire + messages
//! compute     = images of a rank / (images in a second)          all ranks have as many: the batch grows with them
//! gradients   = max over ranks of max(in, out):  in  (R - 1) owned g,   out  (P - owned) g
//! weights     = max over ranks of max(in, out):  out (R - 1) owned 4,   in   (P - owned) 4
//! wire        = (gradients + weights + heads) / (rate share)     heads: 1 KiB to every rank at every exchange
//! host        = (gradients + weights) / (bytes in a second)      to messages and back, sums, copies of the engine
//! messages    = exchanges 2 (latency + (R - 1) seconds of a message)
//! efficiency  = compute / step
//! ```
//! P values, of which a rank owns some and the owner of a parameter is one rank, as `sar-train/src/slices.rs` has it;
//! g bytes of a gradient, 4 or 2. A rank has one node of the tree to give: micro-batches are a multiple of the ranks by a
//! power of two. Nothing overlaps, as in the program. TCP that is slow after a pause is not in it: with a long latency and
//! few streams a step takes longer.

/// Values that an owner exchanges at once: as in `slices.rs`.
const AT_ONCE: usize = 4 << 20;
/// Bytes of the head of a message: as in `sar-exchange/src/mpi.rs`.
const HEAD: f64 = 1024.0;
/// Exchanges of a step beside those of gradients and weights: losses, norms, whether to stop.
const SMALL_EXCHANGES: usize = 3;
/// Tokens at 256 px, and pairs of a token and one that it sees.
const SIDES: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
const CODES: usize = 8912;
const CHANNELS: usize = 32;
const CLASSES: usize = 1000;
const GRID: usize = 32;

/// A published backbone of a depth: 64 values of width and one head for each block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backbone {
    pub(super) depth: usize,
    pub(super) width: usize,
}

impl Backbone {
    pub(super) fn published(depth: usize) -> Self {
        Self { depth, width: 64 * depth }
    }

    /// Values of each parameter.
    pub(super) fn parameters(self) -> Vec<usize> {
        let Self { depth, width: w } = self;
        let mut sizes = vec![
            w, // the first position
            GRID * GRID * w,
            CHANNELS * w,
            w,
            (CLASSES + 1) * w,
        ];
        for _ in 0..depth {
            sizes.extend([6 * w * w, 6 * w]); // adaptive layer norm
            sizes.extend([3 * w * w, w, w, w / 64]); // queries, keys and values, their biases and scale
            sizes.extend([w * w, w, 4 * w * w, 4 * w, 4 * w * w, w]); // projection, the two layers
        }
        sizes.extend([2 * w * w, 2 * w, w * CODES, CODES]); // head
        sizes
    }

    /// Operations of a teacher-forced step for an image of 256 px, the backward pass twice the forward pass.
    pub(super) fn operations(self) -> f64 {
        let Self { depth, width: w } = self;
        let (mut tokens, mut pairs) = (0, 0);
        for side in SIDES {
            let scale = side * side;
            tokens += scale;
            pairs += scale * tokens;
        }
        let of_block = tokens * 24 * w * w + pairs * 4 * w + 12 * w * w;
        let of_ends = tokens * 2 * w * (CHANNELS + CODES) + 4 * w * w;
        3.0 * (depth * of_block + of_ends) as f64
    }
}

/// Who owns parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// Each one rank, as it is.
    Whole,
    /// Every rank an equal piece, as it might be.
    Pieces,
}

/// Values of each rank.
pub(super) fn owned(sizes: &[usize], ranks: usize, owners: Owners) -> Vec<f64> {
    let total: usize = sizes.iter().sum();
    if owners == Owners::Pieces {
        return vec![total as f64 / ranks as f64; ranks];
    }
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let mut loads = vec![0usize; ranks];
    for size in sizes {
        let lightest = (0..ranks).min_by_key(|rank| loads[*rank]).expect("at least one rank");
        loads[lightest] += size;
    }
    loads.into_iter().map(|load| load as f64).collect()
}

/// How ranks exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    /// Bytes in a second through host memory.
    pub(super) host: f64,
    /// What of a link's rate is had.
    pub(super) share: f64,
    /// Seconds that a message takes without its bytes,
    pub(super) latency: f64,
    /// and those that each further one adds.
    pub(super) message: f64,
}

/// What a step exchanges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traffic {
    /// Bytes of the busiest rank in the busier direction.
    pub(super) bytes: f64,
    heads: f64,
    exchanges: f64,
    ranks: f64,
}

impl Traffic {
    /// The traffic of so many ranks, of gradients with so many bytes a value.
    pub(super) fn of(sizes: &[usize], ranks: usize, gradient: f64, owners: Owners) -> Self {
        let owned = owned(sizes, ranks, owners);
        let total: f64 = owned.iter().sum();
        let others = ranks as f64 - 1.0;
        let busiest = owned.iter().map(|own| (others * own).max(total - own)).fold(0.0, f64::max);
        let most = owned.iter().copied().fold(0.0, f64::max);
        let rounds = (most / AT_ONCE as f64).ceil().max(1.0);
        let exchanges = 2.0 * rounds + SMALL_EXCHANGES as f64;
        let bytes = if ranks == 1 { 0.0 } else { busiest * (gradient + 4.0) };
        Self { bytes, heads: exchanges * others * HEAD, exchanges, ranks: ranks as f64 }
    }

    /// Seconds at a link's rate in bits a second.
    pub(super) fn seconds(self, rate: f64, exchange: Exchange) -> f64 {
        let Self { bytes, heads, exchanges, ranks } = self;
        if ranks == 1.0 {
            return 0.0;
        }
        let Exchange { host, share, latency, message } = exchange;
        let wire = (bytes + heads) / (rate / 8.0 * share);
        wire + bytes / host + exchanges * 2.0 * (latency + (ranks - 1.0) * message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_the_published_models() {
        // As the files of weights: 315.56 M of d16, about 600, 1000 and 2000 M.
        for (depth, millions, within) in
            [(16, 315.56, 0.01), (20, 600.0, 15.0), (24, 1000.0, 50.0), (30, 2000.0, 40.0)]
        {
            let total: usize = Backbone::published(depth).parameters().iter().sum();
            let found = total as f64 / 1e6;
            assert!((found - millions).abs() < within, "d{depth}: {found}");
        }
    }

    #[test]
    fn operations_by_hand() {
        // 680 tokens; a token sees 1 to 680, 286 434 in all.
        let w = 1024.0f64;
        let block = 680.0 * 24.0 * w * w + 286_434.0 * 4.0 * w + 12.0 * w * w;
        let ends = 680.0 * 2.0 * w * (32.0 + 8912.0) + 4.0 * w * w;
        let expected = 3.0 * (4.0 * block + ends);
        let found = Backbone { depth: 4, width: 1024 }.operations();
        assert!((found / expected - 1.0).abs() < 1e-12, "{found}");
    }

    #[test]
    fn parameters_go_to_the_ranks_that_slices_gives_them_to() {
        // The same example as in `slices.rs`: 70, 40 and 10 + 20 + 10.
        let sizes = [10, 70, 20, 40, 10];
        let mut loads = owned(&sizes, 3, Owners::Whole);
        loads.sort_by(f64::total_cmp);
        assert_eq!(loads, [40.0, 40.0, 70.0]);
        assert_eq!(owned(&sizes, 3, Owners::Pieces), [50.0; 3]);
    }

    #[test]
    fn traffic_by_hand() {
        // Of 100 values each of four ranks owns 25: 75 out and 75 in, of gradients and of weights.
        let even = |ranks, gradient| Traffic::of(&[25; 4], ranks, gradient, Owners::Whole).bytes;
        assert_eq!((even(4, 4.0), even(4, 2.0)), (600.0, 450.0));
        // On two ranks 50 of 50; on one nothing.
        assert_eq!((even(2, 4.0), even(1, 4.0)), (400.0, 0.0));
        // On eight ranks four own all, each takes seven times 25 in and gives it seven times: pieces of 12.5 are half.
        assert_eq!(even(8, 4.0), 1400.0);
        assert_eq!(Traffic::of(&[25; 4], 8, 4.0, Owners::Pieces).bytes, 700.0);
    }

    #[test]
    fn seconds_by_hand() {
        // 600 bytes and 3 heads in each of 5 exchanges at 8 kbit/s, half of which is had: 500 bytes a second.
        let traffic = Traffic::of(&[25; 4], 4, 4.0, Owners::Whole);
        let exchange = Exchange { host: 300.0, share: 0.5, latency: 1.0, message: 0.25 };
        let wire = (600.0 + 5.0 * 3.0 * 1024.0) / 500.0;
        let expected = wire + 600.0 / 300.0 + 5.0 * 2.0 * (1.0 + 3.0 * 0.25);
        assert!((traffic.seconds(8000.0, exchange) - expected).abs() < 1e-9);
    }

    /// `benchmarks/LOG.md`, 2026-11-28: a backbone of 38.9 M parameters, 6 steps and the start of two stages, at which the
    /// weights go from one rank to all.
    #[test]
    fn bytes_are_those_that_were_measured() {
        let total = 38.9e6;
        let sizes = [total as usize / 100; 100];
        for (ranks, measured) in [(2, 1249e6), (4, 2345e6)] {
            let of_steps = 6.0 * Traffic::of(&sizes, ranks, 4.0, Owners::Whole).bytes;
            let of_starts = 2.0 * (ranks as f64 - 1.0) * 4.0 * total;
            let expected = of_steps + of_starts;
            assert!((expected / measured - 1.0).abs() < 0.01, "{ranks} ranks: {expected}");
        }
    }
}
