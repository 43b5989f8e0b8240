//! Files that hold something else than a network are refused, and what they lack or have too much is named.

use std::path::Path;

use burn::tensor::TensorData;
use burn_flex::Flex;
use sar_features::{EfficientNetLite0, Inception, Lpips, Vgg16, WEIGHTS};
use sar_weights::{NamedTensors, WeightsError, WeightsFile};

mod files;

use files::{bytes, inception_graph, inception_weights, lpips_weights, vgg_weights};

/// Takes a tensor away, adds one, and changes the shape of one, each of which has to be refused.
fn check<T>(
    whole: &NamedTensors,
    [first, other]: [&str; 2],
    load: impl Fn(Vec<u8>) -> Result<T, WeightsError>,
) {
    load(bytes(whole)).map(drop).unwrap();
    let refused = |tensors: &NamedTensors| match load(bytes(tensors)).map(drop) {
        Err(WeightsError::Mismatch { missing, unused, misfits, .. }) => {
            (missing, unused, misfits.into_iter().map(|misfit| misfit.name).collect::<Vec<_>>())
        }
        result => panic!("{result:?}"),
    };
    let none = Vec::<String>::new;
    for name in [first, other] {
        let mut less = whole.clone();
        less.remove(name).unwrap();
        let (missing, unused, _) = refused(&less);
        assert!(missing.contains(&name.to_owned()), "{name} missing: {missing:?}, {unused:?}");
    }
    let mut more = whole.clone();
    more.insert("extra.weight", TensorData::from([1f32]));
    assert_eq!(refused(&more), (none(), vec!["extra.weight".to_owned()], none()));
    for name in [first, other] {
        let mut misshapen = whole.clone();
        let data = misshapen.remove(name).unwrap();
        let n = data.num_elements();
        misshapen.insert(name, TensorData::new(data.iter::<f32>().collect(), [1, n]));
        assert_eq!(refused(&misshapen), (none(), none(), vec![name.to_owned()]));
    }
    let mut not_finite = whole.clone();
    let data = not_finite.remove(other).unwrap();
    let mut values: Vec<f32> = data.iter().collect();
    values[0] = f32::NAN;
    not_finite.insert(other, TensorData::new(values, data.shape));
    let result = load(bytes(&not_finite)).map(drop);
    assert!(matches!(result, Err(WeightsError::NotFinite { .. })), "{result:?}");
}

fn released() -> NamedTensors {
    WeightsFile::from_bytes("weights", WEIGHTS.to_vec()).unwrap().read_all().unwrap()
}

#[test]
fn efficientnet() {
    let load = |bytes| EfficientNetLite0::<Flex>::from_bytes(bytes, &Default::default());
    check(&released(), ["_conv_stem.weight", "_blocks.7._bn1.running_var"], load);
}

/// What the package's own file holds beside the network.
#[test]
fn the_classifier_and_counters_of_efficientnet_are_passed_over() {
    let mut whole = released();
    whole.insert("_fc.weight", TensorData::from([[1f32]]));
    whole.insert("_fc.bias", TensorData::from([1f32]));
    whole.insert("_blocks.0._bn1.num_batches_tracked", TensorData::from([7i64]));
    EfficientNetLite0::<Flex>::from_bytes(bytes(&whole), &Default::default()).unwrap();
}

#[test]
fn vgg() {
    let mut whole = vgg_weights(|shape, _, _| vec![0.5; shape.iter().product()]);
    whole.insert("classifier.6.bias", TensorData::from([1f32]));
    let load = |bytes| Vgg16::<Flex>::from_bytes(bytes, &Default::default());
    check(&whole, ["features.0.weight", "features.28.bias"], load);
}

#[test]
fn lpips() {
    let vgg = bytes(&vgg_weights(|shape, _, _| vec![0.5; shape.iter().product()]));
    let whole = lpips_weights(|shape, _| vec![0.5; shape.iter().product()]);
    let load = |bytes| Lpips::<Flex>::from_bytes(vgg.clone(), bytes, &Default::default());
    check(&whole, ["lin0.model.1.weight", "lin4.model.1.weight"], load);
}

#[test]
fn inception() {
    let mut whole = inception_weights(|shape, _, _| vec![0.5; shape.iter().product()]);
    // What files hold beside the network.
    whole.insert("Mixed_5b.branch1x1.bn.num_batches_tracked", TensorData::from([7i64]));
    whole.insert("AuxLogits.conv1.bn.running_var", TensorData::from([1f32]));
    whole.insert("AuxLogits.fc.weight", TensorData::from([[1f32]]));
    let path = Path::new("inception.pth");
    let load = |bytes| Inception::<Flex>::from_bytes(path, bytes, &Default::default());
    check(&whole, ["Conv2d_1a_3x3.conv.weight", "Mixed_6d.branch7x7dbl_4.bn.running_var"], load);
}

#[test]
fn a_graph_of_inception() {
    let whole = inception_weights(|shape, _, _| vec![0.5; shape.iter().product()]);
    let load = |bytes: &[u8]| {
        Inception::<Flex>::from_bytes(Path::new("graph.pb"), bytes.to_vec(), &Default::default())
    };
    let graph = inception_graph(&whole);
    load(&graph).unwrap();
    let mut less = whole.clone();
    less.remove("Mixed_7c.branch3x3dbl_3a.bn.running_mean").unwrap();
    match load(&inception_graph(&less)).map(drop) {
        Err(WeightsError::Mismatch { missing, unused, .. }) => {
            assert_eq!(missing, ["Mixed_7c.branch3x3dbl_3a.bn.running_mean"]);
            assert_eq!(unused, Vec::<String>::new());
        }
        result => panic!("{result:?}"),
    }
    let error = load(&graph[..graph.len() / 2]).map(drop).unwrap_err().to_string();
    assert!(error.starts_with("graph.pb: no TensorFlow graph") && !error.contains('\n'), "{error}");
}
