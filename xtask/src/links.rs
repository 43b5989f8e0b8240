//! `links`: where the links of the Markdown files lead, and whether the book has every chapter.
//!
//! A link to a file or to a heading has to exist. Chapters of the book, in `docs`, link within `docs`, so
//! that the book can be built from it; the READMEs of packages, which others show, link to no file.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cargo::{self, Failure, Outcome};

/// The folder of the book, and its table of contents.
const BOOK: [&str; 2] = ["docs", "docs/SUMMARY.md"];

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    check_workspace()
}

pub(crate) fn check_workspace() -> Outcome {
    let root = cargo::root();
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"]);
    let files = cargo::output(command.current_dir(&root))?;
    let files: Vec<&str> = files.lines().filter(|file| root.join(file).is_file()).collect();
    let (mut violations, mut n) = (Vec::new(), 0);
    for file in &files {
        let links = links(&read(&root.join(file))?);
        n += links.len();
        for link in links {
            violations
                .extend(check(&root, file, &link).map(|what| format!("{file}: {link} {what}")));
        }
    }
    let summary = links(&read(&root.join(BOOK[1]))?);
    violations.extend(missing_chapters(&files, &summary));
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        println!("{n} links in {} files lead somewhere", files.len());
        return Ok(());
    }
    Err(Failure::Check(format!("{} links lead nowhere", violations.len())))
}

/// Chapters that the table of contents does not have.
fn missing_chapters(files: &[&str], summary: &[String]) -> Vec<String> {
    let chapters = files.iter().filter(|file| **file != BOOK[1]);
    let chapters = chapters.filter_map(|file| Path::new(file).strip_prefix(BOOK[0]).ok());
    let missing =
        chapters.filter(|chapter| !summary.iter().any(|link| Path::new(link) == *chapter));
    missing.map(|chapter| format!("{}: {} is no chapter", BOOK[1], chapter.display())).collect()
}

/// What is wrong with a link of a file.
fn check(root: &Path, file: &str, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, heading) =
        link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
    let source = root.join(file);
    let folder = source.parent()?;
    let target = if path.is_empty() { source.clone() } else { folder.join(path) };
    if !target.exists() {
        return Some("does not exist".into());
    }
    let is_package = folder != root && folder.join("Cargo.toml").is_file();
    if is_package && !path.is_empty() {
        return Some("is a file, which a page of crates.io does not have".into());
    }
    let inside = |target: &Path| {
        Some(target.canonicalize().ok()?.starts_with(root.join(BOOK[0]).canonicalize().ok()?))
    };
    if Path::new(file).starts_with(BOOK[0]) && inside(&target) != Some(true) {
        return Some("leads out of the book".into());
    }
    let heading = heading?;
    let text = fs::read_to_string(&target).unwrap_or_default();
    (!headings(&text).any(|known| known == heading)).then(|| "is no heading there".into())
}

/// What links and images of a text lead to, those in code left out.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        // Every other piece between backticks is code.
        let line: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for (before, after) in [("](", ')'), ("src=\"", '"'), ("href=\"", '"')] {
            let rests = line.split(before).skip(1);
            found.extend(rests.filter_map(|rest| Some(rest.split_once(after)?.0.to_owned())));
        }
    }
    found
}

/// The lines that are in no block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The names that headings of a text can be linked by.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let titles = prose(text).filter_map(|line| {
        line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
    });
    titles.map(|title| {
        let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| Failure::Check(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_images_outside_of_code() {
        let text = "[a](b.md#c) `[x](y)` and [d](https://e)\n```sh\n[f](g)\n```\n<img src=\"h.png\" alt=\"i\">";
        assert_eq!(links(text), ["b.md#c", "https://e", "h.png"]);
    }

    #[test]
    fn headings_as_they_are_linked() {
        let text = "# `sar serve`, seen\n```sh\n# no heading\n```\n## What it needs\n#hash";
        assert_eq!(headings(text).collect::<Vec<_>>(), ["sar-serve-seen", "what-it-needs"]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let root = std::env::temp_dir().join(format!("sar-links-{}", std::process::id()));
        for folder in ["docs", "crate"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let files = [
            ("README.md", "# Top"),
            ("docs/a.md", "# First\n## Its part"),
            ("crate/Cargo.toml", ""),
            ("crate/README.md", ""),
        ];
        for (file, text) in files {
            fs::write(root.join(file), text).expect("a file");
        }
        let expect = |file: &str, link: &str, expected: Option<&str>| {
            assert_eq!(check(&root, file, link).as_deref(), expected, "{link} in {file}");
        };
        expect("README.md", "docs/a.md#its-part", None);
        expect("README.md", "#top", None);
        expect("README.md", "https://nowhere.invalid", None);
        expect("README.md", "docs/b.md", Some("does not exist"));
        expect("README.md", "docs/a.md#other", Some("is no heading there"));
        expect("docs/a.md", "../README.md", Some("leads out of the book"));
        expect(
            "crate/README.md",
            "../README.md",
            Some("is a file, which a page of crates.io does not have"),
        );
        fs::remove_dir_all(&root).expect("it is there");
    }

    #[test]
    fn every_chapter_is_in_the_book() {
        let files = ["README.md", "docs/SUMMARY.md", "docs/a.md", "docs/b.md"];
        let found = missing_chapters(&files, &["a.md".to_owned()]);
        assert_eq!(found, ["docs/SUMMARY.md: b.md is no chapter"]);
    }
}
