//! Jobs that wait: more requests than the broker holds, cancelled before they are admitted, and for longer than they may.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use deploy::client;
use futures::StreamExt;
use futures::future::try_join_all;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{CancelledBy, Event};
use protocol::message::{JobId, JobRequest};
use protocol::wire;
use runtime::bus::events::{EventLog, Refused};
use runtime::bus::queue::queue_of;
use runtime::subject::StreamName;

use super::ends::{cancel_in, cancelled_by, endless, short_answer};
use super::load::{self, Load, setup, true_setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::harness::{Rig, signal, terminal};

/// Bytes of requests that the broker holds at most, whatever `bus.queue_bytes` is.
const QUEUE: usize = 64 << 20;
/// Bytes of a request that the broker holds a few hundred of, and that is larger than a request may be.
const TOO_LARGE: usize = 240_000;
/// Bytes of a request that may be as large as it is.
const LARGE: usize = 31 << 10;

/// Time for which readings of the line are counted: ten searches of it.
const READ_FOR: Duration = Duration::from_secs(32);

/// A request about a file that is not there, whose question has so many bytes.
fn padded(name: &str, bytes: usize) -> anyhow::Result<JobRequest> {
    Ok(JobRequest::new(JobId::new(name)?, "/nowhere.mp4", "x".repeat(bytes)))
}

/// Publishes requests until the broker takes no more of them; those that it took.
async fn fill(rig: &Rig, name: &str, bytes: usize) -> anyhow::Result<Vec<JobRequest>> {
    let js = async_nats::jetstream::new(rig.bus.client().clone());
    let mut taken = Vec::new();
    loop {
        let request = padded(&format!("{name}-{}", taken.len()), bytes)?;
        let body = Bytes::from(wire::encode(&request));
        match js.publish(rig.bus.subjects().jobs(), body).await?.await {
            Ok(_) => taken.push(request),
            Err(error) if taken.is_empty() => bail!("the broker takes none: {error}"),
            Err(_) => return Ok(taken),
        }
    }
}

/// Requests until the broker takes no more, while no worker admits any: too large ones, then ones that may be so large.
pub async fn flood(scale: &Scale) -> Row {
    let expected = "too large ones fail by name; a job is answered seconds later; every job has one end";
    let case = Case { name: "more requests than the broker holds".to_owned(), expected, bound_s: scale.bound(20.0) };
    case.run(async {
        let mut setup = true_setup(scale);
        // As much as there may be in the full suite; in CI an eighth, hundreds that are refused one by one just as well.
        setup.set.push(format!("bus.queue_bytes={}", (scale.jobs << 20).min(QUEUE)));
        let rig = Rig::start(setup).await?;
        let load = Load::new(&rig).await?;
        let owner = *rig.pids(StageName::Llm).first().context("no stage-llm")?;
        let mut slowest: f64 = 0.0;
        let mut counts = Vec::new();
        for (name, bytes) in [("huge", TOO_LARGE), ("large", LARGE)] {
            signal(owner, "STOP")?;
            let filled = fill(&rig, name, bytes).await;
            signal(owner, "CONT")?;
            let filled = filled?;
            let started = Instant::now();
            // Before all others in line, as soon as the broker takes a request again.
            let urgent = JobRequest { priority: 9, ..load.request(&format!("after-{name}"), 0) };
            load::submit(&rig.bus, &urgent).await?;
            rig.events(&urgent.job).await?;
            slowest = slowest.max(started.elapsed().as_secs_f64());
            for request in &filled {
                let end = rig.events(&request.job).await?;
                let Some(Event::Failed { error }) = end.last().map(|e| &e.event) else { bail!("{end:?}") };
                // By admission, or by its owner: no question may be as long as the second kind's either.
                ensure!(error.kind == ErrorKind::BadRequest, "{}: {error:?}", request.job);
                terminal(&look::log_of(&rig.bus, &request.job).await)?;
            }
            load.check(&rig, &[urgent]).await?;
            counts.push(format!("{} of {bytes} bytes", filled.len()));
        }
        let injected = format!("{} while stage-llm was stopped", counts.join(", then "));
        Ok(Seen { injected, observed: format!("answered after {slowest:.1} s, one end each"), seconds: Some(slowest) })
    })
    .await
}

/// Cancels of jobs that are not admitted yet; stage-llm is killed in between.
pub async fn cancel_before_admission(scale: &Scale) -> Row {
    let jobs = scale.jobs * 10;
    let expected = "cancelled within a second each, also where stage-llm is killed before it admits them; one end each";
    let name = "cancel of jobs that are not admitted".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(1.5) };
    case.run(async {
        let rig = Rig::start(setup(scale)).await?;
        let answer = short_answer(&rig, "undisturbed").await?;
        let owner = *rig.pids(StageName::Llm).first().context("no stage-llm")?;
        let working = endless(&rig, "working")?;
        client::submit(&rig.bus, &working).await?;
        look::wait_for(&rig, &working.job, |e| matches!(e, Event::Planned { .. })).await?;
        signal(owner, "STOP")?;
        let requests =
            (0..jobs).map(|i| endless(&rig, &format!("queued-{i}"))).collect::<anyhow::Result<Vec<JobRequest>>>();
        let requests = requests?;
        for request in &requests {
            client::submit(&rig.bus, request).await?;
        }
        // The last ones: one cancelled while stage-llm stands still, so that others write it down; one as it goes on.
        let [.., late, last] = requests.as_slice() else { bail!("too few jobs") };
        let by_others = cancel_in(&rig, late).await;
        signal(owner, "CONT")?;
        let slowest = cancel_in(&rig, last).await?.max(by_others?);
        signal(owner, "KILL")?;
        rig.wait_ready().await?;
        let all: Vec<&JobRequest> = std::iter::once(&working).chain(&requests).collect();
        for some in all.chunks(40) {
            try_join_all(some.iter().map(|request| client::cancel(&rig.bus, &request.job))).await?;
        }
        for request in std::iter::once(&working).chain(&requests) {
            rig.events(&request.job).await?;
            let events = look::log_of(&rig.bus, &request.job).await;
            ensure!(cancelled_by(&events)? == CancelledBy::Client, "{}", request.job);
        }
        ensure!(short_answer(&rig, "after").await? == answer, "another answer");
        look::empty(&rig).await?;
        let injected = format!("{jobs} jobs submitted while stage-llm was stopped; cancels; stage-llm killed");
        let observed = format!("all cancelled once; the last two in line within {:.2} s", slowest.as_secs_f64());
        Ok(Seen { injected, observed, seconds: Some(slowest.as_secs_f64()) })
    })
    .await
}

/// Cancel of a job whose owner waits for a probe that nobody answers.
pub async fn cancel_in_a_probe(scale: &Scale) -> Row {
    let expected = "cancelled within a second, and the next job begins at once";
    let case = Case { name: "cancel of a job in a probe".to_owned(), expected, bound_s: scale.bound(1.5) };
    case.run(async {
        let rig = Rig::start(true_setup(scale)).await?;
        let load = Load::new(&rig).await?;
        let decode = *rig.pids(StageName::Decode).first().context("no stage-decode")?;
        signal(decode, "STOP")?;
        let probing = load.request("probing", 0);
        client::submit(&rig.bus, &probing).await?;
        look::wait_for(&rig, &probing.job, |e| matches!(e, Event::Queued { .. })).await?;
        tokio::time::sleep(Duration::from_millis(700)).await;
        let cancelled = cancel_in(&rig, &probing).await;
        signal(decode, "CONT")?;
        let mut slowest = cancelled?;
        let begun = Instant::now();
        let next = load.submit(&rig.bus, "next", 1).await?;
        look::wait_for(&rig, &next[0].job, |e| matches!(e, Event::Planned { .. })).await?;
        slowest = slowest.max(begun.elapsed());
        load.check(&rig, &next).await?;
        let injected = "stage-decode stopped, a job cancelled while its owner waited for it".to_owned();
        let observed = format!("cancelled, the next planned; slowest {:.2} s", slowest.as_secs_f64());
        Ok(Seen { injected, observed, seconds: Some(slowest.as_secs_f64()) })
    })
    .await
}

/// Jobs that wait for longer than events are kept, ids that are used again, and a wait that is too long.
pub async fn ages(scale: &Scale) -> Row {
    let expected = "events without a gap from 0 on; an id is answered again once its events are gone; a job that waits too long fails";
    let case = Case { name: "ids and the age of events".to_owned(), expected, bound_s: scale.bound(90.0) };
    case.run(async {
        let mut setup = setup(scale);
        setup.set.extend(["bus.event_age_s=2".to_owned(), "bus.job_age_s=9".to_owned()]);
        let mut rig = Rig::start(setup).await?;
        let clip = rig.media().join("short.mp4");
        crate::media::video(&clip, 2)?;
        let short = |name: &str| -> anyhow::Result<JobRequest> {
            Ok(JobRequest { max_new_tokens: 8, ..JobRequest::new(JobId::new(name)?, clip.to_string_lossy(), "a dog") })
        };
        // In line for longer than events are kept.
        let working = Held::begin(&rig, "working").await?;
        let waiting = short("waiting")?;
        client::submit(&rig.bus, &waiting).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        working.end(&rig).await?;
        let answer = look::result(&rig.answer(&waiting).await?)?.token_ids.clone();
        // The id again: after an answer, and after a cancel and a restart of the broker.
        for again in ["an answer", "a cancel"] {
            gone(&rig, &waiting.job).await?;
            let events = rig.answer(&waiting).await.with_context(|| look::tail(&rig))?;
            let got = look::result(&events).with_context(|| format!("after {again}; {}", look::tail(&rig)))?;
            ensure!(got.token_ids == answer, "after {again}: another answer");
            if again == "an answer" {
                gone(&rig, &waiting.job).await?;
                client::submit(&rig.bus, &JobRequest { max_new_tokens: 8192, ..waiting.clone() }).await?;
                look::wait_for(&rig, &waiting.job, |e| matches!(e, Event::Planned { .. })).await?;
                client::cancel(&rig.bus, &waiting.job).await?;
                cancelled_by(&rig.events(&waiting.job).await?)?;
                rig.restart_broker().await?;
            }
        }
        let got = sent_again(&rig, &waiting).await?;
        ensure!(got == answer, "sent again: another answer");
        late_end(&rig).await?;
        let dated = JobRequest { deadline_s: Some(6.0), ..short("dated")? };
        let submitted = Instant::now();
        look::result(&rig.answer(&dated).await?)?;
        gone(&rig, &dated.job).await?;
        let anew = Held::begin(&rig, "dated").await?;
        tokio::time::sleep(Duration::from_secs(8).saturating_sub(submitted.elapsed())).await;
        let events = look::log_of(&rig.bus, &anew.request.job).await;
        ensure!(events.last().is_some_and(|e| !e.event.is_terminal()), "the deadline of an earlier job: {events:?}");
        anew.end(&rig).await?;
        // In line for longer than a job may wait.
        let working = Held::begin(&rig, "working-on").await?;
        let late = short("late")?;
        client::submit(&rig.bus, &late).await?;
        look::wait_for(&rig, &late.job, |e| matches!(e, Event::Queued { .. })).await?;
        left_in_line(&rig, &short("left")?).await?;
        // As a worker does that comes late to clear up behind an earlier job of this id: it is in line, and stays there.
        rig.bus.purge_job(&late.job).await;
        let end = rig.events(&late.job).await?;
        let Event::Failed { error } = terminal(&end)? else { bail!("{end:?}") };
        ensure!(error.kind == ErrorKind::Deadline && error.hint.contains("job_age_s"), "{error:?}");
        working.end(&rig).await?;
        look::empty(&rig).await?;
        let injected = "events kept for 2 s; jobs 5 and 9 s in line; one id five times, the broker restarted; what outlives its job: a deadline, a \
             cancel, a message in line"
            .to_owned();
        Ok(Seen { injected, observed: "gapless, answered each time, failed as deadline".to_owned(), seconds: None })
    })
    .await
}

/// A job that is worked on and gives its owner nothing to compute, since stage-vision stands still: the machine is there for what
/// a case waits for.
struct Held {
    request: JobRequest,
    vision: u32,
}

impl Held {
    async fn begin(rig: &Rig, name: &str) -> anyhow::Result<Self> {
        let vision = *rig.pids(StageName::Vision).first().context("no stage-vision")?;
        signal(vision, "STOP")?;
        let request = endless(rig, name)?;
        client::submit(&rig.bus, &request).await?;
        look::wait_for(rig, &request.job, |e| matches!(e, Event::Planned { .. })).await?;
        Ok(Held { request, vision })
    }

    /// Cancels it, and has stage-vision go on.
    async fn end(self, rig: &Rig) -> anyhow::Result<()> {
        cancel_in(rig, &self.request).await?;
        signal(self.vision, "CONT")
    }
}

/// A request that is sent again while its job's events are there, and once more as soon as they are gone: it is a new job then.
/// Tokens of its answer.
async fn sent_again(rig: &Rig, request: &JobRequest) -> anyhow::Result<Vec<u32>> {
    client::submit(&rig.bus, request).await?;
    let jobs = rig.bus.stream(StreamName::Jobs).await;
    while jobs.get_info().await?.state.messages > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let events = rig.bus.stream(StreamName::Events).await;
    events.purge().filter(rig.bus.subjects().events(&request.job)).await?;
    let events = rig.answer(request).await.context("sent again")?;
    Ok(look::result(&events)?.token_ids.clone())
}

/// A message in line of a job that has ended, as a broker leaves it that died before it heard the acknowledgement: it goes with
/// the job's events. A worker that stands still has it meanwhile, so that no other takes it.
async fn left_in_line(rig: &Rig, request: &JobRequest) -> anyhow::Result<()> {
    client::submit(&rig.bus, request).await?;
    look::wait_for(rig, &request.job, |e| matches!(e, Event::Queued { .. })).await?;
    cancel_in(rig, request).await?;
    let subject = rig.bus.subjects().waiting(request.priority, &request.job);
    let queue: PullConsumer = rig
        .bus
        .stream(StreamName::Line)
        .await
        .get_consumer(&queue_of(request.priority))
        .await
        .map_err(|e| anyhow!(e))?;
    let mut pulled = queue.batch().max_messages(1).expires(Duration::from_secs(30)).messages().await?;
    rig.bus.client().flush().await?;
    let js = async_nats::jetstream::new(rig.bus.client().clone());
    js.publish(subject.clone(), wire::encode(request).into()).await?.await?;
    let taken = pulled.next().await.context("another took it")?.map_err(|e| anyhow!(e))?;
    let hold = async {
        while taken.ack_with(AckKind::Progress).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err::<(), _>(anyhow!("the broker takes no word of progress"))
    };
    tokio::select! {
        gone = gone(rig, &request.job) => gone?,
        held = hold => held?,
    }
    let left = rig.bus.last_on(StreamName::Line, &subject).await;
    ensure!(left.is_none(), "a message in line outlived the events of {}", request.job);
    Ok(())
}

/// An owner that was away while its job's events went, and writes its end when the id is another job's.
async fn late_end(rig: &Rig) -> anyhow::Result<()> {
    let working = endless(rig, "again")?;
    let mut late = EventLog::open(&rig.bus, &working.job).await;
    for event in [Event::Accepted {}, Event::Queued { rank: 0 }] {
        ensure!(late.append(event).await.is_ok(), "the log of {} is not empty", working.job);
    }
    let mut seen = EventLog::open(&rig.bus, &working.job).await;
    let events = rig.bus.stream(StreamName::Events).await;
    events.purge().filter(rig.bus.subjects().events(&working.job)).await?;
    client::submit(&rig.bus, &working).await?;
    look::wait_for(rig, &working.job, |e| matches!(e, Event::Planned { .. })).await?;
    seen.look().await;
    ensure!(seen.is_anothers(), "who saw the first job takes the second for it: a late cancel, say");
    let refused = late.append(Event::Failed { error: JobError::new(ErrorKind::Internal, "late") }).await;
    ensure!(matches!(refused, Err(Refused::Superseded(_))), "the end of another job: {refused:?}");
    cancel_in(rig, &working).await?;
    cancelled_by(&rig.events(&working.job).await?)?;
    Ok(())
}

/// Many jobs in line, and one behind them that has been worked off: what they cost while they wait.
pub async fn idle(scale: &Scale) -> Row {
    let expected = "what waits is read at most 40 times a second, however many wait";
    let case = Case { name: "hundreds of jobs in line".to_owned(), expected, bound_s: scale.bound(80.0) };
    case.run(async {
        let mut setup = setup(scale);
        setup.set[1] = "bus.worker_patience_s=600".to_owned();
        let rig = Rig::start(setup).await?;
        let first = Held::begin(&rig, "first").await?.request;
        let ask = async |name: &str, priority: u8| -> anyhow::Result<JobRequest> {
            let request = JobRequest { priority, deadline_s: Some(3600.0), ..endless(&rig, name)? };
            client::submit(&rig.bus, &request).await?;
            Ok(request)
        };
        let jobs = 400;
        for i in 0..jobs {
            ask(&format!("waits-{i}"), 5).await?;
        }
        let (urgent, holder) = (ask("urgent", 9).await?, ask("holder", 8).await?);
        look::wait_for(&rig, &holder.job, |e| matches!(e, Event::Queued { .. })).await?;
        // Behind them all in the stream, and gone: its queue has nothing more to deliver below it.
        for (done, next) in [(&first, &urgent), (&urgent, &holder)] {
            client::cancel(&rig.bus, &done.job).await?;
            look::wait_for(&rig, &next.job, |e| matches!(e, Event::Planned { .. })).await?;
        }
        let mut read = rig.bus.client().subscribe("$JS.API.STREAM.MSG.GET.VIDI_LINE").await?;
        rig.bus.client().flush().await?;
        let until = tokio::time::Instant::now() + READ_FOR;
        let mut reads = 0;
        while let Ok(Some(_)) = tokio::time::timeout_at(until, read.next()).await {
            reads += 1;
        }
        let left = rig.bus.stream(StreamName::Line).await.get_info().await?.state.messages;
        let observed = format!("read {reads} times in {} s; {left} in line", READ_FOR.as_secs());
        ensure!(left > jobs && reads > 0 && reads <= 40 * READ_FOR.as_secs(), "{observed}");
        Ok(Seen { injected: format!("{jobs} jobs with a deadline of an hour"), observed, seconds: None })
    })
    .await
}

/// Waits until no event of a job is kept any more.
async fn gone(rig: &Rig, job: &JobId) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(30);
    while !look::log_of(&rig.bus, job).await.is_empty() {
        ensure!(Instant::now() < until, "the events of {job} are still there; {}", look::tail(rig));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
