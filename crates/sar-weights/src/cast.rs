//! Floats of another width.

use burn::tensor::{DType, TensorData};

/// Converts floats to another width, rounding to the nearest, ties to even; integers and bools stay
/// as they are.
///
/// # Errors
/// If a finite value is beyond the range of the new width: which one.
pub fn cast_floats(data: TensorData, dtype: DType) -> Result<TensorData, String> {
    assert!(dtype.is_float(), "{} is not a float", dtype.name());
    if !data.dtype.is_float() || data.dtype == dtype {
        return Ok(data);
    }
    let cast = data.clone().convert_dtype(dtype);
    let lost = data
        .iter::<f64>()
        .zip(cast.iter::<f64>())
        .find(|(before, after)| before.is_finite() && !after.is_finite());
    match lost {
        Some((value, _)) => Err(format!("{value:e} is beyond the range of {}", dtype.name())),
        None => Ok(cast),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{bf16, f16};

    use super::*;

    #[test]
    fn widths_and_what_does_not_fit() {
        let data = TensorData::from([1.0f32, -0.1, f32::INFINITY, f32::NEG_INFINITY]);
        let half = cast_floats(data.clone(), DType::F16).unwrap();
        let expected = [1.0, -0.1, f32::INFINITY, f32::NEG_INFINITY].map(f16::from_f32);
        assert_eq!(half.as_slice::<f16>().unwrap(), expected);
        let brain = cast_floats(data, DType::BF16).unwrap();
        assert_eq!(brain.as_slice::<bf16>().unwrap()[1], bf16::from_f32(-0.1));

        let wide = cast_floats(half.clone(), DType::F32).unwrap();
        assert_eq!(cast_floats(wide, DType::F16).unwrap(), half);
        let error = cast_floats(TensorData::from([1f32, 65_520.0]), DType::F16).unwrap_err();
        assert_eq!(error, "6.552e4 is beyond the range of f16");
        let ints = TensorData::from([70_000i64]);
        assert_eq!(cast_floats(ints.clone(), DType::F16).unwrap(), ints);
    }
}
