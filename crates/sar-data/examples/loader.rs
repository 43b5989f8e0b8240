//! How fast images are read, decoded and cropped, and how much memory that takes, by threads.
//!
//! ```sh
//! cargo run --release --package sar-data --example loader -- photos
//! ```
//!
//! The argument is a folder as `data.source = { kind = "folder" }` takes it; without one, 400 JPEG
//! files of 500x375 pixels are made and removed again. Every number of threads reads the same
//! batches: one epoch, 256 px, the random crop of the published runs.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use sar_core::SeedTree;
use sar_data::{Augmentation, Crop, DataRecipe, ImageSource, Images, ReadAhead};

const SIDE: u32 = 256;
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let made = tempfile::tempdir()?;
    let path = match std::env::args_os().nth(1) {
        Some(path) => path.into(),
        None => {
            make_photos(made.path(), 400)?;
            made.path().to_owned()
        }
    };
    let recipe = DataRecipe {
        source: ImageSource::Folder { path, held_out: None },
        side: SIDE,
        crop: Crop::AdmRandom { min_share: 0.88 },
        augmentation: Augmentation { flip: 0.5, ..Augmentation::none() },
        max_unreadable: 0.01,
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("{cores} cores; threads, images/s, ratio, peak memory above the start");
    let mut first = None;
    let mut reference = None;
    for threads in [1, 2, 4, 8].into_iter().filter(|threads| *threads <= cores.max(2)) {
        let images = Images::open(&recipe, ReadAhead { threads, batches: 2 }, &|| ())?;
        let n_batches = (images.n_train() / BATCH).max(1);
        let before = reset_peak();
        let start = Instant::now();
        let mut sum = 0u64;
        for batch in images.training(SeedTree::new(0), 0, BATCH).take(n_batches) {
            sum += batch?
                .images
                .iter()
                .flat_map(|image| image.iter())
                .map(|v| u64::from(*v))
                .sum::<u64>();
        }
        let rate = (n_batches * BATCH) as f64 / start.elapsed().as_secs_f64();
        let ratio = rate / *first.get_or_insert(rate);
        let memory = match (before, memory("VmHWM")) {
            (Some(before), Some(peak)) => format!("{} MiB", peak.saturating_sub(before) >> 10),
            _ => "unknown".into(),
        };
        println!("{threads:2}  {rate:7.1}  {ratio:4.2}x  {memory}");
        assert_eq!(sum, *reference.get_or_insert(sum), "threads changed what was read");
        images.take_warnings().iter().for_each(|warning| println!("{warning}"));
    }
    Ok(())
}

/// Files that decode as slowly as photographs: smooth, with grain.
fn make_photos(folder: &Path, n: u32) -> Result<(), Box<dyn Error>> {
    for i in 0..n {
        let class = folder.join(format!("class {}", i % 10));
        fs::create_dir_all(&class)?;
        let draws = SeedTree::new(u64::from(i));
        let grain = draws.uniforms(4096);
        let image = RgbImage::from_fn(500, 375, |x, y| {
            let wave = |c: u32| ((x * (c + 1) + i) as f32 / 60.0).sin() * (y as f32 / 45.0).cos();
            let noise = 40.0 * (grain[((x * 31 + y * 17) % 4096) as usize] - 0.5);
            Rgb([0, 1, 2].map(|c| (128.0 + 90.0 * wave(c) + noise) as u8))
        });
        let file = fs::File::create(class.join(format!("{i}.jpg")))?;
        JpegEncoder::new_with_quality(file, 90).encode_image(&image)?;
    }
    Ok(())
}

/// Lets the peak begin anew and returns what is in use, in KiB; Linux alone tells.
fn reset_peak() -> Option<u64> {
    fs::write("/proc/self/clear_refs", "5").ok()?;
    memory("VmRSS")
}

fn memory(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
