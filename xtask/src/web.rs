//! `web`: the page with the model compiled to WebAssembly, as static files.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo::{self, Failure, Outcome};

pub(crate) const TARGET: &str = "wasm32-unknown-unknown";
/// What `rustc` has for the target, or why not.
pub(crate) const NO_TARGET: &str =
    "no standard library for wasm32; `rustup target add wasm32-unknown-unknown` installs it";

/// The page, as the server has it, and what takes the place of the server.
const PAGE: &str = "crates/sar-serve/page";
const OURS: &str = "crates/sar-web/page";
/// The weights that come along, and what the page calls them.
const WEIGHTS: [(&str, &str); 2] = [
    ("assets/weights/emoji/tokenizer.safetensors", "weights/tokenizer.safetensors"),
    ("assets/weights/emoji/backbone-sar.safetensors", "weights/backbone.safetensors"),
];

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    let [option, out] = args else {
        return Err(Failure::Usage(format!("usage: cargo xtask {verb} --out DIR")));
    };
    if option != "--out" {
        return Err(Failure::Usage(format!(
            "`{verb}` takes --out DIR, not `{}`",
            option.display()
        )));
    }
    if !has_target() {
        return Err(Failure::Check(NO_TARGET.into()));
    }
    let bindgen = bindgen()?;
    let code = compile()?;
    let out = Path::new(out);
    let written = write(&bindgen, &code, out)?;
    let total: u64 = written.iter().map(|(_, bytes)| bytes).sum();
    for (name, bytes) in &written {
        println!("{:>9.1} kB  {name}", *bytes as f64 / 1e3);
    }
    println!("{:>9.1} kB  in {}, to be served as they are", total as f64 / 1e3, out.display());
    Ok(())
}

/// Whether there is a standard library for WebAssembly.
pub(crate) fn has_target() -> bool {
    let mut command = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.args(["--print", "target-libdir", "--target", TARGET]).stderr(Stdio::null());
    let folder = command.output().map(|output| output.stdout).unwrap_or_default();
    let folder = String::from_utf8_lossy(&folder).trim().to_owned();
    !folder.is_empty() && Path::new(&folder).is_dir()
}

/// The program `wasm-bindgen` of the version that the library has: no other understands what it left.
fn bindgen() -> Result<Command, Failure> {
    let lock = read(&cargo::root().join("Cargo.lock"))?;
    let version = locked(&String::from_utf8_lossy(&lock), "wasm-bindgen")
        .ok_or_else(|| Failure::Check("Cargo.lock: there is no wasm-bindgen".into()))?;
    let program = env::var_os("WASM_BINDGEN").unwrap_or_else(|| "wasm-bindgen".into());
    let said = Command::new(&program).arg("--version").stderr(Stdio::null()).output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let is_there = |said: &str| said.split_whitespace().nth(1) == Some(version.as_str());
    if said.as_deref().is_ok_and(is_there) {
        return Ok(Command::new(program));
    }
    Err(Failure::Check(format!(
        "wasm-bindgen {version} is needed, exactly this version: \
         `cargo install wasm-bindgen-cli --version {version}`; WASM_BINDGEN names one that is not in the path"
    )))
}

/// The version of a package in a lockfile, the first if there are several.
fn locked(lock: &str, package: &str) -> Option<String> {
    let mut lines = lock.lines().skip_while(|line| *line != format!("name = \"{package}\""));
    let version = lines.nth(1)?.strip_prefix("version = ")?;
    Some(version.trim_matches('"').to_owned())
}

/// The command that compiles the crate.
pub(crate) fn build() -> Command {
    cargo::cargo(["build", "--release", "--package", "sar-web", "--target", TARGET])
}

fn compile() -> Result<PathBuf, Failure> {
    cargo::run(build().current_dir(cargo::root()))?;
    Ok(cargo::target_dir().join(TARGET).join("release/sar_web.wasm"))
}

/// Writes all files, and says their names and sizes.
fn write(bindgen: &Command, code: &Path, out: &Path) -> Result<Vec<(String, u64)>, Failure> {
    let root = cargo::root();
    let folder = |path: &Path| {
        fs::create_dir_all(path)
            .map_err(|error| Failure::Check(format!("{}: {error}", path.display())))
    };
    folder(&out.join("weights"))?;
    let mut command = Command::new(bindgen.get_program());
    command.args(["--target", "no-modules", "--no-typescript", "--omit-default-module-path"]);
    command.args(["--remove-name-section", "--remove-producers-section", "--out-name", "sar"]);
    cargo::run(command.arg("--out-dir").arg(out).arg(code))?;

    let mut files = vec!["sar.js".to_owned(), "sar_bg.wasm".to_owned()];
    // Ours come last: one takes the place of a file of the server's.
    for page in [PAGE, OURS] {
        let names = fs::read_dir(root.join(page))
            .map_err(|error| Failure::Check(format!("{page}: {error}")))?;
        for entry in names.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            copy(&entry.path(), &out.join(&name))?;
            files.push(name);
        }
    }
    for (from, to) in WEIGHTS {
        copy(&root.join(from), &out.join(to))?;
        files.push(to.to_owned());
    }
    files.sort();
    files.dedup();

    let mut hasher = DefaultHasher::new();
    let mut written = Vec::new();
    for name in &files {
        let bytes = read(&out.join(name))?;
        hasher.write(&bytes);
        written.push((name.clone(), bytes.len() as u64));
    }
    // A browser that keeps the files asks for the list alone, and for the rest where the version is another.
    let kept: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|name| *name != "keep.js")
        .map(|name| if name == "index.html" { "./" } else { name })
        .collect();
    let list = format!(
        "const VERSION = \"{:016x}\";\nconst FILES = {};\n",
        hasher.finish(),
        serde_json::json!(kept)
    );
    written.push(("files.js".into(), list.len() as u64));
    fs::write(out.join("files.js"), list)
        .map_err(|error| Failure::Check(format!("{}: {error}", out.display())))?;
    Ok(written)
}

fn copy(from: &Path, to: &Path) -> Outcome {
    let failed = |error| Failure::Check(format!("{}: {error}", to.display()));
    fs::write(to, read(from)?).map_err(failed)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::Check(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_package_is_read() {
        let lock = "[[package]]\nname = \"wasm-bindgen-futures\"\nversion = \"0.4.1\"\n\n\
                    [[package]]\nname = \"wasm-bindgen\"\nversion = \"0.2.9\"\nsource = \"x\"\n";
        assert_eq!(locked(lock, "wasm-bindgen").as_deref(), Some("0.2.9"));
        assert_eq!(locked(lock, "wasm"), None);
    }

    /// The page asks for nothing by an absolute address: it lies in a folder of whatever server has it.
    #[test]
    fn addresses_of_the_page_are_relative() {
        let root = cargo::root();
        for page in [PAGE, OURS] {
            for entry in fs::read_dir(root.join(page)).unwrap().flatten() {
                let text = fs::read_to_string(entry.path()).unwrap();
                for sign in ["=\"/", "(\"/", "(`/", "from \"/", "http://", "https://"] {
                    let mut found = text.match_indices(sign).map(|(at, _)| &text[at..]);
                    let found = found.find(|text| !text.starts_with("http://www.w3.org/"));
                    assert!(found.is_none(), "{}: {sign}", entry.path().display());
                }
            }
        }
    }
}
