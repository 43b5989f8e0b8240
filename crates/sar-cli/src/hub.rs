//! Weights by their names on a hub: `hf:OWNER/REPO/PATH`, for options and arguments that name a file of weights.

#[cfg(feature = "hub")]
mod fetch;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, anyhow, ensure};

/// How a name on a hub begins.
const SCHEME: &str = "hf:";

/// Where weights are: a path, or a name on a hub.
#[derive(Clone, Debug)]
pub(crate) struct WeightsPath(PathBuf);

/// A file on a hub.
#[derive(Debug, PartialEq)]
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only checked"))]
struct HubFile {
    owner: String,
    repo: String,
    /// A branch, a tag or a commit.
    revision: String,
    /// In the repository.
    path: String,
}

impl From<OsString> for WeightsPath {
    fn from(text: OsString) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for WeightsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl WeightsPath {
    /// The file, which is fetched if it is on a hub and not yet in the cache.
    pub(crate) fn file(&self) -> Result<PathBuf> {
        let Some(name) = self.0.to_str().and_then(|text| text.strip_prefix(SCHEME)) else {
            return Ok(self.0.clone());
        };
        let file: HubFile = name.parse()?;
        #[cfg(feature = "hub")]
        {
            fetch::fetch(&file)
        }
        #[cfg(not(feature = "hub"))]
        {
            anyhow::bail!(
                "{file}: this program was built without the feature `hub`; build it with \
                 `cargo build --release -p sar-cli --features hub`, or name a downloaded file"
            )
        }
    }
}

impl FromStr for HubFile {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let wrong =
            || anyhow!("{SCHEME}{name}: write hf:OWNER/REPO/FILE or hf:OWNER/REPO@REVISION/FILE");
        let mut parts = name.splitn(3, '/');
        let [owner, repo, path] = [(); 3].map(|()| parts.next().unwrap_or_default());
        let (repo, revision) = repo.split_once('@').unwrap_or((repo, "main"));
        let is_word = |text: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !text.is_empty() && !text.starts_with('.') && text.chars().all(is_plain)
        };
        ensure!([owner, repo, revision].into_iter().all(is_word), wrong());
        // The path becomes one below the cache.
        let is_part = |part: &str| {
            let is_plain = |c: char| !c.is_control() && !"\\:".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_plain)
        };
        ensure!(path.split('/').all(is_part), wrong());
        let [owner, repo, revision, path] = [owner, repo, revision, path].map(String::from);
        Ok(Self { owner, repo, revision, path })
    }
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, repo, revision, path } = self;
        match revision.as_str() {
            "main" => write!(f, "{SCHEME}{owner}/{repo}/{path}"),
            _ => write!(f, "{SCHEME}{owner}/{repo}@{revision}/{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_owner_repository_and_path() {
        let parsed = |text: &str| text.parse::<HubFile>();
        let file = parsed("jiaosiyu1999/FlexVAR/ckpt/FlexVAR-d16.pth").unwrap();
        assert_eq!([file.owner.as_str(), &file.repo], ["jiaosiyu1999", "FlexVAR"]);
        assert_eq!([file.revision.as_str(), &file.path], ["main", "ckpt/FlexVAR-d16.pth"]);
        for name in ["a/b/c.pth", "a/b@v1.0/c d/é.safetensors"] {
            assert_eq!(parsed(name).unwrap().to_string(), format!("hf:{name}"));
        }
        for bad in [
            "", "a", "a/b", "a/b/", "/b/c", "a//c", "a/b@/c", "a/b/../c", "a/b/c/", "a/b//c",
            "../b/c", "a/b/c\\d", "a/b/c:d", "a/b@../c", "a b/c/d", "a/b/.c", "a/b/c\nd",
        ] {
            let error = parsed(bad).unwrap_err().to_string();
            assert!(error.contains("hf:OWNER/REPO/FILE"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_path_is_a_path() {
        for path in ["weights.pth", "./hf:a/b/c", "hf/a/b"] {
            let file = WeightsPath::from(OsString::from(path)).file().unwrap();
            assert_eq!(file, PathBuf::from(path));
        }
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_a_name_says_how_to_get_it() {
        let error =
            WeightsPath::from(OsString::from("hf:a/b/c.pth")).file().unwrap_err().to_string();
        assert!(error.contains("hf:a/b/c.pth: ") && error.contains("--features hub"), "{error}");
    }
}
