//! Files of weights as the packages hold them.

#![allow(dead_code, reason = "each test program uses some of it")]

use burn::tensor::TensorData;
use sar_weights::NamedTensors;

const CHANNELS: [usize; 13] = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512];
/// The places of the convolutions in torchvision's list.
const PLACES: [usize; 13] = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28];

/// The bytes of a safetensors file.
pub(crate) fn bytes(tensors: &NamedTensors) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    tensors.write_safetensors(&path).unwrap();
    std::fs::read(path).unwrap()
}

/// The convolutions of VGG16, from shape, seed and scale: weights of variance 2 / fan in, where
/// values are even in -scale .. scale.
pub(crate) fn vgg_weights(values: impl Fn(&[usize], f64, f64) -> Vec<f32>) -> NamedTensors {
    let mut tensors = NamedTensors::new();
    let mut c_in = 3;
    for (i, (place, c_out)) in PLACES.into_iter().zip(CHANNELS).enumerate() {
        let (weight, bias) = ([c_out, c_in, 3, 3], [c_out]);
        let scale = (6.0 / (9 * c_in) as f64).sqrt();
        let [weights, biases] =
            [values(&weight, i as f64, scale), values(&bias, i as f64 + 0.5, 0.1)];
        tensors.insert(format!("features.{place}.weight"), TensorData::new(weights, weight));
        tensors.insert(format!("features.{place}.bias"), TensorData::new(biases, bias));
        c_in = c_out;
    }
    tensors
}

/// The weights of LPIPS, from shape and seed.
pub(crate) fn lpips_weights(values: impl Fn(&[usize], f64) -> Vec<f32>) -> NamedTensors {
    let mut tensors = NamedTensors::new();
    for (i, channels) in [64, 128, 256, 512, 512].into_iter().enumerate() {
        let shape = [1, channels, 1, 1];
        let values = values(&shape, 100.0 + i as f64);
        tensors.insert(format!("lin{i}.model.1.weight"), TensorData::new(values, shape));
    }
    tensors
}

/// The convolutions of InceptionV3, by name: what a package that computes it says of them.
const INCEPTION: &str = include_str!("inception.txt");

/// The weights of InceptionV3, from shape, seed and scale: weights of variance 2 / fan in, where
/// values are even in -scale .. scale.
pub(crate) fn inception_weights(values: impl Fn(&[usize], f64, f64) -> Vec<f32>) -> NamedTensors {
    let mut tensors = NamedTensors::new();
    let mut insert = |name: String, shape: &[usize], middle: f32, seed: f64, scale: f64| {
        let values: Vec<f32> = values(shape, seed, scale).iter().map(|x| middle + x).collect();
        tensors.insert(name, TensorData::new(values, shape));
    };
    for (i, line) in INCEPTION.lines().enumerate() {
        let (name, shape) = line.split_once(' ').unwrap();
        let shape: Vec<usize> = shape.split(' ').map(|n| n.parse().unwrap()).collect();
        let (i, scale) = (i as f64, (6.0 / shape[1..].iter().product::<usize>() as f64).sqrt());
        insert(format!("{name}.conv.weight"), &shape, 0.0, i, scale);
        insert(format!("{name}.bn.weight"), &shape[..1], 1.0, i + 0.2, 0.3);
        insert(format!("{name}.bn.bias"), &shape[..1], 0.0, i + 0.4, 0.3);
        insert(format!("{name}.bn.running_mean"), &shape[..1], 0.0, i + 0.6, 0.3);
        insert(format!("{name}.bn.running_var"), &shape[..1], 1.0, i + 0.8, 0.5);
    }
    insert("fc.weight".to_owned(), &[1008, 2048], 0.0, 100.0, 0.05);
    insert("fc.bias".to_owned(), &[1008], 0.0, 101.0, 0.1);
    tensors
}
