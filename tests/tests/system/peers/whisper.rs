//! The audio tower against candle's Whisper encoder and its Voxtral encoder.
//!
//! Both are Whisper large-v3's encoder by other hands. Where they differ from the released one, and so from ours:
//! - `whisper::AudioEncoder` has the tanh GELU everywhere, computes its position table instead of reading the checkpoint's,
//!   and takes four times the width for the feed-forward part.
//! - `VoxtralEncoder` has the tanh GELU after the two convolutions only, reads the table and knows any width.
//!
//! To see past the GELU, weights are changed until both forms are the same function (see [`alike`]).

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::voxtral::{VoxtralEncoder, VoxtralEncoderConfig};
use candle_transformers::models::whisper::Config;
use candle_transformers::models::whisper::model::Whisper;
use config::MediaProducts;
use model::checkpoint::Checkpoint;
use protocol::plan::WINDOW_SAMPLES;
use stage_audio::{LogMel, WhisperEncoder};
use tests::parity::inputs;

use super::checkpoint::{InMemory, agree, differ, golden, opened, weights};

/// Every checkpoint with a case of sound for it: under a window, a whole window, and the real widths of a head.
const CHECKPOINTS: [(&str, &str); 3] = [("untied", "time_ranges"), ("tied", "long_audio"), ("realdims", "realdims")];
const ENCODER: &str = "model.mm_aud.encoder";
/// Largest relative rms error where [`alike`] has changed the weights: two f32 implementations that sum in another order, up
/// to two layers deep (measured 5.6e-7 to 1.2e-6).
const TOLERANCE: f64 = 3e-6;

/// The log-mel features of a case's first window, `[1, 128, 3000]`.
fn mel(case: &str) -> Tensor {
    let samples = inputs::pcm(&golden("cases").join(case).join("pcm.npy")).unwrap();
    let window = &samples[..samples.len().min(WINDOW_SAMPLES as usize)];
    LogMel::new(128).tensor(window, &Device::Cpu).unwrap()
}

fn ours(checkpoint: &std::sync::Arc<Checkpoint>, mel: &Tensor) -> Tensor {
    let tower = WhisperEncoder::new(checkpoint.config(), &weights(checkpoint), MediaProducts::Dense).unwrap();
    tower.forward(mel, &mut |_, _| ()).unwrap()
}

/// candle's Whisper encoder of `layers` layers. Its loader is private, the one of the whole model wants a decoder: it gets
/// one without layers. The feed-forward part is filled up with zeros, which add nothing.
fn whisper(model: &InMemory, layers: usize, mel: &Tensor) -> Tensor {
    let width = model.number("mm_audio_config", "d_model");
    let missing = 4 * width - model.number("mm_audio_config", "encoder_ffn_dim");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([
        ("model.decoder.embed_tokens.weight".to_owned(), zeros(&[1, width])),
        ("model.decoder.embed_positions.weight".to_owned(), zeros(&[1, width])),
        ("model.decoder.layer_norm.weight".to_owned(), zeros(&[width])),
        ("model.decoder.layer_norm.bias".to_owned(), zeros(&[width])),
    ]);
    for (name, tensor) in &model.tensors {
        let Some(part) = name.strip_prefix(ENCODER) else { continue };
        let filled = match part {
            _ if part.contains(".fc1.") => tensor.pad_with_zeros(0, 0, missing),
            _ if part.ends_with(".fc2.weight") => tensor.pad_with_zeros(1, 0, missing),
            _ => Ok(tensor.clone()),
        };
        tensors.insert(format!("model.encoder{part}"), filled.unwrap());
    }
    let config = Config {
        num_mel_bins: model.number("mm_audio_config", "num_mel_bins"),
        max_source_positions: model.number("mm_audio_config", "max_source_positions"),
        d_model: width,
        encoder_attention_heads: model.number("mm_audio_config", "encoder_attention_heads"),
        encoder_layers: layers,
        vocab_size: 1,
        max_target_positions: 1,
        decoder_attention_heads: 1,
        decoder_layers: 0,
        suppress_tokens: Vec::new(),
    };
    let all = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    Whisper::load(&all, config).unwrap().encoder.forward(mel, true).unwrap()
}

/// candle's Voxtral encoder.
fn voxtral(model: &InMemory, mel: &Tensor) -> Tensor {
    let number = |key: &str| model.number("mm_audio_config", key);
    let config = VoxtralEncoderConfig {
        hidden_size: number("d_model"),
        intermediate_size: number("encoder_ffn_dim"),
        num_hidden_layers: layers(model),
        num_attention_heads: number("encoder_attention_heads"),
        num_mel_bins: number("num_mel_bins"),
        max_source_positions: number("max_source_positions"),
        ..VoxtralEncoderConfig::default()
    };
    VoxtralEncoder::new(&config, model.peer().pp(ENCODER)).unwrap().forward(mel).unwrap()
}

fn layers(model: &InMemory) -> usize {
    model.number("mm_audio_config", "encoder_layers")
}

/// The position table as candle's Whisper computes it, by the same operations.
fn table(rows: usize, width: usize) -> Tensor {
    let step = 10_000f32.ln() / (width / 2 - 1) as f32;
    let frequencies: Vec<f32> = (0..width / 2).map(|j| (j as f32 * -step).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, width / 2), &Device::Cpu).unwrap();
    let places = Tensor::arange(0, rows as u32, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    let angles = places.unsqueeze(1).unwrap().broadcast_mul(&frequencies).unwrap();
    Tensor::cat(&[angles.sin().unwrap(), angles.cos().unwrap()], 1).unwrap()
}

/// Replaces the checkpoint's position table by the one that candle computes.
fn positioned(model: &mut InMemory) {
    let table = |stored: &Tensor| Ok(table(stored.dim(0)?, stored.dim(1)?));
    model.change(&format!("{ENCODER}.embed_positions.weight"), table);
}

/// Makes both GELUs after the convolutions the same function to f32, and with `feed_forward` those of the layers: what
/// enters them is 256 times as large, where either form is all but ReLU (the difference falls by 256 to the power of 1.5),
/// and so is all else that is added to the stream. The last norm takes the factor away. Positions are [`louder`] where the
/// peer reads them.
fn alike(model: &mut InMemory, feed_forward: bool) {
    louder(model, &["conv1.weight", "conv1.bias", "conv2.bias"]);
    for layer in 0..layers(model) {
        let parts = match feed_forward {
            true => ["self_attn.out_proj.weight", "self_attn.out_proj.bias", "fc1.weight", "fc1.bias", "fc2.bias"]
                .as_slice(),
            false => &["self_attn.out_proj.weight", "self_attn.out_proj.bias", "fc2.weight", "fc2.bias"],
        };
        let parts: Vec<String> = parts.iter().map(|part| format!("layers.{layer}.{part}")).collect();
        louder(model, &parts);
    }
}

/// Multiplies tensors of the encoder by 256, which is exact.
fn louder(model: &mut InMemory, parts: &[impl std::fmt::Display]) {
    for part in parts {
        model.change(&format!("{ENCODER}.{part}"), |x| x * 256.0);
    }
}

#[test]
fn the_audio_tower_is_candles_whisper_where_both_gelus_are_the_same_function() {
    for (checkpoint, case) in CHECKPOINTS {
        let mut model = InMemory::read(checkpoint);
        positioned(&mut model);
        alike(&mut model, true);
        let (mel, layers) = (mel(case), layers(&model));
        let ours = ours(&model.opened(), &mel);
        agree(&format!("Whisper, {checkpoint}, GELUs alike"), &ours, &whisper(&model, layers, &mel), TOLERANCE);
        let what = format!("Whisper, {checkpoint}, GELUs alike, one layer less");
        differ(&what, &ours, &whisper(&model, layers - 1, &mel), 0.1, 2.0);
    }
}

#[test]
fn candles_whisper_differs_by_its_tanh_gelu() {
    for (checkpoint, case) in CHECKPOINTS {
        let mut model = InMemory::read(checkpoint);
        positioned(&mut model);
        let mel = mel(case);
        let theirs = whisper(&model, layers(&model), &mel);
        let what = format!("Whisper, {checkpoint}, erf against tanh GELU");
        differ(&what, &ours(&model.opened(), &mel), &theirs, 1e-4, 5e-4);
    }
}

#[test]
fn candles_whisper_computes_the_position_table_that_ours_reads() {
    for (checkpoint, case) in CHECKPOINTS {
        let model = InMemory::read(checkpoint);
        let stored = &model.tensors[&format!("{ENCODER}.embed_positions.weight")];
        let computed = table(stored.dims()[0], stored.dims()[1]);
        let what = format!("Whisper, {checkpoint}, position tables");
        if checkpoint != "realdims" {
            // Measured 1.7e-8. A host whose exp rounds otherwise turns angles of up to 1,499: exact ones are 5.8e-6 away.
            agree(&what, stored, &computed, 1e-5);
            continue;
        }
        // Stored in bf16: that shows above the difference of the GELUs.
        differ(&what, stored, &computed, 5e-4, 3e-3);
        let mel = mel(case);
        let theirs = whisper(&model, layers(&model), &mel);
        differ("Whisper, realdims, stored positions", &ours(&opened(checkpoint), &mel), &theirs, 4e-4, 2e-3);
    }
}

#[test]
fn the_audio_tower_is_candles_voxtral_encoder_but_for_the_gelu_after_its_convolutions() {
    for (checkpoint, case) in CHECKPOINTS {
        let mut model = InMemory::read(checkpoint);
        let mel = mel(case);
        let what = format!("Voxtral, {checkpoint}, tanh GELU after the convolutions");
        differ(&what, &ours(&opened(checkpoint), &mel), &voxtral(&model, &mel), 5e-5, 5e-4);
        alike(&mut model, false);
        louder(&mut model, &["embed_positions.weight"]);
        let ours = ours(&model.opened(), &mel);
        agree(&format!("Voxtral, {checkpoint}, GELUs alike"), &ours, &voxtral(&model, &mel), TOLERANCE);
        let other = voxtral(&model, &mel.narrow(D::Minus1, 1, 2999).unwrap().pad_with_zeros(2, 0, 1).unwrap());
        differ(&format!("Voxtral, {checkpoint}, sound 10 ms later"), &ours, &other, 1e-2, 2.0);
    }
}
