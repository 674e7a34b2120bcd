//! Sections of the configuration: the broker, the checkpoint, the stages and `vidi up`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::compute::{KvPrecision, WeightFormat};
use crate::random::RandomWeights;
use crate::secret::{Address, Secret};

/// Stands for the role of a process in `bus.user` and the names of its credential files.
const ROLE: &str = "{stage}";

/// Where the broker keeps a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// In files: they are there again when the broker is.
    #[default]
    File,
    /// In its memory: it ends with the broker.
    Memory,
}

/// Section `bus`: where the broker is and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// `nats://host:port`; several servers of one cluster separated by commas, or as a list: any of them will do, and a
    /// process whose server goes away turns to another. Empty: `vidi up`, `ask` and `bench` start one on loopback.
    /// A user and a password may stand in it (`nats://user:password@host:port`), or a token; they are never shown.
    pub url: Address,
    /// Servers of a cluster that hold each message which must not be lost with one of them: requests, jobs in line, events,
    /// unusable messages and reservations of capacity. 1, 3 or 5; with 3 any one server may be lost, with 5 any two. Frames,
    /// sound, features and tokens have one copy: they are made again. Streams that exist stay as they are; who makes streams
    /// says how to change them.
    pub replicas: usize,
    /// First part of every subject; the version stands in it.
    pub prefix: String,
    /// User name, with `password` or `password_file`. Here and in the five files below, `{stage}` stands for the role of
    /// the process: decode, vision, audio, fuse, llm, client (`vidi ask`, `cancel`, `status`), gateway (uploads on the
    /// bus) or operator (`vidi up`, `record`, `replay`, `bench`). So one configuration serves them all, each with credentials of its own.
    pub user: String,
    /// Password of `user`, where one process is configured alone (`VIDI_BUS_PASSWORD`). It is never shown.
    pub password: Secret,
    /// File with the password of `user`; white space around it does not count.
    #[serde(with = "crate::path::optional")]
    pub password_file: Option<PathBuf>,
    /// File with an nkey seed.
    #[serde(with = "crate::path::optional")]
    pub nkey_file: Option<PathBuf>,
    /// File with a JWT and its seed (`.creds`).
    #[serde(with = "crate::path::optional")]
    pub credentials_file: Option<PathBuf>,
    /// Certificate authority (PEM) that the broker's certificate must come from; with it, only TLS is spoken.
    #[serde(with = "crate::path::optional")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate for TLS (PEM), with `tls_key`.
    #[serde(with = "crate::path::optional")]
    pub tls_cert: Option<PathBuf>,
    /// Key of `tls_cert` (PEM).
    #[serde(with = "crate::path::optional")]
    pub tls_key: Option<PathBuf>,
    /// Seconds without an acknowledgement or a sign of progress after which a message goes to another worker.
    pub ack_wait_s: f64,
    /// Times that a message is tried before it fails its job.
    pub max_deliver: i64,
    /// Seconds without a heartbeat of a job's work after which what is missing is asked for once more; after as many
    /// again the job fails as `worker_lost`.
    pub worker_patience_s: f64,
    /// Bytes that each stream of the data path (frames, audio, features) may hold; a full one slows its producer. This and
    /// the next two are made smaller where `vidi up`, `ask` or `bench` start a broker on a disk with less room.
    pub stream_bytes: i64,
    /// Bytes that the token stream may hold: the tokens of all jobs in work.
    pub token_bytes: i64,
    /// Where the broker keeps the streams of the data path and the tokens: `file`, or `memory`, which takes it a third
    /// less CPU time or better, and all these bytes at most. What a broker that ends had in memory is made again by the stages. Streams that
    /// exist stay where they are; who makes streams says how to change them.
    pub data_storage: Storage,
    /// Bytes that each of the other streams may hold at most: jobs (64 MiB), jobs in line (64 MiB),
    /// requests to decode (64 MiB), events (256 MiB),
    /// unusable messages (256 MiB), reservations of capacity (16 MiB).
    pub queue_bytes: i64,
    /// Seconds that a job's events stay readable after its end; then its id may be used again.
    pub event_age_s: u64,
    /// Seconds that a job may wait for a worker; then it fails.
    pub job_age_s: u64,
    /// Bytes that a message is aimed at; the server's `max_payload` bounds it.
    pub message_bytes: usize,
}

impl Default for BusConfig {
    fn default() -> Self {
        BusConfig {
            url: Address::default(),
            replicas: 1,
            prefix: "vidi.v1".to_owned(),
            user: String::new(),
            password: Secret::default(),
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
            data_storage: Storage::File,
            queue_bytes: 256 << 20,
            event_age_s: 3600,
            job_age_s: 24 * 3600,
            message_bytes: 4 << 20,
        }
    }
}

impl BusConfig {
    /// The same section with the role of a process in place of `{stage}`.
    pub fn of_role(&self, role: &str) -> Self {
        let named = |text: &str| text.replace(ROLE, role);
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| of_role(path, role));
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

/// Whether a text can be the first part of subjects.
pub(crate) fn is_prefix(text: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    text.split('.').all(part)
}

/// A file's name with the role of a process in place of `{stage}`; the name need not be UTF-8.
fn of_role(path: &Path, role: &str) -> PathBuf {
    let mut named = Vec::new();
    let mut left = path.as_os_str().as_bytes();
    while let [first, more @ ..] = left {
        let rest = left.strip_prefix(ROLE.as_bytes());
        named.extend_from_slice(if rest.is_some() { role.as_bytes() } else { std::slice::from_ref(first) });
        left = rest.unwrap_or(more);
    }
    PathBuf::from(OsString::from_vec(named))
}

/// Section `model`: where the checkpoint is, by one of its two keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSource {
    /// Directory with config.json, shards, index and tokenizer.
    #[serde(with = "crate::path")]
    pub dir: PathBuf,
    /// `random:SIZE` (tiny, realdims, 9b, 7b-tiny, 7b-realdims, 7b; `random` is 9b), the same as `--weights`: no files, the
    /// stages make the model that `vidi demo-model --size SIZE` writes while they load it. Its answers mean nothing.
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

/// Section `decode`: settings of stage-decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeConfig {
    /// Only files below these directories are opened.
    #[serde(with = "crate::path::list")]
    pub media_roots: Vec<PathBuf>,
    /// Frames that leave together.
    pub batch_frames: usize,
    /// Writes frames.npy and pcm.npy of the last job here.
    #[serde(with = "crate::path::optional")]
    pub dump: Option<PathBuf>,
    /// Largest number of pixels of a picture; a file with larger ones is refused before any of it is decoded. A decoder
    /// took 8 (JPEG) to 16 (H.264) bytes a pixel: 0.3 to 0.6 GB at the default of 8192 x 4320, cameras' largest size.
    pub max_pixels: u64,
    /// Directory of copies of files that travel over the bus (`http.files = "bus"`), a media root of its own; several processes of
    /// one host may share it. None: this stage-decode takes no such files.
    #[serde(with = "crate::path::optional")]
    pub spool: Option<PathBuf>,
    /// Bytes of those copies at most; those that were used least recently make way for new ones.
    pub spool_bytes: u64,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        DecodeConfig {
            media_roots: Vec::new(),
            batch_frames: 8,
            dump: None,
            max_pixels: 8192 * 4320,
            spool: None,
            spool_bytes: 32 << 30,
        }
    }
}

/// Section `vision`: settings of stage-vision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VisionStageConfig {
    /// Frames that go through the tower together at most, of one message or of several that wait.
    pub batch: usize,
}

impl Default for VisionStageConfig {
    fn default() -> Self {
        VisionStageConfig { batch: 4 }
    }
}

/// Section `audio`: settings of stage-audio.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AudioStageConfig {
    /// Windows of 30 s that go through the encoder together at most. It takes those that wait, and waits for none. Each takes 42 MB
    /// of memory at 16 bit.
    pub batch: usize,
}

impl Default for AudioStageConfig {
    fn default() -> Self {
        AudioStageConfig { batch: 2 }
    }
}

/// Section `llm`: settings of stage-llm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlmConfig {
    /// Token ids that end an answer; without this key that of the model: 107 (`<end_of_turn>`) of Vidi 1.5 9B, 2 (`</s>`) of
    /// Vidi 7B.
    pub end_tokens: Option<Vec<u32>>,
    /// Image or audio tokens that go through the layers together, and that memory is kept for whatever the job.
    pub chunk_rows: usize,
    /// The same at most, on a GPU where a job's keys and values leave room for more than `chunk_rows`. Weights in blocks are expanded
    /// once a pass, so that fewer passes take less time. Not above `chunk_rows`: passes are always of `chunk_rows`.
    pub pass_rows: usize,
    /// Length of a prompt at most.
    pub max_prompt_tokens: usize,
    /// TOML file with tasks of your own; one with the name of a built-in task takes the place of it. `vidi tasks` lists all.
    #[serde(with = "crate::path::optional")]
    pub tasks_file: Option<PathBuf>,
    /// Linear layers: `dense` (in `compute.dtype`), `q8` or `q4`.
    pub weights: WeightFormat,
    /// A file of `vidi quantize`, for `weights` of `q8` and `q4`; without one they are quantized while they load.
    #[serde(with = "crate::path::optional")]
    pub quantized: Option<PathBuf>,
    /// Under `compute.media_products = "fp8"`, keeps the matrices that image and audio tokens are multiplied with, in 8 bits beside
    /// the weights that text is multiplied with, instead of making them anew for each pass. 7.4 GB of Vidi 1.5 9B, 6.0 GB of Vidi 7B, which
    /// the stage's budget must hold besides.
    pub keep_fp8: bool,
    /// Keys and values of image and audio tokens: `dense` (in `compute.dtype`), `q8` or `q4`.
    pub kv: KvPrecision,
    /// Keeps the keys and values of the videos that were asked about last in memory, as many as the stage's budget holds, so that
    /// the next question about one costs only its text. They go, the least recently used first, before another job needs
    /// that memory. Without `budgets.llm`, several stage-llm on one host do not know of each other's.
    pub keep_video: bool,
    /// Most answers that are written at once, a token of each a step: those to the questions of a job, and those of jobs
    /// about the same video that wait meanwhile, unless `keep_video` is off. Fewer where their texts do not fit beside the
    /// video. 1: one after another.
    pub together: u32,
    /// Seconds from the first of these answers on in which other jobs may join them, so that jobs about other videos get
    /// their turn: within this time and that of the answers begun by then.
    pub together_s: f64,
    /// Directory for keys and values on disk: those of each video that was answered about are written there, and the next
    /// question about it reads them, also after the process has ended. Several processes may share it; a local disk, not a
    /// network's. Without one nothing is written.
    #[serde(with = "crate::path::optional")]
    pub park_dir: Option<PathBuf>,
    /// Bytes that the files in `park_dir` may take together; the least recently used go first.
    pub park_bytes: u64,
    /// Seconds that a job waits at most for the worker of several that keeps its video, while that one is at another job; then
    /// any worker takes it. Who has the job to give answers others meanwhile. A wait that comes to nothing should cost about
    /// what it could have spared: two seconds are a little more than the tokens of a video of five minutes take one GPU.
    pub affinity_wait_s: f64,
}

impl Default for LlmConfig {
    fn default() -> Self {
        LlmConfig {
            end_tokens: None,
            chunk_rows: 4096,
            pass_rows: 8192,
            max_prompt_tokens: 4096,
            tasks_file: None,
            weights: WeightFormat::Dense,
            quantized: None,
            keep_fp8: false,
            kv: KvPrecision::Dense,
            keep_video: true,
            together: 32,
            together_s: 30.0,
            park_dir: None,
            park_bytes: 64 << 30,
            affinity_wait_s: 2.0,
        }
    }
}

/// Section `up`: settings of `vidi up`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpConfig {
    /// Seconds without a job after which the processes of vision, audio, fuse and llm end; the next job starts them
    /// again. 0: never.
    pub idle_unload_s: f64,
    /// Port on loopback at which the broker that `vidi up` starts shows its state over HTTP (`/jsz`, `/varz`, `/healthz`), for an
    /// autoscaler or an exporter; none: it does not.
    pub monitor_port: Option<u16>,
    /// Starts NVIDIA's Multi-Process Service before the stages and ends it after them, so that their processes share a GPU's
    /// time instead of taking turns; `--mps` says the same. A daemon that serves the GPU already is used as it is.
    pub mps: bool,
}
