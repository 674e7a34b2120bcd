//! Times of the kernels, beside a copy and a matmul of the library's.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    Activation, E4m3Rows, LayerNorm, add_rms_norm_then, add_then_rms_norm, attention, bias_gelu_erf, bias_gelu_tanh,
    glu, linear, linear_gelu_tanh, patchify, pool, rms, rms_norm,
};
use config::MediaProducts;

/// Time of one operation, and the rate that it comes to.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The operation and its shapes.
    pub name: String,
    /// Time of one run.
    pub microseconds: f64,
    /// In `unit`: memory that has to be touched, or operations that have to be done, by the time.
    pub achieved: f64,
    /// `GB/s` or `TFLOP/s`.
    pub unit: &'static str,
}

/// Bytes or operations that an operation cannot do without.
enum Work {
    Bytes(usize),
    Operations(usize),
}

/// Seconds that one of several runs takes, after some that warm up.
///
/// # Errors
/// `work`'s; the device's.
pub fn seconds(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    const RUNS: u32 = 20;
    for _ in 0..3 {
        work()?;
    }
    device.synchronize()?;
    let begin = Instant::now();
    for _ in 0..RUNS {
        work()?;
    }
    device.synchronize()?;
    Ok(begin.elapsed().as_secs_f64() / f64::from(RUNS))
}

/// Seconds that one run takes once a device has worked on nothing else for half a second: a GPU at its power limit lowers its clock.
///
/// # Errors
/// `work`'s; the device's.
pub fn sustained_seconds(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let once = seconds(device, &mut work)?;
    let runs = (0.5 / once).ceil() as u32;
    let mut took = 0.0;
    // The second half counts.
    for _ in 0..2 {
        let begin = Instant::now();
        for _ in 0..runs {
            work()?;
        }
        device.synchronize()?;
        took = begin.elapsed().as_secs_f64();
    }
    Ok(took / f64::from(runs))
}

/// Times the kernels with the shapes of production: 32 frames of SigLIP, ten windows of Whisper, 8,192 rows of the
/// decoder. The first two figures are the ceilings: a copy, and a matmul of the library's.
///
/// # Errors
/// The device's.
pub fn bench(device: &Device, dtype: DType) -> Result<Vec<Figure>> {
    let mut bench = Bench { device, dtype, size: dtype.size_in_bytes(), figures: Vec::new() };
    bench.ceilings()?;
    bench.decoder_rows()?;
    bench.plain_decoder_rows()?;
    bench.decoder_e4m3()?;
    bench.tower(&Tower { name: "SigLIP", batch: 32, rows: 729, width: 1152, inner: 4304, heads: 16 })?;
    bench.tower(&Tower { name: "Whisper", batch: 10, rows: 1500, width: 1280, inner: 5120, heads: 20 })?;
    bench.ends_of_vision()?;
    Ok(bench.figures)
}

/// Rows of the 9B model's decoder, its width, and that of its feed-forward part.
const DECODER: (usize, usize, usize) = (8192, 3584, 14336);
/// Width of the 7B model's decoder, whose layers add without norms; all else is as of the other.
const PLAIN_WIDTH: usize = 4096;

/// Shapes of an encoder's layer.
struct Tower {
    name: &'static str,
    batch: usize,
    rows: usize,
    width: usize,
    inner: usize,
    heads: usize,
}

struct Bench<'a> {
    device: &'a Device,
    dtype: DType,
    /// Bytes of a value.
    size: usize,
    figures: Vec<Figure>,
}

impl Bench<'_> {
    fn random(&self, shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f32, 1.0, shape, self.device)?.to_dtype(self.dtype)
    }

    fn time(&mut self, name: &str, work: Work, op: &dyn Fn() -> Result<()>) -> Result<()> {
        let seconds = seconds(self.device, op)?;
        let (achieved, unit) = match work {
            Work::Bytes(bytes) => (bytes as f64 / seconds / 1e9, "GB/s"),
            Work::Operations(operations) => (operations as f64 / seconds / 1e12, "TFLOP/s"),
        };
        self.figures.push(Figure { name: name.to_owned(), microseconds: seconds * 1e6, achieved, unit });
        Ok(())
    }

    fn ceilings(&mut self) -> Result<()> {
        let ((n, _, m), size) = (DECODER, self.size);
        let (x, y) = (self.random(&[n, m])?, self.random(&[m, 4096])?);
        self.time("ceiling: copy 8192 x 14336", Work::Bytes(2 * n * m * size), &|| x.copy().map(drop))?;
        self.time("ceiling: 8192 x 14336 by 14336 x 4096", Work::Operations(2 * n * m * 4096), &|| {
            x.matmul(&y).map(drop)
        })?;
        Ok(())
    }

    fn decoder_rows(&mut self) -> Result<()> {
        let ((n, d, m), size) = (DECODER, self.size);
        let (x, y, gain) = (self.random(&[n, d])?, self.random(&[n, d])?, Tensor::ones(d, DType::F32, self.device)?);
        let weight = self.random(&[d])?;
        let row_bytes = n * d * size;
        self.time("decoder: rms_norm 8192 x 3584", Work::Bytes(2 * row_bytes), &|| {
            rms_norm(&x, &gain, 1e-6).map(drop)
        })?;
        self.time("decoder: add_rms_norm and norm 8192 x 3584", Work::Bytes(4 * row_bytes), &|| {
            add_rms_norm_then(&x, &y, &gain, &gain, 1e-6, MediaProducts::Dense).map(drop)
        })?;
        self.time("decoder: the same, to E4M3", Work::Bytes(n * d * (3 * size + 1)), &|| {
            add_rms_norm_then(&x, &y, &gain, &gain, 1e-6, MediaProducts::Fp8).map(drop)
        })?;
        self.time("adapter: rms 8192 x 3584", Work::Bytes(2 * row_bytes), &|| rms(&x, Some(&weight), 1e-5).map(drop))?;
        let gate_up = self.random(&[n, 2 * m])?;
        for (name, activation) in [("geglu", Activation::GeluTanh), ("swiglu", Activation::Silu)] {
            let name = format!("decoder: {name} 8192 x 2 x 14336");
            self.time(&name, Work::Bytes(3 * n * m * size), &|| glu(&gate_up, activation).map(drop))?;
        }
        let one = self.random(&[1, d])?;
        self.time("decoder: rms_norm 1 x 3584", Work::Bytes(2 * d * size), &|| rms_norm(&one, &gain, 1e-6).map(drop))?;
        Ok(())
    }

    fn plain_decoder_rows(&mut self) -> Result<()> {
        let ((n, ..), d, size) = (DECODER, PLAIN_WIDTH, self.size);
        // Adding zeros leaves the sum what it is, however often it is added to.
        let (x, y, gain) = (
            self.random(&[n, d])?,
            Tensor::zeros((n, d), self.dtype, self.device)?,
            Tensor::ones(d, DType::F32, self.device)?,
        );
        self.time("decoder: add and rms_norm 8192 x 4096", Work::Bytes(4 * n * d * size), &|| {
            add_then_rms_norm(&x, &y, &gain, 1e-5, MediaProducts::Dense).map(drop)
        })?;
        self.time("decoder: add and rms_norm 8192 x 4096 to E4M3", Work::Bytes(n * d * (3 * size + 1)), &|| {
            add_then_rms_norm(&x, &y, &gain, 1e-5, MediaProducts::Fp8).map(drop)
        })
    }

    fn decoder_e4m3(&mut self) -> Result<()> {
        let ((n, d, m), size, dtype) = (DECODER, self.size, self.dtype);
        let x = self.random(&[n, d])?;
        let bytes = n * d * (size + 1);
        self.time("decoder: 8192 x 3584 to E4M3", Work::Bytes(bytes), &|| E4m3Rows::quantize(&x).map(drop))?;
        let matrix = (self.random(&[2 * m, d])? * 0.02)?;
        let bytes = 2 * m * d * (size + 1);
        self.time("decoder: weights 28672 x 3584 to E4M3", Work::Bytes(bytes), &|| {
            E4m3Rows::quantize(&matrix).map(drop)
        })?;
        let (rows, weight) = (E4m3Rows::quantize(&x)?, E4m3Rows::quantize(&matrix)?);
        let work = || Work::Operations(2 * n * d * 2 * m);
        self.time("decoder: 8192 x 3584 by 28672, E4M3", work(), &|| rows.matmul(&weight, None, dtype).map(drop))?;
        self.time("decoder: the same, scaled apart", work(), &|| {
            rows.product_scaled_apart(&weight, None, dtype)?.finished().map(drop)
        })?;
        for (name, activation) in [("geglu", Activation::GeluTanh), ("swiglu", Activation::Silu)] {
            self.time(&format!("decoder: the same and {name} to E4M3"), work(), &|| {
                E4m3Rows::glu(rows.product(&weight, None, dtype)?, activation).map(drop)
            })?;
            self.time(&format!("decoder: the same, scaled by {name}"), work(), &|| {
                E4m3Rows::glu(rows.product_scaled_apart(&weight, None, dtype)?, activation).map(drop)
            })?;
        }
        self.time("decoder: the same, 16 bit", work(), &|| x.matmul(&matrix.t()?).map(drop))?;
        Ok(())
    }

    fn tower(&mut self, shapes: &Tower) -> Result<()> {
        let &Tower { name: tower, batch, rows, width, heads, .. } = shapes;
        let size = self.size;
        let (x, y) = (self.random(&[batch, rows, width])?, (self.random(&[batch, rows, width])? * 0.01)?);
        let (weight, bias) = (self.random(&[width])?, self.random(&[width])?);
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-6, products: MediaProducts::Dense };
        let all = batch * rows * width * size;
        let shape = format!("{batch} x {rows} x {width}");
        self.time(&format!("{tower}: layer_norm {shape}"), Work::Bytes(2 * all), &|| norm.forward(&x).map(drop))?;
        self.time(&format!("{tower}: add_layer_norm {shape}"), Work::Bytes(4 * all), &|| {
            norm.after_adding(&x, &y, Some(&bias), Some(6e4)).map(drop)
        })?;
        let (qkv, head) = (self.random(&[batch, rows, 3 * width])?, width / heads);
        let work = Work::Operations(4 * batch * rows * rows * width);
        self.time(&format!("{tower}: attention {batch} x {heads} x {rows} x {head}"), work, &|| {
            attention(&qkv, heads, (head as f32).powf(-0.5)).map(drop)
        })?;
        self.tower_feed_forward(shapes)
    }

    fn tower_feed_forward(&mut self, shapes: &Tower) -> Result<()> {
        let &Tower { name: tower, batch, rows, width, inner, .. } = shapes;
        let size = self.size;
        let (hidden, hidden_bias) = (self.random(&[batch, rows, inner])?, self.random(&[inner])?);
        let gelu = if tower == "SigLIP" { bias_gelu_tanh } else { bias_gelu_erf };
        let bytes = 2 * batch * rows * inner * size;
        self.time(&format!("{tower}: bias and gelu {batch} x {rows} x {inner}"), Work::Bytes(bytes), &|| {
            gelu(&hidden, &hidden_bias)
        })?;
        let (flat, wide) = (self.random(&[batch * rows, width])?, (self.random(&[inner, width])? * 0.02)?);
        let work = || Work::Operations(2 * batch * rows * width * inner);
        self.time(&format!("{tower}: fc1 {batch} x {rows}"), work(), &|| flat.matmul(&wide.t()?).map(drop))?;
        self.time(&format!("{tower}: fc1 with its bias"), work(), &|| linear(&flat, &wide, &hidden_bias).map(drop))?;
        self.time(&format!("{tower}: fc1 with bias and gelu"), work(), &|| {
            linear_gelu_tanh(&flat, &wide, &hidden_bias).map(drop)
        })?;
        let (flat, wide) = (E4m3Rows::quantize(&flat)?, E4m3Rows::quantize(&wide)?);
        let dtype = self.dtype;
        self.time(&format!("{tower}: fc1 with its bias, E4M3"), work(), &|| {
            flat.matmul(&wide, Some(&hidden_bias), dtype).map(drop)
        })?;
        let activated = |product| match tower {
            "SigLIP" => E4m3Rows::gelu_tanh(product),
            _ => E4m3Rows::gelu_erf(product),
        };
        self.time(&format!("{tower}: the same and gelu to E4M3"), work(), &|| {
            activated(flat.product(&wide, Some(&hidden_bias), dtype)?).map(drop)
        })?;
        self.time(&format!("{tower}: the same, scaled by gelu"), work(), &|| {
            activated(flat.product_scaled_apart(&wide, Some(&hidden_bias), dtype)?).map(drop)
        })?;
        Ok(())
    }

    fn ends_of_vision(&mut self) -> Result<()> {
        let (size, dtype) = (self.size, self.dtype);
        let frames = Tensor::zeros((32, 384, 384, 3), DType::U8, self.device)?;
        let bytes = frames.elem_count() + 32 * 729 * 588 * size;
        self.time("SigLIP: patchify 32 frames", Work::Bytes(bytes), &|| patchify(&frames, 14, dtype).map(drop))?;
        let features = self.random(&[32, 729, 1152])?;
        for grid in [14, 7] {
            let bytes = (32 * 729 * 1152 + 32 * grid * grid * 4 * 1152) * size;
            self.time(&format!("SigLIP: pool 32 frames to {grid} x {grid}"), Work::Bytes(bytes), &|| {
                pool(&features, grid).map(drop)
            })?;
        }
        Ok(())
    }
}
