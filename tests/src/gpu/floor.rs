//! Floors of a GPU: the operations of a video over the rate of its matmuls, and the bytes of a token over the rate of its
//! copies, both measured on that GPU.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use compute::Compute;
use compute::kernels::E4m3Rows;
use compute::kernels::bench::{seconds, sustained_seconds};
use config::{ComputeConfig, Config, LlmConfig, MediaProducts, Precision};
use model::config_json::ModelConfig;
use protocol::error::StageName;
use protocol::plan::{AudioPlan, ImagePlan, SAMPLE_RATE, WINDOW_SAMPLES};
use serde::{Deserialize, Serialize};
use stage_llm::language::footprint::LlmFootprint;

/// Measured rates of a GPU.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// Bytes per second of a copy, read and written together.
    pub copy_bytes_per_s: f64,
    /// Rates of matmuls that last milliseconds.
    pub matmuls: Matmuls,
    /// The same once they have lasted for half a second, when a GPU at its power limit has lowered its clock.
    pub sustained: Matmuls,
}

/// Rates of matmuls; a multiplication and an addition are two operations.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Matmuls {
    /// Operations per second of a 16-bit matmul of 8192 x 14336 by 14336 x 4096.
    pub dense: f64,
    /// Operations per second of a matmul of 8192 x 3584 by 3584 x 28672 in E4M3; none if the GPU does not support it.
    pub e4m3: Option<f64>,
}

impl Matmuls {
    /// Rate of the matmuls of frames, sound and their tokens.
    fn of_media(&self, products: MediaProducts) -> f64 {
        match (products, self.e4m3) {
            (MediaProducts::Fp8, Some(e4m3)) => e4m3,
            _ => self.dense,
        }
    }
}

impl std::fmt::Display for Matmuls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let e4m3 = self.e4m3.map_or_else(|| "none".to_owned(), |e| format!("{:.0}", e / 1e12));
        write!(f, "{:.0} TFLOP/s, in E4M3 {e4m3}", self.dense / 1e12)
    }
}

/// What the vendor says of an RTX 4090, which nobody here has: 1 TB/s, and 165 TFLOP/s in 16 bits, 330 in E4M3, summed in f32.
pub const RTX_4090: Ceilings = {
    let matmuls = Matmuls { dense: 165e12, e4m3: Some(330e12) };
    Ceilings { copy_bytes_per_s: 1e12, matmuls, sustained: matmuls }
};

impl Ceilings {
    /// Rates measured on a device, whose memory this process then holds.
    ///
    /// # Errors
    /// That of the device, or if there is none.
    pub fn measure(device: &str) -> anyhow::Result<Self> {
        let config = ComputeConfig { device: device.to_owned(), dtype: Precision::Bf16, ..ComputeConfig::default() };
        let device = Compute::open(&config, None)?.device;
        let random = |rows: usize, columns: usize| -> candle_core::Result<Tensor> {
            Tensor::randn(0f32, 1.0, (rows, columns), &device)?.to_dtype(DType::BF16)
        };
        let (n, inputs, outputs) = (8_192, 14_336, 4_096);
        let (x, weight) = (random(n, inputs)?, random(inputs, outputs)?);
        let copy = seconds(&device, || x.copy().map(drop))?;
        let bytes = 2 * n * inputs * DType::BF16.size_in_bytes();
        let (inputs_8, outputs_8) = (3_584, 28_672);
        let rows = || -> candle_core::Result<(E4m3Rows, E4m3Rows)> {
            Ok((E4m3Rows::quantize(&random(n, inputs_8)?)?, E4m3Rows::quantize(&random(outputs_8, inputs_8)?)?))
        };
        let rows = rows().ok();
        let rates = |time: fn(&Device, &mut dyn FnMut() -> candle_core::Result<()>) -> candle_core::Result<f64>| {
            let dense = time(&device, &mut || x.matmul(&weight).map(drop))?;
            let e4m3 = rows.as_ref().and_then(|(x, weight)| {
                // A GPU without such matmuls says so here.
                time(&device, &mut || x.matmul(weight, None, DType::BF16).map(drop)).ok()
            });
            candle_core::Result::Ok(Matmuls {
                dense: (2 * n * inputs * outputs) as f64 / dense,
                e4m3: e4m3.map(|s| (2 * n * inputs_8 * outputs_8) as f64 / s),
            })
        };
        Ok(Ceilings {
            copy_bytes_per_s: bytes as f64 / copy,
            matmuls: rates(|device, work| seconds(device, work))?,
            sustained: rates(|device, work| sustained_seconds(device, work))?,
        })
    }

    /// These with what matmuls keep up.
    fn kept_up(&self) -> Self {
        Ceilings { matmuls: self.sustained, ..*self }
    }

    /// Rates measured by another process, whose GPU memory is free when this returns.
    ///
    /// # Errors
    /// The error of that process.
    pub fn of(device: &str) -> anyhow::Result<Self> {
        let output = Command::new(std::env::current_exe()?)
            .args(["ceilings", device])
            .stdin(Stdio::null())
            .output()
            .context("gpu_bench ceilings")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "gpu_bench ceilings {device}: {}", said.trim());
        serde_json::from_slice(&output.stdout).context("gpu_bench ceilings")
    }
}

/// Least time of a question about a video on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Seconds to the first token: every matmul at the measured rate, and the language model's weights read once.
    pub first_token_s: f64,
    /// Milliseconds per token: weights, keys and values read once.
    pub ms_per_token: f64,
}

/// Floors of a question by both rates of matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Floors {
    /// At the rates of matmuls that last milliseconds.
    pub short: Floor,
    /// At the rates that the GPU keeps up.
    pub kept_up: Floor,
}

impl Floors {
    /// Both as [`Floor::new`] has one.
    ///
    /// # Errors
    /// Those of [`Floor::new`].
    pub fn new(seconds: u64, model: &ModelConfig, config: &Config, ceilings: &Ceilings) -> anyhow::Result<Self> {
        Ok(Floors {
            short: Floor::new(seconds, model, config, ceilings)?,
            kept_up: Floor::new(seconds, model, config, &ceilings.kept_up())?,
        })
    }
}

/// The language model's footprint as text meets it: what is kept for image and audio tokens alone is not read for it.
///
/// # Errors
/// Weights that do not exist in the configured format.
pub fn footprint_of_text(model: &ModelConfig, config: &Config) -> anyhow::Result<LlmFootprint> {
    let llm = LlmConfig { keep_fp8: false, ..config.llm.clone() };
    Ok(LlmFootprint::new(model, &llm, &config.compute)?)
}

impl Floor {
    /// The floor for so many seconds of video with audio, at one frame per second, with a configuration.
    ///
    /// # Errors
    /// Weights that do not exist in the configured format.
    pub fn new(seconds: u64, model: &ModelConfig, config: &Config, ceilings: &Ceilings) -> anyhow::Result<Self> {
        let image = ImagePlan::on(model.image_pool().grid(), 1, seconds).tokens;
        let audio = AudioPlan::new(seconds * SAMPLE_RATE).map_or(0, |a| a.tokens);
        let windows = (seconds * SAMPLE_RATE).div_ceil(WINDOW_SAMPLES);
        let work = of_frame(model) * seconds as f64
            + of_window(model) * windows as f64
            + of_media_token(model) * (image + audio) as f64;
        let media_rate = ceilings.matmuls.of_media(config.compute.media_products);
        let footprint = footprint_of_text(model, config)?;
        let weights_s = footprint.fixed.weights_bytes as f64 / ceilings.copy_bytes_per_s;
        let cache_bytes = footprint.media_token_bytes * (image + audio);
        let first_token_s = work.matmuls / media_rate + work.attention / ceilings.matmuls.dense + weights_s;
        Ok(Floor { first_token_s, ms_per_token: 1e3 * (weights_s + cache_bytes as f64 / ceilings.copy_bytes_per_s) })
    }
}

impl Floor {
    /// Times on another GPU, where `self` is the floor of that one and `here` the floor of this one, on which `measured` was seen: each
    /// part of a question is as many times its floor there as it is here. What the host and the bus take grows with it, so it is
    /// rather too much.
    pub fn at_the_same_efficiency(&self, here: &Floor, measured: &Floor) -> Floor {
        Floor {
            first_token_s: self.first_token_s * measured.first_token_s / here.first_token_s,
            ms_per_token: self.ms_per_token * measured.ms_per_token / here.ms_per_token,
        }
    }
}

/// Numbers of operations: in matmuls with weights, and in attention.
#[derive(Clone, Copy)]
struct Work {
    matmuls: f64,
    attention: f64,
}

impl std::ops::Mul<f64> for Work {
    type Output = Work;
    fn mul(self, n: f64) -> Work {
        Work { matmuls: self.matmuls * n, attention: self.attention * n }
    }
}

impl std::ops::Add for Work {
    type Output = Work;
    fn add(self, other: Work) -> Work {
        Work { matmuls: self.matmuls + other.matmuls, attention: self.attention + other.attention }
    }
}

/// Encoder of frames or of windows of sound.
#[derive(Clone, Copy, Debug)]
pub enum Encoder {
    /// The vision tower; of frames.
    Vision,
    /// The audio encoder; of windows.
    Audio,
}

impl Encoder {
    /// Stage that runs it.
    pub fn stage(self) -> StageName {
        match self {
            Encoder::Vision => StageName::Vision,
            Encoder::Audio => StageName::Audio,
        }
    }

    /// What goes through it.
    pub fn units(self) -> &'static str {
        match self {
            Encoder::Vision => "frames",
            Encoder::Audio => "windows",
        }
    }

    /// Least seconds of its layers for a frame or a window: every matmul at the measured rate.
    pub fn floor_s(self, model: &ModelConfig, products: MediaProducts, ceilings: &Ceilings) -> f64 {
        let work = match self {
            Encoder::Vision => of_frame(model),
            Encoder::Audio => of_window(model),
        };
        work.matmuls / ceilings.matmuls.of_media(products) + work.attention / ceilings.matmuls.dense
    }
}

/// Work of `layers` of an encoder over `rows` of `width`: four projections, a feed-forward part of `inner`, attention.
fn of_encoder(layers: usize, rows: usize, width: usize, inner: usize) -> Work {
    let (layers, rows, width, inner) = (layers as f64, rows as f64, width as f64, inner as f64);
    Work {
        matmuls: layers * 2.0 * rows * (4.0 * width * width + 2.0 * width * inner),
        attention: layers * 4.0 * rows * rows * width,
    }
}

/// Work of the vision tower on a frame.
fn of_frame(model: &ModelConfig) -> Work {
    let c = &model.vision;
    of_encoder(model.vision_layers(), c.side() * c.side(), c.hidden_size, c.intermediate_size)
}

/// Work of the audio tower on a window.
fn of_window(model: &ModelConfig) -> Work {
    let c = &model.audio;
    of_encoder(c.encoder_layers, c.max_source_positions, c.d_model, c.encoder_ffn_dim)
}

/// Work of the decoder on an image or audio token: keys and values, the folded output projection and the feed-forward
/// part; in the last layer keys and values only.
fn of_media_token(model: &ModelConfig) -> Work {
    let (d, inner) = (model.hidden_size as f64, model.intermediate_size as f64);
    let kv = (model.num_key_value_heads * model.head_dim) as f64;
    let layers = model.num_hidden_layers as f64;
    Work { matmuls: 2.0 * d * (layers * 2.0 * kv + (layers - 1.0) * (kv + 3.0 * inner)), attention: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected floors were worked out by hand for an H200, from its measured rates.
    #[test]
    fn floors_are_those_worked_out_by_hand() {
        let matmuls = Matmuls { dense: 783e12, e4m3: Some(1_380e12) };
        let sustained = Matmuls { dense: 680e12, e4m3: Some(1_190e12) };
        let h200 = Ceilings { copy_bytes_per_s: 4.27e12, matmuls, sustained };
        let mut config = Config::default();
        config.compute.dtype = Precision::Bf16;
        let floor = |seconds, config: &Config| Floor::new(seconds, &ModelConfig::default(), config, &h200).unwrap();
        for (seconds, first_token_s, ms) in [(10, 0.06, 4.5), (60, 0.30, 5.3), (300, 1.5, 9.3), (3600, 5.8, 14.5)] {
            let got = floor(seconds, &config);
            assert!((got.first_token_s / first_token_s - 1.0).abs() < 0.12, "{seconds}: {got:?}");
            assert!((got.ms_per_token / ms - 1.0).abs() < 0.02, "{seconds}: {got:?}");
        }
        let dense = floor(300, &config);
        config.compute.media_products = MediaProducts::Fp8;
        let fp8 = floor(300, &config);
        assert!(fp8.first_token_s < 0.65 * dense.first_token_s && fp8.ms_per_token == dense.ms_per_token, "{fp8:?}");
        config.llm.keep_fp8 = true;
        assert_eq!(floor(300, &config), fp8);
        let floors = Floors::new(300, &ModelConfig::default(), &config, &h200).unwrap();
        assert_eq!(floors.short, fp8);
        assert!((1.1..1.2).contains(&(floors.kept_up.first_token_s / fp8.first_token_s)), "{floors:?}");
        let there = Floor::new(300, &ModelConfig::default(), &config, &RTX_4090).unwrap();
        let twice = Floor { first_token_s: 2.0 * fp8.first_token_s, ms_per_token: 1.5 * fp8.ms_per_token };
        let paper = there.at_the_same_efficiency(&fp8, &twice);
        assert!((paper.first_token_s / there.first_token_s - 2.0).abs() < 1e-9, "{paper:?}");
        assert!((paper.ms_per_token / there.ms_per_token - 1.5).abs() < 1e-9, "{paper:?}");
        assert_eq!(there.at_the_same_efficiency(&fp8, &fp8), there);
        config.llm.weights = config::WeightFormat::Q4;
        config.llm.kv = config::KvPrecision::Q4;
        assert!(floor(300, &config).ms_per_token < 0.35 * dense.ms_per_token);
    }
}
