//! The self-check against a backend that lies: every lie is found, by the probe that it is about.

use std::time::Instant;

use burn::backend::Autodiff;
use burn_flex::Flex;
use sar_selfcheck::{Outcome, Precision, Report, SelfCheckError, self_check};

use liar::{Liar, Lie, telling};

mod liar;

fn checked(lie: Lie) -> Result<Report, SelfCheckError> {
    telling(lie, || {
        self_check::<Autodiff<Liar>, Autodiff<Flex>>(&Default::default(), &Default::default())
    })
}

/// The names of the probes that found a lie.
fn found(lie: Lie) -> Vec<String> {
    let Err(error) = checked(lie) else { panic!("{lie:?} was believed") };
    assert_eq!(error.device, "liar");
    let text = error.to_string();
    assert!(text.starts_with("device liar: ") && !text.contains('\n'), "{text}");
    assert!(error.failed.iter().all(|probe| text.contains(&probe.name)), "{text}");
    error.failed.into_iter().map(|probe| probe.name).collect()
}

/// Asserts that exactly these probes found a lie.
#[track_caller]
fn expect(lie: Lie, expected: &[&str]) {
    assert_eq!(found(lie), expected, "{lie:?}");
}

/// Asserts that these probes are among those that found a lie.
#[track_caller]
fn expect_among(lie: Lie, expected: &[&str]) {
    let found = found(lie);
    for name in expected {
        assert!(found.iter().any(|found| found == name), "{lie:?}: {name} is not in {found:?}");
    }
}

const LOGITS: &str = "logits of a block over 2 x 680 tokens";
const CHAIN: &str = "norm, gelu and softmax [680,512]";
const AGAIN: &str = "norm, gelu and softmax [680,512], the second time";

#[test]
fn the_truth_is_believed() {
    let start = Instant::now();
    let report = checked(Lie::Nothing).unwrap_or_else(|error| panic!("{error}"));
    println!("{report}, in {:.2} s", start.elapsed().as_secs_f64());
    assert_eq!(report.f32_products, Precision::Full);
    assert!(report.largest_product_error() > 0.0, "nothing was computed");
    // Every parameter of the block is compared, the adaptive norms' too.
    let gradients = report.probes.iter().filter(|probe| probe.name.starts_with("gradient of "));
    assert_eq!(gradients.count(), 21);
    // Well inside what is allowed: another order of summation has to pass, too.
    for probe in &report.probes {
        if let Outcome::Values { error, allowed } = probe.outcome {
            assert!(error < allowed / 5.0, "{}: {error}", probe.name);
        }
    }
}

#[test]
fn products_that_read_short_of_their_inner_size_are_found() {
    for k in [680, 192, 8912] {
        let (plain, column) =
            (format!("product [680,{k}]x["), format!("product [680,{k}]x[{k},1]"));
        let found = found(Lie::ShortInner(k, 1));
        let both = found.iter().filter(|name| name.starts_with(&plain)).count();
        assert!(both >= 2 && found.contains(&column), "{k}: {found:?}");
        let others = ["[680,1360]x", "[1,1360]x"].map(|size| format!("product {size}"));
        assert!(!found.iter().any(|name| others.iter().any(|other| name.starts_with(other))));
    }
}

#[test]
fn products_near_zero_for_many_rows_are_found() {
    expect_among(
        Lie::NearZeroFor500Rows,
        &["product [680,64]x[64,64]", "product [680,8912]x[8912,33]", LOGITS],
    );
}

#[test]
fn a_wrong_product_of_one_column_is_found() {
    expect(
        Lie::OneColumn,
        &[64, 192, 680, 1360, 8912]
            .map(|k| format!("product [680,{k}]x[{k},1]"))
            .each_ref()
            .map(String::as_str),
    );
}

#[test]
fn wrong_products_of_transposed_views_are_found() {
    let right = "product [680,192]x[64,192]^T";
    expect_among(Lie::TransposedRight, &[right, "product [2,2,680,64]x[2,2,680,64]^T"]);
    expect_among(Lie::TransposedLeft, &["product [680,192]^T x [680,64]"]);
}

#[test]
fn products_in_tf32_are_believed_and_said() {
    let report = checked(Lie::Rounded(10)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.f32_products, Precision::Reduced);
    assert!(report.to_string().contains("reduced precision, as in TF32"), "{report}");
}

#[test]
fn products_in_bf16_are_found() {
    expect_among(Lie::Rounded(7), &["product [680,64]x[64,64]"]);
}

#[test]
fn a_panic_is_a_finding() {
    let text = checked(Lie::Panics(1360)).expect_err("a device that panics").to_string();
    let expected = "product [680,1360]x[1360,64] gave no result: it panicked: no kernel for an inner \
                    size of 1360";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn wrong_sums_are_found() {
    expect_among(Lie::ShortSums, &["sum of [8, 85, 512] along axis 1", "draw from [680,8912]"]);
}

#[test]
fn wrong_draws_are_found() {
    expect(Lie::LowerEqual, &["draw from [680,8912]"]);
    // The cumulative sums inside a block of codes.
    expect(Lie::ShortInner(95, 16), &["draw from [680,8912]"]);
}

#[test]
fn results_of_an_earlier_run_are_found() {
    let found = found(Lie::StaleExponentials);
    assert!(found.contains(&AGAIN.to_owned()), "{found:?}");
    assert!(!found.contains(&CHAIN.to_owned()), "{found:?}");
}

#[test]
fn outputs_that_no_kernel_wrote_are_found() {
    expect_among(Lie::UnwrittenArgmax, &["argmax of [680,8912]"]);
    expect_among(Lie::UnwrittenGather, &["gather from [680,8912]", "draw from [680,8912]"]);
    expect(Lie::UnwrittenTanh, &[CHAIN, AGAIN]);
}

#[test]
fn a_lost_gradient_is_found_by_its_parameter() {
    expect(Lie::LostSelectGradient, &["gradient of class_emb.weight"]);
}
