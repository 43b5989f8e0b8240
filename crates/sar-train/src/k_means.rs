//! K-means on the host: where a codebook starts.
//!
//! Seeds are drawn by squared distance to the nearest seed (k-means++, Arthur and Vassilvitskii,
//! 2007), so that rare latents get codes although most latents are background.

use sar_core::SeedTree;
use sar_tokenizer::Metric;

const ITERATIONS: usize = 4;
/// Rows between two signs of life.
const ROWS_AT_ONCE: usize = 256;

/// `k` vectors that stand for `rows`, `[n, c]` in row-major order: unit vectors for unit vectors where
/// angles count. `alive` is called again and again: thousands of codes take minutes.
///
/// # Panics
/// If there are no rows.
pub(crate) fn k_means(
    rows: &[f32],
    [c, k]: [usize; 2],
    metric: Metric,
    draws: SeedTree,
    alive: impl Fn(),
) -> Vec<f32> {
    let n = rows.len() / c;
    assert!(n > 0, "k-means of no rows");
    let row = |i: usize| &rows[i * c..(i + 1) * c];
    let mut centers = row(draws.below(0, n)).to_vec();
    let mut distance: Vec<f64> = (0..n).map(|i| apart(metric, row(i), &centers)).collect();
    for place in 1..k {
        alive();
        let total: f64 = distance.iter().sum();
        let mut left = f64::from(draws.child("seed").uniform(place as u64)) * total;
        let chosen = distance.iter().position(|d| {
            left -= d;
            left < 0.0
        });
        // All rows are seeds already: the rest repeats some.
        let chosen = chosen.unwrap_or_else(|| draws.child("repeat").below(place as u64, n));
        let center = row(chosen).to_vec();
        for (i, d) in distance.iter_mut().enumerate() {
            *d = d.min(apart(metric, row(i), &center));
        }
        centers.extend(center);
    }
    for _ in 0..ITERATIONS {
        let mut sums = vec![0.0f64; k * c];
        let mut counts = vec![0usize; k];
        for i in 0..n {
            if i.is_multiple_of(ROWS_AT_ONCE) {
                alive();
            }
            let nearest = nearest(metric, row(i), &centers, c);
            counts[nearest] += 1;
            let sum = &mut sums[nearest * c..(nearest + 1) * c];
            sum.iter_mut().zip(row(i)).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        for ((center, sum), count) in centers.chunks_mut(c).zip(sums.chunks(c)).zip(counts) {
            let divisor = match metric {
                Metric::Cosine => sum.iter().map(|x| x * x).sum::<f64>().sqrt(),
                Metric::Euclidean => count as f64,
            };
            // A center that nothing is nearest to stays.
            if divisor > 1e-6 {
                center.iter_mut().zip(sum).for_each(|(center, x)| *center = (x / divisor) as f32);
            }
        }
    }
    centers
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Squared distance.
fn apart(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    match metric {
        // Of unit vectors.
        Metric::Cosine => f64::from(2.0 - 2.0 * dot(a, b)).max(0.0),
        Metric::Euclidean => f64::from(a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>()),
    }
}

fn nearest(metric: Metric, row: &[f32], centers: &[f32], c: usize) -> usize {
    let score = |center| match metric {
        Metric::Cosine => dot(row, center),
        Metric::Euclidean => -apart(metric, row, center) as f32,
    };
    let scores = centers.chunks(c).map(score).enumerate();
    scores.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(degrees: f32) -> [f32; 2] {
        [degrees.to_radians().cos(), degrees.to_radians().sin()]
    }

    #[test]
    fn rare_directions_get_centers_too() {
        // A thousand rows around 0 degrees, three around 90 and three around 200.
        let common = (0..1000).flat_map(|i| at((i % 5) as f32 - 2.0));
        let rare = [89.0, 90.0, 91.0, 199.0, 200.0, 201.0].into_iter().flat_map(at);
        let rows: Vec<f32> = common.chain(rare).collect();
        let centers = k_means(&rows, [2, 3], Metric::Cosine, SeedTree::new(0), || ());
        let mut degrees: Vec<f32> =
            centers.chunks(2).map(|c| c[1].atan2(c[0]).to_degrees().rem_euclid(360.0)).collect();
        degrees.iter_mut().for_each(|d| *d = if *d > 350.0 { *d - 360.0 } else { *d });
        degrees.sort_by(f32::total_cmp);
        for (found, expected) in degrees.iter().zip([0.0, 90.0, 200.0]) {
            assert!((found - expected).abs() < 0.1, "{degrees:?}");
        }
        // The mean of each group, not one of its rows: 0 is the mean of -2 to 2.
        assert!(degrees[0].abs() < 1e-3, "{degrees:?}");
    }

    #[test]
    fn more_centers_than_rows_repeat_rows() {
        let rows = [at(0.0), at(90.0)].concat();
        let centers = k_means(&rows, [2, 5], Metric::Cosine, SeedTree::new(0), || ());
        assert_eq!(centers.len(), 10);
        assert!(centers.chunks(2).all(|c| (dot(c, c) - 1.0).abs() < 1e-6));
    }

    /// A sign for every seed but the first, and in each iteration one for every 256 rows.
    #[test]
    fn who_waits_hears_of_it_all_the_while() {
        let rows = at(1.0).repeat(600);
        let signs = std::cell::Cell::new(0);
        let alive = || signs.set(signs.get() + 1);
        k_means(&rows, [2, 7], Metric::Cosine, SeedTree::new(0), alive);
        assert_eq!(signs.get(), 6 + ITERATIONS * 3);
    }

    #[test]
    fn centers_of_distances_are_means() {
        // Two groups on one line through the origin, which an angle cannot tell apart.
        let rows = [[1.0, 1.0], [1.2, 1.2], [9.0, 9.0], [9.4, 9.4]].concat();
        let mut centers = k_means(&rows, [2, 2], Metric::Euclidean, SeedTree::new(0), || ());
        centers.sort_by(f32::total_cmp);
        for (found, expected) in centers.iter().zip([1.1, 1.1, 9.2, 9.2]) {
            assert!((found - expected).abs() < 1e-5, "{centers:?}");
        }
    }
}
