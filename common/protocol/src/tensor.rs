//! Tensor as it travels: `{dtype, shape, data}`, little-endian, row-major, borrowed from the payload.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::wire_error::{WireError, WireErrorKind};

// Tensors travel little-endian and are copied to and from memory as they are.
const _: () = assert!(cfg!(target_endian = "little"), "this machine's numbers are not little-endian");

/// Dimensions a tensor may have at most (PROTOCOL.md, "Tensor").
pub const MAX_DIMS: usize = 8;

/// Element type of a tensor on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Pixels.
    U8,
    /// PCM samples.
    I16,
    /// IEEE half precision.
    F16,
    /// Brain float.
    Bf16,
    /// IEEE single precision, the reference.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::U8 => 1,
            Dtype::I16 | Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::U8 => "u8",
            Dtype::I16 => "i16",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::F32 => "f32",
        })
    }
}

/// Tensor in a message. Decoding borrows `data` from the payload; a producer owns it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<u64>,
    #[serde(borrow, with = "serde_bytes")]
    data: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// Tensor over little-endian, row-major `data`.
    ///
    /// # Errors
    /// [`WireErrorKind::Shape`] when `data` is not exactly as long as shape and dtype say.
    pub fn new(dtype: Dtype, shape: &[usize], data: impl Into<Cow<'a, [u8]>>) -> Result<Self, WireError> {
        let tensor = Tensor { dtype, shape: shape.iter().map(|&d| d as u64).collect(), data: data.into() };
        tensor.check()?;
        Ok(tensor)
    }

    /// Tensor of 16-bit samples, `[samples.len()]`.
    pub fn from_i16(samples: &[i16]) -> Tensor<'static> {
        Tensor {
            dtype: Dtype::I16,
            shape: vec![samples.len() as u64],
            data: Cow::Owned(samples.iter().flat_map(|s| s.to_le_bytes()).collect()),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.shape.iter().map(|&d| d as usize).collect()
    }

    /// Length of the first dimension: the rows that a batch carries. 0 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().map_or(0, |&d| d as usize)
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.shape.iter().skip(1).product::<u64>() as usize * self.dtype.size()
    }

    /// Raw little-endian bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Samples of an i16 tensor.
    pub fn to_i16(&self) -> Vec<i16> {
        self.data.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect()
    }

    /// Rows `start..start + len` as a tensor that borrows from this one.
    pub fn narrow(&self, start: usize, len: usize) -> Tensor<'_> {
        let row = self.row_bytes();
        let mut shape = self.shape.clone();
        shape[0] = len as u64;
        Tensor { dtype: self.dtype, shape, data: Cow::Borrowed(&self.data[start * row..(start + len) * row]) }
    }

    /// Checks that the bytes are exactly what shape and dtype say, without overflow.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        let bad = |what: String| Err(WireError::new(WireErrorKind::Shape, what));
        if self.shape.is_empty() || self.shape.len() > MAX_DIMS {
            return bad(format!("{} dimensions; 1 to {MAX_DIMS} are allowed", self.shape.len()));
        }
        let bytes = self.shape.iter().try_fold(self.dtype.size() as u64, |n, &d| n.checked_mul(d));
        match bytes {
            Some(n) if n == self.data.len() as u64 => Ok(()),
            Some(n) => {
                bad(format!("{} {:?} takes {n} bytes, the message holds {}", self.dtype, self.shape, self.data.len()))
            }
            None => bad(format!("{} {:?} overflows", self.dtype, self.shape)),
        }
    }

    /// Checks dtype and shape against what a message must carry; `None` leaves a dimension free.
    pub(crate) fn expect(&self, dtypes: &[Dtype], shape: &[Option<usize>]) -> Result<(), WireError> {
        self.check()?;
        let fits = self.shape.len() == shape.len()
            && self.shape.iter().zip(shape).all(|(&d, want)| want.is_none_or(|w| w as u64 == d));
        if fits && dtypes.contains(&self.dtype) {
            return Ok(());
        }
        Err(WireError::new(
            WireErrorKind::Shape,
            format!("tensor is {} {:?}, expected {dtypes:?} {shape:?}", self.dtype, self.shape),
        ))
    }
}
