//! How a pipeline is run: one typed TOML file, `VIDI_<SECTION>_<KEY>` environment variables over it, flags over those
//! ([`layers`]).

pub mod layers;
mod log;
mod random;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use protocol::error::StageName;
use protocol::tensor::Dtype;

pub use log::{LogConfig, LogFormat};
pub use random::{RandomWeights, Size};

/// Stands for the role of a process in `bus.user` and the names of its credential files.
const ROLE: &str = "{stage}";
/// What is shown in place of a password.
const HIDDEN: &str = "(hidden)";

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
    /// stage-decode.
    pub decode: DecodeConfig,
    /// stage-vision.
    pub vision: VisionStageConfig,
    /// stage-llm.
    pub llm: LlmConfig,
    /// Bytes that a process of each stage may hold; a stage that is not named has no cap.
    pub budgets: BTreeMap<StageName, u64>,
    /// `vidi up`.
    pub up: UpConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Where the broker is and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// `nats://host:port`, several separated by commas. Empty: `vidi up` starts one on loopback.
    pub url: String,
    /// First part of every subject; the version stands in it.
    pub prefix: String,
    /// User name, with `password` or `password_file`. Here and in the five files below, `{stage}` stands for the role of
    /// the process: decode, vision, audio, fuse, llm, client (`vidi ask`, `cancel`, `status`) or operator (`vidi up`,
    /// `record`, `replay`, `bench`). So one configuration serves them all, each with credentials of its own.
    pub user: String,
    /// Password of `user`, where one process is configured alone (`VIDI_BUS_PASSWORD`).
    pub password: String,
    /// File with the password of `user`; white space around it does not count.
    pub password_file: Option<PathBuf>,
    /// File with an nkey seed.
    pub nkey_file: Option<PathBuf>,
    /// File with a JWT and its seed (`.creds`).
    pub credentials_file: Option<PathBuf>,
    /// Certificate authority (PEM) that the broker's certificate must come from; with it, only TLS is spoken.
    pub tls_ca: Option<PathBuf>,
    /// Client certificate for TLS (PEM), with `tls_key`.
    pub tls_cert: Option<PathBuf>,
    /// Key of `tls_cert` (PEM).
    pub tls_key: Option<PathBuf>,
    /// Seconds without an acknowledgement or a sign of progress after which a message goes to another worker.
    pub ack_wait_s: f64,
    /// Times that a message is tried before it fails its job.
    pub max_deliver: i64,
    /// Seconds without a sign of life of a job's work after which what is missing is asked for once more; after as many
    /// again the job fails as `worker_lost`.
    pub worker_patience_s: f64,
    /// Bytes that each stream of the data path (frames, audio, features) may hold; a full one slows its producer.
    pub stream_bytes: i64,
    /// Bytes that the token stream may hold: the tokens of all jobs in work.
    pub token_bytes: i64,
    /// Seconds that events stay readable.
    pub event_age_s: u64,
    /// Size of a message aimed at; the server's `max_payload` bounds it.
    pub message_bytes: usize,
}

impl Default for BusConfig {
    fn default() -> Self {
        BusConfig {
            url: String::new(),
            prefix: "vidi.v1".to_owned(),
            user: String::new(),
            password: String::new(),
            password_file: None,
            nkey_file: None,
            credentials_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            ack_wait_s: 10.0,
            max_deliver: 5,
            worker_patience_s: 60.0,
            stream_bytes: 256 << 20,
            token_bytes: 4 << 30,
            event_age_s: 3600,
            message_bytes: 4 << 20,
        }
    }
}

impl BusConfig {
    /// With the role of a process in place of `{stage}`.
    pub fn of_role(&self, role: &str) -> Self {
        let named = |text: &str| text.replace(ROLE, role);
        let file = |path: &Option<PathBuf>| path.as_ref().map(|p| PathBuf::from(named(&p.to_string_lossy())));
        BusConfig {
            user: named(&self.user),
            password_file: file(&self.password_file),
            nkey_file: file(&self.nkey_file),
            credentials_file: file(&self.credentials_file),
            tls_cert: file(&self.tls_cert),
            tls_key: file(&self.tls_key),
            ..self.clone()
        }
    }
}

/// Where the checkpoint is: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSource {
    /// Directory with config.json, shards, index and tokenizer.
    pub dir: PathBuf,
    /// `random:SIZE` (tiny, realdims, 9b; `random` is 9b), the same as `--weights`: no files, the stages make the model that
    /// `vidi demo-model --size SIZE` writes while they load it. Its answers mean nothing.
    pub weights: Option<RandomWeights>,
}

impl ModelSource {
    /// Refuses a directory and random weights at once.
    ///
    /// # Errors
    /// Both, by their keys and flags.
    pub fn check(&self) -> Result<(), String> {
        match self.weights {
            Some(weights) if !self.dir.as_os_str().is_empty() => Err(format!(
                "model.dir = {:?} (--model) and model.weights = \"{weights}\" (--weights) exclude each other: keep one",
                self.dir
            )),
            _ => Ok(()),
        }
    }

    /// What results and reports call the model: the last part of its directory, or `random:SIZE`.
    pub fn name(&self) -> String {
        match self.weights {
            Some(weights) => weights.to_string(),
            None => self.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        }
    }

    /// What whoever starts a model that is made up has to be told; none where it comes from files.
    pub fn warning(&self) -> Option<String> {
        self.weights.map(|weights| format!("{weights}: the weights are random, and answers of this model mean nothing"))
    }
}

/// Where vision, audio, fuse and llm compute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// `cpu`, `cuda`, or `cuda:N` for the N-th card.
    pub device: String,
    /// Type of activations, and of weights that are not quantized: `f32`, `bf16`, `f16`.
    pub dtype: Precision,
    /// How rows of frames, sound and their tokens are multiplied: `dense`, in `dtype`, or `fp8`. Text never is in 8 bits.
    pub media_products: MediaProducts,
    /// What all stages together may take of the card, contexts included. The language model then has what the encoders
    /// leave, and jobs that do not fit beside them are answered in phases.
    pub card_bytes: Option<u64>,
    /// What a CUDA context, its modules and cuBLAS hold outside the memory pool; part of every GPU stage's budget.
    pub context_bytes: u64,
}

impl Default for ComputeConfig {
    fn default() -> Self {
        ComputeConfig {
            device: "cpu".to_owned(),
            dtype: Precision::F32,
            media_products: MediaProducts::Dense,
            card_bytes: None,
            context_bytes: 640 << 20,
        }
    }
}

impl ComputeConfig {
    /// Which CUDA device; none for the CPU.
    pub fn cuda_ordinal(&self) -> Option<usize> {
        match self.device.as_str() {
            "cuda" => Some(0),
            other => other.strip_prefix("cuda:")?.parse().ok(),
        }
    }
}

/// A type to compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// The reference.
    F32,
    /// Brain float.
    Bf16,
    /// What the official code computes in.
    F16,
}

impl Precision {
    /// Its name on the wire.
    pub fn wire(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
            Precision::F16 => Dtype::F16,
        }
    }
}

/// How rows of frames, sound and their tokens are multiplied with weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MediaProducts {
    /// In `compute.dtype`.
    Dense,
    /// In E4M3 with a scale per row, accumulated and handed on in `compute.dtype`: twice as fast on cards of sm_89 or
    /// newer, less exact (tests/BENCHMARKS.md).
    Fp8,
}

/// How the language model's linear layers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightFormat {
    /// In `compute.dtype`, whichever that is.
    Dense,
    /// Brain float, which `compute.dtype` must be too.
    Bf16,
    /// Half precision, which `compute.dtype` must be too.
    F16,
    /// 8 bit: 8.5 bits a weight.
    Q8,
    /// 4 bit where it does not hurt: about 4.6 bits a weight.
    Q4,
}

/// How keys and values of image and audio tokens are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvPrecision {
    /// In `compute.dtype`: 16 bit on a GPU.
    #[serde(alias = "16")]
    Dense,
    /// 8 bit.
    Q8,
    /// 4 bit.
    Q4,
}

/// stage-decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeConfig {
    /// Only files below these directories are opened.
    pub media_roots: Vec<PathBuf>,
    /// Frames that leave together.
    pub batch_frames: usize,
    /// Writes frames.npy and pcm.npy of the last job here.
    pub dump: Option<PathBuf>,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        DecodeConfig { media_roots: Vec::new(), batch_frames: 8, dump: None }
    }
}

/// stage-vision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VisionStageConfig {
    /// Frames that go through the tower together.
    pub batch: usize,
}

impl Default for VisionStageConfig {
    fn default() -> Self {
        VisionStageConfig { batch: 4 }
    }
}

/// stage-llm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmConfig {
    /// Token ids that end an answer (MODEL.md: 107, `<end_of_turn>`).
    pub end_tokens: Vec<u32>,
    /// Image or audio tokens that go through the layers together.
    pub chunk_rows: usize,
    /// Length of a prompt at most.
    pub max_prompt_tokens: usize,
    /// Linear layers: `dense` (in `compute.dtype`), `q8` or `q4`.
    pub weights: WeightFormat,
    /// A file of `vidi quantize`, for `weights` of `q8` and `q4`; without one they are quantized while they load.
    pub quantized: Option<PathBuf>,
    /// Keys and values of image and audio tokens: `dense` (in `compute.dtype`), `q8` or `q4`.
    pub kv: KvPrecision,
    /// Keeps the keys and values of the last video in memory, so that the next question about it costs only its text. They
    /// are part of the stage's budget, and go before another job needs their room. Without `budgets.llm`, several
    /// stage-llm on one host do not know of each other's.
    pub keep_video: bool,
}

impl Default for LlmConfig {
    fn default() -> Self {
        LlmConfig {
            end_tokens: vec![107],
            chunk_rows: 4096,
            max_prompt_tokens: 4096,
            weights: WeightFormat::Dense,
            quantized: None,
            kv: KvPrecision::Dense,
            keep_video: true,
        }
    }
}

/// `vidi up`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpConfig {
    /// Seconds without a job after which the processes of vision, audio, fuse and llm end; the next job starts them
    /// again. 0: never.
    pub idle_unload_s: f64,
}

impl Config {
    fn check(&self) -> Result<(), String> {
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(format!("configuration: {what}")) };
        let prefix = &self.bus.prefix;
        let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        need(prefix.split('.').all(part), "bus.prefix is dot-separated [A-Za-z0-9_-]+")?;
        let one = self.bus.password.is_empty() || self.bus.password_file.is_none();
        need(one, "bus.password and bus.password_file exclude each other: keep one")?;
        let pair = self.bus.tls_cert.is_some() == self.bus.tls_key.is_some();
        need(pair, "bus.tls_cert and bus.tls_key belong together: give both or none")?;
        self.model.check().map_err(|what| format!("configuration: {what}"))?;
        need(self.bus.ack_wait_s >= 0.5, "bus.ack_wait_s is at least 0.5")?;
        need(self.bus.max_deliver >= 1, "bus.max_deliver is at least 1")?;
        need(self.bus.stream_bytes >= 4 << 20, "bus.stream_bytes is at least 4 MiB")?;
        need(self.bus.message_bytes >= 64 << 10, "bus.message_bytes is at least 64 KiB")?;
        need(self.up.idle_unload_s >= 0.0, "up.idle_unload_s is at least 0")?;
        let device = self.compute.device.as_str();
        need(device == "cpu" || self.compute.cuda_ordinal().is_some(), "compute.device is cpu, cuda or cuda:N")?;
        let agrees = match self.llm.weights {
            WeightFormat::Bf16 => self.compute.dtype == Precision::Bf16,
            WeightFormat::F16 => self.compute.dtype == Precision::F16,
            WeightFormat::Dense | WeightFormat::Q8 | WeightFormat::Q4 => true,
        };
        need(agrees, "llm.weights is compute.dtype, dense, q8 or q4")?;
        let on_card = self.compute.cuda_ordinal().is_some();
        let fp8 =
            self.compute.media_products == MediaProducts::Dense || !on_card || self.compute.dtype == Precision::Bf16;
        need(fp8, "compute.media_products = \"fp8\" on a card needs compute.dtype = \"bf16\"")?;
        need(self.decode.batch_frames >= 1, "decode.batch_frames is at least 1")?;
        need(self.vision.batch >= 1, "vision.batch is at least 1")?;
        need(self.llm.chunk_rows >= 1, "llm.chunk_rows is at least 1")?;
        need(!self.llm.end_tokens.is_empty(), "llm.end_tokens names at least one token")
    }

    /// The cap of a stage, if it has one.
    pub fn budget(&self, stage: StageName) -> Option<u64> {
        self.budgets.get(&stage).copied()
    }

    /// As it may be shown: without the password.
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        if !shown.bus.password.is_empty() {
            shown.bus.password = HIDDEN.to_owned();
        }
        shown
    }
}
