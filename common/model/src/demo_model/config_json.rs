//! `config.json` of a demo model: exactly the keys of the real one of Vidi 1.5 9B (MODEL.md 1); of Vidi 7B, whose file could
//! not be had, those of its base model's and of the adapters (MODEL-7B.md).
//!
//! The real file does not state what has its default: the towers' geometry and that the output head is the embedding. A demo
//! model states those where its own differ, and nothing else besides.

use serde_json::{Map, Value, json};

use super::size::{Dims, Dtype, Tower};
use super::tensors::MM_STD;
use crate::config_json::{Family, ModelConfig};
use config::Size;

impl Dims {
    /// The geometry that the `config.json` of these dimensions states.
    pub fn model_config(&self) -> ModelConfig {
        serde_json::from_str(&json(self)).expect("its own config.json parses. This is a bug.")
    }
}

/// Text of the `config.json` of a checkpoint of these dimensions, keys in order.
pub fn json(dims: &Dims) -> String {
    let (real, language_model) = match dims.family {
        Family::Gemma2 => (Dims::of(Size::NineB), gemma2(dims)),
        Family::Mistral => (Dims::of(Size::SevenB), mistral(dims)),
    };
    let mut parts = vec![language_model, multimodal(dims, &real), training(dims)];
    if dims.tied != real.tied {
        parts.push(json!({"tie_word_embeddings": dims.tied}));
    }
    if dims.vision != real.vision {
        parts.push(json!({"mm_vision_config": vision(&dims.vision)}));
    }
    if dims.audio != real.audio {
        parts.push(json!({"mm_audio_config": audio(&dims.audio)}));
    }
    let mut entries: Vec<(String, Value)> =
        parts.into_iter().filter_map(|part| part.as_object().cloned()).flatten().collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    format!("{:#}\n", Value::Object(entries.into_iter().collect::<Map<_, _>>()))
}

fn gemma2(dims: &Dims) -> Value {
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
        "sliding_window_size": dims.window,
        "use_cache": true,
        "vocab_size": dims.vocab
    })
}

fn mistral(dims: &Dims) -> Value {
    let mut keys = json!({
        "architectures": ["DattnMistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": dims.hidden,
        "intermediate_size": dims.inter,
        "max_position_embeddings": 32768,
        "model_type": "dattn_mistral",
        "num_attention_heads": dims.heads,
        "num_hidden_layers": dims.layers,
        "num_key_value_heads": dims.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": dims.window,
        "use_cache": true,
        "vocab_size": dims.vocab
    });
    if dims.head_dim * dims.heads != dims.hidden {
        keys["head_dim"] = dims.head_dim.into();
    }
    keys
}

fn multimodal(dims: &Dims, real: &Dims) -> Value {
    let name = |same: bool, real: &'static str, demo: &'static str| if same { real } else { demo };
    let (tower, demo) = match dims.family {
        Family::Gemma2 => ("google/siglip2-so400m-patch14-384", "demo/siglip2-patch14-384"),
        Family::Mistral => ("google/siglip-so400m-patch14-384", "demo/siglip-patch14-384"),
    };
    json!({
        "mm_audio_pool_size": 5,
        "mm_audio_tower": name(dims.audio == real.audio, "openai/whisper-large-v3", "demo/whisper"),
        "mm_image_aspect_ratio": "resize",
        "mm_image_grid_points": null,
        "mm_image_pool_size": dims.image_pool,
        "mm_input_type": "video",
        "mm_splits": 4,
        "mm_std": MM_STD,
        "mm_time_interval": 10000,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": name(dims.vision == real.vision, tower, demo)
    })
}

/// Traces of the training, which no inference reads.
fn training(dims: &Dims) -> Value {
    let (name, transformers) = match dims.family {
        Family::Gemma2 => ("output/temporal-dattn_gemma-2-9b_pt2", "4.49.0"),
        Family::Mistral => ("demo/dattn_mistral", "4.44.2"),
    };
    json!({
        "_name_or_path": name,
        "initializer_range": 0.02,
        "loss_thres": 0.1,
        "torch_dtype": match dims.dtype { Dtype::F32 => "float32", Dtype::Bf16 => "bfloat16" },
        "train_aud": false,
        "train_llm": true,
        "train_rand": true,
        "train_vis": false,
        "transformers_version": transformers
    })
}

fn vision(tower: &Tower) -> Value {
    json!({
        "attention_dropout": 0.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": tower.hidden,
        "image_size": 384,
        "intermediate_size": tower.inter,
        "layer_norm_eps": 1e-6,
        "num_attention_heads": tower.heads,
        "num_channels": 3,
        "num_hidden_layers": tower.layers,
        "patch_size": 14
    })
}

fn audio(tower: &Tower) -> Value {
    json!({
        "d_model": tower.hidden,
        "encoder_attention_heads": tower.heads,
        "encoder_ffn_dim": tower.inter,
        "encoder_layers": tower.layers,
        "max_source_positions": 1500,
        "num_mel_bins": 128
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real file, as MODEL.md 1 lists it: in its order, with its values.
    const REAL: &str = r#"{
        "_name_or_path": "output/temporal-dattn_gemma-2-9b_pt2",
        "architectures": ["DattnGemma2ForCausalLM"],
        "model_type": "dattn_gemma2",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "bos_token_id": 2,
        "eos_token_id": 107,
        "pad_token_id": 0,
        "cache_implementation": "hybrid",
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "loss_thres": 0.1,
        "max_position_embeddings": 8192,
        "mm_audio_pool_size": 5,
        "mm_audio_tower": "openai/whisper-large-v3",
        "mm_image_aspect_ratio": "resize",
        "mm_image_grid_points": null,
        "mm_image_pool_size": 2,
        "mm_input_type": "video",
        "mm_splits": 4,
        "mm_std": 0.028976401314139366,
        "mm_time_interval": 10000,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip2-so400m-patch14-384",
        "num_attention_heads": 16,
        "num_hidden_layers": 42,
        "num_key_value_heads": 8,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "sliding_window_size": 4096,
        "torch_dtype": "bfloat16",
        "train_aud": false,
        "train_vis": false,
        "train_llm": true,
        "train_rand": true,
        "transformers_version": "4.49.0",
        "use_cache": true,
        "vocab_size": 256000
    }"#;

    fn real() -> Value {
        serde_json::from_str(REAL).unwrap()
    }

    fn written(dims: &Dims) -> Map<String, Value> {
        serde_json::from_str(&json(dims)).unwrap()
    }

    #[test]
    fn the_9b_size_has_the_real_configuration_and_its_geometry_is_the_default() {
        assert_eq!(Value::Object(written(&Dims::of(Size::NineB))), real());
        assert_eq!(Dims::of(Size::NineB).model_config(), ModelConfig::of(Family::Gemma2));
    }

    #[test]
    fn the_7b_size_states_what_it_has_to_and_its_geometry_is_its_familys_default() {
        let dims = Dims::of(Size::SevenB);
        assert_eq!(dims.model_config(), ModelConfig::of(Family::Mistral));
        let keys = written(&dims);
        // What has its default is not stated.
        for absent in
            ["head_dim", "tie_word_embeddings", "mm_vision_config", "mm_audio_config", "query_pre_attn_scalar"]
        {
            assert!(!keys.contains_key(absent), "{absent}");
        }
        assert_eq!((&keys["mm_image_pool_size"], &keys["mm_time_interval"]), (&json!(5), &json!(10000)));
        let tiny = written(&Dims::of(Size::SevenBTiny));
        let more: Vec<&String> = tiny.keys().filter(|key| !keys.contains_key(*key)).collect();
        assert_eq!(more, ["head_dim", "mm_audio_config", "mm_vision_config"]);
    }

    #[test]
    fn other_sizes_have_its_keys_and_those_of_a_geometry_that_differs() {
        let keys = |config: &Map<String, Value>| config.keys().cloned().collect::<Vec<_>>();
        let real = keys(real().as_object().unwrap());
        let untied = Dims { tied: false, ..Dims::of(Size::NineB) };
        let deaf = Dims { audio: Dims::of(Size::Tiny).audio, ..Dims::of(Size::NineB) };
        for (dims, more) in [
            (Dims::of(Size::Tiny), &["mm_audio_config", "mm_vision_config"][..]),
            (Dims::of(Size::Realdims), &["mm_audio_config", "mm_vision_config"]),
            (untied, &["tie_word_embeddings"]),
            (deaf, &["mm_audio_config"]),
        ] {
            let config = written(&dims);
            let besides: Vec<_> = keys(&config).into_iter().filter(|key| !real.contains(key)).collect();
            assert_eq!(besides, more);
            assert_eq!(config.len(), real.len() + more.len(), "a key of the real file is missing");
            let read = dims.model_config();
            assert_eq!(read.tie_word_embeddings, dims.tied);
            assert_eq!(
                (read.vision.hidden_size, read.audio.d_model),
                (dims.vision.hidden as usize, dims.audio.hidden as usize)
            );
        }
    }
}
