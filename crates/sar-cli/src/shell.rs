//! `sar completions` and `sar man`: for shells and for those who read manuals.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
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
    let mut sar = Cli::command().disable_help_subcommand(true);
    sar.build();
    let mut pages = vec![("sar".to_owned(), sar.clone())];
    pages.extend(sar.get_subcommands().map(|verb| {
        let name = format!("sar-{}", verb.get_name());
        (name.clone(), Command::clone(verb).name(name))
    }));
    for (name, command) in &pages {
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone()).render(&mut page).with_context(context)?;
        let path = dir.join(format!("{name}.1"));
        fs::write(&path, page).with_context(|| path.display().to_string())?;
    }
    eprintln!("wrote {} pages to {}", pages.len(), dir.display());
    Ok(Verdict::Good)
}
