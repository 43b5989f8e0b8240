//! Writing `.pth` files, and conversions between the formats.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};

use crate::support::{every_type, message, parity};
use burn::tensor::{DType, TensorData, bf16, f16};
use proptest::prelude::*;
use sar_weights::{
    Checksum, Format, NamedTensors, Target, TensorInfo, WeightsError, WeightsFile, write_weights,
};
use zip::{CompressionMethod, ZipArchive};

/// Every element type that torch has a storage for.
fn torch_types() -> NamedTensors {
    let mut named = every_type();
    for name in ["u64", "u32", "u16"] {
        named.remove(name);
    }
    named
}

#[test]
fn a_round_trip_keeps_every_bit_and_equal_weights_give_equal_files() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["weights.1", "weights.2"].map(|name| folder.path().join(name));
    for root in ["", "model", "trainer.var_wo_ddp"] {
        torch_types().write_pth(&first, root).unwrap();
        torch_types().write_pth(&second, root).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());

        let back = NamedTensors::read(&first).unwrap();
        assert_eq!(back.origin(), Some(first.as_path()));
        if !root.is_empty() {
            assert!(back.names().all(|name| name.starts_with(&format!("{root}."))), "{back:?}");
        }
        assert_eq!(back.below(root), torch_types(), "{root}");
    }
}

#[test]
fn a_released_checkpoint_survives_every_way_through_the_formats() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for case in ["flexvar_tiny", "flexvar_shared_adaln", "var_tiny", "var_phi5"] {
        for file in ["tokenizer.pth", "backbone.pth"] {
            let released = NamedTensors::read(&parity(&format!("{case}/{file}"))).unwrap();
            released.write_safetensors(&path("weights.s")).unwrap();
            let named = NamedTensors::read(&path("weights.s")).unwrap();
            assert_eq!(named, released);
            named.write_pth(&path("weights.p"), "").unwrap();
            let named = NamedTensors::read(&path("weights.p")).unwrap();
            assert_eq!(named, released);
            named.write_safetensors(&path("weights.t")).unwrap();
            assert_eq!(fs::read(path("weights.s")).unwrap(), fs::read(path("weights.t")).unwrap());
        }
    }
}

#[test]
fn storages_are_stored_and_aligned_as_torch_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    torch_types().write_pth(&path, "model").unwrap();
    let mut archive = ZipArchive::new(Cursor::new(fs::read(&path).unwrap())).unwrap();
    assert_eq!(archive.file_names().next().unwrap().unwrap(), "archive/data.pkl");
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        assert_eq!(entry.compression(), CompressionMethod::Stored);
        assert_eq!(entry.data_start().unwrap() % 64, 0, "{:?}", entry.name());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        match entry.name().unwrap().as_ref() {
            "archive/byteorder" => assert_eq!(content, b"little"),
            "archive/version" => assert_eq!(content, b"3\n"),
            _ => {}
        }
    }
}

#[test]
fn what_torch_cannot_hold_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let check = |name: &str, data: TensorData, expected: &str| {
        let mut named = torch_types();
        named.insert(name, data);
        let error = message(named.write_pth(&path, ""));
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    };
    check("n", TensorData::from([1u32]), "cannot write tensor n: torch has no storage of u32");
    let long = "x".repeat(1024);
    check(&long, TensorData::from([1f32]), "cannot write tensor xxx");
    let ranks = TensorData::new(vec![1f32], vec![1; 65]);
    check("r", ranks, "cannot write tensor r: more than 64 dimensions");
}

/// The failure of a source of tensors.
fn source() -> WeightsError {
    WeightsError::Damaged { path: "source".into(), reason: "it ends".into() }
}

#[test]
fn writing_that_fails_half_way_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let info = |name: &str| TensorInfo { name: name.into(), dtype: DType::F32, shape: vec![2] };
    let tensors = [info("a"), info("b")];
    for target in [Target::Safetensors, Target::Pth { root: "" }] {
        fs::write(&path, "as it was").unwrap();
        let error = write_weights(&path, target, &tensors, &BTreeMap::new(), |name| match name {
            "a" => Ok(Cow::Owned(TensorData::from([1f32, 2.0]))),
            _ => Err(source()),
        });
        assert_eq!(error.unwrap_err().to_string(), source().to_string());
        assert_eq!(fs::read_to_string(&path).unwrap(), "as it was");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
#[should_panic(expected = "tensor a")]
fn data_of_another_shape_than_was_said_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let info = TensorInfo { name: "a".into(), dtype: DType::F32, shape: vec![3] };
    let data = |_: &str| Ok::<_, WeightsError>(Cow::Owned(TensorData::from([1f32, 2.0])));
    let path = folder.path().join("weights");
    let _ = write_weights(&path, Target::Safetensors, &[info], &BTreeMap::new(), data);
}

#[test]
fn tensors_are_read_one_by_one_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    torch_types().write_safetensors(&path).unwrap();
    for (path, format) in
        [(path, Format::Safetensors), (parity("flexvar_tiny/backbone.pth"), Format::Pth)]
    {
        let whole = NamedTensors::read(&path).unwrap();
        let mut file = WeightsFile::open(&path).unwrap();
        assert_eq!(file.format(), format);
        assert_eq!(file.n_bytes(), fs::metadata(&path).unwrap().len());
        assert_eq!(file.metadata(), whole.metadata());
        assert_eq!(file.tensors(), whole.infos());
        for TensorInfo { name, .. } in file.tensors().to_vec().into_iter().rev() {
            assert_eq!(Some(&file.read(&name).unwrap()), whole.get(&name), "{name}");
        }
        assert_eq!(file.verify().unwrap(), Checksum::Verified);
        assert_eq!(file.read_all().unwrap(), whole);
    }
}

#[test]
fn a_changed_bit_is_found_without_reading_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let check = |expected: &str| {
        let mut content = fs::read(&path).unwrap();
        let needle = f32::to_le_bytes(1234.5);
        let at = content.windows(4).position(|part| part == needle).unwrap();
        content[at] ^= 1;
        fs::write(&path, content).unwrap();
        let error = message(WeightsFile::open(&path).unwrap().verify());
        assert!(error.contains(expected), "{error}");
    };
    let mut named = NamedTensors::new();
    named.insert("w", TensorData::from([1234.5f32]));
    named.write_safetensors(&path).unwrap();
    check("its checksum is");
    named.write_pth(&path, "").unwrap();
    check("cannot read data/0 of tensor w: its checksum is wrong");

    // A file of another writer says nothing of its bytes.
    let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let content = [&(header.len() as u64).to_le_bytes()[..], header, &[1; 4]].concat();
    fs::write(&path, content).unwrap();
    assert_eq!(WeightsFile::open(&path).unwrap().verify().unwrap(), Checksum::Absent);
}

#[test]
fn truncated_files_are_errors_at_every_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    torch_types().write_pth(&path, "model").unwrap();
    let whole = fs::read(&path).unwrap();
    for end in 0..whole.len() {
        fs::write(&path, &whole[..end]).unwrap();
        message(NamedTensors::read(&path));
    }
}

fn tensors() -> impl Strategy<Value = NamedTensors> {
    let dims = prop::collection::vec(0usize..5, 0..4);
    let tensor = (dims, 0usize..10, any::<u64>()).prop_map(|(shape, kind, seed)| {
        let n = shape.iter().product::<usize>();
        let bits = (0..n as u64).map(|i| (seed ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        macro_rules! data {
            ($value:expr) => {
                TensorData::new(bits.map($value).collect(), shape)
            };
        }
        match kind {
            0 => data!(f64::from_bits),
            1 => data!(|b| f32::from_bits(b as u32)),
            2 => data!(|b| f16::from_bits(b as u16)),
            3 => data!(|b| bf16::from_bits(b as u16)),
            4 => data!(|b| b as i64),
            5 => data!(|b| b as i32),
            6 => data!(|b| b as i16),
            7 => data!(|b| b as i8),
            8 => data!(|b| b as u8),
            _ => data!(|b| b & 1 == 1),
        }
    });
    let metadata = prop::collection::btree_map("[a-z]{1,5}", ".{0,9}", 0..3);
    (prop::collection::btree_map("[a-zä0-9 ]{1,9}(\\.[a-z]{1,3}){0,2}", tensor, 1..9), metadata)
        .prop_map(|(tensors, metadata)| {
            let mut named = NamedTensors::new();
            for (name, data) in tensors {
                named.insert(name, data);
            }
            named.metadata_mut().extend(metadata);
            named
        })
}

/// Equality of bits: a NaN is equal to itself.
fn assert_same(a: &NamedTensors, b: &NamedTensors) {
    assert_eq!((a.infos(), a.metadata()), (b.infos(), b.metadata()));
    for (name, data) in a.iter() {
        assert_eq!(data.as_bytes(), b.get(name).unwrap().as_bytes(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_tensors_survive_both_formats(named in tensors(), root in "([a-z]{1,4}(\\.[a-z]{1,4})?)?") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        named.write_pth(&path, &root).unwrap();
        let back = NamedTensors::read(&path).unwrap();
        assert_same(&back.below(&root), &named);
        named.write_safetensors(&path).unwrap();
        assert_same(&NamedTensors::read(&path).unwrap(), &named);
    }
}
