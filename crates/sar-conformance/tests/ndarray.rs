//! All laws on burn's ndarray backend.

use burn::backend::Autodiff;

sar_conformance::tests!(Autodiff<burn_ndarray::NdArray>);
