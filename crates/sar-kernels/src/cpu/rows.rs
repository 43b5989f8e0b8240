//! How work on rows is cut into pieces: by the shape alone, so that results never depend on threads.

use rayon::prelude::*;

use super::simd::vectorized;

/// Elements of a piece: small enough to share out, large enough to pay for it.
const GRAIN: usize = 1 << 15;

/// Rows of a piece, a multiple of `unit` (of at least `least` units); all of them if they are few.
pub(crate) fn piece(rows: usize, cols: usize, unit: usize, least: usize) -> usize {
    match rows * cols <= 2 * GRAIN {
        true => rows.next_multiple_of(unit).max(unit),
        false => unit * (GRAIN / (unit * cols)).max(least),
    }
}

/// The sum of equally long vectors in their order (zeros of length `len` for none).
pub(crate) fn sum_in_order(parts: Vec<Vec<f32>>, len: usize) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_else(|| vec![0.0; len]);
    vectorized(
        #[inline(always)]
        || parts.for_each(|part| add(&mut sum, &part)),
    );
    sum
}

/// `sum += x`
#[inline(always)]
pub(crate) fn add(sum: &mut [f32], x: &[f32]) {
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum += x;
    }
}

/// The sum of all rows of `cols` numbers.
pub(crate) fn column_sums(x: &[f32], cols: usize) -> Vec<f32> {
    assert_eq!(x.len() % cols, 0, "sums of incomplete rows");
    let piece = cols * piece(x.len() / cols, cols, 1, 16);
    let parts = x.par_chunks(piece).map(|x| {
        let mut sum = vec![0.0; cols];
        vectorized(
            #[inline(always)]
            || {
                let fours = x.chunks_exact(4 * cols);
                fours.remainder().chunks_exact(cols).for_each(|row| add(&mut sum, row));
                for rows in fours {
                    let ((a, b), (c, d)) =
                        (rows[..2 * cols].split_at(cols), rows[2 * cols..].split_at(cols));
                    for ((((sum, a), b), c), d) in sum.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                        *sum += (a + b) + (c + d);
                    }
                }
            },
        );
        sum
    });
    sum_in_order(parts.collect(), cols)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::testing::*;

    #[test]
    fn sums_of_columns() {
        for (rows, cols) in [(0, 3), (1, 5), (7, 33), (1030, 200)] {
            let x = random(rows * cols, 5);
            let mut want = vec![0.0; cols];
            wide(&x).iter().enumerate().for_each(|(i, x)| want[i % cols] += x);
            assert_close("sums", &column_sums(&x, cols), &want, 2e-6);
        }
        let x = random(300 * 1000, 2);
        assert_same_on_threads(|| vec![column_sums(&x, 1000)]);
    }
}
