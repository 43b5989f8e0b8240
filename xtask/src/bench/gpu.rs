//! Ours on CUDA and PyTorch eager on the same GPU, the transformer in bf16 and the tokenizer in f32, and
//! after them the recipe `emoji` trained to its end.

use std::path::Path;

use serde_json::{Value, json};

use super::worker::{
    alone, build_for, commit, date, eager, machine, median, python, said, save, torch_version, work,
};
use crate::cargo::{self, Failure, Outcome};
use crate::device::Device;
use crate::sar;

/// Pieces of work at depth 16 and 256 px, and how often each is run in each of two rounds.
const ROWS: [(&str, usize); 4] = [
    ("sample-d16-b1", 5),
    ("sample-d16-b25", 5),
    ("teacher-step-d16-b32", 3),
    ("sar-released-argmax-d16-b32", 3),
];

pub(super) fn run() -> Outcome {
    // Built first: what does not compile is worth knowing without a GPU, too.
    let ours = build_for(Device::find("cuda").expect("known"))?;
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    let gpu = said("nvidia-smi".as_ref(), &query);
    if gpu == "unknown" {
        let why = "bench --gpu is built, and needs an NVIDIA GPU to run: nvidia-smi finds none";
        return Err(Failure::Check(why.into()));
    }
    let python = python()?;
    let pytorch = torch_version(&python);
    if said(&python, &["-c", "import torch; print(torch.cuda.is_available())"]) != "True" {
        let why = format!("torch {pytorch} finds no GPU: install one that fits the driver, {gpu}");
        return Err(Failure::Check(why));
    }
    let (date, commit, machine) = (date(), commit(), machine());
    println!("{gpu}\n{:<28} {:>9} {:>9} {:>6}", "work", "ours s", "theirs s", "ratio");
    let mut rows: Vec<Value> = Vec::new();
    let mut failed = Vec::new();
    for (name, runs) in ROWS {
        match one_after_the_other(&ours, &python, name, runs) {
            Ok([ours_s, theirs_s]) => {
                let ratio = ours_s / theirs_s;
                println!("{name:<28} {ours_s:>9.3} {theirs_s:>9.3} {ratio:>6.2}");
                rows.push(json!({
                    "name": name, "ours_s": ours_s, "theirs_s": theirs_s, "ratio": ratio,
                    "precision": "bf16", "runs": 2 * runs,
                }));
            }
            Err(failure) => {
                let why = failure.line().unwrap_or_default();
                println!("{name:<28} failed: {why}");
                rows.push(json!({ "name": name, "failed": why }));
                failed.push(name);
            }
        }
        let table = json!({
            "date": date, "commit": commit, "machine": machine, "gpu": gpu, "pytorch": pytorch,
            "rows": rows,
        });
        save(&format!("{date}-gpu.json"), &table)?;
    }
    let run_dir = cargo::target_dir().join(format!("gpu-emoji-{commit}"));
    println!("training the recipe emoji into {}", run_dir.display());
    let words = ["--recipe", "emoji", "--device", "cuda", "--set", "backbone.precision=bf16"];
    let mut args = words.map(Into::into).to_vec();
    args.extend(["--run-dir".into(), run_dir.into_os_string()]);
    if !failed.is_empty() {
        println!("failed before: {}", failed.join(", "));
    }
    sar::forward("train", &args)
}

/// Median seconds of ours and theirs. One process is alive at a time, since two may not fit into
/// the GPU's memory; with two rounds drift falls on both.
fn one_after_the_other(
    ours: &Path,
    python: &Path,
    name: &str,
    runs: usize,
) -> Result<[f64; 2], Failure> {
    let mut seconds = [Vec::new(), Vec::new()];
    for _round in 0..2 {
        let commands = [work(ours, name), eager(python, name)];
        for (mut command, seconds) in commands.into_iter().zip(&mut seconds) {
            command.args(["cuda", "bf16"]);
            seconds.extend(alone(command, runs)?.0);
        }
    }
    Ok(seconds.map(median))
}
