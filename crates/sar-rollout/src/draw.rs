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
/// - `logits_rv`: `[r, v]`, unnormalised log-probabilities
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
/// matrices: no sort, no scan, no wait for the device. A code of probability zero is never drawn.
///
/// # Shapes
/// - `logits_rv`: `[r, v]`, unnormalised log-probabilities
/// - `uniform_r`: `[r]`, each in `[0, 1)`
/// - output: `[r]`, each in `0..v`
pub fn draw<B: Backend>(logits_rv: Tensor<B, 2>, uniform_r: Tensor<B, 1>) -> Tensor<B, 1, Int> {
    let [r, v] = logits_rv.dims();
    let device = logits_rv.device();
    let block = (v as f64).sqrt().ceil() as usize;
    let n_blocks = v.div_ceil(block);
    let mut p_rv = softmax(logits_rv, 1);
    if n_blocks * block > v {
        p_rv = Tensor::cat(vec![p_rv, Tensor::zeros([r, n_blocks * block - v], &device)], 1);
    }
    let p_rxy = p_rv.reshape([r, n_blocks, block]);

    // The block in which the cumulative sum first exceeds the target.
    let sums_rx = p_rxy.clone().sum_dim(2).reshape([r, n_blocks]);
    let before_rx = sums_rx.clone().matmul(strictly_lower(n_blocks, &device));
    let total_r1 = sums_rx.clone().sum_dim(1);
    let target_r1 = uniform_r.reshape([r, 1]) * total_r1;
    // Blocks wholly passed: their end is not above the target. The last block with any mass is
    // never passed, however the sums round.
    let ends_rx = before_rx.clone() + sums_rx.clone();
    let largest_r1 = ends_rx.clone().max_dim(1);
    let target_r1 = target_r1.min_pair(largest_r1 * BELOW_ONE);
    let passed_rx = ends_rx.lower_equal(target_r1.clone().expand([r, n_blocks]));
    let x_r1 = passed_rx.int().sum_dim(1);

    // The same inside that block.
    let inside_ry =
        p_rxy.gather(1, x_r1.clone().reshape([r, 1, 1]).expand([r, 1, block])).reshape([r, block]);
    let rest_r1 = target_r1 - before_rx.gather(1, x_r1.clone());
    let ends_ry = inside_ry.clone().matmul(strictly_lower(block, &device)) + inside_ry;
    let largest_r1 = ends_ry.clone().max_dim(1);
    let rest_r1 = rest_r1.min_pair(largest_r1 * BELOW_ONE).clamp_min(0.0);
    let y_r1 = ends_ry.lower_equal(rest_r1.expand([r, block])).int().sum_dim(1);

    (x_r1 * block as i64 + y_r1).reshape([r])
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
