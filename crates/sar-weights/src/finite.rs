//! Weights hold numbers: NaN and infinity are refused where weights are read.

use std::path::Path;

use burn::tensor::{DType, TensorData, bf16, f16};

use crate::error::{WeightsError, one_line};

/// Looks for values that are not finite, tensor by tensor.
///
/// [`bind`](crate::bind) refuses them by itself; this is for those who read or write a file
/// one tensor at a time. Buffers such as attention masks hold infinities and are not to be added.
///
/// ```
/// use burn::tensor::TensorData;
/// use sar_weights::FiniteCheck;
///
/// let mut check = FiniteCheck::default();
/// check.add("head.weight", &TensorData::from([1f32, 2.0]));
/// check.add("head.bias", &TensorData::from([f32::NAN, 2.0]));
/// let error = check.finish(None).unwrap_err();
/// assert!(error.to_string().contains("tensor head.bias has 1 value that is NaN or infinite"));
/// ```
#[derive(Debug, Clone, Default)]
pub struct FiniteCheck {
    /// The first tensor with such values, and how many it has.
    first: Option<(String, usize)>,
    n_tensors: usize,
}

impl FiniteCheck {
    /// Looks through a tensor; one without floats passes.
    pub fn add(&mut self, name: &str, data: &TensorData) {
        let n_values = count_not_finite(data);
        if n_values > 0 {
            self.n_tensors += 1;
            self.first.get_or_insert_with(|| (one_line(name), n_values));
        }
    }

    /// Ends the search.
    ///
    /// # Errors
    /// [`WeightsError::NotFinite`] if any tensor had such values, with the name of the first one that
    /// was added, and `origin` as the file that it came from.
    pub fn finish(self, origin: Option<&Path>) -> Result<(), WeightsError> {
        match self.first {
            None => Ok(()),
            Some((name, n_values)) => Err(WeightsError::NotFinite {
                origin: origin.map(Into::into),
                name,
                n_values,
                n_tensors: self.n_tensors,
            }),
        }
    }
}

/// Counts the values that are NaN, infinite, or beyond the range of f32; integers have none.
pub fn count_not_finite(data: &TensorData) -> usize {
    // The bits say it: an exponent of ones. Counting them this way is vectorized.
    fn count<const SIZE: usize>(bytes: &[u8], is_bad: impl Fn([u8; SIZE]) -> bool) -> usize {
        bytes.as_chunks().0.iter().map(|&value| usize::from(is_bad(value))).sum()
    }
    let bytes = data.as_bytes();
    match data.dtype {
        DType::F64 => count(bytes, |value| !(f64::from_le_bytes(value) as f32).is_finite()),
        DType::F32 | DType::Flex32 => count(bytes, |value| !f32::from_le_bytes(value).is_finite()),
        DType::F16 => count(bytes, |value| !f16::from_le_bytes(value).is_finite()),
        DType::BF16 => count(bytes, |value| !bf16::from_le_bytes(value).is_finite()),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_is_counted() {
        let values = [1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MIN_POSITIVE];
        let of = |data: TensorData| count_not_finite(&data);
        assert_eq!(of(TensorData::from(values)), 3);
        assert_eq!(of(TensorData::from(values.map(|x| x as f32))), 3);
        assert_eq!(of(TensorData::from(values.map(f16::from_f64))), 3);
        assert_eq!(of(TensorData::from(values.map(bf16::from_f64))), 3);
        assert_eq!(of(TensorData::from([f64::MAX, 1e38])), 1, "f32 ends at 3.4e38");
        assert_eq!(of(TensorData::from([f32::MAX, f32::MIN])), 0);
        assert_eq!(of(TensorData::from([f16::MAX, f16::MIN])), 0);
        assert_eq!(of(TensorData::from([i64::MAX, -1])), 0);
        assert_eq!(of(TensorData::from([u8::MAX])), 0);
        assert_eq!(of(TensorData::new(Vec::<f32>::new(), [0])), 0);
    }

    #[test]
    fn the_first_tensor_is_named_and_the_others_are_counted() {
        let mut check = FiniteCheck::default();
        check.add("a", &TensorData::from([1f32]));
        assert!(check.clone().finish(None).is_ok());
        check.add("b\n", &TensorData::from([f32::NAN, f32::INFINITY, 1.0]));
        check.add("c", &TensorData::from([f32::NAN]));
        check.add("d", &TensorData::from([f32::NAN]));
        assert_eq!(
            check.finish(Some(Path::new("a.pth"))).unwrap_err().to_string(),
            "a.pth: tensor b\\n has 2 values that are NaN or infinite, and 2 more tensors have \
             such values; use weights from before training went wrong, or another copy of the file"
        );
    }
}
