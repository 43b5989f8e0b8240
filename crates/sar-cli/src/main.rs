//! `sar`: train, study, sample, edit, convert, inspect and measure weights, check parity. One file a verb; the only
//! place where a backend is chosen.
//!
//! Exit codes: 0 done; 1 it ran, and what it found is bad; 2 it could not do what was asked.

/// As std's, which panics when whoever reads has gone, as in `sar inspect FILE | head`: nothing that works ends
/// for that. What else goes wrong is told at the end.
macro_rules! print {
    ($($arguments:tt)*) => {
        $crate::put(format_args!($($arguments)*))
    };
}
macro_rules! println {
    () => { print!("\n") };
    ($($arguments:tt)*) => { print!("{}\n", format_args!($($arguments)*)) };
}
macro_rules! eprintln {
    ($($arguments:tt)*) => {{
        let line = format!("{}\n", format_args!($($arguments)*));
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

mod analysis_plots;
mod analyze;
mod chart;
mod convert;
mod device;
mod edit;
mod eval;
mod events;
mod generation;
mod hub;
mod inspect;
mod interrupt;
mod job;
mod npz;
mod pack;
mod parity;
mod previews;
mod progress;
mod ranks;
mod report;
mod sample;
mod serve;
mod shell;
mod study;
mod table;
mod tokenizer_eval;
mod train;
mod weights_source;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::anyhow;
use clap::{Parser, Subcommand};

use crate::events::{Events, Said};

#[derive(Parser)]
#[command(
    name = "sar",
    version,
    about = "Scale-wise autoregressive image generation, refined by SAR."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Trains a tokenizer and a backbone, and refines the backbone with SAR.
    Train(train::Args),
    /// Draws images from a run or from weight files.
    Sample(sample::Args),
    /// Puts the images of a sampling job, all of its shards, into one .npz or tar file.
    Pack(pack::Args),
    /// Measures how good images are beside real ones: distances of features, precision, class accuracy.
    Eval(eval::Args),
    /// Measures what a tokenizer loses on a folder of images, and how its codes are used.
    TokenizerEval(tokenizer_eval::Args),
    /// Trains many arms from the same weights, and compares them with a control over seeds of training.
    Study(study::Args),
    /// Measures how a run's weights behave at every scale: before, during and after SAR.
    Analyze(analyze::Args),
    /// Draws parts of an image anew: in-painting, expansion, refinement.
    Edit(edit::Args),
    /// Opens a page to sample, edit and watch runs in a browser, and an HTTP API.
    Serve(serve::Args),
    /// Converts weights between released .pth files, safetensors files and those of a run.
    Convert(convert::Args),
    /// Says what a file of weights, a recipe or a run directory is, or what a device computes with.
    Inspect(inspect::Args),
    /// Compares with the golden tensors of case folders.
    Parity(parity::Args),
    /// Prints a script that completes `sar` in a shell.
    Completions(shell::CompletionsArgs),
    /// Writes the manual pages.
    Man(shell::ManArgs),
}

impl Verb {
    /// What is told to other programs.
    fn events(&self) -> Events {
        match self {
            Self::Train(args) => args.events,
            Self::Sample(args) => args.events,
            _ => Events::NONE,
        }
    }
}

/// What a verb found.
enum Verdict {
    Good,
    Bad,
    /// It was asked to stop.
    Interrupted,
}

fn main() -> ExitCode {
    // First, while there is one thread. Without it everything works, a little slower.
    #[cfg(feature = "flex")]
    sar_memory::keep_freed_memory();
    let verb = Cli::parse().verb;
    // Before any operator asks, which would panic.
    #[cfg(feature = "flex")]
    if let Err(error) = sar_kernels::CpuLevel::chosen() {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    let events = verb.events();
    let outcome = match verb {
        Verb::Train(args) => train::run(args),
        Verb::Sample(args) => sample::run(args),
        Verb::Pack(args) => pack::run(args),
        Verb::Eval(args) => eval::run(args),
        Verb::TokenizerEval(args) => tokenizer_eval::run(args),
        Verb::Study(args) => study::run(args),
        Verb::Analyze(args) => analyze::run(args),
        Verb::Edit(args) => edit::run(args),
        Verb::Serve(args) => serve::run(args),
        Verb::Convert(args) => convert::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Parity(args) => parity::run(args),
        Verb::Completions(args) => shell::completions(args),
        Verb::Man(args) => shell::man(args),
    };
    let outcome = outcome.and_then(|verdict| match lost() {
        Some(error) => {
            Err(anyhow!("the standard output: {error}; not all that was found is there"))
        }
        None => Ok(verdict),
    });
    match outcome {
        Ok(Verdict::Good) => ExitCode::SUCCESS,
        Ok(Verdict::Bad) => ExitCode::from(1),
        Ok(Verdict::Interrupted) => ExitCode::from(interrupt::INTERRUPTED as u8),
        Err(error) => {
            eprintln!("error: {error:#}");
            events.say(&Said::Error { message: &format!("{error:#}") });
            ExitCode::from(2)
        }
    }
}

/// What went wrong first on the standard output.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Writes to the standard output, and keeps what goes wrong there for the end, but that nobody reads it.
fn put(text: fmt::Arguments<'_>) {
    keep(io::stdout().write_fmt(text));
}

fn keep(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        LOST.get_or_init(|| error);
    }
}

/// What went wrong on the standard output, of which nothing is left to be written.
fn lost() -> Option<&'static io::Error> {
    keep(io::stdout().flush());
    LOST.get()
}

/// The first of `path`, `path-2`, `path-3`, …, each with an ending, that does not exist: nothing is ever
/// overwritten.
fn first_free(path: &Path, ending: &str) -> PathBuf {
    numbered(path, ending).find(|path| !path.exists()).expect("one of the numbers is free")
}

/// `path`, `path-2`, `path-3`, …, each with an ending.
fn numbered(path: &Path, ending: &str) -> impl Iterator<Item = PathBuf> {
    let named = move |number: String| {
        let mut name = OsString::from(path);
        name.push(number + ending);
        PathBuf::from(name)
    };
    (1..).map(move |i| named(if i == 1 { String::new() } else { format!("-{i}") }))
}
