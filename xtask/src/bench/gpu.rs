//! Ours on CUDA and PyTorch eager on the same GPU, both in bf16, run in turns.

use serde_json::{Value, json};

use super::worker::{
    build_for, commit, date, eager, in_turns, python, said, save, torch_version, work,
};
use crate::cargo::{Failure, Outcome};
use crate::device::Device;

/// Pieces of work at depth 16 and 256 px, and how often each is run.
const ROWS: [(&str, usize); 4] = [
    ("sample-d16-b1", 9),
    ("sample-d16-b25", 9),
    ("teacher-step-d16-b32", 5),
    ("sar-released-argmax-d16-b32", 5),
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
    let (date, commit) = (date(), commit());
    let pytorch = torch_version(&python);
    println!("{gpu}\n{:<28} {:>9} {:>9} {:>6}", "work, bf16", "ours s", "theirs s", "ratio");
    let mut rows: Vec<Value> = Vec::new();
    for (name, runs) in ROWS {
        let [mut ours, mut theirs] = [work(&ours, name), eager(&python, name)];
        ours.args(["cuda", "bf16"]);
        theirs.args(["cuda", "bf16"]);
        let [(ours_s, _), (theirs_s, _)] = in_turns([ours, theirs], runs)?;
        let ratio = ours_s / theirs_s;
        println!("{name:<28} {ours_s:>9.3} {theirs_s:>9.3} {ratio:>6.2}");
        rows.push(json!({
            "name": name, "ours_s": ours_s, "theirs_s": theirs_s, "ratio": ratio, "runs": runs,
        }));
        let table = json!({
            "date": date, "commit": commit, "gpu": gpu, "pytorch": pytorch, "rows": rows,
        });
        // After every row: the last ones may not fit into the memory.
        save(&format!("{date}-gpu.json"), &table)?;
    }
    Ok(())
}
