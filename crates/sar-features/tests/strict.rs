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

/// All names and shapes are right.
#[test]
fn weights_of_other_trainings_are_no_lpips() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, tensors: &NamedTensors| {
        let path = folder.path().join(name);
        tensors.write_safetensors(&path).unwrap();
        path
    };
    let heads = |name: &str, sums: [f32; 5]| {
        let values = |shape: &[usize], seed: f64| {
            let n = shape.iter().product::<usize>();
            vec![sums[(seed - 100.0) as usize] / n as f32; n]
        };
        write(name, &lpips_weights(values))
    };
    let vgg = |name: &str, first: [f32; 3]| {
        let values = |shape: &[usize], seed: f64, _: f64| {
            let mut values = vec![0.01; shape.iter().product()];
            if seed == 0.0 {
                values[..3].copy_from_slice(&first);
            }
            values
        };
        write(name, &vgg_weights(values))
    };
    let open = |vgg: &Path, heads: &Path| {
        let lpips = Lpips::<Flex>::open(vgg, heads, &Default::default());
        lpips.map(drop).map_err(|error| error.to_string())
    };
    // As bf16 rounds torchvision's.
    let rounded = vgg("copy.safetensors", [-71.0 / 128.0, 73.0 / 512.0, 135.0 / 256.0]);
    let released = heads("heads.pth", [6.926, 8.8583, 17.515, 51.5213, 47.0349]);
    assert_eq!(open(&rounded, &released), Ok(()));
    // What the file of version 0.0 adds up to.
    let older = heads("v0.0.pth", [3.6416, 1.9601, 1.1231, 20.1063, 25.6896]);
    let torchvision = folder.path().join("vgg16-397923af.pth");
    std::fs::copy(&rounded, &torchvision).unwrap();
    let other = vgg("other.pth", [0.25, 0.125, 0.5]);
    for (vgg, heads, said) in [
        (&rounded, &older, "v0.0.pth: the sum of lin0 is 3.6416, and 6.9260"),
        (&other, &released, "other.pth: features.0.weight[0, 0, 0, 0] is 0.2500, and -0.5537"),
        (&torchvision, &released, "vgg16-397923af.pth: its SHA-256 begins with"),
    ] {
        let error = open(vgg, heads).unwrap_err();
        assert!(error.contains(said) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn inception() {
    let mut whole = inception_weights(|shape, _, _| vec![0.5; shape.iter().product()]);
    // What files hold beside the network.
    whole.insert("Mixed_5b.branch1x1.bn.num_batches_tracked", TensorData::from([7i64]));
    let path = Path::new("inception.pth");
    let load = |bytes| Inception::<Flex>::from_bytes(path, bytes, &Default::default());
    check(&whole, ["Conv2d_1a_3x3.conv.weight", "Mixed_6d.branch7x7dbl_4.bn.running_var"], load);
    // As torchvision's training has it, whose weights are others.
    whole.insert("AuxLogits.fc.weight", TensorData::from([[1f32]]));
    match load(bytes(&whole)).map(drop) {
        Err(WeightsError::Mismatch { unused, .. }) => assert_eq!(unused, ["AuxLogits.fc.weight"]),
        result => panic!("{result:?}"),
    }
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
