//! The vision tower against candle's SigLIP.
//!
//! candle's `VisionModel` ends in `post_layernorm`, which Vidi never reaches. Its copy gets as many layers as are compared
//! and a post_layernorm of weight 1 and bias 0, and the same norm is applied to our features. That norm hides the mean and
//! the scale of a row, 2 of its values; the oracle sees those too.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::LayerNorm;
use candle_transformers::models::siglip::{VisionConfig, VisionModel};
use config::MediaProducts;
use protocol::plan::{FRAME_BYTES, FRAME_SIDE};
use stage_vision::SiglipEncoder;
use tests::parity::inputs::{self, Passes};

use super::checkpoint::{InMemory, agree, differ, golden, opened, weights};

/// Every checkpoint with a case of frames for it.
const CHECKPOINTS: [(&str, &str); 3] = [("tied", "basic"), ("untied", "time_ranges"), ("realdims", "realdims")];
/// Largest relative rms error: two f32 implementations that sum in another order, up to two layers deep (measured 4.2e-7 to
/// 5.3e-7). An epsilon of 1e-5 for 1e-6, the smallest mistake that is tried, makes 4.8e-6.
const TOLERANCE: f64 = 2e-6;

/// The first two frames of a case, u8 `[2, 384, 384, 3]`.
fn frames(case: &str) -> Tensor {
    let rows = inputs::frames(&golden("cases").join(case).join("frames.npy"), Passes::WidthFirst).unwrap();
    Tensor::from_slice(&rows[..2 * FRAME_BYTES], (2, FRAME_SIDE, FRAME_SIDE, 3), &Device::Cpu).unwrap()
}

/// Frames as candle's model takes them, `[n, 3, 384, 384]` in -1..1.
fn pixels(frames: &Tensor) -> Tensor {
    let planes = frames.permute((0, 3, 1, 2)).unwrap().to_dtype(DType::F32).unwrap();
    planes.affine(1.0 / 127.5, -1.0).unwrap().contiguous().unwrap()
}

/// What our tower makes of frames: the embeddings, and the stream after each layer that Vidi runs.
fn ours(checkpoint: &str, frames: &Tensor) -> Vec<Tensor> {
    let checkpoint = opened(checkpoint);
    let tower = SiglipEncoder::new(checkpoint.config(), &weights(&checkpoint), MediaProducts::Dense).unwrap();
    let mut seen = Vec::new();
    tower.forward(frames, &mut |_, x| seen.push(x.copy().unwrap())).unwrap();
    assert_eq!(seen.len(), 1 + checkpoint.config().vision_layers());
    seen
}

/// A layer norm of weight 1 and bias 0.
fn normed(x: &Tensor, eps: f64) -> Tensor {
    let width = x.dim(2).unwrap();
    let ones = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
    LayerNorm::new(ones.clone(), ones.zeros_like().unwrap(), eps).forward(x).unwrap()
}

/// candle's configuration of a checkpoint's tower.
fn config(model: &InMemory) -> VisionConfig {
    serde_json::from_value(model.config["mm_vision_config"].clone()).unwrap()
}

/// candle's tower with its post_layernorm as the checkpoint has it.
fn peer(model: &InMemory, config: &VisionConfig, pixels: &Tensor) -> Tensor {
    let tower = VisionModel::new(config, false, model.peer().pp("model.mm_vis.vision_model")).unwrap();
    tower.forward(pixels).unwrap()
}

/// A checkpoint whose post_layernorm has weight 1 and bias 0.
fn plain(checkpoint: &str) -> InMemory {
    let mut model = InMemory::read(checkpoint);
    model.change("model.mm_vis.vision_model.post_layernorm.weight", Tensor::ones_like);
    model.change("model.mm_vis.vision_model.post_layernorm.bias", Tensor::zeros_like);
    model
}

#[test]
fn the_embeddings_and_every_layer_of_the_vision_tower_are_candles() {
    for (checkpoint, case) in CHECKPOINTS {
        let (model, frames) = (plain(checkpoint), frames(case));
        let mut config = config(&model);
        for (layers, ours) in ours(checkpoint, &frames).iter().enumerate() {
            config.num_hidden_layers = layers;
            let theirs = peer(&model, &config, &pixels(&frames));
            let what = format!("SigLIP, {checkpoint}, after {layers} layers");
            agree(&what, &normed(ours, config.layer_norm_eps), &theirs, TOLERANCE);
        }
    }
}

#[test]
fn another_layer_gelu_epsilon_or_number_of_heads_of_candles_vision_tower_is_seen() {
    for (checkpoint, case) in CHECKPOINTS {
        let (model, frames) = (plain(checkpoint), frames(case));
        let ours = ours(checkpoint, &frames);
        let right = config(&model);
        let features = normed(ours.last().unwrap(), right.layer_norm_eps);
        let wrong = |what: &str, least: f64, change: &dyn Fn(&mut VisionConfig)| {
            let mut config = right.clone();
            config.num_hidden_layers = ours.len() - 1;
            change(&mut config);
            let what = format!("SigLIP, {checkpoint}, with {what}");
            differ(&what, &features, &peer(&model, &config, &pixels(&frames)), least, 2.0);
        };
        wrong("one layer less", 0.2, &|c| c.num_hidden_layers -= 1);
        wrong("one layer more", 0.2, &|c| c.num_hidden_layers += 1);
        wrong("half the heads", 0.1, &|c| c.num_attention_heads /= 2);
        wrong("the exact GELU", 5e-5, &|c| c.hidden_act = candle_nn::Activation::Gelu);
        wrong("an epsilon of 1e-5", 4e-6, &|c| c.layer_norm_eps = 1e-5);
    }
}

#[test]
fn candles_vision_tower_as_it_is_ends_a_layer_and_a_norm_later_than_vidis() {
    for (checkpoint, case) in CHECKPOINTS {
        let (model, frames) = (InMemory::read(checkpoint), frames(case));
        let theirs = peer(&model, &config(&model), &pixels(&frames));
        let what = format!("SigLIP, {checkpoint}, as it is");
        differ(&what, ours(checkpoint, &frames).last().unwrap(), &theirs, 0.5, 2.0);
    }
}
