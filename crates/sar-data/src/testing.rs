//! Images for tests.

use image::{Rgb, RgbImage};

use crate::{DataError, Dataset, LeftOut};

/// An image of which no two pixels need be alike.
pub(crate) fn noise(width: u32, height: u32) -> RgbImage {
    let level = |x: u32, y: u32, c: u32| {
        ((x * 73 + y * 151 + c * 199 + 7).wrapping_mul(2_654_435_761) >> 24) as u8
    };
    RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| level(x, y, c))))
}

/// A data set in memory: image `i` is flat with level `i`, unless it is broken.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) classes: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) labels: Vec<usize>,
    pub(crate) bytes: Vec<u64>,
    pub(crate) broken: Vec<bool>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) notes: Vec<String>,
}

impl Memory {
    pub(crate) fn numbered(n: usize, classes: usize) -> Self {
        Self {
            classes: (0..classes).map(|i| format!("class {i}")).collect(),
            names: (0..n).map(|i| format!("image {i}")).collect(),
            labels: (0..n).map(|i| i % classes).collect(),
            bytes: vec![12; n],
            broken: vec![false; n],
            left_out: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub(crate) fn with_broken(mut self, broken: &[usize]) -> Self {
        broken.iter().for_each(|&i| self.broken[i] = true);
        self
    }
}

impl Dataset for Memory {
    fn len(&self) -> usize {
        self.names.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, i: usize) -> usize {
        self.labels[i]
    }

    fn name(&self, i: usize) -> String {
        self.names[i].clone()
    }

    fn stored_bytes(&self, i: usize) -> u64 {
        self.bytes[i]
    }

    fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn image(&self, i: usize) -> Result<RgbImage, DataError> {
        if self.broken[i] {
            return Err(DataError::Unreadable { image: self.name(i), reason: "torn".into() });
        }
        Ok(RgbImage::from_pixel(2, 2, Rgb([i as u8; 3])))
    }
}
