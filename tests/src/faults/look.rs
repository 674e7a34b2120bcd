//! What a case looks at: the log of a job, what is left in the streams, a process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use protocol::event::{Event, JobEvent, JobResult};
use protocol::message::{JobId, JobRequest};
use protocol::wire;
use runtime::bus::Bus;
use runtime::bus::queue::Queue;
use runtime::subject::StreamName;

use crate::harness::{Rig, terminal};

/// Checks that the text events of a job give its answer, each piece once and where it says that it stands.
///
/// # Errors
/// The first piece that does not.
pub fn told_once(events: &[JobEvent], answer: &str) -> anyhow::Result<()> {
    let mut told = String::new();
    for event in events {
        let Event::Text { delta, at, .. } = &event.event else { continue };
        ensure!(
            *at == told.len() as u64,
            "event {} begins at byte {at}, {} were told before it",
            event.seq,
            told.len()
        );
        told.push_str(delta);
    }
    ensure!(told.trim() == answer, "{} bytes of text were told, the answer has {}", told.len(), answer.len());
    Ok(())
}

/// A job's result, after checking that it is the one end of a gapless log.
///
/// # Errors
/// The defect of the log, or another end.
pub fn result(events: &[JobEvent]) -> anyhow::Result<&JobResult> {
    match terminal(events)? {
        Event::Result(result) => Ok(result),
        other => bail!("{other:?}"),
    }
}

/// All readable events on a job's subject, also those after the terminal one.
pub async fn log_of(bus: &Bus, job: &JobId) -> Vec<JobEvent> {
    let subject = bus.subjects().events(job);
    let mut events = Vec::new();
    let mut from = 1;
    while let Some(message) = bus.first_from(StreamName::Events, &subject, from).await {
        from = message.sequence + 1;
        events.extend(wire::decode_any::<JobEvent>(&message.payload).ok());
    }
    events
}

/// All events of a job up to the terminal one, for who has a connection and no rig.
///
/// # Errors
/// When it does not end within two minutes.
pub async fn followed(bus: &Bus, job: &JobId) -> anyhow::Result<Vec<JobEvent>> {
    let mut events = client::Events::new(bus, job);
    let mut heard: Vec<JobEvent> = Vec::new();
    let all = async {
        while !heard.last().is_some_and(|e| e.event.is_terminal()) {
            heard.push(events.next().await?);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.with_context(|| format!("{job} does not end"))??;
    Ok(heard)
}

/// Waits until no stream but the events holds anything of any job, and no capacity is reserved.
///
/// # Errors
/// The rest that is still there after two minutes.
pub async fn empty(rig: &Rig) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let left = left_over(&rig.bus).await?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < until, "left behind after 2 minutes: {left:?}; {}", tail(rig));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Subjects that hold messages, and jobs that hold a reservation of capacity.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn left_over(bus: &Bus) -> anyhow::Result<Vec<String>> {
    let mut left: Vec<String> =
        bus.capacity_holders().await.iter().map(|job| format!("reservation of {job}")).collect();
    for stream in StreamName::ALL {
        if !matches!(stream, StreamName::Events | StreamName::Dead | StreamName::Capacity) {
            left.extend(bus.subjects_in(stream).await?);
        }
    }
    Ok(left)
}

/// State of each queue, as the broker says, for an error.
pub async fn queues(bus: &Bus) -> String {
    let mut said = Vec::new();
    for name in StreamName::ALL {
        for queue in Queue::of(name, bus.subjects()) {
            said.push(match bus.stream(name).await.consumer_info(&queue.name).await {
                Ok(info) => format!(
                    "{}/{}: {} pending, {} delivered, {} of them unsettled, {} pulls wait",
                    info.stream_name,
                    info.name,
                    info.num_pending,
                    info.delivered.stream_sequence,
                    info.num_ack_pending,
                    info.num_waiting
                ),
                Err(error) => format!("{}/{}: {error}", name.on(bus.subjects()), queue.name),
            });
        }
    }
    said.join("; ")
}

/// Subjects of the messages kept for an operator.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn dead(bus: &Bus) -> anyhow::Result<Vec<String>> {
    Ok(bus.subjects_in(StreamName::Dead).await?)
}

/// Last 40 lines of a rig's log.
pub fn tail(rig: &Rig) -> String {
    let log = rig.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Waits until a job has an event that `wanted` accepts.
///
/// # Errors
/// If there is none within two minutes.
pub async fn wait_for(rig: &Rig, job: &JobId, wanted: impl Fn(&Event) -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(120);
    while !log_of(&rig.bus, job).await.iter().any(|e| wanted(&e.event)) {
        ensure!(Instant::now() < until, "{job} has no such event after 2 minutes; {}", tail(rig));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Resident bytes of a process.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The most threads that a process has until this is awaited.
pub fn most_threads(pid: u32) -> impl Future<Output = anyhow::Result<usize>> {
    let (enough, mut over) = tokio::sync::oneshot::channel::<()>();
    let counting = tokio::spawn(async move {
        let mut most = 0;
        while matches!(over.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
            most = most.max(std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        most
    });
    async move {
        drop(enough);
        Ok(counting.await?)
    }
}

/// Number of terminal events of each kind that the jobs had.
pub async fn count_kinds(bus: &Bus, requests: &[JobRequest]) -> HashMap<&'static str, usize> {
    let mut counts = HashMap::new();
    for request in requests {
        for event in log_of(bus, &request.job).await {
            if event.event.is_terminal() {
                *counts.entry(event.event.kind()).or_default() += 1;
            }
        }
    }
    counts
}
