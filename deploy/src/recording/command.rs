//! Command lines of `vidi record`, `vidi replay` and `vidi recording`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{BusConfig, Config};
use protocol::message::JobId;
use runtime::bus::{Bus, Role};
use runtime::output::{Answers, Unwritten};
use runtime::process::{Exit, Fatal, on_signal};
use runtime::{answer, remark};

use super::check::{Checked, check};
use super::compare::Agreement;
use super::format::Filter;
use super::kind::Kind;
use super::play::{Played, Selection, Speed, play};
use super::reader::Reader;
use super::show::{Summary, describe, line};
use super::tap;
use crate::client;

/// Arguments of `vidi record`.
#[derive(clap::Args)]
pub struct RecordArgs {
    /// File to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only this job; the recording ends when the job does.
    #[arg(long, value_parser = job_id)]
    job: Option<JobId>,
    /// Only these subjects, e.g. `frames,features`.
    #[arg(long, value_enum, value_delimiter = ',')]
    subjects: Vec<Kind>,
    /// Ends after so many seconds; else at Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    for_s: Option<f64>,
}

/// Arguments of `vidi replay`.
#[derive(clap::Args)]
#[command(
    after_help = "Without --check, what the stages make of a replay stays on the bus as if it were a job's own; \
                        `vidi cancel JOB` drops it."
)]
pub struct ReplayArgs {
    /// A recording.
    file: PathBuf,
    /// Only these subjects, e.g. `frames` into a running stage-vision; everything that streams store if none are given
    /// (without events where stages run, which write their own).
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only this job of the recording.
    #[arg(long, value_name = "JOB", value_parser = job_id)]
    pick: Option<JobId>,
    /// Plays the recorded job under another id, in subjects, headers and bodies. Under its own id a job that has ended
    /// stays ended, and the broker drops what it has seen within the last two minutes.
    #[arg(long, value_name = "NEWID", value_parser = job_id)]
    job: Option<JobId>,
    /// With the pauses that there were, or as fast as the broker takes it (the default with --check).
    #[arg(long, value_enum)]
    speed: Option<Speed>,
    /// First part of the subjects to publish on, if it is not the configured one; its streams are made.
    #[arg(long, value_name = "SUBJECT_PREFIX")]
    to: Option<String>,
    /// Compares what the stage makes of it with what it made of it then; exit status 1 if that differs. One job, under
    /// an id of its own; nothing of it is left on the bus.
    #[arg(long)]
    check: bool,
    /// Relative root mean square up to which outputs agree.
    #[arg(long, default_value_t = 1e-5, requires = "check")]
    tolerance: f64,
    /// Seconds without an output after which the rest counts as missing.
    #[arg(long, default_value_t = 60.0, requires = "check")]
    patience: f64,
    /// One JSON object per compared part.
    #[arg(long, requires = "check")]
    json: bool,
}

/// Subcommands of `vidi recording`.
#[derive(clap::Subcommand)]
pub enum Recording {
    /// Shows what is in a recording.
    Show {
        /// A recording.
        file: PathBuf,
        /// One JSON object.
        #[arg(long)]
        json: bool,
        /// Every message in a line.
        #[arg(long, conflicts_with = "json")]
        messages: bool,
    },
}

fn job_id(text: &str) -> Result<JobId, String> {
    JobId::new(text).map_err(|e| e.to_string())
}

fn seconds(value: f64, flag: &str) -> Result<Duration, Fatal> {
    Duration::try_from_secs_f64(value).map_err(|e| Fatal(Exit::Usage, format!("{flag} {value}: {e}")))
}

fn other(e: impl Into<anyhow::Error>) -> Fatal {
    Fatal(Exit::Other, format!("{:#}", e.into()))
}

/// Records until told to stop.
///
/// # Errors
/// When it cannot; when the recording is incomplete.
pub async fn record(bus: &Bus, args: RecordArgs) -> Result<(), Fatal> {
    let mut shutdown = on_signal();
    let limit = args.for_s.map(|s| seconds(s, "--for")).transpose()?;
    let stop = async {
        let over = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => {}
            _ = shutdown.wait_for(|&s| s) => {}
        }
    };
    let filter = Filter { job: args.job, kinds: args.subjects };
    let listening = || remark!("recording {}.> to {}", bus.subjects().prefix(), args.out.display());
    let end = tap::record(bus, &args.out, &filter, stop, listening).await.map_err(other)?;
    let text = format!("{}: {}", args.out.display(), describe(&end));
    if end.is_complete() {
        return Ok(answer!("{text}")?);
    }
    Err(Fatal(Exit::Other, text))
}

/// Plays a recording, and compares if asked to.
///
/// # Errors
/// When it cannot be read or played as a whole; when what was compared differs.
pub async fn replay(bus: &Bus, args: ReplayArgs) -> Result<(), Fatal> {
    let retargeted = match &args.to {
        None => None,
        Some(prefix) => {
            let valid = Config::load(None, [], &[format!("bus.prefix={prefix:?}")]);
            valid.map_err(|e| Fatal(Exit::Usage, format!("--to: {e}")))?;
            let config = BusConfig { prefix: prefix.clone(), ..bus.config().clone() };
            Some(Bus::connect(&config, Role::Operator, Duration::from_secs(2)).await?)
        }
    };
    let bus = retargeted.as_ref().unwrap_or(bus);
    bus.ensure_streams().await?;
    let unplayable = args.only.iter().find(|k| !Kind::PLAYABLE.contains(k));
    if let Some(kind) = unplayable {
        return Err(Fatal(Exit::Usage, format!("--only {kind}: no stream stores it, so it cannot be played")));
    }
    let speed = args.speed.unwrap_or(if args.check { Speed::Max } else { Speed::Real });
    let mut what = Selection { only: args.only, pick: args.pick, rename: args.job, speed };
    let shutdown = on_signal();
    if args.check {
        let patience = seconds(args.patience, "--patience")?;
        let checked = check(bus, &args.file, &what, patience, &shutdown).await.map_err(other)?;
        return report(&checked, args.tolerance, args.json);
    }
    if what.only.is_empty() {
        let idle = client::ready(bus).await.map_err(other)?.is_empty();
        what.only = Kind::PLAYABLE.into_iter().filter(|k| idle || *k != Kind::Events).collect();
    }
    if what.rename.is_some() {
        let jobs = jobs_of(&args.file, &what).map_err(other)?;
        if jobs > 1 {
            let text = format!("--job names one job, the recording holds {jobs}: --pick one");
            return Err(Fatal(Exit::Usage, text));
        }
    }
    let mut reader = Reader::open(&args.file).map_err(other)?;
    let played = play(bus, &mut reader, &what, &shutdown).await;
    print_played(&played)?;
    let loss = reader.loss().map(|loss| format!("{}: {loss}; the rest was not played", args.file.display()));
    let refused =
        (!played.refused.is_empty()).then(|| format!("{} messages could not be played", played.refused.len()));
    let stopped = played.stopped.then(|| "stopped".to_owned());
    match loss.or(refused).or(stopped) {
        None => Ok(()),
        Some(text) => Err(Fatal(Exit::Other, text)),
    }
}

fn jobs_of(path: &Path, what: &Selection) -> anyhow::Result<usize> {
    let wanted = |r: &super::Record| r.kind().is_some_and(|k| what.only.contains(&k));
    let jobs = Reader::open(path)?.filter(wanted).filter_map(|r| r.job());
    let jobs = jobs.filter(|j| what.pick.as_ref().is_none_or(|p| p == j));
    Ok(jobs.collect::<std::collections::BTreeSet<_>>().len())
}

fn print_played(played: &Played) -> Result<(), Unwritten> {
    for (kind, (messages, bytes)) in &played.kinds {
        answer!("{kind}: {messages} messages, {bytes} bytes")?;
    }
    if played.kinds.is_empty() {
        answer!("nothing to play")?;
    }
    for refused in &played.refused {
        remark!("not played: {refused}");
    }
    Ok(())
}

fn report(checked: &Checked, tolerance: f64, json: bool) -> Result<(), Fatal> {
    for agreement in checked.comparison.agreements() {
        if json {
            answer!("{}", serde_json::json!(agreement))?;
        } else {
            answer!("{}", sentence(&agreement, tolerance))?;
        }
    }
    if let Some((recorded, heard)) = checked.comparison.answer() {
        let same = heard.as_ref() == Some(recorded);
        if json {
            answer!("{}", serde_json::json!({ "answer": { "recorded": recorded, "heard": heard } }))?;
        } else if same {
            answer!("answer: the same {} tokens", recorded.len())?;
        } else {
            answer!("answer: {heard:?} instead of {recorded:?}")?;
        }
    }
    for text in checked.errors.iter().chain(&checked.played.refused) {
        remark!("{text}");
    }
    if checked.holds(tolerance) {
        return Ok(());
    }
    Err(Fatal(Exit::Other, "the stage's outputs differ from the recorded ones".to_owned()))
}

fn sentence(a: &Agreement, tolerance: f64) -> String {
    let mut text = format!(
        "{} ({}): {} of {} rows, relative rms {:.2e}, largest difference {:.2e}: {}",
        a.kind,
        a.modality,
        a.compared,
        a.recorded,
        a.relative_rms,
        a.max_abs,
        if a.holds(tolerance) { "agrees" } else { "DIFFERS" },
    );
    if let Some((from, to)) = a.first_missing {
        text += &format!("; the first missing rows are {from} to {}", to - 1);
    }
    if let Some(mismatch) = &a.mismatch {
        text += &format!("; {mismatch}");
    }
    if a.not_recorded > 0 {
        text += &format!("; {} more rows came that the recording does not hold", a.not_recorded);
    }
    text
}

/// Runs a subcommand of `vidi recording`.
///
/// # Errors
/// A file that cannot be read, or not to its end (what there is of it is shown).
pub fn recording(action: Recording) -> Result<(), Fatal> {
    let Recording::Show { file, json, messages } = action;
    let mut reader = Reader::open(&file).map_err(other)?;
    let mut out = Answers::new();
    let summary: io::Result<Summary> = (|| {
        let each = |r: &super::Record| if messages { writeln!(out, "{}", line(r)) } else { Ok(()) };
        let summary = Summary::read(&mut reader, each)?;
        if json {
            writeln!(out, "{}", serde_json::json!(summary))?;
        } else {
            summary.print(&mut out)?;
        }
        out.flush()?;
        Ok(summary)
    })();
    match summary.map_err(other)?.loss {
        None => Ok(()),
        Some(loss) => Err(Fatal(Exit::Other, format!("{}: {loss}", file.display()))),
    }
}
