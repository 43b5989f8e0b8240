#![no_main]

libfuzzer_sys::fuzz_target!(|content: &[u8]| sar_fuzz::shards(content));
