//! One tensor's values on their way to a device, piece by piece: neither their type nor their size is held twice there.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use safetensors::tensor::TensorView;

use compute::transfer::{to_wire, write_rows};

use crate::demo_model::size::Dtype;
use crate::demo_model::tensors;
use crate::demo_model::values::Values;

/// Bytes that pass from a shard to a device at a time.
const PIECE_BYTES: usize = 64 << 20;

/// Where a tensor's values are.
pub enum Stored<'a> {
    /// In a shard.
    Mapped(TensorView<'a>),
    /// Nowhere yet: they are made where a shard's would be read, and have the type that they would have there.
    Made(&'a tensors::Tensor, Values),
}

impl Stored<'_> {
    /// Dimensions, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Stored::Mapped(view) => view.shape().to_vec(),
            Stored::Made(tensor, _) => tensor.shape.iter().map(|&d| d as usize).collect(),
        }
    }

    /// Element type, as safetensors writes it.
    pub fn dtype_name(&self) -> String {
        match self {
            Stored::Mapped(view) => format!("{:?}", view.dtype()),
            Stored::Made(tensor, _) => tensor.dtype.name().to_owned(),
        }
    }

    /// Bytes of all values as stored.
    pub fn bytes(&self) -> usize {
        match self {
            Stored::Mapped(view) => view.data().len(),
            Stored::Made(tensor, _) => tensor.bytes() as usize,
        }
    }

    fn dtype(&self) -> Result<DType> {
        let dtype = match self {
            Stored::Mapped(view) => DType::try_from(view.dtype())?,
            Stored::Made(tensor, _) => match tensor.dtype {
                Dtype::F32 => DType::F32,
                Dtype::Bf16 => DType::BF16,
            },
        };
        if !dtype.is_float() {
            candle_core::bail!("is {}, which is not a float type", dtype.as_str());
        }
        Ok(dtype)
    }

    /// Bytes of `n` values from `first` on, as stored.
    fn raw(&self, first: usize, n: usize) -> Result<Cow<'_, [u8]>> {
        let width = self.dtype()?.size_in_bytes();
        Ok(match self {
            Stored::Mapped(view) => Cow::Borrowed(&view.data()[first * width..][..n * width]),
            Stored::Made(tensor, values) => {
                let mut bytes = vec![0; n * width];
                values.write(first as u64, tensor.dtype, &mut bytes);
                Cow::Owned(bytes)
            }
        })
    }

    /// Values from `first` on, as many as `shape` holds, on a device in `dtype`. They are converted on the host: all that
    /// is allocated on the device is what stays there.
    fn piece(&self, first: usize, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let stored = self.dtype()?;
        let bytes = self.raw(first, shape.iter().product())?;
        if stored == dtype {
            return Tensor::from_raw_buffer(&bytes, dtype, shape, device);
        }
        Tensor::from_raw_buffer(&bytes, stored, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }

    /// All of it on a device, in `dtype`.
    pub fn load(&self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        // A file's pages are no memory of ours: the host may read a tensor whole.
        let whole = device.is_cpu() && matches!(self, Stored::Mapped(_));
        if whole || self.bytes() <= PIECE_BYTES || shape.len() != 2 {
            return self.piece(0, shape, dtype, device);
        }
        let target = uninitialized(shape, dtype, device)?;
        self.fill(&target, 0)?;
        Ok(target)
    }

    /// Some rows of a matrix on a device, in `dtype`.
    pub fn rows(&self, rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.shape();
        let &[_, columns] = shape.as_slice() else { candle_core::bail!("is {shape:?}, not a matrix") };
        self.piece(rows.start * columns, &[rows.len(), columns], dtype, device)
    }

    /// Writes a matrix to rows `row..` of `target`, piece by piece, in `target`'s type.
    pub fn fill(&self, target: &Tensor, row: usize) -> Result<()> {
        let shape = self.shape();
        let &[rows, columns] = shape.as_slice() else { candle_core::bail!("is {shape:?}, not a matrix") };
        let row_bytes = columns * self.dtype()?.size_in_bytes();
        let step = (PIECE_BYTES / row_bytes.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let piece = start..rows.min(start + step);
            if self.dtype()? == target.dtype() {
                write_rows(target, row + start, &self.raw(start * columns, piece.len() * columns)?)?;
            } else {
                let converted = self.rows(piece, target.dtype(), &Device::Cpu)?;
                write_rows(target, row + start, to_wire(&converted)?.data())?;
            }
        }
        Ok(())
    }
}

/// A tensor that will be written before it is read.
pub fn uninitialized(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: any bits are a float, and callers fill all rows.
    unsafe { Tensor::empty(shape, dtype, device) }
}
