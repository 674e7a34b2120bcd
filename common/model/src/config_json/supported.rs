//! Checkpoints that no stage can compute with, told by their `config.json` and their tensors' names: of other models, or
//! converted for other programs.
//!
//! A converted directory has the geometry of the original, so that without these rules it would fail late, at the first tensor
//! that has another name or shape, and say nothing of the reason.

use serde_json::{Map, Value};

use super::{Family, ModelConfig, rope};

/// What to do about a checkpoint that was converted.
const CONVERTED: &str = "convert from the original checkpoint instead (llm.weights = \"q8\" or \"q4\" and `vidi quantize` \
                         make 8 and 4 bits of its weights)";
/// What to do about another model's.
const OTHER_MODEL: &str = "use a checkpoint of Vidi 1.5";
/// The activation of every variant of the model (MODEL.md 3 and 7).
const GELU: &str = "gelu_pytorch_tanh";
/// Attention of even and of odd layers, as `layer_types` calls it (MODEL.md 7).
const LAYERS: [&str; 2] = ["sliding_attention", "full_attention"];

/// The only value of a key that is computed; absent and `null` stand for it.
enum Only {
    Absent,
    Text(&'static str),
    False,
    Number(u64),
}

/// Keys with one value each, and what to do about another; a dot stands before one inside another.
const KEYS: [(&str, Only, &str); 14] = [
    ("quantization", Only::Absent, CONVERTED),
    ("quantization_config", Only::Absent, CONVERTED),
    ("mm_input_type", Only::Text("video"), OTHER_MODEL),
    ("mm_image_aspect_ratio", Only::Text("resize"), OTHER_MODEL),
    ("attention_bias", Only::False, OTHER_MODEL),
    ("hidden_activation", Only::Text(GELU), OTHER_MODEL),
    ("hidden_act", Only::Text(GELU), OTHER_MODEL),
    ("text_config", Only::Absent, OTHER_MODEL),
    ("mm_image_grid_points", Only::Absent, OTHER_MODEL),
    ("partial_rotary_factor", Only::Number(1), OTHER_MODEL),
    ("use_bidirectional_attention", Only::False, OTHER_MODEL),
    ("mm_vision_config.hidden_act", Only::Text(GELU), OTHER_MODEL),
    ("mm_audio_config.activation_function", Only::Text("gelu"), OTHER_MODEL),
    ("mm_audio_config.scale_embedding", Only::False, OTHER_MODEL),
];

/// Ends of tensor names that a conversion leaves, and whose they are.
const MARKS: [(&str, &str); 8] = [
    (".scales", "MLX"),
    (".biases", "MLX"),
    (".absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight_scale", "fp8 or compressed tensors"),
];

/// Characters of a value that are shown.
const SHOWN: usize = 120;

/// The family that a `config.json` names; that of Vidi 1.5 9B where it names none.
///
/// # Errors
/// Another `model_type`, and what is supported.
pub fn model_type(config: &Map<String, Value>) -> Result<Family, String> {
    let Some(value) = config.get("model_type").filter(|value| !value.is_null()) else { return Ok(Family::Gemma2) };
    value.as_str().and_then(Family::of_model_type).ok_or_else(|| {
        let known = Family::ALL.map(|family| format!("{:?}", family.model_type())).join(" and ");
        format!("model_type = {} is not supported, only {known}: {OTHER_MODEL}", shown(value))
    })
}

/// The first key of a `config.json` by which its checkpoint is refused: its value, what is supported, and what to do.
pub fn refused_key(config: &Map<String, Value>) -> Option<String> {
    let refused = |(key, value, supported): (String, Value, String)| {
        format!("{key} = {} is not supported, only {supported}: {OTHER_MODEL}", shown(&value))
    };
    model_type(config)
        .err()
        .or_else(|| other_value(config))
        .or_else(|| rope::refused(config).or_else(|| other_layers(config)).map(refused))
}

/// The first of [`KEYS`] with another value than its own.
fn other_value(config: &Map<String, Value>) -> Option<String> {
    KEYS.iter().find_map(|(key, only, advice)| {
        let value = match key.split_once('.') {
            Some((outer, inner)) => config.get(outer)?.get(inner),
            None => config.get(*key),
        };
        let value = value.filter(|value| !value.is_null())?;
        let (fits, supported) = match only {
            Only::Absent => (false, "weights of 16 or 32 bits, without this key".to_owned()),
            Only::Text(text) => (value == text, format!("{text:?}")),
            Only::False => (value == false, "false".to_owned()),
            Only::Number(number) => (value.as_f64() == Some(*number as f64), number.to_string()),
        };
        let made_for = match *key {
            "quantization" => " (made for MLX)".to_owned(),
            "quantization_config" => {
                format!(" (made by {})", value["quant_method"].as_str().unwrap_or("another program"))
            }
            _ => String::new(),
        };
        (!fits).then(|| format!("{key} = {}{made_for} is not supported, only {supported}: {advice}", shown(value)))
    })
}

/// `layer_types` where they are not those of the model, with what is supported.
fn other_layers(config: &Map<String, Value>) -> Option<(String, Value, String)> {
    let key = "layer_types";
    let types = config.get(key).filter(|value| !value.is_null())?;
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64);
    let layers = layers.unwrap_or(ModelConfig::default().num_hidden_layers as u64);
    let listed = types.as_array().map(Vec::as_slice).unwrap_or_default();
    let alternate = listed.iter().enumerate().all(|(at, kind)| kind == LAYERS[at % 2]);
    let fits = alternate && listed.len() as u64 == layers;
    (!fits).then(|| (key.to_owned(), types.clone(), format!("{LAYERS:?} by turns, {layers} in all")))
}

/// As much of a value as a person reads.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(SHOWN).collect()
}

/// The first tensor by whose name a checkpoint is refused, and what to do. Names that merely nobody asks for are none.
pub fn refused_name<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
    let marked = names.clone().find_map(|name| {
        let (mark, whose) = MARKS.iter().find(|(mark, _)| name.ends_with(mark))?;
        Some(format!(
            "tensor {name} is not supported: names on {mark} are those of weights made for {whose}: {CONVERTED}"
        ))
    });
    marked.or_else(|| {
        let first = names.clone().next()?;
        let ours = names.clone().any(|name| name.starts_with("model."));
        (!ours).then(|| {
            format!("tensor {first} is not supported, only names on model.*, of which there are none: {CONVERTED}")
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(config: Value) -> Option<String> {
        refused_key(config.as_object().unwrap())
    }

    #[test]
    fn keys_of_other_models_and_of_conversions_are_refused_by_name_value_and_remedy() {
        let mlx = json!({"bits": 4, "group_size": 64});
        let bits = json!({"_load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"});
        for (config, said) in [
            (json!({"model_type": "gemma2"}), ["model_type = \"gemma2\"", "only \"dattn_gemma2\"", "of Vidi 1.5"]),
            (json!({"model_type": "dattn_mistral"}), ["\"dattn_mistral\"", "only \"dattn_gemma2\"", "of Vidi 1.5"]),
            (json!({"quantization": mlx}), ["quantization = {\"bits\":4", "MLX", "convert from the original"]),
            (
                json!({"quantization_config": bits}),
                ["quantization_config = {", "bitsandbytes", "convert from the original"],
            ),
            (json!({"quantization_config": {}}), ["quantization_config = {}", "another program", "vidi quantize"]),
            (json!({"mm_input_type": "image"}), ["mm_input_type = \"image\"", "only \"video\"", "of Vidi 1.5"]),
            (json!({"mm_image_aspect_ratio": "pad"}), ["\"pad\"", "only \"resize\"", "of Vidi 1.5"]),
            (json!({"attention_bias": true}), ["attention_bias = true", "only false", "of Vidi 1.5"]),
            (
                json!({"hidden_activation": "silu"}),
                ["hidden_activation = \"silu\"", "only \"gelu_pytorch_tanh\"", "Vidi"],
            ),
            (json!({"hidden_act": "gelu"}), ["hidden_act = \"gelu\"", "only \"gelu_pytorch_tanh\"", "Vidi"]),
            (json!({"text_config": {}}), ["text_config = {}", "without this key", "of Vidi 1.5"]),
            (json!({"partial_rotary_factor": 0.5}), ["partial_rotary_factor = 0.5", "only 1:", "of Vidi 1.5"]),
            (json!({"use_bidirectional_attention": true}), ["attention = true", "only false", "of Vidi 1.5"]),
            (
                json!({"mm_vision_config": {"hidden_act": "quick_gelu"}}),
                ["mm_vision_config.hidden_act = \"quick_gelu\"", "only \"gelu_pytorch_tanh\"", "Vidi"],
            ),
            (
                json!({"mm_audio_config": {"activation_function": "relu"}}),
                ["mm_audio_config.activation_function = \"relu\"", "only \"gelu\"", "Vidi"],
            ),
            (
                json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
                ["rope_scaling.rope_type = \"linear\"", "only \"default\"", "Vidi"],
            ),
            (json!({"rope_scaling": {"type": "dynamic"}}), ["rope_scaling.type = \"dynamic\"", "\"default\"", "Vidi"]),
            (json!({"rope_scaling": {"factor": 8.0}}), ["rope_scaling.factor = 8.0", "without this key", "Vidi"]),
            (json!({"rope_scaling": "linear"}), ["rope_scaling = \"linear\"", "only an object", "Vidi"]),
            (
                json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}),
                ["rope_parameters.rope_type = \"yarn\"", "only \"default\"", "Vidi"],
            ),
            (
                json!({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e4}),
                ["rope_parameters.rope_theta = 1000000.0", "10000, as rope_theta itself says", "Vidi"],
            ),
            (json!({"rope_parameters": {"rope_theta": "x"}}), ["rope_theta = \"x\"", "only a number", "Vidi"]),
            (
                json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
                ["rope_parameters.full_attention = {", "without this key", "Vidi"],
            ),
            (
                json!({"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}),
                ["layer_types = [\"full_attention\"", "by turns, 2 in all", "Vidi"],
            ),
            (json!({"layer_types": ["sliding_attention"]}), ["layer_types = [\"sl", "by turns, 42 in all", "Vidi"]),
        ] {
            let message = refused(config.clone()).unwrap_or_else(|| panic!("{config} is taken"));
            assert!(said.iter().all(|part| message.contains(part)), "{message}");
        }
    }

    #[test]
    fn the_values_that_are_computed_are_taken_and_so_are_absent_and_null_ones() {
        let real = crate::demo_model::config_json::json(&crate::demo_model::Dims::of(config::Size::NineB));
        assert_eq!(refused(serde_json::from_str(&real).unwrap()), None);
        assert_eq!(refused(json!({})), None);
        // As transformers 5 writes it.
        let newer = json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_scaling": null});
        assert_eq!(refused(newer), None);
        assert_eq!(refused(json!({"rope_scaling": {"type": "default"}, "partial_rotary_factor": 1.0})), None);
        let null: Map<String, Value> = KEYS.iter().map(|(key, ..)| ((*key).to_owned(), Value::Null)).collect();
        assert_eq!(refused_key(&null), None);
    }

    #[test]
    fn names_of_conversions_are_refused_and_names_that_nobody_asks_for_are_not() {
        let layer = "model.layers.0.mlp.up_proj.weight";
        for (names, said) in [
            (&[layer, "model.layers.0.mlp.up_proj.scales"][..], "MLX"),
            (&[layer, "model.layers.0.mlp.up_proj.weight.absmax"], "bitsandbytes"),
            (&[layer, "model.layers.0.mlp.up_proj.SCB"], "bitsandbytes"),
            (&["model.layers.0.mlp.up_proj.qweight"], "GPTQ"),
            (&["language_model.model.norm.weight", "vision_tower.x"], "tensor language_model.model.norm.weight"),
        ] {
            let message = refused_name(names.iter().copied()).unwrap_or_else(|| panic!("{names:?} are taken"));
            assert!(message.contains(said) && message.contains("convert from the original"), "{message}");
        }
        assert_eq!(refused_name(["lm_head.weight", layer, "stray"].into_iter()), None);
        assert_eq!(refused_name(std::iter::empty()), None);
    }
}
