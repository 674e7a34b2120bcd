//! Outcome of an E4M3 matmul. Where the library does not apply the scales (a GPU before Hopper), the kernel that reads the outcome next
//! does: one pass over memory less.

use candle_core::{Result, Tensor};

use super::E4m3Rows;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::pointwise::bias_add;

/// `x Wᵀ + bias` `[n, m]`, or what is still to become it.
#[derive(Debug)]
pub struct Product<'a> {
    pub(super) y: Tensor,
    pub(super) left: Option<Left<'a>>,
}

/// What is left to do: the outcome of each row and column times both scales, rounded, and then the bias, if any, rounded.
#[derive(Clone, Debug)]
pub struct Left<'a> {
    /// Rows x `[n, k]`.
    pub(super) x: &'a E4m3Rows,
    /// Matrix W `[m, k]`.
    pub(super) weight: &'a E4m3Rows,
    /// Bias `[m]`.
    pub(super) bias: Option<&'a Tensor>,
}

impl Product<'_> {
    /// The outcome `[n, m]`, with nothing left to do.
    ///
    /// # Errors
    /// The device's.
    pub fn finished(self) -> Result<Tensor> {
        if let Some(left) = &self.left {
            left.scale(&self.y)?;
            left.bias.map_or(Ok(()), |bias| bias_add(&self.y, bias))?;
        }
        Ok(self.y)
    }
}

impl Left<'_> {
    /// Multiplies an outcome by its scales, in place.
    #[cfg(feature = "cuda")]
    fn scale(&self, y: &Tensor) -> Result<()> {
        super::gpu::scale(y, self.x.stored(), self.weight.stored())
    }

    /// A CPU leaves nothing to do.
    #[cfg(not(feature = "cuda"))]
    fn scale(&self, y: &Tensor) -> Result<()> {
        let (x, weight) = (self.x.dims(), self.weight.dims());
        candle_core::bail!("{y:?} of {x:?} by {weight:?} in E4M3, on a device that this program was built without")
    }

    /// Addresses of the rows' scales, of the columns', and of the bias.
    #[cfg(feature = "cuda")]
    pub(super) fn pointers(&self) -> Result<[cuda::Arg; 3]> {
        let scales = |rows: &E4m3Rows| rows.stored().scales().map(cuda::Arg::Pointer);
        Ok([scales(self.x)?, scales(self.weight)?, cuda::optional_pointer(self.bias)?])
    }
}
