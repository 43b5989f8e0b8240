//! Any pickle in a sound zip file: the checksums are right, so that the bytes reach the interpreter.

#![no_main]

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use sar_fuzz::file_of;
use sar_weights::{NamedTensors, WeightsFile, recognize};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fuzz_target!(|pickle: &[u8]| {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let storages = [[0; 64], [1; 64], [0x80; 64]];
    let mut add = |name: &str, content: &[u8]| {
        zip.start_file(name, options).expect("a short name");
        zip.write_all(content).expect("memory can be written to");
    };
    add("a/data.pkl", pickle);
    for (key, storage) in storages.iter().enumerate() {
        add(&format!("a/data/{key}"), storage);
    }
    let content = zip.finish().expect("memory can be written to").into_inner();
    let path = file_of(&content, "pth");
    if let Ok(file) = WeightsFile::open(&path) {
        let _ = recognize(&path, file.tensors());
    }
    if let Ok(named) = NamedTensors::read(&path) {
        // What was read can be written and is read again.
        let copy = path.with_extension("copy");
        named.write_pth(&copy, "").expect("every tensor of a .pth fits into one");
        // Where nothing but unreadable tensors was found, nothing was written.
        if !named.is_empty() {
            assert_eq!(NamedTensors::read(&copy).expect("just written").infos(), named.infos());
        }
    }
});
