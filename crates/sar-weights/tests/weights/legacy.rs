//! The form that torch wrote before version 1.6: files of torch itself, and files made to harm.

use burn::tensor::{Shape, TensorData, f16};
use sar_weights::{Checksum, Format, NamedTensors, WeightsFile};

use crate::support::{Spec, f32s, fixture, legacy, message, pickle, read};

fn scalar(value: i64) -> TensorData {
    TensorData::new(vec![value], Shape::from(Vec::<usize>::new()))
}

#[test]
fn files_of_torch() {
    for name in ["legacy.pth", "legacy_protocol_4.pth"] {
        let mut file = WeightsFile::open(&fixture(name)).unwrap();
        assert_eq!((file.format(), file.n_files()), (Format::Pth, 1));
        assert_eq!(file.n_bytes(), std::fs::metadata(fixture(name)).unwrap().len());
        assert_eq!(file.verify().unwrap(), Checksum::Absent);
        assert!(file.unreadable().is_empty() && file.metadata().is_empty());
        let names: Vec<&str> = file.tensors().iter().map(|info| info.name.as_str()).collect();
        let expected = ["empty", "half", "mask", "parameter", "row", "transposed", "w"];
        let expected = expected.map(|name| format!("model.{name}"));
        assert_eq!(names[..7], expected);
        assert_eq!(names[7..], ["optimizer.0.step"]);

        let mut check = |name: &str, expected: TensorData| {
            file.read(name).unwrap().assert_eq(&expected, true);
        };
        check("optimizer.0.step", scalar(5));
        check("model.w", TensorData::from([[0f32, 1.0, 2.0], [3.0, 4.0, 5.0]]));
        check("model.transposed", TensorData::from([[0f32, 3.0], [1.0, 4.0], [2.0, 5.0]]));
        check("model.row", TensorData::from([3f32, 4.0, 5.0]));
        check("model.half", TensorData::from([0.5, -2.0].map(f16::from_f64)));
        check("model.parameter", TensorData::from([7f32, 8.0]));
        check("model.mask", TensorData::from([true, false, true]));
        check("model.empty", TensorData::new(Vec::<f32>::new(), [0, 4]));
        // In any order, and again.
        check("model.w", TensorData::from([[0f32, 1.0, 2.0], [3.0, 4.0, 5.0]]));
        assert_eq!(file.read_all().unwrap().len(), 8);
    }
    let [two, four] = ["legacy.pth", "legacy_protocol_4.pth"].map(fixture);
    assert_eq!(NamedTensors::read(&two).unwrap(), NamedTensors::read(&four).unwrap());
}

const W: Spec = Spec("w", "Float", "7", 2, 0, &[2], &[1]);
const X: Spec = Spec("x", "Byte", "8", 3, 0, &[3], &[1]);

#[test]
fn contradictions_are_named() {
    let (numbers, object) = (f32s([1.0, 2.0]), pickle(&[W, X]));
    let good = legacy(&object, &[("7", 2, &numbers), ("8", 3, b"abc")]);
    let named = read(&good).unwrap();
    assert_eq!(named.get("w").unwrap(), &TensorData::from([1f32, 2.0]));
    assert_eq!(named.get("x").unwrap().as_bytes(), b"abc");

    let check = |storages: &[(&str, i64, &[u8])], expected: &str| {
        let error = message(read(&legacy(&object, storages)));
        assert!(error.starts_with(expected), "{error}");
    };
    let w: (&str, i64, &[u8]) = ("7", 2, &numbers);
    check(&[w], "tensor x needs storage 8, which is not there");
    check(&[w, w, ("8", 3, b"abc")], "storage 7 is there twice");
    check(&[w, ("8", 3, b"abc"), ("9", 0, b"")], "storage 9 belongs to nothing");
    check(&[w, ("8", 2, b"ab")], "storage 8 has 2 elements and should have 3");
    check(&[w, ("8", -3, b"abc")], "storage 8 has -3 elements and should have 3");
    check(&[w, ("8", i64::MAX, b"abc")], "storage 8 has 9223372036854775807 elements and should");
    check(&[w, ("8", 3, b"ab")], "it ends within storage 8 of 3 elements; the file is incomplete");
    check(&[w, ("8", 3, b"abcd")], "1 byte(s) follow its last storage");

    // Counts that the object agrees with.
    let claimed = |len: usize, count: i64| {
        let object = pickle(&[Spec("w", "Float", "7", len, 0, &[1], &[1])]);
        message(read(&legacy(&object, &[("7", count, &numbers)])))
    };
    let huge = claimed(1 << 62, 1 << 62);
    assert!(huge.starts_with("it ends within storage 7 of 4611686018427387904"), "{huge}");
    assert!(claimed(3, 3).starts_with("it ends within storage 7 of 3 elements"));
    let negative = claimed(usize::MAX, -1);
    assert!(negative.starts_with("it ends within storage 7 of -1 elements"), "{negative}");
    // A scalar expanded to 40 GB.
    let object = pickle(&[Spec("w", "Float", "7", 2, 0, &[100_000, 100_000], &[0, 0])]);
    let expanded = message(read(&legacy(&object, &[("7", 2, &numbers)])));
    assert!(expanded.starts_with("its tensors up to w take 40000000000 bytes"), "{expanded}");
    // One storage of two types.
    let object = pickle(&[W, Spec("x", "Int", "7", 2, 0, &[2], &[1])]);
    let typed = message(read(&legacy(&object, &[("7", 2, &numbers)])));
    assert!(typed.starts_with("storage 7 has two types or lengths"), "{typed}");
    // A type whose size nobody knows: what lies behind it cannot be found.
    let object = pickle(&[W, Spec("x", "New", "6", 2, 0, &[2], &[1])]);
    let unknown = message(read(&legacy(&object, &[("6", 2, b"ab"), ("7", 2, &numbers)])));
    assert!(unknown.starts_with("storage 6 has elements of an unknown type and size"), "{unknown}");
}

#[test]
fn pickles_that_are_not_there_or_not_torchs() {
    let check = |content: Vec<u8>, expected: &str| {
        let error = message(read(&content));
        assert!(error.starts_with(expected), "{error}");
    };
    let magic = legacy(b"", &[])[..15].to_vec();
    let with = |rest: &[u8]| [&magic[..], rest].concat();
    check(with(b""), "the pickle of its protocol version is broken at byte 0: the pickle ends");
    check(with(b"\x80\x02K\x05."), "its legacy form is not of version 1001");
    check(
        legacy(b"\x80\x02h\x05.", &[]),
        "the pickle of its object is broken at byte 2: nothing is",
    );
    check(legacy(b"\x80\x02}.", &[]), "it holds no named tensor");
    let version = b"\x80\x02M\xe9\x03.\x80\x02}.";
    check(
        with(&[version, &pickle(&[W])[..], b"\x80\x02K\x01."].concat()),
        "its list of storages is",
    );
    check(
        with(&[version, &pickle(&[W])[..], b"\x80\x02]K\x01a."].concat()),
        "its list of storages",
    );
}

#[test]
fn nothing_is_called() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("called");
    let command = format!("touch {}", mark.display());
    let text = [b"X", &(command.len() as u32).to_le_bytes()[..], command.as_bytes()].concat();
    let call = [b"\x80\x02cposix\nsystem\n", &text[..], b"\x85R."].concat();
    let start = legacy(b"", &[])[..15].to_vec();
    let sound = legacy(&pickle(&[W]), &[("7", 2, &f32s([1.0, 2.0]))]);
    for content in [
        legacy(&call, &[]),
        // In the place of the version, and of the description of the machine.
        [&start, &call[..]].concat(),
        [&sound[..21], &call, &sound[25..]].concat(),
    ] {
        let _ = read(&content);
    }
    assert!(!mark.exists());
}

#[test]
fn truncated_files_are_errors() {
    for name in ["legacy.pth", "legacy_foreign.pth"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        assert!(read(&whole).is_ok());
        for end in 0..whole.len() {
            message(read(&whole[..end]));
        }
        assert!(message(read(&[&whole[..], b"x"].concat())).starts_with("1 byte(s) follow"));
    }
}

#[test]
fn the_form_before_that_is_named() {
    let mut header = [0u8; 1024];
    header[..8].copy_from_slice(b"storages");
    header[257..263].copy_from_slice(b"ustar\0");
    let error = message(read(&header));
    assert!(error.starts_with("a tar file, which is how torch saved before version 0.1.10"));
}
