//! `vidi up`: broker and stages for as long as this command runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, FilesOn};
use deploy::gateway::{self, Gateway};
use deploy::model::shipped;
use deploy::up::pipeline::{Layout, Pipeline};
use deploy::up::{broker, down, note, replicas, supervisor};
use runtime::answer;
use runtime::notify::Notifier;
use runtime::process::{Exit, Fatal, on_signal, warn_of_random_weights};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::Up;

/// Runs broker and stages until Ctrl-C.
///
/// # Errors
/// When they do not start, or one is lost for good.
pub async fn up(config: &mut Config, up: Up) -> Result<(), Fatal> {
    let wrong = |e: anyhow::Error| Fatal(Exit::Usage, format!("{e:#}"));
    let _own = note::own_state().await.map_err(wrong)?;
    use_model(config)?;
    warn_of_random_weights(config);
    for root in up.media_roots {
        config.decode.media_roots.push(absolute(&root)?);
    }
    if config.decode.media_roots.is_empty() {
        config.decode.media_roots.push(absolute(Path::new("."))?);
    }
    if let Some(address) = up.http {
        config.http.address = address;
    }
    if !config.http.address.is_empty() {
        // Uploaded files are asked about like others.
        let spool = gateway::spool_dir(&config.http);
        std::fs::create_dir_all(&spool)
            .map_err(|e| Fatal(Exit::Usage, format!("http.spool {}: {e}", spool.display())))?;
        config.decode.media_roots.push(absolute(&spool)?);
        if config.http.files == FilesOn::Bus && config.decode.spool.is_none() {
            config.decode.spool = Some(note::state_dir().join("fetched"));
        }
    }
    let replicas = replicas::replicas(&up.replicas, config).map_err(|e| Fatal(Exit::Usage, e))?;
    let layout = if up.one_process { Layout::OneProcess } else { Layout::Processes(supervisor::Logs::Inherit) };
    let broker = broker::Options { monitor_port: config.up.monitor_port, ..broker::Options::default() };
    let mut pipeline = Pipeline::start(config, &note::state_dir(), &replicas, &layout, &broker).await?;
    if let Some(said) = pipeline.mps()
        && let Err(unwritten) = answer!("{said}")
    {
        tracing::warn!("{said}; {unwritten}");
    }
    let (mut shutdown, notifier) = (on_signal(), Notifier::of_environment());
    let gateway = match listen(config, &pipeline).await {
        Ok(gateway) => gateway,
        Err(fatal) => {
            pipeline.stop().await;
            return Err(fatal);
        }
    };
    let note = note::leave(pipeline.bus()).map_err(wrong)?;
    let outcome = tokio::select! {
        ready = pipeline.ready() => ready.map(|()| {
            let said = answer!("ready: broker {}, media below {:?}", pipeline.bus().config().url, config.decode.media_roots);
            if let Err(unwritten) = said {
                // Nobody waits for that line; the pipeline is for its clients.
                tracing::warn!("ready; {unwritten}");
            }
            notifier.ready("broker and stages");
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
    notifier.stopping();
    if let Some(gateway) = gateway {
        // Whoever is answered now is, within its time to drain; the stages end after that.
        gateway.stop().await;
    }
    pipeline.stop().await;
    if let Err(error) = std::fs::remove_file(&note) {
        tracing::debug!(%error, "note already gone");
    }
    outcome
}

/// A gateway that runs beside the pipeline.
struct Listening {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Listening {
    async fn stop(self) {
        self.stop.send_replace(true);
        // One that panicked answers nobody any more.
        let _ = self.task.await;
    }
}

/// Starts the gateway, where one is configured, before the stages are ready: it says which are not.
async fn listen(config: &Config, pipeline: &Pipeline) -> Result<Option<Listening>, Fatal> {
    if config.http.address.is_empty() {
        return Ok(None);
    }
    let gateway = Gateway::open(config, pipeline.bus().clone(), pipeline.desired()).await?;
    if pipeline.desired().is_none() {
        gateway.note_loading();
    }
    if let Err(unwritten) = answer!("gateway: http://{}", gateway.address()) {
        tracing::warn!("gateway on {}; {unwritten}", gateway.address());
    }
    let (stop, stopping) = watch::channel(false);
    let task = tokio::spawn(gateway.run(stopping));
    Ok(Some(Listening { stop, task }))
}

/// Stops the `vidi up` of this host.
///
/// # Errors
/// When it does not end, or is somebody else's.
pub async fn down(wait_s: u64) -> Result<(), Fatal> {
    match down::stop(Duration::from_secs(wait_s)).await.map_err(|e| Fatal(Exit::Other, format!("{e:#}")))? {
        Some(stopped) => answer!("stopped: process {}, in {} ms", stopped.pid, stopped.took.as_millis())?,
        None => answer!("nothing to stop: no `vidi up` runs with its files in {}", note::state_dir().display())?,
    }
    Ok(())
}

/// An existing path in full.
///
/// # Errors
/// When there is no such file.
pub fn absolute(path: &Path) -> Result<PathBuf, Fatal> {
    path.canonicalize().map_err(|e| Fatal(Exit::Usage, format!("{}: {e}", path.display())))
}

/// Makes the configured checkpoint the one to serve.
///
/// # Errors
/// When there is none.
pub fn use_model(config: &mut Config) -> Result<(), Fatal> {
    if config.model.weights.is_some() {
        return Ok(());
    }
    if config.model.dir.as_os_str().is_empty() {
        let text = "no checkpoint: give --model DIR, set VIDI_MODEL or model.dir, or take the small one that knows shapes and beeps, \
                    --model demo, or one that answers nonsense, --weights random:tiny";
        return Err(Fatal(Exit::Usage, text.to_owned()));
    }
    find_model(config)?;
    config.model.dir = absolute(&config.model.dir)?;
    Ok(())
}

/// Puts the shipped checkpoint's directory in the place of its name.
///
/// # Errors
/// When it is not there.
pub fn find_model(config: &mut Config) -> Result<(), Fatal> {
    config.model.dir = directory(&config.model.dir)?;
    Ok(())
}

/// The directory of a checkpoint that a command line names.
///
/// # Errors
/// When it names the shipped one, and that is not there.
pub fn directory(model: &Path) -> Result<PathBuf, Fatal> {
    shipped::resolve(model).map_err(|e| Fatal(Exit::Model, e))
}
