//! What the tests of the kernels share.

/// Numbers in -1..1.
pub(crate) fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// That no element is off by more than `tolerance` times the largest magnitude.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_close_above(what, got, want, tolerance, 1e-30);
}

/// As [`assert_close`], where the largest magnitude counts as `floor` at least: terms of that size
/// cancel.
#[track_caller]
pub(crate) fn assert_close_above(
    what: &str,
    got: &[f32],
    want: &[f64],
    tolerance: f64,
    floor: f64,
) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(floor, |a, x| a.max(x.abs()));
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(got) - want).abs() / scale;
        assert!(off <= tolerance, "{what} [{i}]: {got} for {want}, off by {off:e} of the largest");
    }
}

/// That `gradient` of `sum(weight * f(x))` agrees with central differences.
#[track_caller]
pub(crate) fn assert_gradient(x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    let scale = gradient.iter().fold(1e-30, |a: f64, g| a.max(g.abs()));
    for i in (0..x.len()).step_by(1 + x.len() / 97) {
        let at = |step: f64| {
            let mut x = x.to_vec();
            x[i] += step;
            f(&x)
        };
        let step = 1e-5;
        let difference = (at(step) - at(-step)) / (2.0 * step);
        let off = (difference - gradient[i]).abs() / scale;
        assert!(off < 1e-6, "gradient [{i}]: {} for {difference}", gradient[i]);
    }
}

/// That the bits do not depend on the number of threads.
#[track_caller]
pub(crate) fn assert_same_on_threads(f: impl Fn() -> Vec<Vec<f32>> + Sync) {
    let on = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f);
    let (one, three) = (on(1), on(3));
    for (one, three) in one.iter().zip(&three) {
        assert!(one.iter().zip(three).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(one.len(), three.len());
    }
}
