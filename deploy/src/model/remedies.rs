//! Remedies for a video that does not fit as configured.

use config::{Config, KvPrecision, WeightFormat};
use model::checkpoint::CheckpointError;
use model::config_json::ModelConfig;
use protocol::bytes::Bytes;
use protocol::event::Mode;

use super::device_plan::name_of;
use super::plan::{MemoryPlan, Replicas};

/// Remedies for a video that does not fit as configured: formats with which it would, the most exact first, and the longest
/// span.
///
/// # Errors
/// As [`MemoryPlan::new`].
pub fn remedies(
    config: &Config,
    model: &ModelConfig,
    replicas: &Replicas,
    seconds: u64,
) -> Result<Vec<String>, CheckpointError> {
    let mut found = Vec::new();
    let weights = [("dense", WeightFormat::Dense), ("q8", WeightFormat::Q8), ("q4", WeightFormat::Q4)];
    let caches = [("dense", KvPrecision::Dense), ("q8", KvPrecision::Q8), ("q4", KvPrecision::Q4)];
    for (weights_name, weights) in weights {
        for (kv_name, kv) in caches {
            let mut other = config.clone();
            (other.llm.weights, other.llm.kv) = (weights, kv);
            let Ok(plan) = MemoryPlan::new(&other, model, replicas) else { continue };
            let video = plan.video(seconds);
            if let Some(mode) = video.mode {
                let bytes = video.phases_bytes.filter(|_| mode == Mode::Phases).unwrap_or(video.streaming_bytes);
                found.push(format!(
                    "llm.weights = \"{weights_name}\", llm.kv = \"{kv_name}\": {} ({})",
                    Bytes(bytes),
                    name_of(mode)
                ));
            }
        }
    }
    let plan = MemoryPlan::new(config, model, replicas)?;
    let longest = (2..seconds).rev().find(|&s| plan.video(s).mode.is_some());
    found.extend(longest.map(|s| format!("a span of {s} s at most, as configured")));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use config::Precision;

    use super::*;

    #[test]
    fn what_would_help_is_named_and_would_help() {
        let mut config = Config::default();
        config.compute.device = "cuda".to_owned();
        config.compute.dtype = Precision::Bf16;
        config.compute.card_bytes = Some(19_600_000_000);
        (config.llm.weights, config.llm.kv) = (WeightFormat::Q8, KvPrecision::Q8);
        (config.llm.chunk_rows, config.llm.max_prompt_tokens) = (1024, 1024);
        let remedies = remedies(&config, &ModelConfig::default(), &[], 3600).unwrap();
        assert!(remedies.iter().any(|r| r.contains("\"q4\", llm.kv = \"q4\"")), "{remedies:?}");
        assert!(!remedies.iter().any(|r| r.contains("dense\", llm.kv = \"dense")), "{remedies:?}");
    }
}
