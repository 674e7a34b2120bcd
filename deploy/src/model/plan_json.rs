//! Memory plan for programs: the figures of `vidi plan` as one JSON object.

use serde_json::{Map, Value, json};

use super::device_plan::DevicePlan;
use super::plan::MemoryPlan;

impl MemoryPlan {
    /// The plan for a program, in bytes: what the processes of each stage hold on each device, together and with what, and the
    /// sums of all devices. `card_bytes` is the cap of a device (null without one), and of the whole where there is one device.
    pub fn to_json(&self) -> Value {
        let mut stages: Map<String, Value> = Map::new();
        for on in &self.devices {
            for (name, figures) in of_stages(on) {
                match stages.get_mut(&name) {
                    Some(sum) => {
                        for key in ["processes", "bytes"] {
                            sum[key] = json!(sum[key].as_u64().unwrap_or(0) + figures[key].as_u64().unwrap_or(0));
                        }
                    }
                    None => {
                        stages.insert(name, figures);
                    }
                }
            }
        }
        let device = |on: &DevicePlan| {
            let figures = json!({
                "stages": of_stages(on),
                "bytes": on.bytes(),
                "card_bytes": on.cap.as_ref().map(|(bytes, _)| bytes),
                "left_bytes": on.left_bytes(),
            });
            (on.device.to_string(), figures)
        };
        let card_bytes = match self.devices.as_slice() {
            [only] => only.cap.as_ref().map(|(bytes, _)| bytes),
            _ => None,
        };
        json!({
            "stages": stages,
            "bytes": self.bytes(),
            "card_bytes": card_bytes,
            "devices": self.devices.iter().map(device).collect::<Map<String, Value>>(),
            "media_token_bytes": self.llm.media_token_bytes,
            "text_token_bytes": self.llm.text_token_bytes,
        })
    }
}

/// Figures of one process of each stage on a device, and of all of them.
fn of_stages(on: &DevicePlan) -> Map<String, Value> {
    let stage = |(stage, f, n): (protocol::error::StageName, model::budget::Footprint, u64)| {
        let figures = json!({
            "processes": n,
            "weights_bytes": f.weights_bytes,
            "activation_bytes": f.activation_bytes,
            "context_bytes": f.context_bytes,
            "bytes": n * f.bytes(),
        });
        (stage.as_str().to_owned(), figures)
    };
    on.stages().map(stage).collect()
}

#[cfg(test)]
mod tests {
    use config::{Config, Device, KvPrecision, WeightFormat};
    use model::config_json::ModelConfig;
    use protocol::error::StageName;

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
        assert_eq!(json!(plan.video(60))["device"], "cpu");
        assert_eq!(object["devices"]["cpu"]["stages"], object["stages"]);
        let left = 19_600_000_000_u64.saturating_sub(plan.bytes());
        assert_eq!(object["devices"]["cpu"]["left_bytes"], left);
    }

    #[test]
    fn every_gpu_has_its_stages_and_the_sums_are_of_all() {
        let mut config = Config::default();
        config.compute.device = "cuda".to_owned();
        config.placement.vision = vec![Device::Cuda(0), Device::Cuda(1)];
        config.placement.audio = vec![Device::Cuda(1)];
        config.placement.card_bytes.insert(Device::Cuda(1), 30_000_000_000);
        let replicas = [(StageName::Vision, 3)];
        let plan = MemoryPlan::new(&config, &ModelConfig::default(), &replicas).unwrap();
        let object = plan.to_json();
        let [first, second] = ["cuda:0", "cuda:1"].map(|name| &object["devices"][name]);
        let count = |on: &Value, stage: &str| on["stages"][stage]["processes"].as_u64();
        assert_eq!((count(first, "vision"), count(second, "vision")), (Some(2), Some(1)));
        assert_eq!((count(first, "audio"), count(second, "audio"), count(second, "llm")), (None, Some(1), None));
        assert_eq!((object["stages"]["vision"]["processes"].as_u64(), &object["card_bytes"]), (Some(3), &Value::Null));
        assert_eq!((&first["card_bytes"], &second["card_bytes"]), (&Value::Null, &json!(30_000_000_000_u64)));
        let bytes = |on: &Value| on["bytes"].as_u64().unwrap();
        assert_eq!(bytes(first) + bytes(second), bytes(&object));
        assert_eq!(second["left_bytes"], 30_000_000_000 - bytes(second));
    }
}
