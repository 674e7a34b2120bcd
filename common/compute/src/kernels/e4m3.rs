//! Rows of eight bits, E4M3 (1 of sign, 4 of exponent, 3 of mantissa), with a scale each that makes a row's largest value
//! the type's largest. Tensor cores multiply them twice as fast as 16 bits, at an error of some 4 % of a matmul of
//! Gaussian rows: for image and audio tokens, if the configuration says so; never for text.

mod code;
mod convert;
#[cfg(feature = "cuda")]
pub mod gpu;
mod product;

use candle_core::{DType, Device, Result, Tensor};

use super::pointwise::{Activation, bias_add, gelu_erf, gelu_tanh, glu};
pub use code::{ALIGNMENT, LARGEST};
use code::{bytes_of, number, row_bytes};
use convert::{Source, ToE4m3};
use product::Left;
pub use product::Product;

/// A matrix `[n, k]` of E4M3 with f32 scales `[n]`: a row is its numbers times its scale.
#[derive(Clone, Debug)]
pub struct E4m3Rows {
    rows: usize,
    columns: usize,
    /// On the CPU candle's E4M3 `[n, k]`, which it has only there; on a GPU bytes, `n k` of numbers and then the scales.
    numbers: Tensor,
    /// On the CPU f32 `[n, 1]`; on a GPU they are part of `numbers`.
    scales: Option<Tensor>,
}

impl E4m3Rows {
    /// Bytes of `[rows, columns]` on a GPU.
    pub fn bytes(rows: usize, columns: usize) -> usize {
        row_bytes(rows, columns)
    }

    /// Quantizes rows `[n, k]`, each by itself, to the nearest numbers, ties to even. On a GPU their columns may be
    /// some of a wider matrix's.
    ///
    /// # Errors
    /// Columns that are no multiple of [`ALIGNMENT`]; the device's.
    pub fn quantize(x: &Tensor) -> Result<Self> {
        Self::new(x, None, Source::Rows)
    }

    /// Quantizes weights `[n, k]` that lie on the CPU for `device`, to the same numbers: there nothing is allocated but what
    /// stays, where 16-bit matrices that come and go would leave holes in a memory pool.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize); weights elsewhere.
    pub fn load(weights: &Tensor, device: &Device) -> Result<Self> {
        let (rows, columns) = weights.dims2()?;
        if device.is_cpu() || !columns.is_multiple_of(ALIGNMENT) {
            return Self::quantize(weights);
        }
        let bytes = bytes_of(weights)?;
        Self::from_bytes(Tensor::from_slice(&bytes, bytes.len(), device)?, rows, columns)
    }

    /// Quantizes [`glu`] of an outcome `[n, 2 k]`.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn glu(gate_up: Product<'_>, activation: Activation) -> Result<Self> {
        Self::new(&gate_up.y, gate_up.left, Source::Glu(activation))
    }

    /// Quantizes [`gelu_tanh`] of an outcome `[n, k]`.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn gelu_tanh(x: Product<'_>) -> Result<Self> {
        Self::new(&x.y, x.left, Source::GeluTanh)
    }

    /// Quantizes [`gelu_erf`] of an outcome `[n, k]`.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn gelu_erf(x: Product<'_>) -> Result<Self> {
        Self::new(&x.y, x.left, Source::GeluErf)
    }

    fn new(x: &Tensor, left: Option<Left<'_>>, source: Source) -> Result<Self> {
        let (rows, width) = x.dims2()?;
        let columns = source.columns(width);
        if !width.is_multiple_of(ALIGNMENT) || !columns.is_multiple_of(ALIGNMENT) {
            candle_core::bail!("E4M3 rows have multiples of {ALIGNMENT} columns, not {columns} of {x:?}");
        }
        if x.device().is_cpu() {
            let x = x.contiguous()?;
            let made = match source {
                Source::Rows => x,
                Source::Glu(activation) => glu(&x, activation)?,
                // In place: the outcome is its owner's last.
                Source::GeluTanh => gelu_tanh(&x).map(|()| x)?,
                Source::GeluErf => gelu_erf(&x).map(|()| x)?,
            };
            return Self::on_cpu(&made.to_dtype(DType::F32)?);
        }
        let numbers = x.apply_op1_no_bwd(&ToE4m3 { left, source })?;
        Ok(E4m3Rows { rows, columns, numbers, scales: None })
    }

    fn on_cpu(x: &Tensor) -> Result<Self> {
        let (rows, columns) = x.dims2()?;
        let largest = x.abs()?.max_keepdim(1)?; // [n, 1]
        // Divided as GPUs divide: what candle makes of a number and a tensor rounds twice, which turns ties.
        let end = Tensor::full(LARGEST as f32, largest.shape(), x.device())?;
        // A row of zeros stays one: infinity times zero would be no number.
        let to = end.div(&largest)?;
        let to = largest.gt(0f64)?.where_cond(&to, &largest.zeros_like()?)?;
        let numbers = x.broadcast_mul(&to)?.to_dtype(DType::F8E4M3)?;
        Ok(E4m3Rows { rows, columns, numbers, scales: Some(largest.div(&end)?) })
    }

    /// From a GPU's bytes, numbers and then scales, that a kernel has written.
    ///
    /// # Errors
    /// Another number of bytes.
    pub fn from_bytes(numbers: Tensor, rows: usize, columns: usize) -> Result<Self> {
        if numbers.dtype() != DType::U8 || numbers.elem_count() != Self::bytes(rows, columns) {
            candle_core::bail!("{numbers:?} for E4M3 [{rows}, {columns}]");
        }
        Ok(E4m3Rows { rows, columns, numbers, scales: None })
    }

    /// Rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// What the rows stand for, f32 `[n, k]`, on the CPU.
    ///
    /// # Errors
    /// The device's.
    pub fn expanded(&self) -> Result<Tensor> {
        let (numbers, scales) = match &self.scales {
            Some(scales) => (self.numbers.to_dtype(DType::F32)?, scales.clone()),
            None => self.downloaded()?,
        };
        numbers.broadcast_mul(&scales)
    }

    /// Numbers `[n, k]` and scales `[n, 1]` of a GPU's rows, in f32 on the CPU.
    fn downloaded(&self) -> Result<(Tensor, Tensor)> {
        let bytes = self.numbers.flatten_all()?.to_vec1::<u8>()?;
        let (numbers, scales) = bytes.split_at(self.rows * self.columns);
        let numbers: Vec<f32> = numbers.iter().map(|&code| number(code)).collect();
        let scales: Vec<f32> = scales.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let here = Device::Cpu;
        Ok((
            Tensor::from_vec(numbers, (self.rows, self.columns), &here)?,
            Tensor::from_vec(scales, (self.rows, 1), &here)?,
        ))
    }

    /// `x Wᵀ + bias` of rows x `[n, k]`, a matrix W `[m, k]`, both E4M3, and a bias `[m]`, if any: `[n, m]` in `dtype`, on
    /// a GPU bf16. Accumulated in f32 (on Hopper with fewer bits, for which the quantization has no use).
    ///
    /// # Errors
    /// Shapes that do not fit; a GPU that does not multiply E4M3 (one before Ada, sm_89); the device's.
    pub fn matmul(&self, weight: &E4m3Rows, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
        self.product(weight, bias, dtype)?.finished()
    }

    /// [`matmul`](Self::matmul) whose outcome goes through an activation into E4M3.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    pub fn product<'a>(&'a self, weight: &'a E4m3Rows, bias: Option<&'a Tensor>, dtype: DType) -> Result<Product<'a>> {
        self.multiplied(weight, bias, dtype, true)
    }

    /// [`product`](Self::product) as on GPUs for which cuBLASLt does not apply scales and bias.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    pub fn product_scaled_apart<'a>(
        &'a self,
        weight: &'a E4m3Rows,
        bias: Option<&'a Tensor>,
        dtype: DType,
    ) -> Result<Product<'a>> {
        self.multiplied(weight, bias, dtype, false)
    }

    fn multiplied<'a>(
        &'a self,
        weight: &'a E4m3Rows,
        bias: Option<&'a Tensor>,
        dtype: DType,
        by_library: bool,
    ) -> Result<Product<'a>> {
        if self.columns != weight.columns {
            candle_core::bail!("E4M3 rows of {} by a matrix of {}", self.columns, weight.columns);
        }
        if let Some(bias) = bias {
            super::real::expect(bias, weight.rows, dtype, "a bias")?;
        }
        if self.scales.is_some() {
            let y = self.expanded()?.matmul(&weight.expanded()?.t()?)?.to_dtype(dtype)?;
            bias.map_or(Ok(()), |bias| bias_add(&y, bias))?;
            return Ok(Product { y, left: None });
        }
        #[cfg(feature = "cuda")]
        {
            let (y, finished) = gpu::matmul_rows(self.stored(), weight.stored(), bias, dtype, by_library)?;
            Ok(Product { y, left: (!finished).then_some(Left { x: self, weight, bias }) })
        }
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("E4M3 on a device that this program was built without (scaled by the library: {by_library})")
    }

    #[cfg(feature = "cuda")]
    fn stored(&self) -> gpu::Stored<'_> {
        gpu::Stored { numbers: &self.numbers, rows: self.rows, columns: self.columns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    #[test]
    fn weights_are_the_same_numbers_in_a_gpus_bytes() -> Result<()> {
        let weights = Draws::default().normal(&[5, 64])?.to_dtype(DType::BF16)?;
        let zero = Tensor::zeros((1, 64), DType::BF16, &Device::Cpu)?;
        let weights = Tensor::cat(&[weights, zero], 0)?;
        let bytes = bytes_of(&weights)?;
        let numbers = Tensor::from_slice(&bytes, bytes.len(), &Device::Cpu)?;
        let (got, want) = (E4m3Rows::from_bytes(numbers, 6, 64)?, E4m3Rows::quantize(&weights)?);
        assert_eq!(got.expanded()?.to_vec2::<f32>()?, want.expanded()?.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn a_row_has_its_own_scale_and_zeros_and_what_is_no_number_stay_so() -> Result<()> {
        let mut x = vec![0f32; 4 * 16];
        x[0] = 1e-3;
        x[5] = -7e-4;
        x[16] = -3e4;
        x[32] = f32::NAN;
        x[33] = 2.0;
        let rows = E4m3Rows::quantize(&Tensor::from_vec(x, (4, 16), &Device::Cpu)?)?.expanded()?.to_vec2::<f32>()?;
        // 7e-4 / 1e-3 * 448 = 313.6, between 288 and 320.
        assert!((rows[0][0] / 1e-3 - 1.0).abs() < 1e-6 && (rows[0][5] / (-320.0 / 448.0 * 1e-3) - 1.0).abs() < 1e-6);
        assert_eq!((rows[1][0], rows[1][1]), (-3e4, 0.0));
        assert!(rows[2][0].is_nan() && rows[3].iter().all(|v| *v == 0.0));
        assert!(E4m3Rows::quantize(&Tensor::zeros((1, 8), DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }

    #[test]
    fn a_matmul_is_off_by_what_three_bits_of_mantissa_cost() -> Result<()> {
        let draws = Draws::default();
        let (x, w) = (draws.normal(&[9, 512])?, draws.normal(&[48, 512])?);
        let got = E4m3Rows::quantize(&x)?.matmul(&E4m3Rows::quantize(&w)?, None, DType::F32)?;
        let want = x.matmul(&w.t()?)?;
        let rms = |t: Tensor| t.sqr()?.mean_all()?.to_scalar::<f32>().map(f32::sqrt);
        let error = rms((got - &want)?)? / rms(want)?;
        // Each operand's own error is 2.6 %: half a step of an eighth, over the numbers of a binade, in the mean.
        assert!((0.02..0.045).contains(&error), "{error}");
        Ok(())
    }

    #[test]
    fn activated_rows_are_those_of_the_activation() -> Result<()> {
        let draws = Draws::default();
        let bf16 = |shape: &[usize]| draws.normal(shape)?.to_dtype(DType::BF16);
        let (x, weight) = (E4m3Rows::quantize(&bf16(&[3, 32])?)?, E4m3Rows::quantize(&bf16(&[64, 32])?)?);
        let bias = bf16(&[64])?;
        let product = |bias| x.product(&weight, bias, DType::BF16);
        let activated = |op: fn(&Tensor) -> Result<()>| -> Result<Tensor> {
            let y = x.matmul(&weight, Some(&bias), DType::BF16)?;
            op(&y)?;
            Ok(y)
        };
        let plain = x.matmul(&weight, None, DType::BF16)?;
        for (got, want) in [
            (E4m3Rows::glu(product(None)?, Activation::GeluTanh)?, glu(&plain, Activation::GeluTanh)?),
            (E4m3Rows::glu(product(None)?, Activation::Silu)?, glu(&plain, Activation::Silu)?),
            (E4m3Rows::gelu_tanh(product(Some(&bias))?)?, activated(gelu_tanh)?),
            (E4m3Rows::gelu_erf(product(Some(&bias))?)?, activated(gelu_erf)?),
        ] {
            assert_eq!(got.expanded()?.to_vec2::<f32>()?, E4m3Rows::quantize(&want)?.expanded()?.to_vec2::<f32>()?);
        }
        Ok(())
    }
}
