//! Memory plan: what each stage will hold, device by device, and whether a video fits beside it, from configuration and geometry
//! alone.

use std::fmt;

use config::{COMPUTING, Config, Device};
use model::checkpoint::CheckpointError;
use model::config_json::ModelConfig;
use protocol::bytes::Bytes;
use protocol::error::StageName;
use protocol::event::Mode;
use protocol::plan::{AudioPlan, FrameGrid, ImagePlan, SAMPLE_RATE};
use stage_llm::language::footprint::LlmFootprint;

use super::device_plan::{DevicePlan, VideoFit};

/// Processes of each stage, as `--replicas` gives them.
pub type Replicas = [(StageName, usize)];

/// Memory that all stage processes hold, whatever the job.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Devices that a stage computes on, GPUs first.
    pub devices: Vec<DevicePlan>,
    /// Footprint of one process of the language model, on the first of its devices.
    pub llm: LlmFootprint,
    /// Rule that the grids of frames follow.
    pub grid: FrameGrid,
}

impl MemoryPlan {
    /// The memory plan of a configuration and a model with these replicas; one process of a stage that is not named.
    ///
    /// # Errors
    /// Weights that the configured format cannot hold.
    pub fn new(config: &Config, model: &ModelConfig, replicas: &Replicas) -> Result<Self, CheckpointError> {
        let count = |stage| replicas.iter().find(|(s, _)| *s == stage).map_or(1, |(_, n)| *n);
        // A stage without processes is shown where one would be.
        let on = |stage| (0..count(stage).max(1)).map(move |replica| (config.device(stage, replica), stage));
        let mut named: Vec<Device> = COMPUTING.into_iter().flat_map(on).map(|(device, _)| device).collect();
        named.sort();
        named.dedup();
        let mut devices = Vec::new();
        for device in named {
            let processes = |stage| (0..count(stage)).filter(|&i| config.device(stage, i) == device).count() as u64;
            let is_there = |stage| on(stage).any(|(there, _)| there == device);
            let mut own = config.clone();
            own.compute.device = device.to_string();
            let mut encoders = Vec::new();
            for stage in COMPUTING.into_iter().filter(|&stage| stage != StageName::Llm && is_there(stage)) {
                let footprint = match stage {
                    StageName::Vision => stage_vision::open::footprint(&own, model)?,
                    StageName::Audio => stage_audio::open::footprint(&own, model)?,
                    _ => stage_fuse::open::footprint(&own, model)?,
                };
                encoders.push((stage, footprint, processes(stage)));
            }
            let footprint = LlmFootprint::new(model, &own.llm, &own.compute)?;
            let llm = is_there(StageName::Llm).then(|| (footprint, processes(StageName::Llm)));
            devices.push(DevicePlan { device, cap: config.cap(device), encoders, llm });
        }
        let llm = devices.iter().find_map(|on| on.llm).expect("the language model is somewhere. This is a bug.").0;
        Ok(MemoryPlan { devices, llm, grid: model.image_pool().grid() })
    }

    /// Bytes of all processes of vision, audio and fuse.
    pub fn encoder_bytes(&self) -> u64 {
        self.devices.iter().map(DevicePlan::encoder_bytes).sum()
    }

    /// Bytes of all processes, without keys and values.
    pub fn bytes(&self) -> u64 {
        self.devices.iter().map(DevicePlan::bytes).sum()
    }

    /// Number of processes of the language model.
    pub fn llm_processes(&self) -> u64 {
        self.devices.iter().map(DevicePlan::llm_processes).sum()
    }

    /// What a video of so many seconds, sampled once a second and with sound, adds, and whether it fits.
    pub fn video(&self, seconds: u64) -> VideoFit {
        let image = ImagePlan::on(self.grid, 1, seconds).tokens;
        let audio = AudioPlan::new(seconds * SAMPLE_RATE).map_or(0, |a| a.tokens);
        let alone = self.llm_processes() <= 1;
        let each = self.devices.iter().filter_map(|on| Some((on, on.video(image, audio, alone)?)));
        // Any of several language models may get the job.
        let rank =
            |mode: Option<Mode>| [None, Some(Mode::Phases), Some(Mode::Streaming)].iter().position(|m| *m == mode);
        let room = |on: &DevicePlan, fit: &VideoFit| {
            on.cap.as_ref().map_or(i128::MAX, |(cap, _)| i128::from(*cap) - i128::from(fit.streaming_bytes))
        };
        let least = each.min_by_key(|(on, fit)| (rank(fit.mode), room(on, fit)));
        let (_, fit) = least.expect("the language model is somewhere. This is a bug.");
        let stages_fit = self.devices.iter().all(|on| on.holds(on.bytes()));
        VideoFit { mode: fit.mode.filter(|_| stages_fit), ..fit }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, media) = (self.llm.text_token_bytes, self.llm.media_token_bytes);
        let of_tokens = format!("keys and values: {media} bytes an image or audio token, {text} a text token");
        if let [only] = self.devices.as_slice() {
            writeln!(f, "{only}\n{of_tokens}")?;
            return match &only.cap {
                Some((bytes, key)) => write!(f, "cap of all processes ({key}): {}", Bytes(*bytes)),
                None => write!(f, "no cap: compute.card_bytes is not set"),
            };
        }
        for on in &self.devices {
            let device = on.device;
            writeln!(f, "{device}\n{on}")?;
            match (&on.cap, on.left_bytes()) {
                (Some((bytes, key)), Some(left)) if on.holds(on.bytes()) => {
                    let share = match on.llm_processes() {
                        0 => String::new(),
                        1 => " for keys and values".to_owned(),
                        n => format!(" for keys and values, {} to each of {n} language models", Bytes(left / n)),
                    };
                    writeln!(f, "cap ({key}): {}; left: {}{share}\n", Bytes(*bytes), Bytes(left))?;
                }
                (Some((bytes, key)), _) => writeln!(f, "cap ({key}): {}: DOES NOT FIT\n", Bytes(*bytes))?,
                (None, _) if device == Device::Cpu => writeln!(f, "no cap: placement.card_bytes.cpu is not set\n")?,
                (None, _) => {
                    writeln!(f, "no cap: neither placement.card_bytes.{device} nor compute.card_bytes is set\n")?;
                }
            }
        }
        f.write_str(&of_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{KvPrecision, Precision, WeightFormat};
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

    /// Budgets on the first device.
    fn budgets(plan: &MemoryPlan) -> Option<Vec<(StageName, u64)>> {
        plan.devices[0].budgets()
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
        let budgets = budgets(&plan).unwrap();
        assert_eq!(budgets.iter().map(|(_, b)| b).sum::<u64>(), 19_600_000_000);
        assert!(plan.devices[0].encoders.iter().all(|(s, f, _)| budgets.contains(&(*s, f.bytes()))));
    }

    #[test]
    fn every_replica_counts_and_takes_its_part_of_the_cap() {
        let cap = Some(19_600_000_000);
        let one = plan(WeightFormat::Q4, KvPrecision::Q4, cap);
        let two = replicated(WeightFormat::Q4, KvPrecision::Q4, cap, &[(StageName::Vision, 2)]);
        let vision = one.devices[0].encoders.iter().find(|(s, ..)| *s == StageName::Vision).unwrap().1.bytes();
        assert_eq!(two.bytes(), one.bytes() + vision);
        let llm = |plan: &MemoryPlan| budgets(plan).unwrap().into_iter().find(|(s, _)| *s == StageName::Llm).unwrap().1;
        assert_eq!(llm(&two), llm(&one) - vision);
        assert!(two.to_string().contains(&Bytes(2 * vision).to_string()), "{two}");
        let twenty = replicated(WeightFormat::Q4, KvPrecision::Q4, cap, &[(StageName::Vision, 20)]);
        assert_eq!(budgets(&twenty), None);
    }

    #[test]
    fn several_language_models_share_the_rest_and_none_has_the_gpu_to_itself() {
        let cap = Some(19_600_000_000);
        let one = plan(WeightFormat::Q4, KvPrecision::Q4, cap);
        let two = replicated(WeightFormat::Q4, KvPrecision::Q4, cap, &[(StageName::Llm, 2)]);
        assert_eq!(two.bytes(), one.bytes() + one.llm.fixed.bytes());
        let share = (19_600_000_000 - one.encoder_bytes()) / 2;
        assert!(budgets(&two).unwrap().contains(&(StageName::Llm, share)));
        let (alone, shared) = (one.video(60), two.video(60));
        assert_eq!(shared.streaming_bytes, two.bytes() + 2 * alone.cache_bytes);
        assert_eq!((one.video(3600).mode, two.video(3600).mode), (Some(Mode::Phases), None));
    }

    /// Two GPUs of 19.6 GB each.
    fn placed(placement: &[(StageName, &[usize])]) -> MemoryPlan {
        let mut config = config(WeightFormat::Q4, KvPrecision::Q4, Some(19_600_000_000));
        for &(stage, gpus) in placement {
            let devices = gpus.iter().map(|&gpu| Device::Cuda(gpu)).collect();
            match stage {
                StageName::Vision => config.placement.vision = devices,
                StageName::Audio => config.placement.audio = devices,
                StageName::Fuse => config.placement.fuse = devices,
                _ => config.placement.llm = devices,
            }
        }
        let replicas = StageName::ALL.map(|stage| (stage, config.placement.of(stage).len().max(1)));
        MemoryPlan::new(&config, &ModelConfig::default(), &replicas).unwrap()
    }

    const AWAY: [(StageName, &[usize]); 3] =
        [(StageName::Vision, &[1]), (StageName::Audio, &[1]), (StageName::Fuse, &[1])];

    #[test]
    fn with_encoders_on_the_second_gpu_an_hour_streams_where_it_had_to_go_in_phases() {
        let together = plan(WeightFormat::Q4, KvPrecision::Q4, Some(19_600_000_000));
        let apart = placed(&AWAY);
        assert_eq!(apart.bytes(), together.bytes());
        let [first, second] = apart.devices.as_slice() else { panic!("{apart}") };
        assert_eq!((first.device, first.encoder_bytes()), (Device::Cuda(0), 0));
        assert_eq!((second.device, second.bytes()), (Device::Cuda(1), together.encoder_bytes()));
        assert_eq!(first.budgets().unwrap(), [(StageName::Llm, 19_600_000_000)]);
        let (before, after) = (together.video(3600), apart.video(3600));
        assert_eq!((before.mode, after.mode), (Some(Mode::Phases), Some(Mode::Streaming)));
        assert_eq!(after.streaming_bytes, together.llm.fixed.bytes() + before.cache_bytes);
        assert_eq!((after.device, after.phases_bytes), (Device::Cuda(0), None));
    }

    #[test]
    fn only_what_shares_the_language_models_gpu_counts_there() {
        let [_, audio, fuse] = AWAY;
        let both = placed(&[(StageName::Vision, &[0, 1]), audio, fuse]);
        let apart = placed(&AWAY);
        let vision = both.devices[0].encoder_bytes();
        assert_eq!(both.devices[0].encoders.len(), 1);
        assert_eq!(both.video(60).streaming_bytes, apart.video(60).streaming_bytes + vision);
        assert_eq!(both.video(3600).phases_bytes, Some(apart.video(3600).streaming_bytes));
        // A language model on each: the one with less room decides, and none has a GPU to itself.
        let pair = placed(&[AWAY[0], audio, fuse, (StageName::Llm, &[0, 1])]);
        let fit = pair.video(60);
        assert_eq!((fit.device, fit.mode, fit.phases_bytes), (Device::Cuda(1), Some(Mode::Streaming), None));
        assert_eq!(fit.streaming_bytes, pair.devices[1].bytes() + fit.cache_bytes);
        assert_eq!(pair.video(3600).mode, None);
    }

    #[test]
    fn a_gpu_has_its_own_table_cap_and_rest() {
        let mut apart = placed(&AWAY);
        let said = apart.to_string();
        let tables: Vec<&str> = said.split("\n\n").collect();
        let [first, second, tokens] = tables.as_slice() else { panic!("{said}") };
        assert!(first.starts_with("cuda:0\nstage ") && second.starts_with("cuda:1\nstage "), "{said}");
        assert!(!first.contains("vision ") && second.contains("vision ") && !second.contains("llm "), "{said}");
        let left = Bytes(19_600_000_000 - apart.llm.fixed.bytes());
        assert!(
            first.ends_with(&format!("cap (compute.card_bytes): 18.25 GiB; left: {left} for keys and values")),
            "{said}"
        );
        assert!(tokens.starts_with("keys and values: ") && !second.contains("keys and values"), "{said}");
        apart.devices[1].cap = Some((1 << 30, "placement.card_bytes.cuda:1".to_owned()));
        let said = apart.to_string();
        assert!(said.contains("cap (placement.card_bytes.cuda:1): 1.00 GiB: DOES NOT FIT"), "{said}");
        assert_eq!(apart.video(10).mode, None, "the stages alone do not fit");
    }
}
