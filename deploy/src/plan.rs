//! What each stage will hold and whether a video fits beside it, from configuration and geometry alone.

use std::fmt;

use common::budget::{Bytes, Footprint};
use common::checkpoint::CheckpointError;
use common::config::{Config, KvPrecision, WeightFormat};
use common::error::StageName;
use common::event::Mode;
use common::model::ModelConfig;
use common::plan::{AudioPlan, ImagePlan, SAMPLE_RATE};
use stage_llm::admission;
use stage_llm::cache::CachePlan;

/// Prompt and answer of a usual question: 64 and 1,024 tokens.
const TEXT_TOKENS: u64 = 64 + 1024;

/// All stages' plans.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Vision, audio and fuse with what they take.
    pub encoders: Vec<(StageName, Footprint)>,
    /// The language model.
    pub llm: admission::Footprint,
    /// What all may take together; none without a cap.
    pub card_bytes: Option<u64>,
}

/// What a video comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VideoPlan {
    /// Image tokens.
    pub image_tokens: u64,
    /// Audio tokens.
    pub audio_tokens: u64,
    /// Keys and values of them and of a usual question.
    pub cache_bytes: u64,
    /// With all stages at the same time.
    pub streaming_bytes: u64,
    /// With the encoders gone before the keys and values come, the larger of the two phases.
    pub phases_bytes: u64,
    /// How it fits, if it does.
    pub mode: Option<Mode>,
}

impl Plan {
    /// The plan of a configuration for a model.
    ///
    /// # Errors
    /// Weights that the configured format cannot hold.
    pub fn new(config: &Config, model: &ModelConfig) -> Result<Self, CheckpointError> {
        let encoders = vec![
            (StageName::Vision, stage_vision::open::footprint(config, model)?),
            (StageName::Audio, stage_audio::open::footprint(config, model)?),
            (StageName::Fuse, stage_fuse::open::footprint(config, model)?),
        ];
        let llm = admission::Footprint::new(model, &config.llm, &config.compute)?;
        Ok(Plan { encoders, llm, card_bytes: config.compute.card_bytes })
    }

    /// Vision, audio and fuse together.
    pub fn encoder_bytes(&self) -> u64 {
        self.encoders.iter().map(|(_, f)| f.bytes()).sum()
    }

    /// Everything but keys and values.
    pub fn bytes(&self) -> u64 {
        self.encoder_bytes() + self.llm.fixed.bytes()
    }

    /// What a video of so many seconds, sampled once a second and with sound, adds, and whether it fits.
    pub fn video(&self, seconds: u64) -> VideoPlan {
        let image = ImagePlan::new(1, seconds).tokens;
        let audio = AudioPlan::new(seconds * SAMPLE_RATE).map_or(0, |a| a.tokens);
        let caches = CachePlan {
            text_token_bytes: self.llm.text_token_bytes,
            media_token_bytes: self.llm.media_token_bytes,
            text_tokens: TEXT_TOKENS,
            image_tokens: image,
            audio_tokens: audio,
        };
        let cache_bytes = caches.bytes();
        let streaming_bytes = self.bytes() + cache_bytes;
        let phases_bytes = self.bytes().max(self.llm.fixed.bytes() + cache_bytes);
        let fits = |bytes: u64| self.card_bytes.is_none_or(|card| bytes <= card);
        let mode =
            if fits(streaming_bytes) { Some(Mode::Streaming) } else { fits(phases_bytes).then_some(Mode::Phases) };
        VideoPlan { image_tokens: image, audio_tokens: audio, cache_bytes, streaming_bytes, phases_bytes, mode }
    }

    /// Budgets that add up to the card: the encoders what they take, the language model the rest. None without a cap, or
    /// where the stages alone do not fit it.
    pub fn budgets(&self) -> Option<Vec<(StageName, u64)>> {
        let rest = self.card_bytes?.checked_sub(self.encoder_bytes())?;
        (rest >= self.llm.fixed.bytes()).then(|| {
            let encoders = self.encoders.iter().map(|(stage, f)| (*stage, f.bytes()));
            encoders.chain([(StageName::Llm, rest)]).collect()
        })
    }
}

/// Formats with which a video would fit that does not as configured, the best first.
///
/// # Errors
/// As [`Plan::new`].
pub fn remedies(config: &Config, model: &ModelConfig, seconds: u64) -> Result<Vec<String>, CheckpointError> {
    let mut found = Vec::new();
    let weights = [("dense", WeightFormat::Dense), ("q8", WeightFormat::Q8), ("q4", WeightFormat::Q4)];
    let caches = [("dense", KvPrecision::Dense), ("q8", KvPrecision::Q8), ("q4", KvPrecision::Q4)];
    for (weights_name, weights) in weights {
        for (kv_name, kv) in caches {
            let mut other = config.clone();
            (other.llm.weights, other.llm.kv) = (weights, kv);
            let Ok(plan) = Plan::new(&other, model) else { continue };
            let video = plan.video(seconds);
            if let Some(mode) = video.mode {
                let bytes = if mode == Mode::Streaming { video.streaming_bytes } else { video.phases_bytes };
                found.push(format!(
                    "llm.weights = \"{weights_name}\", llm.kv = \"{kv_name}\": {} ({})",
                    Bytes(bytes),
                    name_of(mode)
                ));
            }
        }
    }
    let plan = Plan::new(config, model)?;
    let longest = (2..seconds).rev().find(|&s| plan.video(s).mode.is_some());
    found.extend(longest.map(|s| format!("a span of {s} s at most, as configured")));
    Ok(found)
}

fn name_of(mode: Mode) -> &'static str {
    match mode {
        Mode::Streaming => "streaming",
        Mode::Phases => "in phases",
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<8} {:>11} {:>11} {:>11} {:>11}", "stage", "weights", "activations", "context", "together")?;
        let mut row = |name: &str, p: &Footprint| {
            let [weights, activations, context, all] =
                [p.weights_bytes, p.activation_bytes, p.context_bytes, p.bytes()].map(|b| Bytes(b).to_string());
            writeln!(f, "{name:<8} {weights:>11} {activations:>11} {context:>11} {all:>11}")
        };
        for (stage, footprint) in &self.encoders {
            row(stage.as_str(), footprint)?;
        }
        row("llm", &self.llm.fixed)?;
        let total = Bytes(self.bytes()).to_string();
        writeln!(f, "{:<8} {:>11} {:>11} {:>11} {total:>11}", "all", "", "", "")?;
        let (text, media) = (self.llm.text_token_bytes, self.llm.media_token_bytes);
        writeln!(f, "keys and values: {media} bytes an image or audio token, {text} a text token")?;
        match self.card_bytes {
            Some(card) => write!(f, "the card gives {}", Bytes(card)),
            None => write!(f, "compute.card_bytes is not set: nothing is capped"),
        }
    }
}

impl fmt::Display for VideoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.mode.map_or("DOES NOT FIT", name_of);
        write!(
            f,
            "{} image and {} audio tokens: {} of keys and values; {} streaming, {} in phases: {verdict}",
            self.image_tokens,
            self.audio_tokens,
            Bytes(self.cache_bytes),
            Bytes(self.streaming_bytes),
            Bytes(self.phases_bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::Precision;

    fn config(weights: WeightFormat, kv: KvPrecision, card_bytes: Option<u64>) -> Config {
        let mut config = Config::default();
        config.compute.device = "cuda".to_owned();
        config.compute.dtype = Precision::Bf16;
        config.compute.card_bytes = card_bytes;
        (config.llm.weights, config.llm.kv) = (weights, kv);
        config.llm.chunk_rows = 1024;
        config.llm.max_prompt_tokens = 1024;
        config
    }

    fn plan(weights: WeightFormat, kv: KvPrecision, card_bytes: Option<u64>) -> Plan {
        Plan::new(&config(weights, kv, card_bytes), &ModelConfig::default()).unwrap()
    }

    #[test]
    fn an_hour_fits_the_shared_card_in_four_bits_and_in_phases_only() {
        let card = Some(19_600_000_000);
        assert_eq!(plan(WeightFormat::Q4, KvPrecision::Q4, card).video(3600).mode, Some(Mode::Phases));
        assert_eq!(plan(WeightFormat::Q4, KvPrecision::Q4, card).video(60).mode, Some(Mode::Streaming));
        assert_eq!(plan(WeightFormat::Q8, KvPrecision::Q8, card).video(3600).mode, None);
        assert_eq!(plan(WeightFormat::Dense, KvPrecision::Dense, card).video(10).mode, None);
        assert_eq!(plan(WeightFormat::Dense, KvPrecision::Dense, None).video(3600).mode, Some(Mode::Streaming));
    }

    #[test]
    fn budgets_add_up_to_the_card_and_the_rest_is_the_language_models() {
        let plan = plan(WeightFormat::Q4, KvPrecision::Q4, Some(19_600_000_000));
        let budgets = plan.budgets().unwrap();
        assert_eq!(budgets.iter().map(|(_, b)| b).sum::<u64>(), 19_600_000_000);
        assert!(plan.encoders.iter().all(|(s, f)| budgets.contains(&(*s, f.bytes()))));
    }

    #[test]
    fn what_would_help_is_named_and_would_help() {
        let config = config(WeightFormat::Q8, KvPrecision::Q8, Some(19_600_000_000));
        let remedies = remedies(&config, &ModelConfig::default(), 3600).unwrap();
        assert!(remedies.iter().any(|r| r.contains("\"q4\", llm.kv = \"q4\"")), "{remedies:?}");
        assert!(!remedies.iter().any(|r| r.contains("dense\", llm.kv = \"dense")), "{remedies:?}");
    }
}
