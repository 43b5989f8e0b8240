//! Files that are whole or absent: written beside their place, flushed, and renamed to it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::WeightsError;

/// How the names of files end that are not whole yet: `.NAME.PROCESS-COUNT.partial`.
const PARTIAL: &str = ".partial";

/// Writes a file all or nothing: a temporary file in the same folder is written, flushed to the
/// disk and then renamed to `path`. A failure takes the temporary file away again; what a kill or a
/// power failure leaves is for [`remove_stale`].
///
/// ```
/// use std::io::Write;
/// use sar_weights::{WeightsError, write_whole};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("numbers.txt");
/// write_whole(&path, |file| {
///     writeln!(file, "1 2 3").map_err(|error| WeightsError::Write { path: path.clone(), error })
/// })?;
/// assert_eq!(std::fs::read_to_string(&path)?, "1 2 3\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`WeightsError::Write`] if the file system refuses, and whatever `write` returns.
pub fn write_whole<E: From<WeightsError>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error| WeightsError::Write { path: path.into(), error };
    let temporary = temporary_beside(path).map_err(failed)?;
    let written = write_flushed(&temporary, failed, write).and_then(|()| {
        let renamed = fs::rename(&temporary, path).and_then(|()| flush_folder(path));
        renamed.map_err(|error| failed(error).into())
    });
    if written.is_err() {
        // What the caller needs to know is why the writing failed; the rest may be gone already.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes some bytes as a file, all or nothing, see [`write_whole`].
///
/// # Errors
/// [`WeightsError::Write`] if the file system refuses.
pub fn write_bytes(path: &Path, content: &[u8]) -> Result<(), WeightsError> {
    write_whole(path, |file| {
        file.write_all(content).map_err(|error| WeightsError::Write { path: path.into(), error })
    })
}

/// Removes from a folder the temporary files of [`write_whole`] that killed processes left, and
/// returns their paths. Folders below it are not looked at.
///
/// A file is taken as left if its process is gone, where that can be seen (on Linux), and also if
/// its process has the number of this one: numbers are used again, in containers at once. So
/// nobody may be writing to the folder in this process, nor, on another system or another machine,
/// in any: call this once, holding the lock of the folder, before the first file is written.
///
/// # Errors
/// [`WeightsError::Write`] if the folder cannot be listed or a file cannot be removed.
pub fn remove_stale(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    remove_stale_of(folder, |_| true)
}

/// As [`remove_stale`], of those files alone whose names `is_own` takes: where several processes
/// share a folder, each removes what was left of its own files. What is said there of the folder holds
/// for these.
///
/// # Errors
/// As [`remove_stale`].
pub fn remove_stale_of(
    folder: &Path,
    is_own: impl Fn(&str) -> bool,
) -> Result<Vec<PathBuf>, WeightsError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error| WeightsError::Write { path, error }
    };
    let mut removed = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let entry = entry.map_err(failed(folder))?;
        let name = entry.file_name();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let is_stale = |(name, process)| is_own(name) && !is_other_alive(process);
        if is_file && name.to_str().and_then(temporary).is_some_and(is_stale) {
            let path = entry.path();
            fs::remove_file(&path).map_err(failed(&path))?;
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

/// The name that a temporary file is to have, and the process that wrote it.
fn temporary(name: &str) -> Option<(&str, u32)> {
    let is_number = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
    let (name, writer) = name.strip_prefix('.')?.strip_suffix(PARTIAL)?.rsplit_once('.')?;
    let (process, count) = writer.split_once('-')?;
    let is_ours = !name.is_empty() && !count.is_empty() && is_number(process) && is_number(count);
    let process = process.parse().ok().filter(|_| is_ours)?;
    Some((name, process))
}

/// Whether a process other than this one has the number and may write still, as far as can be seen. One that has ended
/// keeps its number until its parent has asked for its end, which in a container may be never.
fn is_other_alive(process: u32) -> bool {
    let place = Path::new("/proc").join(process.to_string());
    let has_ended = || {
        let stat = fs::read(place.join("stat")).unwrap_or_default();
        // NUMBER (NAME) STATE and so on; a name may have parentheses, too.
        let stat = String::from_utf8_lossy(&stat);
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X']))
    };
    cfg!(target_os = "linux") && process != std::process::id() && place.exists() && !has_ended()
}

fn write_flushed<E: From<WeightsError>>(
    temporary: &Path,
    failed: impl Fn(io::Error) -> WeightsError,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let file = File::options().write(true).create_new(true).open(temporary).map_err(&failed)?;
    let mut file = BufWriter::new(file);
    write(&mut file)?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)?;
    Ok(())
}

/// A hidden name in the same folder that no other writer, thread or process, takes.
fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path does not name a file"));
    };
    let folder = folder_of(path);
    if !folder.is_dir() {
        let what = format!("there is no folder {}", folder.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}-{count}{PARTIAL}", std::process::id()));
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in a folder, sorted.
    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| name(entry).unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_stopped_writer_leaves_what_is_removed_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.json");
        let kept = folder.path().join("kept");
        let result: Result<(), WeightsError> = write_whole(&path, |file| {
            file.write_all(b"half").unwrap();
            // What a kill would leave here, under the number of another process.
            let [partial] = &names(folder.path())[..] else { panic!() };
            assert_eq!(temporary(partial), Some(("run.json", std::process::id())), "{partial}");
            fs::copy(folder.path().join(partial), &kept).unwrap();
            fs::rename(&kept, folder.path().join(".run.json.4294967295-0.partial")).unwrap();
            fs::copy(folder.path().join(partial), folder.path().join(".x.1-0.partial")).unwrap();
            Err(WeightsError::Write { path: path.clone(), error: io::Error::other("full") })
        });
        assert!(result.unwrap_err().to_string().contains("full"));
        let own = format!(".y.{}-0.partial", std::process::id());
        let others = ["a.1-0.partial", ".a.partial", ".a.x-0.partial", ".a.1-.partial", "run.json"];
        for name in others.iter().copied().chain([own.as_str()]) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join(".folder.4294967295-0.partial")).unwrap();

        let of_others = remove_stale_of(folder.path(), |name| name == "run").unwrap();
        assert!(of_others.is_empty(), "{of_others:?}");
        let removed = remove_stale_of(folder.path(), |name| name == "y").unwrap();
        assert_eq!(removed, [folder.path().join(&own)]);
        fs::write(&removed[0], "").unwrap();
        let removed = remove_stale(folder.path()).unwrap();
        // Process 1 lives, on the one system where that is looked at.
        let mut expected = vec![".run.json.4294967295-0.partial".to_owned(), own];
        if !cfg!(target_os = "linux") {
            expected.push(".x.1-0.partial".into());
        }
        expected.sort();
        let removed: Vec<_> =
            removed.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(removed, expected);
        let left = names(folder.path());
        assert!(others.iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
        assert!(remove_stale(folder.path()).unwrap().is_empty());
        assert!(remove_stale(&folder.path().join("nowhere")).is_err());
    }

    /// Nobody asks for the end of the process before the last line.
    #[test]
    #[cfg(target_os = "linux")]
    fn who_has_ended_unasked_writes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("cat");
        let mut writer = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let path = folder.path().join(format!(".x.{}-0.partial", writer.id()));
        fs::write(&path, "half").unwrap();
        assert!(remove_stale(folder.path()).unwrap().is_empty());
        // What it reads ends, and so does it.
        drop(writer.stdin.take());
        let begun = std::time::Instant::now();
        while remove_stale(folder.path()).unwrap().is_empty() {
            assert!(begun.elapsed().as_secs() < 60, "it lives on");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(!path.exists() && writer.wait().unwrap().success());
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "old").unwrap();
        let failure: Result<(), WeightsError> = write_whole(&path, |file| {
            file.write_all(b"new").unwrap();
            Err(WeightsError::Write { path: path.clone(), error: io::Error::other("full") })
        });
        assert!(failure.is_err());
        assert_eq!(names(folder.path()), ["file"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        write_whole(&path, |file| {
            file.write_all(b"new").unwrap();
            Ok::<_, WeightsError>(())
        })
        .unwrap();
        assert_eq!(names(folder.path()), ["file"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
