//! Checkpoints that no stage can compute with, told by their `config.json` and their tensors' names: of other models, or
//! converted for other programs.
//!
//! A converted directory has the geometry of the original, so that without these rules it would fail late, at the first tensor
//! that has another name or shape, and say nothing of the reason.

use serde_json::{Map, Value};

use super::rope::{self, LAYERS};
use super::{Family, ModelConfig};

/// What to do about a checkpoint that was converted.
const CONVERTED: &str = "convert from the original checkpoint instead (llm.weights = \"q8\" or \"q4\" and `vidi quantize` \
                         make 8 and 4 bits of its weights)";
/// What to do about another model's.
const OTHER_MODEL: &str = "use a checkpoint of Vidi 1.5 9B or of Vidi 7B";
/// The activation of the vision tower and of Gemma 2 (MODEL.md 3 and 7).
const GELU: &str = "gelu_pytorch_tanh";
/// Mistral's (MODEL-7B.md, "Language model").
const SILU: &str = "silu";

/// The only value of a key that is computed; absent and `null` stand for it.
enum Only {
    Absent,
    Dense,
    Text(&'static str),
    False,
    Number(u64),
}

/// A key, its only value, and what to do about another.
type Key = (&'static str, Only, &'static str);

/// Keys with one value each in both families; a dot stands before one inside another.
const KEYS: [Key; 12] = [
    ("quantization", Only::Dense, CONVERTED),
    ("quantization_config", Only::Dense, CONVERTED),
    ("mm_input_type", Only::Text("video"), OTHER_MODEL),
    ("mm_image_aspect_ratio", Only::Text("resize"), OTHER_MODEL),
    ("attention_bias", Only::False, OTHER_MODEL),
    ("text_config", Only::Absent, OTHER_MODEL),
    ("mm_image_grid_points", Only::Absent, OTHER_MODEL),
    ("partial_rotary_factor", Only::Number(1), OTHER_MODEL),
    ("use_bidirectional_attention", Only::False, OTHER_MODEL),
    ("mm_vision_config.hidden_act", Only::Text(GELU), OTHER_MODEL),
    ("mm_audio_config.activation_function", Only::Text("gelu"), OTHER_MODEL),
    ("mm_audio_config.scale_embedding", Only::False, OTHER_MODEL),
];

/// Keys with one value in a Vidi 1.5 9B.
const GEMMA2_KEYS: [Key; 2] =
    [("hidden_activation", Only::Text(GELU), OTHER_MODEL), ("hidden_act", Only::Text(GELU), OTHER_MODEL)];

/// Keys with one value in a Vidi 7B. Scores and logits have no cap, and the scale is that of the head's width, whatever a file
/// says in Gemma's words.
const MISTRAL_KEYS: [Key; 5] = [
    ("hidden_activation", Only::Text(SILU), OTHER_MODEL),
    ("hidden_act", Only::Text(SILU), OTHER_MODEL),
    ("attn_logit_softcapping", Only::Absent, OTHER_MODEL),
    ("final_logit_softcapping", Only::Absent, OTHER_MODEL),
    ("query_pre_attn_scalar", Only::Absent, OTHER_MODEL),
];

/// Keys with one value in a family.
fn keys(family: Family) -> impl Iterator<Item = &'static Key> {
    let own = match family {
        Family::Gemma2 => &GEMMA2_KEYS[..],
        Family::Mistral => &MISTRAL_KEYS[..],
    };
    KEYS.iter().chain(own)
}

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
    let family = match model_type(config) {
        Ok(family) => family,
        Err(what) => return Some(what),
    };
    let refused = |(key, value, supported): (String, Value, String)| {
        format!("{key} = {} is not supported, only {supported}: {OTHER_MODEL}", shown(&value))
    };
    let others = || rope::refused(config).or_else(|| other_layers(config, family)).map(refused);
    other_value(config, family).or_else(others)
}

/// The first of a family's [`keys`] with another value than its own.
fn other_value(config: &Map<String, Value>, family: Family) -> Option<String> {
    keys(family).find_map(|(key, only, advice)| {
        let value = match key.split_once('.') {
            Some((outer, inner)) => config.get(outer)?.get(inner),
            None => config.get(*key),
        };
        let value = value.filter(|value| !value.is_null())?;
        let (fits, supported) = match only {
            Only::Absent => (false, "a configuration without this key".to_owned()),
            Only::Dense => (false, "weights of 16 or 32 bits, without this key".to_owned()),
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

/// `layer_types` where they are not those of the model, with what is supported: Gemma's take turns, Mistral's are all alike.
fn other_layers(config: &Map<String, Value>, family: Family) -> Option<(String, Value, String)> {
    let key = "layer_types";
    let types = config.get(key).filter(|value| !value.is_null())?;
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64);
    let layers = layers.unwrap_or(ModelConfig::of(family).num_hidden_layers as u64);
    let slides = config.get("sliding_window").is_some_and(|window| !window.is_null());
    let of_layer = |at: usize| match family {
        Family::Gemma2 => LAYERS[at % 2],
        Family::Mistral => LAYERS[usize::from(!slides)],
    };
    let listed = types.as_array().map(Vec::as_slice).unwrap_or_default();
    let fits = listed.len() as u64 == layers && listed.iter().enumerate().all(|(at, kind)| kind == of_layer(at));
    let supported = match family {
        Family::Gemma2 => format!("{LAYERS:?} by turns, {layers} in all"),
        Family::Mistral => format!("{:?} for each of {layers} layers, as sliding_window says", of_layer(0)),
    };
    (!fits).then(|| (key.to_owned(), types.clone(), supported))
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
mod tests;
