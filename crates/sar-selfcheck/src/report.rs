//! What a self-check found.

use std::fmt;

use crate::probe::{Precision, Probe};

/// A device that agrees with the host.
#[derive(Clone, Debug)]
pub struct Report {
    /// The backend, by its own name.
    pub device: String,
    /// What products of f32 tensors are computed in.
    pub f32_products: Precision,
    /// Every comparison that was made.
    pub probes: Vec<Probe>,
}

/// A device whose numbers cannot be trusted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "device {device}: {}; update its driver, build without fusion or autotune, or use another device",
    listed(failed)
)]
pub struct SelfCheckError {
    /// The backend, by its own name.
    pub device: String,
    /// Every comparison that failed.
    pub failed: Vec<Probe>,
}

impl Report {
    pub(crate) fn new(device: String, probes: Vec<Probe>) -> Result<Self, SelfCheckError> {
        let failed: Vec<Probe> = probes.iter().filter(|probe| !probe.holds()).cloned().collect();
        if failed.is_empty() {
            Ok(Self { device, f32_products: Precision::of(&probes), probes })
        } else {
            Err(SelfCheckError { device, failed })
        }
    }

    /// The largest error of a product, as a share of its largest value.
    pub fn largest_product_error(&self) -> f64 {
        self.probes.iter().filter_map(Probe::product_error).fold(0.0, f64::max)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, error) = (self.probes.len(), self.largest_product_error());
        write!(f, "device {}: {n} probes agree with the host; ", self.device)?;
        match self.f32_products {
            Precision::Full => write!(f, "products of f32 are within {error:.1e}"),
            Precision::Reduced => write!(
                f,
                "products of f32 have reduced precision, as in TF32: they are within {error:.1e} only"
            ),
        }
    }
}

fn listed(probes: &[Probe]) -> String {
    probes.iter().map(Probe::to_string).collect::<Vec<_>>().join("; ")
}
