//! How surely means differ from 0 where there are many of them.

/// The two-sided p-value of a mean that is 0 by Student's t; none of fewer than two values.
pub(super) fn p_of_mean(values: &[f64]) -> Option<f64> {
    let degrees = values.len().checked_sub(1).filter(|degrees| *degrees > 0)?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let error = (square / degrees as f64 / n).sqrt();
    Some(match mean == 0.0 {
        true => 1.0,
        false => outside(mean.abs() / error, degrees),
    })
}

/// The probability of Student's t outside of [-t, t], for t >= 0; Abramowitz and Stegun, 26.7.3 and 26.7.4.
fn outside(t: f64, degrees: usize) -> f64 {
    let (cos2, theta) =
        (degrees as f64 / (degrees as f64 + t * t), (t / (degrees as f64).sqrt()).atan());
    let (cos, sin) = (cos2.sqrt(), theta.sin());
    // Every second term's factor, from the exponent `from` of the cosine on.
    let series = |from: usize| -> f64 {
        let (mut sum, mut term) = (0.0, 1.0);
        for power in (from..=degrees - 2).step_by(2) {
            sum += term;
            term *= cos2 * (power + 1) as f64 / (power + 2) as f64;
        }
        sum
    };
    let inside = match degrees {
        1 => theta * std::f64::consts::FRAC_2_PI,
        n if n % 2 == 1 => (theta + sin * cos * series(1)) * std::f64::consts::FRAC_2_PI,
        _ => sin * series(0),
    };
    (1.0 - inside).clamp(0.0, 1.0)
}

/// P-values by Holm: below 0.05 in 1 of 20 such families at most, where nothing differs.
pub(super) fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let (mut adjusted, mut most) = (vec![0.0; p.len()], 0.0_f64);
    for (rank, i) in order.into_iter().enumerate() {
        most = most.max((p.len() - rank) as f64 * p[i]).min(1.0);
        adjusted[i] = most;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_those_of_the_tables() {
        // Quantiles at 97.5 % and 99.5 %.
        for (degrees, at_5, at_1) in [
            (1, 12.706205, 63.656741),
            (2, 4.302653, 9.924843),
            (3, 3.182446, 5.840909),
            (4, 2.776445, 4.604095),
            (5, 2.570582, 4.032143),
            (9, 2.262157, 3.249836),
            (10, 2.228139, 3.169273),
            (30, 2.042272, 2.749996),
        ] {
            assert!((outside(at_5, degrees) - 0.05).abs() < 1e-6, "{degrees}");
            assert!((outside(at_1, degrees) - 0.01).abs() < 1e-6, "{degrees}");
            assert_eq!(outside(0.0, degrees), 1.0);
        }
        // Mean 3, standard error 1.5275, two degrees: t is 1.964.
        let p = p_of_mean(&[1.0, 2.0, 6.0]).unwrap();
        assert!((p - 0.188497).abs() < 1e-4, "{p}");
        assert_eq!(p_of_mean(&[1.0]), None);
        assert_eq!(p_of_mean(&[0.0, 0.0]), Some(1.0));
        assert_eq!(p_of_mean(&[1.0, 1.0]), Some(0.0));
    }

    #[test]
    fn many_are_corrected_by_hand() {
        // 4 * 0.01, 3 * 0.02, then never less, never above 1.
        assert_eq!(holm(&[0.02, 0.01, 0.021, 0.9]), [0.06, 0.04, 0.06, 0.9]);
        assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
        assert_eq!(holm(&[0.03]), [0.03]);
        assert!(holm(&[]).is_empty());
    }
}
