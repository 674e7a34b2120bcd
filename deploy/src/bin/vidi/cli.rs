//! Command line of `vidi`.

use std::path::PathBuf;

use clap::{ArgGroup, Parser, Subcommand};
use deploy::export::format::Format;
use deploy::export::timecode::Code;
use deploy::{bench, recording};
use model::config_json::Family;
use model::demo_model;
use protocol::error::StageName;
use runtime::process::ConfigArgs;

/// Vidi 1.5 9B and Vidi 7B on a message bus: ask questions about videos.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Profile of the machine, below all other configuration: 4090-shared, 4090, h200 or cpu-demo; VIDI_PROFILE says the same.
    #[arg(long, global = true)]
    pub profile: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands of `vidi`.
#[derive(Subcommand)]
pub enum Command {
    /// Runs broker (unless bus.url names one) and stages until Ctrl-C.
    Up(Up),
    /// Stops the `vidi up` that runs on this host: asks it to end, waits for that, and says how long it took.
    Down {
        /// Seconds that it may take to finish what is in flight.
        #[arg(long, default_value_t = 60)]
        wait: u64,
    },
    /// Answers HTTP requests about the pipeline that runs here, or on the broker in bus.url, until Ctrl-C.
    Gateway {
        /// `host:port` to listen on, else http.address, else 127.0.0.1:8099. Anything but loopback needs http.token_file.
        #[arg(long, value_name = "ADDRESS")]
        http: Option<String>,
    },
    /// Asks a question about a video, of a running pipeline or of one started for it.
    Ask(Ask),
    /// Lists what can be asked of the model (of Vidi 1.5 9B where none is named): the built-in tasks and those of `llm.tasks_file`.
    Tasks {
        /// One JSON list, with every field.
        #[arg(long)]
        json: bool,
    },
    /// Cancels a job.
    Cancel {
        /// Its id.
        job: String,
    },
    /// Shows where a job's time went: its queue, its stages, and how these overlapped. Of any job that the broker has events of:
    /// until an hour after its end (bus.event_age_s).
    Trace {
        /// Its id: `job` of `vidi ask --json`, or what `vidi ask --job` named it.
        job: String,
        /// Draws it to FILE.svg, in place of a table on standard output.
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Shows the running stages: memory, messages, queues.
    Status {
        /// One JSON object per instance.
        #[arg(long)]
        json: bool,
    },
    /// Watches the running stages: state, rates, queues, memory, last error; q ends it.
    Top {
        /// Prints it once, as text, and ends.
        #[arg(long)]
        once: bool,
    },
    /// Ends the processes of vision, audio, fuse and llm (or of STAGE) under `vidi up`, so that they hold no memory. The
    /// next job starts them again.
    Unload {
        /// decode, vision, audio, fuse or llm.
        stage: Option<StageName>,
    },
    /// Starts the processes that `unload` ended.
    Load {
        /// decode, vision, audio, fuse or llm.
        stage: Option<StageName>,
    },
    /// Shows every tensor that the stages need of a checkpoint, and what is missing or unused.
    Inspect {
        /// Checkpoint directory, or `demo`.
        model: PathBuf,
        /// Lists the tensors that are in order too.
        #[arg(long)]
        all: bool,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Writes a random checkpoint in the real layout; its answers mean nothing.
    DemoModel {
        /// Directory to write.
        dir: PathBuf,
        /// Model whose layout it has: 9b (Vidi 1.5 9B) or 7b (Vidi 7B); without it, the size's own.
        #[arg(long)]
        family: Option<Family>,
        /// Dimensions: tiny, realdims, or a whole model, 9b (21 GB) or 7b (17 GB). 7b-tiny is tiny of --family 7b, and
        /// 7b-realdims is realdims.
        #[arg(long, default_value = "tiny")]
        size: config::Size,
        /// Same seed, same bytes.
        #[arg(long, default_value_t = demo_model::DEFAULT_SEED)]
        seed: u64,
    },
    /// Makes a video with a known truth: coloured shapes that come and go, and sounds. Prints what can be asked about it.
    DemoVideo {
        /// Video to write, OUT.mp4 (H.264, AAC); the truth goes to OUT.json.
        out: PathBuf,
        /// Same seed and length, same scene.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Length, seconds: 8 to 64, as the demo model knows them.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(
            i64::from(*demo_video::SECONDS.start())..=i64::from(*demo_video::SECONDS.end())
        ))]
        seconds: u32,
    },
    /// Shows what every stage will hold, and whether videos fit beside it, without loading or needing a GPU.
    Plan {
        /// Checkpoint directory; only its config.json is read. Without it and --weights, Vidi 1.5 9B.
        model: Option<PathBuf>,
        /// Lengths of videos, seconds, sampled once a second and with sound.
        #[arg(long, value_delimiter = ',', default_values_t = [10, 60, 300, 3600])]
        video_seconds: Vec<u64>,
        /// Processes per stage, as for `up`.
        #[arg(long, value_delimiter = ',')]
        replicas: Vec<String>,
        /// Devices of stages, as for `up`.
        #[arg(long, value_delimiter = ',', value_name = "STAGE=DEVICE")]
        place: Vec<String>,
        /// One JSON object, bytes as numbers.
        #[arg(long)]
        json: bool,
    },
    /// Writes the language model's matrices in 8 or 4 bits to one file, for `llm.quantized`.
    Quantize {
        /// Checkpoint directory.
        model: PathBuf,
        /// q8 or q4.
        #[arg(long)]
        to: Bits,
        /// File to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Lists the videos whose keys and values are on disk, in llm.park_dir of the configuration; needs no pipeline.
    Videos {
        #[command(subcommand)]
        action: Option<VideosAction>,
        /// One JSON list.
        #[arg(long, global = true)]
        json: bool,
    },
    /// Measures one stage alone, or whole jobs.
    Bench(bench::command::Bench),
    /// Asks the queries of a benchmark (VUE-TR), scores answers (VUE-TR, -STG, -PLOT), compares two files of answers.
    #[command(subcommand)]
    Eval(crate::eval::Eval),
    /// Runs one stage in this process.
    Stage {
        /// decode, vision, audio, fuse or llm.
        name: StageName,
        /// A file that is there once the stage is ready, written again every few seconds while its engine does not hang: for
        /// the probes of a container engine. systemd is told without it.
        #[arg(long, value_name = "FILE")]
        alive: Option<PathBuf>,
        /// What `vidi up` starts: the whole configuration is this file, which is merged already, and the stage drains when
        /// standard input ends.
        #[arg(long, value_name = "FILE", hide = true)]
        supervised: Option<PathBuf>,
        /// Supervisor with which the broker ends too.
        #[arg(long, value_name = "PID", hide = true, requires = "supervised")]
        broker_of: Option<u32>,
    },
    /// What `vidi up --mps` starts: keeps NVIDIA's daemon until it is told to end, or `vidi up` ends.
    #[command(hide = true)]
    MpsKeeper {
        /// The daemon's control program.
        #[arg(long, value_name = "FILE")]
        program: PathBuf,
        /// State directory of its `vidi up`.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
    /// Records the messages of the bus to a file, without slowing it down.
    Record(recording::command::RecordArgs),
    /// Publishes recorded messages, and compares the stages' outputs with the recorded ones.
    Replay(recording::command::ReplayArgs),
    /// Shows recordings.
    #[command(subcommand)]
    Recording(recording::command::Recording),
    /// Prints the effective configuration.
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
}

/// Formats of `vidi quantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bits {
    /// 8.5 bits a weight.
    Q8,
    /// 4.5 bits a weight, 6.6 where errors are read again: projections to queries, keys and values, and the embedding.
    Q4,
}

/// Subcommands of `vidi config`.
#[derive(Subcommand)]
pub enum ConfigAction {
    /// Prints it as TOML with every key.
    Print,
}

/// Subcommands of `vidi videos`.
#[derive(Subcommand)]
pub enum VideosAction {
    /// Removes some, or all; the next question about one computes it again.
    Rm {
        /// Their ids, or beginnings of them that are no other's.
        #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All of them.
        #[arg(long)]
        all: bool,
    },
}

/// Arguments of `vidi up`.
#[derive(clap::Args)]
pub struct Up {
    /// Checkpoint directory, or `demo` for the small one that ships with the project; VIDI_MODEL and model.dir say the same.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Directory whose videos may be asked about; repeatable. The working directory if none is given or configured.
    #[arg(long = "media-root")]
    pub media_roots: Vec<PathBuf>,
    /// Processes per stage, e.g. `vision=2,audio=2`; one on each device of a stage that is placed, else one.
    #[arg(long, value_delimiter = ',')]
    pub replicas: Vec<String>,
    /// Devices that stages compute on, e.g. `vision=cuda:0,cuda:1,audio=cuda:1`: a process on each, dealt in turn where
    /// --replicas asks for more; a stage that is not named is on compute.device. Sets placement.STAGE.
    #[arg(long, value_delimiter = ',', value_name = "STAGE=DEVICE")]
    pub place: Vec<String>,
    /// Runs all stages in this process: the same code, the same bus.
    #[arg(long)]
    pub one_process: bool,
    /// Starts NVIDIA's Multi-Process Service before the stages, so that they share a GPU's time instead of taking turns; sets
    /// up.mps. A daemon that serves the GPU already is used as it is.
    #[arg(long)]
    pub mps: bool,
    /// Answers HTTP requests too, on this `host:port`, e.g. 127.0.0.1:8099; sets http.address. Anything but loopback needs
    /// http.token_file.
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
}

/// Arguments of `vidi ask`.
#[derive(clap::Args)]
pub struct Ask {
    /// Video or sound file, by its path or `file:` URI.
    pub video: PathBuf,
    /// The question. Several share one look at the video and are answered together; a task may need none.
    #[arg(value_name = "QUERY")]
    pub queries: Vec<String>,
    /// Task: `retrieval` (when does it happen), `qa` (free text), or another that `vidi tasks` lists.
    #[arg(long, default_value = "retrieval")]
    pub task: String,
    /// Parser of the answer, in place of the task's own: text, reference, lenient or boxes.
    #[arg(long)]
    pub parser: Option<String>,
    /// Seconds to add to both ends of each range.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub pad: f64,
    /// Seconds that two ranges may be apart to become one.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    pub join: f64,
    /// Checkpoint directory, or `demo`, for a pipeline started for this question; VIDI_MODEL and model.dir say the same.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// One JSON object on standard output.
    #[arg(long)]
    pub json: bool,
    /// Truth about the video, as `vidi demo-video` writes it: shows the true answer below the answer, and fails if they
    /// disagree (IoU under 0.5, or other words).
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub truth: Option<PathBuf>,
    /// No progress on standard error.
    #[arg(long)]
    pub quiet: bool,
    /// The job's id; a random one if none is given.
    #[arg(long)]
    pub job: Option<String>,
    /// Length of the answer at most.
    #[arg(long, default_value_t = 1024)]
    pub max_new_tokens: u32,
    /// Only this part of the video, e.g. `60-90.5` (seconds).
    #[arg(long, value_parser = parse_span)]
    pub span: Option<[f64; 2]>,
    /// Frames a second to look at.
    #[arg(long, default_value_t = 1.0)]
    pub fps: f64,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Nucleus to sample from.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Gives up after so many seconds.
    #[arg(long)]
    pub deadline: Option<f64>,
    /// 0 to 9, higher first.
    #[arg(long, default_value_t = 5)]
    pub priority: u8,
    /// Writes the frames and samples that the model saw to DIR/frames.npy and DIR/pcm.npy (own pipeline only).
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    #[command(flatten)]
    pub exports: Exports,
}

/// Arguments of `vidi ask` about files of its answer.
#[derive(clap::Args)]
#[command(group = ArgGroup::new("coded").args(["files", "contact_sheet"]).multiple(true))]
pub struct Exports {
    /// Writes the found ranges to FILE, in the format that its ending says: .otio, .edl, .fcpxml, .vtt, .srt, .ffmetadata,
    /// .txt (chapters for YouTube), .ffconcat, .sh, .csv or .json; or FORMAT:FILE, whatever the ending; repeatable.
    #[arg(long = "export", value_name = "[FORMAT:]FILE")]
    pub files: Vec<PathBuf>,
    /// Format of every FILE, whatever its name says.
    #[arg(long, value_name = "FORMAT", requires = "files")]
    pub format: Option<Format>,
    /// Makes an .edl of markers for DaVinci Resolve, in place of cuts.
    #[arg(long, requires = "files")]
    pub edl_markers: bool,
    /// Drop-frame time codes, at 29.97 or 59.94 frames a second.
    #[arg(long, requires = "coded")]
    pub drop_frame: bool,
    /// Time code of the video's first frame, e.g. `01:00:00:00`; the file's own if none is given, or 0.
    #[arg(long, value_name = "TIMECODE", requires = "coded")]
    pub start_tc: Option<Code>,
    /// Cuts each found range out of the video, exact to the frame, to a file of its own in DIR (ffmpeg).
    #[arg(long, value_name = "DIR")]
    pub clips: Option<PathBuf>,
    /// Draws the found ranges over the length of the video, with frames of it, to FILE.svg or FILE.png (ffmpeg).
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    /// Draws first, middle and last frame of each found range, with time codes, to FILE.jpg (ffmpeg).
    #[arg(long, value_name = "FILE")]
    pub contact_sheet: Option<PathBuf>,
    /// Ranges on a contact sheet at most; the sheet says how many are left out.
    #[arg(long, value_name = "N", default_value_t = 12, requires = "contact_sheet",
        value_parser = clap::value_parser!(u32).range(1..=50))]
    pub sheet_rows: u32,
}

fn parse_span(text: &str) -> Result<[f64; 2], String> {
    let (a, b) = text.split_once('-').ok_or("a span is START-END in seconds")?;
    let number = |s: &str| s.trim().parse::<f64>().map_err(|e| format!("{s:?}: {e}"));
    Ok([number(a)?, number(b)?])
}
