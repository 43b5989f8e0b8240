//! The images of a run as they were when it started, where some were replaced or removed since.

use std::collections::{BTreeMap, HashSet};

use image::RgbImage;

use crate::{DataError, Dataset, Fingerprint, LeftOut, UnreadableImage};

/// A data set in which unreadable images that are gone keep their places, so that all others keep
/// theirs.
pub(crate) struct PutBack {
    dataset: Box<dyn Dataset>,
    /// What the run found unreadable, by place.
    known: BTreeMap<usize, UnreadableImage>,
    /// The places of those of them that are gone, in their order.
    removed: Vec<usize>,
    n_train: Option<usize>,
}

impl PutBack {
    /// The data set as it is.
    pub(crate) fn nothing(dataset: Box<dyn Dataset>) -> Self {
        Self::new(dataset, &[])
    }

    /// The data set with the removed ones of a run's unreadable images.
    pub(crate) fn new(dataset: Box<dyn Dataset>, unreadable: &[UnreadableImage]) -> Self {
        let mut gone: HashSet<&str> = unreadable.iter().map(|image| image.name.as_str()).collect();
        if !gone.is_empty() {
            (0..dataset.len()).for_each(|i| {
                gone.remove(dataset.name(i).as_str());
            });
        }
        let known: BTreeMap<usize, UnreadableImage> =
            unreadable.iter().map(|image| (image.index, image.clone())).collect();
        let is_gone = |image: &&UnreadableImage| gone.contains(image.name.as_str());
        let removed: Vec<usize> = known.values().filter(is_gone).map(|image| image.index).collect();
        // A record that does not fit is that of other images; the fingerprint will say so.
        let total = dataset.len() + removed.len();
        let n_classes = dataset.classes().len();
        let fits = |index: &usize| *index < total && known[index].label < n_classes;
        let removed = if removed.iter().all(fits) { removed } else { Vec::new() };
        let more = removed.iter().filter(|index| !known[index].held_out).count();
        let n_train = dataset.n_train().map(|n| n + more);
        Self { dataset, known, removed, n_train }
    }

    /// Whether an image was removed since the run started.
    pub(crate) fn is_removed(&self, i: usize) -> bool {
        self.removed.binary_search(&i).is_ok()
    }

    /// The fingerprint of what the run started with: with the sizes that replaced images had.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let bytes =
            |i| self.known.get(&i).map_or_else(|| self.stored_bytes(i), |image| image.bytes);
        Fingerprint::with_sizes(self, bytes)
    }

    /// What happened to the images that could not be read.
    pub(crate) fn note(&self) -> Option<String> {
        let is_replaced =
            |(i, image): &(&usize, &UnreadableImage)| self.stored_bytes(**i) != image.bytes;
        let replaced = self.known.iter().filter(is_replaced).count();
        let (known, removed) = (self.known.len(), self.removed.len());
        (replaced + removed > 0).then(|| {
            format!(
                "data.source: of {known} images that this run could not read, {replaced} were \
                 replaced and {removed} removed since"
            )
        })
    }

    /// The record of what could not be read before and of what cannot be read now.
    pub(crate) fn record(&self, found: Vec<usize>) -> Vec<UnreadableImage> {
        let mut record = self.known.clone();
        for index in found {
            record.entry(index).or_insert_with(|| UnreadableImage {
                index,
                name: self.name(index),
                label: self.label(index),
                held_out: self.n_train.is_some_and(|n| index >= n),
                bytes: self.stored_bytes(index),
            });
        }
        record.into_values().collect()
    }

    /// Where image `i` is in the data set, or what is put back in its place.
    fn place(&self, i: usize) -> Result<usize, &UnreadableImage> {
        match self.removed.binary_search(&i) {
            Ok(_) => Err(&self.known[&i]),
            Err(before) => Ok(i - before),
        }
    }
}

impl Dataset for PutBack {
    fn len(&self) -> usize {
        self.dataset.len() + self.removed.len()
    }

    fn classes(&self) -> &[String] {
        self.dataset.classes()
    }

    fn label(&self, i: usize) -> usize {
        self.place(i).map_or_else(|removed| removed.label, |i| self.dataset.label(i))
    }

    fn name(&self, i: usize) -> String {
        self.place(i).map_or_else(|removed| removed.name.clone(), |i| self.dataset.name(i))
    }

    fn describe(&self, i: usize) -> String {
        self.place(i).map_or_else(|removed| removed.name.clone(), |i| self.dataset.describe(i))
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.place(i).map_or_else(|removed| removed.bytes, |i| self.dataset.stored_bytes(i))
    }

    fn n_train(&self) -> Option<usize> {
        self.n_train
    }

    fn left_out(&self) -> &[LeftOut] {
        self.dataset.left_out()
    }

    fn notes(&self) -> &[String] {
        self.dataset.notes()
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        self.place(i).map_or_else(
            |removed| {
                let reason = "removed since the run started".into();
                Err(DataError::Unreadable { image: removed.name.clone(), reason })
            },
            |i| self.dataset.image(i),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use image::Rgb;
    use sar_core::SeedTree;

    use super::*;
    use crate::{Augmentation, Crop, DataRecipe, ImageSource, Images, ReadAhead, Split};

    const AHEAD: ReadAhead = ReadAhead { threads: 1, batches: 1 };

    fn recipe(path: &Path, max_unreadable: f64) -> DataRecipe {
        DataRecipe {
            source: ImageSource::Folder { path: path.into(), held_out: None },
            side: 1,
            crop: Crop::Exact {},
            augmentation: Augmentation::none(),
            max_unreadable,
        }
    }

    fn save(path: &Path, level: u8) {
        RgbImage::from_pixel(1, 1, Rgb([level; 3])).save(path).unwrap();
    }

    /// Twenty images of two classes, of which 3, 4 and 15 are broken.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..20 {
            let class = dir.path().join(if i < 10 { "a" } else { "b" });
            fs::create_dir_all(&class).unwrap();
            save(&class.join(format!("{i:02}.png")), i);
        }
        for broken in ["a/03.png", "a/04.png", "b/15.png"] {
            fs::write(dir.path().join(broken), "junk").unwrap();
        }
        dir
    }

    #[test]
    fn unreadable_images_may_be_replaced_and_removed() {
        let dir = folder();
        let root = dir.path();
        let images = Images::open(&recipe(root, 0.1), AHEAD, &|| ()).unwrap();
        let stage = SeedTree::new(3);
        // One epoch: all three are met.
        let failed = images.training(stage, 0, 18).next().unwrap().unwrap_err().to_string();
        assert!(failed.contains("3 of 20 images cannot be read, 2 may be"), "{failed}");
        let record = images.unreadable();
        assert_eq!(record.iter().map(|image| image.index).collect::<Vec<_>>(), [3, 4, 15]);
        assert_eq!((record[2].name.as_str(), record[2].label, record[2].bytes), ("b/15.png", 1, 4));
        let start = images.fingerprint().clone();
        let reopened = |share| Images::reopen(&recipe(root, share), AHEAD, &start, &record, &|| ());
        // Raised: the same images.
        let raised = reopened(0.2).unwrap();
        let expected: Vec<usize> = raised.training(stage, 0, 18).next().unwrap().unwrap().indices;

        // Removed: all others keep their places, and nothing is unreadable any more.
        fs::remove_file(root.join("a/03.png")).unwrap();
        fs::remove_file(root.join("b/15.png")).unwrap();
        save(&root.join("a/04.png"), 4);
        let images = reopened(0.0).unwrap();
        let note = "data.source: of 3 images that this run could not read, 1 were replaced and 2 \
                    removed since";
        assert_eq!((images.notes(), images.n_train()), (&[note.to_owned()][..], 18));
        assert_eq!(*images.fingerprint(), start);
        let batch = images.training(stage, 0, 18).next().unwrap().unwrap();
        for (i, (now, before)) in batch.indices.iter().zip(&expected).enumerate() {
            assert!(now == before || *now == 4, "{i}: {now}, not {before}");
            let level = batch.images[i].get_pixel(0, 0).0[0];
            assert_eq!((usize::from(level), batch.labels[i]), (*now, *now / 10));
        }
        assert!(batch.indices.contains(&4) && !batch.indices.contains(&15));
        assert!(images.take_warnings().is_empty());
        // The record stays what it was, for the next time.
        assert_eq!(images.unreadable(), record);

        // Any other image has to stay.
        fs::remove_file(root.join("a/05.png")).unwrap();
        let error = reopened(0.2).err().unwrap().to_string();
        let expected = "19 images of 2 classes, but 20 images of 2 classes when the run started; \
                        gone: a/05.png; put the images back";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_removed_keeps_to_its_side_of_a_split() {
        struct Named(Vec<&'static str>, usize);
        impl Dataset for Named {
            fn len(&self) -> usize {
                self.0.len()
            }
            fn classes(&self) -> &[String] {
                const { &[String::new()] }
            }
            fn label(&self, _: usize) -> usize {
                0
            }
            fn name(&self, i: usize) -> String {
                self.0[i].into()
            }
            fn stored_bytes(&self, i: usize) -> u64 {
                7 + i as u64
            }
            fn n_train(&self) -> Option<usize> {
                Some(self.1)
            }
            fn image(&self, _: usize) -> Result<RgbImage, DataError> {
                Ok(RgbImage::new(1, 1))
            }
        }
        let before = PutBack::nothing(Box::new(Named(vec!["a", "b", "c", "d", "e"], 3)));
        let record = before.record(vec![2, 3]);
        assert_eq!((record[0].held_out, record[1].held_out), (false, true));
        let now = PutBack::new(Box::new(Named(vec!["a", "b", "e"], 2)), &record);
        let names: Vec<String> = (0..now.len()).map(|i| now.name(i)).collect();
        assert_eq!(names, ["a", "b", "c", "d", "e"]);
        assert_eq!(now.split(), Split { train: vec![0, 1, 2], held_out: vec![3, 4] });
        assert_eq!((now.is_removed(2), now.is_removed(4)), (true, false));
        assert!(now.image(3).unwrap_err().to_string().contains("removed since the run started"));
        // A record of other images is not taken.
        let other = PutBack::new(Box::new(Named(vec!["x"], 1)), &record);
        assert_eq!(other.len(), 1);
    }
}
