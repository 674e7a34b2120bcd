//! A geometry from the keys of a `config.json`, put over the defaults of the family that its `model_type` names.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::supported::model_type;
use super::{Family, ModelConfig, rope};

/// Key of the head's width, which Mistral's configuration derives where it is absent.
pub(super) const HEAD_DIM: &str = "head_dim";
/// Keys that a Vidi 7B has to state: its class has no default for them (MODEL-7B.md).
const STATED: [&str; 2] = ["mm_image_pool_size", "mm_time_interval"];

impl<'de> Deserialize<'de> for ModelConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ModelConfig::of_file(&Map::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl ModelConfig {
    /// The geometry that the keys of a `config.json` state.
    ///
    /// # Errors
    /// The key and its value, or the key that is missing, and what is allowed.
    pub fn of_file(file: &Map<String, Value>) -> Result<Self, String> {
        let family = model_type(file)?;
        if family == Family::Mistral {
            stated(file)?;
        }
        let mut config = ModelConfig::of(family);
        let Ok(Value::Object(mut keys)) = serde_json::to_value(&config) else {
            unreachable!("a geometry is plain data. This is a bug.")
        };
        let names: Vec<String> = keys.keys().cloned().collect();
        for name in names {
            let Some(value) = file.get(&name).filter(|value| !(value.is_null() && null_is_default(family, &name)))
            else {
                continue;
            };
            match (keys.get_mut(&name), value) {
                (Some(Value::Object(inside)), Value::Object(own)) => {
                    for (name, place) in inside {
                        own.get(name).into_iter().for_each(|value| *place = value.clone());
                    }
                }
                _ => drop(keys.insert(name.clone(), value.clone())),
            }
            // The derived function, key by key: an error then has a name.
            config = ModelConfig::deserialize(Value::Object(keys.clone()))
                .map_err(|e| format!("{name} = {value} cannot be read: {e}"))?;
        }
        config.rope_theta = rope::theta(file).map_or(config.rope_theta, |(_, theta)| theta);
        if family == Family::Mistral {
            config.head_dim = config.own_head_dim(file)?;
            config.query_pre_attn_scalar = config.head_dim as f64;
        }
        Ok(config)
    }

    /// Width of a head: the file's, or an equal share of the model's width.
    fn own_head_dim(&self, file: &Map<String, Value>) -> Result<usize, String> {
        if file.get(HEAD_DIM).is_some_and(|value| !value.is_null()) {
            return Ok(self.head_dim);
        }
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        let shared = heads > 0 && width.is_multiple_of(heads);
        shared.then(|| width / heads).ok_or_else(|| {
            format!(
                "hidden_size = {width} is not a multiple of num_attention_heads = {heads}, and {HEAD_DIM} is not there"
            )
        })
    }
}

/// Refuses a Vidi 7B without a key that it has to state.
fn stated(file: &Map<String, Value>) -> Result<(), String> {
    match STATED.into_iter().find(|key| file.get(*key).is_none_or(Value::is_null)) {
        None => Ok(()),
        Some(key) => Err(format!(
            "{key} is not there, and {} has no default for it: add it with the value that the model was trained with",
            Family::Mistral.name()
        )),
    }
}

/// Whether `null` stands for the default of a key; elsewhere it has a meaning of its own, or is no value.
fn null_is_default(family: Family, key: &str) -> bool {
    key.starts_with("mm_") || key == "model_type" || (key == HEAD_DIM && family == Family::Mistral)
}
