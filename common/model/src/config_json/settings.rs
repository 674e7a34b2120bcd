//! What was read of a `config.json`, key by key, and where from.

use serde::Serialize;
use serde_json::{Map, Value};

use super::ModelConfig;
use super::rope;

/// One key of the model's geometry, as it is computed with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Key; a dot stands before one inside another.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Key of the file that says so; none where the file does not, and the value is that of Vidi 1.5 9B.
    pub from: Option<String>,
}

impl ModelConfig {
    /// Every key with its value, by name; `file` is the `config.json` that it was read from.
    pub(crate) fn settings(&self, file: &Map<String, Value>) -> Vec<Setting> {
        let all = serde_json::to_value(self).expect("a geometry is plain data. This is a bug.");
        let mut settings = Vec::new();
        for (key, value) in all.as_object().into_iter().flatten() {
            match value {
                Value::Object(inner) => {
                    let inside = file.get(key);
                    settings.extend(inner.iter().map(|(name, value)| {
                        let key = format!("{key}.{name}");
                        let from = inside.and_then(|inside| inside.get(name)).map(|_| key.clone());
                        Setting { key, value: value.clone(), from }
                    }));
                }
                _ => settings.push(Setting { key: key.clone(), value: value.clone(), from: source(key, value, file) }),
            }
        }
        settings
    }
}

/// Key of the file that a value is from.
fn source(key: &str, value: &Value, file: &Map<String, Value>) -> Option<String> {
    match file.get(key) {
        // `null` stands for the default, but where it switches a soft cap off.
        Some(Value::Null) if !value.is_null() => None,
        Some(_) => Some(key.to_owned()),
        None if key == rope::THETA && rope::theta(file).is_some() => Some(format!("{}.{key}", rope::PARAMETERS)),
        None => None,
    }
}
