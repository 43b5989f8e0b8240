//! Files that are whole or absent: written beside their place, flushed, and renamed to it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::WeightsError;

/// Writes a file all or nothing: a temporary file in the same folder is written, flushed to the
/// disk and then renamed to `path`.
pub(crate) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), WeightsError>,
) -> Result<(), WeightsError> {
    let failed = |error| WeightsError::Write { path: path.into(), error };
    let temporary = temporary_beside(path).map_err(failed)?;
    let written = write_flushed(&temporary, failed, write).and_then(|()| {
        fs::rename(&temporary, path).and_then(|()| flush_folder(path)).map_err(failed)
    });
    if written.is_err() {
        // What the caller needs to know is why the writing failed; the rest may be gone already.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_flushed(
    temporary: &Path,
    failed: impl Fn(io::Error) -> WeightsError,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), WeightsError>,
) -> Result<(), WeightsError> {
    let file = File::options().write(true).create_new(true).open(temporary).map_err(&failed)?;
    let mut file = BufWriter::new(file);
    write(&mut file)?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)
}

/// A hidden name in the same folder that no other writer, thread or process, takes.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    };
    let folder = folder_of(path);
    if !folder.is_dir() {
        let what = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{count}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

/// Makes the rename itself survive a power failure, where folders can be flushed.
fn flush_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
