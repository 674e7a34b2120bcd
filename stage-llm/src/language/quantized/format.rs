//! Formats of GGUF's blocks: values to bytes, and back.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, Tensor};
use compute::kernels::few_rows::{dots, dots_q8};
use rayon::prelude::*;

/// Number of rows of a unit, which lie together in GPU memory (quantized/units.rs).
pub const UNIT_ROWS: usize = 16;
/// Number of values that a thread quantizes or expands at a time.
const PIECE: usize = 1 << 18;
/// The same where each piece is multiplied by few rows at once: 256 KB of f32.
const FEW_PIECE: usize = 1 << 16;

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
        values
            .par_chunks_mut(rows * cols)
            .zip(bytes.par_chunks(rows * row_bytes))
            .try_for_each(|(values, bytes)| self.expanded(bytes, cols, |expanded| values.copy_from_slice(expanded)))?;
        Tensor::from_vec(values, (bytes.len() / row_bytes, cols), &Device::Cpu)
    }

    /// Shows `read` the values of some rows, on this thread.
    fn expanded(self, bytes: &[u8], cols: usize, read: impl FnOnce(&[f32])) -> Result<()> {
        // The copy aligns them.
        let storage = QStorage::from_data(Cow::Owned(bytes.to_vec()), &Device::Cpu, self.ggml())?;
        let rows = bytes.len() / self.row_bytes(cols)?;
        let piece = QTensor::new(storage, (rows, cols))?.dequantize(&Device::Cpu)?;
        let (storage, _) = piece.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("blocks were not expanded on the CPU. This is a bug.")
        };
        read(storage.as_slice::<f32>()?);
        Ok(())
    }

    /// `x Wᵀ` on the CPU, of few rows `x` of `cols` values and rows of blocks: `[rows of x, rows of W]`. The matrix is expanded in
    /// pieces that stay in a core's cache, or, in 8 bits, not at all.
    pub(super) fn few_rows(self, bytes: &[u8], cols: usize, x: &[f32]) -> Result<Vec<f32>> {
        let row_bytes = self.row_bytes(cols)?;
        let (rows, step) = (x.len() / cols, (FEW_PIECE / cols).max(1));
        let outcome = |bytes: &[u8]| {
            let mut out = vec![0f32; rows * (bytes.len() / row_bytes)];
            match self {
                BlockFormat::Q8_0 => dots_q8(x, cols, bytes, &mut out),
                _ => self.expanded(bytes, cols, |values| dots(x, cols, values, &mut out))?,
            }
            Ok(out)
        };
        let pieces: Vec<Vec<f32>> = bytes.par_chunks(step * row_bytes).map(outcome).collect::<Result<_>>()?;
        let row =
            |r: usize| pieces.iter().flat_map(move |piece| &piece[r * piece.len() / rows..][..piece.len() / rows]);
        Ok((0..rows).flat_map(row).copied().collect())
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

    /// Expanded and multiplied as a whole is the slow twin. Sums of 512 products of numbers of the size of 1, in another order.
    #[test]
    fn few_rows_by_blocks_are_those_by_their_values() {
        // Three pieces, the last one not full.
        let (outputs, cols) = (300, 512);
        let draws = Draws::default();
        let values: Vec<f32> = draws.normal(outputs * cols).unwrap().to_vec1().unwrap();
        for format in FORMATS {
            let bytes = format.quantize(&values, cols).unwrap();
            let weight = format.dequantize(&bytes, cols).unwrap();
            for rows in [1, 3] {
                let x = draws.normal((rows, cols)).unwrap();
                let want = x.matmul(&weight.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let got = format.few_rows(&bytes, cols, &x.flatten_all().unwrap().to_vec1::<f32>().unwrap()).unwrap();
                assert_eq!(got.len(), want.len());
                let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 2e-4, "{format:?}, {rows} rows: {off}");
            }
        }
    }
}
