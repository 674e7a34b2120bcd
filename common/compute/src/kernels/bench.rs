//! How fast the kernels are, beside a copy and a product of the library's.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    E4m3Rows, LayerNorm, add_rms_norm, attention, bias_gelu_erf, bias_gelu_tanh, geglu, linear, linear_gelu_tanh,
    patchify, pool, rms, rms_norm,
};
use config::MediaProducts;

/// How fast something runs.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What, and its shapes.
    pub name: String,
    /// One run.
    pub microseconds: f64,
    /// In `unit`: memory that has to be touched, or operations that have to be done, by the time.
    pub achieved: f64,
    /// `GB/s` or `TFLOP/s`.
    pub unit: &'static str,
}

/// What has to be done at least.
enum Work {
    Bytes(usize),
    Operations(usize),
}

/// What one of several runs takes, after some that warm up.
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

/// Times the kernels with the shapes of production: 32 frames of SigLIP, ten windows of Whisper, 8,192 rows of the
/// decoder. The first two figures are the ceilings: a copy, and a product of the library's.
///
/// # Errors
/// The device's.
pub fn bench(device: &Device, dtype: DType) -> Result<Vec<Figure>> {
    let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, device)?.to_dtype(dtype);
    let ones = |n: usize| Tensor::ones(n, DType::F32, device);
    let size = dtype.size_in_bytes();
    let mut figures = Vec::new();
    let mut time = |name: &str, work: Work, op: &dyn Fn() -> Result<()>| -> Result<()> {
        let seconds = seconds(device, op)?;
        let (achieved, unit) = match work {
            Work::Bytes(bytes) => (bytes as f64 / seconds / 1e9, "GB/s"),
            Work::Operations(operations) => (operations as f64 / seconds / 1e12, "TFLOP/s"),
        };
        figures.push(Figure { name: name.to_owned(), microseconds: seconds * 1e6, achieved, unit });
        Ok(())
    };

    let (n, m) = (8192, 14336);
    let (x, y) = (random(&[n, m])?, random(&[m, 4096])?);
    time("ceiling: copy 8192 x 14336", Work::Bytes(2 * n * m * size), &|| x.copy().map(drop))?;
    time("ceiling: 8192 x 14336 by 14336 x 4096", Work::Operations(2 * n * m * 4096), &|| x.matmul(&y).map(drop))?;

    let d = 3584;
    let (x, y, gain) = (random(&[n, d])?, random(&[n, d])?, ones(d)?);
    let weight = random(&[d])?;
    let row_bytes = n * d * size;
    time("decoder: rms_norm 8192 x 3584", Work::Bytes(2 * row_bytes), &|| rms_norm(&x, &gain, 1e-6).map(drop))?;
    time("decoder: add_rms_norm and norm 8192 x 3584", Work::Bytes(4 * row_bytes), &|| {
        add_rms_norm(&x, &y, &gain, Some(&gain), 1e-6, MediaProducts::Dense).map(drop)
    })?;
    time("decoder: the same, to E4M3", Work::Bytes(n * d * (3 * size + 1)), &|| {
        add_rms_norm(&x, &y, &gain, Some(&gain), 1e-6, MediaProducts::Fp8).map(drop)
    })?;
    time("adapter: rms 8192 x 3584", Work::Bytes(2 * row_bytes), &|| rms(&x, Some(&weight), 1e-5).map(drop))?;
    let gate_up = random(&[n, 2 * m])?;
    time("decoder: geglu 8192 x 2 x 14336", Work::Bytes(3 * n * m * size), &|| geglu(&gate_up).map(drop))?;
    let bytes = n * d * (size + 1);
    time("decoder: 8192 x 3584 to E4M3", Work::Bytes(bytes), &|| E4m3Rows::quantize(&x).map(drop))?;
    let bytes = n * m * (2 * size + 1);
    time("decoder: geglu 8192 x 2 x 14336 to E4M3", Work::Bytes(bytes), &|| E4m3Rows::geglu(&gate_up).map(drop))?;
    let matrix = (random(&[2 * m, d])? * 0.02)?;
    let bytes = 2 * m * d * (size + 1);
    time("decoder: weights 28672 x 3584 to E4M3", Work::Bytes(bytes), &|| E4m3Rows::quantize(&matrix).map(drop))?;
    let (rows, weight) = (E4m3Rows::quantize(&x)?, E4m3Rows::quantize(&matrix)?);
    let work = || Work::Operations(2 * n * d * 2 * m);
    time("decoder: 8192 x 3584 by 28672, E4M3", work(), &|| rows.product(&weight, None, dtype).map(drop))?;
    time("decoder: the same, scaled apart", work(), &|| rows.product_scaled_apart(&weight, None, dtype).map(drop))?;
    time("decoder: the same, 16 bit", work(), &|| x.matmul(&matrix.t()?).map(drop))?;
    drop((matrix, rows, weight));
    let one = random(&[1, d])?;
    time("decoder: rms_norm 1 x 3584", Work::Bytes(2 * d * size), &|| rms_norm(&one, &gain, 1e-6).map(drop))?;
    drop((x, y, gate_up));

    for (tower, batch, rows, width, inner, heads) in
        [("SigLIP", 32, 729, 1152, 4304, 16), ("Whisper", 10, 1500, 1280, 5120, 20)]
    {
        let (x, y) = (random(&[batch, rows, width])?, (random(&[batch, rows, width])? * 0.01)?);
        let (weight, bias) = (random(&[width])?, random(&[width])?);
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-6, products: MediaProducts::Dense };
        let all = batch * rows * width * size;
        let shape = format!("{batch} x {rows} x {width}");
        time(&format!("{tower}: layer_norm {shape}"), Work::Bytes(2 * all), &|| norm.forward(&x).map(drop))?;
        time(&format!("{tower}: add_layer_norm {shape}"), Work::Bytes(4 * all), &|| {
            norm.after_adding(&x, &y, Some(&bias), Some(6e4)).map(drop)
        })?;
        let (hidden, hidden_bias) = (random(&[batch, rows, inner])?, random(&[inner])?);
        let gelu = if tower == "SigLIP" { bias_gelu_tanh } else { bias_gelu_erf };
        let bytes = 2 * batch * rows * inner * size;
        time(&format!("{tower}: bias and gelu {batch} x {rows} x {inner}"), Work::Bytes(bytes), &|| {
            gelu(&hidden, &hidden_bias)
        })?;
        time(&format!("{tower}: gelu {batch} x {rows} x {inner} to E4M3"), Work::Bytes(bytes * 3 / 4), &|| {
            let hidden = hidden.flatten_to(1)?;
            match tower {
                "SigLIP" => E4m3Rows::gelu_tanh(&hidden, &hidden_bias),
                _ => E4m3Rows::gelu_erf(&hidden, &hidden_bias),
            }
            .map(drop)
        })?;
        let (flat, wide) = (x.flatten_to(1)?, (random(&[inner, width])? * 0.02)?);
        let work = || Work::Operations(2 * batch * rows * width * inner);
        time(&format!("{tower}: fc1 {batch} x {rows}"), work(), &|| flat.matmul(&wide.t()?).map(drop))?;
        time(&format!("{tower}: fc1 with its bias"), work(), &|| linear(&flat, &wide, &hidden_bias).map(drop))?;
        time(&format!("{tower}: fc1 with bias and gelu"), work(), &|| {
            linear_gelu_tanh(&flat, &wide, &hidden_bias).map(drop)
        })?;
        let (qkv, head) = (random(&[batch, rows, 3 * width])?, width / heads);
        let work = Work::Operations(4 * batch * rows * rows * width);
        time(&format!("{tower}: attention {batch} x {heads} x {rows} x {head}"), work, &|| {
            attention(&qkv, heads, (head as f32).powf(-0.5)).map(drop)
        })?;
    }

    let frames = Tensor::zeros((32, 384, 384, 3), DType::U8, device)?;
    let bytes = frames.elem_count() + 32 * 729 * 588 * size;
    time("SigLIP: patchify 32 frames", Work::Bytes(bytes), &|| patchify(&frames, 14, dtype).map(drop))?;
    let features = random(&[32, 729, 1152])?;
    for grid in [14, 7] {
        let bytes = (32 * 729 * 1152 + 32 * grid * grid * 4 * 1152) * size;
        time(&format!("SigLIP: pool 32 frames to {grid} x {grid}"), Work::Bytes(bytes), &|| {
            pool(&features, grid).map(drop)
        })?;
    }
    Ok(figures)
}
