//! How the commands start cargo, and how they end.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde_json::Value;

/// How a command ends.
pub(crate) type Outcome = Result<(), Failure>;

/// Why a command ends early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asks for something that does not exist.
    Usage(String),
    /// A check found something, or a program could not be started.
    Check(String),
    /// A child ended with this exit code and has said why itself.
    Child(u8),
}

impl Failure {
    /// What is left to be said on stderr.
    pub(crate) fn line(&self) -> Option<&str> {
        match self {
            Self::Usage(line) | Self::Check(line) => Some(line),
            Self::Child(_) => None,
        }
    }

    /// The exit code of the process.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Check(_) => 1,
            Self::Child(code) => *code,
        }
    }
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    // `cargo run` sets the variable, so a binary built for another checkout still finds this one.
    let here =
        env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where cargo builds.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this, with its first arguments.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// Runs a command to its end; its output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Outcome {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Child(exit_code(status))),
        Err(error) => Err(Failure::Check(format!("cannot start `{}`: {error}", shown(command)))),
    }
}

/// Ends this process as the command: on Unix it becomes the command, so that signals sent to the
/// one reach the other, and a training run that saves its state on Ctrl-C is waited for.
pub(crate) fn finish_as(command: &mut Command) -> Outcome {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        let error = command.exec();
        Err(Failure::Check(format!("cannot start `{}`: {error}", shown(command))))
    }
    #[cfg(not(unix))]
    run(command)
}

/// What a command prints on stdout.
pub(crate) fn output(command: &mut Command) -> Result<String, Failure> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::Check(format!("cannot start `{}`: {error}", shown(command))))?;
    if !output.status.success() {
        return Err(Failure::Child(exit_code(output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What cargo knows of the workspace's own packages.
pub(crate) fn metadata() -> Result<Value, Failure> {
    let mut command = cargo(["metadata", "--no-deps", "--format-version", "1"]);
    serde_json::from_str(&output(command.current_dir(root()))?)
        .map_err(|error| Failure::Check(format!("cargo metadata is not JSON: {error}")))
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let envs = command
        .get_envs()
        .filter_map(|(key, value)| Some(format!("{}=\"{}\"", key.display(), value?.display())));
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    envs.chain(words.map(|word| word.display().to_string())).collect::<Vec<_>>().join(" ")
}

/// The error of a command that takes no arguments and was given some.
pub(crate) fn takes_no_arguments(verb: &str, args: &[OsString]) -> Outcome {
    match args.first() {
        None => Ok(()),
        Some(first) => {
            Err(Failure::Usage(format!("`{verb}` takes no arguments, not `{}`", first.display())))
        }
    }
}

/// The exit code of a child, or what a shell says of its signal.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return 128 + signal as u8;
    }
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
