//! A subset on burn's wgpu backend: small enough for a software driver.

use burn::backend::Autodiff;

sar_conformance::tests!(Autodiff<burn_wgpu::Wgpu>; kernels, operators, model, parity(flexvar_tiny), training(
    adamw_equals_its_equations,
    clipping_limits_the_norm,
    gradients_of_resampling_are_its_transpose,
    gradients_of_the_backbone_equal_finite_differences,
    the_quantiser_passes_gradients_straight_through,
));
