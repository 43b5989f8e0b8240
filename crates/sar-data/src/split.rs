//! The fixed held-out split.

/// Indices to train on and indices that training never sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Training images.
    pub train: Vec<usize>,
    /// Held-out images.
    pub held_out: Vec<usize>,
}

impl Split {
    /// Every tenth image, 9, 19, 29, ..., is held out; of fewer than ten images the last one is.
    pub fn every_tenth(n: usize) -> Self {
        let is_held_out = |i: &usize| i % 10 == 9 || (n < 10 && i + 1 == n && n > 1);
        let (held_out, train) = (0..n).partition(is_held_out);
        Self { train, held_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_is_held_out() {
        let split = Split::every_tenth(1906);
        assert_eq!((split.train.len(), split.held_out.len()), (1716, 190));
        assert_eq!(split.held_out[..3], [9, 19, 29]);
        assert_eq!(Split::every_tenth(3), Split { train: vec![0, 1], held_out: vec![2] });
        assert_eq!(Split::every_tenth(1).train, [0]);
    }
}
