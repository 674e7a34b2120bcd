//! What was read of a `config.json`, key by key, and where from.

use serde::Serialize;
use serde_json::{Map, Value};

use super::file::HEAD_DIM;
use super::{Family, ModelConfig, rope};

/// Keys that no Vidi 7B has: it has no caps, and its scale follows from the width of a head.
const GEMMA2_ONLY: [&str; 3] = ["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"];
/// What the width of a head is derived from where a Vidi 7B does not state it.
const SHARE: &str = "hidden_size / num_attention_heads";

/// One key of the model's geometry, as it is computed with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Key; a dot stands before one inside another.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Key of the file that says so, or what it is derived from; none where the file does not say, and the value is that of the
    /// released model.
    pub from: Option<String>,
}

impl ModelConfig {
    /// Every key with its value, by name; `file` is the `config.json` that it was read from.
    pub(crate) fn settings(&self, file: &Map<String, Value>) -> Vec<Setting> {
        let all = serde_json::to_value(self).expect("a geometry is plain data. This is a bug.");
        let mut settings = Vec::new();
        let lacks = |key: &str| self.family == Family::Mistral && GEMMA2_ONLY.contains(&key);
        for (key, value) in all.as_object().into_iter().flatten().filter(|(key, _)| !lacks(key)) {
            match value {
                Value::Object(inner) => {
                    let inside = file.get(key);
                    settings.extend(inner.iter().map(|(name, value)| {
                        let key = format!("{key}.{name}");
                        let from = inside.and_then(|inside| inside.get(name)).map(|_| key.clone());
                        Setting { key, value: value.clone(), from }
                    }));
                }
                _ => settings.push(Setting {
                    key: key.clone(),
                    value: value.clone(),
                    from: self.source(key, value, file),
                }),
            }
        }
        settings
    }

    /// Key of the file that a value is from.
    fn source(&self, key: &str, value: &Value, file: &Map<String, Value>) -> Option<String> {
        match file.get(key) {
            None | Some(Value::Null) if key == HEAD_DIM && self.family == Family::Mistral => Some(SHARE.to_owned()),
            // `null` stands for the default, but where it switches something off.
            Some(Value::Null) if !value.is_null() => None,
            Some(_) => Some(key.to_owned()),
            None if key == rope::THETA => rope::theta(file).map(|(stated_at, _)| stated_at),
            None => None,
        }
    }
}
