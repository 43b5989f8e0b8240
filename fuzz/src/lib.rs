//! Inputs as files, for readers that take a path.

use std::fs;
use std::path::PathBuf;

/// Writes an input to a file of this process, in memory where the system has such a folder, and
/// returns its path.
pub fn file_of(content: &[u8], ending: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = folder.join(format!("sar-fuzz-{}.{ending}", std::process::id()));
    fs::write(&path, content).expect("the folder of temporary files can be written to");
    path
}
