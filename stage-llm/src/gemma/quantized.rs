//! Linear layers and embeddings whose weights are 16 bit or in GGUF's blocks.
//!
//! Blocks are made and read on the CPU by candle's k-quants, so that a file is readable elsewhere. On a card kernels of
//! our own multiply them: up to 8 rows directly, bound by reading the blocks once; more rows by expanding stretches of
//! the matrix to 16 bit for cuBLAS.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use compute::kernels::{E4m3Rows, Rows, linear_in_stretches};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod units;

/// Rows of activations that are multiplied directly; more go through expanded weights.
pub const FEW_ROWS: usize = 8;
/// Expanded weights that a product holds at a time, at most: half of the 9B model's largest decoder matrix, 103 MB.
pub const SCRATCH_BYTES: usize = 100 << 20;
/// Rows of f32 that are put in blocks at a time.
const STRIP_BYTES: usize = 64 << 20;
/// Rows that lie together on a card (quantized/units.rs).
const UNIT_ROWS: usize = 16;
/// Values that a thread quantizes or expands at a time.
const PIECE: usize = 1 << 18;

/// How weights are put in blocks.
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
    fn ggml(self) -> GgmlDType {
        match self {
            BlockFormat::Q8_0 => GgmlDType::Q8_0,
            BlockFormat::Q4K => GgmlDType::Q4K,
            BlockFormat::Q6K => GgmlDType::Q6K,
        }
    }

    /// Values of a block; rows are whole blocks.
    pub fn block_values(self) -> usize {
        self.ggml().block_size()
    }

    /// Bytes of a row of `cols` values.
    ///
    /// # Errors
    /// A row that is not whole blocks.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        if cols == 0 || !cols.is_multiple_of(self.block_values()) {
            candle_core::bail!("rows of {cols} are not whole blocks of {} ({self:?})", self.block_values());
        }
        Ok(cols / self.block_values() * self.ggml().type_size())
    }

    /// Rows of `cols` values in blocks. Rows are independent, so that any cut and any number of threads give the same
    /// bytes.
    ///
    /// # Errors
    /// Rows that are not whole blocks.
    pub fn quantize(self, values: &[f32], cols: usize) -> Result<Vec<u8>> {
        let row_bytes = self.row_bytes(cols)?;
        if !values.len().is_multiple_of(cols) {
            candle_core::bail!("{} values are not rows of {cols}", values.len());
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

    /// The inverse of [`quantize`](Self::quantize): `[rows, cols]` in f32.
    fn dequantize(self, bytes: &[u8], cols: usize) -> Result<Tensor> {
        let row_bytes = self.row_bytes(cols)?;
        let rows = (PIECE / cols).max(1);
        let mut values = vec![0f32; bytes.len() / row_bytes * cols];
        values.par_chunks_mut(rows * cols).zip(bytes.par_chunks(rows * row_bytes)).try_for_each(
            |(values, bytes)| {
                // The copy aligns them.
                let storage = QStorage::from_data(Cow::Owned(bytes.to_vec()), &Device::Cpu, self.ggml())?;
                let piece = QTensor::new(storage, (values.len() / cols, cols))?.dequantize(&Device::Cpu)?;
                let (storage, _) = piece.storage_and_layout();
                let candle_core::Storage::Cpu(storage) = &*storage else { candle_core::bail!("expanded on the CPU") };
                values.copy_from_slice(storage.as_slice::<f32>()?);
                Ok::<_, candle_core::Error>(())
            },
        )?;
        Tensor::from_vec(values, (bytes.len() / row_bytes, cols), &Device::Cpu)
    }
}

/// A matrix `[rows, cols]` in blocks.
#[derive(Debug, Clone)]
pub struct Blocks {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    /// Bytes. On the CPU GGUF's; on a card the same bits as its kernels read them, 16 rows of 256 columns together
    /// (quantized/units.rs).
    data: Tensor,
}

impl Blocks {
    /// A matrix of GGUF blocks, row after row, on a device.
    ///
    /// # Errors
    /// candle's, when there is no memory; bytes that are not `rows` rows of `cols`.
    pub fn new(format: BlockFormat, rows: usize, cols: usize, bytes: &[u8], device: &Device) -> Result<Self> {
        let mut strips = Strips::new(format, rows, cols, device);
        strips.push(bytes)?;
        strips.finish()
    }

    /// How they are kept.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Rows, which are outputs, and columns, which are inputs.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> usize {
        self.data.elem_count()
    }

    /// The same in memory of its own.
    #[cfg(feature = "cuda")]
    pub(crate) fn copied(&self) -> Result<Self> {
        Ok(Blocks { data: self.data.copy()?, ..self.clone() })
    }

    /// Rows of a range, `[rows, cols]` in `dtype`, rounded once.
    ///
    /// # Errors
    /// candle's; rows that there are not.
    pub fn dequantize(&self, rows: Range<usize>, dtype: DType) -> Result<Tensor> {
        if rows.start > rows.end || rows.end > self.rows {
            candle_core::bail!("rows {rows:?} of {}", self.rows);
        }
        #[cfg(feature = "cuda")]
        if self.data.device().is_cuda() {
            return cuda::take(cuda::Source::Blocks(self), None, rows, 1.0, dtype);
        }
        self.on_cpu(|bytes, row_bytes| {
            self.format.dequantize(&bytes[rows.start * row_bytes..rows.end * row_bytes], self.cols)?.to_dtype(dtype)
        })
    }

    fn on_cpu<R>(&self, read: impl FnOnce(&[u8], usize) -> Result<R>) -> Result<R> {
        let (storage, _) = self.data.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { candle_core::bail!("blocks on a card") };
        read(storage.as_slice::<u8>()?, self.format.row_bytes(self.cols)?)
    }

    fn gather(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        self.on_cpu(|bytes, row_bytes| {
            let mut rows = Vec::with_capacity(ids.len() * row_bytes);
            for &id in ids {
                let Some(row) = bytes.get(id as usize * row_bytes..(id as usize + 1) * row_bytes) else {
                    candle_core::bail!("row {id} of {}", self.rows)
                };
                rows.extend_from_slice(row);
            }
            self.format.dequantize(&rows, self.cols)?.to_dtype(dtype)
        })
    }
}

/// A matrix of which strips of rows come one after the other: of what its blocks are made from, no more than a strip need
/// ever be there.
pub struct Strips {
    format: BlockFormat,
    rows: usize,
    cols: usize,
    device: Device,
    /// Rows that have come.
    come: usize,
    /// On their way to the device, in its order.
    data: Vec<u8>,
}

impl Strips {
    /// Of a matrix `[rows, cols]`.
    pub fn new(format: BlockFormat, rows: usize, cols: usize, device: &Device) -> Self {
        Strips { format, rows, cols, device: device.clone(), come: 0, data: Vec::new() }
    }

    /// How a matrix of `rows` rows of `cols` values is best cut: strips of 64 MiB in f32, which fill whole units of any
    /// device.
    pub fn cut(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
        let step = (STRIP_BYTES / (4 * cols.max(1))).max(UNIT_ROWS) / UNIT_ROWS * UNIT_ROWS;
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    /// The blocks of the next rows, of as many as [`cut`](Self::cut) says or of all.
    ///
    /// # Errors
    /// Bytes that are not rows of the matrix.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let (come, rest) = (bytes.len() / self.format.row_bytes(self.cols)?, self.rows - self.come);
        if bytes.len() != come * self.format.row_bytes(self.cols)?
            || come > rest
            || come < rest && (come == 0 || !come.is_multiple_of(UNIT_ROWS))
        {
            candle_core::bail!("{} bytes are not {rest} rows of {} ({:?})", bytes.len(), self.cols, self.format);
        }
        let arranged = match self.device {
            Device::Cpu => Cow::Borrowed(bytes),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => Cow::Owned(units::in_units(self.format, bytes, self.cols)?),
            _ => candle_core::bail!("blocks live on the CPU or on a CUDA card"),
        };
        if come == self.rows {
            self.data = arranged.into_owned();
        } else {
            if self.data.is_empty() {
                // All of it at once: what grows is there twice for a while.
                self.data.reserve_exact(arranged.len() / come * self.rows.next_multiple_of(UNIT_ROWS));
            }
            self.data.extend_from_slice(&arranged);
        }
        self.come += come;
        Ok(())
    }

    /// The matrix, once all rows have come.
    ///
    /// # Errors
    /// Rows that are missing; candle's, when there is no memory.
    pub fn finish(self) -> Result<Blocks> {
        let Strips { format, rows, cols, device, come, data } = self;
        if come != rows {
            candle_core::bail!("{come} of {rows} rows of {cols} ({format:?})");
        }
        Ok(Blocks { format, rows, cols, data: Tensor::from_slice(&data, data.len(), &device)? })
    }
}

/// `y = x Wᵀ`, with W `[outputs, inputs]`.
#[derive(Debug, Clone)]
pub enum Linear {
    /// As in the checkpoint.
    Dense(Tensor),
    /// In blocks.
    Blocks(Blocks),
}

impl Linear {
    /// Outputs and inputs.
    ///
    /// # Errors
    /// Weights that are not a matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Linear::Dense(w) => w.dims2(),
            Linear::Blocks(b) => Ok(b.dims()),
        }
    }

    /// Products of rows `[m, inputs]`: `[m, outputs]` in their type, accumulated in f32.
    ///
    /// # Errors
    /// candle's; shapes and types that do not match.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let ((m, k), (outputs, inputs)) = (x.dims2()?, self.dims()?);
        if k != inputs {
            candle_core::bail!("rows of {k} for a layer that takes {inputs}");
        }
        #[cfg(feature = "cuda")]
        if m > 0 && m <= FEW_ROWS && cuda::takes(self, x) {
            return cuda::gemv(self, x);
        }
        match self {
            Linear::Dense(w) => x.contiguous()?.matmul(&w.t()?),
            Linear::Blocks(blocks) => {
                // A CPU multiplies in f32 whatever the type; nothing is lost by expanding to it.
                let dtype = if x.device().is_cpu() { DType::F32 } else { x.dtype() };
                let wide = x.to_dtype(dtype)?.contiguous()?;
                let most = SCRATCH_BYTES / (inputs * dtype.size_in_bytes());
                let y = linear_in_stretches(&wide, outputs, most, |rows| blocks.dequantize(rows, dtype))?;
                debug_assert_eq!(y.dims(), [m, outputs]);
                y.to_dtype(x.dtype())
            }
        }
    }

    /// [`forward`](Self::forward), of some of the outputs only.
    ///
    /// # Errors
    /// As `forward`.
    fn forward_rows(&self, x: &Tensor, outputs: Range<usize>) -> Result<Tensor> {
        let weight = match self {
            Linear::Dense(w) => w.narrow(0, outputs.start, outputs.len())?,
            Linear::Blocks(blocks) => blocks.dequantize(outputs, x.dtype())?,
        };
        x.matmul(&weight.t()?)
    }

    /// [`forward`](Self::forward) of rows that are made ready, of some of the outputs only, `[m, outputs]` in `dtype`.
    ///
    /// # Errors
    /// As `forward`.
    pub fn times(&self, x: &Rows, outputs: Range<usize>, dtype: DType) -> Result<Tensor> {
        match x {
            Rows::Dense(x) if outputs.len() == self.dims()?.0 => self.forward(x),
            Rows::Dense(x) => self.forward_rows(x, outputs),
            // The weights are quantized for this product only: what that costs is a fraction of a pass of many rows, and it
            // needs no memory that stays.
            Rows::E4m3(x) => x.product(&self.e4m3(outputs)?, None, dtype),
        }
    }

    /// Rows of a range, each quantized to E4M3.
    ///
    /// # Errors
    /// candle's, when there is no memory; inputs that are no multiple of 16; rows that there are not.
    pub fn e4m3(&self, outputs: Range<usize>) -> Result<E4m3Rows> {
        match self {
            Linear::Dense(w) => E4m3Rows::quantize(&w.narrow(0, outputs.start, outputs.len())?),
            #[cfg(feature = "cuda")]
            Linear::Blocks(blocks) if blocks.data.device().is_cuda() => cuda::e4m3(blocks, outputs),
            Linear::Blocks(blocks) => E4m3Rows::quantize(&blocks.dequantize(outputs, DType::F32)?),
        }
    }

    /// All weights `[outputs, inputs]` in `dtype`.
    ///
    /// # Errors
    /// candle's, when there is no memory.
    pub fn expanded(&self, dtype: DType) -> Result<Tensor> {
        match self {
            Linear::Dense(w) => w.to_dtype(dtype),
            Linear::Blocks(blocks) => blocks.dequantize(0..blocks.rows, dtype),
        }
    }

    /// Rows by number, times a factor: an embedding, `[ids, inputs]` in `dtype`. A row is rounded to `dtype` before it
    /// is scaled, as a dense one is; the factor is rounded to it, too (MODEL.md 7).
    ///
    /// # Errors
    /// candle's; on the CPU, a number that is not a row's.
    pub fn gather(&self, ids: &Tensor, dtype: DType, scale: f64) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if ids.device().is_cuda() {
            let scale = Tensor::new(scale, &Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F32)?.to_scalar()?;
            let source = match self {
                Linear::Dense(w) if w.dtype() != dtype => candle_core::bail!("{:?} rows as {dtype:?}", w.dtype()),
                Linear::Dense(w) => cuda::Source::Dense(w),
                Linear::Blocks(b) => cuda::Source::Blocks(b),
            };
            return cuda::take(source, Some(ids), 0..ids.elem_count(), scale, dtype);
        }
        let rows = match self {
            Linear::Dense(w) => w.index_select(ids, 0)?.to_dtype(dtype)?,
            Linear::Blocks(b) => b.gather(&ids.to_vec1()?, dtype)?,
        };
        rows * scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compute::random::Draws;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q6K];

    fn error(got: &Tensor, exact: &Tensor) -> f32 {
        let rms = |t: Tensor| t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        rms((got - exact).unwrap()) / rms(exact.clone())
    }

    #[test]
    fn products_and_rows_are_those_of_the_expanded_matrix_and_near_those_of_the_dense_one() {
        let (rows, cols) = (70, 512);
        let draws = Draws::default();
        let (w, x) = (draws.normal((rows, cols)).unwrap(), draws.normal((11, cols)).unwrap());
        let values: Vec<f32> = w.flatten_all().unwrap().to_vec1().unwrap();
        let exact = Linear::Dense(w).forward(&x).unwrap();
        for (format, bound) in FORMATS.into_iter().zip([0.007, 0.09, 0.025]) {
            let bytes = format.quantize(&values, cols).unwrap();
            let blocks = Blocks::new(format, rows, cols, &bytes, &Device::Cpu).unwrap();
            let expanded = blocks.dequantize(0..rows, DType::F32).unwrap();
            let part = blocks.dequantize(13..60, DType::F32).unwrap();
            assert_eq!(error(&part, &expanded.narrow(0, 13, 47).unwrap()), 0.0);
            let linear = Linear::Blocks(blocks);
            let y = linear.forward(&x).unwrap();
            assert!(error(&y, &x.matmul(&expanded.t().unwrap()).unwrap()) < 1e-6);
            let of_product = error(&y, &exact);
            println!("{format:?}: error of the product {of_product:.4}");
            assert!(of_product < bound, "{format:?}: {of_product}");
            let ids = Tensor::new(&[69u32, 0, 5], &Device::Cpu).unwrap();
            let rows = linear.gather(&ids, DType::F32, 2.0).unwrap();
            assert_eq!(error(&rows, &(expanded.index_select(&ids, 0).unwrap() * 2.0).unwrap()), 0.0);
            assert!(linear.gather(&Tensor::new(&[70u32], &Device::Cpu).unwrap(), DType::F32, 1.0).is_err());
        }
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
