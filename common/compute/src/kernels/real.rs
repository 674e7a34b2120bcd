//! The types that models compute in, for the CPU implementations.

use candle_core::{CpuStorage, DType, Layout, Result, Tensor, WithDType};
use half::{bf16, f16};

/// A number of the type T: computed with in f32, stored rounded.
pub(super) trait Real: WithDType {
    /// As f32, exactly.
    fn wide(self) -> f32;
    /// The nearest T, ties to even.
    fn narrow(x: f32) -> Self;
    /// The outcome's storage.
    fn storage(data: Vec<Self>) -> CpuStorage;
    /// A storage's elements, if it has this type.
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! real {
    ($t:ty, $variant:ident, $wide:expr, $narrow:expr) => {
        impl Real for $t {
            fn wide(self) -> f32 {
                $wide(self)
            }
            fn narrow(x: f32) -> Self {
                $narrow(x)
            }
            fn storage(data: Vec<Self>) -> CpuStorage {
                CpuStorage::$variant(data)
            }
            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(data) => Some(data),
                    _ => None,
                }
            }
        }
    };
}

real!(f32, F32, |x| x, |x| x);
real!(bf16, BF16, bf16::to_f32, bf16::from_f32);
real!(f16, F16, f16::to_f32, f16::from_f32);

/// What is left of `x` where the reference stores it as T.
pub(super) fn rounded<T: Real>(x: f32) -> f32 {
    T::narrow(x).wide()
}

/// Runs `$body` with `$t` standing for the type that `$dtype` names.
macro_rules! with_real {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            candle_core::DType::F16 => {
                type $t = half::f16;
                $body
            }
            other => candle_core::bail!("models compute in f32, bf16 or f16, not in {other:?}"),
        }
    };
}
pub(super) use with_real;

/// The elements of a contiguous operand.
pub(super) fn elements<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused operation takes contiguous tensors, not {layout:?}")
    };
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// The elements of a contiguous operand that is overwritten.
pub(super) fn elements_mut<'a, T: Real>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused operation overwrites contiguous tensors, not {layout:?}")
    };
    match T::slice_mut(storage) {
        Some(data) => Ok(&mut data[start..end]),
        None => candle_core::bail!("a fused operation's operands have one type"),
    }
}

/// A weight's values.
pub(super) fn weights(weight: &Tensor) -> Result<Vec<f32>> {
    weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Refuses a weight that does not have a value (of type `dtype`) for each of `columns`.
pub(super) fn expect(weight: &Tensor, columns: usize, dtype: DType, what: &str) -> Result<()> {
    if weight.dims() != [columns] || weight.dtype() != dtype || !weight.is_contiguous() {
        candle_core::bail!("{what}: {columns} values of {dtype:?} in a row, not {weight:?}");
    }
    Ok(())
}
