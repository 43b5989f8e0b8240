//! `arrows`: which crate may depend on which, and which may know a backend.
//!
//! Development dependencies are free: a test picks its backend, and may use any crate.

use std::ffi::OsString;

use serde_json::Value;

use crate::cargo::{self, Failure, Outcome};

/// What a crate may depend on.
struct Row {
    package: &'static str,
    ours: &'static [&'static str],
    burn: Burn,
}

/// How much of burn a crate may know.
#[derive(Clone, Copy, PartialEq)]
enum Burn {
    None,
    /// `burn` alone, without a backend.
    Generic,
    /// `burn`, and a backend behind a feature: hand-written operators for its tensors.
    Behind,
    /// Backends too: this crate chooses one.
    Backends,
}

const LIBRARIES: &[&str] = PROGRAMS.split_at(20).0;

/// What a program may use: the libraries, and what is for programs alone.
const PROGRAMS: &[&str] = &[
    "sar-emoji",
    "sar-efficientnet",
    "sar-recipes",
    "sar-core",
    "sar-kernels",
    "sar-weights",
    "sar-tokenizer",
    "sar-model",
    "sar-loss",
    "sar-data",
    "sar-features",
    "sar-discriminator",
    "sar-rollout",
    "sar-pipeline",
    "sar-metrics",
    "sar-eval",
    "sar-exchange",
    "sar-train",
    "sar-parity",
    "sar-selfcheck",
    "sar-request",
    "sar-serve",
    "sar-memory",
    "sar-emoji-weights",
];

/// What the crate `sar` has as modules.
const FACADE: &[&str] = &[
    "sar-core",
    "sar-kernels",
    "sar-weights",
    "sar-tokenizer",
    "sar-model",
    "sar-loss",
    "sar-data",
    "sar-features",
    "sar-discriminator",
    "sar-rollout",
    "sar-pipeline",
    "sar-metrics",
    "sar-eval",
    "sar-exchange",
    "sar-train",
    "sar-emoji-weights",
];

/// The features of `burn` that bring no backend along.
const GENERIC_FEATURES: [&str; 2] = ["std", "autodiff"];

/// Every crate of the workspace; a crate depends only on rows above its own.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Files that others embed.
    Row { package: "sar-emoji", ours: &[], burn: Burn::None },
    Row { package: "sar-efficientnet", ours: &[], burn: Burn::None },
    Row { package: "sar-recipes", ours: &[], burn: Burn::None },
    Row { package: "sar-emoji-weights", ours: &[], burn: Burn::None },
    Row { package: "sar-core", ours: &[], burn: Burn::Generic },
    Row { package: "sar-kernels", ours: &[], burn: Burn::Behind },
    Row { package: "sar-weights", ours: &[], burn: Burn::Generic },
    Row { package: "sar-tokenizer", ours: &["sar-core", "sar-kernels", "sar-weights"], burn: Burn::Generic },
    Row { package: "sar-model", ours: &["sar-core", "sar-kernels", "sar-weights"], burn: Burn::Generic },
    Row { package: "sar-loss", ours: &["sar-core", "sar-kernels"], burn: Burn::Generic },
    Row { package: "sar-data", ours: &["sar-core", "sar-emoji"], burn: Burn::Generic },
    Row { package: "sar-features", ours: &["sar-core", "sar-kernels", "sar-weights", "sar-efficientnet"], burn: Burn::Generic },
    Row { package: "sar-discriminator", ours: &["sar-core", "sar-kernels", "sar-weights", "sar-features"], burn: Burn::Generic },
    Row { package: "sar-rollout", ours: &["sar-core", "sar-kernels"], burn: Burn::Generic },
    Row { package: "sar-pipeline", ours: &["sar-core", "sar-weights", "sar-tokenizer", "sar-model", "sar-rollout"], burn: Burn::Generic },
    Row { package: "sar-metrics", ours: &[], burn: Burn::None },
    Row { package: "sar-eval", ours: &["sar-core", "sar-weights", "sar-tokenizer", "sar-loss", "sar-data", "sar-features", "sar-metrics"], burn: Burn::Generic },
    Row { package: "sar-exchange", ours: &[], burn: Burn::None },
    Row { package: "sar-train", ours: LIBRARIES.split_at(17).0, burn: Burn::Generic },
    Row { package: "sar-parity", ours: &["sar-core", "sar-weights", "sar-tokenizer", "sar-model", "sar-loss", "sar-rollout", "sar-train"], burn: Burn::Generic },
    Row { package: "sar-selfcheck", ours: &["sar-core", "sar-kernels", "sar-model", "sar-rollout"], burn: Burn::Generic },
    Row { package: "sar-request", ours: &["sar-core", "sar-rollout", "sar-pipeline"], burn: Burn::Generic },
    Row { package: "sar-serve", ours: &["sar-data", "sar-pipeline", "sar-request"], burn: Burn::Generic },
    // A library without a backend, and beside it the tests of the backends.
    Row { package: "sar-conformance", ours: LIBRARIES, burn: Burn::Backends },
    // A setting of the process: for programs alone.
    Row { package: "sar-memory", ours: &[], burn: Burn::None },
    // The libraries as modules of one: no code, and nothing of ours depends on it.
    Row { package: "sar", ours: FACADE, burn: Burn::None },
    Row { package: "sar-web", ours: PROGRAMS, burn: Burn::Backends },
    Row { package: "sar-cli", ours: PROGRAMS, burn: Burn::Backends },
    Row { package: "sar-bench", ours: PROGRAMS, burn: Burn::Backends },
    Row { package: "xtask", ours: &[], burn: Burn::None },
];

pub(crate) fn run(verb: &str, args: &[OsString]) -> Outcome {
    cargo::takes_no_arguments(verb, args)?;
    check_workspace()
}

pub(crate) fn check_workspace() -> Outcome {
    let metadata = cargo::metadata()?;
    let violations = check(&metadata);
    for violation in &violations {
        eprintln!("{violation}");
    }
    if violations.is_empty() {
        println!(
            "{} crates: every dependency follows the arrows",
            list(&metadata["packages"]).len()
        );
        return Ok(());
    }
    Err(Failure::Check(format!(
        "{} dependencies against the arrows of xtask/src/arrows.rs",
        violations.len()
    )))
}

fn check(metadata: &Value) -> Vec<String> {
    let packages = list(&metadata["packages"]);
    let members: Vec<&str> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut violations = Vec::new();
    for package in packages {
        let name = text(&package["name"]);
        match TABLE.iter().find(|row| row.package == name) {
            Some(row) => check_package(row, package, &members, &mut violations),
            None => violations.push(format!("{name} has no row in the table")),
        }
    }
    violations
}

fn check_package(row: &Row, package: &Value, members: &[&str], violations: &mut Vec<String>) {
    let name = row.package;
    for dependency in list(&package["dependencies"]) {
        if text(&dependency["kind"]) == "dev" {
            continue;
        }
        let used = text(&dependency["name"]);
        if members.contains(&used) && !row.ours.contains(&used) {
            violations.push(format!("{name} may not depend on {used}"));
        }
        if used == "burn" && row.burn == Burn::None {
            violations.push(format!("{name} may not depend on burn"));
        }
        let is_backend = used.starts_with("burn-") || used.starts_with("cubecl");
        let hidden = row.burn == Burn::Behind && dependency["optional"] == true;
        if is_backend && row.burn != Burn::Backends && !hidden {
            violations.push(format!("{name} may not depend on {used}: it chooses no backend"));
        }
        if used == "burn" && row.burn != Burn::Backends && row.burn != Burn::None {
            if dependency["uses_default_features"] != false {
                violations.push(format!("{name} takes burn with its default features"));
            }
            let features = list(&dependency["features"]).iter().map(text);
            check_features(name, features, violations);
        }
    }
    if row.burn != Burn::Backends {
        check_features(name, forwarded_burn_features(package), violations);
    }
}

fn check_features<'a>(
    name: &str,
    features: impl Iterator<Item = &'a str>,
    violations: &mut Vec<String>,
) {
    for feature in features.filter(|feature| !GENERIC_FEATURES.contains(feature)) {
        violations.push(format!("{name} turns on burn's feature `{feature}`: not backend-free"));
    }
}

/// What the crate's own features turn on in burn: `cuda = ["burn/cuda"]`.
fn forwarded_burn_features(package: &Value) -> impl Iterator<Item = &str> {
    let features = package["features"].as_object().into_iter().flat_map(|table| table.values());
    features.flat_map(list).filter_map(|entry| {
        let (dependency, feature) = text(entry).split_once('/')?;
        (dependency.trim_end_matches('?') == "burn").then_some(feature)
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dependency(name: &str, kind: Value) -> Value {
        json!({ "name": name, "kind": kind, "features": [], "uses_default_features": true })
    }

    fn burn(features: &[&str]) -> Value {
        json!({ "name": "burn", "kind": null, "features": features, "uses_default_features": false })
    }

    fn package(name: &str, dependencies: Vec<Value>) -> Value {
        json!({ "name": name, "dependencies": dependencies, "features": {} })
    }

    #[track_caller]
    fn expect(packages: Vec<Value>, expected: &[&str]) {
        assert_eq!(check(&json!({ "packages": packages })), expected);
    }

    #[test]
    fn crates_that_follow_the_arrows_pass() {
        let core = package("sar-core", vec![burn(&["std"]), dependency("serde", Value::Null)]);
        let loss = package(
            "sar-loss",
            vec![
                burn(&["std", "autodiff"]),
                dependency("sar-core", Value::Null),
                dependency("burn-flex", json!("dev")),
                dependency("sar-train", json!("dev")),
            ],
        );
        let train = package("sar-train", vec![dependency("sar-loss", Value::Null)]);
        let cli = package("sar-cli", vec![dependency("burn-cuda", Value::Null), burn(&["fusion"])]);
        expect(vec![core, loss, train, cli], &[]);
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let core = package("sar-core", vec![dependency("sar-train", Value::Null)]);
        let loss = package("sar-loss", vec![dependency("sar-model", json!("build"))]);
        let model = package("sar-model", vec![]);
        let train = package("sar-train", vec![]);
        expect(
            vec![core, loss, model, train],
            &["sar-core may not depend on sar-train", "sar-loss may not depend on sar-model"],
        );
    }

    #[test]
    fn operators_of_a_backend_stay_behind_a_feature() {
        let mut flex = dependency("burn-flex", Value::Null);
        let found = "sar-kernels may not depend on burn-flex: it chooses no backend";
        expect(vec![package("sar-kernels", vec![flex.clone()])], &[found]);
        flex["optional"] = json!(true);
        expect(vec![package("sar-kernels", vec![flex])], &[]);
    }

    #[test]
    fn a_library_that_knows_a_backend_is_found() {
        expect(
            vec![package("sar-model", vec![dependency("burn-flex", Value::Null)])],
            &["sar-model may not depend on burn-flex: it chooses no backend"],
        );
        expect(
            vec![package("sar-model", vec![burn(&["std", "cuda"])])],
            &["sar-model turns on burn's feature `cuda`: not backend-free"],
        );
        expect(
            vec![package("sar-model", vec![dependency("burn", Value::Null)])],
            &["sar-model takes burn with its default features"],
        );
        let mut forwards = package("sar-model", vec![burn(&["std"])]);
        forwards["features"] = json!({ "default": [], "gpu": ["burn?/wgpu", "serde/std"] });
        expect(vec![forwards], &["sar-model turns on burn's feature `wgpu`: not backend-free"]);
    }

    #[test]
    fn xtask_never_links_burn() {
        expect(vec![package("xtask", vec![burn(&[])])], &["xtask may not depend on burn"]);
    }

    #[test]
    fn a_crate_without_a_row_is_found() {
        expect(vec![package("sar-extra", vec![])], &["sar-extra has no row in the table"]);
    }

    #[test]
    fn the_table_has_no_cycle() {
        for (i, row) in TABLE.iter().enumerate() {
            for used in row.ours {
                let above = TABLE[..i].iter().any(|other| other.package == *used);
                assert!(above, "{} depends on {used}, which is no row above it", row.package);
            }
        }
    }
}
