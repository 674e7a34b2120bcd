//! One tensor's values on their way to a device, piece by piece: neither their type nor their size is held twice there.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Tensor};
use safetensors::tensor::TensorView;

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
        match self {
            Stored::Mapped(view) => DType::try_from(view.dtype()),
            Stored::Made(tensor, _) => Ok(match tensor.dtype {
                Dtype::F32 => DType::F32,
                Dtype::Bf16 => DType::BF16,
            }),
        }
    }

    /// Values from `first` on, as many as `shape` holds, as stored.
    fn piece(&self, first: usize, shape: &[usize], device: &Device) -> Result<Tensor> {
        let dtype = self.dtype()?;
        let width = dtype.size_in_bytes();
        let length = shape.iter().product::<usize>() * width;
        let bytes = match self {
            Stored::Mapped(view) => Cow::Borrowed(&view.data()[first * width..][..length]),
            Stored::Made(tensor, values) => {
                let mut bytes = vec![0; length];
                values.write(first as u64, tensor.dtype, &mut bytes);
                Cow::Owned(bytes)
            }
        };
        Tensor::from_raw_buffer(&bytes, dtype, shape, device)
    }

    /// All of it on a device, in `dtype`.
    pub fn load(&self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let small = self.bytes() <= PIECE_BYTES || shape.len() != 2;
        match self {
            // A file's pages are no memory of ours: the host may read a tensor whole.
            Stored::Mapped(view) if small || device.is_cpu() => float(view.load(device)?)?.to_dtype(dtype),
            Stored::Made(..) if small => float(self.piece(0, shape, device)?)?.to_dtype(dtype),
            _ => {
                let target = uninitialized(shape, dtype, device)?;
                self.fill(&target, 0)?;
                Ok(target)
            }
        }
    }

    /// Some rows of a matrix on a device, in `dtype`.
    pub fn rows(&self, rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.shape();
        let &[_, columns] = shape.as_slice() else { candle_core::bail!("is {shape:?}, not a matrix") };
        float(self.piece(rows.start * columns, &[rows.len(), columns], device)?)?.to_dtype(dtype)
    }

    /// Writes a matrix to rows `row..` of `target`, piece by piece, in `target`'s type.
    pub fn fill(&self, target: &Tensor, row: usize) -> Result<()> {
        let shape = self.shape();
        let &[rows, columns] = shape.as_slice() else { candle_core::bail!("is {shape:?}, not a matrix") };
        let row_bytes = columns * self.dtype()?.size_in_bytes();
        let step = (PIECE_BYTES / row_bytes.max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let piece = self.rows(start..rows.min(start + step), target.dtype(), target.device())?;
            target.slice_set(&piece, 0, row + start)?;
        }
        Ok(())
    }
}

/// A tensor that will be written before it is read.
pub fn uninitialized(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: any bits are a float, and callers fill all rows.
    unsafe { Tensor::empty(shape, dtype, device) }
}

fn float(tensor: Tensor) -> Result<Tensor> {
    if !tensor.dtype().is_float() {
        candle_core::bail!("is {}, which is not a float type", tensor.dtype().as_str());
    }
    Ok(tensor)
}
