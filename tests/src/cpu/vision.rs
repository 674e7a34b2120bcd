//! Frames through layers of the vision tower at full width: 16 heads of 72, 729 patches a frame.

use std::sync::Arc;

use anyhow::Result;
use candle_core::{DType, Device};
use compute::kernels::{LayerNorm, attention, bias_gelu_tanh};
use compute::random::Draws;
use config::{MediaProducts, Size};
use model::checkpoint::{Checkpoint, Weights};
use model::demo_model::Dims;
use model::demo_model::size::Tower;
use stage_vision::SiglipEncoder;

use super::case::{Case, Part, floats, matmul};

const WIDTH: usize = 1152;
const INNER: usize = 4304;
const HEADS: usize = 16;
/// Layers that run: all but the last one of the checkpoint.
const LAYERS: usize = 2;
const PATCHES: usize = 729;
const SIDE: usize = 384;
const PATCH_VALUES: usize = 3 * 14 * 14;
/// Frames at a time: `vision.batch`.
pub const FRAMES: usize = 4;
const ROWS: usize = FRAMES * PATCHES;

/// Operations of the products of a layer, and of its attention.
fn layer() -> (f64, f64) {
    let products = matmul(ROWS, WIDTH, 4 * WIDTH) + 2.0 * matmul(ROWS, WIDTH, INNER);
    (products, FRAMES as f64 * 2.0 * matmul(PATCHES, WIDTH, PATCHES))
}

/// Frames through two layers, and the parts of a layer alone.
///
/// # Errors
/// The model's, where there is no memory.
pub fn cases() -> Result<Vec<Case>> {
    let draws = Draws::default();
    let mut cases = vec![frames()?];
    let qkv = draws.normal((FRAMES, PATCHES, 3 * WIDTH))?;
    let scale = ((WIDTH / HEADS) as f32).powf(-0.5);
    cases.push(Case::single("vision.attention", layer().1, floats(4 * ROWS * WIDTH), move || {
        attention(&qkv, HEADS, scale).map(drop)
    }));
    let x = draws.normal((ROWS, WIDTH))?;
    let wide = draws.normal((ROWS, INNER))?;
    let [qkv, out, up, down] = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)];
    let [qkv, out, up, down] =
        [draws.normal(qkv)?.t()?, draws.normal(out)?.t()?, draws.normal(up)?.t()?, draws.normal(down)?.t()?];
    let rows = x.clone();
    let weights = floats(4 * WIDTH * WIDTH + 2 * WIDTH * INNER);
    cases.push(Case::single("vision.products", layer().0, weights, move || {
        for weight in [&qkv, &out, &up] {
            rows.matmul(weight)?;
        }
        wide.matmul(&down).map(drop)
    }));
    let (h, bias) = (draws.normal((ROWS, INNER))?, draws.normal(INNER)?);
    cases.push(Case::single("vision.gelu", 0.0, floats(2 * ROWS * INNER), move || bias_gelu_tanh(&h, &bias)));
    let (y, gain, bias) = (draws.normal((ROWS, WIDTH))?, draws.normal(WIDTH)?, draws.normal(WIDTH)?);
    cases.push(Case::single("vision.norms", 0.0, floats(2 * 4 * ROWS * WIDTH), move || {
        let norm = LayerNorm { weight: &gain, bias: &bias, eps: 1e-6, products: MediaProducts::Dense };
        norm.after_adding(&x, &y, Some(&bias), None)?;
        norm.after_adding(&x, &y, Some(&bias), None).map(drop)
    }));
    Ok(cases)
}

fn frames() -> Result<Case> {
    let tower = Tower { hidden: WIDTH as u64, layers: LAYERS as u64 + 1, heads: HEADS as u64, inter: INNER as u64 };
    let checkpoint = Arc::new(Checkpoint::random(&Dims { vision: tower, ..Dims::of(Size::Tiny) }, 1)?);
    let weights = Weights::new(checkpoint.clone(), DType::F32, Device::Cpu);
    let encoder = SiglipEncoder::new(checkpoint.config(), &weights, MediaProducts::Dense)?;
    let pixels = Draws::default().bytes((FRAMES, SIDE, SIDE, 3))?;
    let (products, attention) = layer();
    let parts = vec![
        Part::new("patches", matmul(ROWS, PATCH_VALUES, WIDTH), 0.0),
        Part::new("2 layers", LAYERS as f64 * (products + attention), 0.0),
    ];
    let run = move |laps: &mut super::clock::Laps| {
        encoder.forward(&pixels, &mut |part, _| {
            if part == "vision_embed" {
                laps.lap();
            }
        })?;
        laps.lap();
        Ok(())
    };
    Ok(Case { name: "vision.frames", parts, run: Box::new(run) })
}
