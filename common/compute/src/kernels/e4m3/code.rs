//! Codes of E4M3 on the CPU: the nearest one to a number, what it stands for, and whole rows as the GPU keeps them.

use candle_core::{Result, Storage, Tensor};
use rayon::prelude::*;

use crate::kernels::real::{Real, elements, with_real};

/// The largest E4M3 number.
pub const LARGEST: f64 = 448.0;

/// Columns come in multiples of so many: what tensor cores take.
pub const ALIGNMENT: usize = 16;

/// Bytes of rows on a GPU: `rows columns` of numbers, then an f32 scale each.
pub fn row_bytes(rows: usize, columns: usize) -> usize {
    rows * (columns + size_of::<f32>())
}

/// Numbers and then scales of rows that lie on the CPU, as a GPU keeps them.
///
/// # Errors
/// Rows elsewhere, or of a type that no model computes in.
pub fn bytes_of(x: &Tensor) -> Result<Vec<u8>> {
    fn fill<T: Real>(x: &[T], columns: usize) -> Vec<u8> {
        let mut bytes = vec![0; row_bytes(x.len() / columns, columns)];
        let (numbers, scales) = bytes.split_at_mut(x.len());
        let rows = numbers.par_chunks_mut(columns).zip(scales.par_chunks_mut(size_of::<f32>()));
        rows.zip(x.par_chunks(columns)).for_each(|((numbers, scale), x)| {
            let largest = x.iter().fold(0f32, |largest, x| largest.max(x.wide().abs()));
            let to = if largest > 0.0 { LARGEST as f32 / largest } else { 0.0 };
            for (number, x) in numbers.iter_mut().zip(x) {
                *number = code(x.wide() * to);
            }
            scale.copy_from_slice(&(largest / LARGEST as f32).to_le_bytes());
        });
        bytes
    }
    let columns = x.dim(1)?;
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("weights on the CPU are quantized here, not {x:?}")
    };
    with_real!(x.dtype(), T => Ok(fill::<T>(elements(storage, layout)?, columns)))
}

/// The nearest code to a number of at most [`LARGEST`], ties to even; what is not a number stays none.
pub fn code(x: f32) -> u8 {
    /// Bits of an f32's mantissa that E4M3 does not have, and how much less its exponents' bias is.
    const DROPPED: u32 = 20;
    const BIAS: u32 = 127 - 7;
    let (sign, size) = ((x.to_bits() >> 24) as u8 & 128, x.abs());
    if size.is_nan() {
        return sign | 127;
    }
    // Below the least normal number, steps are those of 2^-9.
    if size < 2f32.powi(-6) {
        return sign | (size * 512.0).round_ties_even() as u8;
    }
    let bits = size.to_bits();
    let rounded = (bits + (1 << (DROPPED - 1)) - 1 + (bits >> DROPPED & 1)) >> DROPPED;
    sign | (rounded - (BIAS << 3)).min(126) as u8
}

/// What a code stands for.
pub fn number(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn the_cpu_rounds_to_the_nearest_code_and_ties_to_even() -> Result<()> {
        // Every number between every two neighbours, at the middle and beside it.
        let numbers: Vec<f32> = (0..127).map(number).collect();
        for pair in numbers.windows(2) {
            let middle = (pair[0] + pair[1]) / 2.0;
            let (below, above) = (middle * (1.0 - f32::EPSILON), middle * (1.0 + f32::EPSILON));
            let even =
                if numbers.iter().position(|n| *n == pair[0]).unwrap().is_multiple_of(2) { pair[0] } else { pair[1] };
            let x = [pair[0], below, middle, above, -middle, 448.0];
            let rounded = Tensor::new(&x, &Device::Cpu)?.to_dtype(DType::F8E4M3)?.to_dtype(DType::F32)?;
            assert_eq!(rounded.to_vec1::<f32>()?, [pair[0], pair[0], even, pair[1], -even, 448.0], "{pair:?}");
        }
        Ok(())
    }

    #[test]
    fn every_code_is_the_nearest_ones() -> Result<()> {
        let x: Vec<f32> =
            (0..4000).map(|i| 448.0 * (i as f32 * 0.77).sin().powi(5)).chain([0.0, -0.0, 448.0]).collect();
        let theirs = Tensor::new(x.as_slice(), &Device::Cpu)?.to_dtype(DType::F8E4M3)?.to_dtype(DType::F32)?;
        let ours: Vec<f32> = x.iter().map(|&x| number(code(x))).collect();
        assert_eq!(ours, theirs.to_vec1::<f32>()?);
        // Ties, of numbers and of the steps below them.
        assert_eq!([17.0, 19.0, 0.5 / 512.0, 1.5 / 512.0].map(|x| number(code(x))), [16.0, 20.0, 0.0, 2.0 / 512.0]);
        assert!(number(code(f32::NAN)).is_nan());
        Ok(())
    }
}
