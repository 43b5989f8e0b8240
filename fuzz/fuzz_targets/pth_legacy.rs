//! Any pickles and storages behind the magic number of torch's legacy form.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sar_fuzz::file_of;
use sar_weights::{NamedTensors, WeightsFile};

/// Magic number, protocol version and the description of the machine, each a pickle.
const START: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";

fuzz_target!(|content: &[u8]| {
    let path = file_of(&[START, content].concat(), "pth");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = file.check_readable(|_| true);
        let _ = file.verify();
    }
    if let Ok(named) = NamedTensors::read(&path) {
        // What was read can be written and is read again.
        let copy = path.with_extension("copy");
        named.write_pth(&copy, "").expect("every tensor of a .pth fits into one");
        if !named.is_empty() {
            assert_eq!(NamedTensors::read(&copy).expect("just written").infos(), named.infos());
        }
    }
});
