//! Device, types and formats that the stages with a model compute in.

use serde::{Deserialize, Serialize};

use protocol::tensor::Dtype;

use crate::placement::Device;

/// Section `compute`: where vision, audio, fuse and llm compute, and in which types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// `cpu`, `cuda`, or `cuda:N` for the N-th GPU; `placement` says otherwise for single stages.
    pub device: String,
    /// Type of activations, and of weights that are not quantized: `f32`, `bf16`, `f16`.
    pub dtype: Precision,
    /// How rows of frames, sound and their tokens are multiplied: `dense`, in `dtype`, or `fp8`. Text never is in 8 bits.
    pub media_products: MediaProducts,
    /// What all stages together may take of the GPU (of each GPU that `placement.card_bytes` does not name), contexts included.
    /// The language model then has what the encoders beside it leave, and jobs that do not fit there are answered in phases.
    pub card_bytes: Option<u64>,
    /// What a CUDA context, its modules and cuBLAS hold outside the memory pool; part of every GPU stage's budget.
    pub context_bytes: u64,
}

impl Default for ComputeConfig {
    fn default() -> Self {
        ComputeConfig {
            device: "cpu".to_owned(),
            dtype: Precision::F32,
            media_products: MediaProducts::Dense,
            card_bytes: None,
            context_bytes: 640 << 20,
        }
    }
}

impl ComputeConfig {
    /// Ordinal of the CUDA device; none for the CPU.
    pub fn cuda_ordinal(&self) -> Option<usize> {
        match self.device.parse() {
            Ok(Device::Cuda(ordinal)) => Some(ordinal),
            Ok(Device::Cpu) | Err(_) => None,
        }
    }

    /// The device; of a text that names none, which no checked configuration has, the CPU.
    pub(crate) fn placed_on(&self) -> Device {
        self.cuda_ordinal().map_or(Device::Cpu, Device::Cuda)
    }
}

/// Type to compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision, the reference.
    F32,
    /// Brain float, 16 bits.
    Bf16,
    /// Half precision, what the official code computes in.
    F16,
}

impl Precision {
    /// The type's name on the wire.
    pub fn wire(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
            Precision::F16 => Dtype::F16,
        }
    }
}

/// Type of the matmuls over frames, sound and their tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediaProducts {
    /// In `compute.dtype`.
    Dense,
    /// In E4M3 with a scale per row, accumulated and handed on in `compute.dtype`: twice as fast on GPUs of sm_89 or
    /// newer, less exact (tests/BENCHMARKS.md).
    Fp8,
}

/// Format of the language model's linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// In `compute.dtype`, whichever that is.
    Dense,
    /// Brain float, which `compute.dtype` must be too.
    Bf16,
    /// Half precision, which `compute.dtype` must be too.
    F16,
    /// 8 bit: 8.5 bits a weight.
    Q8,
    /// 4 bit where it does not hurt: about 4.6 bits a weight.
    Q4,
}

/// Format of the keys and values of image and audio tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvPrecision {
    /// In `compute.dtype`: 16 bit on a GPU.
    #[serde(alias = "16")]
    Dense,
    /// 8 bit.
    Q8,
    /// 4 bit.
    Q4,
}
