//! The committed cases pass completely, on every CPU backend.

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::backend::AutodiffBackend;
use sar_parity::{Case, check};

fn passes<A: AutodiffBackend>(case: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/parity").join(case);
    let report = check::<A>(&Case::load(&dir).unwrap(), &A::Device::default()).unwrap();
    assert_eq!(report.failures().count(), 0, "{case}\n{report}");
    assert!(report.rows().count() > 190, "{case} has fewer golden tensors than it should");
}

#[test]
fn flexvar_tiny_on_flex() {
    passes::<Autodiff<burn_flex::Flex>>("flexvar_tiny");
}

#[test]
fn flexvar_shared_adaln_on_flex() {
    passes::<Autodiff<burn_flex::Flex>>("flexvar_shared_adaln");
}

#[test]
fn flexvar_tiny_on_ndarray() {
    passes::<Autodiff<burn_ndarray::NdArray>>("flexvar_tiny");
}

#[test]
fn flexvar_shared_adaln_on_ndarray() {
    passes::<Autodiff<burn_ndarray::NdArray>>("flexvar_shared_adaln");
}
