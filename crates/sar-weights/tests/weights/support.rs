//! Files for the tests: tiny `.pth` zips built by hand, and the released layouts.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{Shape, TensorData, bf16, f16};
use sar_weights::{NamedTensors, WeightsError, WeightsFile};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// A checkpoint of the parity cases.
pub(crate) fn parity(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/parity").join(name)
}

/// A file made with torch, by `fixtures/make.py`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A file in torch's legacy form: the pickle of the object, and key, count and bytes of storages.
pub(crate) fn legacy(object: &[u8], storages: &[(&str, i64, &[u8])]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let mut file =
        [&magic[..], b"\x80\x02M\xe9\x03.", b"\x80\x02}.", object, b"\x80\x02]("].concat();
    for (key, _, _) in storages {
        file.push(b'U');
        file.push(key.len() as u8);
        file.extend(key.bytes());
    }
    file.extend(b"e.");
    for (_, count, bytes) in storages {
        file.extend(count.to_le_bytes());
        file.extend(*bytes);
    }
    file
}

/// A zip file of the given entries.
pub(crate) fn zip(entries: &[(&str, &[u8])], compression: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        let options = SimpleFileOptions::default().compression_method(compression);
        zip.start_file(*name, options).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// The entries of a zip file.
pub(crate) fn unzip(zip: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).unwrap();
    (0..archive.len())
        .map(|index| {
            let mut entry = archive.by_index(index).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.name().unwrap().into_owned(), content)
        })
        .collect()
}

/// One tensor of a pickle: name, storage type, key, length, offset, sizes, strides.
pub(crate) struct Spec<'s>(
    pub(crate) &'s str,
    pub(crate) &'s str,
    pub(crate) &'s str,
    pub(crate) usize,
    pub(crate) usize,
    pub(crate) &'s [usize],
    pub(crate) &'s [usize],
);

/// The pickle of a flat dictionary of tensors, as torch writes it.
pub(crate) fn pickle(tensors: &[Spec]) -> Vec<u8> {
    let mut out = b"\x80\x02}".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let int = |out: &mut Vec<u8>, int: usize| {
        out.extend(b"\x8a\x08");
        out.extend((int as u64).to_le_bytes());
    };
    for Spec(name, storage, key, len, offset, sizes, strides) in tensors {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{storage}Storage\n").bytes());
        text(&mut out, key);
        text(&mut out, "cpu");
        int(&mut out, *len);
        out.extend(b"tQ");
        int(&mut out, *offset);
        for sides in [sizes, strides] {
            out.push(b'(');
            sides.iter().for_each(|&side| int(&mut out, side));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtRs");
    }
    out.push(b'.');
    out
}

/// Little-endian bytes of f32 values.
pub(crate) fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// Writes a file of the given content and reads it back as weights; from memory it reads the same.
pub(crate) fn read(content: &[u8]) -> Result<NamedTensors, WeightsError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("weights");
    fs::write(&path, content).unwrap();
    let from_disk = NamedTensors::read(&path);
    let name = path.to_str().unwrap();
    let from_memory = WeightsFile::from_bytes(name, content.to_vec()).and_then(|f| f.read_all());
    match (&from_disk, &from_memory) {
        (Ok(disk), Ok(memory)) => {
            let both = || disk.iter().zip(memory.iter());
            assert_eq!(disk.iter().count(), memory.iter().count());
            assert!(both().all(|(a, b)| a.0 == b.0 && a.1.bytes == b.1.bytes));
        }
        (Err(disk), Err(memory)) if disk.to_string() == memory.to_string() => {}
        // An index is one of a file on the disk.
        (Err(_), Err(memory)) => assert!(memory.to_string().contains("index"), "{memory}"),
        _ => panic!("{from_disk:?} from the disk, {from_memory:?} from memory"),
    }
    from_disk
}

/// The message of a failure, which is one line that names the file.
pub(crate) fn message<T: std::fmt::Debug>(result: Result<T, WeightsError>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(!message.contains('\n') && message.contains("weights"), "{message}");
    message.split_once(": ").unwrap().1.to_owned()
}

/// A tensor of every element type, a scalar, an empty one and metadata.
pub(crate) fn every_type() -> NamedTensors {
    let mut named = NamedTensors::new();
    named.insert("f64", TensorData::from([[1.5f64], [f64::NAN]]));
    named.insert("f32", TensorData::from([f32::NAN, -0.0, f32::NEG_INFINITY]));
    named.insert("f16", TensorData::from([f16::from_f32(0.1)]));
    named.insert("bf16", TensorData::from([bf16::from_f32(0.1); 3]));
    named.insert("i64", TensorData::from([i64::MIN]));
    named.insert("i32", TensorData::from([i32::MIN]));
    named.insert("i16", TensorData::from([i16::MIN]));
    named.insert("i8", TensorData::from([i8::MIN]));
    named.insert("u64", TensorData::from([u64::MAX]));
    named.insert("u32", TensorData::from([u32::MAX]));
    named.insert("u16", TensorData::from([u16::MAX]));
    named.insert("u8", TensorData::from([u8::MAX]));
    named.insert("bool", TensorData::from([true, false, true]));
    named.insert("scalar", TensorData::new(vec![3f32], Shape::from(Vec::<usize>::new())));
    named.insert("empty", TensorData::new(Vec::<f32>::new(), [0, 7]));
    named.insert("ä \"quoted\"\n", TensorData::from([1f32]));
    named.metadata_mut().insert("step".into(), "7\n\"x\"".into());
    named.metadata_mut().insert("format".into(), "pt".into());
    named
}
