//! `sar completions` and `sar man`: for shells and for those who read manuals.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, Verdict};

#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell; the script goes to the standard output.
    shell: Shell,
}

#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// The folder for the pages, sar.1 and one for each verb, as in ~/.local/share/man/man1.
    dir: PathBuf,
}

pub(crate) fn completions(CompletionsArgs { shell }: CompletionsArgs) -> Result<Verdict> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sar", &mut script);
    print!("{}", String::from_utf8(script).context("the script is no text")?);
    Ok(Verdict::Good)
}

pub(crate) fn man(ManArgs { dir }: ManArgs) -> Result<Verdict> {
    let context = || dir.display().to_string();
    fs::create_dir_all(&dir).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), &dir).with_context(context)?;
    eprintln!("wrote the pages to {}", dir.display());
    Ok(Verdict::Good)
}
