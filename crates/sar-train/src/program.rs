//! Which program runs.

use std::fs::File;
use std::io::{self, Read};

use sar_weights::Crc32;

use crate::TrainError;

/// Version and checksum (CRC-32, in hexadecimal) of the program that runs: `0.1.0 1a2b3c4d`.
///
/// # Errors
/// If its file cannot be read.
pub fn program() -> Result<String, TrainError> {
    let path = std::env::current_exe().map_err(TrainError::io("".as_ref(), "program unknown"))?;
    let checksum = || -> io::Result<Crc32> {
        let mut file = File::open(&path)?;
        let (mut crc, mut buffer) = (Crc32::default(), vec![0; 1 << 16]);
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(crc),
                n => crc.update(&buffer[..n]),
            }
        }
    };
    let checksum = checksum().map_err(TrainError::io(&path, "cannot be read"))?;
    Ok(format!("{} {checksum}", env!("CARGO_PKG_VERSION")))
}
