//! Tokens as pure functions of logits and uniform numbers.
//!
//! Shapes: r rows (tokens), v codes.

use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

/// The most probable code of every row.
///
/// # Shapes
/// - `logits_rv`: `[r, v]`
/// - output: `[r]`
pub fn argmax<B: Backend>(logits_rv: Tensor<B, 2>) -> Tensor<B, 1, Int> {
    logits_rv.argmax(1).squeeze_dim(1)
}

/// Mixes the codes of every row: nearly one code where the temperature is low, and then drawn from
/// the distribution.
///
/// ```text
/// softmax((logits - ln(-ln u)) / temperature)
/// ```
///
/// # Shapes
/// - `logits_rv`: `[r, v]`, unnormalized log-probabilities
/// - `uniform_rv`: `[r, v]`, each in `[0, 1)`
/// - output: `[r, v]`, rows of sum 1
pub fn gumbel_softmax<B: Backend>(
    logits_rv: Tensor<B, 2>,
    uniform_rv: Tensor<B, 2>,
    temperature: f64,
) -> Tensor<B, 2> {
    // Uniform numbers are multiples of 2^-24: half a step stands for zero.
    let noise_rv = -(-uniform_rv.clamp_min(0.5f64.powi(25)).log()).log();
    softmax((logits_rv + noise_rv) / temperature, 1)
}

/// Draws one code per row by inverting the cumulative distribution at the given uniform number.
///
/// Two levels of about `sqrt(v)` each, so that cumulative sums are products with small triangular
/// matrices: no sort, no scan, no wait for the device.
///
/// A code of probability zero is never drawn, however the products round: GPUs may compute them with
/// 10 bits of mantissa.
///
/// # Shapes
/// - `logits_rv`: `[r, v]`, unnormalized log-probabilities
/// - `uniform_r`: `[r]`, each in `[0, 1)`
/// - output: `[r]`, each in `0..v`
pub fn draw<B: Backend>(logits_rv: Tensor<B, 2>, uniform_r: Tensor<B, 1>) -> Tensor<B, 1, Int> {
    let [_, v] = logits_rv.dims();
    let device = logits_rv.device();
    let block = (v as f64).sqrt().ceil() as usize;
    let before = |p_rn: Tensor<B, 2>| {
        let [_, n] = p_rn.dims();
        p_rn.matmul(strictly_lower(n, &device))
    };
    invert(softmax(logits_rv, 1), uniform_r, block, before)
}

/// The code at which the cumulative sum of every row's probabilities first exceeds its share
/// `uniform_r` of their sum; `before` gives the exclusive cumulative sums of rows, roughly.
fn invert<B: Backend>(
    mut p_rv: Tensor<B, 2>,
    uniform_r: Tensor<B, 1>,
    block: usize,
    before: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
) -> Tensor<B, 1, Int> {
    let [r, v] = p_rv.dims();
    let device = p_rv.device();
    let n_blocks = v.div_ceil(block);
    if n_blocks * block > v {
        p_rv = Tensor::cat(vec![p_rv, Tensor::zeros([r, n_blocks * block - v], &device)], 1);
    }
    let p_rxy = p_rv.reshape([r, n_blocks, block]);

    // The block in which the cumulative sum first exceeds the target.
    let sums_rx = p_rxy.clone().sum_dim(2).reshape([r, n_blocks]);
    let before_rx = before(sums_rx.clone());
    let total_r1 = sums_rx.clone().sum_dim(1);
    let target_r1 = uniform_r.reshape([r, 1]) * total_r1;
    let (x_r1, target_r1) = first_above(sums_rx, before_rx.clone(), target_r1);

    // The same inside that block.
    let inside_ry =
        p_rxy.gather(1, x_r1.clone().reshape([r, 1, 1]).expand([r, 1, block])).reshape([r, block]);
    let rest_r1 = target_r1 - before_rx.gather(1, x_r1.clone());
    let before_ry = before(inside_ry.clone());
    let (y_r1, _) = first_above(inside_ry, before_ry, rest_r1.clamp_min(0.0));

    (x_r1 * block as i64 + y_r1).reshape([r])
}

/// The place of every row whose cumulative sum is the first above the target, and the target, kept
/// below the largest sum. Sums that round may point at a place of mass zero: the nearest place with
/// any is taken instead, the earlier of two.
fn first_above<B: Backend>(
    mass_rn: Tensor<B, 2>,
    before_rn: Tensor<B, 2>,
    target_r1: Tensor<B, 2>,
) -> (Tensor<B, 2, Int>, Tensor<B, 2>) {
    let [r, n] = mass_rn.dims();
    let ends_rn = before_rn + mass_rn.clone();
    let target_r1 = target_r1.min_pair(ends_rn.clone().max_dim(1) * BELOW_ONE);
    // Places that are passed: their end is not above the target.
    let passed_rn = ends_rn.lower_equal(target_r1.clone().expand([r, n]));
    let passed_r1 = passed_rn.int().sum_dim(1).float();
    let places = Tensor::<B, 1, Int>::arange(0..n as i64, &mass_rn.device()).float();
    // No two places are equally far.
    let distance_rn = (places.reshape([1, n]) - passed_r1 + 0.25).abs();
    let distance_rn = distance_rn.mask_fill(mass_rn.equal_elem(0.0), f32::MAX);
    (distance_rn.argmin(1), target_r1)
}

/// Keeps a target under the sum it is compared with.
const BELOW_ONE: f64 = 1.0 - 1e-6;

/// `[n, n]` with ones where row < column: `x M` is the exclusive cumulative sum of `x`.
fn strictly_lower<B: Backend>(n: usize, device: &B::Device) -> Tensor<B, 2> {
    let ones = (0..n * n).map(|i| if i / n < i % n { 1.0f32 } else { 0.0 }).collect();
    Tensor::from_data(TensorData::new(ones, [n, n]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;
    use sar_core::SeedTree;

    fn tokens(row: &[f32], uniforms: &[f32]) -> Vec<i64> {
        let device = Default::default();
        let logits = Tensor::<Flex, 1>::from_floats(row, &device)
            .reshape([1, row.len()])
            .repeat_dim(0, uniforms.len());
        let drawn = draw(logits, Tensor::from_floats(uniforms, &device));
        drawn.into_data().convert::<i64>().into_vec().unwrap()
    }

    #[test]
    fn inverts_the_distribution_at_its_edges() {
        // Probabilities 0.1, 0.2, 0.3, 0.4.
        let row: Vec<f32> = [0.1f32, 0.2, 0.3, 0.4].iter().map(|p| p.ln()).collect();
        let u = [0.0, 0.099, 0.101, 0.299, 0.301, 0.599, 0.601, 0.999_999_9];
        assert_eq!(tokens(&row, &u), [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    /// Rows of probabilities with few codes that are not zero: several, one, the first, the last.
    fn sparse_rows(r: usize, v: usize, draws: SeedTree) -> Vec<f32> {
        let mut rows = vec![0.0; r * v];
        for (i, row) in rows.chunks_exact_mut(v).enumerate() {
            let draws = draws.at(i as u64);
            match i % 4 {
                0 => row[0] = 1.0,
                1 => row[v - 1] = 1.0,
                2 => row[draws.below(0, v)] = 1.0,
                _ => {
                    for j in 0..2 + draws.below(1, 8) as u64 {
                        let code = draws.child("code").below(j, v);
                        // From nearly nothing to nearly everything.
                        row[code] = 10f32.powf(-6.0 * draws.child("size").uniform(j));
                    }
                    let sum: f32 = row.iter().sum();
                    row.iter_mut().for_each(|p| *p /= sum);
                }
            }
        }
        rows
    }

    #[test]
    fn codes_of_probability_zero_are_never_drawn_however_sums_round() {
        let device = Default::default();
        let r = 4000;
        for (v, error) in [(5, 2f32.powi(-10)), (40, 2f32.powi(-8)), (333, 2f32.powi(-10))] {
            let draws = SeedTree::new(8).at(v as u64);
            let rows = sparse_rows(r, v, draws);
            let mut uniforms = draws.child("uniforms").uniforms(r);
            // Both ends of the uniform numbers, too.
            (uniforms[4..8]).fill(0.0);
            (uniforms[8..12]).fill(1.0 - 2f32.powi(-24));
            let p_rv = Tensor::<Flex, 1>::from_floats(&rows[..], &device).reshape([r, v]);
            // Each sum is off by its own relative error, so that sums decrease, too.
            let rough = |p_rn: Tensor<Flex, 2>| {
                let [r, n] = p_rn.dims();
                let errors = draws.child("error").at(n as u64).uniforms(r * n);
                let errors = errors.into_iter().map(|u| 1.0 + error * (2.0 * u - 1.0));
                let errors = TensorData::new(errors.collect::<Vec<f32>>(), [r, n]);
                p_rn.matmul(strictly_lower(n, &device)) * Tensor::from_data(errors, &device)
            };
            let block = (v as f64).sqrt().ceil() as usize;
            let uniform_r = Tensor::<Flex, 1>::from_floats(&uniforms[..], &device);
            let drawn = invert(p_rv, uniform_r, block, rough);
            let drawn = drawn.into_data().convert::<i64>().into_vec::<i64>().unwrap();
            for (i, (row, code)) in rows.chunks_exact(v).zip(drawn).enumerate() {
                let code = code as usize;
                assert!(code < v && row[code] > 0.0, "row {i} of {v}: code {code} of {row:?}");
            }
        }
    }

    #[test]
    fn mixtures_by_hand_and_their_largest_shares_follow_the_probabilities() {
        let device = Default::default();
        let weights = |row: &[f32], uniforms: Vec<f32>, temperature| {
            let (r, v) = (uniforms.len() / row.len(), row.len());
            let logits = Tensor::<Flex, 1>::from_floats(row, &device).reshape([1, v]);
            let uniforms = Tensor::<Flex, 1>::from_floats(&uniforms[..], &device).reshape([r, v]);
            gumbel_softmax(logits.repeat_dim(0, r), uniforms, temperature)
        };
        // Equal noise cancels: exp(ln 3 / 0.5) = 9.
        let shares = weights(&[0.0, 3f32.ln()], vec![0.5, 0.5], 0.5);
        let shares = shares.into_data().into_vec::<f32>().unwrap();
        assert!((shares[0] - 0.1).abs() < 1e-6 && (shares[1] - 0.9).abs() < 1e-6, "{shares:?}");
        // Noise -ln(-ln u): ln(ln 2 / ln 4) between u = 1/2 and u = 1/4 is -ln 2.
        let shares = weights(&[0.0, 0.0], vec![0.5, 0.25], 1.0);
        let shares = shares.into_data().into_vec::<f32>().unwrap();
        assert!((shares[0] - 2.0 / 3.0).abs() < 1e-6, "{shares:?}");
        // Both ends of the uniform numbers are finite, and removed codes have no share.
        let shares = weights(&[0.0, 0.0, -1e9], vec![0.0, 1.0 - 0.5f32.powi(24), 0.9], 0.005);
        assert_eq!(shares.into_data().into_vec::<f32>().unwrap(), [0.0, 1.0, 0.0]);

        let row = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
        let n = 20_000;
        let shares = weights(&row, SeedTree::new(5).uniforms(4 * n), 0.1);
        let largest = shares.argmax(1).into_data().convert::<i64>().into_vec::<i64>().unwrap();
        for (code, p) in [0.1, 0.2, 0.3, 0.4].into_iter().enumerate() {
            let found = largest.iter().filter(|token| **token == code as i64).count() as f64;
            let (mean, deviation) = (p * n as f64, (n as f64 * p * (1.0 - p)).sqrt());
            assert!((found - mean).abs() < 5.0 * deviation, "{code}: {found} of {mean}");
        }
    }
}
