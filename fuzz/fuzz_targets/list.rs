#![no_main]

libfuzzer_sys::fuzz_target!(|content: &[u8]| sar_fuzz::list(content));
