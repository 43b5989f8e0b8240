//! Which members of a tar file are samples, and where their images lie.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tar::{Archive, EntryType};

use crate::DataError;
use crate::decode::{is_foreign_extension, is_image_extension};
use crate::left_out::Tally;

/// The most bytes that are read for one member while a shard is indexed: its headers or its label.
/// Images are passed over, and a longer label is none.
const MAX_MEMBER_READ: u64 = 1 << 20;

/// Keys of a `.json` member that hold the label, the first one that is there.
const JSON_LABELS: [&str; 3] = ["label", "cls", "class"];

/// Why images like `img_22.01.png` belong to no sample.
pub(crate) const DOTTED: &str = "images with a dot in their names before the extension";

/// What was found in a tar file: its samples, and what belongs to none.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShardIndex {
    /// In their order.
    pub(crate) samples: Vec<Found>,
    /// Whether it has the mark of a tar file's end.
    pub(crate) has_end: bool,
    pub(crate) left_out: Tally,
}

/// A sample: its image, where that lies, and its label as written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) member: String,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) label: String,
}

/// Looks into a shard; `looked` hears of every member.
///
/// # Errors
/// If the shard cannot be read, is not a whole tar file, or has an image without a label.
pub(crate) fn index_shard(
    path: &Path,
    has_names: bool,
    looked: &dyn Fn(),
) -> Result<ShardIndex, DataError> {
    let format = |problem: String| DataError::Format { path: path.into(), problem };
    let file = File::open(path).map_err(DataError::io(path))?;
    let length = file.metadata().map_err(DataError::io(path))?.len();
    let no_tar = |error: io::Error| {
        format(match compression(path) {
            Some(how) => format!("is compressed, which shards are not; unpack it with {how}"),
            None => format!("not a whole tar file ({error}); fetch it again"),
        })
    };
    let budget = Rc::new(Cell::new(MAX_MEMBER_READ));
    let mut archive = Archive::new(Budgeted { file, left: Rc::clone(&budget) });
    let mut index = Index::new(path, has_names);
    for entry in archive.entries_with_seek().map_err(no_tar)? {
        looked();
        let mut entry = entry.map_err(no_tar)?;
        let member = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(format(format!("ends in the middle of {member}; fetch it again")));
        }
        let is_file =
            matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Continuous);
        let Some((key, extension)) = split_member(&member).filter(|_| is_file) else { continue };
        index.begin(key);
        let extension = extension.to_ascii_lowercase();
        if let Some(kind) = LabelKind::of(&extension).filter(|_| bytes <= MAX_MEMBER_READ) {
            budget.set(MAX_MEMBER_READ);
            let mut text = Vec::new();
            entry.read_to_end(&mut text).map_err(no_tar)?;
            index.group.labels[kind as usize] = String::from_utf8(text).ok();
        } else {
            index.member(Image { member, offset, bytes }, &extension);
        }
        budget.set(MAX_MEMBER_READ);
    }
    let has_end = ends_in_zeros(path, length).map_err(DataError::io(path))?;
    match index.finish() {
        Ok((samples, left_out)) => Ok(ShardIndex { samples, has_end, left_out }),
        Err(problem) if has_end => Err(format(problem)),
        Err(problem) => {
            Err(format(format!("{problem}; or the file was cut short, it has no mark of its end")))
        }
    }
}

/// Whether the last block of a file is zeros, as that of a tar file is.
fn ends_in_zeros(path: &Path, length: u64) -> io::Result<bool> {
    const BLOCK: u64 = 512;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(length.saturating_sub(BLOCK)))?;
    let mut last = Vec::new();
    file.take(BLOCK).read_to_end(&mut last)?;
    Ok(last.iter().all(|byte| *byte == 0))
}

/// How to unpack a file that is a compressed one by its first bytes.
fn compression(path: &Path) -> Option<&'static str> {
    let mut magic = [0; 6];
    File::open(path).ok()?.read_exact(&mut magic).ok()?;
    match magic {
        [0x1F, 0x8B, ..] => Some("gunzip"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some("unzstd"),
        [0xFD, b'7', b'z', b'X', b'Z', 0] => Some("unxz"),
        [b'B', b'Z', b'h', ..] => Some("bunzip2"),
        [b'P', b'K', 3, 4, ..] => Some("unzip"),
        _ => None,
    }
}

/// The path up to the first dot of the file name, and what follows it; nothing for hidden files.
fn split_member(member: &str) -> Option<(&str, &str)> {
    let name = member.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + member[name..].find('.')?;
    (dot > name).then(|| (&member[..dot], &member[dot + 1..]))
}

/// Where a label is written, the first before the others.
#[derive(Clone, Copy)]
enum LabelKind {
    Cls,
    Json,
    Txt,
}

impl LabelKind {
    fn of(extension: &str) -> Option<Self> {
        match extension {
            "cls" => Some(Self::Cls),
            "json" => Some(Self::Json),
            "txt" => Some(Self::Txt),
            _ => None,
        }
    }
}

/// The members of one sample so far.
#[derive(Default)]
struct Group {
    key: String,
    image: Option<Image>,
    /// Images whose extension is not all that follows the first dot, and the first of them.
    dotted: Option<(usize, String)>,
    /// Whether it has images of formats that are not read.
    has_foreign: bool,
    labels: [Option<String>; 3],
}

struct Image {
    member: String,
    offset: u64,
    bytes: u64,
}

/// What was found of a shard so far.
struct Index {
    shard: String,
    has_names: bool,
    tally: Tally,
    found: Vec<Found>,
    group: Group,
    /// Keys of groups that lack an image or a label, and whether they have an image.
    incomplete: HashMap<String, bool>,
    /// The first key of which an image and a label are apart.
    scattered: Option<String>,
    /// The first image without a label, and where that was looked for.
    unlabeled: Option<String>,
}

impl Index {
    fn new(path: &Path, has_names: bool) -> Self {
        Self {
            shard: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            has_names,
            tally: Tally::default(),
            found: Vec::new(),
            group: Group::default(),
            incomplete: HashMap::new(),
            scattered: None,
            unlabeled: None,
        }
    }

    /// A member of this key comes next.
    fn begin(&mut self, key: &str) {
        if self.group.key != key {
            let group = std::mem::take(&mut self.group);
            self.end(group);
            self.group.key = key.into();
        }
    }

    fn member(&mut self, image: Image, extension: &str) {
        let last = extension.rsplit('.').next().unwrap_or_default();
        if is_image_extension(extension) {
            if self.group.image.is_some() {
                self.leave_out("further images of a sample", &image.member);
            } else {
                self.group.image = Some(image);
            }
        } else if is_image_extension(last) {
            self.group.dotted.get_or_insert((0, image.member)).0 += 1;
        } else if is_foreign_extension(last) {
            self.group.has_foreign = true;
            self.leave_out(&format!(".{last}"), &image.member);
        } else if last == "tar" {
            self.leave_out("tar files in tar files", &image.member);
        }
    }

    fn leave_out(&mut self, why: &str, member: &str) {
        self.tally.add(why, format_args!("{}: {member}", self.shard));
    }

    fn end(&mut self, Group { key, image, dotted, has_foreign, labels }: Group) {
        let label = label(labels, self.has_names);
        let has_image = image.is_some();
        match (image, label) {
            (Some(Image { member, offset, bytes }), Some(label)) => {
                self.found.push(Found { member, offset, bytes, label });
                return;
            }
            (Some(Image { member, .. }), None) => {
                self.unlabeled.get_or_insert_with(|| {
                    format!(
                        "{member}: no label; it is looked for in {key}.cls, in the field 'label' \
                         of {key}.json, and as an index, or a name of data.source.labels, in \
                         {key}.txt"
                    )
                });
            }
            (None, label) => {
                if let Some((n, member)) = dotted {
                    self.tally.add_many(DOTTED, n, format_args!("{}: {member}", self.shard));
                } else if label.is_some() && !has_foreign {
                    self.tally
                        .add("labels without an image", format_args!("{}: {key}", self.shard));
                }
            }
        }
        match self.incomplete.get(&key) {
            Some(had_image) if *had_image != has_image => {
                self.scattered.get_or_insert(key);
            }
            _ => {
                self.incomplete.insert(key, has_image);
            }
        }
    }

    fn finish(mut self) -> Result<(Vec<Found>, Tally), String> {
        let group = std::mem::take(&mut self.group);
        self.end(group);
        if let Some(key) = self.scattered {
            return Err(format!(
                "the members of sample {key} are not next to each other; pack the shard again with \
                 its members sorted: tar --sort=name"
            ));
        }
        self.unlabeled.map_or(Ok((self.found, self.tally)), Err)
    }
}

/// The label of a sample, from the first of its members that has one.
fn label(labels: [Option<String>; 3], has_names: bool) -> Option<String> {
    let [cls, json, txt] = labels;
    let trimmed = |text: String| text.trim().to_owned();
    // A text beside an image is a caption more often than a label.
    let is_label = |text: &String| has_names || text.parse::<usize>().is_ok();
    cls.map(trimmed)
        .or_else(|| json.as_deref().and_then(json_label))
        .or_else(|| txt.map(trimmed).filter(is_label))
        .filter(|label| !label.is_empty())
}

fn json_label(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    match JSON_LABELS.iter().find_map(|key| value.get(key))? {
        Value::String(name) => Some(name.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A file of which no more than a budget is read before the budget is renewed: a header may claim
/// gigabytes for a file name.
struct Budgeted {
    file: File,
    left: Rc<Cell<u64>>,
}

impl Read for Budgeted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header is larger than 1 MiB"));
        }
        let most = buffer.len().min(left as usize);
        let n = self.file.read(&mut buffer[..most])?;
        self.left.set(left - n as u64);
        Ok(n)
    }
}

impl Seek for Budgeted {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
