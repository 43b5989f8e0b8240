//! Every pixel twice along both sides.

use rayon::prelude::*;

use super::kernel::{Gradient, Kernel, Pass};
use super::simd::vectorized;

/// `[x (.., h, w)]` to `(.., 2 h, 2 w)`
#[derive(Clone, Debug)]
pub(super) struct Double {
    pub(super) width: usize,
}

impl Kernel<1> for Double {
    type Saved = ();
    const READS: [bool; 1] = [false];

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        let w = self.width;
        let mut y = vec![0.0; 4 * x.len()];
        let pairs = y.par_chunks_exact_mut(4 * w).zip(x.par_chunks_exact(w));
        pairs.with_min_len(rows_of_a_task(w)).for_each(|(pair, row)| {
            let (upper, lower) = pair.split_at_mut(2 * w);
            for (two, &x) in upper.as_chunks_mut::<2>().0.iter_mut().zip(row) {
                *two = [x, x];
            }
            lower.copy_from_slice(upper);
        });
        (y, ())
    }

    fn backward(&self, pass: Pass<'_, (), 1>) -> [Option<Gradient>; 1] {
        let w = self.width;
        let mut of_x = vec![0.0; pass.gradient.len() / 4];
        let rows = of_x.par_chunks_exact_mut(w).zip(pass.gradient.par_chunks_exact(4 * w));
        rows.with_min_len(rows_of_a_task(w)).for_each(|(row, pair)| {
            vectorized(
                #[inline(always)]
                || {
                    let (upper, lower) = pair.split_at(2 * w);
                    let (upper, lower) = (upper.as_chunks::<2>().0, lower.as_chunks::<2>().0);
                    for ((x, [a, b]), [c, d]) in row.iter_mut().zip(upper).zip(lower) {
                        *x = (a + b) + (c + d);
                    }
                },
            );
        });
        [pass.wanted[0].then_some(Gradient::New(of_x))]
    }
}

/// Enough rows for a task to be worth handing out.
fn rows_of_a_task(width: usize) -> usize {
    (1 << 14) / width.max(1) + 1
}
