//! Any index of shards, beside a sound shard that it may name, and any second shard.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use sar_fuzz::file_of;
use sar_weights::{NamedTensors, WeightsFile};

/// One tensor `a` of one byte.
const SHARD: &[u8] = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;

fuzz_target!(|content: &[u8]| {
    let end = content.iter().position(|&byte| byte == 0).unwrap_or(content.len());
    let (index, rest) = content.split_at(end);
    let shard = [&(SHARD.len() as u64).to_le_bytes(), SHARD, b"x"].concat();
    let path = file_of(index, "json");
    let folder = path.parent().expect("a file lies in a folder");
    fs::write(folder.join("sar-fuzz-1"), shard).expect("the folder can be written to");
    fs::write(folder.join("sar-fuzz-2"), rest).expect("the folder can be written to");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = file.verify();
        let _ = file.check_readable(|_| true);
    }
    let _ = NamedTensors::read(&path);
});
