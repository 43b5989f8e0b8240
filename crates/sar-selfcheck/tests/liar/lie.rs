//! The lies, each a fault that a GPU backend has had.

use std::sync::{Mutex, PoisonError, RwLock};

use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{BoolDType, IntDType, Shape, TensorData, TensorMetadata};
use burn_flex::{Flex, FlexTensor};

type T = FlexTensor;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Lie {
    /// Nothing.
    Nothing,
    /// Products of this inner size leave out its last elements, so many of them.
    ShortInner(usize, usize),
    /// Products of 500 rows or more are near zero, those of a single column excepted.
    NearZeroFor500Rows,
    /// Products of a single column come in another order.
    OneColumn,
    /// Products whose right operand is a transposed view are zero.
    TransposedRight,
    /// Products whose left operand is a transposed view are zero.
    TransposedLeft,
    /// Products round their inputs to so many bits of mantissa.
    Rounded(u32),
    /// Products of this inner size panic.
    Panics(usize),
    /// Sums along an axis leave out its last element.
    ShortSums,
    /// A comparison is the other way round.
    LowerEqual,
    /// Exponentials of a shape that came before are those of then.
    StaleExponentials,
    /// The places of the largest values stay unwritten.
    UnwrittenArgmax,
    /// Gathered values stay unwritten.
    UnwrittenGather,
    /// Hyperbolic tangents stay unwritten.
    UnwrittenTanh,
    /// The gradient of selected rows is lost.
    LostSelectGradient,
}

static LIE: RwLock<Lie> = RwLock::new(Lie::Nothing);
/// The exponentials of [`Lie::StaleExponentials`].
static STALE: Mutex<Vec<T>> = Mutex::new(Vec::new());

/// Runs work while the lie is told. One at a time: the lie is the whole process's, and so are the
/// graphs of burn-autodiff.
pub(crate) fn telling<R>(lie: Lie, work: impl FnOnce() -> R) -> R {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    STALE.lock().unwrap_or_else(PoisonError::into_inner).clear();
    *LIE.write().expect("nothing panics with the lie") = lie;
    work()
}

fn told() -> Lie {
    *LIE.read().expect("nothing panics with the lie")
}

pub(super) fn float_matmul(lhs: T, rhs: T) -> T {
    let (left, right) = (lhs.shape(), rhs.shape());
    let rank = left.num_dims();
    let [m, k, n] = [left[rank - 2], left[rank - 1], right[rank - 1]];
    match told() {
        Lie::ShortInner(inner, by) if k == inner => {
            Flex::float_matmul(lhs.narrow(rank - 1, 0, k - by), rhs.narrow(rank - 2, 0, k - by))
        }
        Lie::NearZeroFor500Rows if m >= 500 && n > 1 => {
            Flex::float_mul_scalar(Flex::float_matmul(lhs, rhs), 1e-6.into())
        }
        Lie::OneColumn if n == 1 && m > 1 => {
            Flex::float_flip(Flex::float_matmul(lhs, rhs), &[rank - 2])
        }
        Lie::TransposedRight if is_transposed(&rhs) => unwritten(Flex::float_matmul(lhs, rhs)),
        Lie::TransposedLeft if is_transposed(&lhs) => unwritten(Flex::float_matmul(lhs, rhs)),
        Lie::Rounded(bits) => Flex::float_matmul(rounded(lhs, bits), rounded(rhs, bits)),
        Lie::Panics(inner) if k == inner => panic!("no kernel for an inner size of {k}"),
        _ => Flex::float_matmul(lhs, rhs),
    }
}

pub(super) fn float_sum_dim(tensor: T, dim: usize) -> T {
    let n = tensor.shape()[dim];
    match told() {
        Lie::ShortSums if n > 1 => Flex::float_sum_dim(tensor.narrow(dim, 0, n - 1), dim),
        _ => Flex::float_sum_dim(tensor, dim),
    }
}

pub(super) fn float_lower_equal(lhs: T, rhs: T, out_dtype: BoolDType) -> T {
    match told() {
        Lie::LowerEqual => Flex::float_greater(lhs, rhs, out_dtype),
        _ => Flex::float_lower_equal(lhs, rhs, out_dtype),
    }
}

pub(super) fn float_exp(tensor: T) -> T {
    if told() != Lie::StaleExponentials {
        return Flex::float_exp(tensor);
    }
    let mut stale = STALE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(old) = stale.iter().find(|old| old.shape() == tensor.shape()) {
        return old.clone();
    }
    let new = Flex::float_exp(tensor);
    stale.push(new.clone());
    new
}

pub(super) fn float_argmax(tensor: T, dim: usize, out_dtype: IntDType) -> T {
    let places = Flex::float_argmax(tensor, dim, out_dtype);
    if told() == Lie::UnwrittenArgmax { unwritten(places) } else { places }
}

pub(super) fn float_gather(dim: usize, tensor: T, indices: T) -> T {
    let values = Flex::float_gather(dim, tensor, indices);
    if told() == Lie::UnwrittenGather { unwritten(values) } else { values }
}

pub(super) fn float_tanh(tensor: T) -> T {
    let values = Flex::float_tanh(tensor);
    if told() == Lie::UnwrittenTanh { unwritten(values) } else { values }
}

pub(super) fn float_select_add(tensor: T, dim: usize, indices: T, value: T) -> T {
    match told() {
        Lie::LostSelectGradient => tensor,
        _ => Flex::float_select_add(tensor, dim, indices, value),
    }
}

/// The buffer of an output that no kernel wrote.
fn unwritten(tensor: T) -> T {
    T::zeros(tensor.shape(), tensor.dtype())
}

fn is_transposed(tensor: &T) -> bool {
    let strides = tensor.layout().strides();
    matches!(strides, [.., rows, columns] if rows < columns)
}

fn rounded(tensor: T, bits: u32) -> T {
    let shape: Shape = tensor.shape();
    let values = tensor.into_data().into_vec::<f32>().expect("f32");
    let dropped = 23 - bits;
    let round = |x: f32| {
        let half = 1 << (dropped - 1);
        f32::from_bits((x.to_bits() + half) >> dropped << dropped)
    };
    let values: Vec<f32> = values.into_iter().map(round).collect();
    T::from_data(TensorData::new(values, shape))
}
