//! Formats of GGUF's blocks: values to bytes, and back.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// Number of rows of a unit, which lie together in GPU memory (quantized/units.rs).
pub const UNIT_ROWS: usize = 16;
/// Number of values that a thread quantizes or expands at a time.
const PIECE: usize = 1 << 18;

/// Format of weights in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFormat {
    /// 32 signed bytes and an f16 scale: 8.5 bits a value.
    Q8_0,
    /// 256 nibbles, eight 6-bit scales and minima, two f16: 4.5 bits a value.
    Q4K,
    /// 256 times 6 bits, sixteen 8-bit scales, an f16: 6.56 bits a value.
    Q6K,
}

impl BlockFormat {
    pub(super) fn ggml(self) -> GgmlDType {
        match self {
            BlockFormat::Q8_0 => GgmlDType::Q8_0,
            BlockFormat::Q4K => GgmlDType::Q4K,
            BlockFormat::Q6K => GgmlDType::Q6K,
        }
    }

    /// Number of values of a block; rows are whole blocks.
    pub fn block_values(self) -> usize {
        self.ggml().block_size()
    }

    /// Bytes of a row of `cols` values.
    ///
    /// # Errors
    /// A row that is not whole blocks.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        if cols == 0 || !cols.is_multiple_of(self.block_values()) {
            candle_core::bail!("rows of {cols} values are not whole blocks of {} ({self:?})", self.block_values());
        }
        Ok(cols / self.block_values() * self.ggml().type_size())
    }

    /// Blocks of rows of `cols` values. Rows are independent, so that any cut and any number of threads give the same
    /// bytes.
    ///
    /// # Errors
    /// Rows that are not whole blocks.
    pub fn quantize(self, values: &[f32], cols: usize) -> Result<Vec<u8>> {
        let row_bytes = self.row_bytes(cols)?;
        if !values.len().is_multiple_of(cols) {
            candle_core::bail!("quantization refused: {} values are not rows of {cols}", values.len());
        }
        let rows = (PIECE / cols).max(1);
        let mut bytes = vec![0; values.len() / cols * row_bytes];
        bytes.par_chunks_mut(rows * row_bytes).zip(values.par_chunks(rows * cols)).try_for_each(
            |(bytes, values)| {
                let piece = Tensor::from_slice(values, (values.len() / cols, cols), &Device::Cpu)?;
                bytes.copy_from_slice(&QTensor::quantize(&piece, self.ggml())?.data()?);
                Ok::<_, candle_core::Error>(())
            },
        )?;
        Ok(bytes)
    }

    /// Inverse of [`quantize`](Self::quantize): `[rows, cols]` in f32.
    pub(super) fn dequantize(self, bytes: &[u8], cols: usize) -> Result<Tensor> {
        let row_bytes = self.row_bytes(cols)?;
        let rows = (PIECE / cols).max(1);
        let mut values = vec![0f32; bytes.len() / row_bytes * cols];
        values.par_chunks_mut(rows * cols).zip(bytes.par_chunks(rows * row_bytes)).try_for_each(
            |(values, bytes)| {
                // The copy aligns them.
                let storage = QStorage::from_data(Cow::Owned(bytes.to_vec()), &Device::Cpu, self.ggml())?;
                let piece = QTensor::new(storage, (values.len() / cols, cols))?.dequantize(&Device::Cpu)?;
                let (storage, _) = piece.storage_and_layout();
                let candle_core::Storage::Cpu(storage) = &*storage else {
                    candle_core::bail!("blocks were not expanded on the CPU. This is a bug.")
                };
                values.copy_from_slice(storage.as_slice::<f32>()?);
                Ok::<_, candle_core::Error>(())
            },
        )?;
        Tensor::from_vec(values, (bytes.len() / row_bytes, cols), &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compute::random::Draws;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q6K];

    #[test]
    fn rows_quantized_together_or_one_by_one_give_the_same_bytes() {
        let (rows, cols) = (1030, 512);
        let values: Vec<f32> = Draws::default().normal(rows * cols).unwrap().to_vec1().unwrap();
        for format in FORMATS {
            let together = format.quantize(&values, cols).unwrap();
            let apart: Vec<u8> = values.chunks(cols).flat_map(|row| format.quantize(row, cols).unwrap()).collect();
            assert!(together == apart, "{format:?}");
            assert_eq!(together.len(), rows * format.row_bytes(cols).unwrap());
        }
        assert!(BlockFormat::Q4K.quantize(&values[..96], 96).is_err());
    }
}
