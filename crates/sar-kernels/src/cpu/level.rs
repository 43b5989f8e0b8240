//! Which vector instructions the operators run with.

use std::fmt;
use std::sync::OnceLock;

use pulp::Arch;

/// A set of vector instructions. The hand-written operators are compiled for each that the target
/// has; the best that the CPU has runs, unless the variable [`CpuLevel::VARIABLE`] names another.
///
/// Results of two levels agree up to the rounding of floating point; each is deterministic. Products
/// that burn itself computes take the best level whatever is named: in f32 those around the blocks, as
/// of Muon, nearest codes, resampling and draws; in bf16 and f16 all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CpuLevel {
    /// None: one number at a time.
    Scalar,
    /// 128 bits, of WebAssembly.
    Simd128,
    /// 128 bits, on ARM.
    Neon,
    /// 256 bits with fused multiply-add, on x86 (`x86-64-v3`).
    Avx2,
    /// 512 bits, on x86 (`x86-64-v4`).
    Avx512,
}

impl CpuLevel {
    /// The environment variable that names a level: `scalar`, `simd128`, `neon`, `avx2` or `avx512`.
    pub const VARIABLE: &str = "SAR_CPU";

    const ALL: [Self; 5] = [Self::Scalar, Self::Simd128, Self::Neon, Self::Avx2, Self::Avx512];

    /// Those that this CPU has, from the slowest to the fastest.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|level| level.arch().is_some()).collect()
    }

    /// The level that operators run with, read once in a process.
    ///
    /// # Errors
    /// If the variable names no level, or one that this CPU does not have. Operators panic with this
    /// message then, so a program asks here first.
    pub fn chosen() -> Result<Self, String> {
        chosen().as_ref().map(|(level, _)| *level).map_err(String::clone)
    }

    fn arch(self) -> Option<Arch> {
        match self {
            Self::Scalar => Some(Arch::Scalar),
            #[cfg(target_arch = "wasm32")]
            Self::Simd128 => pulp::wasm::Simd128::try_new().map(Arch::Simd128),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => pulp::aarch64::Neon::try_new().map(Arch::Neon),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx2 => pulp::x86::V3::try_new().map(Arch::V3),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx512 => pulp::x86::V4::try_new().map(Arch::V4),
            _ => None,
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Simd128 => "simd128",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

type Chosen = Result<(CpuLevel, Arch), String>;

fn chosen() -> &'static Chosen {
    static CHOSEN: OnceLock<Chosen> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        super::gemm::pack_early();
        let named = std::env::var_os(CpuLevel::VARIABLE).filter(|name| !name.is_empty());
        choose(named.map(|name| name.to_string_lossy().into_owned()).as_deref())
    })
}

fn choose(named: Option<&str>) -> Chosen {
    let available = CpuLevel::available();
    let level = match named {
        None => available[available.len() - 1],
        Some(name) => {
            available.iter().copied().find(|level| level.to_string() == name).ok_or_else(|| {
                let levels: Vec<String> = available.iter().map(CpuLevel::to_string).collect();
                let (variable, levels) = (CpuLevel::VARIABLE, levels.join(", "));
                format!("{variable}={name}: this CPU's levels are {levels}; unset it for the best")
            })?
        }
    };
    Ok((level, level.arch().expect("one that is available")))
}

/// The level that operators run with.
///
/// # Panics
/// If the variable names none that this CPU has.
#[inline(always)]
pub(crate) fn level() -> CpuLevel {
    known().0
}

/// The instructions that operators run with.
///
/// # Panics
/// As [`level`].
#[inline(always)]
pub(crate) fn arch() -> Arch {
    known().1
}

#[inline(always)]
fn known() -> (CpuLevel, Arch) {
    match chosen() {
        Ok(known) => *known,
        Err(error) => panic!("{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_or_what_is_named() {
        let available = CpuLevel::available();
        assert!(available.is_sorted() && available[0] == CpuLevel::Scalar);
        let name = |choice: Chosen| choice.map(|(level, _)| level);
        assert_eq!(name(choose(None)), Ok(available[available.len() - 1]));
        for &level in &available {
            assert_eq!(name(choose(Some(&level.to_string()))), Ok(level));
        }
        let error = name(choose(Some("avx1024"))).unwrap_err();
        assert!(error.starts_with("SAR_CPU=avx1024: this CPU's levels are scalar"), "{error}");
    }

    /// All other tests at each lower level, in a process of its own as a process reads the level once.
    #[test]
    fn at_lower_levels() {
        if std::env::var_os(CpuLevel::VARIABLE).is_some() {
            return;
        }
        for level in CpuLevel::available().into_iter().filter(|lower| *lower < level()) {
            let tests = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--skip", "at_lower_levels"])
                .env(CpuLevel::VARIABLE, level.to_string())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&tests.stdout);
            assert!(tests.status.success() && said.contains(" passed"), "{level}:\n{said}");
        }
    }
}
