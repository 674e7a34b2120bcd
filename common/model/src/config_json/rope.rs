//! Rotary embedding as a `config.json` states it: `rope_theta`, or since transformers 5 `rope_parameters`, where it has other
//! keys for kinds of scaling that this model never had.
//!
//! For models whose kinds of layers have bases of their own (Gemma 3) the parameters stand in one object for each kind. Here all
//! layers have one base: such a file is read where its kinds agree.

use serde_json::{Map, Value};

/// Where transformers 5 writes what `rope_theta` and `rope_scaling` were.
pub const PARAMETERS: &str = "rope_parameters";
/// The base of the frequencies, in either place.
pub const THETA: &str = "rope_theta";
/// The kind of scaling, by its newer and its older name, and the one that scales nothing.
const KINDS: [&str; 2] = ["rope_type", "type"];
const UNSCALED: &str = "default";
/// Attention with a window and without, as `layer_types` calls it; Gemma's even and odd layers (MODEL.md 7).
pub const LAYERS: [&str; 2] = ["sliding_attention", "full_attention"];

/// The base that `rope_parameters` states, where `rope_theta` itself is absent, and the key that it has there.
pub fn theta(config: &Map<String, Value>) -> Option<(String, f64)> {
    if config.get(THETA).is_some_and(|value| !value.is_null()) {
        return None;
    }
    let (path, parameters) = kinds_of_layers(config).into_iter().next()?;
    Some((format!("{path}.{THETA}"), parameters.get(THETA)?.as_f64()?))
}

/// The objects of parameters, each with the key that it has: one for each kind of layer, or one for all.
fn kinds_of_layers(config: &Map<String, Value>) -> Vec<(String, &Map<String, Value>)> {
    let Some(all) = config.get(PARAMETERS).and_then(Value::as_object) else { return Vec::new() };
    let of_kinds =
        LAYERS.iter().filter_map(|kind| Some((format!("{PARAMETERS}.{kind}"), all.get(*kind)?.as_object()?)));
    let of_kinds: Vec<_> = of_kinds.collect();
    if of_kinds.is_empty() { vec![(PARAMETERS.to_owned(), all)] } else { of_kinds }
}

/// The base of a kind of layer that is not that of the first: its key and value, and what is supported.
fn other_base(kinds: &[(String, &Map<String, Value>)]) -> Option<(String, Value, String)> {
    let base = |parameters: &Map<String, Value>| parameters.get(THETA).and_then(Value::as_f64);
    let ((first, parameters), others) = kinds.split_first()?;
    let other = others.iter().find(|(_, other)| base(other) != base(parameters))?;
    let supported = match base(parameters) {
        Some(base) => format!("{base}, as {first}.{THETA} has it: all layers have one"),
        None => format!("none, as in {first}: all layers have one"),
    };
    Some((format!("{}.{THETA}", other.0), other.1.get(THETA).cloned().unwrap_or_default(), supported))
}

/// What of the rotary embedding is not computed: key and value, and what is supported.
pub fn refused(config: &Map<String, Value>) -> Option<(String, Value, String)> {
    let mut stated = kinds_of_layers(config);
    let nested = stated.first().is_some_and(|(path, _)| path != PARAMETERS);
    for outer in [PARAMETERS, "rope_scaling"] {
        let value = config.get(outer).filter(|value| !value.is_null());
        let Some(value) = value else { continue };
        let Some(parameters) = value.as_object() else {
            return Some((outer.to_owned(), value.clone(), "an object".to_owned()));
        };
        let other = |(key, value): &(&String, &Value)| {
            !(value.is_null() || LAYERS.contains(&key.as_str()) && value.is_object())
        };
        match outer {
            PARAMETERS if nested => {
                if let Some((key, value)) = parameters.iter().find(other) {
                    let supported = format!("an object for each of {LAYERS:?}, or one for all");
                    return Some((format!("{outer}.{key}"), value.clone(), supported));
                }
            }
            PARAMETERS => {}
            _ => stated.push((outer.to_owned(), parameters)),
        }
    }
    for (outer, parameters) in &stated {
        // The kind says more than its figures: it is looked at first.
        let (kinds, figures): (Vec<_>, Vec<_>) = parameters.iter().partition(|(key, _)| KINDS.contains(&key.as_str()));
        for (key, value) in kinds.into_iter().chain(figures).filter(|(_, value)| !value.is_null()) {
            let supported = match key.as_str() {
                THETA if outer.starts_with(PARAMETERS) => wrong_theta(config, value),
                "partial_rotary_factor" => (value.as_f64() != Some(1.0)).then(|| "1".to_owned()),
                kind if KINDS.contains(&kind) => (value != UNSCALED).then(|| format!("{UNSCALED:?}")),
                _ => Some("a rotary embedding without this key".to_owned()),
            };
            if let Some(supported) = supported {
                return Some((format!("{outer}.{key}"), value.clone(), supported));
            }
        }
    }
    stated.retain(|(path, _)| path.starts_with(PARAMETERS));
    other_base(&stated)
}

/// What is supported in place of this base in `rope_parameters`; none for one that counts.
fn wrong_theta(config: &Map<String, Value>, value: &Value) -> Option<String> {
    let Some(theta) = value.as_f64() else { return Some("a number".to_owned()) };
    let own = config.get(THETA)?.as_f64()?;
    (own != theta).then(|| format!("{own}, as {THETA} itself says"))
}
