//! `sar pack`: the images of a sampling job as one file.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, bail, ensure};
use image::{ImageFormat, load_from_memory_with_format};
use sar_pipeline::{Origin, RgbImage};
use sar_weights::{remove_stale_of, write_whole};

use crate::Verdict;
use crate::generation::{check_file, folder_of};
use crate::interrupt::{self, INTERRUPTED};
use crate::job::{SampleJob, difference, read_again};
use crate::npz::write_npz;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder of a job of `sar sample`, or several that shards have drawn into elsewhere; the job lies beside each,
    /// DIR-job.json. An image is taken from the first folder that has it.
    #[arg(value_name = "DIR", required = true)]
    folders: Vec<PathBuf>,
    #[command(flatten)]
    files: PackArgs,
}

/// Which files.
#[derive(clap::Args)]
pub(crate) struct PackArgs {
    /// One .npz file of all images, as evaluation scripts read them: arr_0, and arr_1, the labels. Classes take
    /// turns, as the splits of an inception score need it.
    #[arg(long, value_name = "FILE")]
    npz: Option<PathBuf>,
    /// One tar file of all images, as WebDataset reads them: 000000.png, and 000000.cls, its label.
    #[arg(long, value_name = "FILE")]
    tar: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    let Args { folders, files } = args;
    ensure!(!files.is_empty(), "nothing to write: name a file with --npz or --tar");
    files.check(true)?;
    let job = SampleJob::of(&folders[0])?;
    for folder in &folders[1..] {
        SampleJob::of(folder)?;
        job.check(folder, "folders of one job are packed together")?;
    }
    let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
    let images = Images { job: &job, folders: &folders };
    images.check()?;
    interrupt::watch("stopping")?;
    folders.iter().try_for_each(|folder| job.clear(folder))?;
    match files.write(&images) {
        Err(_) if interrupt::has_come() => process::exit(INTERRUPTED),
        written => written.map(|()| Verdict::Good),
    }
}

/// The images of a job, each in the first of some folders that has it.
pub(crate) struct Images<'a> {
    pub(crate) job: &'a SampleJob,
    pub(crate) folders: &'a [&'a Path],
}

impl Images<'_> {
    /// Checks that all are there.
    fn check(&self) -> Result<()> {
        let Self { job, folders } = self;
        let mut found = vec![false; job.len()];
        for folder in *folders {
            found.iter_mut().zip(job.there(folder)?).for_each(|(found, there)| *found |= there);
        }
        let n_missing = found.iter().filter(|found| !**found).count();
        if let Some(first) = found.iter().position(|found| !found) {
            let names: Vec<String> =
                folders.iter().map(|folder| folder.display().to_string()).collect();
            bail!(
                "{}: {n_missing} of {} images are missing, the first is {}; `sar sample --resume` with the \
                 settings of {} draws them",
                names.join(", "),
                job.len(),
                job.name(first),
                SampleJob::path(folders[0]).display()
            );
        }
        Ok(())
    }

    /// The bytes of an image's file, and its pixels.
    fn read(&self, position: usize) -> Result<(Vec<u8>, RgbImage)> {
        let (last, others) = self.folders.split_last().expect("a folder at least");
        let has_it = |folder: &&&Path| folder.join(self.job.name(position)).exists();
        read(self.job, others.iter().find(has_it).unwrap_or(last), position)
    }
}

impl PackArgs {
    pub(crate) fn is_empty(&self) -> bool {
        self.named().next().is_none()
    }

    /// The option and the path of each file.
    pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let named = [("--npz", &self.npz), ("--tar", &self.tar)];
        named.into_iter().filter_map(|(option, path)| Some((option, path.as_deref()?)))
    }

    /// Checks that the files can be written when their time comes, as new ones or over the same.
    pub(crate) fn check(&self, are_new: bool) -> Result<()> {
        for (option, path) in self.named() {
            check_file(option, path, are_new)?;
        }
        ensure!(self.is_empty() || self.npz != self.tar, "--npz and --tar name one file");
        Ok(())
    }

    /// Writes the files of a job whose images are all there.
    pub(crate) fn write(&self, images: &Images<'_>) -> Result<()> {
        let job = images.job;
        let done = |path: &Path| eprintln!("wrote {} images to {}", job.len(), path.display());
        if let Some(path) = &self.npz {
            let write = |file: &mut BufWriter<File>| {
                let pixels = job.by_number().map(|p| Ok(images.read(p)?.1));
                let labels: Vec<i64> = job.by_number().map(|p| job.image(p).0 as i64).collect();
                let labels = job.has_classes().then_some(&labels[..]);
                write_npz(file, [job.len(), job.height, job.width], pixels, labels)
            };
            write_or_compare(path, write).with_context(|| format!("--npz {}", path.display()))?;
            done(path);
        }
        if let Some(path) = &self.tar {
            let write = |file: &mut BufWriter<File>| write_tar(file, images);
            write_or_compare(path, write).with_context(|| format!("--tar {}", path.display()))?;
            done(path);
        }
        Ok(())
    }
}

/// Reads an image of a job: the bytes of its file, and its pixels.
pub(crate) fn read(job: &SampleJob, folder: &Path, position: usize) -> Result<(Vec<u8>, RgbImage)> {
    ensure!(!interrupt::has_come(), "stopped");
    let path = folder.join(job.name(position));
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let advice = "remove it, and `sar sample --resume` draws it again";
    let image = load_from_memory_with_format(&bytes, ImageFormat::Png)
        .with_context(|| format!("{}: is no whole image; {advice}", path.display()))?
        .into_rgb8();
    let (width, height) = image.dimensions();
    ensure!(
        [width as usize, height as usize] == [job.width, job.height],
        "{}: is {width}x{height} px, not {}x{} (width x height); {advice}",
        path.display(),
        job.width,
        job.height
    );
    if let Some(problem) = misfit(job, position, &bytes) {
        bail!("{}: {problem}; {advice}", path.display());
    }
    Ok((bytes, image))
}

/// What an image says of itself that is not as the job has it: one of another job may lie in its place, of a shard
/// that was drawn elsewhere with other settings.
fn misfit(job: &SampleJob, position: usize, png: &[u8]) -> Option<String> {
    let Some(theirs) = Origin::of_png(png) else {
        return Some("does not say that it is of this job".into());
    };
    let ours = job.origin(position);
    if theirs == ours || theirs == read_again(&ours) {
        return None;
    }
    let [theirs, ours] =
        [theirs, ours].map(|origin| serde_json::to_value(origin).expect("plain values"));
    let (field, theirs, ours) = difference("", &theirs, &ours)?;
    Some(format!("is of another job, with {field} = {theirs}, not {ours}"))
}

/// Images and their labels under the numbers of their positions, with nothing of when and by whom it was made.
fn write_tar(file: impl Write, images: &Images<'_>) -> Result<()> {
    let job = images.job;
    let mut tar = tar::Builder::new(file);
    let mut add = |name: String, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content)
    };
    for position in 0..job.len() {
        let (bytes, _) = images.read(position)?;
        add(format!("{position:06}.png"), &bytes)?;
        if job.has_classes() {
            add(format!("{position:06}.cls"), job.image(position).0.to_string().as_bytes())?;
        }
    }
    tar.into_inner()?;
    Ok(())
}

/// Writes a file; one that is there already, from a run that was killed after it, has to be the same.
fn write_or_compare(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let name = path.file_name().context("names no file")?;
    // Nobody else writes it.
    remove_stale_of(folder_of(path), |stale| name == stale)?;
    if !path.exists() {
        return write_whole(path, write);
    }
    let mut again = OsString::from(".");
    again.push(name);
    again.push(".again");
    let again = path.with_file_name(again);
    write_whole(&again, write)?;
    let is_same = is_same(path, &again);
    fs::remove_file(&again)?;
    ensure!(is_same?, "exists already and holds something else; choose another name");
    Ok(())
}

/// Compares two files.
fn is_same(a: &Path, b: &Path) -> Result<bool> {
    const PART: u64 = 1 << 20;
    let [mut a, mut b] = [BufReader::new(File::open(a)?), BufReader::new(File::open(b)?)];
    loop {
        let [mut of_a, mut of_b] = [Vec::new(), Vec::new()];
        a.by_ref().take(PART).read_to_end(&mut of_a)?;
        b.by_ref().take(PART).read_to_end(&mut of_b)?;
        if of_a != of_b || of_a.is_empty() {
            return Ok(of_a == of_b);
        }
    }
}
