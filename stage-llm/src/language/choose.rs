//! Logits from the output of the head, and the largest of them, on the device: a greedy step then never waits for the
//! host.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

/// Result of [`first_largest`] where a logit is not a number.
pub const NO_TOKEN: u32 = u32::MAX;

/// Logits in f32 of the head's output `z`: `cap * tanh(z / cap)`, with the reference's rounding to z's type after each
/// of the three steps (MODEL.md 7); without a cap, z.
///
/// # Errors
/// Errors of the device.
pub fn soft_cap(z: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    if z.device().is_cuda() {
        return z.contiguous()?.apply_op1_no_bwd(&SoftCap(cap.unwrap_or(0.0) as f32));
    }
    let wide = z.to_dtype(DType::F32)?;
    let Some(cap) = cap else { return Ok(wide) };
    let rounded = |x: Tensor| x.to_dtype(z.dtype())?.to_dtype(DType::F32);
    let ratio = rounded((wide / cap)?)?;
    rounded((rounded(ratio.tanh()?)? * cap)?)
}

/// Index of the largest of the logits `[vocabulary]` in f32, the first one of equals (MODEL.md 7), as `[1]` in u32;
/// [`NO_TOKEN`] if one is not a number. Of the logits `[n, vocabulary]` of several texts, one of each row: `[n]`.
///
/// # Errors
/// No logits; errors of the device.
pub fn first_largest(logits: &Tensor) -> Result<Tensor> {
    if logits.dtype() != DType::F32 || !matches!(logits.dims().len(), 1 | 2) || logits.elem_count() == 0 {
        candle_core::bail!(
            "choice of a token refused: logits must be a vector in f32, or rows of them, not {:?} {:?}",
            logits.dtype(),
            logits.dims()
        );
    }
    logits.contiguous()?.apply_op1_no_bwd(&FirstLargest)
}

/// Rows of logits, and the width of one.
fn rows_of(layout: &Layout) -> Result<(usize, usize)> {
    let dims = layout.shape().dims();
    match dims {
        [width] => Ok((1, *width)),
        [rows, width] => Ok((*rows, *width)),
        _ => candle_core::bail!("choice of a token refused: logits of {dims:?}"),
    }
}

/// [`first_largest`] of logits on the host.
pub fn first_largest_of(logits: &[f32]) -> u32 {
    let mut best: Option<(usize, f32)> = None;
    for (i, &z) in logits.iter().enumerate() {
        if z.is_nan() {
            return NO_TOKEN;
        }
        if best.is_none_or(|(_, top)| z > top) {
            best = Some((i, z));
        }
    }
    best.map_or(NO_TOKEN, |(i, _)| i as u32)
}

#[cfg(feature = "cuda")]
static CHOOSE: compute::kernels::cuda::Kernels =
    compute::kernels::cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/choose.fatbin")));

/// Soft cap as a kernel takes it; 0 for none.
struct SoftCap(#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the kernel alone reads it"))] f32);

impl CustomOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft_cap"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("soft cap is computed step by step on the CPU. This is a bug.")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, z: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        use compute::kernels::cuda::{Arg, allocate, grid, pointer, start, suffix};
        let shape = layout.shape().clone();
        let out = allocate(&z.device, &shape, DType::F32)?;
        let n = shape.elem_count();
        let arguments = [pointer(z, layout)?, start(&out)?, n.into(), Arg::F32(self.0)];
        let name = format!("soft_cap_{}", suffix(z.dtype())?);
        // SAFETY: the arguments are the kernel's as choose.cu declares them, both of n elements.
        unsafe { CHOOSE.launch(&z.device, &name, grid((n.div_ceil(256), 1, 1), 256, 0), &arguments) }?;
        Ok((out, shape))
    }
}

struct FirstLargest;

impl CustomOp1 for FirstLargest {
    fn name(&self) -> &'static str {
        "first_largest"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((first, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("choice of a token refused: logits are not contiguous")
        };
        let (rows, width) = rows_of(layout)?;
        let best = logits.as_slice::<f32>()?[first..end].chunks_exact(width).map(first_largest_of).collect();
        Ok((CpuStorage::U32(best), rows.into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        logits: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use compute::kernels::cuda::{allocate, grid, pointer, start};
        let (rows, width) = rows_of(layout)?;
        let shape = Shape::from(rows);
        let out = allocate(&logits.device, &shape, DType::U32)?;
        let arguments = [pointer(logits, layout)?, start(&out)?, width.into()];
        // SAFETY: the arguments are the kernel's as choose.cu declares them, a block for each row.
        unsafe { CHOOSE.launch(&logits.device, "first_largest", grid((rows, 1, 1), 1024, 0), &arguments) }?;
        Ok((out, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_largest_is_the_first_of_equals_and_none_where_one_is_no_number() -> Result<()> {
        let of = |values: &[f32]| first_largest(&Tensor::new(values, &Device::Cpu)?)?.to_vec1::<u32>();
        assert_eq!(of(&[1.0, 3.0, -2.0, 3.0])?, [1]);
        assert_eq!(of(&[f32::NEG_INFINITY; 3])?, [0]);
        assert_eq!(of(&[0.0, f32::NAN, 9.0])?, [NO_TOKEN]);
        assert!(of(&[]).is_err());
        Ok(())
    }

    #[test]
    fn of_several_rows_each_has_its_own_largest() -> Result<()> {
        let rows =
            Tensor::new(&[[1f32, 3.0, 3.0], [0.0, f32::NAN, 9.0], [7.0, -1.0, 2.0], [0.0, 0.0, 0.5]], &Device::Cpu)?;
        assert_eq!(first_largest(&rows)?.to_vec1::<u32>()?, [1, NO_TOKEN, 0, 2]);
        // Columns of a wider matrix.
        assert_eq!(first_largest(&rows.narrow(1, 1, 2)?)?.to_vec1::<u32>()?, [0, NO_TOKEN, 1, 1]);
        assert!(first_largest(&rows.narrow(0, 0, 0)?).is_err() && first_largest(&rows.unsqueeze(0)?).is_err());
        Ok(())
    }

    #[test]
    fn a_cap_rounds_after_each_step_and_its_absence_changes_nothing() -> Result<()> {
        let z = Tensor::new(&[-90f32, -3.3, 0.0, 1.7, 28.0], &Device::Cpu)?;
        assert_eq!(soft_cap(&z, None)?.to_vec1::<f32>()?, z.to_vec1::<f32>()?);
        let capped = soft_cap(&z, Some(30.0))?.to_vec1::<f32>()?;
        for (got, z) in capped.iter().zip(z.to_vec1::<f32>()?) {
            assert!((f64::from(*got) - 30.0 * (f64::from(z) / 30.0).tanh()).abs() < 1e-5, "{got}");
        }
        let half = soft_cap(&z.to_dtype(DType::BF16)?, Some(30.0))?.to_vec1::<f32>()?;
        // 28 / 30 is 0.9336 in bf16, its tanh 0.7305, and thirty of that 21.875.
        assert_eq!(half[4], 21.875);
        Ok(())
    }
}
