//! A job of sampling: which images, in which order, cut how, and what they are made from.
//!
//! A sample depends on its own stream alone, up to the rounding of products, and products of another size
//! may round otherwise. So batches belong to the job: image `p` is always drawn in batch `p / batch`, by
//! whichever shard and however often the work was killed. A shard takes whole batches, and a batch that lacks an
//! image is drawn again whole. The files are then the same, byte for byte.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sar_core::ScaleSchedule;
use sar_eval::class_slug;
use sar_model::Precision;
use sar_pipeline::{JobOrigin, MadeWith, Origin};
use sar_rollout::Sampler;
use sar_weights::{remove_stale_of, write_bytes};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::generation::{folder_of, is_used, make_out, named_after};

/// The most images of one job.
pub(crate) const MOST_IMAGES: usize = 10_000_000;

/// What to do where a folder's job has other settings.
pub(crate) const OTHER_SETTINGS: &str = "give the job's own settings, or choose another --out";

/// How many images so many of each class are.
///
/// # Errors
/// If they are too many for memory and folders.
pub(crate) fn n_images(n: usize, classes: usize) -> Result<usize> {
    let all = n.checked_mul(classes).filter(|all| *all <= MOST_IMAGES);
    all.with_context(|| match classes {
        1 => format!("--n {n}: at most {MOST_IMAGES} images"),
        _ => format!("--n {n}: of each of {classes} classes; at most {MOST_IMAGES} images"),
    })
}

/// Everything that the images depend on, as `OUT-job.json` says it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SampleJob {
    /// The version of the program.
    pub(crate) sar: String,
    pub(crate) seed: u64,
    /// In the order of the images.
    pub(crate) classes: Vec<Class>,
    /// Images per class.
    pub(crate) n: usize,
    /// Images that are drawn together.
    pub(crate) batch: usize,
    /// In pixels.
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) scales: ScaleSchedule,
    pub(crate) sampler: Sampler,
    pub(crate) precision: Precision,
    /// The backend, and of a CPU its vector instructions: what rounds.
    pub(crate) device: String,
    /// Checksums of the parameters.
    pub(crate) tokenizer: String,
    pub(crate) backbone: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Class {
    pub(crate) label: usize,
    /// None where samples have no class.
    pub(crate) name: Option<String>,
}

impl SampleJob {
    /// What the image at a position is made from.
    pub(crate) fn origin(&self, position: usize) -> Origin {
        let (label, number) = self.image(position);
        let class = &self.classes[position / self.n];
        Origin {
            job: JobOrigin {
                sar: self.sar.clone(),
                seed: self.seed,
                n: self.n,
                batch: self.batch,
                scales: self.scales.clone(),
                sampler: self.sampler,
                made_with: MadeWith {
                    precision: self.precision,
                    device: self.device.clone(),
                    tokenizer: self.tokenizer.clone(),
                    backbone: self.backbone.clone(),
                },
            },
            label,
            class: class.name.clone(),
            number,
            edit: None,
        }
    }

    /// Where the job of a folder is written: beside it, as the folder holds images only.
    pub(crate) fn path(folder: &Path) -> PathBuf {
        named_after(folder, "job.json")
    }

    /// Reads the job of a folder.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        ensure!(folder.is_dir(), "{}: no such folder", folder.display());
        ensure!(
            path.is_file(),
            "{}: no job of `sar sample` belongs to it, there is no {}",
            folder.display(),
            path.display()
        );
        let job: Self = serde_json::from_str(&read(&path)?)
            .with_context(|| format!("{}: is no job of this sar", path.display()))?;
        let n = n_images(job.n, job.classes.len()).with_context(|| path.display().to_string())?;
        ensure!(n > 0 && job.batch > 0, "{}: is a job of no images", path.display());
        Ok(job)
    }

    /// The number of images.
    pub(crate) fn len(&self) -> usize {
        self.classes.len() * self.n
    }

    /// Whether the images have classes.
    pub(crate) fn has_classes(&self) -> bool {
        self.classes.iter().all(|class| class.name.is_some())
    }

    /// The label of the image at a position, and its number among the label's samples.
    pub(crate) fn image(&self, position: usize) -> (usize, usize) {
        (self.classes[position / self.n].label, position % self.n)
    }

    /// All positions, the first image of every class, then the second of each, and so on.
    pub(crate) fn by_number(&self) -> impl Iterator<Item = usize> {
        let classes = 0..self.classes.len();
        (0..self.n).flat_map(move |i| classes.clone().map(move |class| class * self.n + i))
    }

    /// The name of the image's file.
    pub(crate) fn name(&self, position: usize) -> String {
        let Class { label, name } = &self.classes[position / self.n];
        let class = name.as_deref().map_or("unconditional".into(), class_slug);
        format!("{label}-{class}-{:03}.png", position % self.n)
    }

    /// The position of the image with a name.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        let label: usize = name.split('-').next()?.parse().ok()?;
        let i: usize = name.strip_suffix(".png")?.rsplit('-').next()?.parse().ok()?;
        let class = self.classes.iter().position(|class| class.label == label)?;
        let position = class * self.n + i;
        (i < self.n && self.name(position) == name).then_some(position)
    }

    /// The positions of a batch.
    pub(crate) fn positions(&self, batch: usize) -> Range<usize> {
        batch * self.batch..self.len().min((batch + 1) * self.batch)
    }

    /// The batches of a shard.
    pub(crate) fn batches(&self, shard: Shard) -> impl Iterator<Item = usize> {
        (shard.index..self.len().div_ceil(self.batch)).step_by(shard.of)
    }

    /// Whether a shard draws the image at a position.
    pub(crate) fn is_of(&self, position: usize, shard: Shard) -> bool {
        (position / self.batch) % shard.of == shard.index
    }

    /// Which images are in the folder.
    pub(crate) fn there(&self, folder: &Path) -> Result<Vec<bool>> {
        let context = || folder.display().to_string();
        let mut there = vec![false; self.len()];
        for entry in fs::read_dir(folder).with_context(context)? {
            let name = entry.with_context(context)?.file_name();
            if let Some(position) = name.to_str().and_then(|name| self.position(name)) {
                there[position] = true;
            }
        }
        Ok(there)
    }

    /// Removes what killed processes left of the images and of the files beside them, which nobody writes
    /// any more.
    pub(crate) fn clear(&self, folder: &Path) -> Result<()> {
        remove_stale_of(folder, |name| self.position(name).is_some())?;
        for path in [Self::path(folder), named_after(folder, "grid.png")] {
            remove_stale_of(folder_of(&path), |name| path.file_name() == Some(name.as_ref()))?;
        }
        Ok(())
    }

    /// Makes a folder that of this job: a new one, or one to go on in, which may be new as well or has to be
    /// of this job and no other.
    pub(crate) fn settle(&self, folder: &Path, goes_on: bool) -> Result<()> {
        // Seen in this order: others of the job write it before their first image.
        let is_used = is_used(folder);
        let path = Self::path(folder);
        match (path.exists(), goes_on) {
            (true, true) => {
                self.check(folder, OTHER_SETTINGS)?;
                return make_out(folder);
            }
            // What a folder that is gone has left is replaced.
            (true, false) => {
                let is_job = |text: String| serde_json::from_str::<Self>(&text).is_ok();
                ensure!(
                    read(&path).is_ok_and(is_job),
                    "{}: exists already and is no job of `sar sample`; choose another --out",
                    path.display()
                );
            }
            (false, _) => ensure!(
                !is_used,
                "--out {}: holds files that no job is known of, there is no {}",
                folder.display(),
                path.display()
            ),
        }
        make_out(folder)?;
        Ok(write_bytes(&path, self.text().as_bytes())?)
    }

    /// Compares with the job of a folder, with an advice where they differ.
    pub(crate) fn check(&self, folder: &Path, advice: &str) -> Result<()> {
        let path = Self::path(folder);
        let (theirs, ours) = (read(&path)?, self.text());
        if theirs == ours {
            return Ok(());
        }
        let theirs: Value = serde_json::from_str(&theirs)
            .with_context(|| format!("{}: is no job of `sar sample`", path.display()))?;
        let ours = serde_json::from_str(&ours).expect("JSON");
        let Some((field, theirs, ours)) = difference("", &theirs, &ours) else { return Ok(()) };
        let hint = match field.as_str() {
            "device" => " (of a CPU, the variable SAR_CPU names the instructions)",
            _ => "",
        };
        bail!("{}: has {field} = {theirs}, not {ours}{hint}; {advice}", path.display())
    }

    fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a job is JSON") + "\n"
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// A value as it is when it was written and read, which may cost a number its last digit.
pub(crate) fn read_again<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).expect("plain values");
    serde_json::from_str(&text).expect("it was written just now")
}

/// The first field that differs, and its value in both.
pub(crate) fn difference(
    field: &str,
    theirs: &Value,
    ours: &Value,
) -> Option<(String, String, String)> {
    difference_by(field, theirs, ours, &|_, theirs, ours| theirs == ours)
}

/// As [`difference`], where `same` says of a field and its two values whether they count as the same.
pub(crate) fn difference_by(
    field: &str,
    theirs: &Value,
    ours: &Value,
    same: &impl Fn(&str, &Value, &Value) -> bool,
) -> Option<(String, String, String)> {
    let inside = |key: &str| match field {
        "" => key.to_owned(),
        _ => format!("{field}.{key}"),
    };
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let mut keys = ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key)));
            keys.find_map(|key| {
                let of = |map: &serde_json::Map<_, _>| map.get(key).cloned().unwrap_or_default();
                difference_by(&inside(key), &of(theirs), &of(ours), same)
            })
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            let mut pairs = theirs.iter().zip(ours).enumerate();
            pairs.find_map(|(i, (theirs, ours))| {
                difference_by(&format!("{field}[{i}]"), theirs, ours, same)
            })
        }
        (Value::Array(theirs), Value::Array(ours)) => Some((
            format!("the number of {field}"),
            theirs.len().to_string(),
            ours.len().to_string(),
        )),
        _ => (!same(field, theirs, ours))
            .then(|| (field.into(), theirs.to_string(), ours.to_string())),
    }
}

/// Part `index`, from 0, of `of` parts of a job: the batches `b` with `b % of == index`. Two shards differ by
/// one batch at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shard {
    pub(crate) index: usize,
    pub(crate) of: usize,
}

impl Shard {
    pub(crate) const WHOLE: Self = Self { index: 0, of: 1 };

    /// Reads `3/16`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let numbers =
            text.split_once('/').and_then(|(i, n)| i.parse().ok().zip(n.parse::<usize>().ok()));
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            Some((_, of)) if of > 0 => {
                bail!("--shard {text}: shards count from 0, the last of {of} is {}/{of}", of - 1)
            }
            _ => bail!("--shard {text}: write i/n, as in 3/16: part i, from 0, of n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use sar_core::ScaleSize;
    use sar_rollout::{Choice, Guidance};

    use super::*;

    fn job(names: &[&str], n: usize, batch: usize) -> SampleJob {
        let class = |(i, name): (usize, &&str)| Class { label: 3 * i, name: Some((*name).into()) };
        SampleJob {
            sar: "0".into(),
            seed: u64::MAX,
            classes: names.iter().enumerate().map(class).collect(),
            n,
            batch,
            height: 8,
            width: 16,
            scales: ScaleSchedule::new(vec![ScaleSize::square(1)]).unwrap(),
            sampler: Sampler {
                guidance: Guidance::Ramp { scale: 0.1 + 0.2 },
                choice: Choice::Argmax,
            },
            precision: Precision::F32,
            device: "flex".into(),
            tokenizer: "t".into(),
            backbone: "b".into(),
        }
    }

    #[test]
    fn every_image_is_in_one_shard_and_shards_are_even() {
        for (classes, n, batch) in [(1, 1, 1), (3, 7, 4), (2, 50, 16), (5, 3, 100), (7, 11, 1)] {
            let job = job(&["a", "b", "c", "d", "e", "f", "g"][..classes], n, batch);
            for of in [1, 2, 3, 5, 16] {
                let mut drawn = vec![0; job.len()];
                let mut sizes = Vec::new();
                for index in 0..of {
                    let batches: Vec<usize> = job.batches(Shard { index, of }).collect();
                    for position in batches.iter().flat_map(|b| job.positions(*b)) {
                        drawn[position] += 1;
                        // The batch of an image is a matter of the job, not of the shard.
                        assert!(batches.contains(&(position / batch)));
                        assert!(job.is_of(position, Shard { index, of }));
                    }
                    sizes.push(batches.len());
                }
                assert!(drawn.iter().all(|times| *times == 1), "{drawn:?}");
                assert!(sizes[0] - sizes[of - 1] <= 1 && sizes.is_sorted_by(|a, b| a >= b));
            }
        }
    }

    #[test]
    fn names_are_those_of_positions() {
        let mut job = job(&["Smileys & Emotion", "../../etc", "&"], 1001, 16);
        assert_eq!(job.name(0), "0-smileys-emotion-000.png");
        assert_eq!(job.name(1001 + 17), "3-etc-017.png");
        assert_eq!(job.name(3002), "6-class-1000.png");
        assert_eq!(job.image(1001 + 17), (3, 17));
        (0..job.len()).for_each(|p| assert_eq!(job.position(&job.name(p)), Some(p)));
        for other in ["0-smileys-emotion-0.png", "3-etc-1001.png", "1-etc-000.png", "a.png", ""] {
            assert_eq!(job.position(other), None, "{other}");
        }
        job.classes = vec![Class { label: 9, name: None }];
        assert_eq!(job.name(5), "9-unconditional-005.png");
        let [two, none] = [2, 0].map(|n| self::job(&["a", "b", "c"], n, 4));
        assert_eq!(two.by_number().collect::<Vec<_>>(), [0, 2, 4, 1, 3, 5]);
        assert_eq!(none.by_number().count(), 0);
    }

    #[test]
    fn another_job_is_told_by_its_first_field() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("out");
        let first = job(&["a", "b"], 3, 2);
        first.settle(&folder, true).unwrap();
        first.settle(&folder, true).unwrap();
        let refuses = |change: &dyn Fn(&mut SampleJob), parts: &[&str]| {
            let mut other = job(&["a", "b"], 3, 2);
            change(&mut other);
            let error = other.settle(&folder, true).unwrap_err().to_string();
            let file = "out-job.json: has ";
            parts.iter().chain([&file]).for_each(|part| assert!(error.contains(part), "{error}"));
        };
        refuses(&|job| job.seed = 7, &["has seed = 18446744073709551615, not 7;"]);
        refuses(&|job| job.batch = 3, &["has batch = 2, not 3;"]);
        refuses(&|job| job.classes[1].label = 5, &["has classes[1].label = 3, not 5;"]);
        refuses(&|job| drop(job.classes.pop()), &["has the number of classes = 2, not 1;"]);
        let guidance = Guidance::Ramp { scale: 0.3 };
        refuses(&|job| job.sampler.guidance = guidance, &["sampler.guidance.scale", "not 0.3;"]);
        refuses(&|job| job.device = "cuda".into(), &["\"flex\", not \"cuda\"", "SAR_CPU"]);
        // The job is read as it was written.
        assert_eq!(SampleJob::of(&folder).unwrap().text(), first.text());

        // A new run of another job replaces what a folder that is gone has left.
        job(&["a"], 1, 1).settle(&folder, false).unwrap();
        assert_eq!(SampleJob::of(&folder).unwrap().len(), 1);

        // Files of which nothing is known, and another's file in the place of the job.
        fs::write(folder.join("thesis.tex"), "").unwrap();
        fs::remove_file(SampleJob::path(&folder)).unwrap();
        let error = first.settle(&folder, true).unwrap_err().to_string();
        assert!(error.contains("out: holds files") && error.contains("out-job.json"), "{error}");
        fs::write(SampleJob::path(&folder), "{\"mine\": 1}").unwrap();
        assert!(
            first.settle(&folder, false).unwrap_err().to_string().contains("choose another --out")
        );
        assert!(SampleJob::of(&folder).unwrap_err().to_string().contains("is no job"));
        fs::write(SampleJob::path(&folder), job(&[], 1, 1).text()).unwrap();
        assert!(SampleJob::of(&folder).unwrap_err().to_string().contains("no images"));
        first.settle(&folder, false).unwrap();
    }

    #[test]
    fn more_images_than_memory_can_list_are_no_job() {
        assert_eq!(n_images(MOST_IMAGES / 4, 4).unwrap(), MOST_IMAGES);
        let refused = |n, classes, part: &str| {
            let error = n_images(n, classes).unwrap_err().to_string();
            assert!(error.contains(&format!("--n {n}: ")) && error.contains(part), "{error}");
        };
        refused(MOST_IMAGES + 1, 1, "at most 10000000 images");
        refused(MOST_IMAGES / 4 + 1, 4, "of each of 4 classes; at most 10000000");
        refused(usize::MAX, 2, "at most");
        // Nor is one that a file says.
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("out");
        job(&["a", "b"], usize::MAX / 2, 2).settle(&folder, false).unwrap();
        let error = format!("{:#}", SampleJob::of(&folder).unwrap_err());
        assert!(error.contains("out-job.json: --n") && error.contains("at most"), "{error}");
    }

    #[test]
    fn shards_are_read_from_0() {
        assert_eq!(Shard::parse("3/16").unwrap(), Shard { index: 3, of: 16 });
        assert_eq!(Shard::parse("0/1").unwrap(), Shard::WHOLE);
        for (bad, part) in
            [("3/3", "2/3"), ("4/3", "2/3"), ("0/0", "i/n"), ("x", "i/n"), ("-1/2", "i/n")]
        {
            let error = Shard::parse(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("--shard {bad}: ")) && error.contains(part), "{error}");
        }
    }
}
