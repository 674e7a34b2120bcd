//! Speed of the kernels at the sizes of both models, beside the GPU's copy rate.

use std::fmt;

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use candle_core::{DType, Device, Result, Tensor};
use compute::random::Draws;

use crate::language::attention::segments::attend_segments;
use crate::language::attention::{Queries, Scoring, Segment, Visible};
use crate::language::kv::{KvFormat, KvTensor};
use crate::language::quantized::{BlockFormat, Blocks, WeightMatrix};

mod each;

/// Time of one operation.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Name of the operation.
    pub name: String,
    /// Time on the GPU.
    pub us: f64,
    /// Bytes that the operation has to move.
    pub bytes: u64,
    /// Copy rate of the GPU, read and write together, measured in the same run.
    pub copy_gb_per_s: f64,
}

impl Timing {
    /// Rate: bytes over time.
    pub fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / self.us / 1e3
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.gb_per_s() / self.copy_gb_per_s;
        write!(f, "{:<56} {:9.1} us {:7.0} GB/s, {share:3.0} % of a copy", self.name, self.us, self.gb_per_s())
    }
}

/// Attention of a model.
#[derive(Clone, Copy)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    width: usize,
    cap: Option<f64>,
    window: Option<usize>,
}

/// Attention of the 9B model, and of the 7B model.
const MODELS: [Heads; 2] = [
    Heads { heads: 16, kv_heads: 8, width: 256, cap: Some(50.0), window: Some(4_096) },
    Heads { heads: 32, kv_heads: 8, width: 128, cap: None, window: None },
];
/// Matrices of the 9B model, and of the 7B model: `[outputs, inputs]` of gates and ups, down, qkv and the head.
const MATRICES: [(usize, usize); 8] = [
    (28_672, 3_584),
    (3_584, 14_336),
    (8_192, 3_584),
    (256_000, 3_584),
    (28_672, 4_096),
    (4_096, 14_336),
    (6_144, 4_096),
    (32_768, 4_096),
];
/// Bytes of the operands that are read in turn, so that no cache holds them: several times the cache of a large GPU.
const COLD_BYTES: usize = 400 << 20;

/// Times of decoding, one text or several, and of a prompt over short and long videos, of matmuls of few rows, and of cache
/// writes.
///
/// # Errors
/// Errors of candle; a device that is no GPU.
pub fn bench(device: &Device, dtype: DType) -> Result<Vec<Timing>> {
    let mut bench = Bench { device, dtype, draws: Draws::default(), copy_gb_per_s: f64::NAN, timings: Vec::new() };
    bench.copy()?;
    for model in MODELS {
        for tokens in [2_060, 12_360, 61_800, 126_000] {
            for format in [KvFormat::Dense(dtype), KvFormat::Q8, KvFormat::Q4] {
                bench.attention(model, 1, tokens, format)?;
            }
        }
        for format in [KvFormat::Dense(dtype), KvFormat::Q8, KvFormat::Q4] {
            bench.attention(model, 50, 61_800, format)?;
            for texts in [2, 4, 8, 16, 32] {
                bench.several_texts(model, texts, 61_800, format)?;
            }
            bench.cache_write(model, format)?;
        }
    }
    for (outputs, inputs) in MATRICES {
        for format in [None, Some(BlockFormat::Q8_0), Some(BlockFormat::Q4K), Some(BlockFormat::Q6K)] {
            bench.matmul(outputs, inputs, format)?;
        }
    }
    Ok(bench.timings)
}

struct Bench<'a> {
    device: &'a Device,
    dtype: DType,
    draws: Draws,
    copy_gb_per_s: f64,
    timings: Vec<Timing>,
}

impl Bench<'_> {
    /// Time on the GPU of one run of `operation`, in microseconds. The runs queue up behind matmuls that keep the GPU
    /// busy until the host has launched all of them: what is measured is the GPU, not the host.
    fn time(&self, runs: usize, mut operation: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        let Device::Cuda(gpu) = self.device else { candle_core::bail!("benchmark refused: the device is no GPU") };
        let busy = Tensor::zeros((8_192, 8_192), DType::BF16, self.device)?;
        (0..3).try_for_each(&mut operation)?;
        busy.matmul(&busy)?;
        self.device.synchronize()?;
        let stream = gpu.cuda_stream();
        for _ in 0..24 {
            busy.matmul(&busy)?;
        }
        let start = stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
        (0..runs).try_for_each(&mut operation)?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT)).w()?;
        self.device.synchronize()?;
        Ok(f64::from(start.elapsed_ms(&end).w()?) * 1e3 / runs as f64)
    }

    fn note(&mut self, name: String, us: f64, bytes: usize) {
        self.timings.push(Timing { name, us, bytes: bytes as u64, copy_gb_per_s: self.copy_gb_per_s });
    }

    fn copy(&mut self) -> Result<()> {
        let from = Tensor::zeros(1 << 30, DType::U8, self.device)?;
        let us = self.time(10, |_| from.copy().map(drop))?;
        self.copy_gb_per_s = 2.0 * f64::from(1 << 30) / us / 1e3;
        self.note("copy of 1 GiB".to_owned(), us, 2 << 30);
        Ok(())
    }

    fn rows(&self, n: usize, width: usize) -> Result<Tensor> {
        self.draws.normal((n, width))?.to_dtype(self.dtype)?.to_device(self.device)
    }

    /// Cache of random rows: one block of them, over and over.
    fn cache(&self, model: Heads, format: KvFormat, tokens: usize, rows: &Tensor) -> Result<KvTensor> {
        let kv = KvTensor::new(format, model.kv_heads, tokens, model.width, self.device)?;
        for at in (0..tokens).step_by(rows.dim(0)?) {
            kv.write(&rows.narrow(0, 0, rows.dim(0)?.min(tokens - at))?, at)?;
        }
        Ok(kv)
    }

    /// Attention of one layer, of `n` queries to 40 text tokens and a video, nineteen parts image to one part audio.
    fn attention(&mut self, model: Heads, n: usize, tokens: usize, format: KvFormat) -> Result<()> {
        let Heads { heads, kv_heads, width, cap, window } = model;
        let rows = self.rows(1_000, kv_heads * width)?;
        let text = (
            self.cache(model, KvFormat::Dense(self.dtype), 40 + n, &rows)?,
            self.cache(model, KvFormat::Dense(self.dtype), 40 + n, &rows)?,
        );
        let (audio, bytes) = (tokens / 20, tokens * format.bytes_per_token(kv_heads, width) as usize);
        let layers = (0..(COLD_BYTES / bytes + 1).min(42))
            .map(|_| {
                let cache = |tokens: usize| self.cache(model, format, tokens, &rows);
                Ok([cache(tokens - audio)?, cache(tokens - audio)?, cache(audio)?, cache(audio)?])
            })
            .collect::<Result<Vec<_>>>()?;
        let q = self.rows(n, heads * width)?;
        let scoring = Scoring { scale: (width as f64).powf(-0.5), cap };
        let us = self.time(60, |i| {
            let [ik, iv, ak, av] = &layers[i % layers.len()];
            let segment = |keys, values, len, visible| Segment { keys, values, len, visible };
            let segments = [
                segment(&text.0, &text.1, 40 + n, Visible::Causal { first: 40, window }),
                segment(ik, iv, tokens - audio, Visible::All),
                segment(ak, av, audio, Visible::All),
            ];
            attend_segments(Queries { rotated: &q, plain: &q }, &segments, scoring).map(drop)
        })?;
        self.note(format!("attention of {n} over {tokens}, {heads} x {width}, {format:?}"), us, bytes);
        Ok(())
    }

    fn cache_write(&mut self, model: Heads, format: KvFormat) -> Result<()> {
        let Heads { kv_heads, width, .. } = model;
        let n = 8_192;
        let rows = self.rows(n, 2 * kv_heads * width)?;
        let kv = KvTensor::new(format, kv_heads, 4 * n, width, self.device)?;
        let keys = rows.narrow(1, 0, kv_heads * width)?;
        let us = self.time(60, |i| kv.write(&keys, i % 4 * n))?;
        let bytes = n * (kv_heads * width * self.dtype.size_in_bytes())
            + n * format.bytes_per_token(kv_heads, width) as usize / 2;
        self.note(format!("cache write of {n} keys, {kv_heads} x {width}, {format:?}"), us, bytes);
        Ok(())
    }

    fn matmul(&mut self, outputs: usize, inputs: usize, format: Option<BlockFormat>) -> Result<()> {
        // One stretch of random rows, over and over: the time does not depend on the values.
        let stretch = 256;
        let values: Vec<f32> = self.draws.normal(stretch * inputs)?.to_vec1()?;
        let (name, bytes) = match format {
            None => ("dense".to_owned(), outputs * inputs * self.dtype.size_in_bytes()),
            Some(f) => (format!("{f:?}"), outputs * f.row_bytes(inputs)?),
        };
        let weights = match format {
            None => {
                let w = Tensor::from_vec(values, (stretch, inputs), self.device)?.to_dtype(self.dtype)?;
                WeightMatrix::Dense(w.repeat((outputs / stretch, 1))?)
            }
            Some(f) => {
                let bytes = f.quantize(&values, inputs)?.repeat(outputs / stretch);
                WeightMatrix::Blocks(Blocks::new(f, outputs, inputs, &bytes, self.device)?)
            }
        };
        let mut copies = vec![weights];
        while copies.len() * bytes < COLD_BYTES {
            copies.push(match &copies[0] {
                WeightMatrix::Dense(w) => WeightMatrix::Dense(w.copy()?),
                WeightMatrix::Blocks(b) => WeightMatrix::Blocks(b.copied()?),
            });
        }
        for m in [1, 2, 8, 16, 32, 64, 128] {
            let x = self.rows(m, inputs)?;
            let us = self.time(100, |i| copies[i % copies.len()].forward(&x).map(drop))?;
            self.note(format!("matmul of {m} rows with {outputs} x {inputs}, {name}"), us, bytes);
        }
        Ok(())
    }
}
