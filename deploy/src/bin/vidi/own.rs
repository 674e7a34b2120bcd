//! `vidi up` and `vidi ask`: a pipeline of this command's own, for as long as it lives or for one question.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::Config;
use deploy::up::pipeline::Housing;
use deploy::up::{broker, pipeline, supervisor};
use deploy::{ask, client};
use protocol::error::StageName;
use protocol::message::{JobId, JobRequest};
use runtime::bus::Bus;
use runtime::process::{Exit, Fatal, on_signal, warn_of_random_weights};

use crate::cli::{Ask, Up};
use crate::running::{CLIENT, broker_trouble, connect};

/// The last event of a job that was cancelled is heard within this time.
const END_WAIT: Duration = Duration::from_secs(5);

/// `vidi up`: broker and stages until Ctrl-C.
///
/// # Errors
/// When they do not start, or one is lost for good.
pub async fn up(config: &mut Config, up: Up) -> Result<(), Fatal> {
    use_model(config, up.model)?;
    warn_of_random_weights(config);
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

/// `vidi ask`: of a pipeline that runs, else of one that is started for the question.
///
/// # Errors
/// As [`ask::ask`], and when no pipeline can be started.
pub async fn ask(config: &mut Config, ask: Ask) -> Result<(), Fatal> {
    let job = match &ask.job {
        Some(job) => JobId::new(job.clone()),
        None => JobId::new(format!("ask-{}-{}", std::process::id(), runtime::bus::events::now_ms())),
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
    protocol::wire::Message::check(&request).map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
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
    if let Some(warning) = config.model.warning() {
        eprintln!("warning: {warning}");
    }
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

/// Asks, and cancels at Ctrl-C; the job's own last event says how it ended.
async fn follow(bus: &Bus, request: &JobRequest, style: ask::Style) -> Result<(), Fatal> {
    let mut shutdown = on_signal();
    let mut asking = std::pin::pin!(ask::ask(bus, request, style));
    tokio::select! {
        outcome = &mut asking => return outcome.map(drop),
        _ = shutdown.wait_for(|&s| s) => {}
    }
    client::cancel(bus, &request.job).await.map_err(broker_trouble)?;
    let unheard = |_| Fatal(Exit::Cancelled, format!("cancelled: no event of its end within {END_WAIT:?}"));
    tokio::time::timeout(END_WAIT, asking).await.map_err(unheard)?.map(drop)
}

fn absolute(path: &Path) -> Result<PathBuf, Fatal> {
    path.canonicalize().map_err(|e| Fatal(Exit::Usage, format!("{}: {e}", path.display())))
}

/// Makes `model`, else the configured one, the checkpoint to serve.
///
/// # Errors
/// When there is none; when there are random weights too.
pub fn use_model(config: &mut Config, model: Option<PathBuf>) -> Result<(), Fatal> {
    if let Some(model) = model {
        config.model.dir = model;
    }
    config.model.check().map_err(|e| Fatal(Exit::Usage, e))?;
    if config.model.weights.is_some() {
        return Ok(());
    }
    if config.model.dir.as_os_str().is_empty() {
        let text = "no checkpoint: give --model DIR, set VIDI_MODEL or model.dir, or take one that answers nonsense, with \
                    `vidi demo-model DIR` or --weights random:tiny";
        return Err(Fatal(Exit::Usage, text.to_owned()));
    }
    config.model.dir = absolute(&config.model.dir)?;
    Ok(())
}
