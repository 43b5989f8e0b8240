//! `test --device NAME --matrix`: the laws with the backend's fusion and autotune each on and off, and
//! with autotune comparing the kernels that it tries. burn decides these when it is compiled, so each
//! is a build of its own.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use crate::cargo::{self, Failure, Outcome};
use crate::device::{Device, Kind};
use crate::test;

/// The features of `sar-conformance` of each build.
const BUILDS: [&[&str]; 5] = [
    &[],
    &["fusion"],
    &["autotune"],
    &["fusion", "autotune"],
    &["fusion", "autotune", "autotune-checks"],
];

/// Runs the laws in every build, those after a failure too.
pub(crate) fn run(name: &str, args: &[OsString]) -> Outcome {
    if Device::find(name).is_some_and(|device| device.kind != Kind::Gpu) {
        let problem = "the CPU has neither fusion nor autotune; --matrix is for wgpu and cuda";
        return Err(Failure::Usage(format!("--device {name}: {problem}")));
    }
    let mut rows = Vec::new();
    for features in BUILDS {
        let mut command = test::on_device(name, features, args)?;
        println!("\n==> {}: {}", shown(features), cargo::shown(&command));
        let start = Instant::now();
        let outcome = cargo::run(command.current_dir(cargo::root()));
        rows.push((features, start.elapsed(), outcome.is_ok()));
    }
    println!("\n{}", table(&rows));
    match rows.iter().filter(|(_, _, holds)| !holds).count() {
        0 => Ok(()),
        failed => {
            let builds = BUILDS.len();
            Err(Failure::Check(format!("{name}: the laws fail in {failed} of {builds} builds")))
        }
    }
}

fn table(rows: &[(&[&str], Duration, bool)]) -> String {
    let line = |(features, time, holds): &(&[&str], Duration, bool)| {
        let end = if *holds { "ok" } else { "FAILED" };
        format!("{:<34} {:>8.1} s  {end}", shown(features), time.as_secs_f64())
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn shown(features: &[&str]) -> String {
    if features.is_empty() { "neither".into() } else { features.join(" + ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_build_has_the_device_and_its_own_features() {
        let commands = BUILDS.map(|features| {
            cargo::shown(&test::on_device("cuda", features, &["large".into()]).unwrap())
        });
        for (command, features) in commands.iter().zip(BUILDS) {
            assert!(command.contains("--features cuda"), "{command}");
            assert!(command.ends_with("--test cuda large"), "{command}");
            for feature in ["fusion", "autotune", "autotune-checks"] {
                let is_on = command.contains(&format!("--features {feature} "));
                assert_eq!(is_on, features.contains(&feature), "{command}");
            }
        }
    }

    #[test]
    fn only_a_gpu_has_builds() {
        for name in ["flex", "ndarray", "abacus"] {
            assert!(matches!(run(name, &[]), Err(Failure::Usage(_))), "{name}");
        }
    }

    #[test]
    fn the_table_says_which_build_failed() {
        let rows: [(&[&str], Duration, bool); 2] = [
            (BUILDS[0], Duration::from_millis(1500), true),
            (BUILDS[3], Duration::from_secs(61), false),
        ];
        let expected = "neither                                 1.5 s  ok\n\
                        fusion + autotune                      61.0 s  FAILED";
        assert_eq!(table(&rows), expected);
    }
}
