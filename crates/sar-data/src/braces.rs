//! Shell braces in paths: `shard-{000000..000127}.tar`, `{train,more}-0.tar`.

/// The most paths that braces may stand for.
const MAX_PATHS: usize = 1 << 20;

/// The paths that a path with braces stands for, in their order; itself, if it has none.
///
/// A range counts up or down, and its numbers have the width of its ends if one of these begins with
/// a zero. Braces that hold neither a range nor a comma are characters as others.
///
/// # Errors
/// If there would be more than 2^20 paths.
pub(crate) fn expand(path: &str) -> Result<Vec<String>, String> {
    let mut paths = vec![String::new()];
    let mut rest = path;
    while let Some(Braces { before, alternatives, after }) = next_braces(rest)? {
        if paths.len() * alternatives.len() > MAX_PATHS {
            return Err(format!("its braces stand for more than {MAX_PATHS} paths"));
        }
        let join = |path: &String| {
            let path = format!("{path}{before}");
            alternatives.iter().map(move |own| format!("{path}{own}")).collect::<Vec<_>>()
        };
        paths = paths.iter().flat_map(join).collect();
        rest = after;
    }
    paths.iter_mut().for_each(|path| path.push_str(rest));
    Ok(paths)
}

/// Braces that mean something.
struct Braces<'a> {
    before: &'a str,
    /// What they stand for.
    alternatives: Vec<String>,
    after: &'a str,
}

fn next_braces(text: &str) -> Result<Option<Braces<'_>>, String> {
    let mut from = 0;
    while let Some(open) = text[from..].find('{').map(|at| from + at) {
        let Some(close) = text[open..].find('}').map(|at| open + at) else { break };
        let inside = &text[open + 1..close];
        let alternatives = match range(inside)? {
            Some(numbers) => numbers,
            None if inside.contains(',') => inside.split(',').map(str::to_owned).collect(),
            None => {
                from = open + 1;
                continue;
            }
        };
        let (before, after) = (&text[..open], &text[close + 1..]);
        return Ok(Some(Braces { before, alternatives, after }));
    }
    Ok(None)
}

fn range(inside: &str) -> Result<Option<Vec<String>>, String> {
    let Some((first, last)) = inside.split_once("..") else { return Ok(None) };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().ok()).flatten()
    };
    let (Some(start), Some(end)) = (number(first), number(last)) else { return Ok(None) };
    if start.abs_diff(end) >= MAX_PATHS as u64 {
        return Err(format!("its braces stand for more than {MAX_PATHS} paths"));
    }
    let is_padded = |text: &str| text.len() > 1 && text.starts_with('0');
    let width = if is_padded(first) || is_padded(last) { first.len().max(last.len()) } else { 0 };
    let written = |number: u64| format!("{number:0width$}");
    Ok(Some(if start <= end {
        (start..=end).map(written).collect()
    } else {
        (end..=start).rev().map(written).collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_alternatives_as_in_a_shell() {
        let joined = |path: &str| expand(path).unwrap().join(" ");
        assert_eq!(
            joined("s-{000008..000011}.tar"),
            "s-000008.tar s-000009.tar s-000010.tar s-000011.tar"
        );
        assert_eq!(joined("{9..11}"), "9 10 11");
        assert_eq!(joined("{1..03}"), "01 02 03");
        assert_eq!(joined("{2..0}"), "2 1 0");
        assert_eq!(joined("{a,b}/{0..1}.tar"), "a/0.tar a/1.tar b/0.tar b/1.tar");
        assert_eq!(joined("x{1..1}{,y}"), "x1 x1y");
        for plain in ["plain.tar", "{}", "{x}", "{a..b}", "{1..}", "}{", "{1..2", "{-1..2}"] {
            assert_eq!(joined(plain), plain);
        }
        assert_eq!(joined("{x}{1..2}"), "{x}1 {x}2");
    }

    #[test]
    fn no_number_of_paths_fills_the_memory() {
        let many = format!("more than {MAX_PATHS} paths");
        for path in ["{0..99999999}", "{0..999}{0..999}{0..9}", "{18446744073709551615..0}"] {
            assert!(expand(path).unwrap_err().contains(&many), "{path}");
        }
        assert_eq!(expand("{0..999}{0..999}").unwrap().len(), 1_000_000);
        assert_eq!(expand("{99999999999999999999..1}").unwrap().len(), 1, "no number of 64 bits");
    }
}
