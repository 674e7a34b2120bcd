//! `vidi record`: subscribes to all subjects below the prefix and writes what it receives to a file.
//!
//! What JetStream stores is published like anything else, so a plain core NATS subscription hears it. Nothing is
//! pulled, acknowledged or kept at the broker for a tap, and a tap that is too slow loses messages instead of slowing
//! anyone down. It hears what is published, not what is stored: see [`Repeats`].

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use protocol::event::JobEvent;
use protocol::wire;
use runtime::bus::events::{EventLog, now_ms};
use runtime::bus::{Bus, BusError, Role};

use super::format::{End, Entry, Filter, Header, Record};
use super::kind::Kind;
use super::writer::Writer;

/// Interval of flushes: a crash costs at most this much of a recording.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Bytes that may wait for the disk; messages beyond are lost, and counted.
const QUEUE_BYTES: usize = 256 << 20;
/// Message ids remembered, to recognize repeats.
const REMEMBERED: usize = 4096;
/// Time that the broker has to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Records until `stop` resolves, or until the filter's job has ended. `listening` is called once nothing is missed.
///
/// # Errors
/// A file that exists or cannot be written, a job that ended before, a broker that refuses the subscription.
pub async fn record(
    bus: &Bus,
    path: &Path,
    filter: &Filter,
    stop: impl Future<Output = ()>,
    listening: impl FnOnce(),
) -> anyhow::Result<End> {
    // A connection of its own: it carries nothing else, so what it receives and what is seen here can be compared.
    let tap = Bus::connect(bus.config(), Role::Operator, PATIENCE).await?;
    let file = File::options().write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("{}", path.display()))?;
    let writer = Writer::new(file, &header(&tap, filter))?;
    let started = Instant::now();
    let prefix = format!("{}.", tap.subjects().prefix());
    let mut messages = tap.client().subscribe(format!("{prefix}>")).await?;
    let mut seen_here = round_trip(&tap).await?;
    if let Some(job) = &filter.job
        && EventLog::open(bus, job).await.ended().is_some()
    {
        std::fs::remove_file(path)?;
        bail!("job {job} has ended already: nothing is left to record");
    }
    listening();
    let queue = Queue::start(writer);
    let mut end = End::default();
    let mut repeats = Repeats::default();
    let mut take = |message: async_nats::Message, end: &mut End| {
        let record = to_record(message, &prefix, started);
        let last = ends(&record, filter);
        if !filter.takes(&record) {
            return false;
        }
        if repeats.is_one(&record) {
            end.repeats += 1;
        } else if queue.push(record) {
            end.messages += 1;
        } else {
            end.lost += 1;
        }
        last
    };
    let mut stop = pin!(stop);
    let mut look = tokio::time::interval(FLUSH_EVERY);
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { break };
                seen_here += 1;
                if take(message, &mut end) {
                    break;
                }
            }
            () = &mut stop => break,
            // A disk that is full is noticed although nobody publishes.
            _ = look.tick() => if queue.is_broken() { break },
        }
    }
    // What the client took off the connection by now either waits in the subscription or did not fit there.
    let arrived = tap.client().statistics().in_messages.load(Ordering::Relaxed);
    messages.unsubscribe().await?;
    while let Some(message) = messages.next().await {
        seen_here += 1;
        take(message, &mut end);
    }
    end.lost += arrived.saturating_sub(seen_here);
    end.disconnects = tap.reconnects();
    end.at_us = started.elapsed().as_micros() as u64;
    queue.finish(&end).await.with_context(|| format!("{}", path.display()))?;
    Ok(end)
}

fn header(tap: &Bus, filter: &Filter) -> Header {
    let server = tap.client().server_info();
    Header {
        wire: wire::VERSION,
        prefix: tap.subjects().prefix().to_owned(),
        started_ms: now_ms(),
        vidi: env!("CARGO_PKG_VERSION").to_owned(),
        server: format!("nats-server {}", server.version),
        max_payload: server.max_payload,
        filter: filter.clone(),
    }
}

/// Waits until the server has every subscription made so far; returns the number of messages that this took.
async fn round_trip(tap: &Bus) -> anyhow::Result<u64> {
    let gone = |e: String| BusError::new(runtime::bus::BusErrorKind::Unreachable, e);
    let inbox = tap.client().new_inbox();
    let mut echo = tap.client().subscribe(inbox.clone()).await?;
    tap.client().publish(inbox, bytes::Bytes::new()).await?;
    match tokio::time::timeout(PATIENCE, echo.next()).await {
        Ok(Some(_)) => Ok(1),
        _ => Err(gone(format!("no answer from the broker within {PATIENCE:?}")).into()),
    }
}

fn to_record(message: async_nats::Message, prefix: &str, started: Instant) -> Record {
    let mut headers: Vec<(String, String)> = message
        .headers
        .iter()
        .flat_map(|h| h.iter())
        .flat_map(|(name, values)| values.iter().map(|v| (name.to_string(), v.as_str().to_owned())))
        .collect();
    headers.sort();
    Record {
        at_us: started.elapsed().as_micros() as u64,
        subject: message.subject.strip_prefix(prefix).unwrap_or(&message.subject).to_owned(),
        headers,
        body: message.payload.to_vec(),
    }
}

/// Whether a message is the last of the job that is recorded.
fn ends(record: &Record, filter: &Filter) -> bool {
    record.kind() == Some(Kind::Events)
        && filter.job.is_some()
        && filter.job == record.job()
        && wire::decode_any::<JobEvent>(&record.body).is_ok_and(|e| e.event.is_terminal())
}

/// Recognizes repeats: while a stream is full, its producers publish the same message again and again.
#[derive(Default)]
struct Repeats {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Repeats {
    /// Whether a message with this id was seen before; remembers it.
    fn is_one(&mut self, record: &Record) -> bool {
        let Some(id) = record.header("Nats-Msg-Id") else { return false };
        if !self.ids.insert(id.to_owned()) {
            return true;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        false
    }
}

/// Queue of records to the thread that writes them to the disk.
struct Queue {
    sender: mpsc::Sender<Record>,
    waiting: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<io::Result<Writer<File>>>,
}

impl Queue {
    fn start(writer: Writer<File>) -> Self {
        let (sender, receiver) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let written = waiting.clone();
        let thread = std::thread::spawn(move || write(writer, &receiver, &written));
        Queue { sender, waiting, thread }
    }

    /// Queues a record, without ever waiting; false if the queue is full.
    fn push(&self, record: Record) -> bool {
        let bytes = record.body.len();
        if self.waiting.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return false;
        }
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        self.sender.send(record).is_ok()
    }

    /// Whether writing to the disk has failed.
    fn is_broken(&self) -> bool {
        self.thread.is_finished()
    }

    /// Writes what waits and the closing entry, and returns when the disk has it.
    async fn finish(self, end: &End) -> anyhow::Result<()> {
        drop(self.sender);
        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await?;
        let mut writer = joined.expect("the writer does not panic. This is a bug.")?;
        writer.push(&Entry::End(end.clone()))?;
        writer.into_inner()?.sync_all()?;
        Ok(())
    }
}

fn write(mut writer: Writer<File>, records: &Receiver<Record>, waiting: &AtomicUsize) -> io::Result<Writer<File>> {
    let mut due = Instant::now() + FLUSH_EVERY;
    loop {
        match records.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(record) => {
                let bytes = record.body.len();
                writer.push(&Entry::Message(record))?;
                waiting.fetch_sub(bytes, Ordering::Relaxed);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(writer),
        }
        if Instant::now() >= due {
            writer.flush()?;
            due = Instant::now() + FLUSH_EVERY;
        }
    }
}
