//! The kind of CPU that a result is of, its vendor and generation: ratios of different kinds do not
//! compare. Nor do those of CPUs of one kind that differ in caches or in flags of half precision, which tell
//! CPUs apart whose model a hypervisor hides.

use std::fmt;
use std::fs;
use std::path::Path;

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
    /// KiB of the first core's caches of level 2 and 3, where Linux says them.
    l2_kib: Option<u64>,
    l3_kib: Option<u64>,
    /// Those of [`HALF_PRECISION`] that it has, in this order, where Linux says x86's flags.
    half_precision: Option<Vec<String>>,
}

/// Flags of x86 for products in half precision.
const HALF_PRECISION: [&str; 3] = ["avx512_bf16", "amx_bf16", "avx512_fp16"];

impl Cpu {
    /// That of this machine; at which level ours runs, it says when it does.
    pub(super) fn here() -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::read(&cpuinfo, &caches(), cores)
    }

    /// That of a `/proc/cpuinfo` and of [`caches`].
    fn read(cpuinfo: &str, caches: &str, cores: usize) -> Self {
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
        let half_precision = field("flags").map(|flags| {
            let has = |name: &&str| flags.split_whitespace().any(|flag| flag == *name);
            HALF_PRECISION.into_iter().filter(has).map(String::from).collect()
        });
        Self {
            vendor: vendor.into(),
            family,
            model,
            generation,
            cores,
            level: None,
            l2_kib: cache_kib(caches, "2"),
            l3_kib: cache_kib(caches, "3"),
            half_precision,
        }
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
        let half_precision = cpu["half_precision"]
            .as_array()
            .map(|flags| flags.iter().filter_map(|flag| flag.as_str().map(String::from)).collect());
        Some(Self {
            vendor: text("vendor")?,
            family: number("family")?.try_into().ok()?,
            model: number("model")?.try_into().ok()?,
            generation: text("generation")?,
            cores: number("cores")?.try_into().ok()?,
            level: text("level"),
            l2_kib: number("l2_kib"),
            l3_kib: number("l3_kib"),
            half_precision,
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
            "l2_kib": self.l2_kib,
            "l3_kib": self.l3_kib,
            "half_precision": self.half_precision,
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

    /// Whether rows of the two stand in one column. Caches and flags count where both say them.
    pub(super) fn compares_with(&self, other: &Self) -> bool {
        let of = |cpu: &Self| (cpu.kind(), cpu.cores, cpu.level.clone());
        of(self) == of(other)
            && agree(self.l2_kib, other.l2_kib)
            && agree(self.l3_kib, other.l3_kib)
            && agree(self.half_precision.as_ref(), other.half_precision.as_ref())
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} cores", self.kind(), self.cores)?;
        self.level.iter().try_for_each(|level| write!(f, ", {level}"))?;
        for (name, kib) in [("L2", self.l2_kib), ("L3", self.l3_kib)] {
            if let Some(kib) = kib {
                write!(f, ", {name} {} MiB", kib as f64 / 1024.0)?;
            }
        }
        self.half_precision.iter().flatten().try_for_each(|flag| write!(f, ", {flag}"))
    }
}

/// Whether two are equal, if there are two.
fn agree<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
    a.zip(b).is_none_or(|(a, b)| a == b)
}

/// A line `LEVEL SIZE` for each cache of the first core, as in `2 2048K`; none but on Linux.
fn caches() -> String {
    let Ok(caches) = fs::read_dir("/sys/devices/system/cpu/cpu0/cache") else {
        return String::new();
    };
    let line = |cache: &Path| {
        let text = |file: &str| fs::read_to_string(cache.join(file)).ok();
        Some(format!("{} {}\n", text("level")?.trim(), text("size")?.trim()))
    };
    caches.filter_map(|cache| line(&cache.ok()?.path())).collect()
}

/// The KiB of the cache of a level in [`caches`].
fn cache_kib(caches: &str, level: &str) -> Option<u64> {
    caches.lines().find_map(|line| {
        let size = line.strip_prefix(level)?.strip_prefix(' ')?;
        size.strip_suffix('K')?.parse().ok()
    })
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

    /// Of a hypervisor that says another model.
    const MASKED: &str = "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 167\n";

    pub(in crate::bench) fn cpu(cpuinfo: &str, cores: usize) -> Cpu {
        Cpu::read(cpuinfo, "", cores)
    }

    /// Two cores behind a hypervisor, with 2 MiB of second and some MiB of third cache, and flags.
    pub(in crate::bench) fn masked(l3_mib: u32, flags: &str) -> Cpu {
        let caches = format!("3 {}K\n1 48K\n1 64K\n2 2048K\n", 1024 * l3_mib);
        Cpu::read(&format!("{MASKED}flags\t\t: {flags}\n"), &caches, 2)
    }

    /// The same where neither was asked for.
    pub(in crate::bench) fn masked_before() -> Cpu {
        cpu(MASKED, 2)
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
        let here = masked(480, "fpu avx512_fp16 amx_bf16 amx_tile");
        let row = json!({ "cpu": here.row() });
        assert_eq!((&row["cpu"]["l2_kib"], &row["cpu"]["l3_kib"]), (&json!(2048), &json!(491_520)));
        assert_eq!(row["cpu"]["half_precision"], json!(["amx_bf16", "avx512_fp16"]));
        assert_eq!(Cpu::of_row(&row), Some(here));
        let before = json!({
            "vendor": "Intel", "family": 6, "model": 167, "generation": "family 6 model 167",
            "level": null, "cores": 2,
        });
        assert_eq!(Cpu::of_row(&json!({ "cpu": before })), Some(masked_before()));
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

    #[test]
    fn caches_and_flags_tell_masked_cpus_apart() {
        let here = masked(480, "avx512_bf16 amx_bf16 avx512_fp16");
        assert_eq!(
            here.at(Some("avx512")).to_string(),
            "Intel family 6 model 167, 2 cores, avx512, L2 2 MiB, L3 480 MiB, avx512_bf16, amx_bf16, avx512_fp16"
        );
        // A flag that others begin with, and one that tells nothing.
        let none = masked(480, "fpu avx512_bf16x amx_tile");
        assert_eq!(none.to_string(), "Intel family 6 model 167, 2 cores, L2 2 MiB, L3 480 MiB");
        assert!(here.compares_with(&masked(480, "fpu avx512_fp16 amx_bf16 avx512_bf16")));
        for other in [masked(320, "avx512_bf16 amx_bf16 avx512_fp16"), none] {
            assert!(!here.compares_with(&other) && !other.compares_with(&here), "{other}");
            assert!(masked_before().compares_with(&other) && other.compares_with(&masked_before()));
        }
        let sized = |caches: &str| Cpu::read(MASKED, caches, 2);
        assert!(!sized("2 2048K\n").compares_with(&sized("2 1280K\n")));
        assert_eq!(
            sized("2 1280K\n").to_string(),
            "Intel family 6 model 167, 2 cores, L2 1.25 MiB"
        );
    }
}
