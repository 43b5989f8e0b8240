//! Damaged files give errors or tensors, and never a panic.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crate::support::{Spec, every_type, f32s, fixture, legacy, parity, pickle, read, unzip, zip};
use proptest::prelude::*;
use proptest::sample::Index;
use sar_weights::WeightsFile;
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

/// A generator of damage that is the same everywhere: splitmix64.
struct Damage(u64);

impl Damage {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % below as u64) as usize
    }

    /// Cuts, flips, overwrites, moves or repeats a little of a file.
    fn of(&mut self, content: &[u8]) -> Vec<u8> {
        let mut damaged = content.to_vec();
        for _ in 0..=self.next(3) {
            let n = damaged.len();
            if n == 0 {
                break;
            }
            let at = self.next(n);
            let length = (1 + self.next(16)).min(n - at);
            match self.next(7) {
                0 => damaged.truncate(at),
                1 => damaged[at] ^= 1 << self.next(8),
                2 => damaged[at] = self.next(256) as u8,
                3 => damaged[at..at + length].fill([0, 0xff, 0x7f][self.next(3)]),
                4 => damaged.copy_within(at..at + length, self.next(n - length + 1)),
                5 => drop(damaged.drain(at..at + length)),
                _ => {
                    let again = damaged[at..at + length].to_vec();
                    damaged.splice(at..at, again);
                }
            }
        }
        damaged
    }
}

/// Everything that is done with a file: listing, verifying, reading one by one and all at once.
/// Returns whether all of it went well.
fn survives(path: &Path) -> bool {
    let Ok(mut file) = WeightsFile::open(path) else { return false };
    let mut well = file.verify().is_ok();
    for name in file.tensors().iter().map(|info| info.name.clone()).collect::<Vec<_>>() {
        well &= file.read(&name).is_ok();
    }
    let _ = file.check_readable(|_| true);
    file.read_all().is_ok() && well
}

#[test]
fn files_damaged_in_thousands_of_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    let object = pickle(&[
        Spec("w", "Float", "0", 6, 0, &[3, 2], &[1, 3]),
        Spec("v", "Byte", "1", 5, 1, &[4], &[1]),
        Spec("u", "Byte", "1", 5, 0, &[2, 2], &[0, 1]),
        Spec("t", "QInt8", "2", 3, 0, &[3], &[1]),
    ]);
    let numbers = f32s((0..6).map(|x| x as f32));
    every_type().write_safetensors(&path).unwrap();
    let entries = [("a/data.pkl", &object[..]), ("a/data/0", &numbers), ("a/data/1", b"12345")];
    let corpus = [
        legacy(&object, &[("0", 6, &numbers), ("1", 5, b"12345"), ("2", 3, b"123")]),
        zip(&entries, Stored),
        fs::read(&path).unwrap(),
        fs::read(fixture("legacy.pth")).unwrap(),
        fs::read(fixture("legacy_foreign.pth")).unwrap(),
        fs::read(fixture("foreign.pth")).unwrap(),
    ];
    for (seed, content) in corpus.iter().enumerate() {
        fs::write(&path, content).unwrap();
        assert!(survives(&path), "file {seed} is sound");
        let mut damage = Damage(seed as u64);
        let mut n_refused = 0;
        for _ in 0..600 {
            fs::write(&path, damage.of(content)).unwrap();
            n_refused += usize::from(!survives(&path));
        }
        assert!(n_refused > 100, "file {seed}: {n_refused} of 600 refused, so nothing was damaged");
    }
}

#[test]
fn shards_damaged_in_many_ways() {
    let folder = tempfile::tempdir().unwrap();
    let spec = |name| [Spec(name, "Float", "0", 6, 0, &[3, 2], &[1, 3])];
    let numbers = f32s((0..6).map(|x| x as f32));
    let index = r#"{"metadata": {"total_size": 48}, "weight_map": {"w": "1.bin", "v": "2.bin"}}"#;
    let zipped = zip(&[("a/data.pkl", &pickle(&spec("v"))[..]), ("a/data/0", &numbers)], Stored);
    let files = [
        ("pytorch_model.bin.index.json", index.as_bytes().to_vec()),
        ("1.bin", legacy(&pickle(&spec("w")), &[("0", 6, &numbers)])),
        ("2.bin", zipped),
    ];
    let write = |round: usize, mut damage: Option<&mut Damage>| {
        for (at, (name, content)) in files.iter().enumerate() {
            let content = match &mut damage {
                Some(damage) if round % files.len() == at => damage.of(content),
                _ => content.clone(),
            };
            fs::write(folder.path().join(name), content).unwrap();
        }
        survives(folder.path())
    };
    assert!(write(0, None));
    let mut damage = Damage(7);
    let n_refused = (0..900).filter(|&round| !write(round, Some(&mut damage))).count();
    assert!(n_refused > 300, "{n_refused} of 900 refused, so nothing was damaged");
}
