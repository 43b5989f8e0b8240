//! What several tests stand on.

use std::thread;
use std::time::Duration;

use sar_data::Fingerprint;
use sar_exchange::{Group, threads};

use crate::Recipe;
use crate::run_dir::RunDir;

/// What each of so many ranks comes to.
pub(crate) fn on_ranks<T: Send>(ranks: usize, f: impl Fn(Group) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let f = &f;
        let running: Vec<_> = threads(ranks, Duration::from_secs(60))
            .into_iter()
            .map(|group| scope.spawn(move || f(group)))
            .collect();
        running.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What identifies a data set of one image.
pub(crate) fn data() -> Fingerprint {
    Fingerprint { images: 1, classes: 1, hash: "00".into(), parts: Vec::new() }
}

/// The folder of a new run, in one that is removed with the first.
pub(crate) fn run_dir() -> (tempfile::TempDir, RunDir) {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe::load("emoji-quick", &[]).unwrap();
    let dir = RunDir::create(&folder.path().join("run"), &recipe, &data()).unwrap();
    (folder, dir)
}
