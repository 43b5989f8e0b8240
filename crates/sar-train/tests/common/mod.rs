//! What the tests of whole runs have in common.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::path::Path;

use sar_train::Recipe;

/// What every tiny run sets: with a few steps a stage it takes seconds.
const TINY: [&str; 11] = [
    "data.side=16",
    "tokenizer.model.channel_multipliers=[1,1]",
    "tokenizer.model.codebook_size=32",
    "tokenizer.dead_code_restart={ every = 2, until = 5 }",
    "backbone.depth=2",
    "backbone.width=24",
    "backbone.heads=2",
    "backbone.schedule.scales=1_2_4",
    "evaluation.samples_per_class=1",
    "evaluation.bootstrap=100",
    "evaluation.quality={ kind = \"none\" }",
];

/// An adversary that begins at step 2, and then grows.
pub(crate) const ADVERSARY: &str = "tokenizer.adversary={ kind = \"discriminator\", discriminator = { kind = \"patch-gan\", channels = \
    8, layers = 1 }, weight = 0.5, adaptive = true, start = 2, warmup_steps = 2, \
    augmentation = [\"color\", \"translation\", \"cutout\"], lecam = 0.1, lr = { \
    peak = 1e-3, warmup_steps = 0.0, warmup_from = 1.0, end = 1.0, decay = { kind = \
    \"cosine\" } }, weight_decay = { start = 0.0, end = 0.0 }, adamw = { beta1 = \
    0.5, beta2 = 0.9, eps = 1e-8 }, matrices = { kind = \"adamw\" }, max_grad_norm = 1.0 }";

/// Muon for the matrices of all stages.
pub(crate) const MUON: [&str; 3] = [
    "tokenizer.optimization.matrices={ kind = \"muon\", momentum = 0.95, update_rms = 0.2, iterations = 3 }",
    "pretrain.optimization.matrices={ kind = \"muon\", momentum = 0.95, update_rms = 0.2, iterations = 3 }",
    "sar.optimization.matrices={ kind = \"muon\", momentum = 0.95, update_rms = 0.2, iterations = 3 }",
];

/// And for the kernels of [`ADVERSARY`].
pub(crate) const ADVERSARY_BY_MUON: &str = "tokenizer.adversary.matrices={ kind = \"muon\", momentum = \
    0.9, update_rms = 0.2, iterations = 4 }";

/// Two classes of so many images; the setting that trains on them.
pub(crate) fn draw_images(folder: &Path, each: u32) -> String {
    for (class, name) in ["squares", "stripes"].iter().enumerate() {
        fs::create_dir_all(folder.join(name)).unwrap();
        for i in 0..each {
            let image = image::RgbImage::from_fn(16, 16, |x, y| {
                let on = if class == 0 { x.max(y) < 4 + i % 8 } else { (x + i) / 4 % 2 == 0 };
                image::Rgb([if on { 200 } else { 20 }, (9 * i) as u8, 70])
            });
            image.save(folder.join(format!("{name}/{i}.png"))).unwrap();
        }
    }
    format!("data.source={{ kind = \"folder\", path = {folder:?} }}")
}

/// For images whose classes are not those of the emoji.
pub(crate) const FLIP_ALL: &str = "data.augmentation.flip_except=[]";

/// `emoji-quick` with what every tiny run sets, what those of a file do, and then `more`: the last setting of a
/// key counts.
pub(crate) fn tiny(of_file: &[&str], more: &[&str]) -> Recipe {
    let settings = TINY.iter().chain(of_file).chain(more);
    let settings: Vec<String> = settings.map(|setting| (*setting).to_owned()).collect();
    Recipe::load("emoji-quick", &settings).unwrap()
}
