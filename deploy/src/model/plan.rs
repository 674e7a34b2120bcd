//! Memory plan: what each stage will hold, and whether a video fits beside it, from configuration and geometry alone.

use std::collections::BTreeMap;
use std::fmt;

use config::{Config, KvPrecision, WeightFormat};
use model::budget::Footprint;
use model::checkpoint::CheckpointError;
use model::config_json::ModelConfig;
use protocol::bytes::Bytes;
use protocol::error::StageName;
use protocol::event::Mode;
use protocol::plan::{AudioPlan, FrameGrid, ImagePlan, SAMPLE_RATE};
use serde::Serialize;
use stage_llm::language::cache::CacheSize;
use stage_llm::language::footprint::LlmFootprint;

/// Text tokens of a usual question: 64 of the prompt, 1,024 of the answer.
const TEXT_TOKENS: u64 = 64 + 1024;

/// Processes of each stage, as `--replicas` gives them.
pub type Replicas = [(StageName, usize)];

/// Memory that all stage processes hold, whatever the job.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Stage, footprint of one process and number of processes of vision, audio and fuse.
    pub encoders: Vec<(StageName, Footprint, u64)>,
    /// Footprint of one process of the language model.
    pub llm: LlmFootprint,
    /// Number of processes of the language model.
    pub llm_processes: u64,
    /// Rule that the grids of frames follow.
    pub grid: FrameGrid,
    /// Bytes that all processes may take of the GPU together (`compute.card_bytes`); none without a cap.
    pub card_bytes: Option<u64>,
}

/// Memory that a video needs beside the stages, and how it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VideoFit {
    /// Image tokens.
    pub image_tokens: u64,
    /// Audio tokens.
    pub audio_tokens: u64,
    /// Bytes of the keys and values of these tokens and of a usual question.
    pub cache_bytes: u64,
    /// Bytes with all stages working at once, and such a video in each process of the language model.
    pub streaming_bytes: u64,
    /// Bytes of the larger of two phases: the encoders leave before the keys and values come. None where several
    /// processes of the language model share the GPU: none of them can have it to itself.
    pub phases_bytes: Option<u64>,
    /// Mode in which it fits; none if it does not.
    pub mode: Option<Mode>,
}

impl MemoryPlan {
    /// The memory plan of a configuration and a model with these replicas; one process of a stage that is not named.
    ///
    /// # Errors
    /// Weights that the configured format cannot hold.
    pub fn new(config: &Config, model: &ModelConfig, replicas: &Replicas) -> Result<Self, CheckpointError> {
        let count = |stage| replicas.iter().find(|(s, _)| *s == stage).map_or(1, |(_, n)| *n as u64);
        let encoder = |stage, footprint| (stage, footprint, count(stage));
        let encoders = vec![
            encoder(StageName::Vision, stage_vision::open::footprint(config, model)?),
            encoder(StageName::Audio, stage_audio::open::footprint(config, model)?),
            encoder(StageName::Fuse, stage_fuse::open::footprint(config, model)?),
        ];
        let llm = LlmFootprint::new(model, &config.llm, &config.compute)?;
        Ok(MemoryPlan {
            encoders,
            llm,
            llm_processes: count(StageName::Llm),
            grid: model.image_pool().grid(),
            card_bytes: config.compute.card_bytes,
        })
    }

    /// Bytes of all processes of vision, audio and fuse.
    pub fn encoder_bytes(&self) -> u64 {
        self.encoders.iter().map(|(_, f, n)| n * f.bytes()).sum()
    }

    /// Bytes of all processes, without keys and values.
    pub fn bytes(&self) -> u64 {
        self.encoder_bytes() + self.llm_processes * self.llm.fixed.bytes()
    }

    /// What a video of so many seconds, sampled once a second and with sound, adds, and whether it fits.
    pub fn video(&self, seconds: u64) -> VideoFit {
        let image = ImagePlan::on(self.grid, 1, seconds).tokens;
        let audio = AudioPlan::new(seconds * SAMPLE_RATE).map_or(0, |a| a.tokens);
        let caches = CacheSize {
            text_token_bytes: self.llm.text_token_bytes,
            media_token_bytes: self.llm.media_token_bytes,
            text_tokens: TEXT_TOKENS,
            image_tokens: image,
            audio_tokens: audio,
            chunk_bytes: self.llm.chunk_bytes,
        };
        let cache_bytes = caches.bytes();
        let streaming_bytes = self.bytes() + self.llm_processes * cache_bytes;
        let alone = self.llm_processes <= 1;
        let phases_bytes = alone.then(|| self.bytes().max(self.llm.fixed.bytes() + cache_bytes));
        let fits = |bytes: &u64| self.card_bytes.is_none_or(|cap| *bytes <= cap);
        let in_phases = || phases_bytes.filter(fits).map(|_| Mode::Phases);
        let mode = if fits(&streaming_bytes) { Some(Mode::Streaming) } else { in_phases() };
        VideoFit { image_tokens: image, audio_tokens: audio, cache_bytes, streaming_bytes, phases_bytes, mode }
    }

    /// Budgets of one process of each stage that add up to the cap: the encoders what they take, the language models the
    /// rest in equal parts. None without a cap, or where the stages alone exceed it.
    pub fn budgets(&self) -> Option<Vec<(StageName, u64)>> {
        let rest = self.card_bytes?.checked_sub(self.encoder_bytes())?;
        let share = rest / self.llm_processes.max(1);
        (share >= self.llm.fixed.bytes()).then(|| {
            let encoders = self.encoders.iter().map(|(stage, f, _)| (*stage, f.bytes()));
            encoders.chain([(StageName::Llm, share)]).collect()
        })
    }

    /// Bytes that all processes may hold under given budgets; a stage without one counts with what it takes.
    pub fn budgeted_bytes(&self, budgets: &BTreeMap<StageName, u64>) -> u64 {
        let llm = (StageName::Llm, self.llm.fixed, self.llm_processes);
        let all = self.encoders.iter().chain([&llm]);
        all.map(|(stage, f, n)| n * budgets.get(stage).copied().unwrap_or(f.bytes())).sum()
    }
}

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

fn name_of(mode: Mode) -> &'static str {
    match mode {
        Mode::Streaming => "streaming",
        Mode::Phases => "in phases",
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["processes", "weights", "activations", "context", "together"];
        writeln!(
            f,
            "{:<8} {:>9} {:>11} {:>11} {:>11} {:>11}",
            "stage", heads[0], heads[1], heads[2], heads[3], heads[4]
        )?;
        let llm = (StageName::Llm, self.llm.fixed, self.llm_processes);
        for (stage, p, n) in self.encoders.iter().chain([&llm]) {
            let [weights, activations, context, all] =
                [p.weights_bytes, p.activation_bytes, p.context_bytes, n * p.bytes()].map(|b| Bytes(b).to_string());
            let stage = stage.as_str();
            writeln!(f, "{stage:<8} {n:>9} {weights:>11} {activations:>11} {context:>11} {all:>11}")?;
        }
        let total = Bytes(self.bytes()).to_string();
        writeln!(f, "{:<8} {:>9} {:>11} {:>11} {:>11} {total:>11}", "all", "", "", "", "")?;
        let (text, media) = (self.llm.text_token_bytes, self.llm.media_token_bytes);
        writeln!(f, "keys and values: {media} bytes an image or audio token, {text} a text token")?;
        match self.card_bytes {
            Some(bytes) => write!(f, "cap of all processes (compute.card_bytes): {}", Bytes(bytes)),
            None => write!(f, "no cap: compute.card_bytes is not set"),
        }
    }
}

impl fmt::Display for VideoFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.mode.map_or("DOES NOT FIT", name_of);
        let phases = self.phases_bytes.map_or(String::new(), |b| format!(", {} in phases", Bytes(b)));
        write!(
            f,
            "{} image and {} audio tokens: {} of keys and values; {} streaming{phases}: {verdict}",
            self.image_tokens,
            self.audio_tokens,
            Bytes(self.cache_bytes),
            Bytes(self.streaming_bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Precision;
    use model::config_json::Family;

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

    fn plan(weights: WeightFormat, kv: KvPrecision, card_bytes: Option<u64>) -> MemoryPlan {
        replicated(weights, kv, card_bytes, &[])
    }

    fn replicated(weights: WeightFormat, kv: KvPrecision, card_bytes: Option<u64>, replicas: &Replicas) -> MemoryPlan {
        MemoryPlan::new(&config(weights, kv, card_bytes), &ModelConfig::default(), replicas).unwrap()
    }

    #[test]
    fn an_hour_fits_the_shared_gpu_in_four_bits_and_in_phases_only() {
        let cap = Some(19_600_000_000);
        assert_eq!(plan(WeightFormat::Q4, KvPrecision::Q4, cap).video(3600).mode, Some(Mode::Phases));
        assert_eq!(plan(WeightFormat::Q4, KvPrecision::Q4, cap).video(60).mode, Some(Mode::Streaming));
        assert_eq!(plan(WeightFormat::Q8, KvPrecision::Q8, cap).video(3600).mode, None);
        assert_eq!(plan(WeightFormat::Dense, KvPrecision::Dense, cap).video(10).mode, None);
        assert_eq!(plan(WeightFormat::Dense, KvPrecision::Dense, None).video(3600).mode, Some(Mode::Streaming));
    }

    #[test]
    fn a_vidi_7b_counts_its_own_weights_and_tokens() {
        let of = |weights| {
            MemoryPlan::new(&config(weights, KvPrecision::Dense, None), &ModelConfig::of(Family::Mistral), &[]).unwrap()
        };
        // The 7,248,023,552 values of the language model in 16 bit, of which those of 65 norms are kept in 32.
        let dense = of(WeightFormat::Dense);
        assert_eq!(dense.llm.fixed.weights_bytes, 2 * 7_248_023_552 + 2 * 65 * 4096);
        assert!(of(WeightFormat::Q4).llm.fixed.weights_bytes < of(WeightFormat::Q8).llm.fixed.weights_bytes);
        // 25 tokens a frame, whatever the length; keys and values of 8 heads of 128 in 32 layers, 16 bit.
        assert_eq!([60, 3600].map(|seconds| dense.video(seconds).image_tokens), [60 * 25, 3600 * 25]);
        assert_eq!(dense.llm.media_token_bytes, 2 * 32 * 8 * 128 * 2);
    }

    #[test]
    fn budgets_add_up_to_the_cap_and_the_rest_is_the_language_models() {
        let plan = plan(WeightFormat::Q4, KvPrecision::Q4, Some(19_600_000_000));
        let budgets = plan.budgets().unwrap();
        assert_eq!(budgets.iter().map(|(_, b)| b).sum::<u64>(), 19_600_000_000);
        assert!(plan.encoders.iter().all(|(s, f, _)| budgets.contains(&(*s, f.bytes()))));
    }

    #[test]
    fn every_replica_counts_and_takes_its_part_of_the_cap() {
        let cap = Some(19_600_000_000);
        let one = plan(WeightFormat::Q4, KvPrecision::Q4, cap);
        let two = replicated(WeightFormat::Q4, KvPrecision::Q4, cap, &[(StageName::Vision, 2)]);
        let vision = one.encoders.iter().find(|(s, ..)| *s == StageName::Vision).unwrap().1.bytes();
        assert_eq!(two.bytes(), one.bytes() + vision);
        let llm =
            |plan: &MemoryPlan| plan.budgets().unwrap().into_iter().find(|(s, _)| *s == StageName::Llm).unwrap().1;
        assert_eq!(llm(&two), llm(&one) - vision);
        assert!(two.to_string().contains(&Bytes(2 * vision).to_string()), "{two}");
        assert_eq!(replicated(WeightFormat::Q4, KvPrecision::Q4, cap, &[(StageName::Vision, 20)]).budgets(), None);
    }

    #[test]
    fn several_language_models_share_the_rest_and_none_has_the_gpu_to_itself() {
        let cap = Some(19_600_000_000);
        let one = plan(WeightFormat::Q4, KvPrecision::Q4, cap);
        let two = replicated(WeightFormat::Q4, KvPrecision::Q4, cap, &[(StageName::Llm, 2)]);
        assert_eq!(two.bytes(), one.bytes() + one.llm.fixed.bytes());
        let budgets: BTreeMap<StageName, u64> = two.budgets().unwrap().into_iter().collect();
        assert_eq!(budgets[&StageName::Llm], (19_600_000_000 - one.encoder_bytes()) / 2);
        assert!(two.budgeted_bytes(&budgets) <= 19_600_000_000);
        let (alone, shared) = (one.video(60), two.video(60));
        assert_eq!(shared.streaming_bytes, two.bytes() + 2 * alone.cache_bytes);
        assert_eq!((one.video(3600).mode, two.video(3600).mode), (Some(Mode::Phases), None));
    }

    #[test]
    fn given_budgets_count_once_for_each_process() {
        let plan = replicated(WeightFormat::Q4, KvPrecision::Q4, None, &[(StageName::Vision, 3)]);
        let given = BTreeMap::from([(StageName::Vision, 5), (StageName::Llm, 7)]);
        let others: u64 =
            plan.encoders.iter().filter(|(s, ..)| *s != StageName::Vision).map(|(_, f, _)| f.bytes()).sum();
        assert_eq!(plan.budgeted_bytes(&given), 3 * 5 + 7 + others);
    }

    #[test]
    fn what_would_help_is_named_and_would_help() {
        let config = config(WeightFormat::Q8, KvPrecision::Q8, Some(19_600_000_000));
        let remedies = remedies(&config, &ModelConfig::default(), &[], 3600).unwrap();
        assert!(remedies.iter().any(|r| r.contains("\"q4\", llm.kv = \"q4\"")), "{remedies:?}");
        assert!(!remedies.iter().any(|r| r.contains("dense\", llm.kv = \"dense")), "{remedies:?}");
    }
}
