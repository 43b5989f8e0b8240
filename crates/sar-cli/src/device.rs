//! `--device`: from a name to a burn backend that works.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use std::panic;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
#[cfg(any(feature = "flex", feature = "ndarray", feature = "wgpu", feature = "cuda"))]
use burn::backend::Autodiff;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::generation::shell_quote;

/// The CPU, for what needs no device: shapes, and numbers that others are compared with.
#[cfg(feature = "flex")]
pub(crate) type HostBackend = burn_flex::Flex;
#[cfg(all(feature = "ndarray", not(feature = "flex")))]
pub(crate) type HostBackend = burn_ndarray::NdArray<f32>;
#[cfg(not(any(feature = "flex", feature = "ndarray")))]
compile_error!("a backend is needed: turn on the feature flex, ndarray, wgpu or cuda");

const KNOWN: [&str; 4] = ["flex", "ndarray", "wgpu", "cuda"];

/// What numbers are computed with, as far as their rounding shows it: the backend, and of that with
/// hand-written operators the vector instructions.
pub(crate) fn arithmetic<B: Backend>(device: &B::Device) -> String {
    #[cfg(feature = "flex")]
    if serves::<B>() {
        let level = sar_kernels::CpuLevel::chosen().expect("asked for when the program starts");
        return format!("{}, {level}", B::name(device));
    }
    B::name(device)
}

/// Whether the backend is the one that has hand-written operators.
#[cfg(feature = "flex")]
pub(crate) fn serves<B: Backend>() -> bool {
    std::any::TypeId::of::<B>() == std::any::TypeId::of::<burn_flex::Flex>()
}

/// Work that runs on any backend.
pub(crate) trait Job {
    type Output;

    /// `workers` is how much of the work may run side by side: all cores of a CPU, where burn leaves
    /// many operations on one thread; 1 on a GPU.
    fn run<A: AutodiffBackend>(self, device: A::Device, workers: usize) -> Result<Self::Output>;
}

/// `--device`, shared by all verbs.
#[derive(clap::Args)]
pub(crate) struct DeviceArg {
    /// flex (the CPU), ndarray, wgpu or cuda, an index as in cuda:1; all but flex have to be compiled
    /// in.
    #[arg(long, value_name = "NAME[:i]", default_value = "flex")]
    device: String,
    /// Does not compare a GPU's arithmetic with the CPU's before it is used.
    #[arg(long)]
    skip_self_check: bool,
}

impl DeviceArg {
    /// What `--device` with this value is.
    pub(crate) fn named(device: String) -> Self {
        Self { device, skip_self_check: false }
    }

    /// The option that names the same device, for a command that is shown.
    pub(crate) fn command_line(&self) -> String {
        match self.device.as_str() {
            "flex" => String::new(),
            device => format!(" --device {}", shell_quote(device)),
        }
    }

    fn name_and_index(&self) -> Result<(&str, Option<usize>)> {
        match self.device.split_once(':') {
            None => Ok((self.device.as_str(), None)),
            Some((name, index)) => match index.parse::<u16>() {
                Ok(index) => Ok((name, Some(usize::from(index)))),
                Err(_) => bail!("--device {}: '{index}' is not an index", self.device),
            },
        }
    }

    /// The index of the GPU that NCCL is to use.
    #[cfg(feature = "nccl")]
    pub(crate) fn cuda_index(&self) -> Result<usize> {
        match self.name_and_index()? {
            ("cuda", index) => Ok(index.unwrap_or(0)),
            _ => bail!("--nccl: is for GPUs of NVIDIA; name them with --device cuda"),
        }
    }

    /// Runs a job on the device.
    pub(crate) fn run<J: Job>(&self, job: J) -> Result<J::Output> {
        let (name, index) = self.name_and_index()?;
        if index.is_some() && ["flex", "ndarray"].contains(&name) {
            bail!("--device {}: the CPU has no index, write '{name}'", self.device);
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match name {
            #[cfg(feature = "flex")]
            "flex" => job.run::<Autodiff<burn_flex::Flex>>(Default::default(), cores),
            #[cfg(feature = "ndarray")]
            "ndarray" => job.run::<Autodiff<burn_ndarray::NdArray<f32>>>(Default::default(), cores),
            #[cfg(feature = "wgpu")]
            "wgpu" => {
                use burn_wgpu::{Wgpu, WgpuDevice};
                let device = index.map_or(WgpuDevice::DefaultDevice, WgpuDevice::DiscreteGpu);
                let needs = "needs a GPU with a Vulkan, Metal or DirectX 12 driver (an index counts \
                             discrete GPUs); slowly, without a GPU: Debian's mesa-vulkan-drivers";
                self.ensure_works::<Wgpu>(&device, needs)?;
                self.ensure_right::<Autodiff<Wgpu>>(&device)?;
                job.run::<Autodiff<Wgpu>>(device, 1)
            }
            #[cfg(feature = "cuda")]
            "cuda" => {
                use burn_cuda::{Cuda, CudaDevice};
                let device = CudaDevice::new(index.unwrap_or(0));
                let needs = "needs an NVIDIA GPU with its driver, and the CUDA toolkit in \
                             /usr/local/cuda or where CUDA_PATH says";
                self.ensure_works::<Cuda>(&device, needs)?;
                self.ensure_right::<Autodiff<Cuda>>(&device)?;
                job.run::<Autodiff<Cuda>>(device, 1)
            }
            _ if KNOWN.contains(&name) => bail!(
                "--device {name}: not compiled into this binary; build with \
                 `cargo build --release -p sar-cli --features {name}`"
            ),
            _ => bail!("--device {name}: unknown; flex, ndarray, wgpu[:i] and cuda[:i] are known"),
        }
    }

    /// Lets the device add two numbers. burn has no fallible way to open a GPU: without a driver, a
    /// compiler or the device itself it panics, on this thread or on one of its own.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn ensure_works<B: Backend>(&self, device: &B::Device, needs: &str) -> Result<()> {
        let (sum, reason) = quietly(|| {
            panic::catch_unwind(panic::AssertUnwindSafe(|| {
                let sum = Tensor::<B, 1>::from_floats([1.0, 2.0], device) + 1.0;
                sum.into_data().convert::<f32>().into_vec::<f32>()
            }))
        });
        if matches!(&sum, Ok(Ok(sum)) if *sum == [2.0, 3.0]) {
            return Ok(());
        }
        let reason = reason.unwrap_or_else(|| format!("1 + 1 and 2 + 1 made {sum:?}"));
        bail!("--device {}: {needs}; it said: {}", self.device, one_line(&reason))
    }

    /// Compares the device's arithmetic with the host's: burn 0.21 has faults on GPUs that give wrong
    /// numbers without a word.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn ensure_right<A: AutodiffBackend>(&self, device: &A::Device) -> Result<()> {
        let host = Default::default();
        let said =
            self.trusts(|| sar_selfcheck::self_check::<A, Autodiff<HostBackend>>(device, &host))?;
        eprintln!("{said}");
        Ok(())
    }

    /// What there is to say of a device that may be used, after a check or without one.
    #[cfg(any(feature = "wgpu", feature = "cuda", test))]
    fn trusts(
        &self,
        check: impl FnOnce() -> Result<sar_selfcheck::Report, sar_selfcheck::SelfCheckError>,
    ) -> Result<String> {
        if self.skip_self_check {
            return Ok(format!(
                "--skip-self-check: the arithmetic of {} was not checked",
                self.device
            ));
        }
        match check() {
            Ok(report) => Ok(report.to_string()),
            Err(error) => bail!(
                "--device {}: computes wrong numbers: {error}; use another device or driver, build \
                 without the feature fusion, or go on all the same with --skip-self-check",
                self.device
            ),
        }
    }
}

/// What `work` makes, and the words of the first panic on any thread, none of which is printed; `work` catches its own.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> (T, Option<String>) {
    let first_panic = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&first_panic);
    let default_hook = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let reason = panic.payload_as_str().unwrap_or("no reason given").to_owned();
        seen.lock().expect("nothing panics with the lock").get_or_insert(reason);
    }));
    let made = work();
    panic::set_hook(default_hook);
    let reason = first_panic.lock().expect("nothing panics with the lock").take();
    (made, reason)
}

/// The first line that says something, at most 120 characters of it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn one_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    match line.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use sar_selfcheck::{Outcome, Precision, Probe, Report, SelfCheckError};

    use super::*;

    #[test]
    fn a_device_that_computes_wrong_numbers_is_refused_unless_nobody_asks() {
        let mut device = DeviceArg::named("cuda:1".into());
        let (name, outcome) = ("product".to_owned(), Outcome::Product { error: 0.5 });
        let probes = vec![Probe { name, outcome }];
        let wrong = SelfCheckError { device: "gpu".into(), failed: probes.clone() };
        let error = device.trusts(|| Err(wrong)).unwrap_err().to_string();
        for part in ["--device cuda:1: computes wrong numbers: ", "product", "--skip-self-check"] {
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        }
        let report = Report { device: "gpu".into(), f32_products: Precision::Full, probes };
        let said = device.trusts(|| Ok(report)).unwrap();
        assert!(said.starts_with("device gpu: 1 probes agree"), "{said}");
        device.skip_self_check = true;
        let said = device.trusts(|| panic!("it is not asked")).unwrap();
        assert_eq!(said, "--skip-self-check: the arithmetic of cuda:1 was not checked");
    }
}
