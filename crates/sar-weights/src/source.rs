//! The bytes of weights: a file, or memory.

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::WeightsError;

/// Bytes that can be read at any place, and what they are called in messages.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    n_bytes: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(File),
    Memory(Cursor<Vec<u8>>),
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |error| WeightsError::Read { path: path.into(), error };
        let about = fs::metadata(path).map_err(failed)?;
        if !about.is_file() {
            // Opening a pipe would wait for its other end.
            let what = if about.is_dir() { "it is a folder" } else { "it is not a regular file" };
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let file = File::open(path).map_err(failed)?;
        Ok(Self { path: path.into(), n_bytes: about.len(), content: Content::File(file) })
    }

    pub(crate) fn in_memory(name: &str, bytes: Vec<u8>) -> Self {
        let n_bytes = bytes.len() as u64;
        Self { path: name.into(), n_bytes, content: Content::Memory(Cursor::new(bytes)) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// The first bytes, `most` of them or all; what is read next begins with them again.
    pub(crate) fn start(&mut self, most: u64) -> Result<Vec<u8>, WeightsError> {
        let mut start = Vec::new();
        self.by_ref()
            .take(most)
            .read_to_end(&mut start)
            .and_then(|_| self.rewind())
            .map_err(|error| self.failed(error))?;
        Ok(start)
    }

    /// Reads the bytes from a place on that fill `buffer`.
    pub(crate) fn read_at(&mut self, at: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        self.seek(SeekFrom::Start(at))
            .and_then(|_| self.read_exact(buffer))
            .map_err(|error| self.failed(error))
    }

    pub(crate) fn failed(&self, error: io::Error) -> WeightsError {
        WeightsError::Read { path: self.path.clone(), error }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.content {
            Content::File(file) => file.read(buffer),
            Content::Memory(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for Source {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match &mut self.content {
            Content::File(file) => file.seek(to),
            Content::Memory(bytes) => bytes.seek(to),
        }
    }
}
