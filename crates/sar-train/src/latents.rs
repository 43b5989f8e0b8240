//! Latents of a frozen tokenizer on disk, encoded once and used by every backbone stage.
//!
//! ```text
//! FOLDER/<key>/00000.safetensors   latents [n, c, h, w] and labels [n] of the first n records
//! FOLDER/<key>/00001.safetensors   …
//! ```
//! A record is one training image in one of its variants: record `image * variants + variant`. The key
//! names the tokenizer's weights, the data and everything else that decides a latent, so that a folder can
//! be shared by runs, and a stale cache is never read. A chunk is written whole or not at all: a
//! cache that was interrupted goes on where it was.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use sar_core::SeedTree;
use sar_data::{EpochOrder, Images, Prefetch};
use sar_exchange::{Group, Share};
use sar_weights::{NamedTensors, TensorInfo, WeightsFile, remove_stale_of, write_bytes};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::recipe::Recipe;
use crate::threads::side_by_side;

/// Where the latents of a backbone stage come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Latents {
    /// Every image is augmented and encoded anew at every step.
    Online {},
    /// Every image is encoded in a number of variants beforehand.
    Cached {
        /// Where; a relative path starts at the run directory.
        folder: PathBuf,
        /// Differently augmented variants of each image, drawn from step by step.
        variants: usize,
        /// How a latent is stored.
        precision: Precision,
    },
}

/// Bits of a stored latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Precision {
    /// 32-bit floats.
    Full,
    /// 16-bit floats: half the space; codes at a tie may change.
    Half,
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::Full => DType::F32,
            Self::Half => DType::F16,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> u64 {
        self.dtype().size() as u64
    }
}

/// What a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) images: usize,
    pub(crate) variants: usize,
    /// Channels, height and width of a latent.
    pub(crate) shape_chw: [usize; 3],
    pub(crate) precision: Precision,
}

/// Bytes of a chunk, about.
const CHUNK_BYTES: u64 = 16 << 20;
/// A chunk has a multiple of so many records.
const CHUNK_UNIT: usize = 32;

impl Extent {
    /// The cache that a recipe asks for, of so many images.
    pub(crate) fn of(recipe: &Recipe, images: usize) -> Option<Self> {
        let Latents::Cached { variants, precision, .. } = recipe.latents else { return None };
        let config = &recipe.tokenizer.model;
        let side = recipe.data.side as usize / config.downsampling();
        Some(Self { images, variants, shape_chw: [config.codebook_dim, side, side], precision })
    }

    pub(crate) fn records(&self) -> usize {
        self.images * self.variants
    }

    fn record_bytes(&self) -> u64 {
        self.shape_chw.iter().product::<usize>() as u64 * self.precision.bytes()
    }

    /// Bytes of all latents.
    pub(crate) fn bytes(&self) -> u64 {
        self.records() as u64 * self.record_bytes()
    }

    fn chunk_records(&self) -> usize {
        let fit = (CHUNK_BYTES / self.record_bytes().max(1)) as usize;
        fit.next_multiple_of(CHUNK_UNIT).max(CHUNK_UNIT)
    }
}

/// A whole cache, open for reading; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct LatentCache(Arc<Chunks>);

#[derive(Debug)]
struct Chunks {
    folder: PathBuf,
    extent: Extent,
    /// Where the latents of each chunk begin.
    starts: Vec<u64>,
    /// The class of each record.
    labels: Vec<usize>,
    /// Chunks that are open, some of those that were read last.
    open: Mutex<HashMap<usize, File>>,
}

/// Chunks that are kept open: a fraction of what systems allow.
const MOST_OPEN: usize = 128;

/// Which chunks were found as they were written, by length and time of change: they are not read through
/// again at every start, so that damage that keeps both passes unseen.
#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Verified(BTreeMap<String, (u64, u128)>);

const VERIFIED: &str = "verified.json";

// In a file tensors lie in the order of their names.
const LABELS: &str = "labels";
const LATENTS: &str = "latents";

/// Latents `[n, c, h, w]` of some records, and their classes.
type Encoded<B> = (Tensor<B, 4>, Vec<usize>);

impl LatentCache {
    /// Makes what is missing of the cache, or damaged, and opens it.
    ///
    /// Several ranks make it together, chunk by chunk in turns, in one folder that all of them see.
    ///
    /// `encode` gives the latents of some records, so many at a time; it runs on `workers` threads.
    /// `progress` hears of the records that are there, and says whether to go on; among several ranks it is
    /// asked by all after every chunk of theirs, and has to give all the same answer.
    ///
    /// # Errors
    /// If a chunk cannot be written, or images cannot be encoded, or `progress` says so.
    pub(crate) fn open<B: Backend>(
        folder: PathBuf,
        extent: Extent,
        [workers, batch_size]: [usize; 2],
        group: &Group,
        encode: impl Fn(std::ops::Range<usize>) -> Result<Encoded<B>, TrainError> + Sync,
        mut progress: impl FnMut(usize) -> Result<(), TrainError>,
    ) -> Result<Self, TrainError> {
        std::fs::create_dir_all(&folder).map_err(TrainError::io(&folder, "cannot be made"))?;
        let (n, size) = (extent.records(), extent.chunk_records());
        let known = Verified::read(&folder);
        let records = |chunk: usize| chunk * size..n.min((chunk + 1) * size);
        let found = |chunk: usize, path: &Path| {
            let is_known =
                Verified::stamp(path).is_some_and(|stamp| known.0.get(&key(chunk)) == Some(&stamp));
            labels_of_chunk(path, extent, records(chunk).len(), is_known)
        };
        let chunks = n.div_ceil(size);
        // The labels of the chunks that this rank looked at.
        let mut seen: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        for first in (0..chunks).step_by(group.ranks()) {
            let chunk = first + group.rank();
            if chunk < chunks {
                let path = chunk_path(&folder, chunk);
                let of_chunk =
                    match found(chunk, &path) {
                        Some(labels) => labels,
                        None => {
                            let (at_once, start) = ([workers, batch_size], records(chunk).start);
                            write_chunk(&path, extent, records(chunk), at_once, &encode, || {
                                match group.is_alone() {
                                    true => progress(start),
                                    false => {
                                        group.alive();
                                        Ok(())
                                    }
                                }
                            })?
                        }
                    };
                seen.insert(chunk, of_chunk);
            }
            progress(n.min((first + group.ranks()) * size))?;
        }
        let (mut starts, mut labels) = (Vec::new(), Vec::with_capacity(n));
        let mut verified = Verified::default();
        for chunk in 0..chunks {
            group.alive();
            let path = chunk_path(&folder, chunk);
            // What another rank has made is whole; it may be out of sight.
            let of_chunk = match seen.remove(&chunk) {
                Some(labels) => labels,
                None => labels_of_chunk(&path, extent, records(chunk).len(), true)
                    .ok_or_else(|| out_of_sight(&path))?,
            };
            labels.extend(of_chunk.into_iter().map(|label| label as usize));
            starts.push(start_of_values(&path, extent, records(chunk).len())?);
            verified.0.extend(Verified::stamp(&path).map(|stamp| (key(chunk), stamp)));
        }
        if verified != known && group.leads() {
            let json = serde_json::to_string(&verified).expect("plain values");
            let path = folder.join(VERIFIED);
            remove_left_of(&path)?;
            write_bytes(&path, json.as_bytes())?;
        }
        let open = Mutex::default();
        Ok(Self(Arc::new(Chunks { folder, extent, starts, labels, open })))
    }

    /// Reads batches of images from batch `first` on, in an order, each image in a variant that its
    /// stream draws; a thread reads ahead. Of the batches of each step those of a share alone are counted.
    pub(crate) fn load_ahead(
        &self,
        stage: SeedTree,
        order: EpochOrder,
        (share, size): (Share, usize),
        first: u64,
    ) -> LatentLoader {
        let (cache, order) = (self.clone(), Mutex::new(order));
        let batches = Prefetch::new(first..u64::MAX, 1, AHEAD, move |batch| {
            let n = share.len() as u64;
            let batch = batch / n * share.of as u64 + share.start as u64 + batch % n;
            let start = batch * size as u64;
            let mut order = order.lock().unwrap_or_else(PoisonError::into_inner);
            cache.batch(stage, &mut order, start..start + size as u64)
        });
        LatentLoader { batches, next: first }
    }

    fn batch(
        &self,
        stage: SeedTree,
        order: &mut EpochOrder,
        positions: std::ops::Range<u64>,
    ) -> Result<LatentBatch, TrainError> {
        let Extent { variants, shape_chw: [c, h, w], .. } = self.0.extent;
        let size = (positions.end - positions.start) as usize;
        let mut batch = LatentBatch {
            values: Vec::with_capacity(size * c * h * w),
            shape_bchw: [size, c, h, w],
            labels: Vec::with_capacity(size),
            streams: Vec::with_capacity(size),
        };
        for position in positions {
            let image = order.index(position);
            let stream = Images::stream(stage, position);
            let variant = stream.child("variant").below(0, variants);
            let (values, label) = self.read(image, variant)?;
            batch.values.extend(values);
            batch.labels.push(label);
            batch.streams.push(stream);
        }
        Ok(batch)
    }

    /// One latent, row-major, and its class.
    ///
    /// # Errors
    /// If its chunk cannot be read.
    ///
    /// # Panics
    /// If there is no such image or variant.
    fn read(&self, image: usize, variant: usize) -> Result<(Vec<f32>, usize), TrainError> {
        let Chunks { folder, extent, starts, labels, open } = &*self.0;
        let Extent { images, variants, shape_chw, precision } = *extent;
        assert!(image < images && variant < variants, "latent {image}.{variant}");
        let record = image * variants + variant;
        let (chunk, place) = (record / extent.chunk_records(), record % extent.chunk_records());
        let path = chunk_path(folder, chunk);
        let mut bytes = vec![0; extent.record_bytes() as usize];
        let mut read = || -> std::io::Result<()> {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            if !open.contains_key(&chunk) {
                if open.len() >= MOST_OPEN {
                    open.clear();
                }
                open.insert(chunk, File::open(&path)?);
            }
            let file = open.get_mut(&chunk).expect("opened");
            let at = starts[chunk] + place as u64 * extent.record_bytes();
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(TrainError::io(&path, "cannot be read"))?;
        let data = TensorData::from_bytes_vec(bytes, shape_chw.to_vec(), precision.dtype());
        Ok((data.convert::<f32>().into_vec().expect("f32"), labels[record]))
    }
}

/// Stored latents of some images.
#[derive(Debug)]
pub(crate) struct LatentBatch {
    pub(crate) values: Vec<f32>,
    pub(crate) shape_bchw: [usize; 4],
    pub(crate) labels: Vec<usize>,
    pub(crate) streams: Vec<SeedTree>,
}

/// Batches of latents, in their order.
pub(crate) struct LatentLoader {
    batches: Prefetch<Result<LatentBatch, TrainError>>,
    next: u64,
}

/// Batches that are read ahead.
const AHEAD: usize = 4;

impl LatentLoader {
    /// The number of the batch that comes next.
    pub(crate) fn next_batch(&self) -> u64 {
        self.next
    }

    /// The next batch.
    ///
    /// # Errors
    /// If a chunk of it cannot be read.
    pub(crate) fn next(&mut self) -> Result<LatentBatch, TrainError> {
        self.next += 1;
        self.batches.next().expect("batches without end")
    }
}

impl Verified {
    /// What is known of a folder; nothing, where it cannot be read.
    fn read(folder: &Path) -> Self {
        let text = std::fs::read_to_string(folder.join(VERIFIED)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// Length and time of the last change, nanoseconds.
    fn stamp(path: &Path) -> Option<(u64, u128)> {
        let file = std::fs::metadata(path).ok()?;
        let changed = file.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some((file.len(), changed.as_nanos()))
    }
}

fn key(chunk: usize) -> String {
    format!("{chunk:05}")
}

fn chunk_path(folder: &Path, chunk: usize) -> PathBuf {
    folder.join(format!("{}.safetensors", key(chunk)))
}

/// The labels of a chunk, if it is there, of the right shape, and as it was written; the latents of one
/// that is known to be are not read.
fn labels_of_chunk(path: &Path, extent: Extent, n: usize, is_known: bool) -> Option<Vec<i64>> {
    let mut file = WeightsFile::open(path).ok()?;
    let [c, h, w] = extent.shape_chw;
    let info = |name: &str, dtype, shape: &[usize]| TensorInfo {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
    };
    let expected =
        [info(LABELS, DType::I64, &[n]), info(LATENTS, extent.precision.dtype(), &[n, c, h, w])];
    if file.tensors() != expected {
        return None;
    }
    if !is_known {
        file.verify().ok()?;
    }
    file.read(LABELS).ok()?.into_vec::<i64>().ok()
}

fn write_chunk<B: Backend>(
    path: &Path,
    extent: Extent,
    records: std::ops::Range<usize>,
    [workers, batch_size]: [usize; 2],
    encode: &(impl Fn(std::ops::Range<usize>) -> Result<Encoded<B>, TrainError> + Sync),
    mut before_each: impl FnMut() -> Result<(), TrainError>,
) -> Result<Vec<i64>, TrainError> {
    remove_left_of(path)?;
    let [c, h, w] = extent.shape_chw;
    let n = records.len();
    let mut bytes = Vec::with_capacity(n * extent.record_bytes() as usize);
    let mut labels = Vec::with_capacity(n);
    let parts: Vec<_> = records
        .clone()
        .step_by(batch_size)
        .map(|start| start..records.end.min(start + batch_size))
        .collect();
    for group in parts.chunks(workers.max(1)) {
        before_each()?;
        let encoded = side_by_side(group.to_vec(), &|part| {
            let (latents, labels) = encode(part)?;
            let data = latents.into_data().convert_dtype(extent.precision.dtype());
            Ok::<_, TrainError>((data, labels))
        });
        for part in encoded {
            let (data, of_part) = part?;
            bytes.extend_from_slice(data.as_bytes());
            labels.extend(of_part.into_iter().map(|label| label as i64));
        }
    }
    let mut tensors = NamedTensors::new();
    let data = TensorData::from_bytes_vec(bytes, vec![n, c, h, w], extent.precision.dtype());
    tensors.insert(LATENTS, data);
    tensors.insert(LABELS, TensorData::new(labels.clone(), [n]));
    tensors.metadata_mut().insert("kind".into(), "latents".into());
    tensors.write_safetensors(path)?;
    Ok(labels)
}

/// Removes what killed writers of a file left. Other runs may write to the folder meanwhile, though hardly this
/// file: one on another machine that does so at this moment fails, and goes on when it is resumed.
fn remove_left_of(path: &Path) -> Result<(), TrainError> {
    let folder = path.parent().expect("a file of a cache");
    remove_stale_of(folder, |name| path.file_name() == Some(name.as_ref()))?;
    Ok(())
}

fn out_of_sight(path: &Path) -> TrainError {
    TrainError::Ranks(format!(
        "{}: another rank has made it, and it is not to be seen here; latents.folder has to be one folder for all ranks",
        path.display()
    ))
}

/// The latents are the last bytes of the file.
fn start_of_values(path: &Path, extent: Extent, n: usize) -> Result<u64, TrainError> {
    let length = std::fs::metadata(path).map_err(TrainError::io(path, "cannot be read"))?.len();
    Ok(length - n as u64 * extent.record_bytes())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, SystemTime};

    use burn_flex::Flex;

    use super::*;
    use crate::testing::on_ranks;

    const EXTENT: Extent =
        Extent { images: 40, variants: 2, shape_chw: [3, 2, 1], precision: Precision::Full };

    /// A record's values are its number and what follows.
    fn value(record: usize, i: usize) -> f32 {
        record as f32 + i as f32 / 8.0
    }

    /// Of chunks of 32 records, 512 KiB each.
    const LARGE: Extent =
        Extent { images: 35, variants: 2, shape_chw: [128, 32, 32], precision: Precision::Full };

    fn open(folder: &Path, extent: Extent, encoded: &AtomicUsize) -> LatentCache {
        open_on(&Group::alone(), folder, extent, encoded).unwrap()
    }

    fn open_on(
        group: &Group,
        folder: &Path,
        extent: Extent,
        encoded: &AtomicUsize,
    ) -> Result<LatentCache, TrainError> {
        let [c, h, w] = extent.shape_chw;
        let encode = |records: std::ops::Range<usize>| {
            encoded.fetch_add(records.len(), Ordering::Relaxed);
            let n = records.len();
            let labels = records.clone().map(|r| r % 3).collect();
            let of_record = |r| (0..c * h * w).map(move |i| value(r, i));
            let values: Vec<f32> = records.flat_map(of_record).collect();
            let data = TensorData::new(values, [n, c, h, w]);
            Ok((Tensor::<Flex, 4>::from_data(data, &Default::default()), labels))
        };
        LatentCache::open(folder.to_owned(), extent, [2, 32], group, encode, |_| {
            // As in a run: nobody goes on before all have written.
            group.any([false])?;
            Ok(())
        })
    }

    #[test]
    fn what_is_written_is_read_and_not_written_again() {
        for precision in [Precision::Full, Precision::Half] {
            let folder = tempfile::tempdir().unwrap();
            let extent = Extent { precision, ..EXTENT };
            let encoded = AtomicUsize::new(0);
            let cache = open(folder.path(), extent, &encoded);
            for (image, variant) in [(0, 0), (17, 1), (39, 1)] {
                let expected: Vec<f32> = (0..6).map(|i| value(2 * image + variant, i)).collect();
                let label = (2 * image + variant) % 3;
                assert_eq!(cache.read(image, variant).unwrap(), (expected, label));
            }
            assert_eq!(encoded.load(Ordering::Relaxed), 80);
            open(folder.path(), extent, &encoded);
            assert_eq!(encoded.load(Ordering::Relaxed), 80);
        }
    }

    #[test]
    fn a_damaged_or_foreign_chunk_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let encoded = AtomicUsize::new(0);
        open(folder.path(), EXTENT, &encoded);
        let path = chunk_path(folder.path(), 0);
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 4;
        for bad in [&flipped[..], &good[..good.len() - 1], b"", b"no chunk"] {
            std::fs::write(&path, bad).unwrap();
            let before = encoded.load(Ordering::Relaxed);
            open(folder.path(), EXTENT, &encoded);
            assert_eq!(encoded.load(Ordering::Relaxed), before + 80);
            assert_eq!(std::fs::read(&path).unwrap(), good);
        }
    }

    #[test]
    fn a_verified_chunk_is_read_through_only_where_its_length_or_time_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let encoded = AtomicUsize::new(0);
        let n_encoded = || {
            open(folder.path(), EXTENT, &encoded);
            encoded.load(Ordering::Relaxed)
        };
        assert_eq!(n_encoded(), 80);
        let path = chunk_path(folder.path(), 0);
        let good = std::fs::read(&path).unwrap();
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let replace = |content: &[u8], time: SystemTime| {
            std::fs::write(&path, content).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 4;
        let second = Duration::from_secs(1);
        // What would be seen if it were read through.
        replace(&flipped, time);
        assert_eq!(n_encoded(), 80);
        assert_eq!(std::fs::read(&path).unwrap(), flipped);
        // Of another time: whole, it is kept; damaged, it is made again.
        replace(&good, time + second);
        assert_eq!(n_encoded(), 80);
        replace(&flipped, time + 2 * second);
        assert_eq!(n_encoded(), 160);
        assert_eq!(std::fs::read(&path).unwrap(), good);
    }

    #[test]
    fn what_killed_writers_left_of_a_file_is_removed_when_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let left = ["00000.safetensors", VERIFIED, "00001.safetensors"].map(|name| {
            let path = folder.path().join(format!(".{name}.4294967295-0.partial"));
            std::fs::write(&path, "torn").unwrap();
            path
        });
        open(folder.path(), EXTENT, &AtomicUsize::new(0));
        // There is one chunk; another is another run's.
        assert_eq!(left.map(|path| path.exists()), [false, false, true]);
    }

    #[test]
    fn ranks_make_a_cache_in_turns_and_the_same_as_one() {
        let chunks = |folder: &Path| {
            [0, 1, 2].map(|chunk| std::fs::read(chunk_path(folder, chunk)).unwrap())
        };
        let alone = tempfile::tempdir().unwrap();
        let encoded = AtomicUsize::new(0);
        open(alone.path(), LARGE, &encoded);
        assert_eq!(encoded.into_inner(), 70);
        for turns in [&[38_usize, 32][..], &[32, 32, 6]] {
            let folder = tempfile::tempdir().unwrap();
            let encoded = || {
                on_ranks(turns.len(), |group| {
                    let encoded = AtomicUsize::new(0);
                    let cache = open_on(&group, folder.path(), LARGE, &encoded).unwrap();
                    // Records of all three chunks, whoever has made them.
                    for (image, variant) in [(0, 1), (20, 0), (34, 1)] {
                        let (values, label) = cache.read(image, variant).unwrap();
                        let record = 2 * image + variant;
                        assert_eq!((values[9], label), (value(record, 9), record % 3));
                    }
                    encoded.into_inner()
                })
            };
            assert_eq!(encoded(), turns);
            assert!(chunks(folder.path()) == chunks(alone.path()), "{turns:?}");
            assert_eq!(encoded(), vec![0; turns.len()]);
            // What is missing is made by whose turn it is.
            std::fs::remove_file(chunk_path(folder.path(), 1)).unwrap();
            assert_eq!(encoded()[1], 32);
            assert!(chunks(folder.path()) == chunks(alone.path()), "{turns:?}");
        }
    }

    #[test]
    fn ranks_without_a_folder_for_all_say_what_they_do_not_see() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let errors = on_ranks(2, |group| {
            let folder = folders[group.rank()].path();
            open_on(&group, folder, LARGE, &AtomicUsize::new(0)).unwrap_err().to_string()
        });
        for (rank, of_other) in [(0, 1), (1, 0)] {
            let path = chunk_path(folders[rank].path(), of_other);
            let named = errors[rank].starts_with(&format!("{}: another rank", path.display()));
            assert!(named && errors[rank].contains("latents.folder"), "{errors:?}");
        }
    }

    #[test]
    fn sizes_by_hand() {
        assert_eq!(EXTENT.bytes(), 80 * 6 * 4);
        assert_eq!(Extent { precision: Precision::Half, ..EXTENT }.bytes(), 80 * 6 * 2);
        let large = Extent { images: 1, variants: 1, shape_chw: [32, 32, 32], ..EXTENT };
        // 131 072 bytes a record: 128 in 16 MiB.
        assert_eq!(large.chunk_records(), 128);
        assert!(Extent { shape_chw: [1000, 1000, 1000], ..EXTENT }.chunk_records() == 32);
    }
}
