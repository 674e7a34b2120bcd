//! Matmuls through cuBLASLt, for what plain cuBLAS, which candle uses, does not have: a bias and an activation in the same
//! pass over the outcome, and rows of E4M3.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda::cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t as Attribute, cudaDataType};
use candle_core::cuda::cudarc::driver::{CudaContext, DevicePtr};
use candle_core::{CudaDevice, DType, Result};

use super::workspace::WORKSPACE_BYTES;

/// Shapes whose algorithms are remembered; passes of a prefill come in many lengths.
const REMEMBERED: usize = 1024;

/// Operands of a matmul, and what becomes of its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Operands and outcome of one type, `x Wᵀ`, rounded once.
    Plain(DType),
    /// The same and a bias.
    Bias(DType),
    /// The same and a bias, through `gelu_tanh`.
    BiasGeluTanh(DType),
    /// E4M3 operands, a bf16 outcome without any scale.
    E4m3,
    /// E4M3 operands with a scale per row, a bf16 outcome. Only for Hopper.
    E4m3Scaled,
    /// The same, and a bf16 bias.
    E4m3ScaledBias,
}

impl Kind {
    fn types(self) -> Result<(cudaDataType, cudaDataType)> {
        match self {
            Kind::Plain(dtype) | Kind::Bias(dtype) | Kind::BiasGeluTanh(dtype) => {
                let one = match dtype {
                    DType::BF16 => cudaDataType::CUDA_R_16BF,
                    DType::F16 => cudaDataType::CUDA_R_16F,
                    DType::F32 => cudaDataType::CUDA_R_32F,
                    other => candle_core::bail!("matmul: no kernel for {other:?}"),
                };
                Ok((one, one))
            }
            Kind::E4m3 | Kind::E4m3Scaled | Kind::E4m3ScaledBias => {
                Ok((cudaDataType::CUDA_R_8F_E4M3, cudaDataType::CUDA_R_16BF))
            }
        }
    }
}

/// Sizes of a matmul: `y[rows, outputs] = x[rows, inputs] W[outputs, inputs]ᵀ`, x and W contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Rows of x and y.
    pub rows: usize,
    /// Rows of W.
    pub outputs: usize,
    /// Columns of x and W.
    pub inputs: usize,
    /// From a row of y to the next: its outputs may be some columns of a wider matrix.
    pub stride: usize,
}

impl Sizes {
    /// With an outcome that is contiguous, too.
    pub fn new(rows: usize, outputs: usize, inputs: usize) -> Self {
        Sizes { rows, outputs, inputs, stride: outputs }
    }
}

/// Addresses of a matmul's operands in the GPU's memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operands {
    /// `[rows, inputs]`.
    pub x: u64,
    /// `[outputs, inputs]`.
    pub weight: u64,
    /// `[rows, outputs]`.
    pub y: u64,
    /// `[outputs]`, of the operands' type.
    pub bias: u64,
    /// f32 `[rows]`.
    pub x_scales: u64,
    /// f32 `[outputs]`.
    pub weight_scales: u64,
}

/// cuBLASLt's objects for one context. They are never given back: a process has one context, and keeps it.
struct Library {
    context: *const CudaContext,
    handle: sys::cublasLtHandle_t,
    plans: HashMap<(Kind, Sizes), Option<Plan>>,
}

// SAFETY: the address is compared and never followed; the handle may be used by one thread at a time, which the mutex sees to.
unsafe impl Send for Library {}

static LIBRARIES: Mutex<Vec<Library>> = Mutex::new(Vec::new());

/// Algorithm and descriptions of one matmul.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// The weight's, the rows', the outcome's.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
}

impl Plan {
    /// None where the library has no way on this GPU.
    fn new(handle: sys::cublasLtHandle_t, kind: Kind, sizes: Sizes) -> Result<Option<Self>> {
        let (input, output) = kind.types()?;
        let (rows, outputs, inputs) = (sizes.rows as u64, sizes.outputs as u64, sizes.inputs as u64);
        let single = cudaDataType::CUDA_R_32F;
        let description = told(result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single))?;
        // Matrices are columns to the library: y's columns are its rows here, W is transposed and x is not.
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, cublasOperation_t::CUBLAS_OP_T)?;
        match kind {
            Kind::Plain(_) => {}
            Kind::Bias(_) => epilogue(description, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?,
            Kind::BiasGeluTanh(_) => epilogue(description, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_BIAS)?,
            Kind::E4m3 => fast(description)?,
            Kind::E4m3Scaled | Kind::E4m3ScaledBias => {
                fast(description)?;
                if kind == Kind::E4m3ScaledBias {
                    epilogue(description, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
                    set(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, cudaDataType::CUDA_R_16BF)?;
                }
                let by_row = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
                set(description, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, by_row)?;
                set(description, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, by_row)?;
            }
        }
        let layouts = [
            told(result::create_matrix_layout(input, inputs, outputs, inputs as i64))?,
            told(result::create_matrix_layout(input, inputs, rows, inputs as i64))?,
            told(result::create_matrix_layout(output, outputs, rows, sizes.stride as i64))?,
        ];
        let mut plan =
            Plan { description, layouts, algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] }, workspace_bytes: 0 };
        // An algorithm may depend on whether there are pointers, not on where they lead.
        let some = 256;
        plan.point(kind, Operands { bias: some, x_scales: some, weight_scales: some, ..Operands::default() })?;
        let preference = told(result::create_matmul_pref())?;
        let most = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = WORKSPACE_BYTES;
        let [w, x, y] = plan.layouts;
        // SAFETY: all of these were just made and live; the library reads the workspace's size at once.
        let found = unsafe {
            told(result::set_matmul_pref_attribute(preference, most, (&raw const bytes).cast(), size_of_val(&bytes)))?;
            let found = result::get_matmul_algo_heuristic(handle, plan.description, w, x, y, y, preference);
            told(result::destroy_matmul_pref(preference))?;
            found
        };
        match found {
            Ok(found) => {
                plan.algorithm = found.algo;
                plan.workspace_bytes = found.workspaceSize;
                Ok(Some(plan))
            }
            Err(_) => Ok(None),
        }
    }

    /// Tells the description where a bias and scales are.
    fn point(&self, kind: Kind, operands: Operands) -> Result<()> {
        if matches!(kind, Kind::Bias(_) | Kind::BiasGeluTanh(_) | Kind::E4m3ScaledBias) {
            set(self.description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias)?;
        }
        if matches!(kind, Kind::E4m3Scaled | Kind::E4m3ScaledBias) {
            set(self.description, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, operands.weight_scales)?;
            set(self.description, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, operands.x_scales)?;
        }
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once. What the library says to it changes nothing.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

fn told<T>(outcome: std::result::Result<T, CublasError>) -> Result<T> {
    outcome.map_err(|e| candle_core::Error::Msg(format!("cuBLASLt: {e}")).bt())
}

fn set<T>(description: sys::cublasLtMatmulDesc_t, attribute: Attribute, value: T) -> Result<()> {
    let (from, bytes) = ((&raw const value).cast(), size_of::<T>());
    // SAFETY: the description lives; the library copies as many bytes as the attribute has, which are the value's.
    told(unsafe { result::set_matmul_desc_attribute(description, attribute, from, bytes) })
}

fn epilogue(description: sys::cublasLtMatmulDesc_t, epilogue: sys::cublasLtEpilogue_t) -> Result<()> {
    set(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)
}

/// Lets Hopper sum E4M3 matmuls with 14 bits for a while before it adds them to f32: a tenth faster, at an error (3e-3 of
/// the outcome) far below that of the operands.
fn fast(description: sys::cublasLtMatmulDesc_t) -> Result<()> {
    set(description, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1i8)
}

/// Queues a matmul on a device's stream; false where the library has no algorithm for it on this GPU.
///
/// # Safety
/// The operands are as `kind` and `sizes` say, on this device, on multiples of 256 bytes (which the library takes for
/// granted), and those that the kind needs are there.
///
/// # Errors
/// The library's; no memory for its workspace.
pub unsafe fn matmul(device: &CudaDevice, kind: Kind, sizes: Sizes, operands: Operands) -> Result<bool> {
    let stream = device.cuda_stream();
    let context: &Arc<CudaContext> = stream.context();
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let at = match libraries.iter().position(|l| l.context == Arc::as_ptr(context)) {
        Some(at) => at,
        None => {
            context.bind_to_thread().w()?;
            let handle = told(result::create_handle())?;
            // The handle keeps the context's address taken.
            libraries.push(Library { context: Arc::into_raw(context.clone()), handle, plans: HashMap::new() });
            libraries.len() - 1
        }
    };
    let Library { handle, plans, .. } = &mut libraries[at];
    if plans.len() >= REMEMBERED && !plans.contains_key(&(kind, sizes)) {
        plans.clear();
    }
    let plan = match plans.entry((kind, sizes)) {
        std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
        std::collections::hash_map::Entry::Vacant(new) => new.insert(Plan::new(*handle, kind, sizes)?),
    };
    let Some(plan) = plan else { return Ok(false) };
    plan.point(kind, operands)?;
    // SAFETY: scratch, which needs no beginning.
    let workspace = unsafe { device.alloc::<u8>(plan.workspace_bytes.max(1)) }?;
    let scratch = workspace.device_ptr(&stream).0;
    let (one, zero) = (1f32, 0f32);
    let [w, x, y] = plan.layouts;
    // SAFETY: the caller's promise. The workspace is freed in the stream's order, after the matmul.
    let launched = unsafe {
        result::matmul(
            *handle,
            plan.description,
            (&raw const one).cast(),
            (&raw const zero).cast(),
            operands.weight as *const c_void,
            w,
            operands.x as *const c_void,
            x,
            operands.y as *const c_void,
            y,
            operands.y as *mut c_void,
            y,
            &raw const plan.algorithm,
            scratch as *mut c_void,
            plan.workspace_bytes,
            stream.cu_stream().cast(),
        )
    };
    told(launched)?;
    Ok(true)
}
