//! Work outside of the steps that the ranks of a run share: one batch each at a time, in turns.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use sar_core::ScaleSchedule;
use sar_data::{DataError, FoundUnreadable, ImageBatch, Images, Part, Search, ShardIndex};
use sar_eval::TokenizerMeter;
use sar_exchange::{ExchangeError, Group};
use sar_tokenizer::Tokenizer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TrainError;
use crate::together::compare_files;

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

/// The search for images, in which the ranks look into tar files in turns.
pub(crate) struct SharedSearch<'a> {
    group: &'a Group,
    /// Why it ended, where that is nothing about images.
    ended: Cell<Option<TrainError>>,
}

impl<'a> SharedSearch<'a> {
    pub(crate) fn new(group: &'a Group) -> Self {
        Self { group, ended: Cell::new(None) }
    }

    /// Why there are no images, where a search ended with an error.
    pub(crate) fn why(&self, error: DataError) -> TrainError {
        self.ended.take().unwrap_or_else(|| error.into())
    }
}

impl Search for SharedSearch<'_> {
    fn looked(&self) {
        self.group.alive();
    }

    fn indices(
        &self,
        files: &[PathBuf],
        index: &mut dyn FnMut(&Path) -> Result<ShardIndex, DataError>,
        take: &mut dyn FnMut(ShardIndex),
    ) -> Result<(), DataError> {
        let make = |i: usize| Ok(index(&files[i])?);
        let take = |found| {
            take(found);
            Ok(())
        };
        compare_files(self.group, files)
            .and_then(|()| in_turns(self.group, files.len(), make, take))
            .map_err(|error| match error {
                TrainError::Data(error) => error,
                error => {
                    let why = error.to_string();
                    self.ended.set(Some(error));
                    DataError::Search { why }
                }
            })
    }
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
    use std::cell::RefCell;
    use std::fs::{self, File};

    use sar_data::{Dataset, ImageSource, ReadAhead};

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

    /// `n.tar` has n + 1 samples and something else; the first three are for training, the others held out.
    fn write_shards(folder: &Path) -> ImageSource {
        for n in 0..5 {
            let file = File::create(folder.join(format!("{n}.tar"))).unwrap();
            let mut tar = tar::Builder::new(file);
            let mut add = |name: String, content: &[u8]| {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, name, content).unwrap();
            };
            for i in 0..=n {
                add(format!("{i}.png"), &vec![0; 10 * n + i + 1]);
                add(format!("{i}.cls"), format!("class {}", (n * i) % 3).as_bytes());
            }
            add(format!("x{n}.heic"), b"");
            let file = tar.into_inner().unwrap();
            if n == 1 {
                file.set_len(file.metadata().unwrap().len() - 1024).unwrap();
            }
        }
        let (shards, held_out) = (vec![folder.join("{0..2}.tar")], vec![folder.join("{3..4}.tar")]);
        ImageSource::Webdataset { shards, held_out: Some(held_out), labels: None }
    }

    /// Takes down which files a rank looks into.
    struct Counted<'a> {
        search: SharedSearch<'a>,
        files: RefCell<Vec<PathBuf>>,
    }

    impl Search for Counted<'_> {
        fn looked(&self) {
            self.search.looked();
        }

        fn indices(
            &self,
            files: &[PathBuf],
            index: &mut dyn FnMut(&Path) -> Result<ShardIndex, DataError>,
            take: &mut dyn FnMut(ShardIndex),
        ) -> Result<(), DataError> {
            let mut counted = |file: &Path| {
                self.files.borrow_mut().push(file.into());
                index(file)
            };
            self.search.indices(files, &mut counted, take)
        }
    }

    /// All that is known of images without a look at them.
    fn known(dataset: &dyn Dataset) -> String {
        let image = |i| (dataset.name(i), dataset.label(i), dataset.stored_bytes(i));
        let images: Vec<_> = (0..dataset.len()).map(image).collect();
        let (n_train, left_out) = (dataset.n_train(), dataset.left_out());
        format!("{images:?} {:?} {n_train:?} {left_out:?} {:?}", dataset.classes(), dataset.notes())
    }

    #[test]
    fn each_tar_file_is_looked_into_by_one_rank_and_known_to_all() {
        let folder = tempfile::tempdir().unwrap();
        let source = write_shards(folder.path());
        let alone = source.open(16, &|| ()).unwrap();
        assert_eq!((alone.len(), alone.n_train()), (15, Some(6)));
        let places = [(0, "0.tar: 0.png", 1), (5, "2.tar: 2.png", 23), (14, "4.tar: 4.png", 45)];
        for (i, name, bytes) in places {
            assert_eq!((alone.name(i).as_str(), alone.stored_bytes(i)), (name, bytes));
        }
        assert_eq!((alone.notes().len(), alone.left_out()[0].count), (1, 5));
        let alone = known(&*alone);
        let turns: [&[&[usize]]; 3] =
            [&[&[0, 1, 2, 3, 4]], &[&[0, 2, 3], &[1, 4]], &[&[0, 3], &[1, 4], &[2]]];
        for (ranks, turns) in (1..).zip(turns) {
            let looked = on_ranks(ranks, |group| {
                let (search, files) = (SharedSearch::new(&group), RefCell::default());
                let counted = Counted { search, files };
                let dataset = source.open(16, &counted).unwrap();
                assert_eq!(known(&*dataset), alone, "{ranks} ranks");
                counted.files.into_inner()
            });
            for (looked, turns) in looked.iter().zip(turns) {
                let file = |n: &usize| folder.path().join(format!("{n}.tar"));
                assert_eq!(*looked, turns.iter().map(file).collect::<Vec<_>>(), "{ranks} ranks");
            }
        }
    }

    /// Opens them as a run does, and says why they cannot be.
    fn why(group: &Group, source: &ImageSource) -> Option<String> {
        let search = SharedSearch::new(group);
        let error = search.why(source.open(16, &search).err()?);
        if let TrainError::Data(error) = &error {
            group.fail(&error.to_string());
        }
        Some(error.to_string())
    }

    #[test]
    fn the_first_tar_file_that_is_none_is_named_by_all() {
        let folder = tempfile::tempdir().unwrap();
        let source = write_shards(folder.path());
        for n in [1, 2] {
            fs::write(folder.path().join(format!("{n}.tar")), [7_u8; 2048]).unwrap();
        }
        let alone = source.open(16, &|| ()).err().unwrap().to_string();
        assert!(alone.contains("1.tar: not a whole tar file"), "{alone}");
        let heard = format!("rank 1: {alone}");
        let [first, second, third] = &on_ranks(3, |group| why(&group, &source).unwrap())[..] else {
            panic!()
        };
        assert_eq!((first, second), (&heard, &alone));
        assert!(third.contains("2.tar: not a whole tar file"), "{third}");
        assert_eq!(on_ranks(2, |group| why(&group, &source).unwrap()), [heard, alone]);
    }

    #[test]
    fn ranks_with_other_tar_files_are_told_so() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let sources = folders.each_ref().map(|folder| write_shards(folder.path()));
        let on_two = || on_ranks(2, |group| why(&group, &sources[group.rank()]));
        assert!(on_two().iter().all(Option::is_none), "they may lie anywhere");
        let file = File::options().write(true).open(folders[1].path().join("4.tar")).unwrap();
        file.set_len(file.metadata().unwrap().len() + 512).unwrap();
        for error in on_two() {
            let error = error.unwrap();
            for part in ["rank 1 on ", "another set of tar files", ", 2 of "] {
                assert!(error.contains(part), "{error}");
            }
        }
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
