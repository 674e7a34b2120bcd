//! The `vidi` command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use common::bus::Bus;
use common::config::{Config, WeightFormat};
use common::error::StageName;
use common::message::{JobId, JobRequest};
use common::model::ModelConfig;
use common::process::{ConfigArgs, Exit, Fatal, on_signal, runtime};
use common::telemetry;
use deploy::pipeline::Housing;
use deploy::{
    ask, bench, broker, client, demo_model, inspect, pipeline, plan, profile, quantize, recording, stages, supervisor,
};

/// The role of whoever asks.
const CLIENT: &str = "client";
/// The role of whoever runs the pipeline.
const OPERATOR: &str = "operator";

/// Vidi 1.5 9B on a message bus: ask questions about videos.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    /// What kind of machine this is, under all other configuration: 4090-shared, 4090, h200 or cpu-demo.
    #[arg(long, env = "VIDI_PROFILE", global = true)]
    profile: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs broker (unless bus.url names one) and stages until Ctrl-C.
    Up(Up),
    /// Asks a question about a video, of a running pipeline or of one started for it.
    Ask(Ask),
    /// Cancels a job.
    Cancel {
        /// Its id.
        job: String,
    },
    /// Shows the running stages: memory, messages, queues.
    Status {
        /// One JSON object per instance.
        #[arg(long)]
        json: bool,
    },
    /// Ends the processes of vision, audio, fuse and llm (or of STAGE) under `vidi up`, so that they hold no memory. The
    /// next job starts them again.
    Unload {
        /// decode, vision, audio, fuse or llm.
        stage: Option<StageName>,
    },
    /// Starts what `unload` ended.
    Load {
        /// decode, vision, audio, fuse or llm.
        stage: Option<StageName>,
    },
    /// Shows every tensor that the stages need of a checkpoint, and what is missing or unused.
    Inspect {
        /// Checkpoint directory.
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
        /// Dimensions; 9b takes about 20 GB.
        #[arg(long, value_enum, default_value = "tiny")]
        size: demo_model::Size,
        /// Same seed, same bytes.
        #[arg(long, default_value_t = demo_model::DEFAULT_SEED)]
        seed: u64,
    },
    /// Shows what every stage will hold, and whether videos fit beside it, without loading or needing a GPU.
    Plan {
        /// Checkpoint directory; only its config.json is read. Vidi 1.5 9B if none is given.
        model: Option<PathBuf>,
        /// Lengths of videos, seconds, sampled once a second and with sound.
        #[arg(long, value_delimiter = ',', default_values_t = [10, 60, 300, 3600])]
        video_seconds: Vec<u64>,
        /// Processes per stage, as for `up`.
        #[arg(long, value_delimiter = ',')]
        replicas: Vec<String>,
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
    /// Measures one stage alone, or whole jobs.
    Bench(bench::command::Bench),
    /// Runs one stage in this process.
    Stage {
        /// decode, vision, audio, fuse or llm.
        name: StageName,
        /// Drains when standard input ends.
        #[arg(long)]
        supervised: bool,
    },
    /// Writes down what passes over the bus, without disturbing it.
    Record(recording::command::Record),
    /// Publishes what was recorded, and compares what stages make of it.
    Replay(recording::command::Replay),
    /// Looks into recordings.
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
enum Bits {
    /// 8.5 bits a weight.
    Q8,
    /// 4.5 bits a weight, 6.6 where errors are read again: projections to queries, keys and values, and the embedding.
    Q4,
}

#[derive(Subcommand)]
enum ConfigAction {
    /// As TOML, every key spelt out.
    Print,
}

#[derive(clap::Args)]
struct Up {
    /// Checkpoint directory.
    #[arg(long, env = "VIDI_MODEL")]
    model: Option<PathBuf>,
    /// Directory whose videos may be asked about; repeatable. The working directory if none is given or configured.
    #[arg(long = "media-root")]
    media_roots: Vec<PathBuf>,
    /// Processes per stage, e.g. `vision=2,audio=2`.
    #[arg(long, value_delimiter = ',')]
    replicas: Vec<String>,
    /// Runs all stages in this process: the same code, the same bus.
    #[arg(long)]
    one_process: bool,
}

#[derive(clap::Args)]
struct Ask {
    /// Video or sound file.
    video: String,
    /// The question.
    query: String,
    /// `retrieval` (when does it happen) or `qa` (free text).
    #[arg(long, default_value = "retrieval")]
    task: String,
    /// Checkpoint directory, for a pipeline started for this question.
    #[arg(long, env = "VIDI_MODEL")]
    model: Option<PathBuf>,
    /// One JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// No progress on standard error.
    #[arg(long)]
    quiet: bool,
    /// The job's id; a random one if none is given.
    #[arg(long)]
    job: Option<String>,
    /// Length of the answer at most.
    #[arg(long, default_value_t = 1024)]
    max_new_tokens: u32,
    /// Only this part of the video, e.g. `60-90.5` (seconds).
    #[arg(long, value_parser = parse_span)]
    span: Option<[f64; 2]>,
    /// Frames a second to look at.
    #[arg(long, default_value_t = 1.0)]
    fps: f64,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Nucleus to sample from.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Gives up after so many seconds.
    #[arg(long)]
    deadline: Option<f64>,
    /// 0 to 9, higher first.
    #[arg(long, default_value_t = 5)]
    priority: u8,
    /// Writes the frames and samples that the model saw to DIR/frames.npy and DIR/pcm.npy (own pipeline only).
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

fn parse_span(text: &str) -> Result<[f64; 2], String> {
    let (a, b) = text.split_once('-').ok_or("a span is START-END in seconds")?;
    let number = |s: &str| s.trim().parse::<f64>().map_err(|e| format!("{s:?}: {e}"));
    Ok([number(a)?, number(b)?])
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fatal(exit, text)) => {
            eprintln!("error: {text}");
            exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Fatal> {
    let profile = cli.profile.as_deref().map(profile::text).transpose().map_err(|e| Fatal(Exit::Usage, e))?;
    let mut config = cli.config.load_over(profile)?;
    let quiet = matches!(cli.command, Command::Ask(_));
    let mut log = config.log.clone();
    if quiet && log == telemetry::LogConfig::default() {
        log.filter = "error".to_owned();
    }
    telemetry::init(&log).map_err(|e| Fatal(Exit::Usage, e))?;
    let runtime = runtime()?;
    match cli.command {
        Command::Up(up) => runtime.block_on(run_up(&mut config, up)),
        Command::Ask(ask) => runtime.block_on(run_ask(&mut config, ask)),
        Command::Cancel { job } => runtime.block_on(async {
            let job = JobId::new(job).map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
            let replies = client::cancel(&connect(&config, CLIENT).await?, &job).await.map_err(broker_trouble)?;
            for reply in &replies {
                let what = if reply.stopped { "stopped" } else { "had nothing of it in hand" };
                println!("{}: {what}", reply.instance);
            }
            if replies.is_empty() {
                return Err(Fatal(Exit::Other, "no stage answered".to_owned()));
            }
            Ok(())
        }),
        Command::Status { json } => runtime.block_on(async { status(&connect(&config, CLIENT).await?, json).await }),
        Command::Inspect { model, all, json } => {
            let found = inspect::inspect(&model).map_err(|e| Fatal(Exit::Model, e.to_string()))?;
            if json {
                println!("{}", serde_json::json!(found));
            } else {
                inspect::print(&found, all);
            }
            if found.is_complete() {
                return Ok(());
            }
            Err(Fatal(Exit::Model, format!("{} is incomplete: see above", model.display())))
        }
        Command::DemoModel { dir, size, seed } => write_demo_model(&dir, size, seed),
        Command::Plan { model, video_seconds, replicas } => {
            let replicas = supervisor::replicas(&replicas).map_err(|e| Fatal(Exit::Usage, e))?;
            show_plan(&config, model.as_deref(), &replicas, &video_seconds)
        }
        Command::Quantize { model, to, out } => write_quantized(&model, to, &out),
        Command::Bench(bench) => {
            use_model(&mut config, bench.model.clone())?;
            runtime.block_on(bench.run(&config))
        }
        Command::Load { stage } => runtime.block_on(load(&config, "load", stage)),
        Command::Unload { stage } => runtime.block_on(load(&config, "unload", stage)),
        Command::Stage { name, supervised } => runtime.block_on(async {
            let mut shutdown = on_signal();
            if supervised {
                shutdown = stages::until_stdin_ends(shutdown);
            }
            stages::serve(name, &config, shutdown).await
        }),
        Command::Record(args) => {
            runtime.block_on(async { recording::command::record(&connect(&config, OPERATOR).await?, args).await })
        }
        Command::Replay(args) => {
            runtime.block_on(async { recording::command::replay(&connect(&config, OPERATOR).await?, args).await })
        }
        Command::Recording(action) => recording::command::recording(action),
        Command::Config { action: ConfigAction::Print } => {
            print!("{}", config.shown().to_toml());
            Ok(())
        }
    }
}

fn broker_trouble(e: anyhow::Error) -> Fatal {
    Fatal(Exit::Broker, format!("{e:#}"))
}

/// The pipeline that runs: the configured broker's, or that of `vidi up`.
async fn connect(config: &Config, role: &str) -> Result<Bus, Fatal> {
    if !config.bus.url.is_empty() {
        return Ok(Bus::connect(&config.bus, role, Duration::from_secs(2)).await?);
    }
    pipeline::running(config, role).await?.ok_or_else(|| {
        Fatal(Exit::Broker, "no pipeline runs here: start one with `vidi up`, or name its broker in bus.url".to_owned())
    })
}

async fn run_up(config: &mut Config, up: Up) -> Result<(), Fatal> {
    use_model(config, up.model)?;
    for root in up.media_roots {
        config.decode.media_roots.push(absolute(&root)?);
    }
    if config.decode.media_roots.is_empty() {
        config.decode.media_roots.push(absolute(Path::new("."))?);
    }
    let replicas = supervisor::replicas(&up.replicas).map_err(|e| Fatal(Exit::Usage, e))?;
    let housing = if up.one_process { Housing::OneProcess } else { Housing::Processes(supervisor::Logs::Inherit) };
    let dir = pipeline::state_dir();
    let mut pipeline =
        pipeline::Pipeline::start(config, &dir, &replicas, &housing, &broker::Options::default()).await?;
    let note = pipeline::leave_note(pipeline.bus()).map_err(|e| Fatal(Exit::Usage, format!("{e:#}")))?;
    let mut shutdown = on_signal();
    let outcome = tokio::select! {
        ready = pipeline.ready() => ready.map(|()| {
            println!("ready: broker {}, media below {:?}", pipeline.bus().config().url, config.decode.media_roots);
        }),
        _ = shutdown.wait_for(|&s| s) => Ok(()),
    };
    let outcome = match outcome {
        Err(fatal) => Err(fatal),
        Ok(()) => tokio::select! {
            fatal = pipeline.lost() => Err(fatal),
            _ = shutdown.wait_for(|&s| s) => Ok(()),
        },
    };
    tracing::info!("draining");
    pipeline.stop().await;
    if let Err(error) = std::fs::remove_file(&note) {
        tracing::debug!(%error, "note already gone");
    }
    outcome
}

async fn run_ask(config: &mut Config, ask: Ask) -> Result<(), Fatal> {
    let job = match &ask.job {
        Some(job) => JobId::new(job.clone()),
        None => JobId::new(format!("ask-{}-{}", std::process::id(), common::bus::events::now_ms())),
    };
    let job = job.map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
    // A file that is not here may be there where stage-decode runs.
    let local = Path::new(&ask.video).canonicalize().ok();
    let video = local.as_ref().map_or(ask.video.clone(), |p| p.to_string_lossy().into_owned());
    let request = JobRequest {
        task: ask.task,
        span: ask.span,
        fps: ask.fps,
        max_new_tokens: ask.max_new_tokens,
        temperature: ask.temperature,
        top_p: ask.top_p,
        seed: ask.seed,
        deadline_s: ask.deadline,
        priority: ask.priority,
        ..JobRequest::new(job, video, ask.query)
    };
    common::wire::Message::check(&request).map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
    let style = ask::Style { json: ask.json, quiet: ask.quiet };
    let shared = if config.bus.url.is_empty() {
        pipeline::running(config, CLIENT).await?
    } else {
        Some(connect(config, CLIENT).await?)
    };
    if let Some(bus) = shared {
        if ask.dump.is_some() {
            let text = "--dump needs a pipeline of its own: stop the running one, or set decode.dump where it runs";
            return Err(Fatal(Exit::Usage, text.to_owned()));
        }
        return follow(&bus, &request, style).await;
    }
    use_model(config, ask.model)?;
    if let Some(parent) = local.as_ref().and_then(|p| p.parent()) {
        config.decode.media_roots.push(parent.to_owned());
    } else if config.decode.media_roots.is_empty() {
        config.decode.media_roots.push(absolute(Path::new("."))?);
    }
    if let Some(dump) = ask.dump {
        std::fs::create_dir_all(&dump).map_err(|e| Fatal(Exit::Usage, format!("{}: {e}", dump.display())))?;
        config.decode.dump = Some(absolute(&dump)?);
    }
    let dir = tempfile::tempdir().map_err(|e| Fatal(Exit::Other, format!("no temporary directory: {e}")))?;
    let housing = Housing::Processes(supervisor::Logs::Directory(dir.path().to_owned()));
    let each = StageName::ALL.map(|s| (s, 1));
    let mut pipeline =
        pipeline::Pipeline::start(config, dir.path(), &each, &housing, &broker::Options::default()).await?;
    let bus = pipeline.bus().clone();
    let outcome = tokio::select! {
        outcome = follow(&bus, &request, style) => outcome,
        fatal = pipeline.lost() => Err(fatal),
    };
    pipeline.stop().await;
    outcome
}

/// Asks, and cancels at Ctrl-C.
async fn follow(bus: &Bus, request: &JobRequest, style: ask::Style) -> Result<(), Fatal> {
    let mut shutdown = on_signal();
    tokio::select! {
        outcome = ask::ask(bus, request, style) => outcome.map(drop),
        _ = shutdown.wait_for(|&s| s) => {
            client::cancel(bus, &request.job).await.map_err(broker_trouble)?;
            Err(Fatal(Exit::JobFailed, "cancelled".to_owned()))
        }
    }
}

async fn load(config: &Config, verb: &str, stage: Option<StageName>) -> Result<(), Fatal> {
    let reply = client::load(&connect(config, OPERATOR).await?, verb, stage).await.map_err(broker_trouble)?;
    if let Some(error) = reply.error {
        return Err(Fatal(Exit::Usage, error));
    }
    let stages: Vec<&str> = reply.stages.iter().map(|s| s.as_str()).collect();
    match (verb, stages.is_empty()) {
        ("load", true) => println!("nothing was unloaded"),
        ("load", false) => println!("starting {} ({} processes)", stages.join(", "), reply.processes),
        (_, true) => println!("nothing was loaded"),
        (_, false) => println!("ended {} ({} processes) in {} ms", stages.join(", "), reply.processes, reply.ms),
    }
    Ok(())
}

async fn status(bus: &Bus, json: bool) -> Result<(), Fatal> {
    if !json {
        println!(
            "{:<24} {:>10} {:>10} {:>10} {:>9} {:>7} {:>6} {:>6}",
            "instance", "used MiB", "peak MiB", "budget", "messages", "failed", "again", "queue"
        );
    }
    for stage in StageName::ALL {
        for s in client::status(bus, stage).await.map_err(broker_trouble)? {
            if json {
                println!("{}", serde_json::json!(s));
                continue;
            }
            let mib = |b: u64| format!("{:.1}", b as f64 / f64::from(1 << 20));
            let budget = if s.budget_bytes == 0 { "none".to_owned() } else { mib(s.budget_bytes) };
            println!(
                "{:<24} {:>10} {:>10} {:>10} {:>9} {:>7} {:>6} {:>6}",
                s.instance,
                mib(s.used_bytes),
                mib(s.peak_bytes),
                budget,
                s.processed,
                s.failed,
                s.redelivered,
                s.queue_depth
            );
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, Fatal> {
    path.canonicalize().map_err(|e| Fatal(Exit::Usage, format!("{}: {e}", path.display())))
}

fn use_model(config: &mut Config, model: Option<PathBuf>) -> Result<(), Fatal> {
    if let Some(model) = model {
        config.model.dir = model;
    }
    if config.model.dir.as_os_str().is_empty() {
        let text = "no checkpoint: give --model DIR, set VIDI_MODEL or model.dir, or make one that answers nonsense \
                    with `vidi demo-model DIR`";
        return Err(Fatal(Exit::Usage, text.to_owned()));
    }
    config.model.dir = absolute(&config.model.dir)?;
    Ok(())
}

fn show_plan(
    config: &Config,
    model: Option<&Path>,
    replicas: &plan::Replicas,
    video_seconds: &[u64],
) -> Result<(), Fatal> {
    let wrong = |e: common::checkpoint::CheckpointError| Fatal(Exit::Model, e.to_string());
    let model = model.map_or(Ok(ModelConfig::default()), ModelConfig::read).map_err(wrong)?;
    let plan = plan::Plan::new(config, &model, replicas).map_err(wrong)?;
    println!("{plan}");
    let mut all_fit = true;
    for &seconds in video_seconds {
        let video = plan.video(seconds);
        println!("{seconds} s: {video}");
        if video.mode.is_none() {
            all_fit = false;
            for remedy in plan::remedies(config, &model, replicas, seconds).map_err(wrong)? {
                println!("    would fit: {remedy}");
            }
        }
    }
    if all_fit { Ok(()) } else { Err(Fatal(Exit::JobFailed, "not every video fits: see above".to_owned())) }
}

fn write_quantized(model: &Path, to: Bits, out: &Path) -> Result<(), Fatal> {
    let weights = match to {
        Bits::Q8 => WeightFormat::Q8,
        Bits::Q4 => WeightFormat::Q4,
    };
    let bar = indicatif::ProgressBar::new(0);
    let mut worst: BTreeMap<&'static str, (f64, String)> = BTreeMap::new();
    println!("relative error of products:");
    let done = quantize::quantize(model, weights, out, &mut |matrix, count| {
        bar.set_length(count as u64);
        bar.inc(1);
        bar.suspend(|| println!("{:<44} {:?}  {:.2e}", matrix.name, matrix.format, matrix.error));
        let kind = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"].into_iter().find(|k| matrix.name.ends_with(k));
        let most = worst.entry(kind.unwrap_or("embedding")).or_default();
        if matrix.error >= most.0 {
            *most = (matrix.error, matrix.name.clone());
        }
    });
    bar.finish_and_clear();
    done.map_err(|e| Fatal(Exit::Model, format!("{e:#}")))?;
    for (kind, (error, name)) in &worst {
        println!("worst of {kind}: {error:.2e} ({name})");
    }
    println!(
        "{}: use it with --set llm.weights={} --set llm.quantized={}",
        out.display(),
        format!("{to:?}").to_lowercase(),
        out.display()
    );
    Ok(())
}

fn write_demo_model(dir: &Path, size: demo_model::Size, seed: u64) -> Result<(), Fatal> {
    let bar = indicatif::ProgressBar::new(0);
    let written = demo_model::write(dir, &size.dims(), seed, &mut |p| {
        bar.set_length(p.total_bytes);
        bar.set_position(p.written_bytes);
    });
    bar.finish_and_clear();
    let summary = written.map_err(|e| Fatal(Exit::Model, e.to_string()))?;
    println!("{}: {summary:?}", dir.display());
    println!("The weights are random: answers of this model mean nothing.");
    Ok(())
}
