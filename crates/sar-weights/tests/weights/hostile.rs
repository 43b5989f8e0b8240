//! Files made to harm: every one is an error, or tensors, within bounded memory and time, and nothing
//! of them is executed.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::{Spec, f32s, message, pickle, read, zip};
use sar_weights::{NamedTensors, WeightsError};
use zip::CompressionMethod::{Deflated, Stored};

const NUMBERS: &str = "a/data/0";

fn pth_of(pickle: &[u8]) -> Vec<u8> {
    zip(&[("a/data.pkl", pickle), (NUMBERS, &f32s([1.0, 2.0]))], Stored)
}

/// A pickle of protocol 2.
fn body(parts: &[&[u8]]) -> Vec<u8> {
    [b"\x80\x02", &parts.concat()[..], b"."].concat()
}

/// The pickled tensor of two numbers, without a name.
fn tensor() -> Vec<u8> {
    let whole = pickle(&[Spec("w", "Float", "0", 2, 0, &[2], &[1])]);
    // Behind PROTO, EMPTY_DICT and the name; before SETITEM and STOP.
    whole[2 + 1 + 6..whole.len() - 2].to_vec()
}

/// Expects an answer soon.
fn answered(content: &[u8]) -> Result<NamedTensors, WeightsError> {
    let start = Instant::now();
    let result = read(content);
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
    result
}

#[test]
fn nothing_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("called");
    let command = format!("touch {}", mark.display());
    let text = [b"X", &(command.len() as u32).to_le_bytes()[..], command.as_bytes()].concat();
    let calls: [&[&[u8]]; 4] = [
        &[b"cposix\nsystem\n", &text, b"\x85R"],
        &[b"cos\nsystem\n", &text, b"\x85R"],
        &[b"cbuiltins\neval\n", &text, b"\x85\x81"],
        &[b"\x8c\x0asubprocess\x8c\x05Popen\x93", &text, b"\x85R"],
    ];
    for call in calls {
        let call = call.concat();
        // By itself it is not a dictionary of tensors; beside one it is passed over.
        let error = message(answered(&pth_of(&body(&[&call]))));
        assert!(error.starts_with("it holds no named tensor"), "{error}");
        let beside = body(&[b"}(X\x01\0\0\0w", &tensor(), b"X\x01\0\0\0x", &call, b"u"]);
        assert_eq!(answered(&pth_of(&beside)).unwrap().names().collect::<Vec<_>>(), ["w"]);
        // As a key, as a size, as the state of the dictionary.
        let key = body(&[b"}(", &call, &tensor(), b"u"]);
        message(answered(&pth_of(&key)));
        let state = body(&[b"}(X\x01\0\0\0w", &tensor(), b"u", &call, b"b"]);
        assert_eq!(answered(&pth_of(&state)).unwrap().len(), 1);
    }
    // Protocol 0 and the extension registry are not even read.
    for other in [&b"cposix\nsystem\n(S'touch x'\ntR"[..], b"iposix\nsystem\n", b"\x82\x01"] {
        let error = message(answered(&pth_of(&body(&[other]))));
        assert!(error.contains("which torch does not write"), "{error}");
    }
    assert!(!mark.exists());
}

#[test]
fn deep_cyclic_and_exploding_containers() {
    let check = |pickle: Vec<u8>, expected: &str| {
        let error = message(answered(&pth_of(&pickle)));
        assert!(error.starts_with(expected), "{error}");
    };
    // A list in a list in a list, a million deep.
    let deep = [vec![b']'; 1 << 20], tensor(), vec![b'a'; 1 << 20]].concat();
    check(body(&[&deep]), "it nests deeper than 64 containers");
    // A list that holds itself, and a dictionary in its own list.
    check(body(&[b"]q\0h\0a"]), "it holds no named tensor");
    check(body(&[b"}q\0X\x01\0\0\0a]h\0as"]), "it holds no named tensor");
    let itself = body(&[b"}q\0(X\x01\0\0\0ah\0X\x01\0\0\0w", &tensor(), b"u"]);
    assert_eq!(answered(&pth_of(&itself)).unwrap().len(), 1);
    // Twenty lists, each of ten times the one before: 10^20 values.
    let mut tower = b"]".to_vec();
    for level in 0..20u8 {
        tower.extend([b'q', level, b']', b'(']);
        tower.extend([b'h', level].repeat(10));
        tower.push(b'e');
    }
    check(body(&[&tower]), "it nests more than 1048576 values");
    // The same tensor under 70,000 names, in a file of 200 kB.
    let many = [b"](", &tensor()[..], b"q\0", &b"h\0".repeat(70_000), b"e"].concat();
    check(body(&[&many]), "it holds more than 65536 tensors");
    let endless = vec![b'N'; (1 << 22) + 1];
    check(body(&[&endless]), "its data.pkl is broken at byte 4194305: more than 4194304 opcodes");
}

#[test]
fn sizes_strides_and_offsets_beyond_the_storage() {
    let check = |spec: Spec, expected: &str| {
        let error = message(answered(&pth_of(&pickle(&[spec]))));
        assert!(error.starts_with(expected), "{error}");
    };
    let huge = 1usize << 62;
    let beyond = "tensor w has sizes";
    check(Spec("w", "Float", "0", 2, 0, &[huge, huge], &[1, 1]), beyond);
    check(Spec("w", "Float", "0", 2, 0, &[huge, huge], &[0, 0]), beyond);
    check(Spec("w", "Float", "0", 2, 0, &[huge, huge, 0], &[1, 1, 1]), beyond);
    check(Spec("w", "Float", "0", 2, 0, &[2], &[huge]), beyond);
    check(Spec("w", "Float", "0", 2, huge, &[2], &[1]), beyond);
    check(Spec("w", "Float", "0", 2, 1, &[2], &[1]), beyond);
    check(Spec("w", "Float", "0", 2, usize::MAX, &[2], &[1]), "tensor w has a negative offset");
    check(Spec("w", "Float", "0", 2, 0, &[usize::MAX], &[1]), "tensor w has sizes that are not");
    check(Spec("w", "Float", "0", usize::MAX, 0, &[2], &[1]), "tensor w has a storage of neg");
    check(Spec("w", "Float", "0", huge, 0, &[2], &[1]), "data/0 claims 4611686018427387904");
    check(Spec("w", "Float", "0", 3, 0, &[2], &[1]), "data/0 of tensor w has 8 bytes and should");
    check(Spec("w", "Float", "0", 2, 0, &[1; 65], &[1; 65]), "tensor w has sizes that are not");
    check(Spec("w", "Float", "0", 2, 0, &[2], &[1, 1]), "tensor w has 1 sizes and 2 strides");
    check(Spec("w", "Float", "../../0", 2, 0, &[2], &[1]), "tensor w needs data/../../0, which");
    check(Spec("a\nb", "Float", "9", 2, 0, &[2], &[1]), "tensor a\\nb needs data/9, which");
}

/// Nothing times much is nothing, and is written and read as such.
#[test]
fn absurd_sides_of_nothing() {
    let huge = 1usize << 62;
    let spec = Spec("w", "Float", "0", 2, 0, &[0, huge, huge], &[1, 1, 1]);
    let named = answered(&pth_of(&pickle(&[spec]))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    named.write_pth(&path, "").unwrap();
    assert_eq!(NamedTensors::read(&path).unwrap(), named);
    named.write_safetensors(&path).unwrap();
    assert_eq!(NamedTensors::read(&path).unwrap(), named);
}

#[test]
fn overlapping_storages() {
    let specs =
        [Spec("w", "Float", "0", 2, 0, &[2], &[1]), Spec("x", "Float", "1", 2, 0, &[2], &[1])];
    let (pickle, numbers) = (pickle(&specs), f32s([1.0, 2.0]));
    let entries = [("a/data.pkl", &pickle[..]), ("a/data/0", &numbers), ("a/data/1", &numbers)];
    let content = zip(&entries, Stored);
    assert_eq!(answered(&content).unwrap().len(), 2);
    // The directory's last entry points to the bytes of the one before.
    let headers: Vec<usize> =
        (0..content.len() - 4).filter(|&at| content[at..at + 4] == *b"PK\x01\x02").collect();
    let [_, second, third] = headers[..] else { panic!("{headers:?}") };
    let mut overlapping = content.clone();
    overlapping.copy_within(second + 42..second + 46, third + 42);
    let error = message(answered(&overlapping));
    assert!(error.starts_with("entries of the zip file overlap"), "{error}");
}

#[test]
fn storages_that_are_small_one_by_one_and_large_together() {
    // Each may take what any file may take, 64 MB; deflated they are 40 kB.
    let zeros = vec![0u8; 40 << 20];
    let n = zeros.len();
    let specs = [
        Spec("a", "Byte", "0", n, 0, &[1], &[1]),
        Spec("b", "Byte", "1", n, 0, &[1], &[1]),
        Spec("c", "Byte", "2", n, 0, &[1], &[1]),
    ];
    let pickle = pickle(&specs);
    let entries = [
        ("a/data.pkl", &pickle[..]),
        ("a/data/0", &zeros),
        ("a/data/1", &zeros),
        ("a/data/2", &zeros),
    ];
    let error = message(answered(&zip(&entries, Deflated)));
    assert!(error.starts_with("its storages take 125829120 bytes, over 16 times"), "{error}");
}

#[test]
fn directories_that_lie() {
    let specs = [Spec("w", "Float", "0", 2, 0, &[2], &[1])];
    let good = pth_of(&pickle(&specs));
    // A thousand false ends of the directory, in what looks like the comment of the file.
    let end = b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0";
    message(answered(&[&b"PK\x03\x04"[..], &end.repeat(3000)].concat()));
    let _ = answered(&[&good[..], &end.repeat(2900)].concat());
    // A pickle that lies in another folder than its storages.
    let twice = good.windows(8).position(|part| part == b"a/data/0").unwrap();
    let mut renamed = good.clone();
    for at in 0..renamed.len() - 10 {
        if &renamed[at..at + 10] == b"a/data.pkl" && at > twice {
            renamed[at..at + 10].copy_from_slice(b"b/data.pkl");
        }
    }
    message(answered(&renamed));
    // Sizes in the directory that the file has not.
    for field in [20, 24] {
        let mut lying = good.clone();
        let last = lying.windows(4).rposition(|part| part == b"PK\x01\x02").unwrap();
        lying[last + field..last + field + 4].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
        message(answered(&lying));
    }
}

#[test]
fn headers_of_safetensors_that_lie() {
    let file = |header: &str, n_bytes: usize| {
        let mut content = (header.len() as u64).to_le_bytes().to_vec();
        content.extend(header.bytes());
        content.resize(content.len() + n_bytes, 1);
        content
    };
    let check = |header: String, n_bytes: usize, expected: &str| {
        let error = message(answered(&file(&header, n_bytes)));
        assert!(error.contains(expected), "{error}");
    };
    let tensor = |name: &str, shape: &str, start: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    // Overlapping, out of order, with a gap, twice.
    let pair = |a, b| format!("{{{},{}}}", tensor("a", "[2]", 0, 8), tensor("b", "[2]", a, b));
    check(pair(4, 12), 12, "its header:");
    check(pair(12, 20), 20, "its header:");
    check(format!("{{{},{}}}", tensor("a", "[2]", 0, 8), tensor("a", "[2]", 8, 16)), 16, "header");
    check(format!("{{{}}}", tensor("a", "[18446744073709551615,2]", 0, 8)), 8, "its header:");
    check(format!("{{{}}}", tensor("a", "[-1]", 0, 8)), 8, "its header:");
    let ranks = format!("[{}]", vec!["1"; 65].join(","));
    check(format!("{{{}}}", tensor("a", &ranks, 0, 4)), 4, "tensor a has 65 dimensions");
    check("[".repeat(100_000), 0, "its header:");
    check(format!(r#"{{"__metadata__":{{"a":{{}}}},{}}}"#, tensor("a", "[1]", 0, 4)), 4, "header");
    // Ten thousand empty tensors are tensors.
    let many: Vec<String> = (0..10_000).map(|i| tensor(&format!("t{i}"), "[0]", 0, 0)).collect();
    assert_eq!(answered(&file(&format!("{{{}}}", many.join(",")), 0)).unwrap().len(), 10_000);
}

#[test]
#[cfg(unix)]
fn what_is_not_a_regular_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("weights");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        let error = message(NamedTensors::read(&pipe));
        assert!(error.starts_with("cannot read the file: it is not a regular file"), "{error}");
    }
    let error = NamedTensors::read(std::path::Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.contains("it is not a regular file"), "{error}");
    fs::remove_file(&pipe).unwrap_or_default();
}
