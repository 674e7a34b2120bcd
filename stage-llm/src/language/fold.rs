//! Output projection as image and audio tokens use it: attention to itself alone is a token's own value, the same for
//! every query head of a kv head, so the columns that meet the same value are added up first (MODEL.md 7, `repeat_kv`).
//! That halves the matmul.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};

/// Folded output projection: `o_proj` `[D, heads * head_dim]` to `[D, kv_heads * head_dim]`, summed in f32 and rounded
/// once.
///
/// # Errors
/// A width that is not `heads * head_dim`; errors of the device.
pub fn fold_heads(weight: &Tensor, kv_heads: usize, head_dim: usize) -> Result<Tensor> {
    let (_, width) = weight.dims2()?;
    if kv_heads == 0 || head_dim == 0 || !width.is_multiple_of(kv_heads * head_dim) {
        candle_core::bail!("folding refused: {width} columns are not a multiple of {kv_heads} heads of {head_dim}");
    }
    let fold = Fold { kv_heads, head_dim, group: width / (kv_heads * head_dim) };
    if weight.device().is_cpu() || !head_dim.is_multiple_of(8) {
        return fold.by_parts(weight);
    }
    weight.apply_op1_no_bwd(&fold)
}

struct Fold {
    kv_heads: usize,
    head_dim: usize,
    /// Number of query heads of a kv head.
    group: usize,
}

impl Fold {
    fn by_parts(&self, weight: &Tensor) -> Result<Tensor> {
        let by_head = weight.reshape(((), self.kv_heads, self.group, self.head_dim))?.to_dtype(DType::F32)?;
        by_head.sum(2)?.to_dtype(weight.dtype())?.flatten_from(1)
    }
}

impl CustomOp1 for Fold {
    fn name(&self) -> &'static str {
        "fold"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("folding is computed by parts on the CPU. This is a bug.")
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        weight: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        use compute::kernels::cuda::{Kernels, allocate, grid, pointer, start, suffix};
        static FOLD: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/fold.fatbin")));
        let rows = layout.dims()[0];
        let shape = Shape::from((rows, self.kv_heads * self.head_dim));
        let out = allocate(&weight.device, &shape, weight.dtype())?;
        let arguments = [
            pointer(weight, layout)?,
            start(&out)?,
            rows.into(),
            self.kv_heads.into(),
            self.group.into(),
            self.head_dim.into(),
        ];
        let threads = shape.elem_count() * weight.dtype().size_in_bytes() / 16;
        let name = format!("fold_{}", suffix(weight.dtype())?);
        // SAFETY: the arguments are the kernel's as fold.cu declares them; heads are whole packs of 16 bytes.
        unsafe { FOLD.launch(&weight.device, &name, grid((threads.div_ceil(256), 1, 1), 256, 0), &arguments) }?;
        Ok((out, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_folded_projection_of_a_value_is_the_whole_one_of_its_repetitions() -> Result<()> {
        let (kv_heads, group, head_dim, rows) = (2, 3, 4, 5);
        let width = kv_heads * group * head_dim;
        let values = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<_>>();
        let weight = Tensor::from_vec(values(rows * width, 0.7), (rows, width), &Device::Cpu)?;
        let value = Tensor::from_vec(values(kv_heads * head_dim, 1.3), (1, kv_heads * head_dim), &Device::Cpu)?;
        let repeated = value.reshape((1, kv_heads, 1, head_dim))?.broadcast_as((1, kv_heads, group, head_dim))?;
        let whole = repeated.reshape((1, width))?.matmul(&weight.t()?)?;
        let folded = value.matmul(&fold_heads(&weight, kv_heads, head_dim)?.t()?)?;
        assert!((whole - folded)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
        assert!(fold_heads(&weight, 5, head_dim).is_err());
        Ok(())
    }
}
