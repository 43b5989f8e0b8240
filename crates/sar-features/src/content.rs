//! Whether a user's file holds what it should: its shapes are not all that can be wrong.

use std::fs::File;
use std::io;
use std::path::Path;

use sar_weights::WeightsError;
use sha2::{Digest, Sha256};

/// How far a value may be from the released one, as a part of it: copies in half precision are nearer.
const TOLERANCE: f64 = 5e-3;

/// Refuses a file whose name says the beginning of its SHA-256, as torch names what it fetches, and whose
/// content has another. Files of other names pass.
///
/// # Errors
/// If the file cannot be read, or is not what its name says.
pub(crate) fn check_hash(path: &Path, sha256: &str) -> Result<(), WeightsError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.ends_with(&format!("-{sha256}.pth")) {
        return Ok(());
    }
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hash))
        .map_err(|error| WeightsError::Read { path: path.into(), error })?;
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found.starts_with(sha256) {
        return Ok(());
    }
    let reason = format!(
        "its SHA-256 begins with {}, not with {sha256} as its name says (a copy that was saved \
         anew needs another name)",
        &found[..sha256.len()]
    );
    Err(WeightsError::Damaged { path: path.into(), reason })
}

/// Refuses weights that are not those released, by some numbers of them: what each is, as it is and as it
/// should be.
///
/// # Errors
/// With the first number that is another.
pub(crate) fn check_values<'n>(
    path: &Path,
    numbers: impl IntoIterator<Item = (&'n str, f64, f64)>,
    advice: &'static str,
) -> Result<(), WeightsError> {
    let is_other = |found: f64, released: f64| {
        let apart = (found - released).abs();
        apart.is_nan() || apart > TOLERANCE * released.abs()
    };
    match numbers.into_iter().find(|(_, found, released)| is_other(*found, *released)) {
        None => Ok(()),
        Some((what, found, released)) => {
            let reason = format!("{what} is {found:.4}, and {released:.4} in the released weights");
            Err(WeightsError::Unsupported { path: path.into(), reason, advice })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_says_a_hash_is_held_to_it() {
        let folder = tempfile::tempdir().unwrap();
        // FIPS 180-2, appendix B.1: SHA-256 of "abc".
        let check = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            check_hash(&path, "ba7816bf").map_err(|error| error.to_string())
        };
        assert_eq!(check("net-ba7816bf.pth", "abc"), Ok(()));
        for name in ["net.pth", "net-ba7816bf.safetensors", "net-cb00753f.pth", "netba7816bf.pth"] {
            assert_eq!(check(name, "abd"), Ok(()), "{name}");
        }
        let error = check("net-ba7816bf.pth", "abd").unwrap_err();
        assert!(error.contains("begins with a52d159f, not with ba7816bf"), "{error}");
        assert!(!error.contains('\n'), "{error}");
        let error = check_hash(&folder.path().join("no-ba7816bf.pth"), "ba7816bf").unwrap_err();
        assert!(matches!(error, WeightsError::Read { .. }), "{error}");
    }

    #[test]
    fn copies_in_half_precision_pass_and_others_do_not() {
        let check = |found: f64| {
            let numbers = [("a", -1.0, -1.0), ("the sum of b", found, 6.926)];
            check_values("heads.pth".as_ref(), numbers, "give others")
                .map_err(|error| error.to_string())
        };
        // bf16 rounds to 8 bits, by one part in 256 at most.
        for found in [6.926, 6.926 * (1.0 + 1.0 / 256.0), 6.926 * (1.0 - 1.0 / 256.0)] {
            assert_eq!(check(found), Ok(()));
        }
        let expected =
            "heads.pth: the sum of b is 3.6416, and 6.9260 in the released weights; give others";
        assert_eq!(check(3.6416), Err(expected.to_owned()));
        for found in [6.88, f64::NAN, -6.926] {
            assert!(check(found).is_err(), "{found}");
        }
    }
}
