//! The committed cases of `assets/parity`: what the released PyTorch code computed from small random
//! models, recomputed tensor by tensor.

use std::path::Path;

use burn::tensor::backend::AutodiffBackend;
use sar_parity::{Case, check};

/// What the laws of this part run on.
pub type Subject<A> = A;

/// FlexVAR with query and key normalization.
pub fn flexvar_tiny<A: AutodiffBackend>(device: &A::Device) {
    passes::<A>("flexvar_tiny", 201, device);
}

/// FlexVAR with one adaptive projection for all blocks, without query and key normalization.
pub fn flexvar_shared_adaln<A: AutodiffBackend>(device: &A::Device) {
    passes::<A>("flexvar_shared_adaln", 209, device);
}

/// VAR with ten scales that share four convolutions, the published table of ties.
pub fn var_tiny<A: AutodiffBackend>(device: &A::Device) {
    passes::<A>("var_tiny", 76, device);
}

/// VAR with five convolutions and one adaptive projection for all blocks.
pub fn var_phi5<A: AutodiffBackend>(device: &A::Device) {
    passes::<A>("var_phi5", 67, device);
}

fn passes<A: AutodiffBackend>(case: &str, tensors: usize, device: &A::Device) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/parity").join(case);
    let case = Case::load(&dir).unwrap_or_else(|error| panic!("{error}"));
    let report = check::<A>(&case, device).unwrap_or_else(|error| panic!("{error}"));
    let failures: Vec<String> = report.failures().map(|row| format!("{row:?}")).collect();
    assert!(failures.is_empty(), "{}\n{}", dir.display(), failures.join("\n"));
    assert_eq!(report.rows().count(), tensors, "{}: golden tensors", dir.display());
}
