//! `sar parity`: every golden tensor of a case folder, recomputed and compared.

use std::path::PathBuf;

use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use sar_parity::{Case, check};

use crate::Verdict;
use crate::device::{DeviceArg, Job};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Case folders: case.json, tokenizer.pth, backbone.pth, golden.safetensors.
    #[arg(required = true, value_name = "DIR")]
    cases: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args) -> Result<Verdict> {
    args.device.run(Parity(args.cases))
}

struct Parity(Vec<PathBuf>);

impl Job for Parity {
    type Output = Verdict;

    fn run<A: AutodiffBackend>(self, device: A::Device, _workers: usize) -> Result<Verdict> {
        let mut verdict = Verdict::Good;
        for dir in self.0 {
            let report = check::<A>(&Case::load(&dir)?, &device)?;
            println!("{}\n{report}\n", dir.display());
            if report.failures().next().is_some() {
                verdict = Verdict::Bad;
            }
        }
        Ok(verdict)
    }
}
