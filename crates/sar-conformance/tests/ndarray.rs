//! All laws on burn's ndarray backend.

use burn::backend::Autodiff;

sar_conformance::tests!(Autodiff<burn_ndarray::NdArray>);

/// One block forward and backward besides, against flex.
#[test]
fn the_self_check_passes() {
    sar_conformance::alone(|| {
        let report = sar_selfcheck::self_check::<
            Autodiff<burn_ndarray::NdArray>,
            Autodiff<burn_flex::Flex>,
        >(&Default::default(), &Default::default());
        println!("{}", report.unwrap_or_else(|error| panic!("{error}")));
    });
}
