//! The committed cases pass completely, on every CPU backend.

use std::path::Path;

use burn::backend::Autodiff;
use burn::tensor::backend::AutodiffBackend;
use sar_parity::{Case, check};

fn passes<A: AutodiffBackend>(case: &str, tensors: usize) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/parity").join(case);
    let report = check::<A>(&Case::load(&dir).unwrap(), &A::Device::default()).unwrap();
    assert_eq!(report.failures().count(), 0, "{case}\n{report}");
    assert_eq!(report.rows().count(), tensors, "{case} has other golden tensors than it should");
}

macro_rules! cases {
    ($($name:ident: $tensors:literal,)*) => {
        mod flex {
            $(#[test]
            fn $name() {
                super::passes::<super::Autodiff<burn_flex::Flex>>(stringify!($name), $tensors);
            })*
        }

        mod ndarray {
            $(#[test]
            fn $name() {
                super::passes::<super::Autodiff<burn_ndarray::NdArray>>(stringify!($name), $tensors);
            })*
        }
    };
}

cases! {
    flexvar_tiny: 201,
    flexvar_shared_adaln: 209,
    var_tiny: 76,
    var_phi5: 67,
}
