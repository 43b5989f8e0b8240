//! All laws on burn's CUDA backend; needs a GPU.

use burn::backend::Autodiff;

sar_conformance::tests!(Autodiff<burn_cuda::Cuda>);
