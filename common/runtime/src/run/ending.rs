//! How a job ends when its owner does not end it: cancelled or out of time while it waits, or with its owner dead; and
//! what is done once it has ended, so that nothing of it stays behind.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::Shutdown;
use super::admission::{self, ADMISSION, SUBMITTED};
use super::control::broadcast_end;
use crate::bus::Bus;
use crate::bus::events::{EventLog, now_ms};
use crate::bus::streams::ANY;
use crate::subject::{PRIORITIES, StreamName};
use protocol::error::StageName;
use protocol::event::{CancelledBy, Event};
use protocol::message::{JobId, JobRequest};
use protocol::wire;

/// The other stages leave it to stage-llm for so long: one may be there.
const OTHERS_WAIT: Duration = Duration::from_millis(400);
/// An owner that is there has this long to end its job itself.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// An owner that is there answers within this time.
const OWNER_ANSWERS: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(250);
/// The streams are searched for what jobs left behind this often.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// The queues are searched for forgotten messages this often, and one is sent again after so many looks.
const RESCUE_EVERY: Duration = Duration::from_secs(3);
const RESCUE_AFTER: u32 = 2;
/// Messages of a job that has no events are nobody's; they are dropped after this time.
const STRAY_AGE: Duration = Duration::from_secs(15);
/// The line is read again this often, for jobs whose announcement was missed.
const REREAD_EVERY: Duration = Duration::from_secs(15);

/// Drops all that is left of a job that has its terminal event. Stage-llm's and operators' to do: other stages, which
/// may not touch each other's queues, [tell everyone](broadcast_end) instead.
pub async fn clear(bus: &Bus, job: &JobId) {
    broadcast_end(bus, job).await;
    bus.purge_job(job).await;
    bus.release_room(job).await;
}

/// Whether a worker has the job in hand and says so.
pub async fn owner_is_there(bus: &Bus, job: &JobId) -> bool {
    let request = async_nats::Request::new().timeout(Some(OWNER_ANSWERS));
    bus.client().send_request(bus.subjects().owner(job), request).await.is_ok()
}

/// Sees to it that a job that shall be cancelled is: by its owner if there is one, else by us.
pub async fn ensure_ended(bus: Bus, stage: StageName, job: JobId, by: CancelledBy) {
    let started = Instant::now();
    if stage != StageName::Llm {
        tokio::time::sleep(OTHERS_WAIT).await;
    }
    loop {
        let mut log = EventLog::open(&bus, &job).await;
        if log.last().is_none() || log.ended().is_some() {
            return;
        }
        if started.elapsed() > OWNER_WAIT || !owner_is_there(&bus, &job).await {
            let ms = started.elapsed().as_millis() as u64;
            if log.append(Event::Cancelled { by, stages_stopped: Vec::new(), ms }).await.is_ok() {
                tracing::info!(%job, ?by, "cancelled; no worker had it in hand");
                match stage {
                    StageName::Llm => clear(&bus, &job).await,
                    // What else is left goes when a stage-llm is there to sweep.
                    _ => broadcast_end(&bus, &job).await,
                }
            }
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Watches the deadlines of all jobs that wait or are in hand anywhere, until `shutdown`. Every stage-llm worker does.
pub async fn watch_deadlines(bus: Bus, mut shutdown: Shutdown) {
    let mut due: BTreeMap<(u64, JobId), ()> = BTreeMap::new();
    let mut reread = tokio::time::interval(REREAD_EVERY);
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let mut announced = loop {
        match bus.client().subscribe(format!("{}.*.*", bus.subjects().jobs())).await {
            Ok(announced) => break announced,
            Err(error) => tracing::warn!(%error, "waiting jobs cannot be watched yet"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    loop {
        tokio::select! {
            Some(message) = announced.next() => {
                due.extend(deadline_of(&message.payload, message.headers.as_ref()).map(|d| (d, ())));
            }
            _ = reread.tick() => due.extend(deadlines_in_line(&bus).await.into_iter().map(|d| (d, ()))),
            _ = tick.tick() => {
                let now = now_ms();
                while let Some(entry) = due.first_entry().filter(|e| e.key().0 <= now) {
                    let ((_, job), ()) = entry.remove_entry();
                    tokio::spawn(ensure_ended(bus.clone(), StageName::Llm, job, CancelledBy::Deadline));
                }
            }
            () = stopped(&mut shutdown) => return,
        }
    }
}

async fn stopped(shutdown: &mut Shutdown) {
    // A sender that is gone means that the process ends.
    let _ = shutdown.wait_for(|&s| s).await;
}

/// When a request's time is up, Unix milliseconds; none without a deadline.
fn deadline_of(body: &[u8], headers: Option<&async_nats::HeaderMap>) -> Option<(u64, JobId)> {
    let request = wire::decode_any::<JobRequest>(body).ok()?;
    let submitted = headers.and_then(|h| h.get(SUBMITTED)).and_then(|v| v.as_str().parse::<u64>().ok());
    let allowed_ms = (request.deadline_s? * 1000.0) as u64;
    Some((submitted.unwrap_or_else(now_ms).saturating_add(allowed_ms), request.job))
}

async fn deadlines_in_line(bus: &Bus) -> Vec<(u64, JobId)> {
    let mut found = Vec::new();
    let mut from = 1;
    while let Some(message) = bus.first_from(StreamName::Jobs, ANY, from).await {
        from = message.sequence + 1;
        if message.subject.as_str() != bus.subjects().jobs() {
            found.extend(deadline_of(&message.payload, Some(&message.headers)));
        }
    }
    found
}

/// Looks, now and then until `shutdown`, for messages that their queue has forgotten, and sends them again.
///
/// A work queue drops what is acknowledged, so a message at or below the consumer's acknowledgement floor cannot be
/// there; yet nats-server 2.9.10 leaves some when workers die (its filters miss them, see [`Bus::work_queue`]), and never
/// delivers them again. Every stage-llm worker looks.
pub async fn rescue(bus: Bus, mut shutdown: Shutdown) {
    let encoders = StageName::ALL.into_iter().filter(|&s| s != StageName::Llm);
    // The queues of a stream: their consumers, and what each takes.
    let mut streams: Vec<(StreamName, Vec<(String, String)>)> = encoders
        .map(|stage| (StreamName::input_of(stage), vec![(stage.to_string(), bus.subjects().all_input(stage))]))
        .collect();
    let mut lines = vec![(ADMISSION.to_owned(), bus.subjects().jobs())];
    lines.extend(PRIORITIES.map(|p| (admission::queue_of(p), bus.subjects().all_waiting(p))));
    streams.push((StreamName::Jobs, lines));
    // Seen once it may be acknowledged just now.
    let mut suspects: HashMap<(StreamName, u64), u32> = HashMap::new();
    loop {
        let mut seen = HashMap::new();
        for (stream, queues) in &streams {
            let Ok(on) = bus.stream(*stream).await else { continue };
            let mut floors = Vec::new();
            for (consumer, filter) in queues {
                let Ok(info) = on.consumer_info(consumer).await else { continue };
                floors.push((filter.as_str(), info.ack_floor.stream_sequence));
            }
            let highest = floors.iter().map(|(_, floor)| *floor).max().unwrap_or(0);
            let mut from = 1;
            while from <= highest
                && let Some(message) = bus.first_from(*stream, ANY, from).await
                && message.sequence <= highest
            {
                from = message.sequence + 1;
                let subject = message.subject.as_str();
                if !floors.iter().any(|(filter, floor)| message.sequence <= *floor && takes(filter, subject)) {
                    continue;
                }
                let key = (*stream, message.sequence);
                let looks = suspects.get(&key).copied().unwrap_or(0) + 1;
                if looks < RESCUE_AFTER {
                    seen.insert(key, looks);
                    continue;
                }
                tracing::warn!(subject, sequence = message.sequence, "forgotten by its queue; sent again");
                let mut headers = message.headers.clone();
                let on_server = stream.on(bus.subjects());
                headers.insert("Nats-Msg-Id", format!("rescued/{on_server}/{}", message.sequence).as_str());
                let sent = match bus.jetstream().publish_with_headers(message.subject, headers, message.payload).await {
                    Ok(ack) => ack.await.is_ok_and(|ack| !ack.duplicate),
                    Err(_) => false,
                };
                // Another worker that sent it removes it: nothing is to be removed twice, see `Bus::work_queue`.
                if sent && let Err(error) = on.delete_message(message.sequence).await {
                    tracing::debug!(%error, "sent again, and not removed");
                }
            }
        }
        suspects = seen;
        tokio::select! {
            () = tokio::time::sleep(RESCUE_EVERY) => {}
            () = stopped(&mut shutdown) => return,
        }
    }
}

/// Whether a queue's filter, a subject or one that ends in `.*`, takes a subject.
fn takes(filter: &str, subject: &str) -> bool {
    match filter.strip_suffix(".*") {
        Some(all_of) => subject.rsplit_once('.').is_some_and(|(parent, _)| parent == all_of),
        None => filter == subject,
    }
}

/// Drops, now and then until `shutdown`, what the streams hold of jobs that have ended: left by a worker that was killed
/// between two steps, by one that had not heard of the end, or by a stranger. Every stage-llm worker does.
pub async fn sweep(bus: Bus, mut shutdown: Shutdown) {
    let mut strays: HashMap<JobId, Instant> = HashMap::new();
    loop {
        let mut jobs: Vec<JobId> = bus.room_holders().await;
        let queues = StageName::ALL.map(|stage| match stage {
            StageName::Llm => StreamName::Tokens,
            other => StreamName::input_of(other),
        });
        for stream in queues {
            match bus.subjects_in(stream).await {
                Ok(subjects) => jobs.extend(subjects.iter().filter_map(|s| bus.subjects().job_of(s))),
                Err(error) => tracing::debug!(%error, "not swept"),
            }
        }
        jobs.sort();
        jobs.dedup();
        strays.retain(|job, _| jobs.contains(job));
        for job in jobs {
            let log = EventLog::open(&bus, &job).await;
            let since = *strays.entry(job.clone()).or_insert_with(Instant::now);
            let stray = log.last().is_none() && since.elapsed() >= STRAY_AGE;
            if log.ended().is_some() || stray {
                tracing::debug!(%job, stray, "leftovers dropped");
                clear(&bus, &job).await;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP_EVERY) => {}
            () = stopped(&mut shutdown) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_takes_its_own_subjects_only() {
        for (filter, taken, not) in [
            ("v.jobs", "v.jobs", "v.jobs.5.j"),
            ("v.jobs.5.*", "v.jobs.5.j", "v.jobs.6.j"),
            ("v.frames.*", "v.frames.j", "v.audio.j"),
        ] {
            assert!(takes(filter, taken) && !takes(filter, not), "{filter}");
        }
    }
}
