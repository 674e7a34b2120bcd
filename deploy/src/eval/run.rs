//! Every query of a truth file, asked of a running pipeline: video by video, one query after another, so that each video is
//! decoded once and kept for its other queries.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use protocol::error::JobError;
use protocol::event::{CancelledBy, JobResult};
use protocol::file_uri;
use protocol::message::{JobId, JobRequest};
use protocol::wire::Message;
use runtime::bus::Bus;
use runtime::bus::events::now_ms;
use runtime::process::{Exit, Fatal, on_signal};
use runtime::run::Shutdown;
use runtime::{answer, remark};
use stage_llm::text::reading::reference::format_hms;

use super::answers::AnswerFile;
use super::line::{Asking, Failure, Line, Outcome, model_text};
use super::pace::Pace;
use super::progress::Progress;
use super::retrieval::{self, Query};
use super::videos::{Asked, by_video};
use crate::ask::{End, followed};
use crate::client;

/// The last event of a job that was cancelled is heard within this time.
const END_WAIT: Duration = Duration::from_secs(5);

/// What is asked, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queries, with their true answers.
    pub truth: PathBuf,
    /// Directory of the videos, as this process and stage-decode both see it.
    pub videos: PathBuf,
    /// File that the answers are added to.
    pub out: PathBuf,
    /// Settings of every query.
    pub asking: Asking,
    /// Seconds after which a query is given up.
    pub deadline_s: Option<f64>,
}

impl Options {
    fn request(&self, video: &Path, query: &Query, number: usize) -> Result<JobRequest, Fatal> {
        let wrong = |e: protocol::wire::WireError| Fatal(Exit::Usage, format!("query {}: {e}", query.query_id));
        let job = JobId::new(format!("eval-{}-{}-{number}", std::process::id(), now_ms())).map_err(wrong)?;
        let request = JobRequest {
            fps: self.asking.fps,
            max_new_tokens: self.asking.max_new_tokens,
            deadline_s: self.deadline_s,
            ..JobRequest::new(job, file_uri::text(video), query.query.clone())
        };
        request.check().map_err(wrong)?;
        Ok(request)
    }
}

/// Asks what is not answered yet, and adds each answer to the file as it comes.
///
/// # Errors
/// A file that cannot be used or written; a broker that does not take the queries; Ctrl-C; at the end, queries that failed or
/// have no video. The same command goes on.
pub async fn run(bus: &Bus, options: &Options) -> Result<(), Fatal> {
    let queries = retrieval::queries(&options.truth)?;
    let file = AnswerFile::open(&options.out, &queries, options.asking)?;
    if file.was_cut {
        remark!("{}: its last line was cut off, and that query is asked again", options.out.display());
    }
    let (videos, missing) = by_video(&options.videos, &queries, |query| !file.has(query))?;
    let to_ask: usize = videos.iter().map(|video| video.queries.len()).sum();
    remark!(
        "{} queries: {} answered before, {to_ask} to ask about {} videos",
        queries.len(),
        file.answered(),
        videos.len()
    );
    let unseen: usize = missing.values().sum();
    if unseen > 0 {
        let names: Vec<&str> = missing.keys().copied().collect();
        let at = options.videos.display();
        remark!("{} videos ({unseen} queries) are not in {at}: {}", names.len(), names.join(", "));
    }
    let mut run = Run {
        bus,
        options,
        file,
        shutdown: on_signal(),
        progress: Progress::new(to_ask),
        pace: Pace::default(),
        left: (videos.len(), to_ask - videos.len()),
        failed: 0,
        decoded: 0,
    };
    let started = Instant::now();
    for video in &videos {
        let asked = run.video(video).await;
        if asked.is_err() {
            run.progress.clear();
        }
        asked?;
    }
    run.progress.clear();
    run.hint(&videos);
    let (answered, failed) = (run.file.answered(), run.failed);
    let by = run.file.model().map(|model| format!(" by {}", model_text(model))).unwrap_or_default();
    answer!(
        "{}: {answered} of {} queries are answered{by}, {failed} failed, {unseen} have no video; decodings: {}, time: {}",
        options.out.display(),
        queries.len(),
        run.decoded,
        format_hms(started.elapsed().as_secs_f64())
    )?;
    let text = "not every query is answered, see above: the same command asks the others again";
    match (failed, unseen) {
        (0, 0) => Ok(()),
        (0, _) => Err(Fatal(Exit::Other, text.to_owned())),
        _ => Err(Fatal(Exit::JobFailed, text.to_owned())),
    }
}

/// A run under way.
struct Run<'a> {
    bus: &'a Bus,
    options: &'a Options,
    file: AnswerFile,
    shutdown: Shutdown,
    progress: Progress,
    pace: Pace,
    /// First and next queries about videos that are not asked yet.
    left: (usize, usize),
    failed: usize,
    /// Answers for which the video was not known yet.
    decoded: usize,
}

impl Run<'_> {
    async fn video(&mut self, video: &Asked<'_>) -> Result<(), Fatal> {
        for (at, query) in video.queries.iter().enumerate() {
            let asked = Instant::now();
            let number = self.file.answered() + self.failed;
            let request = self.options.request(&video.file, query, number)?;
            let (end, interrupted) = self.end(&request).await?;
            let seconds = asked.elapsed().as_secs_f64();
            let left = if at == 0 { &mut self.left.0 } else { &mut self.left.1 };
            *left -= 1;
            match end {
                Some(End::Answered(result)) => self.answered(query, *result, at == 0, seconds)?,
                Some(End::Failed(error)) if !interrupted => self.failed(query, failure(&error))?,
                Some(End::Cancelled { by, .. }) if !interrupted => self.failed(query, cancelled(by))?,
                _ => {}
            }
            if interrupted {
                return Err(Fatal(Exit::Cancelled, format!("interrupted: {}", self.goes_on())));
            }
        }
        Ok(())
    }

    /// Follows a job to its end, or to that of this process, in which case the job is cancelled. No end where none was heard
    /// of in time.
    async fn end(&self, request: &JobRequest) -> Result<(Option<End>, bool), Fatal> {
        let broker = |e: anyhow::Error| Fatal(Exit::Broker, format!("{e:#}; {}", self.goes_on()));
        let mut shutdown = self.shutdown.clone();
        let mut asking = pin!(followed(self.bus, request, |_| {}));
        let ended = tokio::select! {
            end = &mut asking => Some(end),
            _ = shutdown.wait_for(|&s| s) => None,
        };
        if let Some(end) = ended {
            return Ok((Some(end.map_err(broker)?), false));
        }
        client::cancel(self.bus, &request.job).await.map_err(broker)?;
        // It may have been answered meanwhile.
        let end = tokio::time::timeout(END_WAIT, asking).await.ok().transpose().map_err(broker)?;
        Ok((end, true))
    }

    fn goes_on(&self) -> String {
        format!("{} answers are in {}; the same command goes on", self.file.answered(), self.options.out.display())
    }

    fn answered(&mut self, query: &Query, result: JobResult, is_first: bool, seconds: f64) -> Result<(), Fatal> {
        let count = result.ranges.len();
        self.decoded += usize::from(!result.cached.is_known());
        self.pace.add(is_first, seconds);
        let outcome = Outcome::Answered {
            answer: result.ranges.iter().map(|range| [range.start_s, range.end_s]).collect(),
            text: result.text,
            cached: result.cached,
            seconds,
            model: result.model,
        };
        self.write(query, outcome)?;
        self.step(query, &format!("{count} ranges"));
        Ok(())
    }

    fn failed(&mut self, query: &Query, error: Failure) -> Result<(), Fatal> {
        self.failed += 1;
        let said = format!("failed: {}: {}", error.kind, error.message);
        self.write(query, Outcome::Failed { error })?;
        self.progress.line(&format!("query {} about {}: {said}", query.query_id, query.video_id));
        self.step(query, "failed");
        Ok(())
    }

    fn write(&mut self, query: &Query, outcome: Outcome) -> Result<(), Fatal> {
        let Query { query_id, video_id, duration, query, task, .. } = query;
        let (asking, duration, task) = (self.options.asking, *duration, task.as_deref());
        Ok(self.file.add(&Line { query_id, video_id, duration, query, task, asking, outcome })?)
    }

    fn step(&mut self, query: &Query, what: &str) {
        let left = self.pace.left_s(self.left.0, self.left.1).map_or("?".to_owned(), format_hms);
        self.progress.step(&format!("{left} left, {} {:?}: {what}", query.video_id, query.query));
    }

    /// Says why videos were decoded more than once, where they were.
    fn hint(&self, videos: &[Asked<'_>]) {
        if self.decoded > videos.len() {
            remark!(
                "{} videos were decoded {} times: the pipeline keeps no video (llm.keep_video), answered others meanwhile, or has \
                 several stage-llm",
                videos.len(),
                self.decoded
            );
        }
    }
}

/// Reason for which a job failed.
fn failure(error: &JobError) -> Failure {
    let kind = serde_json::to_value(error.kind).unwrap_or_default();
    Failure { kind: kind.as_str().unwrap_or("failed").to_owned(), message: error.to_string() }
}

/// Reason for which somebody ended a job.
fn cancelled(by: CancelledBy) -> Failure {
    let (kind, message) = match by {
        CancelledBy::Client => ("cancelled", "a client cancelled it"),
        CancelledBy::Operator => ("cancelled", "an operator cancelled it"),
        CancelledBy::Deadline => ("deadline", "its deadline passed: give a longer --deadline"),
    };
    Failure { kind: kind.to_owned(), message: message.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::error::{ErrorKind, StageName};

    #[test]
    fn a_failed_job_is_written_down_by_its_kind_and_a_cancelled_one_by_who_ended_it() {
        let error = JobError::new(ErrorKind::TooShort, "one frame").at(StageName::Decode);
        let failure = failure(&error);
        assert_eq!((failure.kind.as_str(), failure.message.as_str()), ("too_short", "decode: one frame"));
        assert_eq!(cancelled(CancelledBy::Operator).kind, "cancelled");
        assert_eq!(cancelled(CancelledBy::Deadline).kind, "deadline");
    }

    #[test]
    fn a_request_that_no_stage_takes_is_refused_before_it_is_asked() {
        let query = serde_json::json!({ "query_id": 1, "video_id": "v", "query": "q", "gt": [] });
        let query: Query = serde_json::from_value(query).unwrap();
        let path = PathBuf::new;
        let asking = Asking { fps: 1.0, max_new_tokens: 8 };
        let mut options = Options { truth: path(), videos: path(), out: path(), asking, deadline_s: None };
        let request = options.request(Path::new("/videos/v.mp4"), &query, 3).unwrap();
        assert_eq!(
            (request.video.as_str(), request.query.as_str(), request.task.as_str()),
            ("/videos/v.mp4", "q", "retrieval")
        );
        options.asking.fps = 0.0;
        let Fatal(exit, text) = options.request(Path::new("/videos/v.mp4"), &query, 3).unwrap_err();
        assert!(exit == Exit::Usage && text.contains("fps"), "{text}");
    }
}
