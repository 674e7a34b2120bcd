//! Memory plan for programs: the figures of `vidi plan` as one JSON object.

use model::budget::Footprint;
use protocol::error::StageName;
use serde_json::{Map, Value, json};

use super::plan::MemoryPlan;

impl MemoryPlan {
    /// The plan for a program: what the processes of each stage hold, together and with what, in bytes.
    pub fn to_json(&self) -> Value {
        let llm = (StageName::Llm, self.llm.fixed, self.llm_processes);
        let stage = |(stage, f, n): &(StageName, Footprint, u64)| {
            let figures = json!({
                "processes": n,
                "weights_bytes": f.weights_bytes,
                "activation_bytes": f.activation_bytes,
                "context_bytes": f.context_bytes,
                "bytes": n * f.bytes(),
            });
            (stage.as_str().to_owned(), figures)
        };
        let stages: Map<String, Value> = self.encoders.iter().chain([&llm]).map(stage).collect();
        json!({
            "stages": stages,
            "bytes": self.bytes(),
            "card_bytes": self.card_bytes,
            "media_token_bytes": self.llm.media_token_bytes,
            "text_token_bytes": self.llm.text_token_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use config::{Config, KvPrecision, WeightFormat};
    use model::config_json::ModelConfig;

    use super::*;

    #[test]
    fn a_program_reads_the_same_figures() {
        let mut config = Config::default();
        config.compute.card_bytes = Some(19_600_000_000);
        (config.llm.weights, config.llm.kv) = (WeightFormat::Q4, KvPrecision::Q4);
        let plan = MemoryPlan::new(&config, &ModelConfig::default(), &[]).unwrap();
        let object = plan.to_json();
        assert_eq!((&object["bytes"], &object["card_bytes"]), (&json!(plan.bytes()), &json!(19_600_000_000_u64)));
        let stages = object["stages"].as_object().unwrap();
        assert_eq!(stages.len(), 4);
        assert_eq!(stages.values().map(|stage| stage["bytes"].as_u64().unwrap()).sum::<u64>(), plan.bytes());
        assert_eq!(json!(plan.video(60))["cache_bytes"], plan.video(60).cache_bytes);
    }
}
