//! Matrix in blocks, made strip by strip.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use compute::kernels::E4m3Rows;

#[cfg(feature = "cuda")]
use super::cuda::{self, RawBlocks, Source};
use super::format::{BlockFormat, UNIT_ROWS};
#[cfg(feature = "cuda")]
use super::units;

/// Bytes of f32 rows that are put in blocks at a time.
const STRIP_BYTES: usize = 64 << 20;

/// Matrix `[rows, cols]` in blocks.
#[derive(Debug, Clone)]
pub struct Blocks {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    /// Bytes of the blocks: GGUF's layout on the CPU; on a GPU the same bits as its kernels read them, 16 rows of 256
    /// columns together (quantized/units.rs).
    data: Tensor,
}

impl Blocks {
    /// Matrix of GGUF blocks, row after row, on a device.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory; bytes that are not `rows` rows of `cols`.
    pub fn new(format: BlockFormat, rows: usize, cols: usize, bytes: &[u8], device: &Device) -> Result<Self> {
        let mut strips = Strips::new(format, rows, cols, device);
        strips.push(bytes)?;
        strips.finish()
    }

    /// Format of the blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Number of rows, which are outputs, and of columns, which are inputs.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Bytes of all blocks.
    pub fn bytes(&self) -> usize {
        self.data.elem_count()
    }

    /// Copy of the matrix in memory of its own.
    #[cfg(feature = "cuda")]
    pub(crate) fn copied(&self) -> Result<Self> {
        Ok(Blocks { data: self.data.copy()?, ..self.clone() })
    }

    /// Rows of a range, `[rows, cols]` in `dtype`, rounded once.
    ///
    /// # Errors
    /// Errors of candle; rows beyond the matrix.
    pub fn dequantize(&self, rows: Range<usize>, dtype: DType) -> Result<Tensor> {
        if rows.start > rows.end || rows.end > self.rows {
            candle_core::bail!("blocks refused: rows {rows:?} of a matrix of {}", self.rows);
        }
        #[cfg(feature = "cuda")]
        if self.data.device().is_cuda() {
            return cuda::take(Source::Blocks(self.raw()), None, rows, 1.0, dtype);
        }
        self.on_cpu(|bytes, row_bytes| {
            self.format.dequantize(&bytes[rows.start * row_bytes..rows.end * row_bytes], self.cols)?.to_dtype(dtype)
        })
    }

    /// `x Wᵀ` of few rows on the CPU, f32 `[m, cols]`: `[m, rows]`.
    ///
    /// # Errors
    /// Errors of candle.
    pub(super) fn few_rows(&self, x: &Tensor) -> Result<Tensor> {
        let wide: Vec<f32> = x.flatten_all()?.to_vec1()?;
        let y = self.on_cpu(|bytes, _| self.format.few_rows(bytes, self.cols, &wide))?;
        Tensor::from_vec(y, (x.dim(0)?, self.rows), x.device())
    }

    /// Rows of a range, each quantized to E4M3.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory; columns that are no multiple of 16; rows beyond the matrix.
    pub fn e4m3(&self, rows: Range<usize>) -> Result<E4m3Rows> {
        #[cfg(feature = "cuda")]
        if self.data.device().is_cuda() {
            return cuda::e4m3(self.raw(), rows);
        }
        E4m3Rows::quantize(&self.dequantize(rows, DType::F32)?)
    }

    /// Matrix as kernels take it.
    #[cfg(feature = "cuda")]
    pub(super) fn raw(&self) -> RawBlocks<'_> {
        RawBlocks { format: self.format, rows: self.rows, cols: self.cols, data: &self.data }
    }

    fn on_cpu<R>(&self, read: impl FnOnce(&[u8], usize) -> Result<R>) -> Result<R> {
        let (storage, _) = self.data.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("blocks are in GPU memory where the CPU reads them. This is a bug.")
        };
        read(storage.as_slice::<u8>()?, self.format.row_bytes(self.cols)?)
    }

    /// Rows of the numbers `ids`, `[ids, cols]` in `dtype`; on the CPU alone.
    pub(super) fn gather(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        self.on_cpu(|bytes, row_bytes| {
            let mut rows = Vec::with_capacity(ids.len() * row_bytes);
            for &id in ids {
                let Some(row) = bytes.get(id as usize * row_bytes..(id as usize + 1) * row_bytes) else {
                    candle_core::bail!("blocks refused: row {id} of a matrix of {}", self.rows)
                };
                rows.extend_from_slice(row);
            }
            self.format.dequantize(&rows, self.cols)?.to_dtype(dtype)
        })
    }
}

/// Matrix in the making, whose strips of rows come one after the other, so that no more than one strip of the source is
/// in memory.
pub struct Strips {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    device: Device,
    /// Number of rows that have come.
    come: usize,
    /// Bytes for the device, in its layout.
    data: Vec<u8>,
}

impl Strips {
    /// Empty matrix `[rows, cols]`.
    pub fn new(format: BlockFormat, rows: usize, cols: usize, device: &Device) -> Self {
        Strips { format, rows, cols, device: device.clone(), come: 0, data: Vec::new() }
    }

    /// Cut of a matrix of `rows` rows of `cols` values into strips of 64 MiB in f32, which fill whole units on any
    /// device.
    pub fn cut(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
        let step = (STRIP_BYTES / (4 * cols.max(1))).max(UNIT_ROWS) / UNIT_ROWS * UNIT_ROWS;
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    /// Adds the blocks of the next rows: of as many as [`cut`](Self::cut) says, or of all.
    ///
    /// # Errors
    /// Bytes that are not rows of the matrix.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let (come, rest) = (bytes.len() / self.format.row_bytes(self.cols)?, self.rows - self.come);
        if bytes.len() != come * self.format.row_bytes(self.cols)?
            || come > rest
            || come < rest && (come == 0 || !come.is_multiple_of(UNIT_ROWS))
        {
            candle_core::bail!(
                "blocks refused: {} bytes are not {rest} rows of {} ({:?})",
                bytes.len(),
                self.cols,
                self.format
            );
        }
        let arranged = match self.device {
            Device::Cpu => Cow::Borrowed(bytes),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => Cow::Owned(units::in_units(self.format, bytes, self.cols)?),
            _ => candle_core::bail!("blocks refused: their device must be the CPU or a CUDA GPU"),
        };
        if come == self.rows {
            self.data = arranged.into_owned();
        } else {
            if self.data.is_empty() {
                // All of it at once: a vector that grows exists twice for a while.
                self.data.reserve_exact(arranged.len() / come * self.rows.next_multiple_of(UNIT_ROWS));
            }
            self.data.extend_from_slice(&arranged);
        }
        self.come += come;
        Ok(())
    }

    /// Matrix, once all rows have come.
    ///
    /// # Errors
    /// Rows that are missing; errors of candle, when there is no memory.
    pub fn finish(self) -> Result<Blocks> {
        let Strips { format, rows, cols, device, come, data } = self;
        if come != rows {
            candle_core::bail!("blocks refused: only {come} of {rows} rows of {cols} have come ({format:?})");
        }
        Ok(Blocks { format, rows, cols, data: Tensor::from_slice(&data, data.len(), &device)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compute::random::Draws;

    fn error(got: &Tensor, exact: &Tensor) -> f32 {
        let rms = |t: Tensor| t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        rms((got - exact).unwrap()) / rms(exact.clone())
    }

    #[test]
    fn strips_make_the_matrix_that_all_its_rows_at_once_do() {
        let (rows, cols) = (70, 512);
        let values: Vec<f32> = Draws::default().normal(rows * cols).unwrap().to_vec1().unwrap();
        let bytes = BlockFormat::Q4K.quantize(&values, cols).unwrap();
        let row_bytes = bytes.len() / rows;
        let strips = |cuts: &[usize]| {
            let mut strips = Strips::new(BlockFormat::Q4K, rows, cols, &Device::Cpu);
            let edges = std::iter::once(&0).chain(cuts).zip(cuts);
            edges.into_iter().try_for_each(|(from, to)| strips.push(&bytes[from * row_bytes..to * row_bytes]))?;
            strips.finish()?.dequantize(0..rows, DType::F32)
        };
        let whole = strips(&[70]).unwrap();
        assert_eq!(error(&strips(&[16, 64, 70]).unwrap(), &whole), 0.0);
        for wrong in [&[16, 20, 70][..], &[16, 64], &[16, 16, 70], &[]] {
            assert!(strips(wrong).is_err(), "{wrong:?}");
        }
        for (rows, cols) in [(256_000, 3_584), (3_584, 14_336), (70, 512), (1, 32), (40, 20_000_000)] {
            let cut: Vec<_> = Strips::cut(rows, cols).collect();
            assert!(cut.windows(2).all(|w| w[0].end == w[1].start && w[0].len().is_multiple_of(UNIT_ROWS)), "{cut:?}");
            assert_eq!((cut[0].start, cut[cut.len() - 1].end), (0, rows));
            assert!(cut.iter().all(|r| r.len() <= UNIT_ROWS || 4 * r.len() * cols <= STRIP_BYTES), "{cut:?}");
        }
    }
}
