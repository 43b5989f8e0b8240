//! What a run of `sar eval` writes: decided before it begins, so that nothing is lost at its end.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::generation::{check_file, folder_of};
use crate::numbered;

/// The files of a run, none of which is there.
#[derive(Debug, PartialEq)]
pub(super) struct Outputs {
    /// All figures.
    pub(super) json: PathBuf,
    /// Mean and covariance, if they are wanted.
    pub(super) statistics: Option<PathBuf>,
    /// A sheet of images, if there are images.
    pub(super) sheet: Option<PathBuf>,
    /// The curves of a sweep.
    pub(super) plot: Option<PathBuf>,
}

/// What is written beside the figures.
#[derive(Clone, Copy)]
pub(super) struct Beside {
    pub(super) sheet: bool,
    pub(super) plot: bool,
}

impl Outputs {
    /// The files of `--json` and `--statistics`, or of the first default name of which none is there.
    ///
    /// # Errors
    /// If one of them is there, which is true of all inputs, or two are one, or a folder is missing.
    pub(super) fn new(
        json: Option<PathBuf>,
        statistics: Option<PathBuf>,
        beside: Beside,
    ) -> Result<Self> {
        let outputs = match json {
            Some(json) => Self::named(json, statistics, beside),
            None => numbered(Path::new("eval"), ".json")
                .map(|json| Self::named(json, statistics.clone(), beside))
                .find(|outputs| !outputs.beside_json().any(|(_, path)| path.exists()))
                .expect("one of the numbers is free"),
        };
        outputs.check()?;
        Ok(outputs)
    }

    fn named(json: PathBuf, statistics: Option<PathBuf>, beside: Beside) -> Self {
        // Of `guid-1.5` the ending is a part of the name.
        let is_ending = |ending: &str| ending.starts_with(|c: char| c.is_ascii_alphabetic());
        let name = match json.extension().and_then(|ending| ending.to_str()) {
            Some(ending) if is_ending(ending) => json.file_stem(),
            _ => json.file_name(),
        };
        let named = |ending: &str| {
            let mut name = name.unwrap_or_default().to_owned();
            name.push(ending);
            json.with_file_name(name)
        };
        let (sheet, plot) =
            (beside.sheet.then(|| named(".png")), beside.plot.then(|| named(".svg")));
        Self { json, statistics, sheet, plot }
    }

    /// The figures and what lies beside them.
    fn beside_json(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [
            ("--json", Some(&self.json)),
            ("--json: the sheet", self.sheet.as_ref()),
            ("--json: the plot", self.plot.as_ref()),
        ];
        files.into_iter().filter_map(|(what, path)| Some((what, path?.as_path())))
    }

    fn check(&self) -> Result<()> {
        let statistics = self.statistics.iter().map(|path| ("--statistics", path.as_path()));
        let mut seen: Vec<(&str, PathBuf)> = Vec::new();
        for (what, path) in self.beside_json().chain(statistics) {
            let shown = path.display();
            let Some(name) = path.file_name() else { bail!("{what} {shown}: names no file") };
            check_file(what, path, true)?;
            // However the way to it is written.
            let place = folder_of(path).canonicalize()?.join(name);
            if let Some((other, _)) = seen.iter().find(|(_, other)| *other == place) {
                bail!("{what} {shown}: is the file of {other}, too; choose another name");
            }
            seen.push((what, place));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const BOTH: Beside = Beside { sheet: true, plot: true };

    #[test]
    fn names_beside_the_figures_keep_all_of_theirs() {
        for (json, sheet) in [
            ("out.json", "out.png"),
            ("guid-1.0.json", "guid-1.0.png"),
            ("guid-1.5.json", "guid-1.5.png"),
            ("guid-1.5", "guid-1.5.png"),
            ("figures", "figures.png"),
            ("a/b.c/out.txt", "a/b.c/out.png"),
        ] {
            let outputs = Outputs::named(json.into(), None, BOTH);
            assert_eq!(outputs.sheet.as_deref(), Some(Path::new(sheet)));
            assert_eq!(outputs.plot, Some(Path::new(sheet).with_extension("svg")));
        }
    }

    #[test]
    fn nothing_is_written_over() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let new = |json: &str, statistics: Option<&str>| {
            Outputs::new(Some(at(json)), statistics.map(at), BOTH)
        };
        let refused = |json: &str, statistics: Option<&str>, part: &str| {
            let error = new(json, statistics).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        };
        fs::create_dir(at("folder")).unwrap();
        for name in ["a.json", "b.png", "c.svg", "ref.npz"] {
            fs::write(at(name), "years of work").unwrap();
        }
        refused("a.json", None, "a.json: exists already; choose another name");
        refused("b.json", None, "b.png: exists already");
        refused("c.json", None, "c.svg: exists already");
        refused("d.json", Some("ref.npz"), "ref.npz: exists already");
        refused("x.png", None, "--json: the sheet");
        refused("x.svg", None, "x.svg: is the file of --json, too");
        refused("x.json", Some("x.json"), "x.json: is the file of --json, too");
        refused("x.json", Some("folder/../x.png"), "is the file of --json: the sheet, too");
        refused("no/x.json", None, "there is no folder");
        refused("x.json", Some("no/x.npz"), "--statistics");
        refused("folder", None, "is a folder");
        new("x.json", Some("y.npz")).unwrap();
        // Without a sheet its name is free.
        let figures = Beside { sheet: false, plot: false };
        Outputs::new(Some(at("b.json")), None, figures).unwrap();
    }
}
