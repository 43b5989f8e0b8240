//! Files of weights as the packages hold them.

#![allow(dead_code, reason = "each test program uses some of it")]

use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
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

/// Values of a formula: the fraction of `sin(12.9898 (i + 1) + seed) 43758.5453`, in -scale .. scale.
pub(crate) fn noise(shape: &[usize], seed: f64, scale: f64) -> Vec<f32> {
    let value = |i: usize| {
        let value = (i as f64 * 12.9898 + seed).sin() * 43758.5453;
        ((2.0 * (value - value.floor()) - 1.0) * scale) as f32
    };
    (1..=shape.iter().product()).map(value).collect()
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

/// What the released TensorFlow graph calls these convolutions.
const INCEPTION_GRAPH: &str = include_str!("inception_graph.txt");

/// The weights of InceptionV3 as the constants of a TensorFlow graph, in protocol buffers' wire format.
pub(crate) fn inception_graph(tensors: &NamedTensors) -> Vec<u8> {
    let mut graph = Vec::new();
    let mut constant = |name: String, data: &TensorData| {
        let tensor =
            [varint(1, 1), field(2, &shape(&data.shape)), field(4, data.as_bytes())].concat();
        let value = attribute("value", &field(8, &tensor));
        graph.extend(field(1, &[field(1, name.as_bytes()), field(2, b"Const"), value].concat()));
    };
    // What the graph has beside the network: a scalar.
    constant("Sub/y".to_owned(), &TensorData::new(vec![128f32], [0; 0]));
    for line in INCEPTION_GRAPH.lines() {
        let (unit, name) = line.split_once(' ').unwrap();
        for (part, theirs) in [
            ("conv.weight", "conv2d_params"),
            ("bn.weight", "batchnorm/gamma"),
            ("bn.bias", "batchnorm/beta"),
            ("bn.running_mean", "batchnorm/moving_mean"),
            ("bn.running_var", "batchnorm/moving_variance"),
        ] {
            let Some(data) = tensors.get(&format!("{unit}.{part}")) else { continue };
            let data =
                if part == "conv.weight" { permuted(data, [2, 3, 1, 0]) } else { data.clone() };
            constant(format!("{name}/{theirs}"), &data);
        }
    }
    for (name, theirs) in [("fc.weight", "softmax/weights"), ("fc.bias", "softmax/biases")] {
        let data = tensors.get(name).unwrap();
        let data = if name == "fc.weight" { permuted(data, [1, 0]) } else { data.clone() };
        constant(theirs.to_owned(), &data);
    }
    for line in INCEPTION_GRAPH.lines() {
        let (_, name) = line.split_once(' ').unwrap();
        let name = format!("{name}/batchnorm");
        let scales = attribute("scale_after_normalization", &varint(5, 1));
        let op = field(2, b"BatchNormWithGlobalNormalization");
        graph.extend(field(1, &[field(1, name.as_bytes()), op, scales].concat()));
    }
    graph
}

fn permuted<const D: usize>(data: &TensorData, axes: [usize; D]) -> TensorData {
    let x = Tensor::<Flex, D>::from_data(data.clone(), &Default::default());
    x.permute(axes.map(|axis| axis as isize)).into_data()
}

fn shape(sides: &[usize]) -> Vec<u8> {
    sides.iter().flat_map(|&side| field(2, &varint(1, side as u64))).collect()
}

fn attribute(name: &str, value: &[u8]) -> Vec<u8> {
    field(5, &[field(1, name.as_bytes()), field(2, value)].concat())
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    [number_of((number << 3) | 2), number_of(content.len() as u64), content.to_vec()].concat()
}

fn varint(number: u64, value: u64) -> Vec<u8> {
    [number_of(number << 3), number_of(value)].concat()
}

fn number_of(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 128 {
        bytes.push(value as u8 | 128);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
