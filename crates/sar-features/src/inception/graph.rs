//! The weights of the released TensorFlow graph, `classify_image_graph_def.pb`: a `GraphDef` whose constants
//! are the parameters. Nothing of the graph is run.

use std::collections::HashMap;
use std::path::Path;

use burn::tensor::TensorData;
use prost::Message;
use sar_weights::{NamedTensors, WeightsError};

/// TensorFlow's `GraphDef`, as far as it is read.
#[derive(Clone, PartialEq, Message)]
struct GraphDef {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeDef>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeDef {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    op: String,
    #[prost(map = "string, message", tag = "5")]
    attr: HashMap<String, AttrValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AttrValue {
    #[prost(bool, optional, tag = "5")]
    b: Option<bool>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<TensorProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShapeProto>,
    #[prost(bytes = "vec", tag = "4")]
    content: Vec<u8>,
    #[prost(float, repeated, tag = "5")]
    floats: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShapeProto {
    #[prost(message, repeated, tag = "2")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, tag = "1")]
    size: i64,
}

const FLOAT: i32 = 1;
/// Values that one value may stand for: those of the largest constant.
const MOST_REPEATED: usize = 2048 * 1008;

/// Where the graph has the units of the stem.
const STEM: [(&str, &str); 5] = [
    ("conv", "Conv2d_1a_3x3"),
    ("conv_1", "Conv2d_2a_3x3"),
    ("conv_2", "Conv2d_2b_3x3"),
    ("conv_3", "Conv2d_3b_1x1"),
    ("conv_4", "Conv2d_4a_3x3"),
];

/// Names of units: in the graph, and in the block.
type Units = &'static [(&'static str, &'static str)];

/// Where the graph has the units of a block of each kind, and the blocks of that kind.
#[rustfmt::skip]
const BLOCKS: [(Units, &[&str]); 5] = [
    (&[
        ("conv", "branch1x1"),
        ("tower/conv", "branch5x5_1"), ("tower/conv_1", "branch5x5_2"),
        ("tower_1/conv", "branch3x3dbl_1"), ("tower_1/conv_1", "branch3x3dbl_2"), ("tower_1/conv_2", "branch3x3dbl_3"),
        ("tower_2/conv", "branch_pool"),
    ], &["Mixed_5b", "Mixed_5c", "Mixed_5d"]),
    (&[
        ("conv", "branch3x3"),
        ("tower/conv", "branch3x3dbl_1"), ("tower/conv_1", "branch3x3dbl_2"), ("tower/conv_2", "branch3x3dbl_3"),
    ], &["Mixed_6a"]),
    (&[
        ("conv", "branch1x1"),
        ("tower/conv", "branch7x7_1"), ("tower/conv_1", "branch7x7_2"), ("tower/conv_2", "branch7x7_3"),
        ("tower_1/conv", "branch7x7dbl_1"), ("tower_1/conv_1", "branch7x7dbl_2"), ("tower_1/conv_2", "branch7x7dbl_3"),
        ("tower_1/conv_3", "branch7x7dbl_4"), ("tower_1/conv_4", "branch7x7dbl_5"),
        ("tower_2/conv", "branch_pool"),
    ], &["Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"]),
    (&[
        ("tower/conv", "branch3x3_1"), ("tower/conv_1", "branch3x3_2"),
        ("tower_1/conv", "branch7x7x3_1"), ("tower_1/conv_1", "branch7x7x3_2"),
        ("tower_1/conv_2", "branch7x7x3_3"), ("tower_1/conv_3", "branch7x7x3_4"),
    ], &["Mixed_7a"]),
    (&[
        ("conv", "branch1x1"),
        ("tower/conv", "branch3x3_1"), ("tower/mixed/conv", "branch3x3_2a"), ("tower/mixed/conv_1", "branch3x3_2b"),
        ("tower_1/conv", "branch3x3dbl_1"), ("tower_1/conv_1", "branch3x3dbl_2"),
        ("tower_1/mixed/conv", "branch3x3dbl_3a"), ("tower_1/mixed/conv_1", "branch3x3dbl_3b"),
        ("tower_2/conv", "branch_pool"),
    ], &["Mixed_7b", "Mixed_7c"]),
];

/// The parts of a unit: in the graph, and as the other files name them.
const PARTS: [(&str, &str); 5] = [
    ("conv2d_params", "conv.weight"),
    ("batchnorm/gamma", "bn.weight"),
    ("batchnorm/beta", "bn.bias"),
    ("batchnorm/moving_mean", "bn.running_mean"),
    ("batchnorm/moving_variance", "bn.running_var"),
];

/// Whether bytes begin as a `GraphDef` does: a first field that is a message, and no header in JSON, whose length
/// may look the same.
pub(super) fn is_graph(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x0a) && bytes.get(8) != Some(&b'{')
}

/// The parameters of the network, under the names and in the layout of the other released files.
///
/// Constants of other types than floats, and scalars, which belong to the resampling of images, are passed over.
///
/// # Errors
/// If the bytes are no graph, or a constant contradicts itself. Whether the parameters are all there is for the
/// module to say that they are bound to.
pub(super) fn parameters(path: &Path, bytes: &[u8]) -> Result<NamedTensors, WeightsError> {
    let damaged = |reason| WeightsError::Damaged { path: path.into(), reason };
    let graph = GraphDef::decode(bytes).map_err(|error| {
        damaged(format!("no TensorFlow graph: {}", error.to_string().trim_end()))
    })?;
    let names = names();
    let mut tensors = NamedTensors::new();
    for NodeDef { name, op, attr } in &graph.node {
        let Some(tensor) = attr.get("value").and_then(|value| value.tensor.as_ref()) else {
            continue;
        };
        let shape = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
        if op != "Const" || tensor.dtype != FLOAT || shape.is_empty() {
            continue;
        }
        let (values, shape) =
            tensor.values().map_err(|problem| damaged(format!("constant {name} {problem}")))?;
        let known = names.get(name.as_str());
        let data = match (known, &shape[..]) {
            (Some(_), &[height, width, c_in, c_out]) => {
                let values = output_first(&values, c_out);
                let values = values.chunks_exact(height * width * c_in);
                let values = values.flat_map(|of_output| output_first(of_output, c_in)).collect();
                TensorData::new(values, [c_out, c_in, height, width])
            }
            (Some(name), &[features, classes]) if name == "fc.weight" => {
                TensorData::new(output_first(&values, classes), [classes, features])
            }
            _ => TensorData::new(values, shape),
        };
        // A constant that is no parameter keeps its name, by which it is refused.
        tensors.insert(known.unwrap_or(name), data);
    }
    // A norm that does not scale has a constant all the same, which the graph does not use.
    for NodeDef { name, op, attr } in &graph.node {
        let scales = attr.get("scale_after_normalization").and_then(|value| value.b);
        if op == "BatchNormWithGlobalNormalization"
            && scales != Some(true)
            && let Some(name) = names.get(format!("{name}/gamma").as_str())
            && let Some(gamma) = tensors.remove(name)
        {
            tensors.insert(name, TensorData::ones::<f32, _>(gamma.shape));
        }
    }
    Ok(tensors)
}

/// What the other files call a constant.
fn names() -> HashMap<String, String> {
    let stem = STEM.map(|(graph, unit)| (graph.to_owned(), unit.to_owned()));
    let blocks =
        BLOCKS.iter().flat_map(|(units, blocks)| blocks.iter().map(move |block| (units, block)));
    let inside = blocks.enumerate().flat_map(|(i, (units, block))| {
        let mixed = if i == 0 { "mixed".to_owned() } else { format!("mixed_{i}") };
        units
            .iter()
            .map(move |(graph, unit)| (format!("{mixed}/{graph}"), format!("{block}.{unit}")))
    });
    let parts = stem.into_iter().chain(inside).flat_map(|(graph, unit)| {
        PARTS.map(|(part, theirs)| (format!("{graph}/{part}"), format!("{unit}.{theirs}")))
    });
    let classifier = [("softmax/weights", "fc.weight"), ("softmax/biases", "fc.bias")];
    parts.chain(classifier.map(|(graph, name)| (graph.to_owned(), name.to_owned()))).collect()
}

/// Values of which the last of some dimensions, of `n`, becomes the first.
fn output_first(values: &[f32], n: usize) -> Vec<f32> {
    (0..n).flat_map(|i| values.iter().skip(i).step_by(n)).copied().collect()
}

impl TensorProto {
    /// The values and the shape.
    fn values(&self) -> Result<(Vec<f32>, Vec<usize>), String> {
        let dims = self.shape.iter().flat_map(|shape| &shape.dim);
        let shape: Vec<usize> = dims
            .map(|dim| usize::try_from(dim.size).map_err(|_| format!("has a side of {}", dim.size)))
            .collect::<Result<_, _>>()?;
        let n = shape.iter().try_fold(1usize, |n, side| n.checked_mul(*side));
        let n = n.ok_or("is too large")?;
        let values: Vec<f32> = match (&self.content[..], &self.floats[..]) {
            // One value stands for all.
            ([], &[value]) if n <= MOST_REPEATED => vec![value; n],
            ([], floats) => floats.to_vec(),
            (content, _) => content
                .chunks(4)
                .map_while(|bytes| Some(f32::from_le_bytes(bytes.try_into().ok()?)))
                .collect(),
        };
        match values.len() == n {
            true => Ok((values, shape)),
            false => Err(format!("has {} values, its shape {n}", values.len())),
        }
    }
}
