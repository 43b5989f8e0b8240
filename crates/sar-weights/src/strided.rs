//! Strided views of a storage, and their copy into row-major order.

use burn::tensor::{Bytes, DType, TensorData};

/// Copies are made in square tiles of this side, so that a transposition stays in the cache.
const TILE: usize = 32;

/// The most dimensions of a tensor, as in torch.
pub(crate) const MAX_RANK: usize = 64;

/// Which elements of a storage make up a tensor: `offset + sum(index[d] * strides[d])`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) offset: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) strides: Vec<usize>,
}

impl View {
    /// The view of a row-major matrix `[rows, cols]` that reads it as `[cols, rows]`.
    pub(crate) fn transposed(rows: usize, cols: usize) -> Self {
        Self { offset: 0, shape: vec![cols, rows], strides: vec![1, cols] }
    }

    /// The number of elements, `None` where it overflows.
    pub(crate) fn n_elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &side| n.checked_mul(side))
    }

    /// The least length of a storage that holds the view, `None` where it overflows.
    pub(crate) fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut last = self.offset;
        for (&side, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((side - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Whether the view is a storage of `len` elements from end to end, in row-major order.
    pub(crate) fn is_whole(&self, len: usize) -> bool {
        self.offset == 0
            && self.n_elements() == Some(len)
            && (len == 0 || matches!(self.runs()[..], [] | [(_, 1)]))
    }

    /// Copies the elements, `size` bytes each, from a storage into row-major order.
    ///
    /// # Panics
    /// If `src` ends before the view does, if `dst` has not the bytes of the view, or if `size` is
    /// not 1, 2, 4 or 8.
    pub(crate) fn gather(&self, src: &[u8], size: usize, dst: &mut [u8]) {
        assert_eq!(Some(dst.len()), self.n_elements().and_then(|n| n.checked_mul(size)));
        if dst.is_empty() {
            return;
        }
        match size {
            1 => self.gather_sized::<1>(src, dst),
            2 => self.gather_sized::<2>(src, dst),
            4 => self.gather_sized::<4>(src, dst),
            8 => self.gather_sized::<8>(src, dst),
            _ => panic!("elements of {size} bytes"),
        }
    }

    fn gather_sized<const SIZE: usize>(&self, src: &[u8], dst: &mut [u8]) {
        let runs = self.runs();
        let (outer, rows, cols) = match runs.as_slice() {
            [] => (&[][..], (1, 0), (1, 1)),
            [cols] => (&[][..], (1, 0), *cols),
            [outer @ .., rows, cols] => (outer, *rows, *cols),
        };
        let mut index = vec![0; outer.len()];
        let mut base = self.offset;
        for plane in dst.chunks_exact_mut(rows.0 * cols.0 * SIZE) {
            copy_plane::<SIZE>(src, base, rows, cols, plane);
            for (index, &(side, stride)) in index.iter_mut().zip(outer).rev() {
                *index += 1;
                base += stride;
                if *index < side {
                    break;
                }
                base -= side * stride;
                *index = 0;
            }
        }
    }

    /// The dimensions as (side, stride), without those of side 1, neighbors merged where the
    /// outer one continues the inner one.
    fn runs(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::with_capacity(self.shape.len());
        for (&side, &stride) in self.shape.iter().zip(&self.strides).filter(|(side, _)| **side != 1)
        {
            match runs.last_mut() {
                Some(outer) if Some(outer.1) == side.checked_mul(stride) => {
                    *outer = (outer.0 * side, stride);
                }
                _ => runs.push((side, stride)),
            }
        }
        runs
    }
}

fn copy_plane<const SIZE: usize>(
    src: &[u8],
    base: usize,
    (n_rows, row_stride): (usize, usize),
    (n_cols, col_stride): (usize, usize),
    dst: &mut [u8],
) {
    if col_stride == 1 {
        for (row, dst) in dst.chunks_exact_mut(n_cols * SIZE).enumerate() {
            let start = (base + row * row_stride) * SIZE;
            dst.copy_from_slice(&src[start..start + dst.len()]);
        }
        return;
    }
    for row_tile in (0..n_rows).step_by(TILE) {
        for col_tile in (0..n_cols).step_by(TILE) {
            for row in row_tile..n_rows.min(row_tile + TILE) {
                for col in col_tile..n_cols.min(col_tile + TILE) {
                    let from = (base + row * row_stride + col * col_stride) * SIZE;
                    let to = (row * n_cols + col) * SIZE;
                    dst[to..to + SIZE].copy_from_slice(&src[from..from + SIZE]);
                }
            }
        }
    }
}

/// A tensor of zeros, in memory aligned for its elements, to read a file into.
///
/// # Panics
/// If the shape overflows, or the elements are quantized.
pub(crate) fn zeros(dtype: DType, shape: &[usize]) -> TensorData {
    let n = shape.iter().product();
    let bytes = match dtype.size() {
        1 => Bytes::from_elems(vec![0u8; n]),
        2 => Bytes::from_elems(vec![0u16; n]),
        4 => Bytes::from_elems(vec![0u32; n]),
        8 => Bytes::from_elems(vec![0u64; n]),
        size => panic!("elements of {size} bytes"),
    };
    TensorData::from_bytes(bytes, shape.to_vec(), dtype)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn gathered(src: &[u16], offset: usize, shape: &[usize], strides: &[usize]) -> Vec<u16> {
        let view = View { offset, shape: shape.to_vec(), strides: strides.to_vec() };
        let src: Vec<u8> = src.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut dst = vec![0; view.n_elements().unwrap() * 2];
        view.gather(&src, 2, &mut dst);
        dst.chunks_exact(2).map(|x| u16::from_le_bytes([x[0], x[1]])).collect()
    }

    #[test]
    fn known_views() {
        let src = [0, 1, 2, 3, 4, 5, 6, 7];
        let check = |offset, shape: &[usize], strides: &[usize], expected: &[u16]| {
            assert_eq!(gathered(&src, offset, shape, strides), expected);
        };
        check(0, &[2, 4], &[4, 1], &src); // contiguous
        check(1, &[2, 3], &[3, 1], &[1, 2, 3, 4, 5, 6]); // contiguous with an offset
        check(0, &[4, 2], &[1, 4], &[0, 4, 1, 5, 2, 6, 3, 7]); // transposed
        check(1, &[3], &[2], &[1, 3, 5]); // a step
        check(5, &[], &[], &[5]); // a scalar
        check(2, &[2, 2], &[0, 1], &[2, 3, 2, 3]); // expanded
        check(2, &[2, 2], &[1, 0], &[2, 2, 3, 3]);
        check(0, &[2, 2, 2], &[1, 2, 4], &[0, 4, 2, 6, 1, 5, 3, 7]); // permuted
        check(0, &[1, 2, 1, 2], &[99, 4, 77, 1], &[0, 1, 4, 5]); // strides of side 1 say nothing
        check(7, &[0, 3], &[3, 1], &[]);
    }

    #[test]
    fn ends_and_overflows() {
        let view = |offset, shape: &[usize], strides: &[usize]| View {
            offset,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        };
        assert_eq!(view(3, &[2, 4], &[4, 1]).end(), Some(11));
        assert_eq!(view(3, &[2, 0], &[4, 1]).end(), Some(0));
        assert_eq!(view(3, &[], &[]).end(), Some(4));
        assert_eq!(view(0, &[3], &[usize::MAX]).end(), None);
        assert_eq!(view(1, &[2], &[usize::MAX]).end(), None);
        assert_eq!(view(0, &[1 << 40, 1 << 40], &[0, 0]).n_elements(), None);
        assert!(view(0, &[1, 2, 4], &[5, 4, 1]).is_whole(8));
        assert!(!view(0, &[1, 2, 4], &[5, 4, 1]).is_whole(9));
        assert!(!view(0, &[4, 2], &[1, 4]).is_whole(8));
        assert!(!view(0, &[8], &[0]).is_whole(8));
        assert!(view(0, &[], &[]).is_whole(1));
    }

    proptest! {
        #[test]
        fn every_view_agrees_with_its_definition(
            dims in prop::collection::vec((1usize..40, 0usize..50), 0..4),
            offset in 0usize..9,
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = dims.into_iter().unzip();
            let view = View { offset, shape: shape.clone(), strides: strides.clone() };
            let src: Vec<u16> = (0..view.end().unwrap() as u32).map(|x| (x * 7) as u16).collect();
            let n = view.n_elements().unwrap();
            let expected: Vec<u16> = (0..n).map(|mut flat| {
                let mut at = offset;
                for d in (0..shape.len()).rev() {
                    at += flat % shape[d] * strides[d];
                    flat /= shape[d];
                }
                src[at]
            }).collect();
            prop_assert_eq!(gathered(&src, offset, &shape, &strides), expected);
        }
    }
}
