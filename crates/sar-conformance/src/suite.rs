//! The list of all laws.

use std::sync::{Mutex, PoisonError};

/// Runs one law at a time. Laws of one process would share the graphs of burn-autodiff, which at the
/// end of a backward pass may free what another thread is still building: a gradient would be lost,
/// rarely.
#[doc(hidden)]
pub fn alone(law: impl FnOnce()) {
    static ALONE: Mutex<()> = Mutex::new(());
    // A law that failed has nothing to leave behind.
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    law();
}

/// Makes a `#[test]` of every law for an autodiff backend, or of the laws of the named parts.
///
/// ```text
/// tests!(Autodiff<MyBackend>);
/// tests!(Autodiff<MyBackend>; kernels, model);
/// tests!(Autodiff<MyBackend>; kernels, parity(flexvar_tiny));
/// ```
/// Each part becomes a module of its name. [The crate](crate) says more.
#[macro_export]
macro_rules! tests {
    (@part $backend:ty, first_scale) => {
        $crate::tests!(@part $backend, first_scale(
            a_masked_scale_step_by_step_is_the_parallel_pass,
            a_scale_in_random_order_is_causal,
            a_scale_in_random_order_token_by_token_is_the_parallel_pass,
            greedy_tokens_in_random_order_are_what_the_parallel_pass_predicts,
            one_step_over_a_masked_scale_is_one_parallel_step,
            samples_of_any_first_scale_do_not_depend_on_their_batch,
        ));
    };
    (@part $backend:ty, kernels) => {
        $crate::tests!(@part $backend, kernels(
            bicubic_equals_published_numbers,
            codes_are_counted_with_their_repetitions,
            cross_entropy_equals_f64,
            draws_follow_the_distribution,
            elementary_functions_have_the_accuracy_of_f32,
            filters_equal_sorting,
            guidance_mixes_as_stated,
            nearest_codes_are_nearest,
            resampling_equals_its_definition,
            structural_similarity_equals_its_definition,
            sums_along_every_axis_equal_f64,
        ));
    };
    (@part $backend:ty, large) => {
        $crate::tests!(@part $backend, large(
            chains_sums_and_places_equal_the_host,
            draws_from_a_filtered_codebook_lie_in_their_part,
            products_equal_f64,
        ));
    };
    (@part $backend:ty, model) => {
        $crate::tests!(@part $backend, model(
            a_cached_pass_in_half_precision_is_nearly_the_parallel_pass,
            a_cached_pass_is_the_parallel_pass,
            a_token_sees_its_own_and_coarser_scales_and_nothing_finer,
            a_token_sees_the_scales_that_visibility_says,
            dropped_branches_change_their_own_image_only,
            one_scale_behind_the_class_token_leaves_nothing_to_see,
            the_start_position_is_in_the_first_token_of_teacher_forcing_only,
            weights_survive_the_way_out_and_in,
        ));
    };
    (@part $backend:ty, operators) => {
        $crate::tests!(@part $backend, operators(
            adaptive_layer_norm_equals_f64,
            attention_equals_f64,
            attention_of_zeros_has_finite_gradients,
            cached_attention_equals_f64,
            convolution_equals_f64,
            cross_entropies_equal_f64,
            double_sides_equals_f64,
            gelu_equals_f64,
            group_norm_equals_f64,
            inverted_bottleneck_equals_f64,
            linear_equals_f64,
        ));
    };
    (@part $backend:ty, rollout) => {
        $crate::tests!(@part $backend, rollout(
            greedy_tokens_are_what_the_parallel_pass_predicts,
            samples_do_not_depend_on_their_batch,
        ));
    };
    (@part $backend:ty, training) => {
        $crate::tests!(@part $backend, training(
            a_scaled_loss_has_the_same_gradients,
            a_step_that_overflowed_is_not_taken,
            adamw_equals_its_equations,
            clipping_limits_the_norm,
            gradients_behind_a_growing_codebook_equal_finite_differences,
            gradients_of_resampling_are_its_transpose,
            gradients_of_the_backbone_equal_finite_differences,
            gradients_of_the_tokenizer_equal_finite_differences,
            micro_batches_add_up_whatever_the_workers,
            muon_equals_its_equations,
            products_in_half_precision_give_nearly_the_same_gradients,
            the_quantizer_passes_gradients_straight_through,
            training_a_backbone_lowers_its_losses,
            training_a_tokenizer_lowers_its_loss,
            training_in_half_precision_follows_the_curve_of_f32,
        ));
    };
    (@part $backend:ty, parity) => {
        $crate::tests!(@part $backend, parity(
            flexvar_shared_adaln,
            flexvar_tiny,
            var_phi5,
            var_tiny,
        ));
    };
    (@part $backend:ty, $part:ident($($law:ident),+ $(,)?)) => {
        mod $part {
            #[allow(unused_imports, reason = "a backend may be named by a whole path")]
            use super::*;
            $(
                #[test]
                fn $law() {
                    $crate::alone(|| {
                        $crate::$part::$law::<$crate::$part::Subject<$backend>>(&Default::default())
                    });
                }
            )+
        }
    };
    ($backend:ty) => {
        $crate::tests!(
            $backend; kernels, large, operators, model, first_scale, rollout, training, parity
        );
    };
    ($backend:ty; $($part:ident $(($($law:ident),+ $(,)?))?),+ $(,)?) => {
        $( $crate::tests!(@part $backend, $part $(($($law),+))?); )+
    };
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    const LIST: &str = include_str!("suite.rs");

    #[test]
    fn every_law_is_in_the_list() {
        for part in [
            include_str!("first_scale.rs"),
            include_str!("kernels.rs"),
            include_str!("large.rs"),
            include_str!("model.rs"),
            include_str!("operators.rs"),
            include_str!("parity.rs"),
            include_str!("rollout.rs"),
            include_str!("training.rs"),
        ] {
            let laws =
                part.lines().filter_map(|line| line.strip_prefix("pub fn ")?.split('<').next());
            let laws: Vec<&str> = laws.collect();
            assert!(laws.len() > 1, "laws are public functions");
            for law in laws {
                assert!(LIST.contains(&format!("            {law},\n")), "{law} is no test");
            }
        }
    }

    #[test]
    fn every_parity_case_is_a_law() {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/parity");
        for folder in cases.read_dir().unwrap().map(Result::unwrap) {
            if folder.path().join("case.json").is_file() {
                let case = folder.file_name().into_string().unwrap();
                let law = format!("pub fn {case}<");
                assert!(include_str!("parity.rs").contains(&law), "{case} is in no test");
            }
        }
    }
}
