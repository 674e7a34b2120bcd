//! Where a stage computes: the CPU, or one CUDA device under a hard cap (ARCHITECTURE.md, "Budgets").

#[cfg(feature = "cuda")]
mod cuda;
pub mod elementary;
pub mod failure;
pub mod kernels;
#[cfg(feature = "cuda")]
mod pinned;
pub mod random;
pub mod staging;
pub mod steps;
pub mod threads;
pub mod transfer;

use candle_core::{DType, Device};
use config::{ComputeConfig, MediaProducts};
use protocol::error::{ErrorKind, JobError};

use kernels::check::Check;
use steps::Steps;

/// Device of a stage, and the types that it computes in.
#[derive(Clone, Debug)]
pub struct Compute {
    /// The device; every stage of a process that names the same one shares its memory pool.
    pub device: Device,
    /// The type of activations, and of weights that are not quantized.
    pub dtype: DType,
    /// How rows of frames, sound and their tokens are multiplied.
    pub media_products: MediaProducts,
}

impl Compute {
    /// Opens the configured device. `budget_bytes` becomes a hard cap on a CUDA device: what the stage allocates beyond
    /// it is refused by the driver, whoever else is on the GPU. On the CPU it is what admission checks against.
    ///
    /// # Errors
    /// `bad_request` for a device that this build or this machine does not have; `does_not_fit` for a budget that not
    /// even the device's context fits.
    pub fn open(config: &ComputeConfig, budget_bytes: Option<u64>) -> Result<Self, JobError> {
        let dtype = transfer::candle_dtype(config.dtype.wire());
        let mut steps = Steps::default();
        let device = match config.cuda_ordinal() {
            None => Device::Cpu,
            Some(ordinal) => open_cuda(ordinal, config, budget_bytes)?,
        };
        steps.ended("device opened");
        let compute = Compute { device, dtype, media_products: config.media_products };
        compute.refuse_if_wrong(kernels::check::check)?;
        steps.ended("kernels checked");
        Ok(compute)
    }

    /// Compares kernels with their CPU twins on this very GPU, before anyone relies on them: built for another
    /// generation of GPUs, kernels have been seen to return garbage without an error. On the CPU there is nothing to
    /// compare.
    ///
    /// # Errors
    /// `internal`, naming every family of kernels that is wrong, and by how much.
    pub fn refuse_if_wrong(&self, check: impl FnOnce(&Device, DType) -> Vec<Check>) -> Result<(), JobError> {
        if self.device.is_cpu() {
            return Ok(());
        }
        let wrong: Vec<String> =
            check(&self.device, self.dtype).iter().filter(|c| !c.ok).map(Check::to_string).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        let message = format!("kernel self-test failed on this GPU: {}", wrong.join("; "));
        Err(JobError::new(ErrorKind::Internal, message)
            .hint("build for this GPU's generation, or set compute.device = \"cpu\""))
    }
}

/// Gives device memory that is reserved but unused back to the GPU, for its neighbours. The CPU has none.
pub fn trim() {
    #[cfg(feature = "cuda")]
    cuda::trim();
}

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize, config: &ComputeConfig, budget_bytes: Option<u64>) -> Result<Device, JobError> {
    use protocol::bytes::Bytes;

    let pool_bytes = match budget_bytes {
        None => None,
        Some(budget) => match budget.checked_sub(config.context_bytes) {
            Some(left) if left > 0 => Some(left),
            _ => {
                let message = format!(
                    "GPU not opened: the stage's budget of {} does not even hold the device's context of {}",
                    Bytes(budget),
                    Bytes(config.context_bytes)
                );
                return Err(JobError::new(ErrorKind::DoesNotFit, message).hint("raise the stage's budget"));
            }
        },
    };
    cuda::open(ordinal, pool_bytes, config.context_bytes).map_err(|e| {
        JobError::new(ErrorKind::BadRequest, format!("GPU not opened: compute.device = \"cuda:{ordinal}\": {e}"))
            .hint("look at `nvidia-smi`, or set compute.device = \"cpu\"")
    })
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(ordinal: usize, _: &ComputeConfig, _: Option<u64>) -> Result<Device, JobError> {
    let message =
        format!("GPU not opened: compute.device = \"cuda:{ordinal}\", but this program was built without CUDA");
    Err(JobError::new(ErrorKind::BadRequest, message)
        .hint("build with `--features cuda`, or set compute.device = \"cpu\""))
}
