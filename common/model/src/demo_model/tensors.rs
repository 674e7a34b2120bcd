//! Every tensor of a checkpoint: name, shape, type, and the distribution of its values.
//!
//! Names, shapes and spreads follow `make_checkpoint` in `tests/oracle/vidi_oracle.py`; `tests/oracle/vidi15_9b_tensors.json`
//! and `vidi7b_tensors.json` beside it list those of the real models.

use super::size::{Dims, Dtype, Tower};
use super::values::Values;
use crate::config_json::family::POOL_WEIGHT;
use crate::config_json::{Family, ImagePool, ModelConfig};
use compute::random::Normal;

/// One tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// Rows first.
    pub shape: Vec<u64>,
    /// Type as stored.
    pub dtype: Dtype,
    /// Where its values come from.
    pub fill: Fill,
}

/// Where a tensor's values come from.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Independent, normally distributed.
    Normal {
        /// Centre.
        mean: f64,
        /// Standard deviation.
        std: f64,
    },
    /// Whisper's fixed positions: `[sin | cos](p · 10000^(-j / (width/2 - 1)))`.
    Sinusoids,
}

impl Tensor {
    /// Number of values.
    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes as stored.
    pub fn bytes(&self) -> u64 {
        self.numel() * self.dtype.bytes()
    }

    /// The source of its values.
    pub fn values(&self, seed: u64) -> Values {
        match self.fill {
            Fill::Normal { mean, std } => Values::Normal(Normal::new(seed, &self.name, mean, std)),
            Fill::Sinusoids => Values::Sinusoids { width: self.shape[1] },
        }
    }
}

/// Every tensor of a checkpoint of `dims`, language model first.
pub fn list(dims: &Dims) -> Vec<Tensor> {
    let mut list = List { tensors: Vec::new(), dtype: dims.dtype };
    list.language_model(dims);
    list.vision_tower(&dims.vision);
    list.audio_tower(&dims.audio);
    list.image_adapter(dims);
    list.audio_adapter(dims);
    list.tensors
}

struct List {
    tensors: Vec<Tensor>,
    dtype: Dtype,
}

/// Spread of most biases.
const BIAS: f64 = 0.1;
/// Spread of logits before their soft cap.
const LOGIT_STD: f64 = 6.0;
/// `mm_std` of the 9B's real config: the usual size of a text embedding, which image and audio tokens are brought to.
pub const MM_STD: f64 = 0.028976401314139366;

/// Norms of a decoder layer; one without norms after its parts has the first two.
const NORMS: [&str; 4] =
    ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"];

/// Spread of the embedding as it is stored, and the gain of the last norm. Tied rows are small, so that the layers and not the
/// current token's own row decide the next token; the last norm brings the logits back to their spread. Untied rows are about
/// as large as what the layers add, once they are scaled.
fn head(geometry: &ModelConfig) -> (f64, f64) {
    let width = (geometry.hidden_size as f64).sqrt();
    match (geometry.tie_word_embeddings, geometry.family) {
        (true, _) => (2.4 / width / width, LOGIT_STD / (2.4 / width)),
        (false, Family::Gemma2) => (1.0 / width, LOGIT_STD),
        (false, Family::Mistral) => (0.7, LOGIT_STD),
    }
}

impl List {
    fn push(&mut self, name: String, shape: &[u64], dtype: Dtype, fill: Fill) {
        self.tensors.push(Tensor { name, shape: shape.to_vec(), dtype, fill });
    }

    fn normal(&mut self, name: String, shape: &[u64], mean: f64, std: f64) {
        self.push(name, shape, self.dtype, Fill::Normal { mean, std });
    }

    /// `[outputs, inputs]` whose outputs have `gain` times the spread of its inputs.
    fn weight(&mut self, name: &str, outputs: u64, inputs: u64, gain: f64) {
        self.normal(format!("{name}.weight"), &[outputs, inputs], 0.0, gain / (inputs as f64).sqrt());
    }

    fn linear(&mut self, name: &str, outputs: u64, inputs: u64, gain: f64) {
        self.weight(name, outputs, inputs, gain);
        self.normal(format!("{name}.bias"), &[outputs], 0.0, BIAS);
    }

    fn layer_norm(&mut self, name: &str, width: u64) {
        self.normal(format!("{name}.weight"), &[width], 1.0, 0.2);
        self.normal(format!("{name}.bias"), &[width], 0.0, BIAS);
    }

    fn language_model(&mut self, d: &Dims) {
        let geometry = d.model_config();
        let offset = geometry.norm_offset();
        // Without a norm after attention, its output is added as it is.
        let attended = if geometry.post_norms() { 1.0 } else { 0.5 };
        let (embedding, logits) = head(&geometry);
        self.normal("model.embed_tokens.weight".into(), &[d.vocab, d.hidden], 0.0, embedding);
        let (queries, keys) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
        for i in 0..d.layers {
            let layer = format!("model.layers.{i}");
            self.weight(&format!("{layer}.self_attn.q_proj"), queries, d.hidden, 1.6);
            self.weight(&format!("{layer}.self_attn.k_proj"), keys, d.hidden, 1.6);
            self.weight(&format!("{layer}.self_attn.v_proj"), keys, d.hidden, 1.0);
            self.weight(&format!("{layer}.self_attn.o_proj"), d.hidden, queries, attended);
            self.weight(&format!("{layer}.mlp.gate_proj"), d.inter, d.hidden, 1.0);
            self.weight(&format!("{layer}.mlp.up_proj"), d.inter, d.hidden, 1.0);
            self.weight(&format!("{layer}.mlp.down_proj"), d.hidden, d.inter, 1.0);
            let norms = if geometry.post_norms() { &NORMS[..] } else { &NORMS[..2] };
            for norm in norms {
                // A gain of 1.1 or so: Gemma's are used as 1 + w.
                self.normal(format!("{layer}.{norm}.weight"), &[d.hidden], 0.1 + (1.0 - offset), 0.25);
            }
        }
        self.normal("model.norm.weight".into(), &[d.hidden], logits - offset, 0.25);
        if !d.tied {
            self.weight("lm_head", d.vocab, d.hidden, 1.0);
        }
    }

    fn vision_tower(&mut self, t: &Tower) {
        let tower = "model.mm_vis.vision_model";
        let patch = [t.hidden, 3, 14, 14];
        let inputs = patch[1..].iter().product::<u64>() as f64;
        self.normal(format!("{tower}.embeddings.patch_embedding.weight"), &patch, 0.0, 2.0 / inputs.sqrt());
        self.normal(format!("{tower}.embeddings.patch_embedding.bias"), &[t.hidden], 0.0, BIAS);
        self.normal(format!("{tower}.embeddings.position_embedding.weight"), &[729, t.hidden], 0.0, 0.7);
        for i in 0..t.layers {
            let layer = format!("{tower}.encoder.layers.{i}");
            for (projection, gain) in [("k_proj", 1.3), ("v_proj", 1.0), ("q_proj", 1.3), ("out_proj", 1.0)] {
                self.linear(&format!("{layer}.self_attn.{projection}"), t.hidden, t.hidden, gain);
            }
            self.layer_norm(&format!("{layer}.layer_norm1"), t.hidden);
            self.layer_norm(&format!("{layer}.layer_norm2"), t.hidden);
            self.linear(&format!("{layer}.mlp.fc1"), t.inter, t.hidden, 1.0);
            self.linear(&format!("{layer}.mlp.fc2"), t.hidden, t.inter, 1.0);
        }
        // The pooling head: in the checkpoint, not used by inference.
        self.layer_norm(&format!("{tower}.post_layernorm"), t.hidden);
        self.normal(format!("{tower}.head.probe"), &[1, 1, t.hidden], 0.0, 1.0);
        let spread = 1.0 / (t.hidden as f64).sqrt();
        self.normal(format!("{tower}.head.attention.in_proj_weight"), &[3 * t.hidden, t.hidden], 0.0, spread);
        self.normal(format!("{tower}.head.attention.in_proj_bias"), &[3 * t.hidden], 0.0, BIAS);
        self.linear(&format!("{tower}.head.attention.out_proj"), t.hidden, t.hidden, 1.0);
        self.layer_norm(&format!("{tower}.head.layernorm"), t.hidden);
        self.linear(&format!("{tower}.head.mlp.fc1"), t.inter, t.hidden, 1.0);
        self.linear(&format!("{tower}.head.mlp.fc2"), t.hidden, t.inter, 1.0);
    }

    fn audio_tower(&mut self, t: &Tower) {
        let tower = "model.mm_aud.encoder";
        for (conv, channels) in [("conv1", 128), ("conv2", t.hidden)] {
            let spread = 1.5 / (channels as f64 * 3.0).sqrt();
            self.normal(format!("{tower}.{conv}.weight"), &[t.hidden, channels, 3], 0.0, spread);
            self.normal(format!("{tower}.{conv}.bias"), &[t.hidden], 0.0, BIAS);
        }
        self.push(format!("{tower}.embed_positions.weight"), &[1500, t.hidden], self.dtype, Fill::Sinusoids);
        for i in 0..t.layers {
            let layer = format!("{tower}.layers.{i}");
            self.weight(&format!("{layer}.self_attn.k_proj"), t.hidden, t.hidden, 1.3);
            for (projection, gain) in [("v_proj", 1.0), ("q_proj", 1.3), ("out_proj", 1.0)] {
                self.linear(&format!("{layer}.self_attn.{projection}"), t.hidden, t.hidden, gain);
            }
            self.layer_norm(&format!("{layer}.self_attn_layer_norm"), t.hidden);
            self.linear(&format!("{layer}.fc1"), t.inter, t.hidden, 1.0);
            self.linear(&format!("{layer}.fc2"), t.hidden, t.inter, 1.0);
            self.layer_norm(&format!("{layer}.final_layer_norm"), t.hidden);
        }
        self.layer_norm(&format!("{tower}.layer_norm"), t.hidden);
    }

    fn image_adapter(&mut self, d: &Dims) {
        let geometry = d.model_config();
        self.normal("model.mm_rand_llm_norm.weight".into(), &[d.hidden], MM_STD, 0.25 * MM_STD);
        if let ImagePool::Convolution { kernel, .. } = geometry.image_pool() {
            let shape = [d.vision.hidden, d.vision.hidden, kernel as u64, kernel as u64];
            let inputs = shape[1..].iter().product::<u64>() as f64;
            self.normal(POOL_WEIGHT.into(), &shape, 0.0, 1.0 / inputs.sqrt());
        }
        self.linear("model.mm_rand_img_projector.model.0", d.hidden, geometry.image_cell_width() as u64, 1.0);
        self.linear("model.mm_rand_img_projector.model.2", d.hidden, d.hidden, 1.0);
        self.normal("model.mm_rand_img_norm.weight".into(), &[d.hidden], 1.0, 0.2);
        let stored = std::mem::replace(&mut self.dtype, Dtype::F32);
        for axis in ["w", "h", "t"] {
            self.linear(&format!("model.mm_rand_pos_{axis}.mlp.0"), d.hidden, d.hidden, 1.5);
            self.linear(&format!("model.mm_rand_pos_{axis}.mlp.2"), d.hidden, d.hidden, 1.5);
        }
        self.dtype = stored;
    }

    fn audio_adapter(&mut self, d: &Dims) {
        let pooled = d.model_config().audio_pool_width() as u64;
        let spread = 1.0 / (5.0 * d.audio.hidden as f64).sqrt();
        self.normal("model.mm_rand_aud_pool.weight".into(), &[pooled, d.audio.hidden, 5], 0.0, spread);
        self.linear("model.mm_rand_aud_projector.model.0", d.hidden, pooled, 1.0);
        self.linear("model.mm_rand_aud_projector.model.2", d.hidden, d.hidden, 1.0);
        self.normal("model.mm_rand_aud_norm.weight".into(), &[d.hidden], 1.0, 0.2);
    }
}
