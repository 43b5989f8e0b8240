//! The Monge inception distance: a sliced Wasserstein distance (Berthet et al., arXiv:2605.06797).
//!
//! Letters: n, m rows, d features.

use rayon::prelude::*;

use crate::draws::{Draws, Purpose};
use crate::error::{enough_rows, same_dim};
use crate::pairs::{Block, n_blocks};
use crate::product::dots;
use crate::{Features, MetricsError, Spread};

/// Directions that are looked along together.
const AT_A_TIME: usize = 128;

/// The sliced Wasserstein distance of two sets, squared: mean and deviation over directions, of which 1000 are
/// published.
///
/// ```text
/// MIND = mean over u of 3 d W(u)^2
/// W(u)^2 = integral over t in (0, 1) of (F_x(t) - F_y(t))^2
/// ```
/// with u uniform on the unit sphere, and F_x the quantile function of the numbers `x . u`: in ascending order a
/// step of width 1/n for each of them. For equal numbers of rows W^2 is the mean squared difference of the sorted
/// numbers; for others the steps overlap, and the integral is still exact. The factor 3 d is the published
/// one. The distance is 0 between equals, and `3 |v|^2` in expectation for a set that was moved by a vector v.
///
/// [`Spread::standard_error`] is the error of having finitely many directions, not that of having finitely many
/// images, which make the distance too large: compare it at equal numbers. Directions are a pure function
/// of `seed`, d and the direction's index.
///
/// # Errors
/// If the two sets differ in their number of features, either has no rows, or there are no directions.
pub fn mind(
    x: &Features,
    y: &Features,
    n_directions: usize,
    seed: u64,
) -> Result<Spread, MetricsError> {
    same_dim(("one set", y.dim()), ("the other", x.dim()))?;
    for set in [x, y] {
        enough_rows("features", set.len(), 1, "a distance")?;
    }
    if n_directions == 0 {
        let (what, range) = ("the number of directions", "1 or more, 1000 as published");
        return Err(MetricsError::Setting { what, value: 0.0, range });
    }
    let dim = x.dim();
    let scale = 3.0 * dim as f64;
    let mut distances = Vec::with_capacity(n_directions);
    for first in (0..n_directions).step_by(AT_A_TIME) {
        let last = n_directions.min(first + AT_A_TIME);
        let directions: Vec<f64> = (first..last)
            .flat_map(|index| Draws::new(seed, Purpose::Direction, index).direction(dim))
            .collect();
        let [x, y] = [x, y].map(|set| along(set, &directions));
        let pairs = x.into_par_iter().zip(y);
        let some: Vec<f64> = pairs.map(|(x, y)| scale * transport(&x, &y)).collect();
        distances.extend(some);
    }
    Ok(Spread::of(&distances))
}

/// The coordinates of all rows along each direction, ascending.
fn along(set: &Features, directions: &[f64]) -> Vec<Vec<f64>> {
    let dim = set.dim();
    let origin = vec![0.0; dim];
    let blocks: Vec<Vec<f64>> = (0..n_blocks(set))
        .into_par_iter()
        .map(|i| dots(directions, Block::new(set, i, &origin).values(), dim))
        .collect();
    let n_directions = directions.len() / dim;
    let line = |i: usize| {
        let parts = blocks.iter().flat_map(|block| {
            let rows = block.len() / n_directions;
            &block[i * rows..(i + 1) * rows]
        });
        let mut line: Vec<f64> = parts.copied().collect();
        line.sort_unstable_by(f64::total_cmp);
        line
    };
    (0..n_directions).into_par_iter().map(line).collect()
}

/// The squared Wasserstein distance of two sets of numbers, each ascending and with equal weights.
fn transport(x: &[f64], y: &[f64]) -> f64 {
    // Places on the way from 0 to 1 in units of 1 / (n m), in which all steps begin and end.
    let [n, m] = [x, y].map(|line| line.len() as u64);
    let (mut i, mut j, mut place, mut sum) = (0, 0, 0, 0.0);
    while place < n * m {
        let [end_x, end_y] = [(i + 1) * m, (j + 1) * n];
        let end = end_x.min(end_y);
        sum += (end - place) as f64 * (x[i as usize] - y[j as usize]).powi(2);
        i += u64::from(end == end_x);
        j += u64::from(end == end_y);
        place = end;
    }
    sum / (n * m) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wave(n: usize, dim: usize, phase: f32) -> Features {
        let values = (0..n * dim).map(|i| (i as f32 * 0.37 + (i * i) as f32 * 1e-4 + phase).sin());
        Features::from_rows(dim, values.collect()).unwrap()
    }

    #[test]
    fn transport_by_hand() {
        assert_eq!(transport(&[0.0, 2.0], &[1.0, 5.0]), (1.0 + 9.0) / 2.0);
        assert_eq!(transport(&[3.0], &[0.0, 1.0, 5.0]), (9.0 + 4.0 + 4.0) / 3.0);
        // Steps of a half and of a third: 1/3 at (0, 0), 1/6 at (0, 3), 1/6 at (6, 3), 1/3 at (6, 6).
        let expected = (9.0 + 9.0) / 6.0;
        assert!((transport(&[0.0, 6.0], &[0.0, 3.0, 6.0]) - expected).abs() < 1e-15);
    }

    #[test]
    fn one_feature_needs_one_direction() {
        let x = Features::from_rows(1, vec![4.0, 0.0]).unwrap();
        let y = Features::from_rows(1, vec![5.0, 1.0, 1.0, 5.0]).unwrap();
        let found = mind(&x, &y, 20, 3).unwrap();
        assert_eq!((found.mean, found.deviation, found.n), (3.0, 0.0, 20));
    }

    #[test]
    fn a_set_is_at_0_from_itself_and_from_its_copies() {
        let x = wave(600, 7, 0.0);
        assert_eq!(mind(&x, &x, 200, 1).unwrap().mean, 0.0);
        let twice = x.select((0..600).chain((0..600).rev()));
        assert!(mind(&x, &twice, 20, 1).unwrap().mean < 1e-28);
    }

    #[test]
    fn a_moved_set_is_as_far_as_it_was_moved() {
        let x = wave(40, 6, 0.0);
        let by = [1.0, -2.0, 0.0, 0.5, 0.0, 3.0];
        let moved = x.rows().flat_map(|row| row.iter().zip(by).map(|(x, by)| x + by)).collect();
        let found = mind(&x, &Features::from_rows(6, moved).unwrap(), 4000, 5).unwrap();
        let expected = 3.0 * 14.25;
        let error = found.standard_error();
        assert!((found.mean - expected).abs() < 3.0 * error, "{found:?}, not {expected}");
        assert!(error < 0.03 * expected, "{found:?}");
    }

    #[test]
    fn directions_are_those_of_the_seed_however_many_there_are() {
        let (x, y) = (wave(50, 4, 0.0), wave(30, 4, 1.0));
        let of = |n, seed| mind(&x, &y, n, seed).unwrap();
        assert_eq!(of(200, 1), of(200, 1));
        assert_ne!(of(200, 1), of(200, 2));
        // The 129th is the first of the second lot.
        let [less, more] = [128, 129].map(|n| of(n, 1).mean * n as f64);
        let directions = Draws::new(1, Purpose::Direction, 128).direction(4);
        let [x, y] = [&x, &y].map(|set| along(set, &directions).remove(0));
        assert!((more - less - 12.0 * transport(&x, &y)).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn transport_is_symmetric_and_blind_to_copies(
            mut x in prop::collection::vec(-10f64..10.0, 1..12),
            mut y in prop::collection::vec(-10f64..10.0, 1..12),
        ) {
            x.sort_by(f64::total_cmp);
            y.sort_by(f64::total_cmp);
            let found = transport(&x, &y);
            prop_assert!((found - transport(&y, &x)).abs() < 1e-12);
            prop_assert!(transport(&x, &x) == 0.0);
            let thrice: Vec<f64> = y.iter().flat_map(|value| [*value; 3]).collect();
            prop_assert!((found - transport(&x, &thrice)).abs() < 1e-10);
            // No less than the means are apart.
            let [a, b] = [&x, &y].map(|line| line.iter().sum::<f64>() / line.len() as f64);
            prop_assert!(found >= (a - b).powi(2) - 1e-10);
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = wave(5, 3, 0.0);
        assert!(mind(&x, &wave(5, 4, 0.0), 10, 0).is_err());
        assert!(mind(&x, &Features::new(3), 10, 0).is_err());
        let error = mind(&x, &x, 0, 0).unwrap_err();
        assert!(error.to_string().contains("choose 1 or more"), "{error}");
    }
}
