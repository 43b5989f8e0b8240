//! How the parameter paths of a burn module map to the names of a released checkpoint.

/// The differences between a burn module and a released checkpoint of the same model.
///
/// On top of these rules, always: a 2-D `weight` of burn's `Linear` is stored transposed (torch
/// has `[out, in]`, burn `[in, out]`); `gamma` and `beta` of burn's `GroupNorm`, `LayerNorm` and
/// `BatchNorm` are named `weight` and `bias`; variants of enums have no part in a name. Types are
/// known by their bare name, so a struct of one's own that is called `Linear` follows suit.
///
/// The default is a layout without any difference.
///
/// ```
/// use sar_weights::Layout;
///
/// const VAR: Layout = Layout {
///     renames: &[("first_position", "pos_start"), ("ada_lin", "ada_lin.1"), ("inner", "")],
///     ignored: &["attn.zero_k_bias", "lvl_1L"],
/// };
/// assert_eq!(VAR.rename("blocks.0.inner.ada_lin.weight"), "blocks.0.ada_lin.1.weight");
/// assert!(VAR.is_ignored("blocks.0.attn.zero_k_bias"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layout {
    /// Rules (in the module, in the file) on whole runs of dot-separated segments. The path is
    /// walked once from the left; at each segment the first rule that matches there applies, and
    /// the walk goes on behind the match. An empty right side drops the run.
    pub renames: &'static [(&'static str, &'static str)],
    /// Last segments, or longer tails of whole segments, of names in a file that are buffers and
    /// no parameters. They are passed over where the module has no parameter of that name.
    pub ignored: &'static [&'static str],
}

impl Layout {
    /// The name in the file of a dot-separated path in the module, by the rules of `renames`.
    pub fn rename(&self, path: &str) -> String {
        let path: Vec<&str> = path.split('.').collect();
        let mut name: Vec<&str> = Vec::with_capacity(path.len());
        let mut rest = path.as_slice();
        while let Some((segment, after)) = rest.split_first() {
            let rule = self.renames.iter().find_map(|(from, to)| {
                let from: Vec<&str> = from.split('.').collect();
                Some((rest.strip_prefix(from.as_slice())?, *to))
            });
            let (replacement, remaining) = match rule {
                Some((remaining, to)) => (to, remaining),
                None => (*segment, after),
            };
            name.extend(Some(replacement).filter(|part| !part.is_empty()));
            rest = remaining;
        }
        name.join(".")
    }

    /// Whether a name in a file is that of a buffer.
    pub fn is_ignored(&self, name: &str) -> bool {
        self.ignored.iter().any(|tail| match name.strip_suffix(tail) {
            Some(head) => head.is_empty() || head.ends_with('.'),
            None => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_whole_runs_of_segments_first_match_first() {
        const LAYOUT: Layout = Layout {
            renames: &[("a.b", "x.y.z"), ("a", "q"), ("drop", ""), ("b", "a"), ("long", "l")],
            ignored: &[],
        };
        let check = |path: &str, name: &str| assert_eq!(LAYOUT.rename(path), name);
        check("a.b.c", "x.y.z.c"); // the run before the segment
        check("a.c", "q.c");
        check("b.b", "a.a"); // a replacement is not replaced again
        check("c.a.b", "c.x.y.z"); // at any position
        check("a.drop.c", "q.c");
        check("longer.along", "longer.along"); // whole segments only
        check("a", "q");
        assert_eq!(Layout::default().rename("blocks.0.weight"), "blocks.0.weight");
    }

    #[test]
    fn ignores_whole_tails_only() {
        const LAYOUT: Layout = Layout { renames: &[], ignored: &["mask", "q.bias"] };
        for (name, ignored) in
            [("mask", true), ("a.mask", true), ("a.unmask", false), ("mask.a", false)]
        {
            assert_eq!(LAYOUT.is_ignored(name), ignored, "{name}");
        }
        assert!(LAYOUT.is_ignored("a.q.bias") && !LAYOUT.is_ignored("a.bias"));
    }
}
