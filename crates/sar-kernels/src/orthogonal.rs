//! Nearly orthogonal factors of matrices, which Muon moves weights along.

use burn::tensor::{Tensor, backend::Backend};

use crate::sum_of_squares;

/// `a`, `b` and `c` of the iteration: they raise small singular values fast, and bring all near 1, not to it.
const QUINTIC: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Added to the norm: a matrix of zeros stays one.
const EPS: f64 = 1e-7;

/// `U V^T` of each matrix `U S V^T`, but for singular values that are only near 1: five iterations take those
/// from 0.01 of the norm upwards into `[0.68, 1.14]`.
///
/// ```text
/// X = M / (|M| + 1e-7)                                (Frobenius)
/// X = a X + (b A + c A^2) X,   A = X X^T              (Newton-Schulz, so many times)
/// ```
/// Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. A matrix with more rows than
/// columns is transposed on the way, so that `A` is as small as it can be. On the CPU matrices are iterated side by
/// side.
///
/// # Shapes
/// - input: `[r, c]` each
/// - output: the same
pub fn orthogonalized<B: Backend>(
    matrices: Vec<Tensor<B, 2>>,
    iterations: usize,
) -> Vec<Tensor<B, 2>> {
    let of_one = |m_rc: Tensor<B, 2>| {
        let [rows, columns] = m_rc.dims();
        match rows > columns {
            true => newton_schulz(m_rc.transpose(), iterations).transpose(),
            false => newton_schulz(m_rc, iterations),
        }
    };
    #[cfg(feature = "flex")]
    if crate::cpu::serves_untracked::<B>(&[]) {
        use rayon::prelude::*;
        return matrices.into_par_iter().map(of_one).collect();
    }
    matrices.into_iter().map(of_one).collect()
}

fn newton_schulz<B: Backend>(m_rc: Tensor<B, 2>, iterations: usize) -> Tensor<B, 2> {
    let [a, b, c] = QUINTIC;
    let [rows, columns] = m_rc.dims();
    let norm_1 = sum_of_squares(m_rc.clone().reshape([rows * columns])).sqrt() + EPS;
    let mut x_rc = m_rc / norm_1.reshape([1, 1]);
    for _ in 0..iterations {
        let a_rr = x_rc.clone().matmul(x_rc.clone().transpose());
        let by_rr = a_rr.clone() * b + a_rr.clone().matmul(a_rr) * c;
        x_rc = x_rc.clone() * a + by_rr.matmul(x_rc);
    }
    x_rc
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    /// Column `i` of the orthogonal cosine transform of `n` points.
    fn basis(n: usize, i: usize) -> Vec<f64> {
        let scale = if i == 0 { 1.0 / n as f64 } else { 2.0 / n as f64 }.sqrt();
        let angle = |j: usize| std::f64::consts::PI * i as f64 * (j as f64 + 0.5) / n as f64;
        (0..n).map(|j| scale * angle(j).cos()).collect()
    }

    /// The matrix of these singular values, `[8, 24]`.
    fn matrix(singular: &[f64; 8]) -> Tensor<Flex, 2> {
        let mut values = vec![0.0; 8 * 24];
        for (i, s) in singular.iter().enumerate() {
            let (left, right) = (basis(8, i), basis(24, 3 * i + 1));
            for (place, value) in values.iter_mut().enumerate() {
                *value += s * left[place / 24] * right[place % 24];
            }
        }
        let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
        Tensor::<Flex, 1>::from_floats(&values[..], &Default::default()).reshape([8, 24])
    }

    fn assert_near(ours: Tensor<Flex, 2>, theirs: Tensor<Flex, 2>) {
        let apart = (ours - theirs).abs().max().into_scalar();
        assert!(apart < 2e-5, "{apart} apart");
    }

    /// Those of 1 to 8 over their norm, five times through the polynomial in f64 (NumPy).
    #[test]
    fn singular_values_come_near_one_and_their_vectors_stay() {
        const AFTER: [f64; 8] = [
            1.13250254, 0.78645199, 0.68238604, 0.83847821, 1.07462744, 1.12622227, 0.8295642,
            0.68218099,
        ];
        assert!(AFTER.iter().all(|s| (0.68..=1.14).contains(s)));
        let before = matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let wide_and_tall = vec![before.clone(), before.clone().transpose(), before * 0.25];
        let after = orthogonalized(wide_and_tall, 5);
        assert_near(after[0].clone(), matrix(&AFTER));
        assert_near(after[1].clone(), matrix(&AFTER).transpose());
        // The scale of a matrix is nothing to it, but for what is added to the norm.
        assert_near(after[2].clone(), matrix(&AFTER));
    }

    #[test]
    fn nothing_stays_nothing() {
        let zeros = Tensor::<Flex, 2>::zeros([3, 2], &Default::default());
        let after = orthogonalized(vec![zeros], 5).remove(0);
        assert_eq!(after.into_data().to_vec::<f32>().unwrap(), [0.0; 6]);
    }
}
