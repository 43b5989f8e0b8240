//! The kind of CPU that a result is of, its vendor and generation: ratios of different kinds do not
//! compare.

use std::fmt;
use std::fs;

use serde_json::{Value, json};

/// The CPU of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cpu {
    vendor: String,
    /// x86's family and model; on ARM the implementer and the part.
    family: u32,
    model: u32,
    generation: String,
    cores: usize,
    /// The vector instructions that ours ran with, where these are known.
    level: Option<String>,
}

impl Cpu {
    /// That of this machine; at which level ours runs, it says when it does.
    pub(super) fn here() -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self::read(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), cores)
    }

    /// That of a `/proc/cpuinfo`.
    fn read(cpuinfo: &str, cores: usize) -> Self {
        let field = |name: &str| {
            let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            fields.find_map(|(key, value)| (key.trim() == name).then(|| value.trim()))
        };
        let number = |name: &str| {
            let text = field(name)?;
            match text.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16).ok(),
                None => text.parse().ok(),
            }
        };
        let (vendor, family, model) = match field("CPU implementer") {
            Some(_) => ("ARM", number("CPU implementer"), number("CPU part")),
            None => {
                let vendor = match field("vendor_id").unwrap_or("unknown") {
                    "AuthenticAMD" => "AMD",
                    "GenuineIntel" => "Intel",
                    other => other,
                };
                (vendor, number("cpu family"), number("model"))
            }
        };
        let (family, model) = (family.unwrap_or(0), model.unwrap_or(0));
        let generation = match generation(vendor, family, model) {
            Some(known) => known.into(),
            None => format!("family {family} model {model}"),
        };
        Self { vendor: vendor.into(), family, model, generation, cores, level: None }
    }

    /// The same at a level.
    pub(super) fn at(&self, level: Option<&str>) -> Self {
        Self { level: level.map(Into::into), ..self.clone() }
    }

    /// That of a row of results, if it says so.
    pub(super) fn of_row(row: &Value) -> Option<Self> {
        let cpu = &row["cpu"];
        let text = |field: &str| cpu[field].as_str().map(String::from);
        let number = |field: &str| cpu[field].as_u64();
        Some(Self {
            vendor: text("vendor")?,
            family: number("family")?.try_into().ok()?,
            model: number("model")?.try_into().ok()?,
            generation: text("generation")?,
            cores: number("cores")?.try_into().ok()?,
            level: text("level"),
        })
    }

    /// As a row of results has it.
    pub(super) fn row(&self) -> Value {
        json!({
            "vendor": self.vendor,
            "family": self.family,
            "model": self.model,
            "generation": self.generation,
            "level": self.level,
            "cores": self.cores,
        })
    }

    /// What results are kept apart by, as in `AMD Zen 4`.
    pub(super) fn kind(&self) -> String {
        format!("{} {}", self.vendor, self.generation)
    }

    /// The kind in the name of a file, as in `amd-zen-4`.
    pub(super) fn slug(&self) -> String {
        let kind = self.kind().to_lowercase();
        let words =
            kind.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-")
    }

    /// Whether rows of the two stand in one column.
    pub(super) fn compares_with(&self, other: &Self) -> bool {
        let of = |cpu: &Self| (cpu.kind(), cpu.cores, cpu.level.clone());
        of(self) == of(other)
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} cores", self.kind(), self.cores)?;
        self.level.iter().try_for_each(|level| write!(f, ", {level}"))
    }
}

/// AMD's as in Linux' `arch/x86/kernel/cpu/amd.c`, Intel's as in its `intel-family.h`, ARM's parts as in
/// its `cputype.h`: those that servers have.
fn generation(vendor: &str, family: u32, model: u32) -> Option<&'static str> {
    Some(match (vendor, family, model) {
        ("AMD", 23, 0x00..=0x2f | 0x50..=0x5f) => "Zen",
        ("AMD", 23, _) => "Zen 2",
        ("AMD", 25, 0x00..=0x0f | 0x20..=0x5f) => "Zen 3",
        ("AMD", 25, 0x10..=0x1f | 0x60..=0xaf) => "Zen 4",
        ("AMD", 26, 0x00..=0x2f | 0x40..=0x4f | 0x60..=0x7f) => "Zen 5",
        ("Intel", 6, 0x3f) => "Haswell",
        ("Intel", 6, 0x4f | 0x56) => "Broadwell",
        ("Intel", 6, 0x55) => "Skylake or Cascade Lake",
        ("Intel", 6, 0x6a | 0x6c) => "Ice Lake",
        ("Intel", 6, 0x8f) => "Sapphire Rapids",
        ("Intel", 6, 0xcf) => "Emerald Rapids",
        ("Intel", 6, 0xad | 0xae) => "Granite Rapids",
        ("ARM", 0x41, 0xd0c) => "Neoverse N1",
        ("ARM", 0x41, 0xd40) => "Neoverse V1",
        ("ARM", 0x41, 0xd49) => "Neoverse N2",
        ("ARM", 0x41, 0xd4f) => "Neoverse V2",
        _ => return None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) const ZEN_4: &str = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\n\
         model\t\t: 17\nmodel name\t: AMD EPYC\n\nvendor_id\t: AuthenticAMD\n";

    pub(in crate::bench) const SAPPHIRE_RAPIDS: &str = "vendor_id\t: GenuineIntel\n\
         cpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R) Platinum 8481C\n";

    pub(in crate::bench) fn cpu(cpuinfo: &str, cores: usize) -> Cpu {
        Cpu::read(cpuinfo, cores)
    }

    #[test]
    fn kinds_are_read() {
        let x86 = |vendor: &str, family: u32, model: u32| {
            cpu(&format!("vendor_id : {vendor}\ncpu family : {family}\nmodel : {model}\n"), 1)
                .kind()
        };
        assert_eq!(cpu(ZEN_4, 2).kind(), "AMD Zen 4");
        assert_eq!(cpu(ZEN_4, 2).slug(), "amd-zen-4");
        assert_eq!(cpu(SAPPHIRE_RAPIDS, 4).kind(), "Intel Sapphire Rapids");
        assert_eq!(x86("AuthenticAMD", 23, 1), "AMD Zen");
        assert_eq!(x86("AuthenticAMD", 23, 49), "AMD Zen 2");
        assert_eq!(x86("AuthenticAMD", 25, 1), "AMD Zen 3");
        assert_eq!(x86("AuthenticAMD", 25, 0x61), "AMD Zen 4");
        assert_eq!(x86("AuthenticAMD", 26, 2), "AMD Zen 5");
        assert_eq!(x86("GenuineIntel", 6, 0x55), "Intel Skylake or Cascade Lake");
        assert_eq!(x86("GenuineIntel", 6, 0x6a), "Intel Ice Lake");
        assert_eq!(x86("GenuineIntel", 6, 154), "Intel family 6 model 154");
        assert_eq!(x86("HygonGenuine", 24, 1), "HygonGenuine family 24 model 1");
        assert_eq!(cpu("", 1).kind(), "unknown family 0 model 0");
        let arm = |part: &str| cpu(&format!("CPU implementer\t: 0x41\nCPU part\t: {part}\n"), 8);
        assert_eq!(arm("0xd40").to_string(), "ARM Neoverse V1, 8 cores");
        assert_eq!(arm("0xd07").slug(), "arm-family-65-model-3335");
    }

    #[test]
    fn a_row_says_its_cpu() {
        let here = cpu(ZEN_4, 2).at(Some("avx512"));
        let row = json!({ "cpu": here.row() });
        assert_eq!(row["cpu"]["level"], "avx512");
        assert_eq!(Cpu::of_row(&row), Some(here));
        assert_eq!(Cpu::of_row(&json!({ "machine": "AMD EPYC, 2 cores" })), None);
    }

    #[test]
    fn other_kinds_core_counts_and_levels_do_not_compare() {
        let here = cpu(ZEN_4, 2);
        let genoa_again = "vendor_id : AuthenticAMD\ncpu family : 25\nmodel : 24\n";
        assert!(here.compares_with(&cpu(genoa_again, 2)));
        assert!(!here.compares_with(&cpu(ZEN_4, 4)));
        assert!(!here.compares_with(&cpu(SAPPHIRE_RAPIDS, 2)));
        let [best, forced] = ["avx512", "avx2"].map(|level| here.at(Some(level)));
        assert!(best.compares_with(&best) && !best.compares_with(&forced));
        assert_eq!(forced.to_string(), "AMD Zen 4, 2 cores, avx2");
    }
}
