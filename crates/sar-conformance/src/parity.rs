//! The committed cases of `assets/parity`: what the released PyTorch code computed from small random
//! models, recomputed tensor by tensor.

use std::path::Path;

use burn::tensor::backend::AutodiffBackend;
use sar_parity::{Case, check};

/// What the laws of this part run on.
pub type Subject<A> = A;

/// FlexVAR with query and key normalisation.
pub fn flexvar_tiny<A: AutodiffBackend>(device: &A::Device) {
    passes::<A>("flexvar_tiny", device);
}

/// FlexVAR with one adaptive projection for all blocks, without query and key normalisation.
pub fn flexvar_shared_adaln<A: AutodiffBackend>(device: &A::Device) {
    passes::<A>("flexvar_shared_adaln", device);
}

fn passes<A: AutodiffBackend>(case: &str, device: &A::Device) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/parity").join(case);
    let case = Case::load(&dir).unwrap_or_else(|error| panic!("{error}"));
    let report = check::<A>(&case, device).unwrap_or_else(|error| panic!("{error}"));
    let failures: Vec<String> = report.failures().map(|row| format!("{row:?}")).collect();
    assert!(failures.is_empty(), "{}\n{}", dir.display(), failures.join("\n"));
    assert!(report.rows().count() > 190, "{} has too few golden tensors", dir.display());
}
