//! What is asked of everything that reads a user's file or text, one function a target: any input gives
//! an error of one line, or something that survives being written.
//!
//! `fuzz_targets/` calls these functions under libfuzzer. `crates/sar-cli/tests/corpus.rs` calls them with a
//! corpus and what becomes of it by chance, as a plain test.

use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use sar_core::{ScaleSchedule, ScaleSize};
use sar_data::list::{ListEntry, parse_list};
use sar_train::Recipe;
use sar_weights::{NamedTensors, WeightsFile};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Writes an input to a file of this thread, in memory where the system has such a folder, and returns
/// its path.
fn file_of(content: &[u8], ending: &str) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    let path = folder.join(format!("sar-fuzz-{}-{thread}.{ending}", std::process::id()));
    fs::write(&path, content).expect("the folder of temporary files can be written to");
    path
}

/// Any text as a recipe: an error of one line, or a recipe that survives being written.
pub fn recipe(content: &[u8]) {
    let Ok(text) = std::str::from_utf8(content) else { return };
    let path = file_of(content, "toml");
    let load = |settings: &[String]| Recipe::load(path.to_str().expect("a plain path"), settings);
    // The first line may also be a setting of a sound recipe.
    if let Some(setting) = text.lines().next()
        && let Err(error) = Recipe::load("emoji-quick", &[setting.to_owned()])
    {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    match load(&[]) {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(recipe) => {
            let again = file_of(recipe.to_toml().as_bytes(), "toml");
            let again = Recipe::load(again.to_str().expect("a plain path"), &[]);
            assert_eq!(again.expect("just written"), recipe);
        }
    }
}

/// Any text as a list of images: the number of the first bad line, or entries that survive being
/// written.
pub fn list(content: &[u8]) {
    let Ok(text) = std::str::from_utf8(content) else { return };
    match parse_list(text) {
        Err(line) => assert!((1..=text.lines().count()).contains(&line)),
        Ok(entries) => {
            assert!(entries.is_sorted_by(|a, b| a.line < b.line));
            let lines = entries.iter().map(|entry| format!("{} {}\n", entry.path, entry.label));
            let again = parse_list(&lines.collect::<String>()).expect("just written");
            let parts = |entry: &ListEntry| (entry.path.clone(), entry.label.clone());
            assert!(again.iter().map(parts).eq(entries.iter().map(parts)));
        }
    }
}

/// Any text as a scale schedule: an error of one line, or a schedule that survives being written.
pub fn scales(content: &[u8]) {
    let Ok(text) = std::str::from_utf8(content) else { return };
    match text.parse::<ScaleSchedule>() {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(scales) => {
            assert_eq!(scales.to_string().parse(), Ok(scales.clone()));
            assert_eq!(scales.ranges().last().map(|range| range.end), Some(scales.n_tokens()));
            let last = ScaleSize { width: scales.last().width + 1, ..scales.last() };
            if let Ok(wider) = scales.with_last(last) {
                assert_eq!(wider.last(), last);
            }
        }
    }
}

/// Any bytes behind the magic number of a zip file.
pub fn pth_file(content: &[u8]) {
    let path = file_of(&[b"PK\x03\x04", content].concat(), "pth");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = file.check_readable(|_| true);
        let _ = file.verify();
    }
    let _ = NamedTensors::read(&path);
}

/// Any pickle in a sound zip file: the checksums are right, so that the bytes reach the interpreter.
pub fn pth_pickle(pickle: &[u8]) {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let storages = [[0; 64], [1; 64], [0x80; 64]];
    let mut add = |name: &str, content: &[u8]| {
        zip.start_file(name, options).expect("a short name");
        zip.write_all(content).expect("memory can be written to");
    };
    add("a/data.pkl", pickle);
    for (key, storage) in storages.iter().enumerate() {
        add(&format!("a/data/{key}"), storage);
    }
    let content = zip.finish().expect("memory can be written to").into_inner();
    read_and_written_again(&content);
}

/// Any pickles and storages behind the magic number of torch's legacy form.
pub fn pth_legacy(content: &[u8]) {
    /// Magic number, protocol version and the description of the machine, each a pickle.
    const START: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    read_and_written_again(&[START, content].concat());
}

/// What was read of a `.pth` can be written and is read again.
fn read_and_written_again(content: &[u8]) {
    let path = file_of(content, "pth");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = file.check_readable(|_| true);
        let _ = file.verify();
    }
    if let Ok(named) = NamedTensors::read(&path) {
        let copy = path.with_extension("copy");
        named.write_pth(&copy, "").expect("every tensor of a .pth fits into one");
        // Where nothing but unreadable tensors was found, nothing was written.
        if !named.is_empty() {
            assert_eq!(NamedTensors::read(&copy).expect("just written").infos(), named.infos());
        }
    }
}

/// Any header and any bytes behind it; the length of the header is right, or the first bytes say it.
pub fn safetensors_file(content: &[u8]) {
    let framed = match content.iter().position(|&byte| byte == 0) {
        Some(end) => [&(end as u64).to_le_bytes(), &content[..end], &content[end + 1..]].concat(),
        None => content.to_vec(),
    };
    let path = file_of(&framed, "safetensors");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = file.verify();
    }
    if let Ok(named) = NamedTensors::read(&path) {
        let copy = path.with_extension("copy");
        named.write_safetensors(&copy).expect("every tensor of the format fits into it");
        assert_eq!(NamedTensors::read(&copy).expect("just written").infos(), named.infos());
    }
}

/// Any index of shards, beside a sound shard that it may name, and any second shard.
pub fn shards(content: &[u8]) {
    /// One tensor `a` of one byte.
    const SHARD: &[u8] = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let end = content.iter().position(|&byte| byte == 0).unwrap_or(content.len());
    let (index, rest) = content.split_at(end);
    let shard = [&(SHARD.len() as u64).to_le_bytes(), SHARD, b"x"].concat();
    let path = file_of(index, "json");
    let folder = path.parent().expect("a file lies in a folder");
    fs::write(folder.join("sar-fuzz-1"), shard).expect("the folder can be written to");
    fs::write(folder.join("sar-fuzz-2"), rest).expect("the folder can be written to");
    if let Ok(mut file) = WeightsFile::open(&path) {
        let _ = file.verify();
        let _ = file.check_readable(|_| true);
    }
    let _ = NamedTensors::read(&path);
}
