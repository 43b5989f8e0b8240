//! `--device`: what it takes to build for one.

use std::ffi::OsString;
use std::process::Command;

use crate::cargo;

/// A device that `sar` and the tests can be built for.
#[derive(Debug, PartialEq)]
pub(crate) struct Device {
    /// Its name, and that of the feature that builds it.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Built without being asked for.
    Default,
    Cpu,
    /// A GPU build is large: a target directory of its own can be deleted whole, and locks out no CPU
    /// run.
    Gpu,
}

const DEVICES: [Device; 4] = [
    Device { name: "flex", kind: Kind::Default },
    Device { name: "ndarray", kind: Kind::Cpu },
    Device { name: "wgpu", kind: Kind::Gpu },
    Device { name: "cuda", kind: Kind::Gpu },
];

impl Device {
    /// The device of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        DEVICES.iter().find(|device| device.name == name)
    }

    /// All names.
    pub(crate) fn names() -> String {
        DEVICES.map(|device| device.name).join(", ")
    }

    /// Makes a cargo command build for this device.
    pub(crate) fn select(&self, command: &mut Command) {
        if self.kind != Kind::Default {
            command.args(["--features", self.name]);
        }
        if self.kind == Kind::Gpu {
            command.arg("--target-dir").arg(cargo::target_dir().join(self.name));
        }
    }
}

/// The arguments `--device NAME[:i]` or `--device=NAME[:i]`: the name, and where they stand.
fn position(args: &[OsString]) -> Option<(&str, std::ops::Range<usize>)> {
    let words = || {
        args.iter().map_while(|arg| match arg.to_str() {
            Some("--") => None,
            text => Some(text.unwrap_or_default()),
        })
    };
    let (place, rest) = words()
        .enumerate()
        .find_map(|(place, word)| Some((place, word.strip_prefix("--device")?)))
        .filter(|(_, rest)| rest.is_empty() || rest.starts_with('='))?;
    let (device, end) = match rest.strip_prefix('=') {
        Some(device) => (device, place + 1),
        None => (words().nth(place + 1)?, place + 2),
    };
    Some((device.split_once(':').map_or(device, |(name, _index)| name), place..end))
}

/// The name in `--device NAME[:i]` or `--device=NAME[:i]`.
pub(crate) fn named(args: &[OsString]) -> Option<&str> {
    position(args).map(|(name, _)| name)
}

/// The other arguments.
pub(crate) fn without(args: &[OsString]) -> Vec<OsString> {
    let mut args = args.to_vec();
    if let Some(range) = position(&args).map(|(_, range)| range) {
        args.drain(range);
    }
    args
}

/// Whether a flag is among the arguments, and the others.
pub(crate) fn take_flag(args: &[OsString], flag: &str) -> (bool, Vec<OsString>) {
    let place = args.iter().take_while(|arg| *arg != "--").position(|arg| arg == flag);
    let mut args = args.to_vec();
    if let Some(place) = place {
        args.remove(place);
    }
    (place.is_some(), args)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_device_is_found_in_every_spelling() {
        let check = |line: &str, expected: Option<&str>, rest: &str| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(named(&args), expected, "{line}");
            assert_eq!(without(&args).join(" ".as_ref()), rest, "{line}");
        };
        check("", None, "");
        check("--recipe emoji-quick", None, "--recipe emoji-quick");
        check("--device cuda", Some("cuda"), "");
        check("--device cuda:1 --seed 7", Some("cuda"), "--seed 7");
        check("--seed 7 --device=wgpu", Some("wgpu"), "--seed 7");
        check("--device=ndarray:0", Some("ndarray"), "");
        check("--device", None, "--device");
        check("--devices cuda", None, "--devices cuda");
        check("--out cuda", None, "--out cuda");
        check("-- --device cuda", None, "-- --device cuda");
    }

    #[test]
    fn a_flag_is_taken_out_of_the_arguments() {
        let check = |line: &str, found: bool, rest: &str| {
            let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let (is_there, others) = take_flag(&args, "--fusion");
            assert_eq!((is_there, others.join(" ".as_ref())), (found, rest.into()), "{line}");
        };
        check("", false, "");
        check("--device cuda --fusion --seed 7", true, "--device cuda --seed 7");
        check("--seed 7 -- --fusion", false, "--seed 7 -- --fusion");
    }

    #[test]
    fn a_gpu_has_a_feature_and_a_target_directory_of_its_own() {
        let args = |name: &str| {
            let mut command = Command::new("cargo");
            Device::find(name).unwrap().select(&mut command);
            let args = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
            args.collect::<Vec<_>>()
        };
        assert_eq!(args("flex"), [""; 0]);
        assert_eq!(args("ndarray"), ["--features", "ndarray"]);
        assert_eq!(args("cuda")[..3], ["--features", "cuda", "--target-dir"]);
        assert!(PathBuf::from(&args("cuda")[3]).ends_with("cuda"));
        assert_eq!(Device::find("abacus"), None);
    }
}
