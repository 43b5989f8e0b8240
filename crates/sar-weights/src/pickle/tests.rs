//! Pickles written by hand, opcode by opcode, and what they mean.

use proptest::prelude::*;

use super::*;
use crate::flatten::{Named, named_tensors};

/// The `_rebuild_tensor_v2` call of a `[2, 3]` view with strides `[1, 2]` of storage "7".
const TENSOR: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage\
    ctorch\nHalfStorage\nX\x01\0\0\x007X\x03\0\0\0cpuK\x06tQK\0K\x02K\x03\x86K\x01K\x02\x86\
    \x89ccollections\nOrderedDict\n)RtR";

fn pickle(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

/// Runs a body and writes the result as text; `?` is opaque.
fn shown(body: &[u8]) -> String {
    match run(&pickle(body)) {
        Ok((heap, root)) => show(&heap, root),
        Err(what) => what,
    }
}

fn show(heap: &Heap, value: Value) -> String {
    match value {
        Value::Opaque => "?".into(),
        Value::Int(int) => int.to_string(),
        Value::Str(text) => format!("{text:?}"),
        Value::Sequence(items) => {
            let items: Vec<_> = heap.sequences[items].iter().map(|&i| show(heap, i)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Dict(items) => {
            let item = |&(key, item): &_| format!("{}: {}", show(heap, key), show(heap, item));
            let items: Vec<_> = heap.dicts[items].iter().map(item).collect();
            format!("{{{}}}", items.join(", "))
        }
        Value::Global(global) => format!("{global:?}"),
        Value::Foreign(why) => why.describe(),
        Value::Storage(storage) => format!("{:?}", heap.storages[storage]),
        Value::Tensor(tensor) => {
            let Rebuilt { storage, dtype, offset, sizes, strides } = heap.tensors[tensor];
            let Storage { key, len, .. } = heap.storages[storage];
            let (sizes, strides) = (Value::Sequence(sizes), Value::Sequence(strides));
            let (sizes, strides) = (show(heap, sizes), show(heap, strides));
            format!("{}{sizes} {strides} +{offset} of {key}, {len}", dtype.name())
        }
    }
}

/// Flattens a body to `name: element type, shape`.
fn names(body: &[u8]) -> Result<Vec<String>, String> {
    let pickle = pickle(body);
    let (heap, root) = run(&pickle)?;
    let Named { tensors, unreadable } = named_tensors(&heap, root)?;
    let tensors = tensors.into_iter().map(|t| format!("{} {:?}", t.name, t.view.shape));
    let unreadable = unreadable.into_iter().map(|u| format!("{} is {}", u.name, u.what));
    Ok(tensors.chain(unreadable).collect())
}

/// A body out of parts, with [`TENSOR`] in the place of every `T`.
fn with_tensors(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().map(|&part| if part == b"T" { TENSOR } else { part }).collect::<Vec<_>>().concat()
}

#[test]
fn plain_values() {
    let check = |body: &[u8], expected| assert_eq!(shown(body), expected, "{body:?}");
    check(b"K\x05", "5");
    check(b"M\x01\x02", "513");
    check(b"J\xfe\xff\xff\xff", "-2");
    check(b"\x8a\x00", "0");
    check(b"\x8a\x01\xff", "-1");
    check(b"\x8a\x02\xff\x00", "255");
    check(b"\x8a\x08\0\0\0\0\0\0\0\x80", "-9223372036854775808");
    check(b"\x8a\x09\0\0\0\0\0\0\0\0\x01", "?");
    check(b"\x8b\x02\0\0\0\x00\x01", "256");
    check(b"G\x3f\xf0\0\0\0\0\0\0", "?");
    check(b"X\x02\0\0\0\xc3\xa4", "\"ä\"");
    check(b"X\x01\0\0\0\xff", "?");
    check(b"\x8c\x01a", "\"a\"");
    check(b"\x8d\x01\0\0\0\0\0\0\0a", "\"a\"");
    check(b"U\x01a", "\"a\"");
    check(b"T\x01\0\0\0a", "\"a\"");
    check(b"C\x01a", "?");
    check(b"B\x01\0\0\0a", "?");
    check(b"\x8e\x01\0\0\0\0\0\0\0a", "?");
    check(b"\x96\x01\0\0\0\0\0\0\0a", "?");
    check(b"(N\x88\x89t", "[?, ?, ?]");
    check(b"\x95\x02\0\0\0\0\0\0\0K\x05", "5");
}

#[test]
fn containers_marks_and_the_memo() {
    let check = |body: &[u8], expected| assert_eq!(shown(body), expected, "{body:?}");
    check(b")", "[]");
    check(b"K\x01\x85", "[1]");
    check(b"K\x01K\x02\x86", "[1, 2]");
    check(b"K\x01K\x02K\x03\x87", "[1, 2, 3]");
    check(b"(K\x01(K\x02tt", "[1, [2]]");
    check(b"(K\x01l", "[1]");
    check(b"]K\x01a(K\x02K\x03e", "[1, 2, 3]");
    check(b"}K\x01K\x02s(K\x03K\x04K\x05K\x06u", "{1: 2, 3: 4, 5: 6}");
    check(b"(K\x01K\x02d", "{1: 2}");
    check(b"\x8f(K\x01\x90", "?");
    check(b"(K\x01\x91", "?");
    check(b"K\x01K\x020", "1");
    check(b"K\x01(0", "1");
    check(b"K\x01(K\x02K\x031", "1");
    check(b"K\x012\x86", "[1, 1]");
    check(b"}q\x01K\x01h\x01\x86", "[1, {}]");
    check(b"K\x05r\x01\x01\0\0K\x01j\x01\x01\0\0\x87", "[5, 1, 5]");
    check(b"K\x09\x940h\0", "9");
    // What was memoized is the container, not a copy of it.
    check(b"(]q\0}q\x01h\0K\x01ah\x01K\x02K\x03st", "[[1], {2: 3}, [1], {2: 3}]");
}

#[test]
fn only_known_globals_mean_anything() {
    let check = |body: &[u8], expected| assert_eq!(shown(body), expected, "{body:?}");
    check(b"cos\nsystem\n", "?");
    check(b"cos\nsystem\nX\x02\0\0\0ls\x85R", "?");
    check(b"\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R", "?");
    check(b"cbuiltins\neval\n)\x81", "?");
    check(b"cbuiltins\ndict\n)}\x92", "?");
    check(b"ctorch\nload\n)R", "?");
    check(b"ctorch.cuda\nFloatStorage\n", "?");
    check(b"K\x01)R", "?");
    // Items and state of opaque objects vanish with them.
    check(b"ca\nb\n)\x81}K\x01K\x02sb", "?");
    check(b"ca\nb\n)R(K\x01K\x02u", "?");
    check(b"ca\nb\n)R(K\x01K\x02e", "?");
    check(b"X\x01\0\0\0aQ", "?");
    check(b"ccollections\nOrderedDict\n)RK\x01K\x02s}K\x03K\x04sb", "{1: 2}");
    check(b"ccollections\nOrderedDict\n)\x81", "{}");
    check(b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R", "{}");
}

#[test]
fn tensors_and_parameters() {
    let tensor = "f16[2, 3] [1, 2] +0 of 7, 6";
    assert_eq!(shown(TENSOR), tensor);
    let parameter = [b"ctorch._utils\n_rebuild_parameter\n", TENSOR, b"\x88N\x87R"].concat();
    assert_eq!(shown(&parameter), tensor);

    let replaced = |from: &str, to: &str| {
        let at = TENSOR.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        [&TENSOR[..at], to.as_bytes(), &TENSOR[at + from.len()..]].concat()
    };
    assert!(shown(&replaced("K\x06tQ", "NtQ")).contains("storage without type, key and length"));
    assert!(shown(&replaced("tQK\0", "tQN")).contains("tensor without storage, offset"));
}

#[test]
fn every_storage_type_has_its_element_type() {
    for (name, dtype) in [
        ("Double", "f64"),
        ("Float", "f32"),
        ("Half", "f16"),
        ("BFloat16", "bf16"),
        ("Long", "i64"),
        ("Int", "i32"),
        ("Short", "i16"),
        ("Char", "i8"),
        ("Byte", "u8"),
        ("Bool", "bool"),
    ] {
        match known_global("torch", &format!("{name}Storage")) {
            Value::Global(Global::Storage(Element::Readable(found))) => {
                assert_eq!(found.name(), dtype);
                assert_eq!(Element::Readable(found).n_bytes(), Some(found.size()));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn what_cannot_be_read_says_why() {
    let replaced = |from: &str, to: &str| {
        let at = TENSOR.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        [&TENSOR[..at], to.as_bytes(), &TENSOR[at + from.len()..]].concat()
    };
    let check = |body: &[u8], expected| assert_eq!(shown(body), expected, "{body:?}");
    check(&replaced("HalfStorage", "ComplexFloatStorage"), "complex64");
    check(&replaced("HalfStorage", "NewStorage"), "NewStorage");
    check(
        &replaced("torch\nHalfStorage", "other\nHalfStorage"),
        "kept in an unknown kind of storage",
    );
    check(&replaced("_rebuild_tensor_v2", "_rebuild_qtensor"), "quantized (f16)");
    check(&replaced("_rebuild_tensor_v2", "_rebuild_sparse_tensor"), "sparse");
    check(&replaced("_rebuild_tensor_v2", "_rebuild_other"), "made by torch's _rebuild_other");
    check(b"cnumpy.core.multiarray\n_reconstruct\nNR}b", "a NumPy array");
    let parameter = [
        &b"ctorch._utils\n_rebuild_parameter\n"[..],
        &replaced("_rebuild_tensor_v2", "_rebuild_sparse_tensor"),
        b"\x88N\x87R",
    ];
    check(&parameter.concat(), "sparse");

    // A tensor of an element type of its own: the seventh argument.
    let typed = |seventh: &str| {
        let call = b"ctorch._utils\n_rebuild_tensor_v3\n((\x8c\x07storagectorch.storage\n\
            UntypedStorage\n\x8c\x010\x8c\x03cpuK\x02tQK\0K\x02\x85K\x01\x85\x89N";
        [call, seventh.as_bytes(), b"tR"].concat()
    };
    check(&typed("ctorch\nfloat8_e4m3fn\n"), "float8_e4m3fn");
    check(&typed("N"), "made by torch's _rebuild_tensor_v3");
    check(&typed(""), "made by torch's _rebuild_tensor_v3");

    // They have names like others; those that lie nowhere, or under a name that is taken, have none.
    let sparse = replaced("_rebuild_tensor_v2", "_rebuild_sparse_tensor");
    let body = [
        &b"}(\x8c\x01b}\x8c\x01c"[..],
        &sparse,
        b"s\x8c\x01a",
        TENSOR,
        b"\x8c\x01a",
        &sparse,
        b"u",
    ];
    assert_eq!(names(&body.concat()).unwrap(), ["a [2, 3]", "b.c is sparse"]);
    assert_eq!(names(&sparse).unwrap(), [""; 0]);
}

#[test]
fn dictionaries_of_python_2_are_made_of_pairs() {
    let check = |body: &[u8], expected| assert_eq!(shown(body), expected, "{body:?}");
    let made = |pairs: &[u8]| [b"ccollections\nOrderedDict\n]", pairs, b"\x85R"].concat();
    check(&made(b""), "{}");
    check(&made(b"(](U\x01aK\x01e](U\x01bK\x02ee"), r#"{"a": 1, "b": 2}"#);
    let odd = "an OrderedDict that is not made of pairs";
    assert!(shown(&made(b"(](K\x01ee")).ends_with(odd));
    assert!(shown(&made(b"(K\x01K\x02e")).ends_with(odd));

    // A list of a thousand pairs, used two thousand times.
    let list = [&b"](U\x01aK\x01eq\x01]("[..], &b"h\x01".repeat(1000), b"eq\x02"].concat();
    let call = b"ccollections\nOrderedDict\nh\x02\x85R";
    let often = [&list[..], &call.repeat(2000)].concat();
    assert!(shown(&often).ends_with("over 1048576 pairs in dictionaries made of pairs"));
}

#[test]
fn a_storage_that_is_part_of_another() {
    let part = |start: &[u8], n: &[u8], offset: &[u8]| {
        let id =
            b"}\x8c\x01wctorch._utils\n_rebuild_tensor\n((\x8c\x07storagectorch\nFloatStorage\n\
            \x8c\x010\x8c\x03cpuK\x0a\x8c\x011";
        [id, start, n, b"\x87tQ", offset, b"K\x03\x85K\x01\x85tRs"].concat()
    };
    let view = |body: &[u8]| {
        let pickle = pickle(body);
        let (heap, root) = run(&pickle).unwrap();
        named_tensors(&heap, root).map(|named| (named.tensors[0].view.offset, named.tensors[0].len))
    };
    assert_eq!(view(&part(b"K\x04", b"K\x05", b"K\x02")), Ok((6, 10)));
    let refused = |body: &[u8], what: &str| {
        let error = view(body).unwrap_err();
        assert!(error.contains(what), "{error}");
    };
    refused(&part(b"K\x04", b"K\x05", b"K\x03"), "beyond its storage of 5 elements");
    let impossible = "tensor w has an impossible part of a storage";
    refused(&part(b"K\x06", b"K\x05", b"K\0"), impossible);
    refused(&part(b"J\xff\xff\xff\xff", b"K\x05", b"K\0"), impossible);
    refused(&part(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"K\x05", b"K\0"), impossible);
    let unclear = shown(&part(b"N", b"K\x05", b"K\0"));
    assert!(unclear.ends_with("a storage that is an unclear part of another"), "{unclear}");
}

#[test]
fn the_first_of_several_pickles_ends_where_the_next_begins() {
    let several = b"\x80\x02K\x05.\x80\x02K\x06.rest";
    let (_, first, end) = run_first(several).unwrap();
    assert_eq!((first, end), (Value::Int(5), 5));
    let (_, second, length) = run_first(&several[end..]).unwrap();
    assert_eq!((second, &several[end + length..]), (Value::Int(6), &b"rest"[..]));
}

#[test]
fn broken_pickles_say_where() {
    let check = |body: &[u8], expected| assert_eq!(shown(body), expected, "{body:?}");
    check(b"", "byte 2: the stack is empty");
    check(b"K\x01K\x020", "1");
    check(b"0", "byte 2: the stack is empty");
    check(b"K\x01(\x85", "byte 5: the stack is empty");
    check(b"K\x01(a", "byte 5: the stack is empty");
    check(b"t", "byte 2: there is no mark");
    check(b"h\x05", "byte 2: nothing is memoized as 5");
    check(b"q\x05", "byte 2: the stack is empty");
    check(b"}(K\x01u", "byte 6: a key without a value");
    check(b"K\x01K\x01a", "byte 6: items for what is not a list");
    check(b"]K\x01K\x01s", "byte 7: items for what is not a dictionary");
    let odd = "byte 30: an OrderedDict that is not made of pairs";
    check(b"ccollections\nOrderedDict\nK\x01\x85R", odd);
    check(b"ctorch._utils\n_rebuild_tensor_v2\nNR", "byte 36: a call without a tuple of arguments");
    check(b"P1\n", "byte 2: opcode 0x50, which torch does not write");
    check(b"X\xff\xff\xff\xffa", "byte 2: the pickle ends too early");
    check(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa", "byte 2: the pickle ends too early");
    check(b"cos\nsystem", "byte 2: a line without an end");
    check(b"c\xff\nsystem\n", "byte 2: a line that is not UTF-8");
    for start in [&b""[..], b"\x80", b"\x80\x01.", b"\x80\x06.", b"(lp0\n."] {
        assert!(run(start).is_err(), "{start:?}");
    }
    let endless = b"N0".repeat(MAX_OPCODES);
    assert!(shown(&endless).ends_with("more than 4194304 opcodes"));
}

#[test]
fn names_join_keys_and_positions() {
    let body = with_tensors(&[
        b"}(X\x01\0\0\0a}X\x03\0\0\0b.c",
        b"T",
        b"s", // {"a": {"b.c": tensor}}
        b"K\x07(",
        b"T",
        b"N",
        b"T",
        b"t", // {7: (tensor, None, tensor)}
        b"X\x01\0\0\0n",
        b"N", // not a tensor
        b"N",
        b"T", // not a name
        b"u",
    ]);
    assert_eq!(names(&body).unwrap(), ["a.b.c [2, 3]", "7.0 [2, 3]", "7.2 [2, 3]"]);
    assert_eq!(names(TENSOR).unwrap(), [""; 0]);
    assert_eq!(names(&with_tensors(&[b"}\x8c\x00", b"T", b"s"])).unwrap(), [" [2, 3]"]);

    let twice = with_tensors(&[b"}(\x8c\x01a}\x8c\x01b", b"T", b"s\x8c\x03a.b", b"T", b"u"]);
    assert_eq!(names(&twice).unwrap_err(), "two tensors have the name a.b");
}

#[test]
fn containers_inside_of_themselves_end() {
    // d = {}; d["d"] = d; d["t"] = tensor
    let body = with_tensors(&[b"}q\x00\x8c\x01dh\x00s\x8c\x01t", b"T", b"s"]);
    assert_eq!(names(&body).unwrap(), ["t [2, 3]"]);
    // l = [t]; t = ([l],)
    assert_eq!(names(b"]q\0h\0\x85a").unwrap(), [""; 0]);
}

#[test]
fn nesting_and_sharing_are_bounded() {
    let deep = |depth: usize| [b"]".repeat(depth), b"a".repeat(depth - 1)].concat();
    assert!(names(&deep(64)).is_ok());
    assert!(names(&deep(65)).unwrap_err().contains("nests deeper than 64"));
    // Half a million containers in each other are neither visited nor dropped recursively.
    assert!(names(&deep(500_000)).is_err());
    assert!(names(&[b")".to_vec(), b"\x85".repeat(500_000)].concat()).is_err());

    // Thirty lists, each holding the next one twice: a billion paths to the innermost.
    let laughs: Vec<u8> = (0..30).flat_map(|_| *b"2\x86").collect();
    let error = names(&[b")".to_vec(), laughs].concat()).unwrap_err();
    assert!(error.contains("more than 1048576 values"), "{error}");

    let long = [&b"}X\x00\x10\0\0"[..], &[b'a'; 4096], TENSOR, b"s"].concat();
    assert!(names(&long).unwrap_err().contains("longer than 1024 bytes"));
}

#[test]
fn impossible_tensors_are_refused_by_name() {
    let rebuilt =
        |len: &[u8], offset: &[u8], sizes: &[u8], strides: &[u8]| {
            names(&with_tensors(&[
            b"}\x8c\x01wctorch._utils\n_rebuild_tensor_v2\n((\x8c\x07storagectorch\nFloatStorage\n\
                \x8c\x010\x8c\x03cpu",
            len, b"tQ", offset, b"(", sizes, b"t(", strides, b"t\x89NtRs",
        ]))
        };
    let refused = |result: Result<Vec<String>, String>, what: &str| {
        let error = result.unwrap_err();
        assert!(error.starts_with("tensor w has ") && error.contains(what), "{error}");
    };
    assert_eq!(rebuilt(b"K\x06", b"K\0", b"K\x02K\x03", b"K\x03K\x01").unwrap(), ["w [2, 3]"]);
    assert_eq!(rebuilt(b"K\x06", b"K\x05", b"", b"").unwrap(), ["w []"]);
    assert_eq!(rebuilt(b"K\0", b"K\x05", b"K\0", b"K\x01").unwrap(), ["w [0]"]);
    let beyond = "beyond its storage of 6 elements";
    refused(rebuilt(b"K\x06", b"K\x01", b"K\x02K\x03", b"K\x03K\x01"), beyond);
    refused(rebuilt(b"K\x06", b"K\x06", b"", b""), beyond);
    refused(rebuilt(b"K\x06", b"K\0", b"K\x03", b"K\x03"), beyond);
    let huge = b"\x8a\x08\0\0\0\0\0\0\0\x40";
    refused(rebuilt(b"K\x06", b"K\0", &[&huge[..], huge].concat(), b"K\0K\0"), beyond);
    refused(rebuilt(b"K\x06", b"K\0", b"K\x03", huge), beyond);
    let negative = b"J\xff\xff\xff\xff";
    refused(rebuilt(b"K\x06", b"K\0", negative, b"K\x01"), "sizes that are not sizes");
    refused(rebuilt(b"K\x06", b"K\0", b"N", b"K\x01"), "sizes that are not sizes");
    refused(rebuilt(b"K\x06", b"K\0", b"K\x02", negative), "strides that are not strides");
    refused(rebuilt(b"K\x06", negative, b"K\x02", b"K\x01"), "a negative offset");
    refused(rebuilt(negative, b"K\0", b"K\x02", b"K\x01"), "a storage of negative length");
    refused(rebuilt(b"K\x06", b"K\0", b"K\x02", b""), "1 sizes and 0 strides");
    refused(rebuilt(b"K\x06", b"K\0", &b"K\x01".repeat(65), &b"K\x01".repeat(65)), "not sizes");
}

#[test]
fn every_prefix_is_an_error() {
    let whole = pickle(&with_tensors(&[b"}q\0(\x8c\x01a", b"T", b"\x94X\x01\0\0\0bh\x01u"]));
    assert!(run(&whole).is_ok());
    for end in 0..whole.len() {
        assert!(run(&whole[..end]).is_err(), "{end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_pickle_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut damaged = pickle(&with_tensors(&[
            b"}q\0(\x8c\x01a", b"T", b"\x8c\x01c](", b"T", b"K\x01e\x94X\x01\0\0\0bh\x01u",
        ]));
        for (at, byte) in flips {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        if let Ok((heap, root)) = run(&damaged) {
            let _ = named_tensors(&heap, root);
        }
        if let Ok((heap, root)) = run(&pickle(&noise)) {
            let _ = named_tensors(&heap, root);
        }
    }
}
