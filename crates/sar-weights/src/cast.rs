//! Floats of another width.

use burn::tensor::{DType, TensorData};

/// Converts floats to another width, rounding once, to the nearest, ties to even; integers and bools
/// stay as they are.
///
/// # Errors
/// If a finite value is beyond the range of the new width: which one, and what reaches further.
pub fn cast_floats(data: TensorData, dtype: DType) -> Result<TensorData, String> {
    assert!(dtype.is_float(), "{} is not a float", dtype.name());
    if !data.dtype.is_float() || data.dtype == dtype {
        return Ok(data);
    }
    let cast = match (data.dtype, dtype) {
        // The conversion goes through f32, which would round twice.
        (DType::F64, DType::F16 | DType::BF16) => {
            let values = data.iter::<f64>().map(to_odd).collect();
            TensorData::new::<f32, _>(values, data.shape.clone()).convert_dtype(dtype)
        }
        _ => data.clone().convert_dtype(dtype),
    };
    let lost = data
        .iter::<f64>()
        .zip(cast.iter::<f64>())
        .find(|(before, after)| before.is_finite() && !after.is_finite());
    match lost {
        Some((value, _)) => {
            let further = match dtype {
                DType::F16 => "bf16 reaches as far as f32",
                DType::BF16 => "f32 reaches a little further",
                _ => "keep the element type",
            };
            Err(format!("{value:e} is beyond the range of {}; {further}", dtype.name()))
        }
        None => Ok(cast),
    }
}

/// A neighbor in f32: the one with an odd mantissa if there are two, so that rounding it to a width of
/// fewer bits gives what rounding the value itself would.
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || !near.is_finite() || near.to_bits() & 1 == 1 {
        return near;
    }
    let toward = if f64::from(near) < value { near.next_up() } else { near.next_down() };
    // Beyond the largest finite value there is no odd neighbor.
    if toward.is_finite() { toward } else { near }
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
        assert_eq!(error, "6.552e4 is beyond the range of f16; bf16 reaches as far as f32");
        let ints = TensorData::from([70_000i64]);
        assert_eq!(cast_floats(ints.clone(), DType::F16).unwrap(), ints);
    }

    /// Halves of the distance of two neighbors go to the one that is even.
    #[test]
    fn ties_by_hand() {
        let of = |values: &[f64], dtype| {
            let wide = TensorData::new(values.to_vec(), [values.len()]);
            let single: Vec<f32> = values.iter().map(|x| *x as f32).collect();
            let single = TensorData::new(single, [values.len()]);
            let [wide, single] = [wide, single]
                .map(|data| cast_floats(data, dtype).unwrap().iter::<f64>().collect());
            (wide, single)
        };
        let power = |n: i32| 2f64.powi(n);
        // Of f16: 11 bits from 2^-14 on, steps of 2^-24 below.
        let values = [2049.0, 2051.0, -2051.0, 65_519.0, power(-25), 3.0 * power(-25), power(-26)];
        let rounded = vec![2048.0, 2052.0, -2052.0, 65_504.0, 0.0, power(-23), 0.0];
        assert_eq!(of(&values, DType::F16), (rounded.clone(), rounded));
        // Of bf16: 8 bits.
        let values = [257.0, 259.0, -259.0, 3.0, 1.0 + power(-8), 1.0 + 3.0 * power(-8)];
        let rounded = vec![256.0, 260.0, -260.0, 3.0, 1.0, 1.0 + power(-6)];
        assert_eq!(of(&values, DType::BF16), (rounded.clone(), rounded));

        // A little more than half, which f32 does not see: only rounding once gets it right.
        let over = 1.0 + power(-11) + power(-40);
        assert_eq!(of(&[over, -over], DType::F16).0, [1.0 + power(-10), -1.0 - power(-10)]);
        let under = 1.0 + 3.0 * power(-11) - power(-40);
        assert_eq!(of(&[under], DType::F16).0, [1.0 + power(-10)]);
        assert_eq!(of(&[1.0 + power(-8) + power(-40)], DType::BF16).0, [1.0 + power(-7)]);
        assert_eq!(of(&[power(-25) + power(-60)], DType::F16).0, [power(-24)]);
    }

    #[test]
    fn what_does_not_fit_says_what_does() {
        let refused =
            |value: f64, dtype| cast_floats(TensorData::from([value]), dtype).unwrap_err();
        assert!(refused(-65_520.0, DType::F16).starts_with("-6.552e4 is beyond the range of f16"));
        let error = refused(f64::from(f32::MAX), DType::BF16);
        assert!(
            error.ends_with("beyond the range of bf16; f32 reaches a little further"),
            "{error}"
        );
        assert!(refused(1e39, DType::F32).ends_with("of f32; keep the element type"));
    }
}
