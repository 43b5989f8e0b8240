//! TensorBoard's event files beside `metrics.jsonl`: the same numbers, and the pictures.
//!
//! A file is a row of records, each an `Event` (tensorflow/core/util/event.proto), framed as in
//! tensorflow/core/lib/io/record_writer.h:
//!
//! ```text
//! length: u64   masked crc32c of length: u32   event   masked crc32c of event: u32
//! masked(c) = rotate_right(c, 15) + 0xa282ead8
//! ```
//!
//! Every stage is a run of its own there: its steps begin at 0, and when it goes on from a checkpoint, TensorBoard
//! drops what the file before had from that step on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use sar_pipeline::{RgbImage, to_png};
use serde_json::Value;

use crate::TrainError;

/// The run of the pictures that belong to no stage.
pub(crate) const PICTURES: &str = "pictures";

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Picture>,
}

#[derive(Clone, PartialEq, Message)]
struct Picture {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// 3 is RGB.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    /// 1 is START.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The event files of a run, one for each stage and one for pictures of no stage.
#[derive(Debug)]
pub(crate) struct EventFiles {
    folder: PathBuf,
    files: BTreeMap<String, (PathBuf, File)>,
}

impl EventFiles {
    /// Writes below a folder, which is made with the first event.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, files: BTreeMap::new() }
    }

    /// A stage goes on after `done` steps: what was written of later ones is void.
    pub(crate) fn goes_on(&mut self, stage: &str, done: u64) -> Result<(), TrainError> {
        self.files.remove(stage);
        if !self.folder.join(stage).is_dir() {
            return Ok(());
        }
        let start = Some(SessionLog { status: 1 });
        self.write(stage, Record { step: done as i64, session_log: start, ..now() })
    }

    /// The numbers of a line of `metrics.jsonl`; those of lists and tables have the place in their names.
    pub(crate) fn line(&mut self, line: &Value) -> Result<(), TrainError> {
        let (Some(stage), Some(step)) = (line["stage"].as_str(), line["step"].as_i64()) else {
            return Ok(());
        };
        let mut value = Vec::new();
        for (name, field) in line.as_object().into_iter().flatten().filter(|(n, _)| *n != "step") {
            scalars(name, field, &mut value);
        }
        if value.is_empty() {
            return Ok(());
        }
        self.write(stage, Record { step, summary: Some(Summary { value }), ..now() })
    }

    /// A picture of a run there, such as a stage, at one of its steps.
    pub(crate) fn picture(
        &mut self,
        run: &str,
        step: u64,
        name: &str,
        image: &RgbImage,
    ) -> Result<(), TrainError> {
        let picture = Picture {
            height: image.height() as i32,
            width: image.width() as i32,
            colorspace: 3,
            encoded_image_string: to_png(image),
        };
        let value = SummaryValue { tag: name.into(), simple_value: None, image: Some(picture) };
        let summary = Some(Summary { value: vec![value] });
        self.write(run, Record { step: step as i64, summary, ..now() })
    }

    fn write(&mut self, run: &str, record: Record) -> Result<(), TrainError> {
        if !self.files.contains_key(run) {
            let opened = open(&self.folder.join(run))?;
            self.files.insert(run.into(), opened);
        }
        let (path, file) = self.files.get_mut(run).expect("it was put there");
        // One write per record, so that a kill leaves at most the last one torn; readers leave that out.
        file.write_all(&framed(&record)).map_err(TrainError::io(path, "cannot be written"))
    }
}

/// A new file, whose name sorts behind those that are there.
fn open(folder: &Path) -> Result<(PathBuf, File), TrainError> {
    fs::create_dir_all(folder).map_err(TrainError::io(folder, "cannot be made"))?;
    let seconds = now().wall_time as u64;
    let name = |i: u32| folder.join(format!("events.out.tfevents.{seconds:010}.{i:03}.sar"));
    let path = (0..).map(name).find(|path| !path.exists()).expect("one of the numbers is free");
    let mut file = File::create_new(&path).map_err(TrainError::io(&path, "cannot be written"))?;
    let version = Record { file_version: Some("brain.Event:2".into()), ..now() };
    file.write_all(&framed(&version)).map_err(TrainError::io(&path, "cannot be written"))?;
    Ok((path, file))
}

/// An event of this moment with nothing in it.
fn now() -> Record {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Record { wall_time: since.map_or(0.0, |since| since.as_secs_f64()), ..Record::default() }
}

fn scalars(name: &str, value: &Value, into: &mut Vec<SummaryValue>) {
    match value {
        Value::Number(number) => into.push(SummaryValue {
            tag: name.into(),
            simple_value: number.as_f64().map(|value| value as f32),
            image: None,
        }),
        Value::Array(values) => {
            values
                .iter()
                .enumerate()
                .for_each(|(i, value)| scalars(&format!("{name}/{i}"), value, into));
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| scalars(&format!("{name}/{key}"), value, into));
        }
        _ => {}
    }
}

fn framed(record: &Record) -> Vec<u8> {
    let event = record.encode_to_vec();
    let length = (event.len() as u64).to_le_bytes();
    let masked = |bytes: &[u8]| {
        crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
    };
    [&length[..], &masked(&length), &event, &masked(&event)].concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(folder: &Path) -> Vec<Record> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut records = Vec::new();
        for path in paths {
            let bytes = fs::read(path).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
                let record = Record::decode(&rest[12..12 + length]).unwrap();
                assert_eq!(framed(&record), rest[..16 + length]);
                records.push(record);
                rest = &rest[16 + length..];
            }
        }
        records
    }

    #[test]
    fn frames_by_hand() {
        let empty = framed(&Record::default());
        let masked = |crc: u32| crc.rotate_right(15).wrapping_add(0xA282_EAD8);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283, "the check value of the polynomial");
        assert_eq!(empty.len(), 16);
        assert_eq!(empty[8..12], masked(crc32c::crc32c(&[0; 8])).to_le_bytes());
        assert_eq!(empty[12..], masked(0).to_le_bytes());
    }

    #[test]
    fn lines_and_pictures_are_events() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFiles::new(folder.path().join("tensorboard"));
        events.goes_on("sar", 0).unwrap();
        let line = json!({
            "stage": "sar", "step": 4, "total": 1.5, "used": [3, 4], "by": { "1x2": 7 }, "note": "x",
        });
        events.line(&line).unwrap();
        events.line(&json!({ "step": 1, "lost": 1 })).unwrap();
        events.picture(PICTURES, 7, "samples", &RgbImage::new(2, 3)).unwrap();
        events.goes_on("sar", 3).unwrap();
        events.line(&json!({ "stage": "sar", "step": 3, "total": 2 })).unwrap();

        let sar = read(&folder.path().join("tensorboard/sar"));
        let version = |record: &Record| record.file_version.as_deref() == Some("brain.Event:2");
        assert_eq!(sar.iter().map(version).collect::<Vec<_>>(), [true, false, true, false, false]);
        let tags = |record: &Record| -> Vec<(String, f32)> {
            let values = record.summary.iter().flat_map(|summary| &summary.value);
            values.map(|value| (value.tag.clone(), value.simple_value.unwrap())).collect()
        };
        let named = |name: &str, value| (name.to_owned(), value);
        let expected =
            [named("by/1x2", 7.0), named("total", 1.5), named("used/0", 3.0), named("used/1", 4.0)];
        assert_eq!((sar[1].step, tags(&sar[1])), (4, expected.to_vec()));
        assert_eq!((sar[3].step, sar[3].session_log.clone()), (3, Some(SessionLog { status: 1 })));
        assert_eq!(tags(&sar[4]), [named("total", 2.0)]);
        let pictures = read(&folder.path().join("tensorboard/pictures"));
        assert_eq!(pictures[1].step, 7);
        let picture = pictures[1].summary.clone().unwrap().value.remove(0);
        assert_eq!(picture.tag, "samples");
        let image = picture.image.unwrap();
        assert_eq!((image.height, image.width), (3, 2));
        assert!(image.encoded_image_string.starts_with(b"\x89PNG"));
    }
}
