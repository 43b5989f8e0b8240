//! Work outside of the steps that the ranks of a run share: one batch each at a time, in turns.

use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_data::{FoundUnreadable, ImageBatch, Images, Part};
use sar_eval::TokenizerMeter;
use sar_exchange::{ExchangeError, Group};
use sar_tokenizer::Tokenizer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;

/// Makes `n` things, each on one rank; every rank takes all of them, in order.
///
/// # Errors
/// If one cannot be made or taken, here or on another rank.
pub(crate) fn in_turns<T: Serialize + DeserializeOwned>(
    group: &Group,
    n: usize,
    mut make: impl FnMut(usize) -> Result<T, TrainError>,
    mut take: impl FnMut(T) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    if group.is_alone() {
        return (0..n).try_for_each(|i| take(make(i)?));
    }
    for first in (0..n).step_by(group.ranks()) {
        let own = first + group.rank();
        let message = match own < n {
            true => rmp_serde::to_vec(&make(own)?).expect("plain values"),
            false => Vec::new(),
        };
        for (rank, message) in group.all_gather(&message)?.iter().enumerate().take(n - first) {
            let unexpected = |_| ExchangeError::Unexpected { rank };
            take(rmp_serde::from_slice(message).map_err(unexpected)?)?;
        }
    }
    Ok(())
}

/// Held-out images, whose batches the ranks look at in turns.
#[derive(Clone, Copy)]
pub(crate) struct HeldOutImages<'a> {
    pub(crate) images: &'a Images,
    pub(crate) group: &'a Group,
    /// So many of them, 0 for all.
    pub(crate) n: usize,
    pub(crate) batch: usize,
}

impl HeldOutImages<'_> {
    /// Takes what there is to see of each batch, in order, on all ranks.
    ///
    /// # Errors
    /// If images cannot be read, or a rank has failed.
    pub(crate) fn each<T: Serialize + DeserializeOwned>(
        &self,
        mut see: impl FnMut(ImageBatch) -> T,
        mut take: impl FnMut(T),
    ) -> Result<(), TrainError> {
        let Self { images, group, n, batch } = *self;
        let (size, rank) = (batch as u64, group.rank() as u64);
        let part =
            Part { of: size * group.ranks() as u64, from: size * rank, to: size * (rank + 1) };
        let mut own = images.held_out_part(n, part, batch);
        let see = |_| {
            let seen = see(own.next().expect("a batch for every turn")?);
            // What is found on the way is for all to know; one process has taken it down already.
            let found = if group.is_alone() { Vec::new() } else { images.take_found() };
            Ok((seen, found))
        };
        let take = |(seen, found): (T, Vec<FoundUnreadable>)| {
            images.adopt(found)?;
            take(seen);
            Ok(())
        };
        in_turns(group, images.n_held_out_of(n).div_ceil(batch), see, take)
    }

    /// How well a tokenizer does on them.
    ///
    /// # Errors
    /// As [`each`](Self::each).
    pub(crate) fn measure_tokenizer<B: Backend>(
        &self,
        tokenizer: &Tokenizer<B>,
        schedule: &ScaleSchedule,
        device: &B::Device,
    ) -> Result<TokenizerMeter<B>, TrainError> {
        let [eye, mut meter] =
            [(); 2].map(|()| TokenizerMeter::new(schedule, tokenizer.codebook().size()));
        let see = |batch: ImageBatch| eye.see(tokenizer, batch.tensor(device));
        self.each(see, |seen| meter.take(seen))?;
        Ok(meter)
    }
}

#[cfg(test)]
mod tests {
    use sar_data::ReadAhead;

    use super::*;
    use crate::Recipe;
    use crate::testing::on_ranks;

    #[test]
    fn all_ranks_take_all_in_order() {
        for (ranks, n) in [(1, 3), (2, 3), (3, 3), (4, 3), (3, 0), (3, 7)] {
            let taken = on_ranks(ranks, |group| {
                let (mut made, mut taken) = (Vec::new(), Vec::new());
                let make = |i: usize| {
                    made.push(i);
                    Ok((i, f32::NAN))
                };
                in_turns(&group, n, make, |(i, nan): (usize, f32)| {
                    assert!(nan.is_nan());
                    taken.push(i);
                    Ok(())
                })
                .unwrap();
                assert!(made.iter().all(|i| i % ranks == group.rank()), "{made:?}");
                taken
            });
            assert!(taken.iter().all(|taken| *taken == (0..n).collect::<Vec<_>>()), "{taken:?}");
        }
    }

    #[test]
    fn one_that_cannot_be_made_is_an_error_everywhere() {
        let outcomes = on_ranks(3, |group| {
            let make = |i| match i {
                4 => Err(TrainError::Ranks("no".into())),
                i => Ok(i),
            };
            let outcome = in_turns(&group, 6, make, |_| Ok(()));
            if group.rank() == 1 {
                group.fail("no");
            }
            outcome.unwrap_err().to_string()
        });
        assert!(outcomes.iter().all(|outcome| outcome.contains("no")), "{outcomes:?}");
    }

    #[test]
    fn held_out_images_are_the_same_whatever_the_ranks() {
        let recipe = Recipe::load("emoji-quick", &[]).unwrap();
        for (n, batch) in [(0, 32), (20, 7), (7, 7), (3, 8)] {
            let on = |ranks| {
                on_ranks(ranks, |group| {
                    let images = Images::open(&recipe.data, ReadAhead::default(), &|| ()).unwrap();
                    let held_out = HeldOutImages { images: &images, group: &group, n, batch };
                    let mut all = Vec::new();
                    held_out.each(|batch| batch.indices, |indices| all.push(indices)).unwrap();
                    all
                })
            };
            let alone = on(1).remove(0);
            let counted: usize = alone.iter().map(Vec::len).sum();
            assert_eq!(counted, if n == 0 { 190 } else { n });
            for ranks in [2, 3] {
                assert!(on(ranks).iter().all(|all| *all == alone), "{ranks} ranks, {n} images");
            }
        }
    }
}
