//! Towers and adapters from frames and audio to tokens, with every boundary compared in the ledger.

use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Tensor};
use compute::Compute;
use model::checkpoint::{Checkpoint, Weights};
use protocol::plan::{AUDIO_POOL, AudioPlan, FRAME_BYTES, FRAME_SIDE, ImagePlan, WINDOW_ROWS, WINDOW_SAMPLES};
use stage_audio::{LogMel, WhisperEncoder};
use stage_fuse::Fuser;
use stage_vision::pixels::pixel_values;
use stage_vision::{Pool, SiglipEncoder};

use super::ledger::Ledger;
use super::roundings;

/// Number of frames per pass through the vision tower.
const BATCH: usize = 4;

/// Image and audio tokens in the language model's space, `[n, D]`.
#[derive(Debug, Default)]
pub struct Fused {
    /// Image tokens.
    pub image: Option<Tensor>,
    /// Audio tokens.
    pub audio: Option<Tensor>,
}

/// Tokens of a video through all stages before the language model.
///
/// # Errors
/// A checkpoint that cannot be loaded; candle's.
pub fn fuse(
    checkpoint: &Arc<Checkpoint>,
    compute: &Compute,
    frames: Option<(&[u8], &ImagePlan)>,
    pcm: Option<(&[i16], &AudioPlan)>,
    ledger: &mut Ledger<'_>,
) -> anyhow::Result<Fused> {
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device.clone());
    let mut fuser = Fuser::new(checkpoint.config(), &weights).context("adapters")?;
    if compute.dtype == DType::F32 {
        roundings::follow(&mut fuser, ledger.golden())?;
    }
    let vision = || stage_vision::load(checkpoint.config(), &weights, compute.media_products).context("vision tower");
    let image = frames.map(|(rows, plan)| image_tokens(&vision()?, &mut fuser, rows, plan, ledger)).transpose()?;
    let sound = || WhisperEncoder::new(checkpoint.config(), &weights, compute.media_products).context("audio tower");
    let mels = checkpoint.config().audio.num_mel_bins;
    let audio = pcm.map(|(samples, plan)| audio_tokens(&sound()?, mels, &fuser, samples, plan, ledger)).transpose()?;
    Ok(Fused { image, audio })
}

fn image_tokens(
    (encoder, pool): &(SiglipEncoder, Pool),
    fuser: &mut Fuser,
    rows: &[u8],
    plan: &ImagePlan,
    ledger: &mut Ledger<'_>,
) -> anyhow::Result<Tensor> {
    let (frames, [h, w]) = (plan.frames as usize, plan.grid.map(|side| side as usize));
    // The oracle keeps the pixels of the first few frames only.
    let kept_pixels = ledger.golden().tensor("pixel_values").map_or(0, |t| frames.min(t.shape[0]));
    let mut tokens = Vec::new();
    for (batch, rows) in rows.chunks(BATCH * FRAME_BYTES).enumerate() {
        let first = (batch * BATCH) as u64;
        let whole = |value: &Tensor| [&[frames], &value.dims()[1..]].concat();
        let pixels = pixel_values(rows, encoder.device())?; // [n, 3, 384, 384]
        let mut shape = whole(&pixels);
        shape[0] = kept_pixels;
        ledger.see("pixel_values", &shape, first, &pixels);
        let mut seen = Vec::new();
        let n = rows.len() / FRAME_BYTES;
        let pictures = Tensor::from_slice(rows, (n, FRAME_SIDE, FRAME_SIDE, 3), encoder.device())?;
        let mut keep = |name: &str, x: &Tensor| seen.push((format!("{name}_frame0"), x.get(0).and_then(|x| x.copy())));
        let features = encoder.forward(&pictures, &mut keep)?;
        for (name, frame0) in seen.into_iter().filter(|_| batch == 0) {
            let frame0 = frame0?;
            ledger.see(&name, frame0.dims(), 0, &frame0);
        }
        ledger.see("vision_features", &whole(&features), first, &features); // [n, 729, C]
        let cells = pool.cells(&features, h)?; // [n, h*w, W]
        let [n, _, channels] = cells.dims()[..] else { anyhow::bail!("cells are {:?}", cells.dims()) };
        let grid = cells.reshape((n, h, w, channels))?;
        ledger.see("pooled", &whole(&grid), first, &grid);
        let offset = first * plan.tokens_per_frame();
        let fused = fuser.image_tokens(&cells.flatten_to(1)?, offset, plan, &mut |name, x| {
            let width = x.dims()[1];
            match name {
                "image_projected" => ledger.see(name, &[frames, h, w, width], first, x),
                "pos_t_image" => ledger.see(name, &[frames, width], first, x),
                "pos_h" | "pos_w" => ledger.see(name, x.dims(), 0, x),
                _ => ledger.see(name, &[plan.tokens as usize, width], offset, x),
            }
        })?;
        tokens.push(fused);
    }
    Ok(Tensor::cat(&tokens, 0)?) // [F*h*w, D]
}

fn audio_tokens(
    encoder: &WhisperEncoder,
    mels: usize,
    fuser: &Fuser,
    samples: &[i16],
    plan: &AudioPlan,
    ledger: &mut Ledger<'_>,
) -> anyhow::Result<Tensor> {
    let mel = LogMel::new(mels);
    let (windows, count) = (plan.windows as usize, plan.tokens as usize);
    let mut tokens = Vec::new();
    // The oracle encodes every window; stage-audio leaves out a last one that adds no row.
    for (index, samples) in samples.chunks(WINDOW_SAMPLES as usize).enumerate() {
        let whole = |value: &Tensor| [&[windows], &value.dims()[1..]].concat();
        let mel = mel.tensor(samples, encoder.device())?; // [1, mels, 3000]
        ledger.see("mel", &whole(&mel), index as u64, &mel);
        let mut seen = Vec::new();
        let mut keep = |name: &str, x: &Tensor| seen.push((format!("{name}_window0"), x.get(0).and_then(|x| x.copy())));
        let states = encoder.forward(&mel, &mut keep)?;
        for (name, window0) in seen.into_iter().filter(|_| index == 0) {
            let window0 = window0?;
            ledger.see(&name, window0.dims(), 0, &window0);
        }
        ledger.see("audio_features", &whole(&states), index as u64, &states); // [1, 1500, C]
        let rows = plan.window_rows(index as u64);
        if rows >= AUDIO_POOL {
            let first = index as u64 * WINDOW_ROWS;
            let states = states.get(0)?.narrow(0, 0, rows as usize)?;
            let fused = fuser.audio_tokens(&states, first, plan, &mut |name, x| {
                ledger.see(name, &[count, x.dims()[1]], first / AUDIO_POOL, x);
            })?;
            tokens.push(fused);
        }
    }
    Ok(Tensor::cat(&tokens, 0)?) // [T, D]
}
