//! Whether samples repeat training images.

use serde::{Deserialize, Serialize};

use crate::error::enough_rows;
use crate::{MetricsError, Nearest};

/// How near samples come to training images, measured by how near held-out images do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Memorization {
    /// The median distance of samples to their nearest training image, divided by that of held-out images: about 1
    /// where samples are as new as these, 0 where half of them are copies.
    pub median_ratio: f64,
    /// The share of samples that are nearer to a training image than `near_distance`, in [0, 1]: about
    /// `quantile` where samples are as new as held-out images, 1 where all are copies.
    pub near_share: f64,
    /// The distance below which a share `quantile` of the held-out images is, in units of the features.
    pub near_distance: f64,
    /// The share of held-out images that defines `near_distance`.
    pub quantile: f64,
}

impl Memorization {
    /// The `quantile` to take where nothing speaks for another one: the nearest twentieth of the held-out
    /// images says what is near.
    pub const QUANTILE: f64 = 0.05;
}

/// Compares the distances of samples to their nearest training images with those of held-out images.
///
/// ```text
/// median_ratio = median(samples) / median(held out)
/// near_share   = |{samples < q}| / n, q the quantile of the held-out distances
/// ```
/// Both arguments come from [`nearest`](crate::nearest) with the training set as its second one. Quantiles
/// between two distances are interpolated linearly, as numpy's are.
///
/// # Errors
/// If there are no samples or no held-out images, `quantile` is not in (0, 1), or the median distance of
/// held-out images is 0.
pub fn memorization(
    samples: &[Nearest],
    held_out: &[Nearest],
    quantile: f64,
) -> Result<Memorization, MetricsError> {
    for (what, distances) in [("samples", samples), ("held-out images", held_out)] {
        enough_rows(what, distances.len(), 1, "a median distance")?;
    }
    if !(quantile > 0.0 && quantile < 1.0) {
        let (what, range) = ("the quantile of held-out distances", "a share between 0 and 1");
        return Err(MetricsError::Setting { what, value: quantile, range });
    }
    let [samples, held_out] = [samples, held_out].map(ascending);
    let median = at_share(&held_out, 0.5);
    if median == 0.0 {
        return Err(MetricsError::HeldOutIsTraining);
    }
    let near_distance = at_share(&held_out, quantile);
    let near = samples.partition_point(|distance| *distance < near_distance);
    Ok(Memorization {
        median_ratio: at_share(&samples, 0.5) / median,
        near_share: near as f64 / samples.len() as f64,
        near_distance,
        quantile,
    })
}

fn ascending(nearest: &[Nearest]) -> Vec<f64> {
    let mut distances: Vec<f64> = nearest.iter().map(|nearest| nearest.distance).collect();
    distances.sort_unstable_by(f64::total_cmp);
    distances
}

/// The quantile of ascending numbers.
fn at_share(ascending: &[f64], share: f64) -> f64 {
    let place = share * (ascending.len() - 1) as f64;
    let below = place as usize;
    let above = (below + 1).min(ascending.len() - 1);
    ascending[below] + (ascending[above] - ascending[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(distances: &[f64]) -> Vec<Nearest> {
        distances.iter().map(|distance| Nearest { row: 0, distance: *distance }).collect()
    }

    #[test]
    fn values_by_hand() {
        let held_out = at(&[4.0, 2.0, 8.0, 6.0, 10.0]);
        let samples = at(&[5.0, 1.0, 4.0, 3.0]);
        let found = memorization(&samples, &held_out, 0.25).unwrap();
        // Medians 3.5 and 6; a quarter of the held-out distances is below 4, which is itself not near.
        let expected = Memorization {
            median_ratio: 3.5 / 6.0,
            near_share: 0.5,
            near_distance: 4.0,
            quantile: 0.25,
        };
        assert_eq!(found, expected);
        // Between two of them: 0.05 of the way of four steps.
        let found = memorization(&samples, &held_out, Memorization::QUANTILE).unwrap();
        assert!((found.near_distance - 2.4).abs() < 1e-12);
        assert_eq!(found.near_share, 0.25);
    }

    #[test]
    fn images_like_the_held_out_ones_are_new_and_copies_are_not() {
        let held_out: Vec<f64> = (1..=200).map(f64::from).collect();
        let found = memorization(&at(&held_out), &at(&held_out), 0.05).unwrap();
        assert_eq!((found.median_ratio, found.near_share), (1.0, 0.05));
        let found = memorization(&at(&[0.0; 7]), &at(&held_out), 0.05).unwrap();
        assert_eq!((found.median_ratio, found.near_share), (0.0, 1.0));
    }

    #[test]
    fn what_measures_nothing_is_an_error() {
        let some = at(&[1.0, 2.0]);
        assert!(memorization(&[], &some, 0.05).unwrap_err().to_string().starts_with("samples: 0"));
        assert!(memorization(&some, &[], 0.05).is_err());
        for quantile in [0.0, 1.0, f64::NAN] {
            assert!(memorization(&some, &some, quantile).is_err());
        }
        let error = memorization(&some, &at(&[0.0, 0.0, 1.0]), 0.05).unwrap_err();
        assert_eq!(error, MetricsError::HeldOutIsTraining);
    }
}
