//! What can go wrong with a file of weights, each in one line: which file, what, what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A file that could not be read or written, or weights that do not fit a module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system did not let the file be read.
    #[error("{}: cannot read the file: {error}; check that it exists and may be read", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },

    /// The operating system did not let the file be written.
    #[error("{}: cannot write the file: {error}; check that its folder exists, may be written to and has space left", .path.display())]
    Write {
        /// The file that was to be written, never the temporary one beside it.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },

    /// The content is of no known format.
    #[error("{}: neither a PyTorch zip file nor a safetensors file ({reason}); check that it is not an error page, a Git LFS pointer or an unfinished download", .path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Where its content stops looking like weights.
        reason: String,
    },

    /// The file has the right format but contradicts itself.
    #[error("{}: {reason}; the file is incomplete or damaged: copy or download it again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The contradiction.
        reason: String,
    },

    /// The file is sound but holds what cannot be read as weights.
    #[error("{}: {reason}; {advice}", .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it holds.
        reason: String,
        /// What to do about it.
        advice: &'static str,
    },

    /// A tensor that is wanted is in the file but of a kind that cannot be read.
    #[error("{}: tensor {name} is {what}, which cannot be read{}; save it as a plain tensor of float32 or bfloat16", shown(.origin), more_unreadable(*.others))]
    Unreadable {
        /// The file that the tensor is in, if it came from one.
        origin: Option<PathBuf>,
        /// The tensor.
        name: String,
        /// Its element type or kind.
        what: String,
        /// How many more tensors are wanted that cannot be read.
        others: usize,
    },

    /// Weights that are not numbers.
    #[error("{}: tensor {name} has {}{}; use weights from before training went wrong, or another copy of the file", shown(.origin), bad_values(*.n_values), more_bad(*.n_tensors))]
    NotFinite {
        /// The file that the tensor is in, if it came from one.
        origin: Option<PathBuf>,
        /// The first tensor with such values.
        name: String,
        /// How many of its values are NaN or infinite.
        n_values: usize,
        /// How many tensors have such values, this one included.
        n_tensors: usize,
    },

    /// The tensors are not those of a known model.
    #[error("{}: no known model: {reason}; known are FlexVAR's (also SAR's) and VAR's tokenizers and backbones", .path.display())]
    Unrecognized {
        /// The file.
        path: PathBuf,
        /// Where they differ.
        reason: String,
    },

    /// A tensor whose values do not fit the element type that was asked for.
    #[error("{}: tensor {name}: {reason}", .path.display())]
    Cast {
        /// The file that the tensor is in.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The value that does not fit, and what would hold it.
        reason: String,
    },

    /// A tensor that the format cannot represent.
    #[error("{}: cannot write tensor {name}: {reason}; rename it or convert it first", .path.display())]
    Unwritable {
        /// The file that was to be written.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Why not.
        reason: String,
    },

    /// The tensors are not exactly the parameters of the module.
    #[error("{}", describe_mismatch(.origin, .missing, .unused, .misfits))]
    Mismatch {
        /// The file that the tensors came from, if they came from one.
        origin: Option<PathBuf>,
        /// Parameters of the module for which there is no tensor, sorted.
        missing: Vec<String>,
        /// Tensors for which there is no parameter, sorted.
        unused: Vec<String>,
        /// Tensors that cannot be the value of their parameter, sorted by name.
        misfits: Vec<Misfit>,
    },
}

/// A tensor whose shape or element type is not that of the parameter of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Misfit {
    /// The name in the file.
    pub name: String,
    /// The shape of the parameter, as the file should have it.
    pub expected: Vec<usize>,
    /// The shape of the tensor.
    pub found: Vec<usize>,
    /// The element type of the tensor; anything but a float is a misfit by itself.
    pub dtype: &'static str,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, expected, found, dtype } = self;
        let name = one_line(name);
        write!(f, "{name} (expected float {expected:?}, found {dtype} {found:?})")
    }
}

/// How many names of a kind a message lists.
const LISTED: usize = 5;

/// The file that tensors came from.
fn shown(origin: &Option<PathBuf>) -> String {
    origin.as_ref().map_or("the weights".into(), |path| path.display().to_string())
}

fn more_unreadable(n: usize) -> String {
    if n == 0 { String::new() } else { format!(", and {n} more cannot be read either") }
}

fn bad_values(n: usize) -> String {
    match n {
        1 => "1 value that is NaN or infinite".into(),
        n => format!("{n} values that are NaN or infinite"),
    }
}

/// `n_tensors` includes the one that the message is about.
fn more_bad(n_tensors: usize) -> String {
    match n_tensors.saturating_sub(1) {
        0 => String::new(),
        1 => ", and 1 more tensor has such values".into(),
        n => format!(", and {n} more tensors have such values"),
    }
}

fn describe_mismatch(
    origin: &Option<PathBuf>,
    missing: &[String],
    unused: &[String],
    misfits: &[Misfit],
) -> String {
    let origin = shown(origin);
    let names = |names: &[String]| names.iter().map(|name| one_line(name)).collect();
    // A model of another kind differs in everything: a few names say as much.
    let listed = |list: &[String]| {
        let more = if list.len() > LISTED { ", ..." } else { "" };
        format!("{}{more}", list[..list.len().min(LISTED)].join(", "))
    };
    let parts: [(&str, Vec<String>); 3] = [
        ("missing", names(missing)),
        ("unused", names(unused)),
        ("of another shape or type", misfits.iter().map(Misfit::to_string).collect()),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(kind, list)| format!("{} {kind}: {}", list.len(), listed(&list)))
        .collect();
    format!(
        "{origin}: do not fit the module: {}; check that the weights belong to this configuration",
        parts.join("; ")
    )
}

/// Text out of a file, made fit for a message: control characters escaped, at most 200 characters.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(200));
    for (n, c) in text.chars().enumerate() {
        match c {
            _ if n == 200 => {
                line.push('…');
                break;
            }
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_out_of_a_file_stays_one_short_line() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(one_line(&"ä".repeat(300)).chars().count(), 201);
    }

    #[test]
    fn a_mismatch_names_only_what_there_is() {
        let error = WeightsError::Mismatch {
            origin: Some("a.pth".into()),
            missing: vec![],
            unused: vec!["x".into(), "y".into()],
            misfits: vec![],
        };
        assert_eq!(
            error.to_string(),
            "a.pth: do not fit the module: 2 unused: x, y; check that the weights belong to this configuration"
        );
    }
}
