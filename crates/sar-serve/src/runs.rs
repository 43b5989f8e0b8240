//! Runs of training, read from their folders while they go on.
//!
//! Nothing of a request becomes part of a path: a name has to be that of a folder with a recipe, and a
//! picture one of a short list.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use axum::http::StatusCode;
use sar_pipeline::StageId;
use serde_json::{Map, Value, json};

use crate::answers::Refusal;
use crate::series;

const RECIPE: &str = "recipe.toml";
const METRICS: &str = "metrics.jsonl";
const REPORT: &str = "report.json";
const LOCK: &str = "run.lock";
const STOP: &str = "stop";
const PICTURES: [&str; 3] = ["reconstructions.png", "samples-before.png", "samples-after.png"];

/// Runs that are shown.
const MOST_RUNS: usize = 1000;
/// The largest file that is shown whole.
const LARGEST: u64 = 32 << 20;
/// Bytes of a recipe that are read.
const LARGEST_RECIPE: u64 = 1 << 20;
const PNG: &[u8] = b"\x89PNG";

/// The folder of a run.
#[derive(Debug)]
pub(crate) struct Run {
    name: String,
    path: PathBuf,
}

/// The runs of a folder, which may be one itself; one more than are shown, if there are.
fn all(folder: &Path) -> Vec<Run> {
    let own = folder.canonicalize().unwrap_or(folder.into());
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(own)
        .chain(paths)
        .filter(|path| path.join(RECIPE).is_file())
        .filter_map(|path| Some(Run { name: path.file_name()?.to_str()?.to_owned(), path }))
        .take(MOST_RUNS + 1)
        .collect()
}

/// Short facts of all runs, the one that changed last first.
pub(crate) fn list(folder: &Path) -> Value {
    let all = all(folder);
    let is_cut = all.len() > MOST_RUNS;
    let mut runs: Vec<Value> = all.iter().take(MOST_RUNS).map(Run::summary).collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run["changed"].as_u64()));
    json!({ "runs": runs, "cut": is_cut })
}

/// The run of a name.
pub(crate) fn find(folder: &Path, name: &str) -> Result<Run, Refusal> {
    all(folder).into_iter().find(|run| run.name == name).ok_or_else(|| Refusal::missing("run"))
}

/// When and how long a file is, 0 and 0 without one.
pub(crate) fn stamp(path: &Path) -> (u64, u64) {
    let Ok(metadata) = fs::metadata(path) else { return (0, 0) };
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    (changed.map_or(0, |since| since.as_millis() as u64), metadata.len())
}

/// A file that is not too large, and whole.
fn json_of(path: &Path) -> Option<Value> {
    serde_json::from_str(&text_of(path, LARGEST)?).ok()
}

/// The text of a file, at most so many bytes of it.
fn text_of(path: &Path, most: u64) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(most).read_to_string(&mut text).ok()?;
    Some(text)
}

impl Run {
    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether a process trains here: it holds the lock.
    fn is_running(&self) -> bool {
        let Ok(lock) = File::open(self.file(LOCK)) else { return false };
        matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    fn state(&self) -> &'static str {
        match (self.is_running(), self.file(REPORT).is_file()) {
            (true, _) if self.file(STOP).exists() => "stopping",
            (true, _) => "running",
            (false, true) => "done",
            (false, false) => "stopped",
        }
    }

    /// What it is and how far it is.
    pub(crate) fn summary(&self) -> Value {
        let recipe = text_of(&self.file(RECIPE), LARGEST_RECIPE).unwrap_or_default();
        let recipe: toml::Table = recipe.parse().unwrap_or_default();
        let last = series::last_steps(&self.file(METRICS));
        let steps_of = |stage: StageId| match stage {
            // Its number of steps follows from the loss; it is known once the stage has ended.
            StageId::Control => None,
            _ => recipe.get(stage.table())?.get("steps")?.as_integer(),
        };
        let has_control = recipe.get("sar").and_then(|sar| sar.get("control"));
        let has_control = has_control.and_then(toml::Value::as_bool).unwrap_or(false);
        let is_shown = |stage: &StageId| match *stage {
            StageId::Control => has_control,
            stage => steps_of(stage) != Some(0),
        };
        let stages = StageId::ALL.into_iter().filter(is_shown).map(|stage| {
            let done = last.get(stage.name()).copied().unwrap_or(0);
            json!({ "name": stage.name(), "steps": steps_of(stage), "done": done })
        });
        let pictures = PICTURES.iter().filter(|name| self.file(name).is_file());
        json!({
            "name": self.name,
            "recipe": recipe.get("name").and_then(toml::Value::as_str),
            "state": self.state(),
            "stages": stages.collect::<Vec<_>>(),
            "pictures": pictures.map(|name| json!({
                "name": name,
                "url": format!("/api/runs/{}/pictures/{name}", in_url(&self.name)),
                "changed": stamp(&self.file(name)).0,
            })).collect::<Vec<_>>(),
            "changed": stamp(&self.file(METRICS)).0.max(stamp(&self.file(RECIPE)).0),
        })
    }

    /// All that is shown of it.
    pub(crate) fn whole(&self) -> Value {
        let mut whole = self.summary();
        whole["series"] = series::read(&self.file(METRICS));
        let report = json_of(&self.file(REPORT)).unwrap_or_default();
        let parts =
            ["wall_s", "peak_rss_mb", "images", "stages", "tokenizer", "held_out", "quality"];
        let parts = parts.map(|part| (part.to_owned(), report[part].clone()));
        whole["report"] = match report {
            Value::Object(_) => Value::Object(Map::from_iter(parts)),
            _ => Value::Null,
        };
        whole
    }

    /// Changes with what is shown.
    pub(crate) fn tag(&self) -> String {
        let files = [METRICS, REPORT].into_iter().chain(PICTURES);
        let stamps: Vec<String> = files
            .map(|name| stamp(&self.file(name)))
            .map(|(changed, length)| format!("{changed:x}.{length:x}"))
            .collect();
        format!("\"{}-{}\"", self.state(), stamps.join("-"))
    }

    /// The bytes of a picture.
    pub(crate) fn picture(&self, name: &str) -> Result<Vec<u8>, Refusal> {
        let missing = || Refusal::missing("picture");
        let name = PICTURES.iter().find(|known| **known == name).ok_or_else(missing)?;
        let path = self.file(name).canonicalize().map_err(|_| missing())?;
        let folder = self.path.canonicalize().map_err(|_| missing())?;
        // A link that leads elsewhere is none of ours.
        if path.parent() != Some(&*folder) || stamp(&path).1 > LARGEST {
            return Err(missing());
        }
        let bytes = fs::read(path).map_err(|_| missing())?;
        if bytes.starts_with(PNG) { Ok(bytes) } else { Err(missing()) }
    }

    /// Asks for a checkpoint and the end of the run.
    pub(crate) fn stop(&self) -> Result<(), Refusal> {
        if !self.is_running() {
            let why = "the run is not going on, there is nothing to stop";
            return Err(Refusal::new(StatusCode::CONFLICT, why));
        }
        let file = File::options().write(true).create(true).truncate(false).open(self.file(STOP));
        let refuse = |error| {
            let why = format!("the run cannot be asked to stop: {error}");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why)
        };
        file.map(drop).map_err(refuse)
    }
}

/// A name as part of an address.
fn in_url(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("my run");
        fs::create_dir_all(&run).unwrap();
        let recipe = "name = \"tiny\"\n[tokenizer]\nsteps = 4\n[pretrain]\nsteps = 0\n\
                      [sar]\nsteps = 2\ncontrol = true\n";
        fs::write(run.join(RECIPE), recipe).unwrap();
        fs::write(run.join(METRICS), "{\"stage\":\"tokenizer\",\"step\":1,\"l1\":0.5}\n{\"sta")
            .unwrap();
        fs::write(run.join(PICTURES[0]), b"\x89PNG rest").unwrap();
        fs::write(run.join("secret.txt"), "secret").unwrap();
        fs::create_dir(folder.path().join("no run")).unwrap();
        folder
    }

    #[test]
    fn a_run_is_read_as_far_as_it_is() {
        let folder = folder();
        let list = list(folder.path());
        assert_eq!(list["runs"].as_array().unwrap().len(), 1);
        let run = find(folder.path(), "my run").unwrap();
        let whole = run.whole();
        assert_eq!(whole["state"], "stopped");
        assert_eq!(whole["recipe"], "tiny");
        let stages = json!([
            { "name": "tokenizer", "steps": 4, "done": 2 },
            { "name": "sar", "steps": 2, "done": 0 },
            { "name": "control", "steps": null, "done": 0 },
        ]);
        assert_eq!(whole["stages"], stages);
        assert_eq!(whole["series"]["tokenizer"]["l1"], json!([[1.0, 0.5]]));
        assert_eq!(whole["report"], Value::Null);
        assert_eq!(whole["pictures"][0]["url"], "/api/runs/my%20run/pictures/reconstructions.png");
        assert_eq!(run.picture(PICTURES[0]).unwrap(), b"\x89PNG rest");
        // The folder of the run itself.
        let own = folder.path().join("my run");
        assert_eq!(find(&own, "my run").unwrap().summary()["recipe"], "tiny");
    }

    #[test]
    fn folders_that_are_no_runs_hide_none() {
        let folder = folder();
        for i in 0..MOST_RUNS + 5 {
            fs::create_dir(folder.path().join(format!("no run {i}"))).unwrap();
        }
        assert!(find(folder.path(), "my run").is_ok());
        let few = list(folder.path());
        assert_eq!(few["runs"].as_array().unwrap().len(), 1);
        assert_eq!(few["cut"], false);
        for i in 0..MOST_RUNS {
            fs::write(folder.path().join(format!("no run {i}")).join(RECIPE), "").unwrap();
        }
        let many = list(folder.path());
        assert_eq!(many["runs"].as_array().unwrap().len(), MOST_RUNS);
        assert_eq!(many["cut"], true);
    }

    #[test]
    fn a_run_that_goes_on_can_be_stopped() {
        let folder = folder();
        let run = find(folder.path(), "my run").unwrap();
        assert_eq!(run.stop().unwrap_err().status, StatusCode::CONFLICT);
        let lock = File::create(run.file(LOCK)).unwrap();
        lock.try_lock().unwrap();
        let tag = run.tag();
        assert_eq!(run.summary()["state"], "running");
        run.stop().unwrap();
        run.stop().unwrap();
        assert_eq!(run.summary()["state"], "stopping");
        assert_ne!(run.tag(), tag);
        drop(lock);
        assert_eq!(run.summary()["state"], "stopped");
        fs::write(run.file(REPORT), "{\"wall_s\": 3}").unwrap();
        let whole = run.whole();
        assert_eq!([&whole["state"], &whole["report"]["wall_s"]], [&json!("done"), &json!(3)]);
    }

    #[test]
    fn nothing_but_its_pictures_is_read() {
        let folder = folder();
        for name in ["", ".", "..", "no run", "my run/", "../my run", "my run/../my run", "/"] {
            assert!(find(folder.path(), name).is_err(), "{name}");
        }
        let run = find(folder.path(), "my run").unwrap();
        for name in ["secret.txt", "../my run/reconstructions.png", "/etc/passwd", "", "run.lock"] {
            assert!(run.picture(name).is_err(), "{name}");
        }
        fs::write(run.file(PICTURES[1]), "no picture").unwrap();
        assert!(run.picture(PICTURES[1]).is_err());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/etc/passwd", run.file(PICTURES[2])).unwrap();
            assert!(run.picture(PICTURES[2]).is_err());
        }
    }
}
