//! A subset on burn's wgpu backend: small enough for a software driver.

use burn::backend::Autodiff;

sar_conformance::tests!(Autodiff<burn_wgpu::Wgpu>);
