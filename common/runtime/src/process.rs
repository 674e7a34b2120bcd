//! One process that is one stage: configuration, logs, broker, model, run loop, and an exit status that says what was
//! wrong.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::sync::watch;

use crate::bus::{Bus, BusError, BusErrorKind, Role};
use crate::metrics::listen;
use crate::notify::Notifier;
use crate::output::Unwritten;
use crate::remark;
use crate::run::checkpoint::Checkpoint;
use crate::run::device::DeviceLost;
use crate::run::service::InstanceInfo;
use crate::run::{self, Ended, Shutdown, owner, shutdown};
use crate::telemetry;
use config::{Config, RandomWeights, layers};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::CancelledBy;
use protocol::memory;
use protocol::stage::{Owner, Stage};

/// A stage that starts before its broker waits this long for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// A process that shall leave waits this long for a broker that does not answer.
const LEAVE_AFTER: Duration = Duration::from_secs(5);
/// Time between two looks whether it answers.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// End of a process, by its exit status. README.md has the same table, and a test holds the two together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something that no other status names; starting again may help.
    Other = 1,
    /// The command line, the environment or the configuration is wrong.
    Usage = 2,
    /// The job failed; the first word of the message is its kind.
    JobFailed = 3,
    /// The broker refuses the credentials, or its certificate is not to be trusted.
    Credentials = 4,
    /// No broker answers, or it has no JetStream.
    Broker = 5,
    /// The checkpoint cannot be used.
    Model = 6,
    /// The job was cancelled: by its client or an operator.
    Cancelled = 7,
    /// The job's deadline passed.
    Deadline = 8,
    /// The job, a video of `vidi plan`, or the stages of `vidi up` need more memory than there is.
    DoesNotFit = 9,
}

impl Exit {
    /// All but success.
    pub const ALL: [Exit; 9] = [
        Exit::Other,
        Exit::Usage,
        Exit::JobFailed,
        Exit::Credentials,
        Exit::Broker,
        Exit::Model,
        Exit::Cancelled,
        Exit::Deadline,
        Exit::DoesNotFit,
    ];

    /// Meaning, in words for a user.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Other => "something else went wrong; trying again may help",
            Exit::Usage => "wrong command line, environment or configuration",
            Exit::JobFailed => "the job failed",
            Exit::Credentials => "the broker refuses the credentials, or is not to be trusted",
            Exit::Broker => "no broker answers, or it has no JetStream",
            Exit::Model => "the checkpoint cannot be used",
            Exit::Cancelled => "the job was cancelled, by its client or an operator",
            Exit::Deadline => "the job's deadline passed",
            Exit::DoesNotFit => {
                "it does not fit the memory: the job, a video of `vidi plan`, or the stages of `vidi up`"
            }
        }
    }

    /// Exit of a job that failed.
    pub fn of_failed_job(kind: ErrorKind) -> Exit {
        match kind {
            ErrorKind::DoesNotFit => Exit::DoesNotFit,
            ErrorKind::Deadline => Exit::Deadline,
            _ => Exit::JobFailed,
        }
    }

    /// Exit of a job that was cancelled.
    pub fn of_cancelled_job(by: CancelledBy) -> Exit {
        match by {
            CancelledBy::Deadline => Exit::Deadline,
            CancelledBy::Client | CancelledBy::Operator => Exit::Cancelled,
        }
    }

    /// Exit behind a status after which starting the same process again cannot help.
    pub fn final_of(code: Option<i32>) -> Option<Exit> {
        [Exit::Usage, Exit::Credentials, Exit::Model].into_iter().find(|&e| code == Some(e as i32))
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// End of a process that cannot go on: a status for its supervisor and a sentence for a person.
#[derive(Debug)]
pub struct Fatal(pub Exit, pub String);

impl From<BusError> for Fatal {
    fn from(e: BusError) -> Self {
        let exit = match e.kind() {
            BusErrorKind::Address => Exit::Usage,
            BusErrorKind::Credentials => Exit::Credentials,
            BusErrorKind::Mixed => Exit::Model,
            BusErrorKind::Unreachable | BusErrorKind::JetStream | BusErrorKind::Leaderless => Exit::Broker,
        };
        Fatal(exit, e.to_string())
    }
}

impl From<Ended> for Fatal {
    fn from(e: Ended) -> Self {
        match e {
            Ended::Bus(e) => e.into(),
            Ended::Device(lost) => Fatal(Exit::Other, lost),
        }
    }
}

impl From<Unwritten> for Fatal {
    fn from(e: Unwritten) -> Self {
        Fatal(Exit::Other, e.to_string())
    }
}

/// Sources of a process's configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ConfigArgs {
    /// Configuration file (TOML); VIDI_CONFIG says the same.
    #[arg(long, global = true)]
    pub config: Option<PathBuf>,
    /// Sets one configuration key, e.g. `--set bus.url=nats://127.0.0.1:4222`; repeatable.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// Starts without a checkpoint: `random:SIZE` (tiny, realdims, 9b, 7b-tiny, 7b-realdims, 7b; `random` is 9b) makes the
    /// model that `vidi demo-model --size SIZE` writes while it loads. Its answers mean nothing. Sets model.weights.
    #[arg(long, value_name = "random[:SIZE]", global = true)]
    pub weights: Option<RandomWeights>,
}

impl ConfigArgs {
    /// Effective configuration.
    ///
    /// # Errors
    /// [`Exit::Usage`] with what is wrong and where.
    pub fn load(&self) -> Result<Config, Fatal> {
        self.load_over(None)
    }

    /// [`load`](Self::load) over the text of a profile.
    ///
    /// # Errors
    /// As `load`.
    pub fn load_over(&self, profile: Option<&str>) -> Result<Config, Fatal> {
        let weights = self.weights.map(|weights| format!("model.weights={weights}"));
        let set: Vec<String> = self.set.iter().cloned().chain(weights).collect();
        let file = self.config.clone().or_else(|| layers::variable(layers::CONFIG).map(PathBuf::from));
        layers::environment()
            .and_then(|env| Config::layered(profile, file.as_deref(), env, &set))
            .map_err(|e| Fatal(Exit::Usage, e))
    }
}

/// Whole `main` of a process that is one stage, for who has parsed its command line.
pub fn main<S>(args: &ConfigArgs, open: impl FnOnce(&Config) -> Result<S, JobError>) -> ExitCode
where
    S: Stage + Send + 'static,
{
    let outcome = args.load().and_then(|config| {
        let _exporting =
            telemetry::init(&config.log, &config.traces, service_of(S::NAME)).map_err(|e| Fatal(Exit::Usage, e))?;
        warn_of_random_weights(&config);
        let runtime = runtime()?;
        let outcome = runtime.block_on(async { serve(&config, open, on_signal(), Notifier::of_environment()).await });
        // An engine may be in the middle of something that nobody waits for any more.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fatal(exit, text)) => {
            remark!("error: {text}");
            exit.into()
        }
    }
}

/// Name of a stage's process in traces.
pub fn service_of(stage: StageName) -> &'static str {
    match stage {
        StageName::Decode => "vidi-decode",
        StageName::Vision => "vidi-vision",
        StageName::Audio => "vidi-audio",
        StageName::Fuse => "vidi-fuse",
        StageName::Llm => "vidi-llm",
    }
}

/// Parses this process's command line. `--set` counts on both sides of a subcommand: the parser would keep those behind it, and
/// lose the others.
///
/// # Errors
/// The exit of a process that was asked for its help or version, or in a way that it does not understand; it has said so.
pub fn command_line<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse_from(settings_first(std::env::args_os())).map_err(|said| {
        match said.print().and_then(|()| tell_unreadable(said.kind())) {
            Err(e) if !said.use_stderr() => {
                let Fatal(exit, text) = Unwritten::from(e).into();
                remark!("error: {text}");
                exit.into()
            }
            _ => u8::try_from(said.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
        }
    })
}

/// The arguments with every `--set` before all others but the program's name, in their order.
fn settings_first(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut left = arguments.into_iter();
    let (mut settings, mut others) = (left.next().into_iter().collect::<Vec<_>>(), Vec::new());
    while let Some(argument) = left.next() {
        if argument == "--" {
            others.push(argument);
            break;
        }
        let alone = argument == "--set";
        if alone || argument.as_encoded_bytes().starts_with(b"--set=") {
            settings.push(argument);
            settings.extend(alone.then(|| left.next()).flatten());
        } else {
            others.push(argument);
        }
    }
    settings.into_iter().chain(others).chain(left).collect()
}

/// Says which arguments are not UTF-8, where that is what was wrong with one of them: the parser does not. What stands behind an
/// equals sign may be a password.
fn tell_unreadable(kind: clap::error::ErrorKind) -> std::io::Result<()> {
    if kind == clap::error::ErrorKind::InvalidUtf8 {
        let odd = std::env::args_os().enumerate().filter(|(_, argument)| argument.to_str().is_none());
        let shown = odd.map(|(at, argument)| match argument.to_string_lossy().split_once('=') {
            Some((name, _)) => format!("argument {at} ({name}=...)"),
            None => format!("argument {at}"),
        });
        let shown = shown.collect::<Vec<_>>().join(", ");
        remark!("not UTF-8: {shown}; a path in --set is written with percent-encoding, as file:///media/%FF");
    }
    Ok(())
}

/// Runtime for the bus; computing has threads of its own.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fatal> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| Fatal(Exit::Other, format!("no threads for the runtime: {e}")))
}

/// Turns true at SIGTERM or Ctrl-C.
pub fn on_signal() -> Shutdown {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
            return;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        sender.send_replace(true);
        // Kept so that receivers never see a closed channel.
        std::future::pending::<()>().await;
    });
    receiver
}

/// Serves one stage in this process until `shutdown`, and tells `notifier` when it is ready and that it is alive.
///
/// # Errors
/// What keeps it from starting.
pub async fn serve<S>(
    config: &Config,
    open: impl FnOnce(&Config) -> Result<S, JobError>,
    shutdown: Shutdown,
    notifier: Notifier,
) -> Result<(), Fatal>
where
    S: Stage + Send + 'static,
{
    listen::start(&config.metrics).await.map_err(|e| Fatal(Exit::Usage, e))?;
    let bus = Bus::connect(&config.bus, Role::Stage(S::NAME), PATIENCE).await?;
    let stage = opened(S::NAME, tokio::task::block_in_place(|| open(config)))?;
    tokio::select! {
        ended = run::run(bus.clone(), stage, instance_info(config, S::NAME, &notifier)?, shutdown.clone()) => Ok(ended?),
        cut_off = cut_off(&bus, shutdown, &notifier) => Err(cut_off),
    }
}

/// Serves stage-llm in this process until `shutdown`, and tells `notifier` when it is ready and that it is alive.
///
/// # Errors
/// What keeps it from starting.
pub async fn serve_owner<O>(
    config: &Config,
    open: impl FnOnce(&Config) -> Result<O, JobError>,
    shutdown: Shutdown,
    notifier: Notifier,
) -> Result<(), Fatal>
where
    O: Owner + Send + 'static,
{
    listen::start(&config.metrics).await.map_err(|e| Fatal(Exit::Usage, e))?;
    let bus = Bus::connect(&config.bus, Role::Stage(StageName::Llm), PATIENCE).await?;
    let stage = opened(StageName::Llm, tokio::task::block_in_place(|| open(config)))?;
    tokio::select! {
        ended = owner::run(bus.clone(), stage, instance_info(config, StageName::Llm, &notifier)?, shutdown.clone()) => Ok(ended?),
        cut_off = cut_off(&bus, shutdown, &notifier) => Err(cut_off),
    }
}

/// Waits until this process shall leave and has waited for the broker for [`LEAVE_AFTER`]: it cannot settle what it has in
/// flight then, which others get.
async fn cut_off(bus: &Bus, mut shutdown: Shutdown, notifier: &Notifier) -> Fatal {
    shutdown::begun(&mut shutdown).await;
    notifier.stopping();
    let mut held_up = Duration::ZERO;
    while held_up < LEAVE_AFTER {
        tokio::time::sleep(LOOK_EVERY).await;
        held_up = if bus.is_held_up() { held_up + LOOK_EVERY } else { Duration::ZERO };
    }
    let text = format!(
        "left with work in flight: the broker has not answered for {LEAVE_AFTER:?}, or has lost a stream; others get the work"
    );
    Fatal(Exit::Broker, text)
}

/// Says to the log, where it is so, that answers mean nothing.
pub fn warn_of_random_weights(config: &Config) {
    if let Some(warning) = config.model.warning() {
        tracing::warn!("{warning}");
    }
}

/// A stage, or why its process ends: with a status that has it started anew where its device is what failed.
fn opened<S>(stage: StageName, outcome: Result<S, JobError>) -> Result<S, Fatal> {
    outcome.map_err(|e| {
        let (exit, cause) = match memory::lost() {
            Some(lost) => (Exit::Other, format!("{e}; {lost}")),
            None => (Exit::Model, e.to_string()),
        };
        Fatal(exit, format!("stage-{stage} cannot start: {cause}"))
    })
}

fn instance_info(config: &Config, stage: StageName, notifier: &Notifier) -> Result<InstanceInfo, Fatal> {
    let (dtype, fingerprint) = match stage {
        StageName::Decode => (String::new(), Ok(String::new())),
        _ => (config.compute.dtype.wire().to_string(), config.model.fingerprint()),
    };
    let unreadable = |e| Fatal(Exit::Model, format!("stage-{stage} cannot start: fingerprint of the checkpoint: {e}"));
    let checkpoint = Checkpoint { name: config.model.name(), fingerprint: fingerprint.map_err(unreadable)? };
    let (budget_bytes, watchdog) = (config.budget(stage), config.watchdog.clone());
    let device = config.device(stage, 0).to_string();
    let notifier = notifier.clone();
    let affinity_wait = Duration::from_secs_f64(config.llm.affinity_wait_s);
    let family = String::new();
    let device_lost = DeviceLost::default();
    Ok(InstanceInfo { checkpoint, family, dtype, device, budget_bytes, watchdog, notifier, affinity_wait, device_lost })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_starts_a_stage_again_whose_engine_hung() {
        assert_eq!(run::watchdog::STATUS, Exit::Other as i32);
        assert!(Exit::final_of(Some(run::watchdog::STATUS)).is_none());
    }
}
