//! Images to measure: each once, cropped to a square, in a fixed order.

use std::sync::Arc;

use sar_data::{Crop, DataError, Dataset, ImageSource, LeftOut, Prefetch, ReadAhead, RgbImage};

/// Images of a source: the held-out ones where the source has a split of its own or is the embedded
/// emoji, else all.
///
/// The center of each image is taken, its short side resized to the side of the square
/// ([`Crop::AdmCenter`]); smaller images are enlarged.
pub struct ImageSet {
    dataset: Arc<dyn Dataset>,
    indices: Vec<usize>,
    n_found: usize,
    is_held_out: bool,
    side: u32,
}

/// An image of a set.
#[non_exhaustive]
pub struct Square {
    /// Of the set's side.
    pub image: RgbImage,
    /// Whether its short side was smaller before.
    pub is_enlarged: bool,
}

impl ImageSet {
    /// How its images become squares.
    pub const CROP: Crop = Crop::AdmCenter {};

    /// Opens the images of a source at a side in pixels: at most `max` of them, from all over the source;
    /// 0 for all.
    ///
    /// # Errors
    /// If the source cannot be used, or has no images.
    ///
    /// # Panics
    /// If the side is 0.
    pub fn open(source: &ImageSource, side: u32, max: usize) -> Result<Self, DataError> {
        assert!(side > 0, "squares of 0 px");
        let dataset: Arc<dyn Dataset> = source.open(side, &|| ())?.into();
        let is_held_out = dataset.n_train().is_some() || *source == ImageSource::Emoji {};
        let all: Vec<usize> = match is_held_out {
            true => dataset.split().held_out,
            false => (0..dataset.len()).collect(),
        };
        let n = if max == 0 { all.len() } else { max.min(all.len()) };
        // Neighbors are alike.
        let indices = (0..n).map(|i| all[i * all.len() / n]).collect();
        Ok(Self { dataset, indices, n_found: all.len(), is_held_out, side })
    }

    /// How many images there are to measure.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// How many images there were to choose from.
    pub fn n_found(&self) -> usize {
        self.n_found
    }

    /// Whether these are the held-out images of the source, not all.
    pub fn is_held_out(&self) -> bool {
        self.is_held_out
    }

    /// What lies in the source and is not among the images, the most frequent first.
    pub fn left_out(&self) -> &[LeftOut] {
        self.dataset.left_out()
    }

    /// How the source was understood, a line each.
    pub fn notes(&self) -> &[String] {
        self.dataset.notes()
    }

    /// The images in order, read ahead on threads; an error in the place of each that cannot be read.
    ///
    /// # Panics
    /// If `ahead` has no thread or no batch.
    pub fn read(
        &self,
        batch: usize,
        ahead: ReadAhead,
    ) -> impl Iterator<Item = Result<Square, DataError>> + use<> {
        let (dataset, side) = (Arc::clone(&self.dataset), self.side);
        let indices = self.indices.clone();
        let positions = 0..indices.len() as u64;
        let window = ahead.batches.saturating_mul(batch);
        Prefetch::new(positions, ahead.threads, window, move |position| {
            let image = dataset.image(indices[position as usize])?;
            let is_enlarged = image.width().min(image.height()) < side;
            let image = Self::CROP.evaluation(image, side).expect("this crop takes any size");
            Ok(Square { image, is_enlarged })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::Rgb;

    use super::*;

    fn save(path: &std::path::Path, size: [u32; 2], level: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(size[0], size[1], Rgb([level; 3])).save(path).unwrap();
    }

    fn levels(set: &ImageSet) -> Vec<Option<u8>> {
        let ahead = ReadAhead { threads: 2, batches: 1 };
        let level = |square: Square| {
            assert_eq!(square.image.dimensions(), (8, 8));
            assert_eq!(square.is_enlarged, square.image.get_pixel(0, 0).0[0] < 3);
            square.image.get_pixel(0, 0).0[0]
        };
        set.read(3, ahead).map(|image| image.ok().map(level)).collect()
    }

    #[test]
    fn every_image_of_a_folder_is_read_once_and_unreadable_ones_are_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let folder = ImageSource::Folder { path: root.path().into(), held_out: None };
        for i in 0..12 {
            let size = if i < 3 { [20, 6] } else { [20, 10] };
            save(&root.path().join(format!("{i:02}.png")), size, i);
        }
        fs::write(root.path().join("04.png"), "no image").unwrap();
        fs::write(root.path().join("notes.txt"), "no image").unwrap();
        let set = ImageSet::open(&folder, 8, 0).unwrap();
        assert!(!set.is_held_out() && set.left_out()[0].count == 1);
        let expected: Vec<Option<u8>> = (0..12).map(|i| (i != 4).then_some(i)).collect();
        assert_eq!(levels(&set), expected);
        let some = ImageSet::open(&folder, 8, 4).unwrap();
        assert_eq!((some.len(), some.n_found()), (4, 12));
        assert_eq!(levels(&some), [Some(0), Some(3), Some(6), Some(9)]);
        assert_eq!(ImageSet::open(&folder, 8, 99).unwrap().len(), 12);
    }

    #[test]
    fn a_split_and_the_emoji_have_held_out_images() {
        let root = tempfile::tempdir().unwrap();
        for (split, n) in [("train", 5), ("val", 3)] {
            (0..n).for_each(|i| save(&root.path().join(format!("{split}/{i}.png")), [9, 9], 7));
        }
        let folder = ImageSource::Folder { path: root.path().into(), held_out: None };
        let set = ImageSet::open(&folder, 8, 0).unwrap();
        assert_eq!((set.is_held_out(), set.len(), set.notes().len()), (true, 3, 1));
        assert_eq!(ImageSet::open(&ImageSource::Emoji {}, 16, 0).unwrap().len(), 190);
    }
}
