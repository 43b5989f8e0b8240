//! Any text as a scale schedule: an error of one line, or a schedule that survives being written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_core::{ScaleSchedule, ScaleSize};

fuzz_target!(|text: &str| {
    match text.parse::<ScaleSchedule>() {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(scales) => {
            assert_eq!(scales.to_string().parse(), Ok(scales.clone()));
            assert_eq!(scales.ranges().last().map(|range| range.end), Some(scales.n_tokens()));
            let last = ScaleSize { width: scales.last().width + 1, ..scales.last() };
            if let Ok(wider) = scales.with_last(last) {
                assert_eq!(wider.last(), last);
            }
        }
    }
});
