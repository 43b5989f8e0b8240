//! Damaged files give errors or tensors, and never a panic.

use std::sync::LazyLock;

use crate::support::{Spec, f32s, parity, pickle, read, unzip, zip};
use proptest::prelude::*;
use proptest::sample::Index;
use zip::CompressionMethod::{Deflated, Stored};

/// The entries of a real checkpoint, its numbers among them.
static RELEASED: LazyLock<Vec<(String, Vec<u8>)>> =
    LazyLock::new(|| unzip(&std::fs::read(parity("flexvar_shared_adaln/backbone.pth")).unwrap()));

fn flip(content: &mut [u8], flips: &[(Index, u8)]) {
    for (at, byte) in flips {
        content[at.index(content.len())] ^= byte;
    }
}

fn flips() -> impl Strategy<Value = Vec<(Index, u8)>> {
    prop::collection::vec((any::<Index>(), 1u8..), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Checksums are right here, so that the damage reaches the interpreter.
    #[test]
    fn a_damaged_pickle_never_panics(flips in flips()) {
        let mut entries = RELEASED.clone();
        let (_, pickle) = entries.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap();
        flip(pickle, &flips);
        let entries: Vec<(&str, &[u8])> =
            entries.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        let _ = read(&zip(&entries, Stored));
    }

    #[test]
    fn a_damaged_zip_file_never_panics(flips in flips(), deflate in any::<bool>()) {
        let pickle = pickle(&[
            Spec("w", "Float", "0", 6, 0, &[3, 2], &[1, 3]),
            Spec("v", "Byte", "1", 5, 0, &[5], &[1]),
        ]);
        let numbers = f32s((0..6).map(|x| x as f32));
        let entries = [("a/data.pkl", &pickle[..]), ("a/data/0", &numbers), ("a/data/1", b"12345")];
        let mut content = zip(&entries, if deflate { Deflated } else { Stored });
        flip(&mut content, &flips);
        let _ = read(&content);
    }

    #[test]
    fn a_damaged_safetensors_file_never_panics(flips in flips()) {
        let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BOOL","shape":[3],"data_offsets":[8,11]}}"#;
        let mut content = (header.len() as u64).to_le_bytes().to_vec();
        content.extend(header);
        content.extend(f32s([1.0, 2.0]));
        content.extend([0, 1, 1]);
        prop_assert!(read(&content).is_ok());
        flip(&mut content, &flips);
        let _ = read(&content);
    }
}
