//! One pipeline of real processes on a broker of its own, asked about synthetic videos.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use config::BusConfig;
use deploy::client::{self, Events};
use deploy::up::broker::{Broker, Options};
use protocol::error::StageName;
use protocol::event::{Event, JobResult};
use protocol::message::{JobId, JobRequest};
use runtime::bus::Bus;
use serde::Serialize;

use super::card::Watch;
use crate::harness;

/// Twenty gigabytes of weights are read within this time.
const READY_WAIT: Duration = Duration::from_secs(300);
/// An hour of video is answered within this time.
const JOB_WAIT: Duration = Duration::from_secs(300);

/// A pipeline, its decoder a synthetic one.
pub struct Pipeline {
    bus: Bus,
    up: Child,
    decode: Child,
    watch: Watch,
    dir: tempfile::TempDir,
    _broker: Broker,
}

/// What one question came to.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Seconds of video.
    pub seconds: u64,
    /// Image and audio tokens.
    pub tokens: u64,
    /// From the job's being taken to the first token.
    pub first_token_s: f64,
    /// From the request to the result.
    pub total_s: f64,
    /// Milliseconds a generated token.
    pub ms_per_token: f64,
    /// The most that the card had given away meanwhile, to whomever, contexts included.
    pub peak_bytes: u64,
    /// Answer's ids, to compare runs.
    pub token_ids: Vec<u32>,
    /// Busy seconds per stage.
    pub busy_s: Vec<(String, f64)>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Pipeline {
    /// Starts broker and stages with these settings, all but the decoder in one process if asked to, and waits until all are
    /// ready.
    ///
    /// # Errors
    /// What does not start, with the end of the log.
    pub async fn start(model: Option<&Path>, set: &[String], one_process: bool) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let broker = Broker::start(&dir.path().join("broker"), &Options::default()).await?;
        let url = format!("bus.url={}", broker.url());
        let log = std::fs::File::create(dir.path().join("up.log"))?;
        let settings = || [url.as_str()].into_iter().chain(set.iter().map(String::as_str)).flat_map(|s| ["--set", s]);
        let up = Command::new(harness::vidi()?)
            .env("VIDI_STATE", dir.path().join("state"))
            .args(settings())
            .args(["up", "--replicas", "decode=0", "--media-root", "/"])
            .args(one_process.then_some("--one-process"))
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
        let config = BusConfig { url: broker.url().to_owned(), ..BusConfig::default() };
        let bus = Bus::connect(&config, "client", Duration::from_secs(5)).await?;
        let mut pipeline = Pipeline { bus, up, decode, watch: Watch::start(), dir, _broker: broker };
        pipeline.ready().await?;
        Ok(pipeline)
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_WAIT;
        loop {
            let there = client::ready(&self.bus).await.unwrap_or_default();
            if there.len() == StageName::ALL.len() {
                return Ok(());
            }
            if Instant::now() > until || self.up.try_wait()?.is_some() {
                bail!("only {there:?} are ready; {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The end of what the processes logged.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Peak and cap of each stage, as its processes tell.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn memory(&self) -> anyhow::Result<Vec<runtime::run::service::Status>> {
        let mut all = Vec::new();
        for stage in StageName::ALL {
            all.extend(client::status(&self.bus, stage).await?);
        }
        Ok(all)
    }

    /// Asks about a video of so many seconds.
    ///
    /// # Errors
    /// When the broker is gone or no answer comes; a job that fails is measured as that.
    pub async fn ask(&self, job: &str, seconds: u64, new_tokens: u32) -> anyhow::Result<Measured> {
        self.watch.take_peak();
        let query = "a man in a red coat who opens the door and waves";
        let mut request = JobRequest::new(JobId::new(job)?, format!("synthetic:{seconds}"), query);
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
        token_ids: result.token_ids.clone(),
        busy_s: result.timings.stages.iter().map(|(stage, t)| (stage.to_string(), t.busy_s)).collect(),
        ..blank
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        for child in [&mut self.up, &mut self.decode] {
            // Asked to drain; then it does not matter how it ended.
            let _ = harness::signal(child.id(), "TERM");
            let _ = child.wait();
        }
    }
}
