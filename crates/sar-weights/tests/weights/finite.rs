//! What is not a number is refused where weights become parameters.

use burn::nn::{Linear, LinearConfig};
use burn::tensor::{TensorData, f16};
use burn_flex::Flex;
use sar_weights::{Layout, NamedTensors, bind};

use crate::support::message;

const LAYOUT: Layout = Layout { renames: &[], ignored: &["mask"] };

fn bound(weights: NamedTensors) -> Result<Linear<Flex>, sar_weights::WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    weights.write_safetensors(&path).unwrap();
    bind(LinearConfig::new(2, 2).init(&Default::default()), NamedTensors::read(&path)?, &LAYOUT)
}

#[test]
fn parameters_are_finite_and_buffers_need_not_be() {
    let weights = |weight: TensorData, bias: TensorData| {
        let mut weights = NamedTensors::new();
        weights.insert("weight", weight);
        weights.insert("bias", bias);
        weights.insert("mask", TensorData::from([f32::NEG_INFINITY, 0.0]));
        weights
    };
    let good = || TensorData::from([[1f32, 2.0], [3.0, 4.0]]);
    assert!(bound(weights(good(), TensorData::from([0f32, 1.0]))).is_ok());

    let infinite = TensorData::from([[1.0, f64::INFINITY], [f64::NEG_INFINITY, f64::NAN]]);
    let error = message(bound(weights(infinite, TensorData::from([0f32, 1.0]))));
    assert!(error.starts_with("tensor weight has 3 values that are NaN or infinite; use"));

    let half = TensorData::from([f16::NAN, f16::ONE]);
    let nan = TensorData::from([[1f32, f32::NAN], [3.0, 4.0]]);
    let error = message(bound(weights(nan, half)));
    let expected =
        "tensor weight has 1 value that is NaN or infinite, and 1 more tensor has such values; use";
    assert!(error.starts_with(expected), "{error}");

    // A finite f64 that f32 cannot hold would become an infinity.
    let error = message(bound(weights(good(), TensorData::from([0f64, 1e300]))));
    assert!(error.starts_with("tensor bias has 1 value that is NaN or infinite;"), "{error}");
}
