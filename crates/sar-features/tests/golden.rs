//! The networks against PyTorch: `golden.py` made `golden.safetensors`.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use sar_features::{EfficientNetLite0, WEIGHTS};
use sar_weights::NamedTensors;

/// `sin((i + 1) frequency) scale` over the elements.
fn formula(n: usize, frequency: f64, scale: f64) -> Vec<f32> {
    (1..=n).map(|i| ((i as f64 * frequency).sin() * scale) as f32).collect()
}

fn images(shape: [usize; 4], frequency: f64) -> Tensor<Flex, 4> {
    let n = shape.iter().product();
    let (long, short) = (formula(n, frequency, 0.6), formula(n, 0.37 * frequency, 0.4));
    let pixels = long.iter().zip(&short).map(|(a, b)| (a + b).clamp(-1.0, 1.0)).collect();
    Tensor::from_data(TensorData::new(pixels, shape), &Default::default())
}

struct Golden(NamedTensors);

impl Golden {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        Self(NamedTensors::read(&folder.join("golden.safetensors")).unwrap())
    }

    /// That a tensor is within 1e-4 of the golden one's largest magnitude.
    #[track_caller]
    fn check<const D: usize>(&self, name: &str, ours: Tensor<Flex, D>) {
        let golden = self.0.get(name).unwrap();
        assert_eq!(ours.dims()[..], golden.shape[..], "{name}");
        let (ours, golden) =
            (ours.into_data().into_vec::<f32>().unwrap(), golden.to_vec::<f32>().unwrap());
        let largest = golden.iter().fold(0f32, |a, x| a.max(x.abs()));
        let off = ours.iter().zip(&golden).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        assert!(largest > 0.0 && off <= 1e-4 * largest, "{name}: off by {off} of {largest}");
    }
}

fn efficientnet() -> EfficientNetLite0<Flex> {
    EfficientNetLite0::from_bytes(WEIGHTS.to_vec(), &Default::default()).unwrap()
}

#[test]
fn efficientnet_computes_what_the_package_computes() {
    let (net, golden) = (efficientnet(), Golden::read());
    let x = images([2, 3, 64, 96], 0.0123);
    golden.check("features", net.features(x.clone()));
    golden.check("features_odd", net.features(images([1, 3, 77, 45], 0.021)));
    for (i, map) in net.maps(x).into_iter().enumerate() {
        let map = if i < 3 {
            let [b, c, h, w] = map.dims();
            let every_7th = (0..h * w).step_by(7).map(|at| at as i32).collect::<Vec<_>>();
            let every_7th = Tensor::from_ints(every_7th.as_slice(), &map.device());
            let n = every_7th.dims()[0];
            map.reshape([b, c, h * w]).select(2, every_7th).reshape([b, c, 1, n])
        } else {
            map
        };
        let name = format!("map{i}");
        if i < 3 { golden.check(&name, map.squeeze_dim::<3>(2)) } else { golden.check(&name, map) }
    }
}

#[test]
fn pooled_features_are_those_of_images_brought_to_160_px() {
    let (net, golden) = (efficientnet(), Golden::read());
    // More than are taken at a time.
    golden.check("pooled_small", net.pooled(images([5, 3, 32, 32], 0.0123)));
    golden.check("pooled_large", net.pooled(images([1, 3, 200, 200], 0.0123)));
}
