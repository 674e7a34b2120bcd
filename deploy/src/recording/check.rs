//! `vidi replay --check`: gives a running stage its recorded inputs and compares its outputs with the recorded ones.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use protocol::error::StageName;
use protocol::event::{Event, JobEvent};
use protocol::message::JobId;
use protocol::wire;
use runtime::bus::{Bus, Role};
use runtime::run::Shutdown;
use tokio::time::Instant;

use super::compare::Comparison;
use super::kind::{Kind, Part};
use super::play::{Played, Selection, play};
use super::publication::output;
use super::reader::Reader;
use crate::client;

/// Time that a stage has to answer.
const STAGE_WAIT: Duration = Duration::from_secs(5);
/// Time that the broker has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Outcome of a check.
#[derive(Debug)]
pub struct Checked {
    /// Comparison of what came with what was recorded.
    pub comparison: Comparison,
    /// Messages that the stages were given.
    pub played: Played,
    /// Errors besides.
    pub errors: Vec<String>,
}

impl Checked {
    /// Whether everything that was recorded came and agrees.
    pub fn holds(&self, tolerance: f64) -> bool {
        self.errors.is_empty() && self.played.refused.is_empty() && self.comparison.holds(tolerance)
    }
}

/// Plays one job of a recording to the stages that take `what.only`, under an id of its own, and compares what they
/// make of it. Waits until all is there, or nothing more came for `patience`. Afterwards nothing of it waits in any
/// queue.
///
/// # Errors
/// A recording that cannot be read or holds nothing to compare; stages that do not run.
pub async fn check(
    bus: &Bus,
    path: &Path,
    what: &Selection,
    patience: Duration,
    shutdown: &Shutdown,
) -> anyhow::Result<Checked> {
    let parts: BTreeSet<Part> = what.only.iter().flat_map(|k| k.outputs()).copied().collect();
    let parts: Vec<Part> = parts.into_iter().collect();
    ensure!(!parts.is_empty(), "nothing to compare: --check needs --only with jobs, decode, frames, audio or features");
    let asks = what.only.contains(&Kind::Jobs);
    let recorded = the_job(path, what)?;
    let mut reader = Reader::open(path)?;
    let comparison = Comparison::read(&mut reader, &recorded, &parts, asks)?;
    ensure!(!comparison.is_empty(), "the recording holds no outputs of {recorded} to compare with");
    let mut errors = Vec::new();
    errors.extend(reader.loss().map(|loss| format!("{}: {loss}", path.display())));
    needs(bus, &what.only).await?;

    let job = match &what.rename {
        Some(job) => job.clone(),
        None => JobId::new(format!("check-{}-{}", std::process::id(), runtime::bus::events::now_ms()))?,
    };
    let what = Selection { pick: Some(recorded), rename: Some(job.clone()), ..what.clone() };
    let mut checked = Checked { comparison, played: Played::default(), errors };
    let outcome = listen_and_play(bus, path, &what, &job, &mut checked, patience, shutdown).await;
    clear(bus, &job).await;
    outcome?;
    Ok(checked)
}

/// The one job to play.
fn the_job(path: &Path, what: &Selection) -> anyhow::Result<JobId> {
    if let Some(job) = &what.pick {
        return Ok(job.clone());
    }
    let played = Reader::open(path)?.filter(|r| r.kind().is_some_and(|k| what.only.contains(&k)));
    let jobs: BTreeSet<JobId> = played.filter_map(|r| r.job()).collect();
    let names = jobs.iter().map(JobId::as_str).collect::<Vec<_>>().join(", ");
    let mut jobs = jobs.into_iter();
    match (jobs.next(), jobs.next()) {
        (Some(job), None) => Ok(job),
        (None, _) => bail!("the recording holds no such messages"),
        (Some(_), Some(_)) => bail!("the recording holds several jobs ({names}): --pick one"),
    }
}

/// Waits until the stages that take these messages are ready.
async fn needs(bus: &Bus, only: &[Kind]) -> anyhow::Result<()> {
    let needed: BTreeSet<StageName> = match only.contains(&Kind::Jobs) {
        true => StageName::ALL.into(),
        false => only.iter().filter_map(|k| k.taken_by()).collect(),
    };
    let until = Instant::now() + STAGE_WAIT;
    loop {
        let there = client::ready(bus).await?;
        let missing: Vec<&str> = needed.difference(&there).map(|s| s.as_str()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("stages to check are not running under {}: {} missing", bus.subjects().prefix(), missing.join(", "));
        }
    }
}

async fn listen_and_play(
    bus: &Bus,
    path: &Path,
    what: &Selection,
    job: &JobId,
    checked: &mut Checked,
    patience: Duration,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let Checked { comparison, played, errors } = checked;
    // A connection of its own, so that a stage's outputs never queue behind what is sent.
    let receiving = Bus::connect(bus.config(), Role::Operator, PATIENCE).await?;
    let subjects = receiving.subjects();
    let kinds: BTreeSet<Kind> =
        what.only.iter().flat_map(|k| k.outputs()).map(|(k, _)| *k).chain([Kind::Events]).collect();
    let mut filters: Vec<String> = kinds.iter().filter_map(|k| k.subject(subjects, job)).collect();
    filters.push(format!("{}.dead.*.{job}", subjects.prefix()));
    let mut subscriptions = Vec::new();
    for filter in filters {
        subscriptions.push(receiving.client().subscribe(filter).await?);
    }
    let mut heard = futures::stream::select_all(subscriptions);
    // Answered in order: the subscriptions are there once this is.
    client::ready(&receiving).await?;

    let mut reader = Reader::open(path)?;
    let mut playing = pin!(play(bus, &mut reader, what, shutdown));
    let mut stop = shutdown.clone();
    let mut quiet = None;
    loop {
        if quiet.is_some() && comparison.is_complete() {
            return Ok(());
        }
        let until = quiet.unwrap_or_else(Instant::now);
        tokio::select! {
            done = &mut playing, if quiet.is_none() => {
                *played = done;
                quiet = Some(Instant::now() + patience);
            }
            message = heard.next() => {
                let message = message.context("the broker closed the connection")?;
                quiet = quiet.map(|_| Instant::now() + patience);
                if let Some(what) = take(comparison, &message, subjects.prefix()) {
                    errors.push(what);
                    return Ok(());
                }
            }
            () = tokio::time::sleep_until(until), if quiet.is_some() => {
                errors.push(format!("no further output within {patience:?}"));
                return Ok(());
            }
            _ = stop.wait_for(|&s| s) => bail!("stopped"),
        }
    }
}

/// Compares a message; returns the error of one that ends the check.
fn take(comparison: &mut Comparison, message: &async_nats::Message, prefix: &str) -> Option<String> {
    let subject = message.subject.strip_prefix(prefix)?.strip_prefix('.')?;
    match Kind::of(subject)? {
        Kind::Dead => Some(format!("{subject}: a stage rejected a message as unusable")),
        Kind::Events => match wire::decode_any::<JobEvent>(&message.payload).ok()?.event {
            Event::Result(result) => {
                comparison.take_answer(result.token_ids);
                None
            }
            event @ (Event::Failed { .. } | Event::Cancelled { .. }) => Some(format!("the job ended: {event:?}")),
            _ => None,
        },
        kind => match output(kind, &message.payload) {
            Ok(output) => {
                comparison.take(kind, &output);
                None
            }
            Err(error) => Some(format!("{subject}: {error}")),
        },
    }
}

/// Cancels the job in every stage, then purges what is queued for stages that do not run.
async fn clear(bus: &Bus, job: &JobId) {
    if let Err(error) = client::cancel(bus, job).await {
        tracing::warn!(%error, "cancel of {job} failed, its work may remain in stages");
    }
    for stage in StageName::ALL {
        bus.purge(stage, job).await;
    }
}
