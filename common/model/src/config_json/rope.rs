//! Rotary embedding as a `config.json` states it: `rope_theta`, or since transformers 5 `rope_parameters`, where it has other
//! keys for kinds of scaling that this model never had.

use serde_json::{Map, Value};

/// Where transformers 5 writes what `rope_theta` and `rope_scaling` were.
pub const PARAMETERS: &str = "rope_parameters";
/// The base of the frequencies, in either place.
pub const THETA: &str = "rope_theta";
/// The kind of scaling, by its newer and its older name, and the one that scales nothing.
const KINDS: [&str; 2] = ["rope_type", "type"];
const UNSCALED: &str = "default";

/// The base that `rope_parameters` states, where `rope_theta` itself is absent.
pub fn theta(config: &Map<String, Value>) -> Option<f64> {
    let own = config.get(THETA).filter(|value| !value.is_null());
    if own.is_some() { None } else { config.get(PARAMETERS)?.get(THETA)?.as_f64() }
}

/// What of the rotary embedding is not computed: key and value, and what is supported.
pub fn refused(config: &Map<String, Value>) -> Option<(String, Value, String)> {
    for outer in [PARAMETERS, "rope_scaling"] {
        let value = config.get(outer).filter(|value| !value.is_null());
        let Some(value) = value else { continue };
        let Some(parameters) = value.as_object() else {
            return Some((outer.to_owned(), value.clone(), "an object".to_owned()));
        };
        // The kind says more than its figures: it is looked at first.
        let (kinds, figures): (Vec<_>, Vec<_>) = parameters.iter().partition(|(key, _)| KINDS.contains(&key.as_str()));
        for (key, value) in kinds.into_iter().chain(figures).filter(|(_, value)| !value.is_null()) {
            let supported = match key.as_str() {
                THETA if outer == PARAMETERS => wrong_theta(config, value),
                "partial_rotary_factor" => (value.as_f64() != Some(1.0)).then(|| "1".to_owned()),
                kind if KINDS.contains(&kind) => (value != UNSCALED).then(|| format!("{UNSCALED:?}")),
                _ => Some("a rotary embedding without this key".to_owned()),
            };
            if let Some(supported) = supported {
                return Some((format!("{outer}.{key}"), value.clone(), supported));
            }
        }
    }
    None
}

/// What is supported in place of this base in `rope_parameters`; none for one that counts.
fn wrong_theta(config: &Map<String, Value>, value: &Value) -> Option<String> {
    let Some(theta) = value.as_f64() else { return Some("a number".to_owned()) };
    let own = config.get(THETA)?.as_f64()?;
    (own != theta).then(|| format!("{own}, as {THETA} itself says"))
}
