//! Any header and any bytes behind it; the length of the header is right, or the first bytes say it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_fuzz::file_of;
use sar_weights::{NamedTensors, WeightsFile, recognize};

fuzz_target!(|content: &[u8]| {
    let framed = match content.iter().position(|&byte| byte == 0) {
        Some(end) => [&(end as u64).to_le_bytes(), &content[..end], &content[end + 1..]].concat(),
        None => content.to_vec(),
    };
    let path = file_of(&framed, "safetensors");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = recognize(&path, file.tensors());
        let _ = file.verify();
    }
    if let Ok(named) = NamedTensors::read(&path) {
        let copy = path.with_extension("copy");
        named.write_safetensors(&copy).expect("every tensor of the format fits into it");
        assert_eq!(NamedTensors::read(&copy).expect("just written").infos(), named.infos());
    }
});
