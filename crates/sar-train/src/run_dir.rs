//! The files of a run.
//!
//! ```text
//! recipe.toml                      the resolved recipe
//! metrics.jsonl                    one line per logged step
//! checkpoints/<stage>-<step>.safetensors
//! tokenizer.safetensors, backbone-teacher.safetensors, backbone-sar.safetensors,
//! backbone-control.safetensors     the weights that each stage ends with
//! reconstructions.png              originals and every scale
//! samples-before.png, samples-after.png
//! report.json, report.html
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use sar_data::{RgbImage, to_png};

use crate::TrainError;

/// The folder of a run.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Makes a new run's folder, with its parents.
    ///
    /// # Errors
    /// If it exists and holds anything, or cannot be made.
    pub(crate) fn create(path: &Path) -> Result<Self, TrainError> {
        let run_dir =
            |problem: &str| TrainError::RunDir { path: path.into(), problem: problem.into() };
        if path.exists() {
            if !path.is_dir() {
                return Err(run_dir("is a file; choose another --run-dir"));
            }
            let mut entries =
                fs::read_dir(path).map_err(TrainError::io(path, "cannot be listed"))?;
            if entries.next().is_some() {
                return Err(run_dir("already holds files; choose another --run-dir"));
            }
        }
        let checkpoints = path.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(TrainError::io(&checkpoints, "cannot be made"))?;
        Ok(Self { path: path.into() })
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> Result<PathBuf, TrainError> {
        let path = self.file(name);
        let partial = self.file(&format!(".{name}.partial"));
        let write = || {
            let mut file = File::create(&partial)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(TrainError::io(&path, "cannot be written"))?;
        Ok(path)
    }

    /// Writes an image as PNG.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn write_png(&self, name: &str, image: &RgbImage) -> Result<PathBuf, TrainError> {
        self.write(name, &to_png(image))
    }
}

/// Appends lines to metrics.jsonl.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Opens the file of a run for appending.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn append_to(dir: &RunDir) -> Result<Self, TrainError> {
        let path = dir.file("metrics.jsonl");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(TrainError::io(&path, "cannot be opened"))?;
        Ok(Self { path, file })
    }

    /// Appends one object.
    ///
    /// # Errors
    /// If the file system refuses.
    pub(crate) fn line(&mut self, value: &serde_json::Value) -> Result<(), TrainError> {
        writeln!(self.file, "{value}").map_err(TrainError::io(&self.path, "cannot be written"))
    }
}
