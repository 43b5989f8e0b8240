//! The Cholesky decomposition.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::{MatMut, Par};

/// Replaces the lower triangle of a symmetric matrix, of which nothing else is read, by its Cholesky factor; whether
/// there is one, which is true of positive definite matrices.
pub(crate) fn cholesky(matrix: MatMut<'_, f64>) -> bool {
    let scratch = cholesky_in_place_scratch::<f64>(matrix.nrows(), Par::Seq, Default::default());
    let decomposed = cholesky_in_place(
        matrix,
        Default::default(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    );
    decomposed.is_ok()
}
