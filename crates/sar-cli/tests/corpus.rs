//! The fuzz targets as plain tests: a corpus, and what becomes of it when bytes are changed, taken out, doubled
//! and cut off by chance.

#[allow(unreachable_pub, reason = "a library of its own where it is fuzzed")]
#[path = "../../../fuzz/src/lib.rs"]
mod targets;

use sar_core::SeedTree;

/// Inputs that come of each of the corpus.
const CHANGED: u64 = 60;

/// An input with a few changes.
fn changed(input: &[u8], draws: SeedTree) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for i in 0..1 + draws.below(0, 4) as u64 {
        let draw = |index, n: usize| draws.at(i).below(index, n);
        if bytes.is_empty() {
            break;
        }
        let (at, kind) = (draw(0, bytes.len()), draw(1, 5));
        match kind {
            0 => bytes[at] = draw(2, 256) as u8,
            1 => bytes[at] ^= 1 << draw(2, 8),
            2 => bytes.truncate(at),
            3 => _ = bytes.drain(at..(at + 1 + draw(2, 8)).min(bytes.len())),
            _ => {
                let end = (at + 1 + draw(2, 16)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

#[track_caller]
fn try_all(target: fn(&[u8]), corpus: &[&[u8]]) {
    for (i, input) in corpus.iter().enumerate() {
        target(input);
        for n in 0..CHANGED {
            target(&changed(input, SeedTree::new(i as u64).at(n)));
        }
    }
}

#[test]
fn recipes() {
    let built_in = sar_train::recipe::BUILT_IN.map(|(_, text)| text.as_bytes());
    try_all(targets::recipe, &built_in);
    let settings: [&[u8]; 5] = [
        b"tokenizer.steps=5",
        b"tokenizer.loss.perceptual={ kind = \"efficientnet-lite0\", weight = 1.0, enlarge = 2 }",
        b"data.source={ kind = \"folder\", path = \"images\" }",
        b"a.b.c={\n",
        b"",
    ];
    try_all(targets::recipe, &settings);
}

#[test]
fn lists() {
    try_all(
        targets::list,
        &[b"a.png cat\nb c.png dog\n\n# no\n", "\u{feff}ä.png 0\r\n".as_bytes()],
    );
}

#[test]
fn schedules() {
    try_all(
        targets::scales,
        &[b"1_2_3_4_6_8", b"1x2_3x4_16", b"256px", b"0_1", b"9_99999999999999999999"],
    );
}

#[test]
fn safetensors() {
    let header =
        br#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let file = [&header[..], b"\0", &[0; 8]].concat();
    try_all(targets::safetensors_file, &[&file, b"{}\0", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"]);
}

#[test]
fn indices_of_shards() {
    let index =
        br#"{"metadata":{"total_size":1},"weight_map":{"a":"sar-fuzz-1","b":"sar-fuzz-2"}}"#;
    try_all(targets::shards, &[index, b"{}", b"[]\0x"]);
}

/// A dictionary with one tensor of four floats.
const PICKLE: &[u8] = b"\x80\x02}q\x00X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89ccollections\nOrderedDict\n)Rt\x52s.";

#[test]
fn pickles() {
    try_all(targets::pth_pickle, &[PICKLE, b"\x80\x02}.", b"cos\nsystem\n(X\x02\x00\x00\x00lstR."]);
}

#[test]
fn files_of_torch() {
    let keys = b"\x80\x02]X\x01\x00\x00\x000a.";
    let storage = [&4u64.to_le_bytes()[..], &[0; 16]].concat();
    try_all(targets::pth_legacy, &[&[PICKLE, keys, &storage].concat(), b"", PICKLE]);
    try_all(targets::pth_file, &[b"\x14\0\0\0\0\0", b""]);
}
