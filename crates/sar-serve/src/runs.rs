//! Runs of training, read from their folders while they go on.
//!
//! Nothing of a request leads elsewhere: a name has to be that of a folder with a recipe, and a picture one of
//! a short list, or a stage's and a step's.

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
/// Sheets of a run that are shown: the last ones.
const MOST_SHEETS: usize = 4096;
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

/// What the weights of a stage made after a step, drawn while it went on.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Sheet {
    stage: StageId,
    step: u64,
}

impl Sheet {
    /// The sheet of a file's name.
    fn named(name: &str) -> Option<Self> {
        let (stage, step) = name.strip_prefix("sheet-")?.strip_suffix(".png")?.split_once('-')?;
        let stage = StageId::ALL.into_iter().find(|id| id.name() == stage)?;
        let sheet = Self { stage, step: step.parse().ok()? };
        // `+1` and `01` are numbers, too.
        (sheet.name() == name).then_some(sheet)
    }

    fn name(&self) -> String {
        format!("sheet-{}-{}.png", self.stage, self.step)
    }
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
        let pictures: Vec<Value> = pictures.map(|name| self.address(name)).collect();
        json!({
            "name": self.name,
            "recipe": recipe.get("name").and_then(toml::Value::as_str),
            "state": self.state(),
            "stages": stages.collect::<Vec<_>>(),
            "pictures": pictures,
            "changed": stamp(&self.file(METRICS)).0.max(stamp(&self.file(RECIPE)).0),
        })
    }

    /// Where a picture is found, and when it was made.
    fn address(&self, name: &str) -> Value {
        json!({
            "name": name,
            "url": format!("/api/runs/{}/pictures/{name}", in_url(&self.name)),
            "changed": stamp(&self.file(name)).0,
        })
    }

    /// Its sheets that are shown, in the order in which they were drawn, and how many before them are not.
    fn sheets(&self) -> (Vec<Sheet>, usize) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let sheets = entries.filter_map(|entry| Sheet::named(entry.file_name().to_str()?));
        let mut sheets: Vec<Sheet> = sheets.collect();
        sheets.sort();
        let left_out = sheets.len().saturating_sub(MOST_SHEETS);
        (sheets.split_off(left_out), left_out)
    }

    /// All that is shown of it.
    pub(crate) fn whole(&self) -> Value {
        let mut whole = self.summary();
        whole["series"] = series::read(&self.file(METRICS));
        let sheet = |sheet: &Sheet| {
            let mut told = self.address(&sheet.name());
            told["stage"] = sheet.stage.name().into();
            told["step"] = sheet.step.into();
            told
        };
        let (sheets, left_out) = self.sheets();
        whole["sheets"] = sheets.iter().map(sheet).collect();
        whole["sheets_left_out"] = left_out.into();
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
        let (sheets, left_out) = self.sheets();
        let last = sheets.last().map_or_else(String::new, Sheet::name);
        let n = sheets.len() + left_out;
        format!("\"{}-{n}-{last}-{}\"", self.state(), stamps.join("-"))
    }

    /// The bytes of a picture.
    pub(crate) fn picture(&self, name: &str) -> Result<Vec<u8>, Refusal> {
        let missing = || Refusal::missing("picture");
        if !PICTURES.contains(&name) && Sheet::named(name).is_none() {
            return Err(missing());
        }
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
    fn sheets_are_shown_by_stage_and_step() {
        let folder = folder();
        let run = find(folder.path(), "my run").unwrap();
        assert_eq!(run.whole()["sheets"], json!([]));
        assert_eq!(run.whole()["sheets_left_out"], 0);
        let mut tag = run.tag();
        // Each is seen, though nothing else has changed.
        for name in ["sheet-sar-2.png", "sheet-pretrain-10.png", "sheet-pretrain-9.png"] {
            fs::write(run.file(name), [PNG, name.as_bytes()].concat()).unwrap();
            assert_ne!(run.tag(), tag, "{name}");
            tag = run.tag();
        }
        let whole = run.whole();
        let of_all = |field: &str| -> Vec<Value> {
            whole["sheets"].as_array().unwrap().iter().map(|sheet| sheet[field].clone()).collect()
        };
        assert_eq!(of_all("stage"), ["pretrain", "pretrain", "sar"]);
        assert_eq!(of_all("step"), [9, 10, 2]);
        let url = "/api/runs/my%20run/pictures/sheet-pretrain-9.png";
        assert_eq!(whole["sheets"][0]["url"], url);
        assert_eq!(run.picture("sheet-pretrain-9.png").unwrap(), b"\x89PNGsheet-pretrain-9.png");
        // The list of all runs does without them.
        assert_eq!(run.summary()["sheets"], Value::Null);
    }

    #[test]
    fn of_too_many_sheets_the_last_are_shown() {
        let folder = folder();
        let run = find(folder.path(), "my run").unwrap();
        let draw = |stage: &str, step: usize| {
            fs::write(run.file(&format!("sheet-{stage}-{step}.png")), PNG).unwrap();
        };
        // The newest ones first: a folder has no order.
        (0..MOST_SHEETS - 1).rev().for_each(|step| draw("sar", step));
        draw("pretrain", 7);
        let whole = run.whole();
        assert_eq!([&whole["sheets"][0]["step"], &whole["sheets_left_out"]], [7, 0]);
        draw("pretrain", 9);
        draw("tokenizer", 5);
        let (whole, tag) = (run.whole(), run.tag());
        let sheets = whole["sheets"].as_array().unwrap();
        assert_eq!((sheets.len(), &whole["sheets_left_out"]), (MOST_SHEETS, &json!(2)));
        let name = |sheet: &Value| sheet["name"].as_str().unwrap().to_owned();
        assert_eq!(name(&sheets[0]), "sheet-pretrain-9.png");
        let last = format!("sheet-sar-{}.png", MOST_SHEETS - 2);
        assert_eq!(name(&sheets[MOST_SHEETS - 1]), last);
        // As many as before, and another one is the last.
        fs::remove_file(run.file("sheet-tokenizer-5.png")).unwrap();
        draw("sar", MOST_SHEETS);
        assert_ne!(run.tag(), tag);
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
        // Names that are nearly those of sheets, and files that have them.
        for name in ["+1", "01", "1.png", "-1", "", " 1", "99999999999999999999", "1-1"] {
            let name = format!("sheet-sar-{name}.png");
            fs::write(run.file(&name), PNG).unwrap();
            assert!(run.picture(&name).is_err(), "{name}");
        }
        for name in ["sheet-secret-1.png", "sheet-sar-1.txt", "sheet-SAR-1.png", "sar-1.png"] {
            fs::write(run.file(name), PNG).unwrap();
            assert!(run.picture(name).is_err(), "{name}");
        }
        assert_eq!(run.whole()["sheets"], json!([]));
        fs::write(run.file("sheet-sar-1.png"), PNG).unwrap();
        assert!(run.picture("sheet-sar-1.png").is_ok());
        for name in ["../my run/sheet-sar-1.png", "./sheet-sar-1.png", "sheet-sar-1.png/"] {
            assert!(run.picture(name).is_err(), "{name}");
        }
        fs::write(run.file(PICTURES[1]), "no picture").unwrap();
        assert!(run.picture(PICTURES[1]).is_err());
        #[cfg(unix)]
        {
            // A picture, but none of the run's.
            fs::write(folder.path().join("no run/other.png"), PNG).unwrap();
            for name in [PICTURES[2], "sheet-sar-2.png"] {
                std::os::unix::fs::symlink("../no run/other.png", run.file(name)).unwrap();
                assert!(run.file(name).is_file() && run.picture(name).is_err(), "{name}");
            }
        }
    }
}
