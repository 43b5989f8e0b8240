//! All laws on burn's flex backend, at every level of vector instructions that this CPU has.

use std::process::Command;

use burn::backend::Autodiff;
use sar_kernels::CpuLevel;

sar_conformance::tests!(Autodiff<burn_flex::Flex>);

/// Each level in a process of its own, as a process reads the level once.
#[test]
fn at_lower_levels() {
    if std::env::var_os(CpuLevel::VARIABLE).is_some() {
        return;
    }
    let best = CpuLevel::chosen().unwrap();
    for level in CpuLevel::available().into_iter().filter(|level| *level < best) {
        let laws = Command::new(std::env::current_exe().unwrap())
            .args(["--skip", "at_lower_levels"])
            .env(CpuLevel::VARIABLE, level.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&laws.stdout);
        assert!(laws.status.success() && said.contains(" passed"), "{level}:\n{said}");
    }
}
