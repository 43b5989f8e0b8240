//! `--device`: from a name to a burn backend.

use anyhow::{Result, bail};
#[cfg(any(feature = "flex", feature = "ndarray", feature = "wgpu", feature = "cuda"))]
use burn::backend::Autodiff;
use burn::tensor::backend::AutodiffBackend;

const KNOWN: [&str; 4] = ["flex", "ndarray", "wgpu", "cuda"];

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
}

impl DeviceArg {
    /// Runs a job on the device.
    pub(crate) fn run<J: Job>(&self, job: J) -> Result<J::Output> {
        let (name, index) = match self.device.split_once(':') {
            None => (self.device.as_str(), None),
            Some((name, index)) => match index.parse::<usize>() {
                Ok(index) => (name, Some(index)),
                Err(_) => bail!("--device {}: '{index}' is not an index", self.device),
            },
        };
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
                use burn_wgpu::WgpuDevice;
                let device = index.map_or(WgpuDevice::DefaultDevice, WgpuDevice::DiscreteGpu);
                job.run::<Autodiff<burn_wgpu::Wgpu>>(device, 1)
            }
            #[cfg(feature = "cuda")]
            "cuda" => {
                let device = burn_cuda::CudaDevice::new(index.unwrap_or(0));
                job.run::<Autodiff<burn_cuda::Cuda>>(device, 1)
            }
            _ if KNOWN.contains(&name) => bail!(
                "--device {name}: not compiled into this binary; build with \
                 `cargo build --release -p sar-cli --features {name}`"
            ),
            _ => bail!("--device {name}: unknown; flex, ndarray, wgpu[:i] and cuda[:i] are known"),
        }
    }
}
