//! A subset on burn's wgpu backend: small enough for a software driver.

use burn::backend::Autodiff;

sar_conformance::tests!(Autodiff<burn_wgpu::Wgpu>; kernels, large, operators, model, first_scale(
    a_masked_scale_step_by_step_is_the_parallel_pass,
    a_scale_in_random_order_token_by_token_is_the_parallel_pass,
    one_step_over_a_masked_scale_is_one_parallel_step,
), parity(flexvar_tiny), training(
    adamw_equals_its_equations,
    clipping_limits_the_norm,
    gradients_behind_a_growing_codebook_equal_finite_differences,
    gradients_of_resampling_are_its_transpose,
    gradients_of_the_backbone_equal_finite_differences,
    muon_equals_its_equations,
    the_quantizer_passes_gradients_straight_through,
));

/// One block forward and backward besides, against flex.
#[test]
fn the_self_check_passes() {
    sar_conformance::alone(|| {
        let report = sar_selfcheck::self_check::<
            Autodiff<burn_wgpu::Wgpu>,
            Autodiff<burn_flex::Flex>,
        >(&Default::default(), &Default::default());
        println!("{}", report.unwrap_or_else(|error| panic!("{error}")));
    });
}
