//! Pipeline of real processes on its own broker, asked about synthetic videos.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use config::BusConfig;
use deploy::client::{self, Events};
use deploy::up::broker::{Broker, Options};
use protocol::control::Verb;
use protocol::error::StageName;
use protocol::event::{Cached, Event, JobResult};
use protocol::message::{JobId, JobRequest};
use runtime::bus::{Bus, Role};
use serde::Serialize;

use super::driver::Watch;
use crate::harness;

/// Longest time to start, with twenty gigabytes of weights to read.
const READY_WAIT: Duration = Duration::from_secs(300);
/// Longest time of a job, about an hour of video.
const JOB_WAIT: Duration = Duration::from_secs(300);

/// Pipeline with a synthetic decoder.
pub struct Pipeline {
    bus: Bus,
    up: Child,
    decode: Child,
    watch: Watch,
    dir: tempfile::TempDir,
    _broker: Broker,
}

/// Measurement of one question.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Duration of the video in seconds.
    pub seconds: u64,
    /// Number of image and audio tokens.
    pub tokens: u64,
    /// Seconds from the job's admission to the first token.
    pub first_token_s: f64,
    /// Seconds from the request to the result.
    pub total_s: f64,
    /// Milliseconds per generated token.
    pub ms_per_token: f64,
    /// Peak of GPU memory in use by all processes meanwhile, contexts included.
    pub peak_bytes: u64,
    /// Where the video's keys and values were.
    pub cached: Cached,
    /// Token ids of the answer, to compare runs.
    pub token_ids: Vec<u32>,
    /// Busy seconds of each stage.
    pub busy_s: Vec<(String, f64)>,
    /// Error of a job that failed.
    pub error: Option<String>,
}

impl Pipeline {
    /// Starts broker and stages with these settings and further options of `vidi up`, and waits until all `processes` of them
    /// are ready.
    ///
    /// # Errors
    /// The part that does not start, with the end of the log.
    pub async fn start(
        model: Option<&Path>,
        set: &[String],
        options: &[String],
        processes: usize,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let broker = Broker::start(&dir.path().join("broker"), &Options::default()).await?;
        let url = format!("bus.url={}", broker.url());
        let log = std::fs::File::create(dir.path().join("up.log"))?;
        let settings = || [url.as_str()].into_iter().chain(set.iter().map(String::as_str)).flat_map(|s| ["--set", s]);
        let up = Command::new(harness::vidi()?)
            .env("VIDI_STATE", dir.path().join("state"))
            .args(settings())
            .args(["up", "--replicas", "decode=0", "--media-root", "/"])
            .args(options)
            .args(model.iter().flat_map(|dir| [Path::new("--model"), *dir]))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()?;
        let decode = Command::new(std::env::current_exe()?)
            .args(["decode"])
            .args(settings())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let config = BusConfig { url: broker.url().into(), ..BusConfig::default() };
        let bus = Bus::connect(&config, Role::Client, Duration::from_secs(5)).await?;
        let mut pipeline = Pipeline { bus, up, decode, watch: Watch::start(), dir, _broker: broker };
        pipeline.ready(processes).await?;
        Ok(pipeline)
    }

    async fn ready(&mut self, processes: usize) -> anyhow::Result<()> {
        let until = Instant::now() + READY_WAIT;
        loop {
            let ready: Vec<String> =
                self.memory().await.unwrap_or_default().into_iter().map(|status| status.instance).collect();
            if ready.len() >= processes {
                return Ok(());
            }
            if Instant::now() > until || self.up.try_wait()?.is_some() {
                bail!("pipeline not ready: of {processes} processes only {ready:?} are; {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Last 20 lines of the log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Status of each process, with its memory.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub async fn memory(&self) -> anyhow::Result<Vec<runtime::run::service::Status>> {
        let mut all = Vec::new();
        for stage in StageName::ALL {
            all.extend(client::status(&self.bus, stage).await?);
        }
        Ok(all)
    }

    /// Ends the process of the language model; the next question starts one. What it writes to disk is written before.
    ///
    /// # Errors
    /// If it does not end in time, or there is none.
    pub async fn unload_llm(&self) -> anyhow::Result<()> {
        let operator = Bus::connect(self.bus.config(), Role::Operator, Duration::from_secs(5)).await?;
        let reply = client::load(&operator, Verb::Unload, Some(StageName::Llm)).await?;
        match (reply.error, reply.processes) {
            (None, 1..) => Ok(()),
            (error, processes) => {
                bail!("stage-llm not unloaded: {processes} processes ended, {error:?}; {}", self.log())
            }
        }
    }

    /// Asks about a video of so many seconds.
    ///
    /// # Errors
    /// If the broker or the answer does not come; a job that fails is a measurement with an error.
    pub async fn ask(&self, job: &str, seconds: u64, new_tokens: u32) -> anyhow::Result<Measured> {
        self.ask_about(job, &format!("synthetic:{seconds}"), seconds, new_tokens).await
    }

    /// [`ask`](Self::ask) about the video of a name.
    ///
    /// # Errors
    /// As `ask`.
    pub async fn ask_about(&self, job: &str, video: &str, seconds: u64, new_tokens: u32) -> anyhow::Result<Measured> {
        self.watch.take_peak();
        let query = "a man in a red coat who opens the door and waves";
        let mut request = JobRequest::new(JobId::new(job)?, video, query);
        request.max_new_tokens = new_tokens;
        let started = Instant::now();
        client::submit(&self.bus, &request).await?;
        let mut events = Events::new(&self.bus, &request.job);
        let end = async {
            loop {
                let event = events.next().await?;
                if event.event.is_terminal() {
                    return anyhow::Ok(event.event);
                }
            }
        };
        let end = tokio::time::timeout(JOB_WAIT, end).await.with_context(|| format!("{job}: {}", self.log()))??;
        let total_s = started.elapsed().as_secs_f64();
        let peak_bytes = self.watch.take_peak();
        let blank = Measured {
            seconds,
            tokens: 0,
            first_token_s: f64::NAN,
            total_s,
            ms_per_token: f64::NAN,
            peak_bytes,
            cached: Cached::No,
            token_ids: Vec::new(),
            busy_s: Vec::new(),
            error: None,
        };
        Ok(match end {
            Event::Result(result) => measured(blank, &result),
            Event::Failed { error } => Measured { error: Some(error.to_string()), ..blank },
            other => Measured { error: Some(format!("{other:?}")), ..blank },
        })
    }
}

fn measured(blank: Measured, result: &JobResult) -> Measured {
    let plan = &result.plan;
    let image = plan.image.as_ref().map_or(0, |i| i.tokens);
    Measured {
        tokens: image + plan.audio.as_ref().map_or(0, |a| a.tokens),
        first_token_s: result.timings.first_token_s,
        ms_per_token: 1e3 / result.timings.tokens_per_s,
        cached: result.cached,
        token_ids: result.token_ids.clone(),
        busy_s: result.timings.stages.iter().map(|(stage, t)| (stage.to_string(), t.busy_s)).collect(),
        ..blank
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        for child in [&mut self.up, &mut self.decode] {
            // SIGTERM drains it; its exit status does not matter.
            let _ = harness::signal(child.id(), "TERM");
            let _ = child.wait();
        }
    }
}
