//! `vidi recording show`: summary of a recording.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use protocol::event::{Event, JobEvent};
use protocol::message::{DecodeRequest, JobId, JobRequest};
use protocol::plan::MediaPlan;
use protocol::wire;
use serde::Serialize;

use super::format::{End, Header, Record};
use super::kind::Kind;
use super::publication::output;
use super::reader::Reader;

/// Summary of a recording.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Header.
    pub header: Header,
    /// Closing entry; none if it is cut or damaged.
    pub end: Option<End>,
    /// Reason why there is no closing entry.
    pub loss: Option<String>,
    /// Messages per kind, or per first part of an unknown subject.
    pub kinds: BTreeMap<String, Span>,
    /// Summary per job.
    pub jobs: BTreeMap<JobId, JobSummary>,
}

/// Number, bytes and times of some messages.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Span {
    /// Number of messages.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Microseconds from the start to the first.
    pub first_us: u64,
    /// Microseconds from the start to the last.
    pub last_us: u64,
}

/// Summary of one job of a recording.
#[derive(Clone, Debug, Default, Serialize)]
pub struct JobSummary {
    /// All messages of the job.
    pub span: Span,
    /// The request.
    pub request: Option<JobRequest>,
    /// Plan of its video.
    pub plan: Option<MediaPlan>,
    /// Kinds of its events in their order, each with how many came in a row.
    pub events: Vec<(String, u64)>,
}

impl Span {
    fn add(&mut self, record: &Record) {
        if self.messages == 0 {
            self.first_us = record.at_us;
        }
        self.messages += 1;
        self.bytes += record.body.len() as u64;
        self.last_us = record.at_us;
    }
}

impl Summary {
    /// Reads a recording as far as it is whole. `each` sees every message.
    ///
    /// # Errors
    /// `each`'s.
    pub fn read<R: BufRead>(
        reader: &mut Reader<R>,
        mut each: impl FnMut(&Record) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut kinds: BTreeMap<String, Span> = BTreeMap::new();
        let mut jobs: BTreeMap<JobId, JobSummary> = BTreeMap::new();
        for record in &mut *reader {
            each(&record)?;
            let first = record.subject.split('.').next().unwrap_or_default();
            let kind = record.kind().map_or(first, |k| k.name());
            kinds.entry(kind.to_owned()).or_default().add(&record);
            if let Some(job) = record.job() {
                jobs.entry(job).or_default().add(&record);
            }
        }
        let loss = reader.loss().map(ToString::to_string);
        Ok(Summary { header: reader.header().clone(), end: reader.end().cloned(), loss, kinds, jobs })
    }

    /// Prints it for a person.
    ///
    /// # Errors
    /// The output's.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let h = &self.header;
        writeln!(
            out,
            "wire version {}, prefix {}, started at {} ms Unix time, by vidi {} from {}, messages up to {} bytes",
            h.wire, h.prefix, h.started_ms, h.vidi, h.server, h.max_payload
        )?;
        let kinds = h.filter.kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
        if let Some(job) = &h.filter.job {
            writeln!(out, "only of job {job}")?;
        }
        if !kinds.is_empty() {
            writeln!(out, "only {kinds}")?;
        }
        match (&self.end, &self.loss) {
            (Some(end), _) => writeln!(out, "{}", describe(end))?,
            (None, loss) => writeln!(out, "{}", loss.as_deref().unwrap_or("not read to its end"))?,
        }
        writeln!(out, "\n{:<10} {:>8} {:>12} {:>9} {:>9}", "subject", "messages", "bytes", "first s", "last s")?;
        for (kind, span) in &self.kinds {
            let (first, last) = (seconds(span.first_us), seconds(span.last_us));
            writeln!(out, "{kind:<10} {:>8} {:>12} {first:>9.3} {last:>9.3}", span.messages, span.bytes)?;
        }
        for (job, summary) in &self.jobs {
            let (first, last) = (seconds(summary.span.first_us), seconds(summary.span.last_us));
            let Span { messages, bytes, .. } = summary.span;
            writeln!(out, "\njob {job}: {messages} messages, {bytes} bytes, {first:.3} to {last:.3} s")?;
            summary.print(out)?;
        }
        Ok(())
    }
}

impl JobSummary {
    fn add(&mut self, record: &Record) {
        self.span.add(record);
        match record.kind() {
            Some(Kind::Jobs) => self.request = wire::decode_any(&record.body).ok().or(self.request.take()),
            Some(Kind::Decode) => {
                let plan = wire::decode::<DecodeRequest>(&record.body).ok().map(|r| r.plan);
                self.plan = self.plan.take().or(plan);
            }
            Some(Kind::Events) => {
                let Ok(JobEvent { event, .. }) = wire::decode_any::<JobEvent>(&record.body) else { return };
                let name = serde_json::to_value(&event).ok();
                let name = name.as_ref().and_then(|v| v["kind"].as_str()).unwrap_or("unknown").to_owned();
                match &event {
                    Event::Planned { plan, .. } => self.plan = Some(plan.clone()),
                    // The exact lengths, known once the sound is decoded.
                    Event::Result(result) => self.plan = Some(result.plan.clone()),
                    _ => {}
                }
                match self.events.last_mut() {
                    Some((last, n)) if *last == name => *n += 1,
                    _ => self.events.push((name, 1)),
                }
            }
            _ => {}
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some(r) = &self.request {
            writeln!(
                out,
                "  {}, {} about {}",
                r.task,
                if r.query.is_empty() { "no query" } else { &r.query },
                r.video
            )?;
        }
        if let Some(plan) = &self.plan {
            let image = plan.image.as_ref().map_or("no picture".to_owned(), |i| {
                format!("{} frames in {} tokens of {} x {} each", i.frames, i.tokens, i.grid[0], i.grid[1])
            });
            let audio = plan
                .audio
                .as_ref()
                .map_or("no sound".to_owned(), |a| format!("{} windows in {} tokens", a.windows, a.tokens));
            writeln!(out, "  plan: {:.1} s, {image}, {audio}", plan.duration_s)?;
        }
        let events: Vec<String> =
            self.events.iter().map(|(name, n)| if *n > 1 { format!("{name} x{n}") } else { name.clone() }).collect();
        writeln!(out, "  events: {}", if events.is_empty() { "none".to_owned() } else { events.join(", ") })
    }
}

/// Completeness of a recording, in a sentence.
pub fn describe(end: &End) -> String {
    let mut text = format!("{} messages in {:.1} s", end.messages, seconds(end.at_us));
    if end.repeats > 0 {
        text += &format!(", {} that were sent again left out", end.repeats);
    }
    if end.is_complete() {
        return text + ", complete";
    }
    text + &format!(", INCOMPLETE: {} messages lost, connection lost {} times", end.lost, end.disconnects)
}

/// One line about a message.
pub fn line(record: &Record) -> String {
    let rows = record.kind().and_then(|k| output(k, &record.body).ok()).map(|output| {
        let (offset, tensor) = match &output {
            protocol::message::Output::Frames(m) => (m.offset, &m.tensor),
            protocol::message::Output::Pcm(m) => (m.index, &m.tensor),
            protocol::message::Output::Features(m) => (m.offset, &m.tensor),
            protocol::message::Output::Tokens(m) => (m.offset, &m.tensor),
        };
        format!("  from {offset}: {} {:?}", tensor.dtype(), tensor.shape())
    });
    let id = record.header("Nats-Msg-Id").unwrap_or("-");
    format!(
        "{:>12.6} {:<40} {:>9} {id}{}",
        seconds(record.at_us),
        record.subject,
        record.body.len(),
        rows.unwrap_or_default()
    )
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
