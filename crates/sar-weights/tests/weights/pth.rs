//! `.pth` files built by hand: what is read from good ones, and what is said of bad ones.

use std::fs;

use crate::support::{Spec, f32s, message, parity, pickle, read, zip};
use burn::tensor::{TensorData, bf16, f16};
use sar_weights::NamedTensors;
use zip::CompressionMethod::{Deflated, Stored};

/// A `.pth` of one pickle and its storages.
fn pth(tensors: &[Spec], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let pickle = pickle(tensors);
    let mut entries: Vec<(&str, &[u8])> = vec![("a/data.pkl", &pickle), ("a/byteorder", b"little")];
    entries.extend(storages);
    zip(&entries, Stored)
}

#[test]
fn views_of_shared_storages() {
    let content = pth(
        &[
            Spec("whole", "Float", "0", 6, 0, &[2, 3], &[3, 1]),
            Spec("transposed", "Float", "0", 6, 0, &[3, 2], &[1, 3]),
            Spec("row", "Float", "0", 6, 3, &[3], &[1]),
            Spec("expanded", "Float", "0", 6, 4, &[2, 2], &[0, 1]),
            Spec("scalar", "Float", "0", 6, 5, &[], &[]),
            Spec("empty", "Float", "1", 0, 0, &[0, 4], &[4, 1]),
            Spec("single", "Float", "2", 2, 0, &[2], &[1]),
        ],
        &[
            ("a/data/0", &f32s((0..6).map(|x| x as f32))),
            ("a/data/1", b""),
            ("a/data/2", &f32s([7.0, 8.0])),
        ],
    );
    let named = read(&content).unwrap();
    assert_eq!(named.len(), 7);
    let check = |name: &str, shape: &[usize], values: &[f32]| {
        let expected = TensorData::new(values.to_vec(), shape.to_vec());
        named.get(name).unwrap().assert_eq(&expected, true);
    };
    check("whole", &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    check("transposed", &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    check("row", &[3], &[3.0, 4.0, 5.0]);
    check("expanded", &[2, 2], &[4.0, 5.0, 4.0, 5.0]);
    check("scalar", &[], &[5.0]);
    check("empty", &[0, 4], &[]);
    check("single", &[2], &[7.0, 8.0]);
}

#[test]
fn every_element_type() {
    fn check<E: burn::tensor::Element>(storage: &str, values: [E; 2], bytes: &[u8]) {
        let spec = Spec("w", storage, "0", 2, 0, &[2], &[1]);
        let named = read(&pth(&[spec], &[("a/data/0", bytes)])).unwrap();
        named.get("w").unwrap().assert_eq(&TensorData::from(values), true);
    }
    let le = |values: [u16; 2]| values.map(u16::to_le_bytes).concat();
    check("Double", [1.5f64, -2.0], &[1.5f64, -2.0].map(f64::to_le_bytes).concat());
    check("Float", [1.5f32, -2.0], &f32s([1.5, -2.0]));
    check("Half", [1.5, -2.0].map(f16::from_f32), &le([0x3e00, 0xc000]));
    check("BFloat16", [1.5, -2.0].map(bf16::from_f32), &le([0x3fc0, 0xc000]));
    check("Long", [-3i64, 1 << 40], &[-3i64, 1 << 40].map(i64::to_le_bytes).concat());
    check("Int", [-3i32, 70000], &[-3i32, 70000].map(i32::to_le_bytes).concat());
    check("Short", [-3i16, 700], &[-3i16, 700].map(i16::to_le_bytes).concat());
    check("Char", [-3i8, 7], &[0xfd, 7]);
    check("Byte", [3u8, 200], &[3, 200]);
    check("Bool", [true, false], &[1, 0]);

    let spec = Spec("w", "Bool", "0", 2, 0, &[2], &[1]);
    let error = message(read(&pth(&[spec], &[("a/data/0", &[1, 2])])));
    assert!(error.starts_with("tensor w has bools other than 0 and 1"), "{error}");
}

#[test]
fn compressed_entries_and_other_prefixes() {
    let spec = [Spec("w", "Float", "0", 100, 0, &[100], &[1])];
    let (pickle, numbers) = (pickle(&spec), f32s((0..100).map(|x| x as f32)));
    for prefix in ["", "archive/", "a/b/"] {
        let (name, data) = (format!("{prefix}data.pkl"), format!("{prefix}data/0"));
        // torch before 2.0 writes no byte order.
        let content = zip(&[(name.as_str(), &pickle), (data.as_str(), &numbers)], Deflated);
        assert_eq!(read(&content).unwrap().get("w").unwrap().as_bytes(), numbers, "{prefix}");
    }
}

#[test]
fn storages_of_nothing_are_not_read() {
    // One storage that no tensor is on is missing, another is broken.
    let tensors = [Spec("w", "Float", "0", 1, 0, &[1], &[1])];
    let numbers = f32s([1.0]);
    let mut content = pth(&tensors, &[("a/data/0", &numbers), ("a/data/1", b"BROKEN HERE")]);
    let at = content.windows(6).position(|part| part == b"BROKEN").unwrap();
    content[at] = b'X';
    assert_eq!(read(&content).unwrap().len(), 1);
}

#[test]
fn contradictions_are_named() {
    let spec = || Spec("w", "Float", "0", 4, 0, &[4], &[1]);
    let numbers = f32s([1.0, 2.0, 3.0, 4.0]);
    let check = |content: &[u8], expected: &str| {
        let error = message(read(content));
        assert!(error.starts_with(expected), "{error}");
    };
    let stored = |storages: &[(&str, &[u8])]| pth(&[spec()], storages);
    check(&stored(&[]), "tensor w needs data/0, which is not there; the file is incomplete");
    check(
        &stored(&[("a/data/0", &numbers[..12])]),
        "data/0 of tensor w has 12 bytes and should have 16",
    );
    let long = [&numbers[..], b"1234"].concat();
    check(&stored(&[("a/data/0", &long)]), "data/0 of tensor w has 20 bytes and should have 16");

    let beyond = Spec("w", "Float", "0", 4, 1, &[4], &[1]);
    check(&pth(&[beyond], &[("a/data/0", &numbers)]), "tensor w has sizes [4], strides [1] and");
    let typed = [spec(), Spec("v", "Int", "0", 4, 0, &[4], &[1])];
    check(&pth(&typed, &[("a/data/0", &numbers)]), "data/0 has two types or lengths");
    let twice = [spec(), spec()];
    check(&pth(&twice, &[("a/data/0", &numbers)]), "two tensors have the name w");

    let mut flipped = stored(&[("a/data/0", &numbers)]);
    let at = flipped.windows(16).position(|part| part == numbers).unwrap();
    flipped[at] ^= 1;
    check(&flipped, "cannot read data/0 of tensor w: its checksum is wrong");

    let pickle = pickle(&[spec()]);
    let big = [("a/data.pkl", &pickle[..]), ("a/byteorder", b"big"), ("a/data/0", &numbers)];
    check(&zip(&big, Stored), "byte order big; save it again on a little-endian machine");
    let cut = [("a/data.pkl", &pickle[..40]), ("a/data/0", &numbers)];
    check(&zip(&cut, Stored), "its data.pkl is broken at byte 9: a line without an end; the file");
    check(
        &zip(&[("a/other", b"")], Stored),
        "a zip file with 0 entries data.pkl; read a file that",
    );
    let two = [("a/data.pkl", &pickle[..]), ("b/data.pkl", &pickle)];
    check(&zip(&two, Stored), "a zip file with 2 entries data.pkl");
    let script = [("a/data.pkl", &pickle[..]), ("a/constants.pkl", b"")];
    check(&zip(&script, Stored), "a TorchScript program; load it with torch.jit.load");
    let nothing = [("a/data.pkl", &b"\x80\x02}."[..])];
    check(&zip(&nothing, Stored), "it holds no named tensor; save a dictionary of tensors");
}

#[test]
fn other_formats_are_told_apart() {
    for other in
        [&b""[..], b"PK", b"version https://git-lfs.github.com/spec/v1", b"<html>", &[0; 64]]
    {
        let error = message(read(other));
        assert!(error.starts_with("neither a PyTorch zip file nor a safetensors"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    assert!(message(NamedTensors::read(&path)).starts_with("cannot read the file: No such file"));
    fs::write(&path, pth(&[Spec("w", "Byte", "0", 1, 0, &[1], &[1])], &[("a/data/0", b"x")]))
        .unwrap();
    let error = message(NamedTensors::read_safetensors(&path));
    assert!(error.starts_with("a PyTorch file, where a safetensors file is needed"), "{error}");
    fs::create_dir(folder.path().join("weights.d")).unwrap();
    let error = message(NamedTensors::read(&folder.path().join("weights.d")));
    assert!(error.starts_with("it is a folder without an index of shards"), "{error}");
}

#[test]
fn a_file_needs_no_more_memory_than_its_size_allows() {
    let check = |content: &[u8], expected: &str| {
        let error = message(read(content));
        assert!(error.starts_with(expected), "{error}");
    };
    let numbers = f32s([1.0]);
    // A scalar expanded to 40 GB.
    let expanded = [Spec("w", "Float", "0", 1, 0, &[100_000, 100_000], &[0, 0])];
    check(&pth(&expanded, &[("a/data/0", &numbers)]), "its tensors up to w take 40000000000 bytes");
    // A storage that claims to be of 4 EB.
    let claimed = [Spec("w", "Float", "0", 1 << 60, 0, &[1], &[1])];
    check(&pth(&claimed, &[("a/data/0", &numbers)]), "data/0 claims 1152921504606846976 elements");
    // 128 MB of zeros in a file of 200 kB.
    let zeros = vec![0u8; 128 << 20];
    let pickle = pickle(&[Spec("w", "Byte", "0", zeros.len(), 0, &[zeros.len()], &[1])]);
    let bomb = zip(&[("a/data.pkl", &pickle), ("a/data/0", &zeros)], Deflated);
    check(&bomb, "data/0 claims 134217728 elements");
    // A pickle of 65 MB.
    let bomb = zip(&[("a/data.pkl", &zeros[..65 << 20])], Deflated);
    check(&bomb, "data.pkl has more than 67108864 bytes");
    // A moderate expansion is fine.
    let expanded = [Spec("w", "Float", "0", 1, 0, &[680, 680], &[0, 0])];
    let named = read(&pth(&expanded, &[("a/data/0", &numbers)])).unwrap();
    assert!(named.get("w").unwrap().iter::<f32>().all(|value| value == 1.0));
}

#[test]
fn truncated_files_are_errors() {
    for name in ["flexvar_tiny/backbone.pth", "flexvar_shared_adaln/tokenizer.pth"] {
        let whole = fs::read(parity(name)).unwrap();
        for sixteenth in 0..16 {
            let error = message(read(&whole[..whole.len() * sixteenth / 16]));
            assert!(error.contains("download"), "{error}");
        }
        message(read(&whole[..whole.len() - 1]));
    }
}
