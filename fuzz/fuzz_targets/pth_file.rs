//! Any bytes behind the magic number of a zip file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_fuzz::file_of;
use sar_weights::{NamedTensors, WeightsFile, recognize};

fuzz_target!(|content: &[u8]| {
    let path = file_of(&[b"PK\x03\x04", content].concat(), "pth");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = recognize(&path, file.tensors());
        let _ = file.verify();
    }
    let _ = NamedTensors::read(&path);
});
