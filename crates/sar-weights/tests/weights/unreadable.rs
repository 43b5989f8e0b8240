//! Tensors that are there but cannot be read: named where they are wanted, and no harm elsewhere.

use burn::nn::{Linear, LinearConfig};
use burn::tensor::TensorData;
use burn_flex::Flex;
use sar_weights::{Layout, NamedTensors, WeightsFile, bind};

use crate::support::{f32s, fixture, message};

/// A safetensors file whose tensors follow each other: name, type, number of bytes.
fn safetensors(tensors: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, dtype, bytes) in tensors {
        let (start, n) = (data.len(), if *dtype == "F32" { bytes.len() / 4 } else { bytes.len() });
        data.extend(*bytes);
        let end = data.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":[{n}],"data_offsets":[{start},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

#[test]
fn in_files_of_torch() {
    for name in ["foreign.pth", "legacy_foreign.pth"] {
        let mut file = WeightsFile::open(&fixture(name)).unwrap();
        let listed: Vec<String> =
            file.unreadable().iter().map(|u| format!("{} is {}", u.name, u.what)).collect();
        let expected = [
            "array is a NumPy array",
            "complex is complex64",
            "fp8 is float8_e4m3fn",
            "quantized is quantized (qint8)",
            "sparse is sparse",
        ];
        assert_eq!(listed, expected, "{name}");
        assert_eq!(file.tensors().len(), 3);
        // Those between and behind them are found.
        file.read("middle").unwrap().assert_eq(&TensorData::from([3f32]), true);
        file.verify().unwrap();
        let error = file.read("fp8").unwrap_err().to_string();
        let expected = "tensor fp8 is float8_e4m3fn, which cannot be read; save it as a plain \
                        tensor of float32 or bfloat16";
        assert!(error.ends_with(expected) && error.contains(name), "{error}");
        assert!(file.check_readable(|name| name == "first").is_ok());
        let named = file.read_all().unwrap();
        assert_eq!(named.unreadable().len(), 5);
        named.get("last").unwrap().assert_eq(&TensorData::from([4f32]), true);
        named.get("first").unwrap().assert_eq(&TensorData::from([1f32, 2.0]), true);
    }
}

#[test]
fn in_safetensors_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let numbers = f32s([1.0, 2.0]);
    let content = safetensors(&[("a", "F8_E4M3", b"abcd"), ("b", "F32", &numbers)]);
    std::fs::write(&path, content).unwrap();
    let mut file = WeightsFile::open(&path).unwrap();
    assert_eq!(file.unreadable()[0].what, "F8_E4M3");
    let error = message(file.read("a"));
    assert!(error.starts_with("tensor a is F8_E4M3, which cannot be read; save it"), "{error}");
    let named = file.read_all().unwrap();
    assert_eq!((named.len(), named.unreadable().len()), (1, 1));
    named.get("b").unwrap().assert_eq(&TensorData::from([1f32, 2.0]), true);

    // A checksum is that of all bytes, and is compared although some are not read.
    let checked = |crc: u32| {
        let content = safetensors(&[("a", "F8_E4M3", b"abcd"), ("b", "F32", &numbers)]);
        let metadata = format!(r#"{{"__metadata__":{{"crc32":"{crc:08x}"}},"#);
        let header = [metadata.as_bytes(), &content[9..content.len() - 12]].concat();
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(&path, [&length[..], &header, b"abcd", &numbers].concat()).unwrap();
        NamedTensors::read(&path)
    };
    let crc = crc32fast::hash(&[b"abcd", &numbers[..]].concat());
    assert!(checked(crc).is_ok());
    let error = message(checked(crc ^ 1));
    assert!(error.starts_with("its checksum is"), "{error}");
}

#[test]
fn binding_names_what_is_wanted_and_unreadable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let linear = || -> Linear<Flex> { LinearConfig::new(2, 1).init(&Default::default()) };
    let layout = Layout::default();
    let numbers = f32s([1.0, 2.0]);
    let weight = |name: &'static str, dtype: &'static str| -> (&str, &str, &[u8]) {
        (name, dtype, if dtype == "F32" { &numbers[..4] } else { b"ab" })
    };
    let bound = |tensors: &[(&str, &str, &[u8])]| {
        std::fs::write(&path, safetensors(tensors)).unwrap();
        let named = NamedTensors::read(&path).unwrap();
        message(bind(linear(), named, &layout))
    };
    let error = bound(&[weight("bias", "F32"), weight("weight", "F8_E5M2")]);
    assert!(error.starts_with("tensor weight is F8_E5M2, which cannot be read;"), "{error}");
    let error = bound(&[weight("bias", "F8_E4M3"), weight("weight", "F8_E5M2")]);
    assert!(error.starts_with("tensor bias is F8_E4M3, which cannot be read, and 1 more"));
    // What lies elsewhere is not to blame.
    let error = bound(&[weight("bias", "F32"), weight("state.exp_avg", "F8_E5M2")]);
    assert!(error.starts_with("do not fit the module: 1 missing: weight"), "{error}");
    let error = bound(&[weight("bias", "F32"), weight("overweight", "F8_E5M2")]);
    assert!(error.starts_with("do not fit the module: 1 missing: weight"), "{error}");
}
