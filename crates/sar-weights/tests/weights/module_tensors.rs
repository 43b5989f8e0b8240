//! Modules written one parameter at a time.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;

use burn::module::Module;
use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use burn_flex::Flex;
use sar_weights::{
    Layout, ModuleTensors, NamedTensors, Target, WeightsError, collect, write_weights,
};

type B = Flex;

const LAYOUT: Layout = Layout { renames: &[("inner", "mlp.fc1")], ignored: &[] };

#[derive(Module, Debug)]
struct Net<B: Backend> {
    inner: Linear<B>,
    norm: LayerNorm<B>,
    outer: Linear<B>,
}

fn net() -> Net<B> {
    let device = Default::default();
    Net {
        inner: LinearConfig::new(3, 2).init(&device),
        norm: LayerNormConfig::new(2).init(&device),
        outer: LinearConfig::new(2, 2).with_bias(false).init(&device),
    }
}

#[test]
fn one_at_a_time_is_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, streamed] = ["whole", "streamed"].map(|name| folder.path().join(name));
    let (model, average) = (net(), net());
    let metadata = BTreeMap::from([("step".to_owned(), "7".to_owned())]);

    let mut both = NamedTensors::new();
    for (prefix, module) in [("model.", &model), ("average.", &average)] {
        for (name, data) in collect(module, &LAYOUT) {
            both.insert(format!("{prefix}{name}"), data);
        }
    }
    both.insert("task.count", TensorData::from([3i64]));
    *both.metadata_mut() = metadata.clone();

    let model = ModuleTensors::new("model.", &model, &LAYOUT);
    let average = ModuleTensors::new("average.", &average, &LAYOUT);
    let names: Vec<&str> = model.infos().iter().map(|info| info.name.as_str()).collect();
    let expected = ["mlp.fc1.weight", "mlp.fc1.bias", "norm.weight", "norm.bias", "outer.weight"];
    assert_eq!(names, expected.map(|name| format!("model.{name}")));
    assert_eq!(model.infos()[0].shape, [2, 3]);

    let mut infos = [model.infos(), average.infos()].concat();
    infos.extend(both.infos().into_iter().filter(|info| info.name == "task.count"));
    let n_read = Cell::new(0);
    let read = |name: &str| -> Result<_, WeightsError> {
        n_read.set(n_read.get() + 1);
        Ok(match model.read(name).or_else(|| average.read(name)) {
            Some(data) => Cow::Owned(data),
            None => Cow::Borrowed(both.get(name).unwrap()),
        })
    };
    for (target, write_whole) in [
        (Target::Safetensors, NamedTensors::write_safetensors as fn(&_, &_) -> _),
        (Target::Pth { root: "" }, |named: &NamedTensors, path: &_| named.write_pth(path, "")),
    ] {
        write_whole(&both, &whole).unwrap();
        n_read.set(0);
        write_weights(&streamed, target, &infos, &metadata, read).unwrap();
        assert_eq!(n_read.get(), infos.len());
        assert!(fs::read(&whole).unwrap() == fs::read(&streamed).unwrap(), "{target:?}");
    }
    assert!(model.read("average.norm.bias").is_none() && model.read("norm.bias").is_none());
}

#[test]
fn a_source_fails_with_its_own_error() {
    #[derive(Debug)]
    enum Failure {
        File,
        Source,
    }
    impl From<WeightsError> for Failure {
        fn from(_: WeightsError) -> Self {
            Self::File
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let net = net();
    let model = ModuleTensors::new("", &net, &LAYOUT);
    let write = |path: &str| {
        write_weights(
            &folder.path().join(path),
            Target::Safetensors,
            model.infos(),
            &BTreeMap::new(),
            |_| Err(Failure::Source),
        )
    };
    assert!(matches!(write("file"), Err(Failure::Source)));
    assert!(matches!(write("no/folder/file"), Err(Failure::File)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
