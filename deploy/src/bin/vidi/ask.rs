//! `vidi ask`: of a pipeline that runs, else of one that is started for the question.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::Config;
use demo_video::truth::{Answer, Truth};
use demo_video::verdict::LEAST;
use deploy::ask::Style;
use deploy::client;
use deploy::export::media::Media;
use deploy::up::pipeline::{Layout, Pipeline};
use deploy::up::{broker, note, replicas, supervisor};
use protocol::event::JobResult;
use protocol::file_uri;
use protocol::message::{JobId, JobRequest};
use runtime::bus::{Bus, Role};
use runtime::process::{Exit, Fatal, on_signal};
use runtime::{answer, remark};

use crate::cli::Ask;
use crate::export::Plan;
use crate::running::{broker_trouble, connect};
use crate::up::{absolute, use_model};

/// The last event of a job that was cancelled is heard within this time.
const END_WAIT: Duration = Duration::from_secs(5);

/// Question as it is asked.
struct Question {
    request: JobRequest,
    style: Style,
    /// Files that are wanted of its answer.
    plan: Option<Plan>,
}

/// Answer, with the media file where files of the answer are wanted.
struct Answered {
    result: JobResult,
    media: Option<Media>,
}

/// Asks and shows the answer, writes the files that are wanted of it, and shows the truth beside it where one is given.
///
/// # Errors
/// As [`deploy::ask::ask`], when no pipeline can be started, when a file cannot be written, and when the answer is not the
/// truth.
pub async fn ask(config: &mut Config, mut ask: Ask) -> Result<(), Fatal> {
    let truth = truth(&ask)?;
    let (video, local) = named(&ask.video)?;
    let plan = Plan::new(&ask, local.as_deref()).await?;
    let dump = ask.dump.take();
    let request = request(&ask, local.as_deref().unwrap_or(&video))?;
    let style = Style { json: ask.json, quiet: ask.quiet };
    let question = Question { request, style, plan };
    let Answered { result, media } = answered(config, &question, &video, local.as_deref(), dump).await?;
    if let (Some(plan), Some(media)) = (&question.plan, media) {
        plan.carry_out(&question.request, &result, media).await?;
    }
    let Some(truth) = truth else { return Ok(()) };
    let verdict = truth.judge(&result);
    answer!("truth: {truth} ({verdict})")?;
    if verdict.is_true() {
        return Ok(());
    }
    let text = format!(
        "the answer is not the truth: it is {:?}, {verdict}; IoU {LEAST} or the same words were due",
        result.text
    );
    Err(Fatal(Exit::Other, text))
}

/// The video that an argument names, and its place on this host. It may be there where stage-decode runs, and not here.
///
/// # Errors
/// For a relative path that leads nowhere: stage-decode takes absolute ones.
fn named(argument: &Path) -> Result<(PathBuf, Option<PathBuf>), Fatal> {
    let video = argument.to_str().map_or_else(|| argument.to_owned(), file_uri::path);
    match video.canonicalize() {
        Ok(local) => Ok((video, Some(local))),
        Err(_) if video.is_absolute() => Ok((video, None)),
        Err(error) => Err(missing(&video, &error)),
    }
}

/// A video that is not there.
fn missing(video: &Path, error: &std::io::Error) -> Fatal {
    let here = match (video.is_absolute(), std::env::current_dir()) {
        (false, Ok(dir)) => format!(" (in {})", dir.display()),
        _ => String::new(),
    };
    Fatal(Exit::Usage, format!("{}{here}: {error}; name a video that is there", video.display()))
}

/// The true answer, where a truth is given.
fn truth(ask: &Ask) -> Result<Option<Answer>, Fatal> {
    let Some(file) = &ask.truth else { return Ok(None) };
    let [query] = ask.queries.as_slice() else {
        let text = format!("--truth judges one question, {} are asked", ask.queries.len());
        return Err(Fatal(Exit::Usage, text));
    };
    let truth = Truth::read(file).and_then(|truth| truth.answer(&ask.task, query).cloned());
    let answer = truth.map_err(|e| Fatal(Exit::Usage, e))?;
    Ok(Some(ask.span.map_or(answer.clone(), |span| answer.within(span))))
}

/// Asks and shows the answer; `local` is the place of the video where this host has it.
async fn answered(
    config: &mut Config,
    question: &Question,
    video: &Path,
    local: Option<&Path>,
    dump: Option<PathBuf>,
) -> Result<Answered, Fatal> {
    let shared = if config.bus.url.is_empty() {
        note::running(config, Role::Client).await?
    } else {
        Some(connect(config, Role::Client).await?)
    };
    if let Some(bus) = shared {
        if dump.is_some() {
            let text = "--dump needs a pipeline of its own: stop the running one, or set decode.dump where it runs";
            return Err(Fatal(Exit::Usage, text.to_owned()));
        }
        return follow(&bus, question).await;
    }
    // Stages that are started here see what is here.
    let local = local.ok_or_else(|| missing(video, &std::io::ErrorKind::NotFound.into()))?;
    use_model(config)?;
    if let Some(warning) = config.model.warning() {
        remark!("warning: {warning}");
    }
    config.decode.media_roots.extend(local.parent().map(Path::to_owned));
    if let Some(dump) = dump {
        std::fs::create_dir_all(&dump).map_err(|e| Fatal(Exit::Usage, format!("{}: {e}", dump.display())))?;
        config.decode.dump = Some(absolute(&dump)?);
    }
    ask_own(config, question).await
}

/// The job that a command line describes.
fn request(ask: &Ask, video: &Path) -> Result<JobRequest, Fatal> {
    let job = match &ask.job {
        Some(job) => JobId::new(job.clone()),
        None => JobId::new(format!("ask-{}-{}", std::process::id(), runtime::bus::events::now_ms())),
    };
    let job = job.map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
    let request = JobRequest {
        task: ask.task.clone(),
        parser: ask.parser.clone(),
        pad_s: ask.pad,
        join_s: ask.join,
        span: ask.span,
        fps: ask.fps,
        max_new_tokens: ask.max_new_tokens,
        temperature: ask.temperature,
        top_p: ask.top_p,
        seed: ask.seed,
        deadline_s: ask.deadline,
        priority: ask.priority,
        ..JobRequest::new(job, file_uri::text(video), "").with_queries(ask.queries.clone())
    };
    protocol::wire::Message::check(&request).map_err(|e| Fatal(Exit::Usage, e.to_string()))?;
    Ok(request)
}

/// Asks a pipeline that is started for this question and stopped after it.
async fn ask_own(config: &Config, question: &Question) -> Result<Answered, Fatal> {
    let dir = tempfile::tempdir().map_err(|e| Fatal(Exit::Other, format!("no temporary directory: {e}")))?;
    let layout = Layout::Processes(supervisor::Logs::Directory(dir.path().to_owned()));
    let each = replicas::replicas(&[], config).map_err(|e| Fatal(Exit::Usage, e))?;
    let mut pipeline = Pipeline::start(config, dir.path(), &each, &layout, &broker::Options::default()).await?;
    let bus = pipeline.bus().clone();
    let outcome = tokio::select! {
        outcome = follow(&bus, question) => outcome,
        fatal = pipeline.lost() => Err(fatal),
    };
    let fitted = pipeline.fitted().map(str::to_owned);
    pipeline.stop().await;
    match (outcome, fitted) {
        // What did not fit may be the disk's doing.
        (Err(Fatal(Exit::DoesNotFit, text)), Some(smaller)) => {
            Err(Fatal(Exit::DoesNotFit, format!("{text}; {smaller}")))
        }
        (outcome, _) => outcome,
    }
}

/// Submits the job and follows it to its end; where files of the answer are wanted, its media file is looked into before.
async fn follow(bus: &Bus, question: &Question) -> Result<Answered, Fatal> {
    let request = &question.request;
    let Some(plan) = &question.plan else {
        return Ok(Answered { result: to_its_end(bus, request, question.style).await?, media: None });
    };
    let known = plan.media_before(bus, request).await?;
    let result = to_its_end(bus, request, question.style).await?;
    let media = match known {
        Some(media) => media,
        None => plan.media_after(bus, request).await?,
    };
    Ok(Answered { result, media: Some(media) })
}

/// Submits the job and follows it to its end, and cancels it at Ctrl-C; its own last event says how it ended.
async fn to_its_end(bus: &Bus, request: &JobRequest, style: Style) -> Result<JobResult, Fatal> {
    let mut shutdown = on_signal();
    let mut asking = std::pin::pin!(deploy::ask::ask(bus, request, style));
    tokio::select! {
        outcome = &mut asking => return outcome,
        _ = shutdown.wait_for(|&s| s) => {}
    }
    client::cancel(bus, &request.job).await.map_err(broker_trouble)?;
    let unheard = |_| Fatal(Exit::Cancelled, format!("cancelled: no event of its end within {END_WAIT:?}"));
    tokio::time::timeout(END_WAIT, asking).await.map_err(unheard)?
}
