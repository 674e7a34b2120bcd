//! `config.json`, with the keys that the official training code writes.

use serde_json::{Map, Value, json};

use super::size::{Dims, Dtype};
use super::tensors::MM_STD;

/// The text of `config.json`. `mm_vision_config` and `mm_audio_config`, which the real file does not have, are there if
/// [`Dims::towers_in_config`].
pub fn json(dims: &Dims) -> String {
    let mut parts = vec![language_model(dims), multimodal(dims)];
    if dims.towers_in_config {
        parts.push(json!({"mm_vision_config": vision(dims), "mm_audio_config": audio(dims)}));
    }
    let mut entries: Vec<(String, Value)> =
        parts.into_iter().filter_map(|part| part.as_object().cloned()).flatten().collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    format!("{:#}\n", Value::Object(entries.into_iter().collect::<Map<_, _>>()))
}

fn language_model(dims: &Dims) -> Value {
    json!({
        "architectures": ["DattnGemma2ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": dims.softcap,
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "eos_token_id": 107,
        "final_logit_softcapping": dims.final_softcap,
        "head_dim": dims.head_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": dims.hidden,
        "initializer_range": 0.02,
        "intermediate_size": dims.inter,
        "max_position_embeddings": 8192,
        "model_type": "dattn_gemma2",
        "num_attention_heads": dims.heads,
        "num_hidden_layers": dims.layers,
        "num_key_value_heads": dims.kv_heads,
        "pad_token_id": 0,
        "query_pre_attn_scalar": dims.query_scalar,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": dims.window,
        "tie_word_embeddings": dims.tied,
        "torch_dtype": match dims.dtype { Dtype::F32 => "float32", Dtype::Bf16 => "bfloat16" },
        "transformers_version": "4.50.0",
        "use_cache": true,
        "vocab_size": dims.vocab
    })
}

fn multimodal(dims: &Dims) -> Value {
    let (vision, audio) = match dims.towers_in_config {
        true => ("demo/siglip2-patch14-384", "demo/whisper"),
        false => ("google/siglip2-so400m-patch14-384", "openai/whisper-large-v3"),
    };
    json!({
        "loss_thres": null,
        "mm_audio_pool_size": 5,
        "mm_audio_tower": audio,
        "mm_image_aspect_ratio": "resize",
        "mm_image_grid_points": null,
        "mm_image_pool_size": 2,
        "mm_input_type": "video",
        "mm_projector_type": "mlp2x_gelu",
        "mm_splits": 4,
        "mm_std": MM_STD,
        "mm_time_interval": 10000,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": vision,
        "train_aud": false,
        "train_llm": true,
        "train_rand": true,
        "train_vis": false
    })
}

fn vision(dims: &Dims) -> Value {
    json!({
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": dims.vision.hidden,
        "image_size": 384,
        "intermediate_size": dims.vision.inter,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": dims.vision.heads,
        "num_channels": 3,
        "num_hidden_layers": dims.vision.layers,
        "patch_size": 14
    })
}

fn audio(dims: &Dims) -> Value {
    json!({
        "d_model": dims.audio.hidden,
        "encoder_attention_heads": dims.audio.heads,
        "encoder_ffn_dim": dims.audio.inter,
        "encoder_layers": dims.audio.layers,
        "max_source_positions": 1500,
        "num_mel_bins": 128
    })
}
