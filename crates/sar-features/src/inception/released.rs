//! The network as its released file holds it, with batch norms apart. The blocks are those of
//! torchvision's `inception.py`, by their letters there.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use sar_weights::{Anchor, Layout, NamedTensors, WeightsError, WeightsFile, bind};

use super::{Block, Branch, CLASSES, FEATURES, Inception};
use crate::batch_norm::BatchNorm;
use crate::convolution::{Convolution, waiting};
use crate::load::load;

const ANCHOR: Anchor =
    Anchor { tensor: "Conv2d_1a_3x3.conv.weight", roots: &[""], averages: false };

const LAYOUT: Layout = Layout {
    renames: &[
        ("conv2d_1a", "Conv2d_1a_3x3"),
        ("conv2d_2a", "Conv2d_2a_3x3"),
        ("conv2d_2b", "Conv2d_2b_3x3"),
        ("conv2d_3b", "Conv2d_3b_1x1"),
        ("conv2d_4a", "Conv2d_4a_3x3"),
        ("mixed_5b", "Mixed_5b"),
        ("mixed_5c", "Mixed_5c"),
        ("mixed_5d", "Mixed_5d"),
        ("mixed_6a", "Mixed_6a"),
        ("mixed_6b", "Mixed_6b"),
        ("mixed_6c", "Mixed_6c"),
        ("mixed_6d", "Mixed_6d"),
        ("mixed_6e", "Mixed_6e"),
        ("mixed_7a", "Mixed_7a"),
        ("mixed_7b", "Mixed_7b"),
        ("mixed_7c", "Mixed_7c"),
    ],
    ignored: &["num_batches_tracked"],
};

/// What is added to a variance, as in the network's training.
const EPSILON: f64 = 1e-3;

#[derive(Module, Debug)]
pub(super) struct Released<B: Backend> {
    conv2d_1a: Unit<B>,
    conv2d_2a: Unit<B>,
    conv2d_2b: Unit<B>,
    conv2d_3b: Unit<B>,
    conv2d_4a: Unit<B>,
    mixed_5b: InceptionA<B>,
    mixed_5c: InceptionA<B>,
    mixed_5d: InceptionA<B>,
    mixed_6a: InceptionB<B>,
    mixed_6b: InceptionC<B>,
    mixed_6c: InceptionC<B>,
    mixed_6d: InceptionC<B>,
    mixed_6e: InceptionC<B>,
    mixed_7a: InceptionD<B>,
    mixed_7b: InceptionE<B>,
    mixed_7c: InceptionE<B>,
    fc: Classifier<B>,
}

/// Kernels of 1x1, 5x5 and two of 3x3, and means.
#[derive(Module, Debug)]
struct InceptionA<B: Backend> {
    branch1x1: Unit<B>,
    branch5x5_1: Unit<B>,
    branch5x5_2: Unit<B>,
    branch3x3dbl_1: Unit<B>,
    branch3x3dbl_2: Unit<B>,
    branch3x3dbl_3: Unit<B>,
    branch_pool: Unit<B>,
}

/// Kernels of 3x3 and three of 3x3 that halve the sides, and maxima.
#[derive(Module, Debug)]
struct InceptionB<B: Backend> {
    branch3x3: Unit<B>,
    branch3x3dbl_1: Unit<B>,
    branch3x3dbl_2: Unit<B>,
    branch3x3dbl_3: Unit<B>,
}

/// Kernels of 1x1, and one or two of 7x7 as rows and columns, and means.
#[derive(Module, Debug)]
struct InceptionC<B: Backend> {
    branch1x1: Unit<B>,
    branch7x7_1: Unit<B>,
    branch7x7_2: Unit<B>,
    branch7x7_3: Unit<B>,
    branch7x7dbl_1: Unit<B>,
    branch7x7dbl_2: Unit<B>,
    branch7x7dbl_3: Unit<B>,
    branch7x7dbl_4: Unit<B>,
    branch7x7dbl_5: Unit<B>,
    branch_pool: Unit<B>,
}

/// Kernels of 3x3 and of 7x7 as a row and a column that halve the sides, and maxima.
#[derive(Module, Debug)]
struct InceptionD<B: Backend> {
    branch3x3_1: Unit<B>,
    branch3x3_2: Unit<B>,
    branch7x7x3_1: Unit<B>,
    branch7x7x3_2: Unit<B>,
    branch7x7x3_3: Unit<B>,
    branch7x7x3_4: Unit<B>,
}

/// Kernels of 1x1, and rows and columns of three side by side, and means or maxima.
#[derive(Module, Debug)]
struct InceptionE<B: Backend> {
    branch1x1: Unit<B>,
    branch3x3_1: Unit<B>,
    branch3x3_2a: Unit<B>,
    branch3x3_2b: Unit<B>,
    branch3x3dbl_1: Unit<B>,
    branch3x3dbl_2: Unit<B>,
    branch3x3dbl_3a: Unit<B>,
    branch3x3dbl_3b: Unit<B>,
    branch_pool: Unit<B>,
}

/// A convolution and the norm behind it.
#[derive(Module, Debug)]
struct Unit<B: Backend> {
    conv: Weight<B>,
    bn: BatchNorm<B>,
    stride: usize,
    is_padded: bool,
}

#[derive(Module, Debug)]
struct Weight<B: Backend> {
    weight: Param<Tensor<B, 4>>,
}

#[derive(Module, Debug)]
struct Classifier<B: Backend> {
    weight: Param<Tensor<B, 2>>,
    bias: Param<Tensor<B, 1>>,
}

impl<B: Backend> Released<B> {
    pub(super) fn load(file: WeightsFile, device: &B::Device) -> Result<Self, WeightsError> {
        load(Self::new(device), file, &ANCHOR, &LAYOUT)
    }

    /// Of parameters that are all there and nothing else.
    pub(super) fn bind(tensors: NamedTensors, device: &B::Device) -> Result<Self, WeightsError> {
        bind(Self::new(device), tensors, &LAYOUT)
    }

    fn new(device: &B::Device) -> Self {
        Self {
            conv2d_1a: Unit::unpadded([3, 32], 3, 2, device),
            conv2d_2a: Unit::unpadded([32, 32], 3, 1, device),
            conv2d_2b: Unit::new([32, 64], [3, 3], device),
            conv2d_3b: Unit::new([64, 80], [1, 1], device),
            conv2d_4a: Unit::unpadded([80, 192], 3, 1, device),
            mixed_5b: InceptionA::new(192, 32, device),
            mixed_5c: InceptionA::new(256, 64, device),
            mixed_5d: InceptionA::new(288, 64, device),
            mixed_6a: InceptionB::new(288, device),
            mixed_6b: InceptionC::new(128, device),
            mixed_6c: InceptionC::new(160, device),
            mixed_6d: InceptionC::new(160, device),
            mixed_6e: InceptionC::new(192, device),
            mixed_7a: InceptionD::new(768, device),
            mixed_7b: InceptionE::new(1280, device),
            mixed_7c: InceptionE::new(FEATURES, device),
            fc: Classifier {
                weight: waiting([CLASSES, FEATURES], device),
                bias: waiting([CLASSES], device),
            },
        }
    }

    pub(super) fn fold(self) -> Inception<B> {
        let stem = [
            vec![self.conv2d_1a, self.conv2d_2a, self.conv2d_2b],
            vec![self.conv2d_3b, self.conv2d_4a],
        ];
        Inception {
            stem: stem.into_iter().map(folded).collect(),
            blocks: vec![
                self.mixed_5b.fold(),
                self.mixed_5c.fold(),
                self.mixed_5d.fold(),
                self.mixed_6a.fold(),
                self.mixed_6b.fold(),
                self.mixed_6c.fold(),
                self.mixed_6d.fold(),
                self.mixed_6e.fold(),
                self.mixed_7a.fold(),
                self.mixed_7b.fold(Branch::Average),
                self.mixed_7c.fold(Branch::Maximum),
            ],
            classifier_fk: self.fc.weight.val().detach().transpose(),
        }
    }
}

impl<B: Backend> InceptionA<B> {
    fn new(c_in: usize, pooled: usize, device: &B::Device) -> Self {
        let unit = |channels, kernel| Unit::new(channels, kernel, device);
        Self {
            branch1x1: unit([c_in, 64], [1, 1]),
            branch5x5_1: unit([c_in, 48], [1, 1]),
            branch5x5_2: unit([48, 64], [5, 5]),
            branch3x3dbl_1: unit([c_in, 64], [1, 1]),
            branch3x3dbl_2: unit([64, 96], [3, 3]),
            branch3x3dbl_3: unit([96, 96], [3, 3]),
            branch_pool: unit([c_in, pooled], [1, 1]),
        }
    }

    fn fold(self) -> Block<B> {
        let dbl = [self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3];
        Block {
            branches: vec![
                Branch::Chain(folded([self.branch1x1])),
                Branch::Chain(folded([self.branch5x5_1, self.branch5x5_2])),
                Branch::Chain(folded(dbl)),
                Branch::Average(self.branch_pool.fold()),
            ],
            is_halving: false,
        }
    }
}

impl<B: Backend> InceptionB<B> {
    fn new(c_in: usize, device: &B::Device) -> Self {
        Self {
            branch3x3: Unit::unpadded([c_in, 384], 3, 2, device),
            branch3x3dbl_1: Unit::new([c_in, 64], [1, 1], device),
            branch3x3dbl_2: Unit::new([64, 96], [3, 3], device),
            branch3x3dbl_3: Unit::unpadded([96, 96], 3, 2, device),
        }
    }

    fn fold(self) -> Block<B> {
        let dbl = [self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3];
        Block {
            branches: vec![Branch::Chain(folded([self.branch3x3])), Branch::Chain(folded(dbl))],
            is_halving: true,
        }
    }
}

impl<B: Backend> InceptionC<B> {
    /// With `inside` channels between its larger kernels.
    fn new(inside: usize, device: &B::Device) -> Self {
        let unit = |channels, kernel| Unit::new(channels, kernel, device);
        Self {
            branch1x1: unit([768, 192], [1, 1]),
            branch7x7_1: unit([768, inside], [1, 1]),
            branch7x7_2: unit([inside, inside], [1, 7]),
            branch7x7_3: unit([inside, 192], [7, 1]),
            branch7x7dbl_1: unit([768, inside], [1, 1]),
            branch7x7dbl_2: unit([inside, inside], [7, 1]),
            branch7x7dbl_3: unit([inside, inside], [1, 7]),
            branch7x7dbl_4: unit([inside, inside], [7, 1]),
            branch7x7dbl_5: unit([inside, 192], [1, 7]),
            branch_pool: unit([768, 192], [1, 1]),
        }
    }

    fn fold(self) -> Block<B> {
        let dbl = [
            self.branch7x7dbl_1,
            self.branch7x7dbl_2,
            self.branch7x7dbl_3,
            self.branch7x7dbl_4,
            self.branch7x7dbl_5,
        ];
        Block {
            branches: vec![
                Branch::Chain(folded([self.branch1x1])),
                Branch::Chain(folded([self.branch7x7_1, self.branch7x7_2, self.branch7x7_3])),
                Branch::Chain(folded(dbl)),
                Branch::Average(self.branch_pool.fold()),
            ],
            is_halving: false,
        }
    }
}

impl<B: Backend> InceptionD<B> {
    fn new(c_in: usize, device: &B::Device) -> Self {
        Self {
            branch3x3_1: Unit::new([c_in, 192], [1, 1], device),
            branch3x3_2: Unit::unpadded([192, 320], 3, 2, device),
            branch7x7x3_1: Unit::new([c_in, 192], [1, 1], device),
            branch7x7x3_2: Unit::new([192, 192], [1, 7], device),
            branch7x7x3_3: Unit::new([192, 192], [7, 1], device),
            branch7x7x3_4: Unit::unpadded([192, 192], 3, 2, device),
        }
    }

    fn fold(self) -> Block<B> {
        let large =
            [self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4];
        Block {
            branches: vec![
                Branch::Chain(folded([self.branch3x3_1, self.branch3x3_2])),
                Branch::Chain(folded(large)),
            ],
            is_halving: true,
        }
    }
}

impl<B: Backend> InceptionE<B> {
    fn new(c_in: usize, device: &B::Device) -> Self {
        let unit = |channels, kernel| Unit::new(channels, kernel, device);
        Self {
            branch1x1: unit([c_in, 320], [1, 1]),
            branch3x3_1: unit([c_in, 384], [1, 1]),
            branch3x3_2a: unit([384, 384], [1, 3]),
            branch3x3_2b: unit([384, 384], [3, 1]),
            branch3x3dbl_1: unit([c_in, 448], [1, 1]),
            branch3x3dbl_2: unit([448, 384], [3, 3]),
            branch3x3dbl_3a: unit([384, 384], [1, 3]),
            branch3x3dbl_3b: unit([384, 384], [3, 1]),
            branch_pool: unit([c_in, 192], [1, 1]),
        }
    }

    fn fold(self, pooled: impl FnOnce(Convolution<B>) -> Branch<B>) -> Block<B> {
        let dbl =
            [self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3a, self.branch3x3dbl_3b];
        Block {
            branches: vec![
                Branch::Chain(folded([self.branch1x1])),
                Branch::Fork(folded([self.branch3x3_1, self.branch3x3_2a, self.branch3x3_2b])),
                Branch::Fork(folded(dbl)),
                pooled(self.branch_pool.fold()),
            ],
            is_halving: false,
        }
    }
}

impl<B: Backend> Unit<B> {
    /// Of stride 1, with as many zeros around a map as keep its sides.
    fn new([c_in, c_out]: [usize; 2], [rows, columns]: [usize; 2], device: &B::Device) -> Self {
        let weight = waiting([c_out, c_in, rows, columns], device);
        let (conv, bn) = (Weight { weight }, BatchNorm::new(c_out, device));
        Self { conv, bn, stride: 1, is_padded: true }
    }

    /// Without zeros around a map.
    fn unpadded(channels: [usize; 2], side: usize, stride: usize, device: &B::Device) -> Self {
        Self { stride, is_padded: false, ..Self::new(channels, [side, side], device) }
    }

    /// One convolution for both, with `s = weight / sqrt(running_var + 1e-3)`:
    ///
    /// ```text
    /// s (conv(x) - running_mean) + bias
    /// ```
    fn fold(self) -> Convolution<B> {
        let (shape, device) = (self.conv.weight.dims(), self.conv.weight.device());
        let BatchNorm { weight, bias, running_mean, running_var } = self.bn;
        let scales: Vec<f64> = values(&weight)
            .zip(values(&running_var))
            .map(|(weight, variance)| weight / (variance + EPSILON).sqrt())
            .collect();
        let of_output = shape[1..].iter().product();
        let scale_of_each = scales.iter().flat_map(|scale| std::iter::repeat_n(scale, of_output));
        let weight: Vec<f32> = values(&self.conv.weight)
            .zip(scale_of_each)
            .map(|(w, scale)| (w * scale) as f32)
            .collect();
        let shifts = values(&bias).zip(values(&running_mean)).zip(&scales);
        let bias: Vec<f32> =
            shifts.map(|((bias, mean), scale)| (bias - mean * scale) as f32).collect();
        let weight_ockl = Tensor::from_data(TensorData::new(weight, shape), &device);
        let bias_o = Tensor::from_floats(&bias[..], &device);
        let new = if self.is_padded { Convolution::new } else { Convolution::unpadded };
        new(weight_ockl, bias_o, self.stride)
    }
}

fn folded<B: Backend>(units: impl IntoIterator<Item = Unit<B>>) -> Vec<Convolution<B>> {
    units.into_iter().map(Unit::fold).collect()
}

fn values<B: Backend, const D: usize>(
    parameter: &Param<Tensor<B, D>>,
) -> impl Iterator<Item = f64> {
    let values = parameter.val().into_data().convert::<f32>().into_vec::<f32>();
    values.expect("floats").into_iter().map(f64::from)
}
