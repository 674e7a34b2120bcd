//! Rows of eight bits, E4M3 (1 of sign, 4 of exponent, 3 of mantissa), with a scale each that makes a row's largest value
//! the type's largest. Tensor cores multiply them twice as fast as 16 bits, at an error of some 4 % of a product of
//! Gaussian rows: for image and audio tokens, if the configuration says so; never for text.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cublaslt::{Kind, Operands, Sizes, matmul};
#[cfg(feature = "cuda")]
use super::cuda;
use super::pointwise::{bias_add, bias_gelu_erf, bias_gelu_tanh};
use super::real::{Real, elements, with_real};

/// The largest E4M3 number.
pub const LARGEST: f64 = 448.0;
/// Columns come in multiples of so many: what tensor cores take.
pub const ALIGNMENT: usize = 16;

/// A matrix `[n, k]` of E4M3 with f32 scales `[n]`: a row is its numbers times its scale.
#[derive(Clone, Debug)]
pub struct E4m3Rows {
    rows: usize,
    columns: usize,
    /// On the CPU candle's E4M3 `[n, k]`, which it has only there; on a card bytes, `n k` of numbers and then the scales.
    numbers: Tensor,
    /// On the CPU f32 `[n, 1]`; on a card they are part of `numbers`.
    scales: Option<Tensor>,
}

impl E4m3Rows {
    /// Bytes of `[rows, columns]` on a card.
    pub fn bytes(rows: usize, columns: usize) -> usize {
        rows * (columns + size_of::<f32>())
    }

    /// Quantizes rows `[n, k]`, each by itself, to the nearest numbers, ties to even. On a card their columns may be
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

    /// Quantizes [`geglu`](super::geglu) of rows `[n, 2 k]`.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn geglu(gate_up: &Tensor) -> Result<Self> {
        Self::new(gate_up, None, Source::Geglu)
    }

    /// Quantizes what [`bias_gelu_tanh`] makes of rows `[n, k]`, which may or may not be overwritten.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn gelu_tanh(x: &Tensor, bias: &Tensor) -> Result<Self> {
        Self::new(x, Some(bias), Source::GeluTanh)
    }

    /// Quantizes what [`bias_gelu_erf`] makes of rows `[n, k]`, which may or may not be overwritten.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn gelu_erf(x: &Tensor, bias: &Tensor) -> Result<Self> {
        Self::new(x, Some(bias), Source::GeluErf)
    }

    fn new(x: &Tensor, bias: Option<&Tensor>, source: Source) -> Result<Self> {
        let (rows, width) = x.dims2()?;
        let columns = source.columns(width);
        if !width.is_multiple_of(ALIGNMENT) || !columns.is_multiple_of(ALIGNMENT) {
            candle_core::bail!("E4M3 rows have multiples of {ALIGNMENT} columns, not {columns} of {x:?}");
        }
        if let Some(bias) = bias {
            super::real::expect(bias, columns, x.dtype(), "a bias")?;
        }
        if x.device().is_cpu() {
            let x = x.contiguous()?;
            let made = match (source, bias) {
                (Source::Geglu, _) => super::geglu(&x)?,
                (Source::GeluTanh, Some(bias)) => bias_gelu_tanh(&x, bias).map(|()| x)?,
                (Source::GeluErf, Some(bias)) => bias_gelu_erf(&x, bias).map(|()| x)?,
                _ => x,
            };
            return Self::on_cpu(&made.to_dtype(DType::F32)?);
        }
        let numbers = x.apply_op1_no_bwd(&ToE4m3 { bias, source })?;
        Ok(E4m3Rows { rows, columns, numbers, scales: None })
    }

    fn on_cpu(x: &Tensor) -> Result<Self> {
        let (rows, columns) = x.dims2()?;
        let largest = x.abs()?.max_keepdim(1)?; // [n, 1]
        // Divided as the cards divide: what candle makes of a number and a tensor rounds twice, which turns ties.
        let end = Tensor::full(LARGEST as f32, largest.shape(), x.device())?;
        // A row of zeros stays one: infinity times zero would be no number.
        let to = end.div(&largest)?;
        let to = largest.gt(0f64)?.where_cond(&to, &largest.zeros_like()?)?;
        let numbers = x.broadcast_mul(&to)?.to_dtype(DType::F8E4M3)?;
        Ok(E4m3Rows { rows, columns, numbers, scales: Some(largest.div(&end)?) })
    }

    /// From a card's bytes, numbers and then scales, that a kernel has written.
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

    /// Numbers `[n, k]` and scales `[n, 1]` of a card's rows, in f32 on the CPU.
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
    /// a card bf16. Accumulated in f32 (on Hopper with fewer bits, for which the quantization has no use).
    ///
    /// # Errors
    /// Shapes that do not fit; a card that does not multiply E4M3 (one before Ada, sm_89); the device's.
    pub fn product(&self, weight: &E4m3Rows, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
        self.multiplied(weight, bias, dtype, true)
    }

    /// The same, scales and bias applied by kernels after the product, as on cards for which cuBLASLt does not do it.
    ///
    /// # Errors
    /// As [`product`](Self::product).
    pub fn product_scaled_apart(&self, weight: &E4m3Rows, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
        self.multiplied(weight, bias, dtype, false)
    }

    fn multiplied(&self, weight: &E4m3Rows, bias: Option<&Tensor>, dtype: DType, by_library: bool) -> Result<Tensor> {
        if self.columns != weight.columns {
            candle_core::bail!("E4M3 rows of {} by a matrix of {}", self.columns, weight.columns);
        }
        if let Some(bias) = bias {
            super::real::expect(bias, weight.rows, dtype, "a bias")?;
        }
        if self.scales.is_some() {
            let y = self.expanded()?.matmul(&weight.expanded()?.t()?)?.to_dtype(dtype)?;
            bias.map_or(Ok(()), |bias| bias_add(&y, bias))?;
            return Ok(y);
        }
        #[cfg(feature = "cuda")]
        return on_card::product(self, weight, bias, dtype, by_library);
        #[cfg(not(feature = "cuda"))]
        candle_core::bail!("E4M3 on a device that this program was built without (scaled by the library: {by_library})")
    }
}

/// Numbers and then scales of rows that lie on the CPU, as a card keeps them.
fn bytes_of(x: &Tensor) -> Result<Vec<u8>> {
    fn fill<T: Real>(x: &[T], columns: usize) -> Vec<u8> {
        let mut bytes = vec![0; E4m3Rows::bytes(x.len() / columns, columns)];
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
fn code(x: f32) -> u8 {
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
fn number(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code & 128 == 0 { size } else { -size }
}

/// What a row's values are before they are quantized.
#[derive(Clone, Copy)]
enum Source {
    Rows,
    Geglu,
    GeluTanh,
    GeluErf,
}

impl Source {
    /// Values that come of a row of `width`.
    fn columns(self, width: usize) -> usize {
        match self {
            Source::Geglu => width / 2,
            _ => width,
        }
    }
}

/// Rows on a card to bytes: numbers, then scales.
struct ToE4m3<'a> {
    bias: Option<&'a Tensor>,
    source: Source,
}

impl CustomOp1 for ToE4m3<'_> {
    fn name(&self) -> &'static str {
        match self.source {
            Source::Rows => "e4m3_rows",
            Source::Geglu => "e4m3_geglu",
            Source::GeluTanh => "e4m3_gelu_tanh",
            Source::GeluErf => "e4m3_gelu_erf",
        }
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("a CPU has E4M3 of candle's, bias {:?}", self.bias)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (rows, width) = layout.shape().dims2()?;
        let columns = self.source.columns(width);
        let shape = Shape::from(E4m3Rows::bytes(rows, columns));
        let out = cuda::room(&x.device, &shape, DType::U8)?;
        let (from, stride) = cuda::rows(x, layout)?;
        let bytes = cuda::start(&out)?.address();
        let arguments = [
            cuda::Arg::Pointer(from),
            stride.into(),
            cuda::Arg::Pointer(bytes),
            cuda::Arg::Pointer(bytes + (rows * columns) as u64),
            columns.into(),
            cuda::optional_pointer(self.bias)?,
        ];
        let name = format!("{}_{}", self.name(), cuda::suffix(x.dtype())?);
        let threads = on_card::threads(columns)?;
        // SAFETY: the arguments are the kernel's as e4m3.cu declares them: rows that begin on 16 bytes, of as many columns
        // as `new` has checked, and room for numbers and scales.
        unsafe { super::E4M3.launch(&x.device, &name, cuda::grid((rows, 1, 1), threads, 0), &arguments) }?;
        Ok((out, shape))
    }
}

/// Launching.
#[cfg(feature = "cuda")]
pub mod on_card {
    use candle_core::op::BackpropOp;

    use super::*;

    /// Packs of eight values that a thread holds, as in e4m3.cu.
    const HELD: usize = 4;
    /// Threads of a block at most, as there.
    const MOST: usize = 512;

    /// Threads that make a row.
    ///
    /// # Errors
    /// A row that is too long.
    pub fn threads(columns: usize) -> Result<usize> {
        let packs = columns / 8;
        if packs > MOST * HELD {
            candle_core::bail!("E4M3 rows have at most {} columns, not {columns}", 8 * MOST * HELD);
        }
        // As many packs a thread as it holds: a block waits for memory once, and few threads wait for each other.
        Ok(packs.div_ceil(HELD).next_multiple_of(32).min(MOST))
    }

    /// [`E4m3Rows::product`]. `by_library`: the scales are given to the library where it takes them.
    pub(in crate::kernels) fn product(
        x: &E4m3Rows,
        weight: &E4m3Rows,
        bias: Option<&Tensor>,
        dtype: DType,
        by_library: bool,
    ) -> Result<Tensor> {
        let Device::Cuda(device) = x.numbers.device() else { candle_core::bail!("E4M3 rows on a card") };
        if dtype != DType::BF16 || !weight.rows.is_multiple_of(ALIGNMENT) {
            candle_core::bail!(
                "E4M3 products are bf16, with multiples of {ALIGNMENT} columns: {dtype:?} {}",
                weight.rows
            );
        }
        let sizes = Sizes::new(x.rows, weight.rows, x.columns);
        let shape = Shape::from((x.rows, weight.rows));
        let y = cuda::room(device, &shape, dtype)?;
        let (from, matrix) = (cuda::address(&x.numbers)?, cuda::address(&weight.numbers)?);
        let operands = Operands {
            x: from,
            weight: matrix,
            y: cuda::start(&y)?.address(),
            x_scales: from + (x.rows * x.columns) as u64,
            weight_scales: matrix + (weight.rows * weight.columns) as u64,
            bias: bias.map_or(Ok(0), cuda::address)?,
        };
        let whole = |y| Tensor::from_storage(Storage::Cuda(y), shape.clone(), BackpropOp::none(), false);
        if x.rows == 0 {
            return Ok(whole(y));
        }
        // SAFETY: both operands are E4M3 rows with their scales behind them, the outcome is as large as it is to be, and so is
        // the bias of its type.
        let multiply = |kind| unsafe { matmul(device, kind, sizes, operands) };
        if by_library {
            if bias.is_some() && multiply(Kind::E4m3ScaledBias)? {
                return Ok(whole(y));
            }
            if multiply(Kind::E4m3Scaled)? {
                let y = whole(y);
                bias.map_or(Ok(()), |bias| bias_add(&y, bias))?;
                return Ok(y);
            }
        }
        if !multiply(Kind::E4m3)? {
            candle_core::bail!("this card does not multiply E4M3 {sizes:?}: it takes one of sm_89 or newer");
        }
        let arguments = [
            cuda::Arg::Pointer(operands.y),
            cuda::Arg::Pointer(operands.x_scales),
            cuda::Arg::Pointer(operands.weight_scales),
            x.rows.into(),
            weight.rows.into(),
        ];
        let config = cuda::grid(((x.rows * weight.rows / 8).div_ceil(256), 1, 1), 256, 0);
        // SAFETY: the arguments are the kernel's as e4m3.cu declares them; rows are whole packs.
        unsafe { super::super::E4M3.launch(device, "e4m3_scale", config, &arguments) }?;
        let y = whole(y);
        bias.map_or(Ok(()), |bias| bias_add(&y, bias))?;
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

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

    #[test]
    fn weights_are_the_same_numbers_in_a_cards_bytes() -> Result<()> {
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
    fn a_product_is_off_by_what_three_bits_of_mantissa_cost() -> Result<()> {
        let draws = Draws::default();
        let (x, w) = (draws.normal(&[9, 512])?, draws.normal(&[48, 512])?);
        let got = E4m3Rows::quantize(&x)?.product(&E4m3Rows::quantize(&w)?, None, DType::F32)?;
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
        let (x, bias) = (draws.normal(&[3, 64])?.to_dtype(DType::BF16)?, draws.normal(&[64])?.to_dtype(DType::BF16)?);
        let activated = |op: fn(&Tensor, &Tensor) -> Result<()>| -> Result<Tensor> {
            let y = x.copy()?;
            op(&y, &bias)?;
            Ok(y)
        };
        for (got, want) in [
            (E4m3Rows::geglu(&x)?, crate::kernels::geglu(&x)?),
            (E4m3Rows::gelu_tanh(&x.copy()?, &bias)?, activated(bias_gelu_tanh)?),
            (E4m3Rows::gelu_erf(&x.copy()?, &bias)?, activated(bias_gelu_erf)?),
        ] {
            assert_eq!(got.expanded()?.to_vec2::<f32>()?, E4m3Rows::quantize(&want)?.expanded()?.to_vec2::<f32>()?);
        }
        Ok(())
    }
}
