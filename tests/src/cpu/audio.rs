//! A window of sound through an encoder of Whisper base's size: 6 layers of width 512, here with the 128 mel filters of large-v3.

use std::sync::Arc;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use compute::kernels::{LayerNorm, attention, bias_gelu_erf};
use compute::random::Draws;
use config::{MediaProducts, Size};
use model::checkpoint::{Checkpoint, Weights};
use model::demo_model::Dims;
use model::demo_model::size::Tower;
use protocol::plan::WINDOW_SAMPLES;
use stage_audio::{LogMel, WhisperEncoder};

use super::case::{Case, Part, floats, matmul};

const WIDTH: usize = 512;
const INNER: usize = 2048;
const HEADS: usize = 8;
const LAYERS: usize = 6;
const MELS: usize = 128;
const FRAMES: usize = 3000;
const ROWS: usize = 1500;
const TAPS: usize = 3;

/// Operations of the products of a layer, and of its attention.
fn layer() -> (f64, f64) {
    let products = matmul(ROWS, WIDTH, 4 * WIDTH) + 2.0 * matmul(ROWS, WIDTH, INNER);
    (products, 2.0 * matmul(ROWS, WIDTH, ROWS))
}

/// The whole window in its parts, and the parts of a layer alone.
///
/// # Errors
/// The model's, where there is no memory.
pub fn cases() -> Result<Vec<Case>> {
    let draws = Draws::default();
    let mut cases = vec![window()?];
    let qkv = draws.normal((1, ROWS, 3 * WIDTH))?;
    let scale = ((WIDTH / HEADS) as f32).powf(-0.5);
    cases.push(Case::single("audio.attention", layer().1, floats(4 * ROWS * WIDTH), move || {
        attention(&qkv, HEADS, scale).map(drop)
    }));
    let x = draws.normal((ROWS, WIDTH))?;
    let wide = draws.normal((ROWS, INNER))?;
    let [qkv, out, up, down] = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)];
    let [qkv, out, up, down] =
        [draws.normal(qkv)?.t()?, draws.normal(out)?.t()?, draws.normal(up)?.t()?, draws.normal(down)?.t()?];
    let rows = x.clone();
    let weights = floats(4 * WIDTH * WIDTH + 2 * WIDTH * INNER);
    cases.push(Case::single("audio.products", layer().0, weights, move || {
        for weight in [&qkv, &out, &up] {
            rows.matmul(weight)?;
        }
        wide.matmul(&down).map(drop)
    }));
    let (h, bias) = (draws.normal((ROWS, INNER))?, draws.normal(INNER)?);
    cases.push(Case::single("audio.gelu", 0.0, floats(2 * ROWS * INNER), move || bias_gelu_erf(&h, &bias)));
    let (y, gain, bias) = (draws.normal((ROWS, WIDTH))?, draws.normal(WIDTH)?, draws.normal(WIDTH)?);
    cases.push(Case::single("audio.norms", 0.0, floats(2 * 4 * ROWS * WIDTH), move || {
        let norm = LayerNorm { weight: &gain, bias: &bias, eps: 1e-5, products: MediaProducts::Dense };
        norm.after_adding(&x, &y, Some(&bias), None)?;
        norm.after_adding(&x, &y, Some(&bias), None).map(drop)
    }));
    Ok(cases)
}

fn window() -> Result<Case> {
    let tower = Tower { hidden: WIDTH as u64, layers: LAYERS as u64, heads: HEADS as u64, inter: INNER as u64 };
    let checkpoint = Arc::new(Checkpoint::random(&Dims { audio: tower, ..Dims::of(Size::Tiny) }, 1)?);
    let weights = Weights::new(checkpoint.clone(), DType::F32, Device::Cpu);
    let encoder = WhisperEncoder::new(checkpoint.config(), &weights, MediaProducts::Dense)?;
    let mel = LogMel::new(MELS);
    let hum = |i: u64| ((i as f64 * 0.17).sin() * 9000.0 + (i as f64 * 1.3).sin() * 3000.0) as i16;
    let pcm: Vec<i16> = (0..WINDOW_SAMPLES).map(hum).collect();
    let convolutions = matmul(FRAMES, TAPS * MELS, WIDTH) + matmul(ROWS, TAPS * WIDTH, WIDTH);
    let (products, attention) = layer();
    let parts = vec![
        Part::new("mel", 0.0, floats(FRAMES * MELS)),
        Part::new("convolutions", convolutions, 0.0),
        Part::new("6 layers", LAYERS as f64 * (products + attention), 0.0),
        Part::new("norm", 0.0, floats(2 * ROWS * WIDTH)),
    ];
    let last = format!("audio_layer{}", LAYERS - 1);
    let run = move |laps: &mut super::clock::Laps| {
        let mel: Tensor = mel.tensor(&pcm, &Device::Cpu)?;
        laps.lap();
        encoder.forward(&mel, &mut |part, _| {
            if part == "audio_embed" || part == last {
                laps.lap();
            }
        })?;
        laps.lap();
        Ok(())
    };
    Ok(Case { name: "audio.window", parts, run: Box::new(run) })
}
