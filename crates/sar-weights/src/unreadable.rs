//! Tensors that are in a file but cannot be read, so that they can be named instead of missed.

use std::path::Path;

use crate::error::{WeightsError, one_line};

/// A tensor that is in a file, of a kind that cannot be read.
///
/// Such tensors do no harm as long as nobody wants them: a file may hold quantized optimizer
/// states beside a model of plain floats.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unreadable {
    /// The name.
    pub name: String,
    /// What it is: an element type such as `float8_e4m3fn`, or a kind of tensor such as `sparse`.
    pub what: String,
}

/// Refuses by name what is wanted and unreadable.
pub(crate) fn check_readable(
    origin: Option<&Path>,
    unreadable: &[Unreadable],
    mut wanted: impl FnMut(&str) -> bool,
) -> Result<(), WeightsError> {
    let mut wanted = unreadable.iter().filter(|tensor| wanted(&tensor.name));
    let Some(Unreadable { name, what }) = wanted.next() else { return Ok(()) };
    Err(WeightsError::Unreadable {
        origin: origin.map(Into::into),
        name: one_line(name),
        what: one_line(what),
        others: wanted.count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wanted_is_refused() {
        let tensor = |name: &str, what: &str| Unreadable { name: name.into(), what: what.into() };
        let list = [tensor("m.a", "sparse"), tensor("m.b\n", "qint8"), tensor("o.a", "sparse")];
        let check = |root: &str| check_readable(None, &list, |name| name.starts_with(root));
        assert!(check("x.").is_ok());
        assert_eq!(
            check("o.").unwrap_err().to_string(),
            "the weights: tensor o.a is sparse, which cannot be read; \
             save it as a plain tensor of float32 or bfloat16"
        );
        assert_eq!(
            check("m.").unwrap_err().to_string(),
            "the weights: tensor m.a is sparse, which cannot be read, and 1 more cannot be read \
             either; save it as a plain tensor of float32 or bfloat16"
        );
    }
}
