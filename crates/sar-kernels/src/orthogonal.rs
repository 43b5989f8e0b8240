//! Nearly orthogonal factors of matrices, which Muon moves weights along.

use burn::tensor::{Tensor, backend::Backend};

use crate::sum_of_squares;

/// `a`, `b` and `c` of each iteration: of all odd polynomials of degree 5 the one that comes nearest to 1 on the interval that
/// the iterations before it leave of `[0.01, 1]`. The last one, Newton-Schulz's own, repeats.
const STEPS: [[f64; 3]; 5] = [
    [8.0934, -23.6204, 17.4462],
    [3.6366, -2.7219, 0.5365],
    [2.6613, -1.9772, 0.4526],
    [1.9562, -1.3375, 0.3839],
    [1.875, -1.25, 0.375],
];

/// Added to the norm: a matrix of zeros stays one.
const EPS: f64 = 1e-7;

/// `U V^T` of each matrix `U S V^T`, but for singular values that are only near 1: three iterations take those
/// from 0.01 of the norm upwards into `[0.73, 1.27]`, four into `[0.987, 1.013]`.
///
/// ```text
/// X = M / (|M| + 1e-7)                                (Frobenius)
/// X = P X,   P = a I + b A + c A^2,   A = X X^T       (so many times)
/// ```
/// Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024; `a`, `b` and `c` of each iteration
/// by the method of Amsel et al., *The Polar Express* (arXiv:2505.16932), from 0.01 up. A matrix with more rows than
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
    #[cfg(feature = "flex")]
    if crate::cpu::serves_untracked::<B>(&[]) {
        use rayon::prelude::*;
        return matrices.into_par_iter().map(|m_rc| of_one(m_rc, iterations, by_squares)).collect();
    }
    matrices.into_iter().map(|m_rc| of_one(m_rc, iterations, step_by_step)).collect()
}

fn of_one<B: Backend>(
    m_rc: Tensor<B, 2>,
    iterations: usize,
    iterate: fn(Tensor<B, 2>, usize) -> Tensor<B, 2>,
) -> Tensor<B, 2> {
    let [rows, columns] = m_rc.dims();
    if rows > columns {
        return of_one(m_rc.transpose(), iterations, iterate).transpose();
    }
    let norm_1 = sum_of_squares(m_rc.clone().reshape([rows * columns])).sqrt() + EPS;
    iterate(m_rc / norm_1.reshape([1, 1]), iterations)
}

/// As the equations say: also where a device rounds what it multiplies to fewer bits, as in TF32.
fn step_by_step<B: Backend>(mut x_rc: Tensor<B, 2>, iterations: usize) -> Tensor<B, 2> {
    for i in 0..iterations {
        let [a, b, c] = STEPS[i.min(STEPS.len() - 1)];
        let a_rr = x_rc.clone().matmul(x_rc.clone().transpose());
        let by_rr = a_rr.clone() * b + a_rr.clone().matmul(a_rr) * c;
        x_rc = x_rc.clone() * a + by_rr.matmul(x_rc);
    }
    x_rc
}

/// The same with square matrices alone: each `P` and `A` is a polynomial in the first `A`, so that the next `A` is `P A P`,
/// and `X` is multiplied once, by the product of all `P`. A matrix of many more columns than rows costs a third.
/// Singular values below 3e-4 of the norm are lost in f32 where they are squared.
#[cfg(any(test, feature = "flex"))]
fn by_squares<B: Backend>(x_rc: Tensor<B, 2>, iterations: usize) -> Tensor<B, 2> {
    let eye_rr = Tensor::eye(x_rc.dims()[0], &x_rc.device());
    let mut a_rr = x_rc.clone().matmul(x_rc.clone().transpose());
    let mut product_rr = eye_rr.clone();
    for i in 0..iterations {
        let [a, b, c] = STEPS[i.min(STEPS.len() - 1)];
        let square_rr = a_rr.clone().matmul(a_rr.clone());
        let p_rr = eye_rr.clone() * a + a_rr.clone() * b + square_rr * c;
        if i + 1 < iterations {
            a_rr = p_rr.clone().matmul(a_rr).matmul(p_rr.clone());
        }
        product_rr = if i == 0 { p_rr } else { p_rr.matmul(product_rr) };
    }
    product_rr.matmul(x_rc)
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

    /// Both ways to iterate.
    fn after(matrix: Tensor<Flex, 2>, iterations: usize) -> [Tensor<Flex, 2>; 2] {
        [by_squares, step_by_step].map(|iterate| of_one(matrix.clone(), iterations, iterate))
    }

    /// Those of 1 to 8 over their norm, three times through the polynomials in f64 (NumPy).
    #[test]
    fn singular_values_come_near_one_and_their_vectors_stay() {
        const AFTER: [f64; 8] = [
            0.875008933,
            0.78703503,
            0.862685309,
            1.26047724,
            0.992823107,
            0.774073695,
            0.909526714,
            1.2280629,
        ];
        assert!(AFTER.iter().all(|s| (0.73..=1.27).contains(s)));
        let before = matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        for after_rc in after(before.clone(), 3) {
            assert_near(after_rc, matrix(&AFTER));
        }
        for after_rc in after(before.clone().transpose(), 3) {
            assert_near(after_rc, matrix(&AFTER).transpose());
        }
        // The scale of a matrix is nothing to it, but for what is added to the norm; and all at once are as one.
        for after_rc in orthogonalized(vec![before.clone(), before.clone() * 0.25], 3) {
            assert_near(after_rc, matrix(&AFTER));
        }
        // More iterations than polynomials.
        for after_rc in after(before.clone(), 6) {
            assert_near(after_rc, matrix(&[1.0; 8]));
        }
        for after_rc in after(before.clone(), 0) {
            let norm = 204f64.sqrt();
            assert_near(after_rc, matrix(&[1, 2, 3, 4, 5, 6, 7, 8].map(|s| f64::from(s) / norm)));
        }
    }

    /// Of a matrix of few dimensions the others are rounding: they stay far below 1.
    #[test]
    fn what_is_not_there_is_not_made_large() {
        let few = matrix(&[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        for after_rc in after(few.clone(), 4) {
            let apart = (after_rc - few.clone()).abs().max().into_scalar();
            assert!(apart < 0.02, "{apart} apart");
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        let zeros = Tensor::<Flex, 2>::zeros([3, 2], &Default::default());
        let after = orthogonalized(vec![zeros], 5).remove(0);
        assert_eq!(after.into_data().to_vec::<f32>().unwrap(), [0.0; 6]);
    }
}
