//! Weights into modules and out of them.

use burn::backend::Autodiff;
use burn::module::{Module, Param, ParamId};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, GroupNorm, GroupNormConfig, LayerNorm,
    LayerNormConfig, Linear, LinearConfig,
};
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Int, Tensor, TensorData, bf16, f16};
use burn_flex::Flex;
use sar_weights::{Layout, NamedTensors, WeightsError, bind, collect, fill, parameters};

type B = Flex;

const LAYOUT: Layout = Layout {
    renames: &[("first", "pos_start"), ("ada_lin", "ada_lin.1"), ("shell", "")],
    ignored: &["zero_k_bias", "attn.mask"],
};

#[derive(Module, Debug)]
enum Head<B: Backend> {
    Dense(Linear<B>),
    Conv(Conv2d<B>),
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    ada_lin: Linear<B>,
    norm: LayerNorm<B>,
    shortcut: Option<Conv2d<B>>,
}

#[derive(Module, Debug)]
struct Shell<B: Backend> {
    conv: Conv2d<B>,
}

#[derive(Module, Debug)]
struct Model<B: Backend> {
    first: Param<Tensor<B, 3>>,
    embed: Embedding<B>,
    shell: Shell<B>,
    groups: GroupNorm<B>,
    batches: BatchNorm<B>,
    blocks: Vec<Block<B>>,
    head: Head<B>,
    n_calls: usize,
}

impl<B: Backend> Model<B> {
    fn new(device: &B::Device) -> Self {
        let conv = |channels| Conv2dConfig::new(channels, [3, 1]).init(device);
        let block = |shortcut| Block {
            ada_lin: LinearConfig::new(2, 3).init(device),
            norm: LayerNormConfig::new(3).init(device),
            shortcut,
        };
        Self {
            first: Param::from_tensor(Tensor::random([1, 1, 4], Distribution::Default, device)),
            embed: EmbeddingConfig::new(5, 4).init(device),
            shell: Shell { conv: conv([2, 6]) },
            groups: GroupNormConfig::new(2, 6).init(device),
            batches: BatchNormConfig::new(6).init(device),
            blocks: vec![block(Some(conv([1, 1]))), block(None)],
            head: Head::Dense(LinearConfig::new(3, 2).with_bias(false).init(device)),
            n_calls: 0,
        }
    }
}

/// Names and shapes of the whole model, in the order in which it is visited.
const EXPECTED: [(&str, &[usize]); 20] = [
    ("pos_start", &[1, 1, 4]),
    ("embed.weight", &[5, 4]),
    ("conv.weight", &[6, 2, 3, 1]),
    ("conv.bias", &[6]),
    ("groups.weight", &[6]),
    ("groups.bias", &[6]),
    ("batches.weight", &[6]),
    ("batches.bias", &[6]),
    ("batches.running_mean", &[6]),
    ("batches.running_var", &[6]),
    ("blocks.0.ada_lin.1.weight", &[3, 2]),
    ("blocks.0.ada_lin.1.bias", &[3]),
    ("blocks.0.norm.weight", &[3]),
    ("blocks.0.norm.bias", &[3]),
    ("blocks.0.shortcut.weight", &[1, 1, 3, 1]),
    ("blocks.0.shortcut.bias", &[1]),
    ("blocks.1.ada_lin.1.weight", &[3, 2]),
    ("blocks.1.ada_lin.1.bias", &[3]),
    ("blocks.1.norm.weight", &[3]),
    ("blocks.1.norm.bias", &[3]),
];

#[test]
fn parameters_have_the_names_and_shapes_of_the_file() {
    let model = Model::<B>::new(&Default::default());
    let listed = parameters(&model, &LAYOUT);
    let found: Vec<_> = listed.iter().map(|p| (p.name.as_str(), p.shape.as_slice())).collect();
    assert_eq!(found[..20], EXPECTED);
    assert_eq!(found[20..], [("head.weight", &[2, 3][..])], "the variant is not in the name");
    assert_eq!(listed[0].id, model.first.id);
    assert_eq!(listed[1].id, model.embed.weight.id);
    let collected = collect(&model, &LAYOUT);
    for parameter in &listed {
        assert_eq!(collected.get(&parameter.name).unwrap().shape[..], parameter.shape[..]);
    }
    assert_eq!(collected.len(), listed.len());
}

#[test]
fn a_round_trip_changes_the_values_and_nothing_else() {
    let device = Default::default();
    let (source, target) = (Model::<B>::new(&device), Model::<B>::new(&device));
    let weights = collect(&source, &LAYOUT);
    let before = parameters(&target, &LAYOUT);
    assert_ne!(collect(&target.clone(), &LAYOUT), weights);
    let target = bind(target, weights.clone(), &LAYOUT).unwrap();
    assert_eq!(collect(&target, &LAYOUT), weights);
    assert_eq!(parameters(&target, &LAYOUT), before);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    weights.write_safetensors(&path).unwrap();
    let target = bind(Model::<B>::new(&device), NamedTensors::read(&path).unwrap(), &LAYOUT);
    assert_eq!(collect(&target.unwrap(), &LAYOUT), weights);
}

#[test]
fn a_linear_is_transposed() {
    let mut weights = NamedTensors::new();
    // torch's [out = 2, in = 3]: y = W x + b
    weights.insert("weight", TensorData::from([[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]]));
    weights.insert("bias", TensorData::from([0.5f32, 0.0]));
    let linear: Linear<B> = LinearConfig::new(3, 2).init(&Default::default());
    let linear = bind(linear, weights.clone(), &Layout::default()).unwrap();
    let x = Tensor::<B, 2>::from_data([[1.0, 10.0, 100.0]], &Default::default());
    linear.forward(x).into_data().assert_eq(&TensorData::from([[321.5f32, 654.0]]), true);
    assert_eq!(collect(&linear, &Layout::default()), weights);

    // A square one, whose shape says nothing.
    let mut weights = NamedTensors::new();
    weights.insert("weight", TensorData::from([[1f32, 2.0], [3.0, 4.0]]));
    let linear: Linear<B> = LinearConfig::new(2, 2).with_bias(false).init(&Default::default());
    let linear = bind(linear, weights, &Layout::default()).unwrap();
    let expected = TensorData::from([[1f32, 3.0], [2.0, 4.0]]);
    linear.weight.val().into_data().assert_eq(&expected, true);
}

#[test]
fn an_embedding_is_not_transposed() {
    let mut weights = NamedTensors::new();
    weights.insert("weight", TensorData::from([[1f32, 2.0], [3.0, 4.0]]));
    let embedding: Embedding<B> = EmbeddingConfig::new(2, 2).init(&Default::default());
    let embedding = bind(embedding, weights, &Layout::default()).unwrap();
    let expected = TensorData::from([[1f32, 2.0], [3.0, 4.0]]);
    embedding.weight.val().into_data().assert_eq(&expected, true);
}

#[test]
fn all_differences_are_one_error_and_change_nothing() {
    let model = Model::<B>::new(&Default::default());
    let before = collect(&model, &LAYOUT);
    let mut weights = before.clone();
    weights.remove("pos_start");
    weights.remove("conv.bias");
    weights.insert("blocks.2.norm.weight", TensorData::from([1f32]));
    weights.insert("another", TensorData::from([1f32]));
    weights.insert("head.weight", TensorData::new(vec![0f32; 6], [3, 2]));
    weights.insert("conv.weight", TensorData::new(vec![0f32; 36], [36]));
    weights.insert("groups.bias", TensorData::from([1i64; 6]));
    let error = bind(model.clone(), weights, &LAYOUT).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the weights: do not fit the module: 2 missing: conv.bias, pos_start; \
         2 unused: another, blocks.2.norm.weight; 3 of another shape or type: \
         conv.weight (expected float [6, 2, 3, 1], found f32 [36]), \
         groups.bias (expected float [6], found i64 [6]), \
         head.weight (expected float [2, 3], found f32 [3, 2]); \
         check that the weights belong to this configuration"
    );
    assert_eq!(collect(&model, &LAYOUT), before);
}

#[test]
fn buffers_are_passed_over() {
    let model = Model::<B>::new(&Default::default());
    let mut file = collect(&model, &LAYOUT);
    for buffer in ["zero_k_bias", "blocks.0.attn.zero_k_bias", "blocks.0.attn.mask"] {
        file.insert(buffer, TensorData::from([1i64]));
    }
    assert!(bind(model.clone(), file.clone(), &LAYOUT).is_ok());
    file.insert("mask", TensorData::from([1i64]));
    let error = bind(model.clone(), file, &LAYOUT).unwrap_err();
    let WeightsError::Mismatch { missing, unused, misfits, .. } = error else { panic!() };
    assert_eq!((missing.len(), unused.as_slice(), misfits.len()), (0, &["mask".into()][..], 0));
}

#[test]
fn floats_of_any_width_become_f32() {
    let norm = || LayerNormConfig::new(2).init::<B>(&Default::default());
    let values = [0.5, -3.0];
    for data in [
        TensorData::from(values),
        TensorData::from(values.map(|x| x as f32)),
        TensorData::from(values.map(f16::from_f64)),
        TensorData::from(values.map(bf16::from_f64)),
    ] {
        let mut weights = NamedTensors::new();
        weights.insert("weight", data.clone());
        weights.insert("bias", data);
        let norm = bind(norm(), weights, &Layout::default()).unwrap();
        let expected = TensorData::from([0.5f32, -3.0]);
        norm.gamma.val().into_data().assert_eq(&expected, true);
        norm.beta.unwrap().val().into_data().assert_eq(&expected, true);
    }
}

#[test]
fn lazy_parameters_are_never_initialized() {
    let device = Default::default();
    let lazy = |shape: [usize; 2]| -> Param<Tensor<B, 2>> {
        let initialize = |_: &_, _| panic!("the initializer ran");
        Param::uninitialized(ParamId::new(), initialize, device, true, shape.into())
    };
    let linear = Linear::<B> { weight: lazy([3, 2]), bias: None };
    let id = linear.weight.id;
    assert_eq!(parameters(&linear, &Layout::default())[0].shape, [2, 3]);
    assert!(bind(linear.clone(), NamedTensors::new(), &Layout::default()).is_err());

    let mut weights = NamedTensors::new();
    weights.insert("weight", TensorData::from([[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]]));
    let linear = bind(linear, weights, &Layout::default()).unwrap();
    assert_eq!(linear.weight.id, id);
    assert_eq!(linear.weight.val().dims(), [3, 2]);
}

#[test]
fn gradient_settings_stay() {
    type A = Autodiff<B>;
    let device = Default::default();
    let mut model = Model::<A>::new(&device);
    model.embed = model.embed.no_grad();
    let weights = collect(&model, &LAYOUT);
    let model = bind(model, weights, &LAYOUT).unwrap();
    assert!(model.first.is_require_grad());
    assert!(model.blocks[0].ada_lin.weight.is_require_grad());
    assert!(!model.embed.weight.is_require_grad());

    // What was bound is a leaf that gets gradients.
    let weight = model.blocks[0].ada_lin.weight.val();
    let gradients = (weight.clone() * 2.0).sum().backward();
    let expected = TensorData::from([[2f32; 3]; 2]);
    weight.grad(&gradients).unwrap().into_data().assert_eq(&expected, true);
}

#[test]
fn filling_goes_by_name_and_shape_in_the_order_of_the_module() {
    let model = Model::<B>::new(&Default::default());
    let listed = parameters(&model, &LAYOUT);
    let mut asked = Vec::new();
    let model = fill(model, &LAYOUT, |name, shape| {
        asked.push((name.to_owned(), shape.to_vec()));
        (0..shape.iter().product()).map(|x| (x + asked.len()) as f32).collect()
    });
    let expected: Vec<_> = listed.into_iter().map(|p| (p.name, p.shape)).collect();
    assert_eq!(asked, expected);
    let filled = collect(&model, &LAYOUT);
    let values = |name: &str| filled.get(name).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(values("pos_start"), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values("head.weight"), [21.0, 22.0, 23.0, 24.0, 25.0, 26.0]);
}

#[test]
fn the_error_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    NamedTensors::new().write_safetensors(&path).unwrap();
    let linear: Linear<B> = LinearConfig::new(2, 2).init(&Default::default());
    let error = crate::support::message(bind(
        linear,
        NamedTensors::read(&path).unwrap(),
        &Layout::default(),
    ));
    assert!(error.starts_with("do not fit the module: 2 missing: bias, weight;"), "{error}");
}

#[test]
#[should_panic(expected = "two parameters of the module have the name w.weight")]
fn two_parameters_of_one_name_are_a_mistake() {
    const COLLIDING: Layout = Layout { renames: &[("a", "w"), ("b", "w")], ignored: &[] };
    #[derive(Module, Debug)]
    struct Pair<B: Backend> {
        a: Embedding<B>,
        b: Embedding<B>,
    }
    let embedding = || EmbeddingConfig::new(2, 2).init(&Default::default());
    parameters(&Pair::<B> { a: embedding(), b: embedding() }, &COLLIDING);
}

#[test]
#[should_panic(expected = "n_seen is an int parameter")]
fn an_int_parameter_is_a_mistake() {
    #[derive(Module, Debug)]
    struct Counter<B: Backend> {
        n_seen: Param<Tensor<B, 1, Int>>,
    }
    let n_seen = Tensor::from_data([1], &Default::default());
    let n_seen = Param::initialized(ParamId::new(), n_seen);
    collect(&Counter::<B> { n_seen }, &Layout::default());
}
