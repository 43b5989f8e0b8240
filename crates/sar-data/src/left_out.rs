//! What a source does not take, counted and named.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How many kinds a line names.
const NAMED: usize = 5;

/// Files, or members of archives, that a source leaves out for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LeftOut {
    /// What they are, read after a number: `.heic`, `images beside class folders`.
    pub why: String,
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { why, count, first } = self;
        write!(f, "{count} {why} (first: {first})")
    }
}

/// All of them in one line, the most frequent first; nothing if there are none.
///
/// ```text
/// 14 files left out: 9 .heic (first: a/u0.heic), 5 .jxl (first: a/g0.jxl)
/// ```
pub(crate) fn in_one_line(left_out: &[LeftOut]) -> Option<String> {
    let total: usize = left_out.iter().map(|kind| kind.count).sum();
    if total == 0 {
        return None;
    }
    let mut kinds: Vec<String> = left_out.iter().take(NAMED).map(LeftOut::to_string).collect();
    let rest: usize = left_out.iter().skip(NAMED).map(|kind| kind.count).sum();
    if rest > 0 {
        kinds.push(format!("{rest} of {} other kinds", left_out.len() - NAMED));
    }
    let files = if total == 1 { "file" } else { "files" };
    Some(format!("{total} {files} left out: {}", kinds.join(", ")))
}

/// Counts what is left out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally(HashMap<String, LeftOut>);

impl Tally {
    /// One more for a reason.
    pub(crate) fn add(&mut self, why: &str, what: impl fmt::Display) {
        self.add_many(why, 1, what);
    }

    /// So many more for a reason, and the first of them.
    pub(crate) fn add_many(&mut self, why: &str, n: usize, what: impl fmt::Display) {
        if let Some(kind) = self.0.get_mut(why) {
            kind.count += n;
        } else if n > 0 {
            let first = one_line(&what.to_string());
            self.0.insert(why.into(), LeftOut { why: why.into(), count: n, first });
        }
    }

    /// One more file that is left out for its extension.
    pub(crate) fn add_file(&mut self, path: &Path, shown: impl fmt::Display) {
        self.add(&kind_of(path), shown);
    }

    /// Adds what was counted of what comes later.
    pub(crate) fn append(&mut self, later: Self) {
        for LeftOut { why, count, first } in later.0.into_values() {
            self.add_many(&why, count, first);
        }
    }

    /// What there is, the most frequent first.
    pub(crate) fn finish(self) -> Vec<LeftOut> {
        let mut all: Vec<LeftOut> = self.0.into_values().collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.why.cmp(&b.why)));
        all
    }
}

/// A file's extension with its dot, in lower case; the odd ones are one kind.
fn kind_of(path: &Path) -> String {
    match path.extension().map(|extension| extension.to_string_lossy().to_lowercase()) {
        None => "without an extension".into(),
        Some(extension)
            if extension.len() <= 8 && extension.chars().all(|c| c.is_ascii_alphanumeric()) =>
        {
            format!(".{extension}")
        }
        Some(_) => "with unusual extensions".into(),
    }
}

/// A name with its control characters escaped: it stays on its line.
pub(crate) fn one_line(name: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    name.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_come_first_and_the_rest_is_counted() {
        let mut tally = Tally::default();
        assert_eq!(in_one_line(&Tally::default().finish()), None);
        for (path, n) in [("a.heic", 2), ("b.JXL", 3), ("c.jxl", 1), ("d", 1), ("e.~weird~", 1)] {
            for _ in 0..n {
                tally.add_file(Path::new(path), path);
            }
        }
        tally.add("beside", "f\n.png");
        tally.add_many("none of them", 0, "x");
        let mut later = Tally::default();
        later.add(".svg", "g.svg");
        later.add(".jxl", "late.jxl");
        later.add(".xyz", "h.xyz");
        tally.append(later);
        let left_out = tally.finish();
        let first = LeftOut { why: ".jxl".into(), count: 5, first: "b.JXL".into() };
        assert_eq!(left_out[0], first);
        let expected = "12 files left out: 5 .jxl (first: b.JXL), 2 .heic (first: a.heic), \
                        1 .svg (first: g.svg), 1 .xyz (first: h.xyz), 1 beside (first: f\\n.png), \
                        2 of 2 other kinds";
        assert_eq!(in_one_line(&left_out).unwrap(), expected);
        let one = [LeftOut { why: ".svg".into(), count: 1, first: "a.svg".into() }];
        assert_eq!(in_one_line(&one).unwrap(), "1 file left out: 1 .svg (first: a.svg)");
    }
}
