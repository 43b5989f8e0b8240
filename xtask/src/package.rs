//! `package`: packs what is to be published, without building it, and checks what cargo does not: that a
//! package is small enough, says what it is, and holds every file that its sources include.

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use crate::cargo::{self, Failure, Outcome};

/// Bytes of the largest package that crates.io takes, and a little less.
const LIMIT: u64 = 10_000_000;

/// What reaches for another file, up to the literal that names it, relative to the source's own folder.
const REACHES: [&str; 4] = ["include_str!(", "include_bytes!(", "include!(", "#[path = "];

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    check_workspace()
}

pub(crate) fn check_workspace() -> Outcome {
    let metadata = cargo::metadata()?;
    let (published, others): (Vec<&Value>, Vec<&Value>) =
        list(&metadata["packages"]).iter().partition(|package| is_published(package));

    // As it would be published, but for the build from what was packed, which takes an hour. What is known
    // of the registry is mostly enough, and much faster than to ask it.
    let pack = |offline: &[&str]| {
        let words = "package --quiet --workspace --no-verify --allow-dirty";
        let mut command = cargo::cargo(words.split(' '));
        command.args(others.iter().flat_map(|other| ["--exclude", name(other)]));
        command.args(offline).current_dir(cargo::root());
        command
    };
    let offline = pack(&["--offline"]).stderr(Stdio::null()).status();
    if !offline.is_ok_and(|status| status.success()) {
        cargo::run(&mut pack(&[]))?;
    }

    let (mut violations, mut largest) = (Vec::new(), (0, ""));
    for package in &published {
        let name = name(package);
        violations.extend(check_manifest(package));
        let file = format!("{name}-{}.crate", package["version"].as_str().unwrap_or_default());
        let size = size_of(&cargo::target_dir().join("package").join(file))?;
        violations.extend(check_size(name, size));
        largest = largest.max((size, name));
        let (files, sources) = packed(package)?;
        violations.extend(check_includes(name, &files, &sources));
    }
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        let (n, (size, name)) = (published.len(), largest);
        println!("{n} packages, the largest {name} of {:.1} MB", size as f64 * 1e-6);
        return Ok(());
    }
    Err(Failure::Check(format!("{} findings in packages", violations.len())))
}

/// A Rust source of a package.
struct Source {
    /// Where it lies in the package.
    path: String,
    text: String,
}

/// What lies in a package, and its Rust sources.
fn packed(package: &Value) -> Result<(Vec<String>, Vec<Source>), Failure> {
    let mut command = cargo::cargo(["package", "--quiet", "--list", "--allow-dirty", "--package"]);
    let text = cargo::output(command.arg(name(package)).current_dir(cargo::root()))?;
    // On Windows cargo lists paths in that system's form.
    let files: Vec<String> = text.lines().map(|line| line.replace('\\', "/")).collect();
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let folder = manifest.parent().unwrap_or(manifest);
    let sources = files.iter().filter(|file| file.ends_with(".rs")).map(|file| {
        let path = folder.join(file);
        let text = fs::read_to_string(&path)
            .map_err(|error| Failure::Check(format!("{}: {error}", path.display())))?;
        Ok(Source { path: file.clone(), text })
    });
    let sources = sources.collect::<Result<_, Failure>>()?;
    Ok((files, sources))
}

fn size_of(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(path);
    let error = |error| Failure::Check(format!("{}: {error}", path.display()));
    Ok(metadata.map_err(error)?.len())
}

fn check_size(name: &str, size: u64) -> Option<String> {
    (size >= LIMIT).then(|| {
        let [size, limit] = [size, LIMIT].map(|bytes| bytes as f64 * 1e-6);
        format!("{name}: a package of {size:.1} MB, where crates.io takes {limit:.0} MB")
    })
}

/// What a page of crates.io needs, and what has to be there before a package can be published.
fn check_manifest(package: &Value) -> Vec<String> {
    let name = name(package);
    let mut violations = Vec::new();
    for field in ["description", "license", "readme", "rust_version"] {
        if package[field].as_str().is_none_or(str::is_empty) {
            violations.push(format!("{name}: no {} in Cargo.toml", field.replace('_', "-")));
        }
    }
    for field in ["keywords", "categories"] {
        if !(1..=5).contains(&list(&package[field]).len()) {
            violations.push(format!("{name}: {field} in Cargo.toml are one to five"));
        }
    }
    for dependency in list(&package["dependencies"]) {
        let versionless = dependency["req"] == "*";
        if dependency["kind"] != "dev" && !dependency["path"].is_null() && versionless {
            let used = dependency["name"].as_str().unwrap_or_default();
            violations.push(format!("{name}: {used} is a path without a version"));
        }
    }
    violations
}

/// Files that sources of a package include and that are not in it.
fn check_includes(name: &str, files: &[String], sources: &[Source]) -> Vec<String> {
    let mut violations = Vec::new();
    for Source { path: source, text } in sources {
        for found in included(text) {
            let Some(found) = found else {
                violations.push(format!("{name}: {source} includes what is no plain literal"));
                continue;
            };
            let folder = Path::new(source).parent().unwrap_or(Path::new(""));
            let inside = resolved(&folder.join(found));
            if inside.is_none_or(|path| !files.contains(&path)) {
                violations.push(format!("{name}: {source} includes {found}, not in the package"));
            }
        }
    }
    violations
}

/// The literals that name included files; none where something else does.
fn included(text: &str) -> impl Iterator<Item = Option<&str>> {
    REACHES.into_iter().flat_map(|reach| {
        text.split(reach).skip(1).map(|rest| {
            let (path, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
            Some(path)
        })
    })
}

/// The path without `..`; none if it leaves the package.
fn resolved(path: &Path) -> Option<String> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => inside.pop().then_some(())?,
            Component::CurDir => {}
            part => inside.push(part),
        }
    }
    let parts = inside.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
    Some(parts.collect::<Vec<_>>().join("/"))
}

/// `publish = false` is an empty list of registries.
fn is_published(package: &Value) -> bool {
    package["publish"].as_array().is_none_or(|registries| !registries.is_empty())
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn expect(source: &str, text: &str, expected: &[&str]) {
        let files = ["src/lib.rs", "src/a/b.rs", "README.md", "page/index.html"].map(String::from);
        let found = check_includes(
            "sar-x",
            &files,
            &[Source { path: source.to_owned(), text: text.to_owned() }],
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_included_lies_in_the_package() {
        expect("src/lib.rs", "#![doc = include_str!(\"../README.md\")]", &[]);
        expect(
            "src/a/b.rs",
            "const A: &str = include_str!(\n    \"../../page/index.html\"\n);",
            &[],
        );
        expect("src/a/b.rs", "#[path = \"../lib.rs\"]\nmod c;", &[]);
    }

    #[test]
    fn what_is_included_from_elsewhere_is_found() {
        let outside = "sar-x: src/lib.rs includes ../../../assets/x.webp, not in the package";
        expect("src/lib.rs", "include_bytes!(\"../../../assets/x.webp\")", &[outside]);
        let missing = "sar-x: src/a/b.rs includes index.html, not in the package";
        expect(
            "src/a/b.rs",
            "a(include_str!(\"../lib.rs\"), include_str!(\"index.html\"))",
            &[missing],
        );
        let module = "sar-x: src/lib.rs includes ../../fuzz/lib.rs, not in the package";
        expect("src/lib.rs", "#[path = \"../../fuzz/lib.rs\"]\nmod fuzz;", &[module]);
        let unknown = "sar-x: src/lib.rs includes what is no plain literal";
        expect("src/lib.rs", "include_bytes!(concat!(\"a\", \"b\"))", &[unknown]);
    }

    #[test]
    fn manifests_say_what_a_page_shows() {
        let mut package = json!({
            "name": "sar-x", "description": "x", "license": "MIT", "readme": "README.md",
            "rust_version": "1.92", "keywords": ["a"], "categories": ["science"], "publish": null,
            "dependencies": [{ "name": "sar-y", "kind": null, "path": "/y", "req": "^0.1.0" }],
        });
        assert!(is_published(&package) && check_manifest(&package).is_empty());
        package["readme"] = Value::Null;
        package["keywords"] = json!([]);
        package["dependencies"][0]["req"] = json!("*");
        let found = [
            "sar-x: no readme in Cargo.toml",
            "sar-x: keywords in Cargo.toml are one to five",
            "sar-x: sar-y is a path without a version",
        ];
        assert_eq!(check_manifest(&package), found);
        package["publish"] = json!([]);
        assert!(!is_published(&package));
    }

    #[test]
    fn a_package_that_is_too_large_is_found() {
        assert_eq!(check_size("sar-x", 9_999_999), None);
        let found = "sar-x: a package of 12.3 MB, where crates.io takes 10 MB";
        assert_eq!(check_size("sar-x", 12_300_000).as_deref(), Some(found));
    }
}
