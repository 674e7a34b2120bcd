//! Configuration of a pipeline: one typed TOML file, `VIDI_<SECTION>_<KEY>` environment variables over it, flags over those
//! ([`layers`]).

mod compute;
pub mod fingerprint;
mod http;
pub mod layers;
mod log;
mod path;
mod placed;
mod placement;
mod random;
pub mod replace;
mod secret;
mod sections;
mod seen;
mod temporary;
mod watchdog;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use protocol::error::StageName;

pub use compute::{ComputeConfig, KvPrecision, MediaProducts, Precision, WeightFormat};
pub use http::{FilesOn, HttpConfig};
pub use log::{LogConfig, LogFormat};
pub use placement::{COMPUTING, Device, PlacementConfig};
pub use random::{RandomWeights, Size};
pub use secret::{Address, Secret};
pub use sections::{
    AudioStageConfig, BusConfig, DecodeConfig, LlmConfig, ModelSource, Storage, UpConfig, VisionStageConfig,
};
pub use seen::{MetricsConfig, TracesConfig};
pub use temporary::temp_dir;
pub use watchdog::WatchdogConfig;

/// The whole configuration; unknown keys are refused. `vidi config print` shows the effective one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The broker.
    pub bus: BusConfig,
    /// The checkpoint.
    pub model: ModelSource,
    /// The device of vision, audio, fuse and llm.
    pub compute: ComputeConfig,
    /// The devices of single stages, and what they may hold there.
    pub placement: PlacementConfig,
    /// stage-decode.
    pub decode: DecodeConfig,
    /// stage-vision.
    pub vision: VisionStageConfig,
    /// stage-audio.
    pub audio: AudioStageConfig,
    /// stage-llm.
    pub llm: LlmConfig,
    /// Bytes that a process of each stage may hold; a stage that is not named has no cap.
    pub budgets: BTreeMap<StageName, u64>,
    /// `vidi up`.
    pub up: UpConfig,
    /// The gateway for clients that speak HTTP.
    pub http: HttpConfig,
    /// When an engine counts as hung.
    pub watchdog: WatchdogConfig,
    /// Where Prometheus reads what each process counts.
    pub metrics: MetricsConfig,
    /// Where spans go.
    pub traces: TracesConfig,
    /// Logs.
    pub log: LogConfig,
}

impl Config {
    fn check(&self) -> Result<(), String> {
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(format!("configuration: {what}")) };
        need(sections::is_prefix(&self.bus.prefix), "bus.prefix is dot-separated [A-Za-z0-9_-]+")?;
        need([1, 3, 5].contains(&self.bus.replicas), "bus.replicas is 1, 3 or 5")?;
        let one = self.bus.password.is_empty() || self.bus.password_file.is_none();
        need(one, "bus.password and bus.password_file exclude each other: keep one")?;
        let identified =
            !self.bus.user.is_empty() || self.bus.nkey_file.is_some() || self.bus.credentials_file.is_some();
        let who =
            "bus.url has a user, and bus.user, bus.nkey_file or bus.credentials_file says who this is too: keep one";
        need(!(identified && self.bus.url.has_users()), who)?;
        let pair = self.bus.tls_cert.is_some() == self.bus.tls_key.is_some();
        need(pair, "bus.tls_cert and bus.tls_key belong together: give both or none")?;
        self.model.check().map_err(|what| format!("configuration: {what}"))?;
        self.watchdog.check().map_err(|what| format!("configuration: {what}"))?;
        self.http.check().map_err(|what| format!("configuration: {what}"))?;
        self.metrics.check().and_then(|()| self.traces.check()).map_err(|what| format!("configuration: {what}"))?;
        need(self.bus.ack_wait_s >= 0.5, "bus.ack_wait_s is at least 0.5")?;
        need(self.bus.max_deliver >= 1, "bus.max_deliver is at least 1")?;
        need(self.bus.event_age_s >= 1, "bus.event_age_s is at least 1")?;
        need(self.bus.job_age_s >= 1, "bus.job_age_s is at least 1")?;
        need(self.bus.stream_bytes >= 4 << 20, "bus.stream_bytes is at least 4 MiB")?;
        need(self.bus.token_bytes >= 1, "bus.token_bytes is at least 1")?;
        need(self.bus.queue_bytes >= 1 << 20, "bus.queue_bytes is at least 1 MiB")?;
        need(self.bus.message_bytes >= 64 << 10, "bus.message_bytes is at least 64 KiB")?;
        need(self.up.idle_unload_s >= 0.0, "up.idle_unload_s is at least 0")?;
        self.placement.check().map_err(|what| format!("configuration: {what}"))?;
        need(self.compute.device.parse::<Device>().is_ok(), "compute.device is cpu, cuda or cuda:N")?;
        let agrees = match self.llm.weights {
            WeightFormat::Bf16 => self.compute.dtype == Precision::Bf16,
            WeightFormat::F16 => self.compute.dtype == Precision::F16,
            WeightFormat::Dense | WeightFormat::Q8 | WeightFormat::Q4 => true,
        };
        need(agrees, "llm.weights is compute.dtype, dense, q8 or q4")?;
        let on_gpu = COMPUTING.into_iter().any(|stage| {
            let processes = 0..self.placement.of(stage).len().max(1);
            processes.into_iter().any(|replica| self.device(stage, replica) != Device::Cpu)
        });
        let fp8 =
            self.compute.media_products == MediaProducts::Dense || !on_gpu || self.compute.dtype == Precision::Bf16;
        need(fp8, "compute.media_products = \"fp8\" on a GPU needs compute.dtype = \"bf16\"")?;
        need(self.decode.batch_frames >= 1, "decode.batch_frames is at least 1")?;
        need(self.decode.max_pixels >= 1, "decode.max_pixels is at least 1")?;
        need(self.vision.batch >= 1, "vision.batch is at least 1")?;
        need(self.audio.batch >= 1, "audio.batch is at least 1")?;
        need(self.llm.chunk_rows >= 1, "llm.chunk_rows is at least 1")?;
        need(self.llm.pass_rows >= 1, "llm.pass_rows is at least 1")?;
        need(self.llm.together >= 1, "llm.together is at least 1: one answer after another")?;
        need(self.llm.together_s >= 0.0, "llm.together_s is at least 0")?;
        need(self.llm.park_bytes >= 1, "llm.park_bytes is at least 1; without llm.park_dir nothing is written")?;
        let wait = (0.0..=3600.0).contains(&self.llm.affinity_wait_s);
        need(wait, "llm.affinity_wait_s is 0 to 3600")?;
        let named = self.llm.end_tokens.as_ref().is_none_or(|tokens| !tokens.is_empty());
        need(named, "llm.end_tokens names at least one token; without the key, those of the model count")
    }

    /// The cap of a stage, if it has one.
    pub fn budget(&self, stage: StageName) -> Option<u64> {
        self.budgets.get(&stage).copied()
    }
}
