//! Losses of the quantizer: on normalized latents and codes for FlexVAR, on the latent and
//! what has been painted after each scale for VAR.
//!
//! Shapes: n latents, c code channels, v codes.

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Tensor, backend::Backend};

/// Temperature of the soft assignment in [`entropy`].
pub const ENTROPY_TEMPERATURE: f64 = 0.01;

/// Draws the codes to the latents.
///
/// ```text
/// mean (q - sg z)^2
/// ```
///
/// # Shapes
/// - `z_nc`, `q_nc`: `[n, c]`
/// - output: one value
pub fn codebook<B: Backend>(z_nc: Tensor<B, 2>, q_nc: Tensor<B, 2>) -> Tensor<B, 1> {
    mean_square(q_nc - z_nc.detach())
}

/// Draws the latents to their codes; weight it by beta (published: 0.25).
///
/// ```text
/// mean (sg q - z)^2
/// ```
pub fn commitment<B: Backend>(z_nc: Tensor<B, 2>, q_nc: Tensor<B, 2>) -> Tensor<B, 1> {
    mean_square(q_nc.detach() - z_nc)
}

/// The mean of a loss over pairs of latents and codes: one pair for FlexVAR, one a scale for VAR,
/// whose quantizer's loss is
///
/// ```text
/// mean_k [ mean (f_hat_k - sg f)^2 + beta mean (sg f_hat_k - f)^2 ]
/// ```
///
/// # Panics
/// If there are no pairs.
pub fn mean_over<B: Backend>(
    pairs: &[[Tensor<B, 2>; 2]],
    loss: impl Fn(Tensor<B, 2>, Tensor<B, 2>) -> Tensor<B, 1>,
) -> Tensor<B, 1> {
    let losses = pairs.iter().map(|[z, q]| loss(z.clone(), q.clone()));
    losses.reduce(|sum, one| sum + one).expect("at least one pair") / pairs.len() as f64
}

/// Favors certain assignments of each latent and an even use of all codes.
///
/// ```text
/// p = softmax(-|z - e|^2 / 0.01),   mean H(p_i) - H(mean p_i)
/// ```
/// with 1e-5 added inside the logarithm of the mean, as released.
///
/// # Shapes
/// - `z_nc`: `[n, c]`
/// - `codes_vc`: `[v, c]`
/// - output: one value, nats
pub fn entropy<B: Backend>(z_nc: Tensor<B, 2>, codes_vc: Tensor<B, 2>) -> Tensor<B, 1> {
    let z_square_n1 = z_nc.clone().square().sum_dim(1);
    let e_square_1v = codes_vc.clone().square().sum_dim(1).transpose();
    let distance_nv = z_nc.matmul(codes_vc.transpose()) * -2.0 + z_square_n1 + e_square_1v;
    let logits_nv = distance_nv / -ENTROPY_TEMPERATURE;
    let p_nv = softmax(logits_nv.clone(), 1);
    let sample = -(p_nv.clone() * log_softmax(logits_nv, 1)).sum_dim(1).mean_dim(0);
    let mean_1v = p_nv.mean_dim(0);
    let of_mean = -(mean_1v.clone() * (mean_1v + 1e-5).log()).sum_dim(1);
    (sample - of_mean).reshape([1])
}

/// Mean of squares, dimension by dimension.
pub(crate) fn mean_square<B: Backend>(x_nc: Tensor<B, 2>) -> Tensor<B, 1> {
    x_nc.square().mean_dim(1).mean_dim(0).reshape([1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn_flex::Flex;

    type A = Autodiff<Flex>;

    #[test]
    fn each_loss_moves_its_own_side_only() {
        let device = Default::default();
        let z = Tensor::<A, 2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device).require_grad();
        let q = Tensor::<A, 2>::from_floats([[0.6, 0.8], [0.0, 1.0]], &device).require_grad();
        // ((0.4)^2 + 0.8^2) / 4 = 0.2 either way round.
        let loss = codebook(z.clone(), q.clone());
        assert!((loss.clone().into_scalar() - 0.2).abs() < 1e-6);
        let grads = loss.backward();
        assert!(z.grad(&grads).is_none() && q.grad(&grads).is_some());
        let loss = commitment(z.clone(), q.clone());
        assert!((loss.clone().into_scalar() - 0.2).abs() < 1e-6);
        let grads = loss.backward();
        assert!(q.grad(&grads).is_none() && z.grad(&grads).is_some());
    }

    #[test]
    fn gradients_are_the_changes_of_losses() {
        type Loss = fn(Tensor<A, 2>, Tensor<A, 2>) -> Tensor<A, 1>;
        // What a loss holds still is not moved.
        let losses: [(&str, Loss, [bool; 2]); 3] = [
            ("codebook", codebook, [false, true]),
            ("commitment", commitment, [true, false]),
            ("entropy", entropy, [true, true]),
        ];
        let device = Default::default();
        // So near to each other that the entropy's assignments are open: 0.07 to 0.75.
        let z = Tensor::<A, 2>::from_floats([[0.06, -0.02], [0.0, 0.08], [-0.05, 0.03]], &device);
        let q = Tensor::<A, 2>::from_floats([[0.1, 0.0], [-0.03, 0.09], [-0.08, -0.04]], &device);
        let sides = [z, q];
        for (name, loss, moves) in losses {
            let tracked = sides.clone().map(Tensor::require_grad);
            let gradients = loss(tracked[0].clone(), tracked[1].clone()).backward();
            for side in (0..2).filter(|side| moves[*side]) {
                let gradient = tracked[side].grad(&gradients).unwrap();
                let gradient = gradient.into_data().into_vec::<f32>().unwrap();
                let largest = gradient.iter().fold(0f32, |largest, g| largest.max(g.abs()));
                assert!(largest > 0.0, "{name}: no gradient");
                for (at, found) in gradient.iter().enumerate() {
                    let value = |by: f32| {
                        let mut step = [0f32; 6];
                        step[at] = by;
                        let step = Tensor::<A, 1>::from_floats(step, &device).reshape([3, 2]);
                        let mut moved = sides.clone();
                        moved[side] = moved[side].clone() + step;
                        let [z, q] = moved;
                        loss(z, q).into_scalar()
                    };
                    let change = (value(1e-3) - value(-1e-3)) / 2e-3;
                    let apart = (found - change).abs();
                    assert!(apart < 1e-3 * largest, "{name}, {side}: {found} for {change}");
                }
            }
        }
    }

    #[test]
    fn entropy_is_lowest_for_certain_and_even_use() {
        let device = Default::default();
        let codes = Tensor::<Flex, 2>::from_floats([[1.0, 0.0], [-1.0, 0.0]], &device);
        let even = entropy(codes.clone(), codes.clone()).into_scalar();
        assert!((even + 2f32.ln()).abs() < 1e-4, "{even}");
        let one_sided = Tensor::<Flex, 2>::from_floats([[1.0, 0.0], [1.0, 0.0]], &device);
        assert!(entropy(one_sided, codes.clone()).into_scalar().abs() < 1e-4);
        let between = Tensor::<Flex, 2>::from_floats([[0.0, 1.0]], &device);
        assert!(entropy(between, codes).into_scalar().abs() < 1e-4);
    }
}
