//! Safetensors files: round trips, and what is said of bad ones.

use std::fs;
use std::path::Path;

use crate::support::{every_type, message, parity, read};
use burn::tensor::{BoolStore, DType, TensorData};
use proptest::prelude::*;
use sar_weights::{NamedTensors, WeightsError};

#[test]
fn a_round_trip_keeps_every_bit_and_equal_weights_give_equal_files() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["weights.1", "weights.2"].map(|name| folder.path().join(name));
    let named = every_type();
    named.write_safetensors(&first).unwrap();
    let back = NamedTensors::read(&first).unwrap();
    assert_eq!(back, named);
    assert_eq!(back.origin(), Some(first.as_path()));
    back.write_safetensors(&second).unwrap();
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

    // The reference implementation reads the same, and every tensor is aligned for its elements.
    let bytes = fs::read(&first).unwrap();
    let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), named.len());
    for (name, data) in named.iter() {
        let view = reference.tensor(name).unwrap();
        assert_eq!((view.data(), view.shape()), (data.as_bytes(), &data.shape[..]), "{name}");
        let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(start % data.dtype.size(), 0, "{name}");
    }
}

#[test]
fn a_checkpoint_becomes_a_safetensors_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let named = NamedTensors::read(&parity("flexvar_shared_adaln/backbone.pth")).unwrap();
    named.write_safetensors(&path).unwrap();
    assert_eq!(NamedTensors::read_safetensors(&path).unwrap(), named);
}

#[test]
fn an_empty_file_of_weights_is_a_file_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    NamedTensors::new().write_safetensors(&path).unwrap();
    assert!(NamedTensors::read(&path).unwrap().is_empty());
}

#[test]
fn writing_replaces_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let files = || fs::read_dir(folder.path()).unwrap().count();
    every_type().write_safetensors(&path).unwrap();

    let mut reserved = NamedTensors::new();
    reserved.insert("__metadata__", TensorData::from([1f32]));
    let error = message(reserved.write_safetensors(&path));
    assert!(error.starts_with("cannot write tensor __metadata__: the name is reserved"), "{error}");

    let mut wide = NamedTensors::new();
    let bools = TensorData::from([1u32]);
    wide.insert("mask", TensorData { dtype: DType::Bool(BoolStore::U32), ..bools });
    let error = message(wide.write_safetensors(&path));
    assert!(error.contains("tensor mask: safetensors has no element type bool(u32)"), "{error}");
    assert_eq!(NamedTensors::read(&path).unwrap(), every_type());

    // A file cannot replace a folder; what was written so far is taken away again.
    let taken = folder.path().join("weights.d");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("x"), "").unwrap();
    message(every_type().write_safetensors(&taken));
    assert_eq!(files(), 2);

    let nowhere = folder.path().join("not/here/weights");
    let error = message(every_type().write_safetensors(&nowhere));
    assert!(error.contains("there is no folder") && error.contains("not/here"), "{error}");
    let error = every_type().write_safetensors(Path::new("/")).unwrap_err();
    assert!(matches!(error, WeightsError::Write { .. }), "{error}");

    NamedTensors::new().write_safetensors(&path).unwrap();
    assert!(NamedTensors::read(&path).unwrap().is_empty());
    assert_eq!(files(), 2);
}

#[test]
fn truncated_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    every_type().write_safetensors(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    for end in 0..whole.len() {
        message(read(&whole[..end]));
    }
    let error = message(read(&whole[..whole.len() - 1]));
    assert!(error.starts_with("its header promises"), "{error}");
    assert!(message(read(&[&whole[..], b"x"].concat())).starts_with("its header promises"));
}

#[test]
fn bad_headers_are_errors() {
    let check = |header: &str, n_bytes: usize, expected: &str| {
        let mut content = (header.len() as u64).to_le_bytes().to_vec();
        content.extend(header.bytes());
        content.resize(content.len() + n_bytes, 2);
        let error = message(read(&content));
        assert!(error.contains(expected), "{error}");
    };
    check("{", 0, "its header: EOF while parsing");
    check("[]", 0, "its header: invalid type");
    let one = |dtype: &str, shape: &str, start: u64, end: u64| {
        let offsets = format!("\"data_offsets\":[{start},{end}]");
        format!("{{\"w\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},{offsets}}}}}")
    };
    check(&one("F32", "[2]", 0, 4), 4, "its header:");
    check(&one("F32", "[2]", 4, 12), 12, "its header:");
    check(&one("F32", "[4611686018427387904]", 0, 0), 0, "its header:");
    check(&one("F32", "[1000000000000]", 0, 4_000_000_000_000), 8, "promises 4000000000086 bytes");
    check(&one("F33", "[1]", 0, 4), 4, "its header: unknown variant `F33`");
    check(&one("BOOL", "[4]", 0, 4), 4, "tensor w has bools other than 0 and 1");
    let length = [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat();
    assert!(message(read(&length)).contains("a header of 1099511627776 bytes in a file of 10"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_floats_survive(tensors in prop::collection::btree_map(
        "[a-z.]{0,9}", prop::collection::vec(any::<u32>(), 0..50), 0..9,
    )) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        let mut named = NamedTensors::new();
        for (name, bits) in tensors {
            let n = bits.len();
            named.insert(name, TensorData::new(bits.into_iter().map(f32::from_bits).collect(), [n]));
        }
        named.write_safetensors(&path).unwrap();
        prop_assert_eq!(NamedTensors::read(&path).unwrap(), named);
    }
}
