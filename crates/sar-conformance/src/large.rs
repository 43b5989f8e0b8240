//! Operations at the sizes of a model that trains, where autotune takes other kernels than for small
//! tensors: the probes of [`sar_selfcheck`].

use burn::tensor::backend::{AutodiffBackend, Backend};
use sar_selfcheck::{Precision, Probe};

/// What the laws of this part run on.
pub type Subject<A> = <A as AutodiffBackend>::InnerBackend;

/// Inner sizes of 64 to 8912, one row and one column, transposed and batched operands, a convolution.
/// TF32 is precise enough.
pub fn products_equal_f64<B: Backend>(device: &B::Device) {
    assert_all_hold(&sar_selfcheck::products::<B>(device));
}

/// Chains that fusion joins, twice with other inputs; sums along every axis; argmax, gather, select.
pub fn chains_sums_and_places_equal_the_host<B: Backend>(device: &B::Device) {
    assert_all_hold(&sar_selfcheck::operations::<B>(device));
}

/// 8912 codes, nine of ten with probability zero.
pub fn draws_from_a_filtered_codebook_lie_in_their_part<B: Backend>(device: &B::Device) {
    let precision = Precision::of(&sar_selfcheck::products::<B>(device));
    assert_all_hold(&sar_selfcheck::draws::<B>(device, precision));
}

fn assert_all_hold(probes: &[Probe]) {
    let failed: Vec<String> =
        probes.iter().filter(|probe| !probe.holds()).map(Probe::to_string).collect();
    assert!(!probes.is_empty() && failed.is_empty(), "{}", failed.join("; "));
}
